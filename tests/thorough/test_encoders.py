"""CLIP and CLAP are the libraries' own, as they document themselves: same numbers from the same files of weights."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import HUB, ROOT, need

need("av", "open_clip", "laion_clap")

import hub
import tiny_extract
from data.layout import ENCODERS
from video import decode, encoders, weights


@pytest.fixture(scope="module")
def tiny_clip() -> str:
    """The name of a small CLIP that open_clip builds."""
    return tiny_extract.register()


# ---- CLIP ----


@pytest.fixture(scope="module")
def their_clip(tiny_clip):
    """(model, preprocessing, tokenizer) as open_clip's README gets them."""
    import open_clip

    torch.manual_seed(7)
    model, _, preprocess = open_clip.create_model_and_transforms(tiny_clip)
    return model.eval(), preprocess, open_clip.get_tokenizer(tiny_clip)


def test_clip_of_images_and_texts_is_open_clips(their_clip, tiny_clip, tmp_path):
    from PIL import Image

    model, preprocess, tokenizer = their_clip
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    ours = encoders.ClipEncoder(tmp_path / "clip.pt", model=tiny_clip)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, shape, np.uint8) for shape in ((240, 320, 3), (400, 300, 3), (224, 224, 3))]
    texts = ["A photo of dog", "A photo of frying food"]
    with torch.no_grad():
        images = F.normalize(model.encode_image(torch.stack([preprocess(Image.fromarray(p)) for p in pictures])), dim=-1)
        words = F.normalize(model.encode_text(tokenizer(texts)), dim=-1)
    np.testing.assert_allclose(ours.images(np.stack([decode.square_image(p) for p in pictures])), images.numpy(), atol=1e-6)
    np.testing.assert_allclose(ours.texts(texts), words.numpy(), atol=1e-6)
    assert ours.images(np.zeros((5, 224, 224, 3), np.uint8)).shape == (5, 768)


def test_clip_weights_are_read_in_every_format_they_come_in(their_clip, tmp_path):
    """A state dict, a training checkpoint, and safetensors."""
    from safetensors.torch import save_file

    state = their_clip[0].state_dict()
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "training.pt")
    torch.save({f"_orig_mod.{k}": v for k, v in state.items()}, tmp_path / "compiled.pt")
    save_file({k: v.contiguous().clone() for k, v in state.items()}, tmp_path / "clip.safetensors")
    for name in ("plain.pt", "training.pt", "compiled.pt", "clip.safetensors"):
        read = encoders.read_state_dict(tmp_path / name)
        assert read.keys() == state.keys() and all(torch.equal(read[k], state[k]) for k in state), name


def test_the_published_clip_is_the_one_with_quickgelu_and_the_file_that_open_clip_would_fetch():
    import open_clip

    config = open_clip.get_model_config(encoders.CLIP_MODEL)
    assert config["quick_gelu"] and config["embed_dim"] == 768 and config["vision_cfg"]["patch_size"] == 14
    pretrained = open_clip.get_pretrained_cfg(encoders.CLIP_MODEL, "openai")
    assert pretrained["hf_hub"].rstrip("/") == ENCODERS["clip"].repository
    assert (pretrained["mean"], pretrained["std"]) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert set(ENCODERS["clip"].files) == {"open_clip_model.safetensors", open_clip.constants.HF_WEIGHTS_NAME}


OPENAI = dict(mean=[0.48145466, 0.4578275, 0.40821073], std=[0.26862954, 0.26130258, 0.27577711])


