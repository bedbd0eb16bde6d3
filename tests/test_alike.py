"""What must have been made alike is compared by what was noted of it: weights, recipes, the order of classes, names."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import features
import parse
from common import files, released
from data import annotations, layout, pack
from sources import write_own, write_source
from train import checkpoints

OWN = ("video,labels\n" + "".join(f"{v},dog\n" for v in "abcdef"), "video,modality,onset,offset,label\nf,both,0,2,dog\n")
MADE = dict(recipe="uwav", clip_weights=dict(weights="openai", sha256="1" * 64), clap_weights=dict(weights="630k-best.pt", sha256="2" * 64))
RANDOM = {"weights": "random"}


def note(root: Path, name: str, **changed: object) -> None:
    """extract.json or text.json of a folder, as if the command had written it."""
    (root / name).write_text(json.dumps(MADE | changed))


def packed_by_the_command(source: Path, out: Path, *options: str) -> None:
    features.main(["pack", str(source), str(out), "--workers", "1", *options])


@pytest.fixture(scope="module")
def authors(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("authors") / "source")


def copy(folder: Path, tmp_path: Path) -> Path:
    """Features are linked, all else is copied."""
    return shutil.copytree(folder, tmp_path / "source", copy_function=lambda a, b: os.link(a, b) if "segment_feats" in str(a) else shutil.copy2(a, b))


# ---- weights and recipes ----


@pytest.mark.parametrize("which, name, changed, said", [
    ("LLP", "text.json", dict(recipe="valor"), "recipe"),
    ("LLP", "text.json", dict(clip_weights=dict(weights="openai", sha256="3" * 64)), "clip_weights"),
    ("UnAV", "extract.json", dict(clap_weights=dict(weights="630k-best.pt", sha256="3" * 64)), "clap_weights"),
    ("UnAV", "text.json", dict(clap_weights=RANDOM), "clap_weights"),
    ("UnAV", "extract.json", dict(clip_weights=dict(weights="openai", sha256="1" * 64, activation="gelu")), "clip_weights"),
])
def test_features_and_texts_that_were_made_otherwise_are_not_packed_together(authors, tmp_path, which, name, changed, said):
    source = copy(authors, tmp_path)
    note(source / "LLP", "extract.json")
    note(source / which, name, **changed)
    with pytest.raises(SystemExit, match=rf"{which}/{name}: {said} is .*, but .* in .*LLP/extract.json; .* made alike"):
        packed_by_the_command(source, tmp_path / "out")
    assert not (tmp_path / "out/index.json").exists()


def test_the_same_weights_under_another_name_are_alike_and_reach_what_is_trained(authors, tmp_path, capsys):
    source = copy(authors, tmp_path)
    for root in ("LLP", "UnAV"):
        note(source / root, "extract.json")
        note(source / root, "text.json", clap_weights=dict(weights="renamed.pt", sha256="2" * 64))
    packed_by_the_command(source, tmp_path / "out")
    assert "not recorded" not in capsys.readouterr().out
    assert layout.encoders_of(layout.read_index(tmp_path / "out")).keys() == MADE.keys()


def test_what_nobody_noted_as_of_the_authors_files_is_said_once(authors, tmp_path, capsys):
    source = copy(authors, tmp_path)
    note(source / "LLP", "extract.json")
    packed_by_the_command(source, tmp_path / "out")
    said = [line for line in capsys.readouterr().out.splitlines() if "are not recorded" in line]
    assert len(said) == 1 and "LLP/text.json" in said[0] and "UnAV/extract.json" in said[0] and "LLP/extract.json" not in said[0]


@pytest.mark.parametrize("text", ["[3]", '"x"', '{"recipe"', '{"classes": 3}'])
def test_a_note_of_another_form_is_one_sentence(authors, tmp_path, text):
    source = copy(authors, tmp_path)
    (source / "UnAV/text.json").write_text(text)
    with pytest.raises(SystemExit, match="UnAV/text.json: not what `extract` or `text` records") as stop:
        packed_by_the_command(source, tmp_path / "out")
    assert "\n" not in stop.value.code


def test_a_class_that_is_called_random_makes_no_dry_run(tmp_path):
    own = write_own(tmp_path / "own", *OWN, classes=("dog", "random"))
    note(own, "text.json", classes=["dog", "random"])
    assert pack.pack(own, tmp_path / "out", workers=1)["source"] == "own data"


def test_a_teacher_or_parser_is_not_used_on_features_of_other_encoders_or_classes_in_another_order(finished, tmp_path):
    """Its checkpoint as if it had been trained on real features by `MADE`."""
    from train import cli

    index = files.read_sealed(finished / "data/index.json", "")
    out = shutil.copytree(finished / "data", tmp_path / "data", copy_function=os.link)
    (out / "index.json").unlink()

    def write_index(**changed: object) -> None:
        files.write_sealed(out / "index.json", index | changed)

    def changed(path: Path, **settings: object) -> str:
        content = checkpoints.load_file(path)
        content["settings"] |= settings
        checkpoints.save_file(tmp_path / path.name, content)
        return str(tmp_path / path.name)

    write_index(made_with={"LLP/extract.json": json.dumps(MADE | dict(recipe="valor"))})
    for stage in (["label", str(out), str(tmp_path / "l"), "--teacher", changed(finished / "seed0/teacher.pt", encoders=MADE)],
                  ["evaluate", str(out), changed(finished / "seed0/clip_clap/full/han.pt", encoders=MADE), "--out", str(tmp_path / "e")]):
        with pytest.raises(SystemExit, match=r"\.pt: recipe is 'uwav', but 'valor' in .*data"):
            cli.main(stage)
    write_index(llp=index["llp"] | dict(classes=["Car", "Speech", *index["llp"]["classes"][2:]]))
    with pytest.raises(SystemExit, match="han.pt: its classes are 25 Speech; Car; .*number and order must be the same"):
        cli.main(["evaluate", str(out), str(finished / "seed0/clip_clap/full/han.pt"), "--out", str(tmp_path / "e")])
    assert not (tmp_path / "l/labels_teacher.npz").exists() and not (tmp_path / "e/scores_test.json").exists()


# ---- the order of classes; texts that are those that text.json tells of ----


def exchanged(names: list[str], a: int, b: int) -> list[str]:
    return [names[b] if n == a else names[a] if n == b else name for n, name in enumerate(names)]


@pytest.mark.parametrize("root, change, said", [
    ("LLP", lambda names: names[::-1], "class 0 is 'Clapping', for 'Speech'"),
    ("LLP", lambda names: exchanged(names, 3, 4), "class 3 is 'Cat', for 'Dog'"),
    ("LLP", lambda names: [*names[:-1], "Applause"], "class 24 is 'Applause', for 'Clapping'"),
    ("LLP", lambda names: names[:-1], "class 24 is None, for 'Clapping'"),
    ("UnAV", lambda names: names[::-1], "class 0 is 'car', for 'dog'"),
])
def test_texts_in_another_order_than_the_labels_are_not_packed(authors, tmp_path, root, change, said):
    source = copy(authors, tmp_path)
    names = list(annotations.LLP_CLASSES) if root == "LLP" else ["dog", "car"]
    note(source / root, "text.json", classes=change(names))
    with pytest.raises(SystemExit, match=f"{root}/text.json: the texts are in another order.*{said}.*features.py text .* {source}/{root}`"):
        packed_by_the_command(source, tmp_path / "out")


def test_names_as_one_would_say_them_are_the_same_classes(authors, tmp_path):
    source = copy(authors, tmp_path)
    note(source / "LLP", "text.json", classes=[annotations.readable(name) for name in annotations.LLP_CLASSES])
    packed_by_the_command(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["clip", "clap"])
def test_texts_that_others_replaced_are_not_those_that_text_json_tells_of(authors, tmp_path, name):
    source = copy(authors, tmp_path)
    paths = {x: source / "LLP" / e.texts for x, e in layout.TEXTED.items()}
    note(source / "LLP", "text.json", **{f"{x}_texts": files.hash_of_arrays({x: np.load(path)}) for x, path in paths.items()})
    packed_by_the_command(source, tmp_path / "out")
    np.save(paths[name], np.load(paths[name])[::-1].copy())
    with pytest.raises(SystemExit, match="all_event_feats.npy: not the texts that .*LLP/text.json tells of; make them again"):
        packed_by_the_command(source, tmp_path / "other")


# ---- names that do not match ----


@pytest.mark.parametrize("listed, there, how", [
    ("Kitchen", "kitchen", ""), ("caf\u00e9", "cafe\u0301", ", in Unicode's other form"), ("\u304b\u3099", "\u304c", ", in Unicode's other form"),
    ("7", "007", ""), ("clip7", "clip0007", ""), ("CAF\u00c9 1", "cafe\u0301 01", ""),
])
@pytest.mark.parametrize("missing", ["stop", "skip"])
def test_names_that_differ_in_what_file_systems_and_spreadsheets_change_are_named(tmp_path, capsys, listed, there, how, missing):
    own = write_own(tmp_path / "own", f"video,labels\na,dog\nb,dog\n{listed},dog\n", videos=["a", "b", there])
    try:
        pack.pack(own, tmp_path / "out", workers=1, missing=missing)
        said = capsys.readouterr().out
    except FileNotFoundError as error:
        said = str(error)
    assert f"{listed} may be {there}{how}" in said
    assert missing == "stop" or f"videos with features are not in labels.csv (left out): {there}" in said


def test_names_that_do_not_match_are_named_in_events_and_in_the_authors_layout_too(authors, tmp_path, capsys):
    own = write_own(tmp_path / "own", OWN[0], OWN[1].replace("f,both", "F.MP4,both"))
    with pytest.raises(ValueError, match="the video F is not in labels.csv: F may be f$"):
        pack.pack(own, tmp_path / "out", workers=1)
    source = copy(authors, tmp_path)
    for encoder in layout.ENCODERS.values():
        folder = source / "LLP" / encoder.folder
        (folder / "train000000.npy").rename(folder / "Train000000.npy")
    with pytest.raises(FileNotFoundError, match="train000000 may be Train000000"):
        pack.pack(source, tmp_path / "out", workers=1)
    with pytest.raises(FileNotFoundError, match="no features of any train video"):
        pack.pack(source, tmp_path / "out", workers=1, missing="skip")
    assert "left out): train000000: train000000 may be Train000000" in capsys.readouterr().out


# ---- checkpoints, wrapped or nested ----


@pytest.mark.parametrize("wrap", [
    lambda x: {f"module.{k}": v for k, v in x.items()},
    lambda x: {f"_orig_mod.module.{k}": v for k, v in x.items()},
    lambda x: {k.replace("hat_encoder.", "hat_encoder._orig_mod."): v for k, v in x.items()},
    lambda x: {"epoch": 3, "state_dict": x, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": []}},
    lambda x: {"model": {f"module.{k}": v for k, v in x.items()}, "best": np.float64(0.5)},
    lambda x: {"checkpoint": {"model_state_dict": x}},
    lambda x: {"state_dict": x, "state_dict_ema": {k: 2 * v for k, v in x.items()}},
])
def test_a_released_checkpoint_is_read_however_training_wrapped_it(golden, tmp_path, wrap):
    state = {k[3:]: v for k, v in golden("han").items() if k.startswith("sd.")}
    torch.save(state, tmp_path / "plain.pt")
    torch.save(wrap(state), tmp_path / "wrapped.pt", pickle_protocol=4)
    plain, wrapped = (checkpoints.load_model(tmp_path / f"{name}.pt", heads=4, visual_3d_dim=8) for name in ("plain", "wrapped"))
    for (name, x), y in zip(plain.state_dict().items(), wrapped.state_dict().values()):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("content, said", [
    ({"generator": {"a": torch.ones(1)}, "critic": {"a": torch.ones(1)}}, "which weights are meant: it has generator, critic"),
    ({"a": torch.ones(1), "module.a": torch.ones(1)}, "two weights have one name"),
])
def test_weights_that_could_be_either_are_refused(content, said):
    with pytest.raises(ValueError, match=said):
        released.weights_of(content)


# ---- why a graph cannot be read ----


@pytest.mark.parametrize("before, cause", [
    ("Load model from /very/long" * 40 + "/parser.onnx failed: Model::Model(const PathString&) ", "Unsupported model IR version: 10, max supported IR version: 9"),
    ("[ONNXRuntimeError] : 1 : FAIL : " + "unordered_map<std::string, int>& " * 30, "Current official support for domain ai.onnx is till opset 20."),
    ("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : " + "x" * 400, "Could not find an implementation for Gelu(20) node with name 'n'"),
    ("", "short"),
])
def test_the_cause_at_the_end_of_what_onnxruntime_says_is_not_cut_off(before, cause):
    said = parse._first_line(RuntimeError(f"{before}{cause}\nmore"))
    assert said.endswith(cause) and said.startswith(before[:80]) and len(said) < 310


# ---- a pack that is damaged: the command that is advised helps ----


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def other(path: Path) -> None:
    np.save(path, np.load(path) + 1)


@pytest.mark.parametrize("name, damage", [("llp/train/vggish.npy", Path.unlink), ("llp/val/clap.npy", flip), ("unav/test/label.npy", cut),
                                          ("llp/test/visual.npy", other), ("unav/text_clip.npy", other), ("index.json", flip)])
def test_what_says_that_a_pack_is_damaged_says_what_helps(authors, tmp_path, name, damage, capsys):
    from data import splits

    packed_by_the_command(authors, tmp_path / "out")
    whole = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    damage(tmp_path / "out" / name)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        splits.load(tmp_path / "out", name if name.endswith("npy") else "llp/train/weak.npy")
    advised = re.search("`python features.py ([^`]*)`", str(error.value))[1]
    features.main([str(authors) if word == "SOURCE" else word for word in advised.split()])
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == whole
    capsys.readouterr()
    packed_by_the_command(authors, tmp_path / "out")
    assert "already complete" in capsys.readouterr().out


def test_a_pack_made_by_other_code_is_kept_and_said_and_made_again_on_demand(authors, tmp_path, monkeypatch, capsys):
    packed_by_the_command(authors, tmp_path / "out")
    before = (tmp_path / "out/index.json").read_bytes()
    monkeypatch.setattr(layout, "code_of", lambda *patterns: "other")
    packed_by_the_command(authors, tmp_path / "out")
    assert "made by another version of this code" in capsys.readouterr().out and (tmp_path / "out/index.json").read_bytes() == before
    packed_by_the_command(authors, tmp_path / "out", "--replace")
    assert layout.read_index(tmp_path / "out")["code"] == "other"
