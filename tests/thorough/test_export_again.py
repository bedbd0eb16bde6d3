"""When a bundle is kept and when it is made again, and what its card tells of the parser. Graphs are stood in for."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from conftest import SMALL, need

need("av", "open_clip", "laion_clap", "onnx", "onnxscript", "onnxruntime")

import export_onnx
from common import files
from train import cli

ROW = "seed0/clip_clap/full"


@pytest.fixture
def run(finished, tmp_path, monkeypatch) -> Path:
    def keep(export, out: Path, properties: dict, opset: int = 20) -> dict:
        path = export_onnx.file_of(out, export.name)
        path.write_bytes(json.dumps([export.name, properties["model"]]).encode())
        return dict(file=f"onnx/{path.name}", bytes=path.stat().st_size, sha256=files.file_hash(path), inputs={}, outputs={})

    monkeypatch.setattr(export_onnx, "keep", keep)
    return shutil.copytree(finished, tmp_path / "run", copy_function=lambda a, b: os.link(a, b) if "/data/" in str(a) else shutil.copy2(a, b))


def exported(run: Path, capsys, *options: str) -> tuple[dict[str, bytes], bool]:
    """The files of the bundle, and whether it was kept."""
    capsys.readouterr()
    export_onnx.main([str(run), str(run / "bundle"), *options])
    content = {str(p.relative_to(run / "bundle")): p.read_bytes() for p in (run / "bundle").rglob("*") if p.is_file()}
    return content, "exported before, kept" in capsys.readouterr().out


def told(run: Path) -> tuple[str, list]:
    """The scores of the card, and those of its metadata."""
    card = (run / "bundle/README.md").read_text(encoding="utf-8")
    return re.search("with a spread, the mean over seeds: (.*)\\.\n", card)[1], json.loads(re.search("model-index: (.*)", card)[1])[0]["results"]


def test_the_card_tells_scores_of_the_very_parser_or_that_it_was_not_scored(run, capsys):
    exported(run, capsys)
    before = told(run)
    assert before[0].count("±") == 10 and before[1]
    (run / ROW / "han.pt").unlink()
    cli.main(["train", str(run / "data"), str(run / ROW), "--labels", str(run / "seed0/labels_teacher.npz"), *SMALL, "--set", "epochs=1"])
    _, kept = exported(run, capsys)
    assert not kept and told(run) == ("not scored", [])
    assert files.file_hash(run / ROW / "han.pt") in (run / "bundle/README.md").read_text()
    cli.main(["evaluate", str(run / "data"), str(run / ROW / "han.pt")])
    _, kept = exported(run, capsys)
    mine = files.read_sealed(run / ROW / "scores_test.json", "")["seg_type"]
    assert not kept and f"seg_type {mine:.1f}," in told(run)[0] + "," and "±" not in told(run)[0]  # seed 1 was trained otherwise


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["onnx/parser.onnx", "onnx/labels.onnx", "README.md", "texts.json", "sample.npz", "config.json", "bundle.json"])
@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_a_bundle_of_which_anything_is_damaged_or_gone_is_made_again(run, capsys, name, damage):
    whole, _ = exported(run, capsys)
    assert exported(run, capsys) == (whole, True)
    damage(run / "bundle" / name)
    assert exported(run, capsys) == (whole, False)


def test_a_bundle_is_made_again_when_there_are_more_or_fewer_seeds(run, capsys):
    one = run / "seed1/clip_clap/full/scores_test.json"
    (two, _), text = exported(run, capsys), one.read_bytes()
    one.unlink()
    fewer, kept = exported(run, capsys)
    assert not kept and "±" not in told(run)[0] and "±" in two["README.md"].decode()
    one.write_bytes(text)
    assert exported(run, capsys) == (two, False)


@pytest.mark.parametrize("name, said", [
    (f"{ROW}/scores_test.json", None), ("seed0/labels_teacher.npz", "labels_teacher.npz: made by another teacher than"),
    ("seed0/teacher.pt", "labels_teacher.npz: made by another teacher than")])
def test_what_is_of_another_seed_is_not_published_as_of_this_one(run, capsys, name, said):
    shutil.copy(run / name.replace("seed0", "seed1"), run / name)
    if said:
        with pytest.raises(SystemExit, match=said):
            exported(run, capsys)
    else:
        exported(run, capsys)
        assert told(run) == ("not scored", [])


def test_encoders_that_did_not_make_the_features_of_the_training_are_not_exported(run, tmp_path, capsys):
    """Nor is a bundle kept whose weights of that name were replaced."""
    source = export_onnx.source_of_run(run, 0, None, None, None)
    (tmp_path / "a.pt").write_bytes(b"a")
    shutil.copy(tmp_path / "a.pt", tmp_path / "same.pt")
    (tmp_path / "b.pt").write_bytes(b"b")
    made = dict(recipe="uwav", clap_weights=dict(weights="a.pt", sha256=files.file_hash(tmp_path / "a.pt")))
    learned = export_onnx.dataclasses.replace(source, encoders=made)
    for name in ("a.pt", "same.pt"):
        _, found = export_onnx.find_encoders(dict(clip=None, clap=str(tmp_path / name)), learned)
        assert found["clap_weights"]["sha256"] == made["clap_weights"]["sha256"]
    for choice in (str(tmp_path / "b.pt"), "random"):
        with pytest.raises(ValueError, match="what is to be exported: clap_weights is .*, but .* in the features that the parser learned from"):
            export_onnx.find_encoders(dict(clip=None, clap=choice), learned)
    shutil.copy(tmp_path / "b.pt", tmp_path / "a.pt")
    assert export_onnx.find_encoders(dict(clip=None, clap=str(tmp_path / "a.pt")), source)[1] != found