@pytest.mark.parametrize("name", ["tiny-quickgelu", "tiny"])
@pytest.mark.parametrize("told", ["prefix", "config beside"])
def test_a_clip_is_built_with_the_activation_it_was_trained_with(tiny_clip, tmp_path, monkeypatch, name, told):
    """The same weights, which do not say it, as open_clip builds either model."""
    import open_clip

    monkeypatch.setattr(encoders, "CLIP_MODEL", tiny_clip)
    quick, file = name.endswith("quickgelu"), tmp_path / "clip.pt"
    torch.manual_seed(7)
    theirs = open_clip.create_model(name).eval()
    torch.save(theirs.state_dict(), file)
    choice = f"{'quickgelu' if quick else 'gelu'}:{file}" if told == "prefix" else str(file)
    if told == "config beside":
        config = dict(embed_dim=768, **{"quick_gelu": True} if quick else {})  # as the hub's: absent means no
        (tmp_path / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=config, preprocess_cfg=OPENAI)))
    files, noted = weights.chosen({"clip": choice})
    assert files == {"clip": file} and noted.keys() == {"clip_weights"}
    noted = noted["clip_weights"]
    assert noted.get("activation", "quickgelu") == ("quickgelu" if quick else "gelu") and noted["weights"] == "clip.pt"
    ours = encoders.ClipEncoder(file, activation=weights.activation(choice, file))
    with torch.no_grad():
        expected = F.normalize(theirs.encode_text(open_clip.get_tokenizer(name)(["a dog"])), dim=-1)
    np.testing.assert_allclose(ours.texts(["a dog"]), expected, atol=1e-6)
    other = encoders.ClipEncoder(file, activation="gelu" if quick else "quickgelu").texts(["a dog"])
    assert np.abs(other - expected.numpy()).max() > 1e-5  # the comparison could fail


def test_a_file_of_clip_that_nothing_tells_of_is_asked_about_before_any_work(their_clip, tiny_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "CLIP_MODEL", tiny_clip)
    file, asked = tmp_path / "clip.pt", "clip.pt: does not say whether .* QuickGELU .* name it as quickgelu:.* or gelu:"
    torch.save({f"module.{k}": v for k, v in their_clip[0].state_dict().items()}, file)
    for ask in (lambda: weights.find("clip", str(file)), lambda: encoders.ClipEncoder(file)):
        with pytest.raises(ValueError, match=asked):
            ask()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.mp4").write_text("")
    for arguments in (["extract", tmp_path / "videos", tmp_path / "out"], ["text", "llp", tmp_path / "out"]):
        result = command(*arguments, "--clip-weights", file, "--clap-weights", "random", HF_HUB_OFFLINE="1")
        assert result.returncode == 1 and re.search(asked, result.stderr) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("content, said", [
    (dict(model_cfg={}, preprocess_cfg=dict(mean=[0.5, 0.5, 0.5])), "its pictures are normalised otherwise than OpenAI's"),  # LAION-2B's ViT-L/14
    (dict(model_cfg={}), "does not describe a CLIP that can be built here"), ([], "does not describe a CLIP"),
])
def test_a_clip_that_is_described_as_one_that_cannot_be_built_is_refused(tmp_path, content, said):
    (tmp_path / "clip.bin").write_text("x")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"open_clip_config.json: .*{said}"):
        weights.find("clip", str(tmp_path / "clip.bin"))


# ---- CLAP ----


@pytest.fixture(scope="module")
def laion_clap():
    hub.make(HUB)
    encoders.import_torchvision()
    with encoders.quiet():
        import laion_clap
    return laion_clap


@pytest.fixture(scope="module", params=[(False, "tiny"), (True, "tiny"), (False, "base"), (True, "base")],
                ids=["tiny", "tiny-fusion", "base", "base-fusion"])
def clap(request, laion_clap, tmp_path_factory):
    """A random CLAP of the library, and its checkpoint as LAION's training script saves it."""
    fusion, size = request.param
    torch.manual_seed(3)
    with encoders.quiet():
        model = laion_clap.CLAP_Module(enable_fusion=fusion, amodel=f"HTSAT-{size}", device="cpu")
    for x in model.model.buffers():  # as training leaves them: batch normalisation is not the identity
        if x.dtype == torch.float32 and x.ndim == 1:
            x += 0.1 * torch.rand_like(x)
    state = {f"module.{k}": v for k, v in model.model.state_dict().items()}
    state["module.text_branch.embeddings.position_ids"] = torch.arange(514)[None]
    path = tmp_path_factory.mktemp("clap") / "clap.pt"
    torch.save({"epoch": np.int64(4), "name": "x", "best": np.float64(0.5), "state_dict": state}, path, pickle_protocol=4)
    return model.eval(), path


