"""What is told of a model is told of that very model: scores, labels, predictions, tables; and features of that very clip."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import report
import uwav
from common import files
from conftest import SMALL
from data import pack, splits
from reporting import figures
from sources import write_own
from train import checkpoints, cli, stages

ROW = "seed0/clip_clap/full"


def copied(run: Path, tmp_path: Path) -> Path:
    """Data are linked, which nothing writes to."""
    return shutil.copytree(run, tmp_path / "run", copy_function=lambda a, b: os.link(a, b) if "/data/" in str(a) else shutil.copy2(a, b))


def train_anew(run: Path, row: str = ROW) -> None:
    (run / row / "han.pt").unlink()
    labels = run / ("labels_segment.npz" if row.endswith("valor") else "seed0/labels_teacher.npz")
    cli.main(["train", str(run / "data"), str(run / row), "--labels", str(labels), "--setting", "binary" if row.endswith("valor") else "full",
              *SMALL, "--set", "epochs=1"])


def page(run: Path, monkeypatch) -> str:
    monkeypatch.setattr(figures, "write", lambda panels, folder, name: ["<svg/>"] * len(panels))
    report.main([str(run)])
    return (run / "report.html").read_text(encoding="utf-8")


def missing(page: str) -> str:
    return " ".join(re.findall('<p class="missing">.*?</p>', page))


# ---- labels are one file; their scores are computed from it ----


@pytest.mark.parametrize("damage", [
    lambda path: path.unlink(),
    lambda path: files.write_arrays(path, **{k: v for k, v in files.read_arrays(path).items() if k != "weakly"}),  # of the version before
    lambda path: files.write_arrays(path, **files.read_arrays(path) | dict(weakly=np.array("[1]"))),
    lambda path: path.write_bytes(path.read_bytes()[:-9]),
    lambda path: path.write_bytes(b""),
])
def test_labels_that_are_damaged_or_of_another_version_are_made_again_by_the_command_that_is_advised(finished, tmp_path, damage):
    run = copied(finished, tmp_path)
    path = run / "seed0/labels_teacher.npz"
    whole = path.read_bytes()
    damage(path)
    with pytest.raises((ValueError, FileNotFoundError), match="make it (again )?with `python uwav.py label`") as error:
        stages.label_scores(path, run / "data", "test")
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    cli.main(["label", str(run / "data"), str(path.parent), "--teacher", str(run / "seed0/teacher.pt")])
    assert path.read_bytes() == whole


def test_the_scores_of_labels_in_the_tables_are_those_of_thresholded_logits(finished):
    truth, weak = (splits.load_truth(finished / "data", "test"), splits.load_weak(finished / "data", "test"))
    for who, places in dict(segment=[""] * 2, teacher=["seed0", "seed1"]).items():
        for place, saved in zip(places, files.read_sealed(finished / "ablation.json", "")["labels"][who]):
            arrays = np.load(finished / place / f"labels_{who}.npz")
            hard = [((arrays[f"test_{m}"] > arrays[f"threshold_{m}"]) & (weak.numpy()[:, None] > 0)) for m in ("audio", "visual")]
            assert uwav.parsing_scores(*map(torch.from_numpy, hard), *truth) == saved


@pytest.mark.parametrize("name", ["scores_test.json", "predictions_test.npz"])
def test_scores_and_predictions_that_are_damaged_are_made_again_by_the_command_that_is_advised(finished, tmp_path, name):
    run = copied(finished, tmp_path)
    path = run / ROW / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    cli.main(["evaluate", str(run / "data"), str(run / ROW / "han.pt")])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", ["seed0/teacher.pt", f"{ROW}/han.pt"])
def test_a_damaged_checkpoint_says_what_helps_wherever_it_is_read(finished, tmp_path, name, monkeypatch):
    run = copied(finished, tmp_path)
    content = bytearray((run / name).read_bytes())
    content[len(content) // 2] ^= 8
    (run / name).write_bytes(content)
    stage = ["pretrain", str(run / "data"), str(run / "seed0"), *SMALL] if name.endswith("teacher.pt") else [
        "train", str(run / "data"), str(run / ROW), "--labels", str(run / "seed0/labels_teacher.npz"), *SMALL]
    with pytest.raises(SystemExit, match="delete it and make it again with `python uwav.py"):
        page(run, monkeypatch)
    with pytest.raises(SystemExit, match=f"{name}: .*; delete it, and the same command makes it again"):
        cli.main([*stage, "--set", "epochs=1"])
    (run / name).unlink()
    cli.main([*stage, "--set", "epochs=1"])


# ---- a parser that was trained anew has no score yet ----


def test_the_report_of_a_parser_that_was_trained_anew_tells_no_score_of_the_old_one_until_it_is_made(finished, tmp_path, monkeypatch):
    run = copied(finished, tmp_path)
    old = files.read_sealed(run / ROW / "scores_test.json", "")["seg_type"]
    train_anew(run)
    text = page(run, monkeypatch)
    assert f"ablation.json: made by another han than {ROW}/han.pt" in missing(text)
    assert f"{ROW}/predictions_test.npz: made by another han than {ROW}/han.pt" in missing(text)
    assert f"{old:.1f}" not in re.sub("<svg/>|<img[^>]*>", "", text.split("Training")[0])
    cli.main(["evaluate", str(run / "data"), str(run / ROW / "han.pt")])  # as the report advises
    assert "predictions_test.npz" not in missing(page(run, monkeypatch))


@pytest.mark.parametrize("changed", ["seed0/clip_clap/valor/han.pt", "seed1/clip_clap/soft/han.pt", "seed1/labels_teacher.npz", "labels_segment.npz"])
def test_tables_are_of_the_very_parsers_and_labels_that_are_there(finished, tmp_path, monkeypatch, changed):
    run = copied(finished, tmp_path)
    if changed.endswith("npz"):  # the same labels, written again otherwise
        files.write_arrays(run / changed, **files.read_arrays(run / changed), more=np.zeros(1))
    else:
        content = checkpoints.load_file(run / changed)
        checkpoints.save_file(run / changed, content | dict(score=content["score"] + 1))
    assert f"ablation.json: made by another {Path(changed).stem} than {changed}" in missing(page(run, monkeypatch))


@pytest.mark.parametrize("names, said", [
    ([f"{ROW}/predictions_test.npz"], "predictions_test.npz: made by another han than"),
    (["seed0/teacher.pt"], "labels_teacher.npz: made by another teacher than"),
    (["seed0/labels_teacher.npz"], "labels_teacher.npz: made by another teacher than"),
    (["seed0/teacher.pt", "seed0/labels_teacher.npz"], f"{ROW}/han.pt: made by another labels_teacher than seed0/labels_teacher.npz"),
])
def test_what_is_of_another_seed_is_not_shown_as_of_this_one(finished, tmp_path, monkeypatch, names, said):
    run = copied(finished, tmp_path)
    for name in names:
        shutil.copy(run / name.replace("seed0", "seed1"), run / name)
    assert said in missing(page(run, monkeypatch))


def test_predictions_of_another_row_are_not_shown_as_of_this_one(finished, tmp_path, monkeypatch):
    run = copied(finished, tmp_path)
    shutil.copy(run / "seed0/clip_clap/soft/predictions_test.npz", run / ROW)
    assert "predictions_test.npz: made by another han" in missing(page(run, monkeypatch))


def test_scores_beside_a_checkpoint_of_the_same_folder_are_not_overwritten(finished, tmp_path):
    """Only those of a parser that is gone are."""
    run = copied(finished, tmp_path)
    shutil.copy(run / "seed0/clip_clap/soft/han.pt", run / ROW / "mine.pt")
    before = (run / ROW / "scores_test.json").read_bytes()
    with pytest.raises(SystemExit, match="scores of another model or other data; choose another folder with --out"):
        cli.main(["evaluate", str(run / "data"), str(run / ROW / "mine.pt")])
    assert (run / ROW / "scores_test.json").read_bytes() == before


# ---- extract and text ----


class Encoder:
    def __init__(self, size: int):
        self.size, self.batches = size, 0

    def __call__(self, inputs: object) -> np.ndarray:
        self.batches += 1
        return np.full((len(inputs), self.size), 1 / self.size**0.5, np.float32)


@pytest.fixture
def clips(tmp_path, monkeypatch) -> Path:
    """Three "videos" of a byte a second, and a decoder of these."""
    pytest.importorskip("av")
    pytest.importorskip("pebble")
    from video import decode

    def read_clips(paths, workers, segments, longest, read):
        for path in paths:
            n = path.stat().st_size
            yield decode.Clip(float(n), np.zeros((n, 2, 2, 3), np.uint8), np.zeros((n, 10), np.float32))

    monkeypatch.setattr(decode, "read_clips", read_clips)
    (tmp_path / "clips").mkdir()
    for name in "abc":
        (tmp_path / f"clips/{name}.mp4").write_bytes(b"12")
    return tmp_path / "clips"


def extracted(clips: Path, out: Path) -> dict[str, int]:
    from video import extract

    extract.check(clips, out, dict(recipe="uwav"))
    result = extract.extract(clips, out, Encoder(768), Encoder(512), dict(recipe="uwav"), workers=1, group=1)
    return result | {path.stem: len(np.load(path)) for path in (out / "feats_CLIP/segment_feats").glob("*.npy")}


@pytest.mark.parametrize("replace, made", [
    (lambda path: path.write_bytes(b"1234"), 4),  # another size
    (lambda path: os.utime(path, (1, 1)), 2),  # another time
    (lambda path: (path.write_bytes(b"123"), os.utime(path, (1, 1))), 3),
])
def test_a_clip_that_was_replaced_under_its_name_has_no_old_features(clips, tmp_path, capsys, replace, made):
    assert extracted(clips, tmp_path / "out")["new"] == 3
    assert extracted(clips, tmp_path / "out")["new"] == 0
    replace(clips / "b.mp4")
    result = extracted(clips, tmp_path / "out")
    assert result["new"] == 1 and result["b"] == made and result["a"] == 2
    assert "another one than before (by size and time): b" in capsys.readouterr().out
    assert extracted(clips, tmp_path / "out")["new"] == 0


def test_a_replaced_clip_stays_known_as_such_if_the_run_is_killed_at_once(clips, tmp_path, monkeypatch):
    from video import extract

    extracted(clips, tmp_path / "out")
    (clips / "c.mp4").write_bytes(b"1")
    with monkeypatch.context() as patch:
        patch.setattr(extract, "_work", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            extracted(clips, tmp_path / "out")
    assert extracted(clips, tmp_path / "out")["c"] == 1


def test_features_that_other_software_made_are_kept_and_said(clips, tmp_path, monkeypatch, capsys):
    from video import extract

    extracted(clips, tmp_path / "out")
    before = (tmp_path / "out/extract.json").read_bytes()
    version = extract.importlib.metadata.version
    monkeypatch.setattr(extract.importlib.metadata, "version", lambda name: "0.0.1" if name == "av" else version(name))
    extracted(clips, tmp_path / "out")  # nothing is to be made
    said = capsys.readouterr().err
    assert said.count("WARNING") == 1 and f"made by av {version('av')}; new ones, by" in said and "av 0.0.1" in said
    assert (tmp_path / "out/extract.json").read_bytes() == before
    (clips / "d.mp4").write_bytes(b"12")
    extracted(clips, tmp_path / "out")
    assert len(json.loads((tmp_path / "out/extract.json").read_text())["software"]) == 2
    monkeypatch.setattr(extract, "code_of", lambda *patterns: "f" * 64)
    capsys.readouterr()
    extracted(clips, tmp_path / "out")
    assert "made by code " in capsys.readouterr().err


@pytest.mark.parametrize("first, second", [("extract", "text"), ("text", "extract")])
@pytest.mark.parametrize("changed", [dict(recipe="valor"), dict(clap_weights=dict(weights="random")), dict(clip_weights=dict(weights="x", sha256="1"))])
def test_extract_and_text_refuse_a_folder_where_the_other_was_made_otherwise(clips, tmp_path, first, second, changed):
    from video import extract

    made = dict(recipe="uwav", clip_weights=dict(weights="x", sha256="0"), clap_weights=dict(weights="y", sha256="0"))

    def run(command: str, made_with: dict) -> None:
        if command == "extract":
            extract.check(clips, tmp_path / "out", made_with)
            extract.extract(clips, tmp_path / "out", Encoder(768), Encoder(512), made_with, workers=1)
        else:
            extract.write_texts(["dog", "cat"], tmp_path / "out", Encoder(768), Encoder(512), made_with)

    run(first, made)
    with pytest.raises(ValueError, match=f"what is asked for: {next(iter(changed))} is .* in .*{first}.json"):
        run(second, made | changed)
    run(second, made)


@pytest.mark.parametrize("killed", [1, 2, 3])
def test_text_that_is_killed_between_its_files_never_leaves_a_pair_that_passes(tmp_path, monkeypatch, killed):
    from video import extract

    own = write_own(tmp_path / "own", "video,labels\n" + "".join(f"{v},dog\n" for v in "abcdef"))

    def embed(size: int):
        return lambda texts: np.stack([np.eye(size, dtype=np.float32)[sum(map(ord, text)) % size] for text in texts])

    def text(*classes: str) -> None:
        extract.write_texts(list(classes), own, embed(768), embed(512), dict(recipe="uwav"))

    text("dog", "cat")
    count = 0

    def die(original):
        def write(*arguments):
            nonlocal count
            count += 1
            if count == killed:
                raise KeyboardInterrupt
            original(*arguments)

        return write

    with monkeypatch.context() as patch:
        for name in ("write_array", "write_json"):
            patch.setattr(extract, name, die(getattr(extract, name)))
        with pytest.raises(KeyboardInterrupt):
            text("cat", "dog")
    try:
        classes = pack.pack(own, tmp_path / "out", workers=1)["llp"]["classes"]
        for name, size in (("clip", 768), ("clap", 512)):
            prompts = [extract.RECIPES["uwav"].prompts[name].format(c) for c in classes]
            np.testing.assert_array_equal(np.load(tmp_path / f"out/llp/text_{name}.npy"), embed(size)(prompts))
    except ValueError as error:
        assert "not the texts that" in str(error)
    text("cat", "dog")
    assert pack.pack(own, tmp_path / "other", workers=1)["llp"]["classes"] == ["cat", "dog"]
