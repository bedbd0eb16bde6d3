"""Commands that start from states they did not make: folders with somebody's files, other data, another run's results."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import parse
import conftest
from common import files
from conftest import ROOT
from data import demo_world, layout, pack, splits
from sources import write_source
from train import checkpoints, cli

TINY = replace(demo_world.WorldConfig(), train=12, val=6, test=6, source_train=6, source_validation=3, source_test=3)
SMALL = (*conftest.SMALL, "--set", "epochs=1")


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> tuple[Path, Path]:
    """Two small worlds of different seeds."""
    folder = tmp_path_factory.mktemp("worlds")
    for seed in (0, 1):
        demo_world.make(folder / f"{seed}", replace(TINY, seed=seed))
    return folder / "0", folder / "1"


@pytest.fixture(scope="module")
def run(worlds, tmp_path_factory) -> Path:
    """A finished ablation of the first world."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(worlds[0], folder / "data")
    cli.main(["ablate", str(folder / "data"), str(folder), *SMALL])
    return folder


# ---- nothing is deleted that is not ours, nothing is replaced before its successor is complete ----


@pytest.mark.parametrize("name", ["llp/thesis.txt", "llp/train/notes.npy", "mine.npy", ".packing/llp/thesis.txt", "unav/link"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_with_somebody_s_files_is_refused_and_left_as_it_is(worlds, tmp_path, name, finished):
    out = tmp_path / "out"
    if finished:
        shutil.copytree(worlds[0], out)
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith("link"):
        (out / name).symlink_to(tmp_path)
    else:
        (out / name).write_text("years of work")
    before = content(out)
    source = write_source(tmp_path / "source")
    for command in (lambda: demo_world.make(out, replace(TINY, seed=2), replace=True),
                    lambda: pack.pack(source, out, workers=1, replace=True)):
        with pytest.raises(ValueError, match=f"holds files that no pack wrote .*{Path(name).name}"):
            command()
    assert content(out) == before


def test_a_pack_that_fails_leaves_the_earlier_one_whole(worlds, tmp_path):
    out, source = tmp_path / "out", write_source(tmp_path / "source")
    pack.pack(source, out, workers=1)
    before = content(out)
    (source / "LLP/feats_CLIP/segment_feats/val00000001.npy").unlink()
    with pytest.raises(FileNotFoundError, match="1 feature files are missing"):
        pack.pack(source, out, workers=1, replace=True)
    np.save(source / "LLP/feats_CLIP/segment_feats/val00000001.npy", np.full((10, 768), np.nan, np.float32))
    with pytest.raises(ValueError, match="cannot be used"):
        pack.pack(source, out, workers=1, replace=True)
    assert {k: v for k, v in content(out).items() if not k.startswith(".packing")} == before


def test_a_finished_pack_is_replaced_only_when_asked_for(worlds, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(worlds[0], out)
    before = content(out)
    with pytest.raises(ValueError, match="holds another finished pack.*--replace"):
        demo_world.make(out, replace(TINY, seed=1))
    assert content(out) == before
    demo_world.make(out, replace(TINY, seed=1), replace=True)
    assert content(out) == content(worlds[1])


def test_a_replacement_killed_at_any_change_to_a_file_ends_with_the_same_pack(worlds, tmp_path, monkeypatch):
    """Every step of the swap: before each, either the old pack or enough of the new one is there to go on."""
    out, kill_at = tmp_path / "out", 0
    for kill_at in [*range(1, 160, 3), *range(160, 200)]:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(worlds[0], out)
        count = 0

        def change(original):
            def killed(*arguments, **options):
                nonlocal count
                count += 1
                if count == kill_at:
                    raise KeyboardInterrupt
                return original(*arguments, **options)

            return killed

        with monkeypatch.context() as patch:
            patch.setattr(layout.os, "replace", change(os.replace))
            patch.setattr(layout.shutil, "rmtree", change(shutil.rmtree))
            patch.setattr(layout.Path, "unlink", change(Path.unlink))
            try:
                demo_world.make(out, replace(TINY, seed=1), replace=True)
            except KeyboardInterrupt:
                pass
        demo_world.make(out, replace(TINY, seed=1), replace=True)
        assert content(out) == content(worlds[1]), kill_at
        if count < kill_at:
            break
    assert kill_at > 40


def test_run_all_fresh_refuses_a_folder_with_anything_that_no_run_writes(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/holiday.jpg").write_text("us")
    (tmp_path / "stages.tsv").write_text("")
    done = subprocess.run(["bash", ROOT / "run_all.sh", "--fresh", "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 1 and "files that no run writes (pictures/holiday.jpg)" in done.stderr
    assert content(tmp_path) == {"pictures/holiday.jpg": b"us", "stages.tsv": b""}


# ---- results of other data never pass as current ----


def test_features_that_were_replaced_are_noticed_by_pack(tmp_path):
    out, source = tmp_path / "out", write_source(tmp_path / "source")
    before = pack.pack(source, out, workers=1)["sha256"]
    assert pack.pack(source, out, workers=1)["sha256"] == before
    path = source / "LLP/feats_CLAP/segment_feats/test0000001.npy"
    np.save(path, -np.load(path))
    with pytest.raises(ValueError, match="data that changed since"):
        pack.pack(source, out, workers=1)
    assert pack.pack(source, out, workers=1, replace=True)["sha256"] != before


def test_the_identity_of_data_changes_with_any_array(worlds):
    """Also where labels, ids and shapes are the same."""
    a, b = (layout.read_index(world) for world in worlds)
    assert a["llp"] == b["llp"] and a["sha256"] != b["sha256"]


def test_labels_split_differently_among_videos_are_other_labels(worlds):
    llp, unav = demo_world.invented_llp(TINY), demo_world.invented_unav(TINY)
    joined = [np.concatenate(unav.train.labels[:2])[:n] for n in (len(unav.train.labels[0]) + 1, 0)]
    first = len(unav.train.labels[0])
    whole = np.concatenate(unav.train.labels[:2])
    moved = replace(unav.train, labels=[whole[: first + 1], whole[first + 1 :], *unav.train.labels[2:]])
    plans = [layout.make_plan({}, llp, replace(unav, train=train), ["clap"]) for train in (unav.train, moved)]
    assert plans[0]["labels"] != plans[1]["labels"] and joined


@pytest.mark.parametrize("stage", ["pretrain", "label", "train", "ablate"])
def test_a_stage_never_keeps_a_result_of_other_data(worlds, run, stage, tmp_path):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    seed, other = tmp_path / "seed0", str(worlds[1])
    arguments = {"pretrain": [other, seed, *SMALL], "label": [other, seed, "--teacher", seed / "teacher.pt"],
                 "train": [other, seed / "clip_clap/full", "--labels", seed / "labels_teacher.npz", "--features", "clip_clap", *SMALL],
                 "ablate": [other, tmp_path, *SMALL]}[stage]
    before = content(tmp_path)
    with pytest.raises(SystemExit, match="other data"):
        cli.main([stage, *map(str, arguments)])
    assert content(tmp_path) == before


def test_evaluate_never_overwrites_the_scores_of_other_data_or_another_model(worlds, run, tmp_path):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    row, before = tmp_path / "seed0/clip_clap/full", content(tmp_path)
    with pytest.raises(SystemExit, match="scores of another model or other data"):
        cli.main(["evaluate", str(worlds[1]), str(row / "han.pt")])
    with pytest.raises(SystemExit, match="scores of another model or other data"):
        cli.main(["evaluate", str(tmp_path / "data"), str(tmp_path / "seed0/clip_clap/soft/han.pt"), "--out", str(row)])
    assert content(tmp_path) == before
    cli.main(["evaluate", str(worlds[1]), str(row / "han.pt"), "--out", str(tmp_path / "elsewhere")])
    cli.main(["evaluate", str(tmp_path / "data"), str(row / "han.pt")])  # the same again is no change
    assert {k: v for k, v in content(tmp_path).items() if not k.startswith("elsewhere")} == before


def test_a_report_never_mixes_a_run_with_other_data(worlds, run, tmp_path):
    import report

    with pytest.raises(SystemExit, match="other data"):
        report.main([str(run), "--data", str(worlds[1])])
    assert not (run / "report.html").exists()


# ---- what was packed is what is read ----


def test_every_changed_bit_of_a_packed_folder_is_noticed(worlds, tmp_path):
    """Headers with another order, dtype or shape, inverted labels, single bits: none gives other numbers silently."""
    shutil.copytree(worlds[0], tmp_path, dirs_exist_ok=True)
    rng, silent = np.random.default_rng(0), 0
    for path in sorted(tmp_path.rglob("*.npy")):
        whole, name = path.read_bytes(), str(path.relative_to(tmp_path))
        changed = [whole.replace(b"False", b"True "), whole[:-1], whole + b"\0", b""]
        for place in rng.integers(0, len(whole), 20):
            changed.append(whole[:place] + bytes([whole[place] ^ (1 << int(rng.integers(8)))]) + whole[place + 1 :])
        for x in changed:
            path.write_bytes(x)
            try:
                splits.load(tmp_path, name)
                silent += x != whole
            except ValueError as error:
                assert str(path) in str(error) and "make it again with" in str(error)
        path.write_bytes(whole)
    assert silent == 0


def test_every_changed_character_of_our_own_json_files_is_noticed(run, tmp_path):
    from common import files

    names = ("data/index.json", "ablation.json", "seed0/clip_clap/full/scores_test.json")
    rng = np.random.default_rng(0)
    for name in names:
        text = (run / name).read_text()
        path = tmp_path / Path(name).name
        for place in rng.integers(0, len(text), 100):
            path.write_text(text[:place] + chr(rng.integers(32, 127)) + text[place + 1 :])
            try:
                assert files.read_sealed(path, "python uwav.py") == json.loads(text)  # white space, or no change
            except ValueError as error:
                assert str(path) in str(error) or str(tmp_path) in str(error)


# ---- things in the place of files ----


@pytest.mark.parametrize("thing", ["pipe", "device", "folder"])
def test_what_is_no_file_is_one_sentence_and_never_waited_for(tmp_path, thing):
    from data import annotations

    path = tmp_path / "x"
    if thing == "pipe":
        os.mkfifo(path)
    elif thing == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    for read in (files.read_json, files.read_array, files.read_arrays, files.file_hash, checkpoints.load_file,
                 lambda p: annotations.read_table(p, ("video",)), lambda p: files.write_json(p, {})):
        with pytest.raises((ValueError, OSError), match="x"):
            read(path)


def test_a_device_is_not_replaced_by_a_file_not_even_where_output_goes_to_one(tmp_path):
    (tmp_path / "null").symlink_to("/dev/null")
    for path in (Path("/dev/stdout"), Path("/dev/null"), Path("/dev/fd/1"), tmp_path / "null"):
        for write in (files.atomic, parse._written):
            with pytest.raises(ValueError, match=f"{path}: not a file"):
                write(path).__enter__()
    assert (tmp_path / "null").is_symlink()


def test_names_that_look_like_mathematics_are_drawn_as_they_are(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    import matplotlib.mathtext

    from reporting import figures

    monkeypatch.setitem(matplotlib.rcParams, "text.parse_math", True)
    monkeypatch.setattr(matplotlib.mathtext.MathTextParser, "parse", lambda *arguments: pytest.fail("typeset"))
    names = ["$\\frac$", "$5 and $6", "$", "{\\"]
    x = np.ones((3, 4), np.float32)
    panels = [figures.dots("$\\frac$ $", "x", names, {"of $5 and $6": np.arange(4.0)}), figures.timeline("$a$", "audible", names, x > 0, x, x > 0)]
    assert len(figures.write(panels, tmp_path, "p")) == 2
    parse.plot(parse.Parse(names, x, x, x[0], x > 0, x > 0, x > 0), "a video of $\\frac$ and $5", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


@pytest.mark.parametrize("device", ["foo", "mps", "meta", "cuda:99", "cuda"])
def test_a_device_that_is_not_there_is_one_sentence(worlds, tmp_path, device):
    import torch

    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit, match=f"--device {device}: this PyTorch sees"):
        cli.main(["label", str(worlds[0]), str(tmp_path), "--per-segment", "--device", device])


def test_a_terminal_that_knows_ascii_alone_shows_an_ablation(run):
    command = [sys.executable, "uwav.py", "ablate", run / "data", run, *SMALL, "--seeds", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and b"\\xb1" in done.stdout, done.stderr[-500:]


def test_a_state_cut_short_says_what_to_do(worlds, tmp_path):
    (tmp_path / "teacher.state.pt").write_bytes(b"PK\3\4 half of it")
    with pytest.raises(SystemExit, match="not the state of this run.*delete it to begin again"):
        cli.main(["pretrain", str(worlds[0]), str(tmp_path), *SMALL])


@pytest.mark.parametrize("name", ["a\nb", "a\tb"])
def test_run_all_refuses_a_folder_whose_name_would_split_its_log(tmp_path, name):
    done = subprocess.run(["bash", ROOT / "run_all.sh", "--out", tmp_path / name], capture_output=True, text=True)
    assert done.returncode == 1 and "a tab or a line break in the name" in done.stderr