def waves(n: int, seconds: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    t = np.arange(round(seconds * 48_000)) / 48_000
    tones = [0.6 * np.sin(2 * np.pi * f * t) for f in rng.uniform(80, 8000, n)]
    return (np.stack(tones) + 0.2 * rng.standard_normal((n, len(t)))).astype(np.float32)  # some of it beyond [-1, 1]


def librosa_mel(wave: torch.Tensor, config: dict) -> torch.Tensor:
    """The log-mel that laion_clap says its torchaudio call equals (training/data.py), by librosa."""
    import librosa

    mel = librosa.feature.melspectrogram(
        y=wave.numpy(), sr=config["sample_rate"], n_fft=config["window_size"], hop_length=config["hop_size"],
        win_length=config["window_size"], center=True, pad_mode="reflect", power=2.0, n_mels=config["mel_bins"], norm=None,
        htk=True, fmin=config["fmin"], fmax=config["fmax"])
    return torch.from_numpy(librosa.power_to_db(mel, ref=1.0, amin=1e-10, top_db=None)).T


def test_clap_of_sounds_is_laion_claps(clap, monkeypatch):
    theirs, path = clap
    from laion_clap.training import data

    monkeypatch.setattr(data, "get_mel", librosa_mel)  # fusion only: torchaudio is not here
    ours = encoders.ClapEncoder(path)
    assert ours.fusion == theirs.enable_fusion
    for seconds in (1.0, 0.7, 10.0):
        x = waves(2, seconds)
        with torch.inference_mode():
            expected = theirs.get_audio_embedding_from_data(x=x)
        found = ours.sounds(x)
        np.testing.assert_allclose(found, expected, atol=2e-6)
        assert found.shape == (2, 512) and np.linalg.norm(found[0] - found[1]) > 1e-3  # the comparison could fail


@pytest.mark.parametrize("clap", [(False, "tiny"), (True, "tiny")], indirect=True)
def test_half_precision_hardly_moves_an_embedding(clap, tiny_clip, monkeypatch):
    """As on a GPU, where the encoders run in half precision; the CPU's autocast stands in. Sounds loud and faint."""
    x = waves(2) * np.float32([[1], [1e-3]])
    pictures = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    sounds, images = encoders.ClapEncoder(clap[1]), encoders.ClipEncoder(None, model=tiny_clip)
    single = sounds.sounds(x), images.images(pictures)
    monkeypatch.setattr(encoders, "half_precision", lambda device: torch.autocast("cpu", torch.float16))
    half = sounds.sounds(x), images.images(pictures)
    for a, b in zip(single, half):
        assert not np.array_equal(a, b) and np.abs((a * b).sum(1) - 1).max() < 1e-4  # cosine


def test_clap_of_texts_is_laion_claps(clap, monkeypatch):
    theirs, path = clap
    monkeypatch.setattr(encoders, "ROBERTA_VOCABULARY", len(hub.VOCABULARY))
    texts = ["This is the sound of dog", "This is the sound of frying food"]
    with torch.inference_mode():
        expected = theirs.get_text_embedding(texts)
    np.testing.assert_allclose(encoders.clap_texts(texts, path), expected, atol=1e-6)
    assert np.linalg.norm(expected[0] - expected[1]) > 1e-3


def test_clap_with_a_wrong_tokenizer_is_refused_because_all_texts_would_look_alike(clap):
    with pytest.raises(FileNotFoundError, match="needs roberta-base.* 68 tokens instead of 50265"):
        encoders.clap_texts(["a"], clap[1])


def test_sound_of_a_second_is_repeated_to_ten(clap):
    x = waves(2)
    ours = encoders.ClapEncoder(clap[1])
    np.testing.assert_allclose(ours.sounds(x), ours.sounds(np.tile(x, 10)), atol=1e-6)


def test_scale_of_logits_tells_whether_the_authors_may_have_used_these_weights(tmp_path):
    for name, key, released in (("clip", "logit_scale", 4.6052), ("clap", "logit_scale_a", 3.2912)):
        torch.save({key: torch.tensor(released + 2e-5), "x": torch.ones(2)}, tmp_path / "their.pt")
        torch.save({key: torch.tensor(released + 2e-4)}, tmp_path / "other.pt")
        said = [encoders.told_by_scale(name, tmp_path / f"{x}.pt") for x in ("their", "other")]
        assert said[0] == (f"{name.upper()}: {key} of their.pt is {released}, that of the released teacher {released}: "
                           "the authors may have used these weights")
        assert f"{released + 2e-4:.4f}" in said[1] and said[1].endswith("the authors had not used these weights")


# ---- files ----


class Canary:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_file_of_weights_is_not_executed(tmp_path, protocol):
    torch.save({"state_dict": {"a": torch.ones(1)}, "x": Canary(tmp_path / "executed")}, tmp_path / "evil.pt",
               pickle_protocol=protocol)
    with pytest.raises(ValueError, match="evil.pt: not a file of weights"):
        encoders.read_state_dict(tmp_path / "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Canary(tmp_path / "executed"), protocol))
    with pytest.raises(ValueError, match="evil.pkl: not a file of weights"):
        encoders.read_state_dict(tmp_path / "evil.pkl")
    assert not (tmp_path / "executed").exists()


def test_weights_of_something_else_are_refused_with_the_file_and_the_model(tiny_clip, tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt: not weights of CLIP tiny-quickgelu"):
        encoders.ClipEncoder(tmp_path / "other.pt", model=tiny_clip)
    for use in (encoders.ClapEncoder, lambda path: encoders.clap_texts(["a"], path)):
        with pytest.raises(ValueError, match="other.pt: not weights of CLAP"):
            use(tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match="text.pt: not a file of weights"):
        encoders.read_state_dict(tmp_path / "text.pt")


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / "features.py"), *map(str, arguments)], capture_output=True, text=True,
                          timeout=300, env=os.environ | environment)


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "", "HF_ENDPOINT": "http://127.0.0.1:9"}],
                         ids=["told so", "found out"])
