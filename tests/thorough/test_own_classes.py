"""`parse.py --classes`: texts become tokens and embeddings as PyTorch makes them, and the teacher takes the parser's place."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import need

need("open_clip", "laion_clap", "onnx", "onnxscript", "onnxruntime")

import export_onnx
import parse
import uwav
from data.splits import load_truth
from train import checkpoints, stages

ROOT = Path(__file__).resolve().parents[2]
EXPORT = """
import sys
from pathlib import Path
import numpy as np
import hub
home, run, out, phrases = map(Path, sys.argv[1:])
hub.make(home)
import export_onnx, tiny_extract
from video import encoders
encoders.ROBERTA_VOCABULARY = len(hub.VOCABULARY)
export_onnx.ENCODER_GRAPHS = {name: whose for name, whose in export_onnx.ENCODER_GRAPHS.items() if name.endswith("text")}  # the others take minutes
texts = phrases.read_text(encoding="utf-8").splitlines()
with tiny_extract.small_encoders():
    export_onnx.main([str(run), str(out), "--clip-weights", "random", "--clap-weights", "random", "--texts", "--fp16"])
    clip, clap = encoders.ClipEncoder(None), encoders.ClapTextEncoder(None)
tokens = clap.tokenizer(texts, padding="max_length", truncation=True, max_length=77)["input_ids"]
np.savez(out / "expected.npz", clip=clip.texts(texts[:64]), clap=clap.texts(texts[:64]), clip_tokens=clip.tokenizer(texts).numpy(), clap_tokens=tokens)
"""


def phrases() -> list[str]:
    """A thousand and more: plain, with marks, in other scripts, too long for 77 tokens."""
    rng = random.Random(0)
    words = ("dog cat rain kettle Speech baby_cry it's we'll don’t “quoted” Ünïcode naïve 日本語 2024 $5 (food) a/b co-op ... A.B.C. ﬁsh "
             "Frying_(food) emoji🎉 x_y ß ÀÉ playing violin people").split()
    odd = ["dog &amp; cat", "&lt;b&gt;", "caf&eacute;", "&amp;amp;amp;amp;", "R&B", "AT&T;", "schÃ¶n", "dÃ©jÃ  vu", "â€œquotedâ€\x9d", "ＦＵＬＬ　ｗｉｄｔｈ", "ｶﾀｶﾅ", "ﬀ ﬃ ﬄ ﬅ",
           "e\u0301te\u0301", "Å", "ĳ Ǆ", "a\u00a0b", "a\u2009b", "‹a› «b» „c‟", "1⁄2 ½", "a  b   c", " begins", "ends ", "™ © ®", "…", "–—‒", "Ѐ Кириллица", "العربية", "हिन्दी",
           "ไทย", "한국어", "한", "😀👍🏽", "don´t", "l′eau", "“", "x²", "Ω Ω", "K", "µ μ", "ſ", "İstanbul", "ẞ", "a\u0308", "&#233;", "&#xe9;", "&nbsp;x", "&copy;right", "<3 &lt;3"]
    return ["A photo of dog", "This is the sound of rain", *odd] + [
        " ".join(rng.choices(words, k=rng.randint(1, 120 if n % 50 == 0 else 9))) for n in range(1000)]


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "phrases.txt").write_text("\n".join(phrases()), encoding="utf-8")
    environment = os.environ | dict(HF_HOME=str(folder / "hub"), HF_HUB_OFFLINE="1", PYTHONPATH=f"{ROOT}:{ROOT / 'tests/helpers'}")
    done = subprocess.run([sys.executable, "-c", EXPORT, folder / "hub", finished, folder / "bundle", folder / "phrases.txt"],
                          env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "bundle"


def test_the_tokens_of_a_thousand_phrases_are_those_of_open_clip_and_laion_clap(exported):
    from tokenizers import Tokenizer

    with np.load(exported / "expected.npz") as expected:
        for name in ("clip", "clap"):
            tokenizer = Tokenizer.from_file(str(exported / f"{name}_tokenizer.json"))
            texts = [parse.cleaned(text) for text in phrases()] if name == "clip" else phrases()
            got = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
            different = [text for text, a, b in zip(phrases(), got, expected[f"{name}_tokens"].tolist()) if a != b]
            assert not different, (name, len(different), different[:3])


@pytest.mark.parametrize("variant, limit", [(None, 1e-5), ("fp16", 2e-3)])
def test_text_embeddings_are_those_of_pytorch_and_say_it_with_the_bundles_prompts(exported, variant, limit):
    bundle = parse.Bundle(exported, "cpu", variant)
    bundle.info["preprocessing"]["prompts"] = dict(clip="{}", clap="{}")
    texts = phrases()[:64]
    got = parse.texts_of([text.replace("_", " ") for text in texts], bundle)
    with np.load(exported / "expected.npz") as expected:
        plain = [n for n, text in enumerate(texts) if "_" not in text]  # of a class's name, underscores are blanks
        for modality, name in (("audio", "clap"), ("visual", "clip")):
            assert np.abs(got[modality][plain] - expected[name][plain]).max() < limit


def test_a_tokenizer_that_was_changed_is_refused(exported, tmp_path):
    bundle = parse.Bundle(exported, "cpu")
    whole = (exported / "clip_tokenizer.json").read_bytes()
    try:
        (exported / "clip_tokenizer.json").write_bytes(whole.replace(b"77", b"76", 1))
        with pytest.raises(ValueError, match="clip_tokenizer.json: not the file that bundle.json describes"):
            parse.texts_of(["dog"], bundle)
    finally:
        (exported / "clip_tokenizer.json").write_bytes(whole)


def test_the_command_labels_with_classes_of_ones_own_and_says_how_good_that_is(exported, tmp_path):
    command = [sys.executable, "parse.py", exported / "sample.npz", "--bundle", exported, "--json", tmp_path / "x.json", "--classes"]
    done = subprocess.run([*command, "kettle, dog"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "with classes left out in turn it scores" in done.stderr, done.stderr
    told = json.loads((tmp_path / "x.json").read_text())
    assert told["classes"] == ["kettle", "dog"] and np.shape(told["audio_prob"]) == (10, 2)
    files = json.loads((exported / "bundle.json").read_text())["files"]
    assert told["bundle"]["parser"] == files["teacher"]["sha256"]
    for wrong in ("dog,dog", "dog,,cat", "\x1b[2J", ""):
        done = subprocess.run([*command, wrong], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.startswith("error: --classes"), wrong


def test_a_bundle_without_text_encoders_says_how_to_get_them(bundle):
    with pytest.raises(FileNotFoundError, match="no clap_text.onnx; export it with --clap-weights and --texts"):
        parse.texts_of(["dog"], parse.Bundle(bundle, "cpu"))


def test_the_teacher_in_the_parsers_place_gives_the_soft_labels_of_pytorch(bundle, finished, monkeypatch):
    opened = parse.Bundle(bundle, "cpu")
    text = [np.load(finished / f"data/llp/text_{name}.npy").astype(np.float32) for name in ("clap", "clip")]
    monkeypatch.setattr(parse, "texts_of", lambda classes, bundle: dict(audio=text[0], visual=text[1]))
    features = parse.features_of_file(bundle / "sample.npz", opened)
    got = parse.parse(features, opened, opened.classes)
    teacher = checkpoints.load_model(finished / "seed0/teacher.pt")
    with torch.inference_mode():
        logits = teacher(*(torch.from_numpy(features[name])[None] for name in ("audio", "visual_2d")), *map(torch.from_numpy, text))
    for m, z, p, event in zip(("audio", "visual"), logits, (got.audio_prob, got.visual_prob), (got.audio_event, got.visual_event)):
        theta = torch.full((25,), opened.info["open_classes"]["thresholds"][m])
        expected = uwav.soft_labels(z, theta, torch.ones(1, 25))[0].numpy()
        np.testing.assert_allclose(p, expected, atol=1e-5)
        assert np.array_equal(event, p > 0.5)


def test_the_threshold_of_new_classes_is_that_of_best_f1_over_all_and_their_score_is_of_classes_left_out(bundle, finished):
    """Slowly: every cut tried, class by class."""
    told = json.loads((bundle / "bundle.json").read_text())["open_classes"]
    labels, data = stages.read_labels(finished / "seed0/labels_teacher.npz", "cpu"), finished / "data"
    predictions = []
    for m, modality in enumerate(("audio", "visual")):
        z, y = labels.logits["val"][m].numpy(), load_truth(data, "val")[m].numpy() > 0

        def f1(theta: float, keep: list[int]) -> float:
            p, t = z[..., keep] > theta, y[..., keep]
            return 2 * (p & t).sum() / (p.sum() + t.sum())

        every = list(range(25))
        best = max(f1(theta, every) for theta in np.unique(z)[:-1])
        assert f1(told["thresholds"][modality], every) >= best
        test = labels.logits["test"][m].numpy()
        predictions.append(np.zeros(test.shape, bool))
        for c in every:
            others = [k for k in every if k != c]
            theta = export_onnx.one_threshold(torch.from_numpy(z[..., others]), torch.from_numpy(y[..., others]))
            predictions[m][..., c] = test[..., c] > theta
    scores = uwav.parsing_scores(*map(torch.from_numpy, predictions), *load_truth(data, "test"))
    assert scores == pytest.approx(told["left_out"])