@pytest.mark.parametrize("arguments, file", [
    (["extract", "VIDEOS", "OUT"], "open_clip_pytorch_model.bin"),
    (["extract", "VIDEOS", "OUT", "--clip-weights", "random"], "lukewys/laion_clap/resolve/main/630k-audioset-best.pt"),
    (["text", "llp", "OUT", "--clip-weights", "random", "--clap-weights", "630k-fusion-best"], "630k-fusion-best.pt"),
])
def test_offline_without_weights_is_one_sentence_that_says_which_file_to_bring(tmp_path, environment, arguments, file):
    (tmp_path / "videos").mkdir()
    known = {"VIDEOS": tmp_path / "videos", "OUT": tmp_path / "out"}
    result = command(*(known.get(a, a) for a in arguments), HF_HOME=str(tmp_path), **environment)
    assert result.returncode == 1 and result.stderr.startswith("error: the CL") and result.stderr.count("\n") == 1
    assert file in result.stderr and "-weights FILE" in result.stderr and not (tmp_path / "out").exists()


def test_weights_in_the_hubs_cache_are_found_offline(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def cached(repository: str, file: str) -> str | None:
        asked.append((repository, file))
        return str(tmp_path / file) if file == ENCODERS["clip"].files[1] else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert weights.find("clip", "openai") == tmp_path / ENCODERS["clip"].files[1]
    assert asked == [(ENCODERS["clip"].repository, f) for f in ENCODERS["clip"].files]


def test_a_weights_option_that_is_neither_name_nor_file_is_refused():
    with pytest.raises(FileNotFoundError, match="--clip-weights nowhere.pt: no such file, and not one of openai, random"):
        weights.find("clip", "nowhere.pt")


def test_without_the_packages_the_sentence_says_what_to_install(tmp_path):
    """A machine without them, by an import path on which they cannot be found."""
    hide = ("import importlib.util, sys; real = importlib.util.find_spec\n"
            "importlib.util.find_spec = lambda name, *a: None if name in ('av', 'pebble', 'laion_clap', 'open_clip') else real(name, *a)\n"
            f"sys.path.insert(0, {str(ROOT)!r}); import features; features.main(sys.argv[1:])")
    for arguments in (["extract", tmp_path, tmp_path / "out"], ["text", "llp", tmp_path / "out"]):
        result = subprocess.run([sys.executable, "-c", hide, *map(str, arguments)], capture_output=True, text=True, timeout=300)
        assert result.returncode == 1
        assert result.stderr == ("error: this command needs packages that are not installed: "
                                 "pip install laion-clap open_clip_torch av pebble\n")


def test_the_method_and_the_annotations_import_none_of_the_encoders_packages():
    code = "import sys, uwav, train.cli, features; print([m for m in ('av', 'PIL', 'open_clip', 'laion_clap', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
