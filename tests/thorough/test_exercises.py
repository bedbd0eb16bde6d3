"""The solutions of docs/exercises.md: each diff, as it stands there, is applied to a copy of the project and run, with the
quick tests that it should fail. And the commands of that page and of docs/questions.md, on a small run."""

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import uwav
from conftest import SIZES, TRAINED, need, unavailable
from sources import write_own

need("onnx", "onnxscript", "onnxruntime")

ROOT = Path(__file__).resolve().parents[2]
EXERCISES, QUESTIONS = ((ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("exercises", "questions"))
SOLUTIONS = dict(re.findall(r"^```diff (\w+)\n(.*?)^```", EXERCISES, re.M | re.S))
METHOD = {"encoder", "loss", "backbone"}  # change uwav.py; the others have nothing to do with its tests
DEMO = f"from data import demo_world; demo_world.make('run/data', demo_world.WorldConfig(**{SIZES}))"


@pytest.fixture
def changed(request, tmp_path) -> Path:
    """A copy of the project with the solution that the test is named after."""
    copy = tmp_path / "project"
    copy.mkdir()
    for path in (*ROOT.glob("*.py"), *(ROOT / name for name in ("common", "data", "field", "video", "train", "reporting"))):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, copy / path.name)
    for name in ("docs/model_card.md", "docs/method.md", "README.md", "pyproject.toml", "web/serve.py"):
        (copy / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    name = request.node.name.removeprefix("test_").split("_")[0]
    subprocess.run(["git", "apply", "-"], cwd=copy, input=SOLUTIONS[name], text=True, check=True)
    return copy


def python(folder: Path, *arguments: str | Path) -> str:
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


LAYOUT = """
import runpy
for name, test in runpy.run_path("tests/test_layout.py").items():
    if name.startswith("test_") and name != "test_the_method_loads_nothing_else_of_the_project":  # takes seconds
        try:
            test()
        except AssertionError:
            print(name)
"""


def assert_fails_what_the_page_says(folder: Path, name: str) -> None:
    """The quick tests of the method, as in a clone without the larger cases."""
    (section,) = (x for x in EXERCISES.split("\n## ")[1:] if f"```diff {name}\n" in x)
    said = section.split("**Quick tests that fail.**")[1].split("\n\n")[0].split("With\n`../shared`")[0]
    for source in ("tests/golden", "tests/helpers", "tests/conftest.py", "tests/test_golden.py", "tests/test_uwav.py", "tests/test_layout.py"):
        (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, folder / source)
    failed = python(folder, "-c", LAYOUT).split()
    if name in METHOD:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", "tests/test_golden.py", "tests/test_uwav.py"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"UWAV_SHARED": "/nowhere", "CI": ""})
        assert " passed" in done.stdout, done.stdout + done.stderr
        failed += re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", done.stdout, re.M)
    assert set(failed) == set(re.findall(r"test_\w{9,}", said))
    if name == "loss":
        assert failed.count("test_han_losses_of_every_ablation_row_equal_the_released_code") == 5


def demo_run(folder: Path) -> dict[str, float]:
    """Every stage on a tiny demo world, all of UWAV; its scores on the test split."""
    seed = Path("run/seed0")
    python(folder, "-c", DEMO)
    python(folder, "uwav.py", "pretrain", "run/data", seed, *TRAINED)
    python(folder, "uwav.py", "label", "run/data", seed, "--teacher", seed / "teacher.pt")
    python(folder, "uwav.py", "train", "run/data", seed / "clip_clap/full", "--labels", seed / "labels_teacher.npz", *TRAINED)
    python(folder, "uwav.py", "evaluate", "run/data", seed / "clip_clap/full/han.pt")
    scores = json.loads((folder / seed / "clip_clap/full/scores_test.json").read_text())
    assert 0 < scores["seg_type"] < 100
    return scores


def test_every_exercise_has_a_solution_that_is_tried():
    tests = {name.removeprefix("test_").split("_")[0] for name in globals() if name.startswith("test_")}
    assert set(SOLUTIONS) == {"encoder", "loss", "backbone", "dataset", "runtime"} == tests - {"every", "commands"}


def test_encoder_of_another_size_goes_through_every_stage(changed):
    assert_fails_what_the_page_says(changed, "encoder")
    demo_run(changed)
    assert np.load(changed / "run/data/llp/test/clip.npy").shape[-1] == 512
    if not importlib.util.find_spec("open_clip"):
        unavailable("pip install open_clip_torch")
    code = ("import numpy as np; from video.encoders import ClipEncoder; clip = ClipEncoder(None); "
            "print(clip.images(np.zeros((2, 224, 224, 3), np.uint8)).shape)")
    assert "(2, 512)" in python(changed, "-c", code)


def test_loss_is_that_of_the_exercise_and_trains(changed):
    assert_fails_what_the_page_says(changed, "loss")
    code = ("import torch, uwav; z, y = torch.tensor([[[2.0, -1.0]]]), torch.tensor([[[0.9, 0.3]]]); p = z.sigmoid(); "
            "bce = -(y * p.log() + (1 - y) * (1 - p).log()); "
            "assert torch.allclose(uwav.segment_loss(z, y, torch.ones(1, 2)), ((y - p) ** 2 * bce).mean())")
    python(changed, "-c", code)
    demo_run(changed)


def test_backbone_of_convolutions_trains_exports_and_parses(changed):
    assert_fails_what_the_page_says(changed, "backbone")
    demo_run(changed)
    python(changed, "export_onnx.py", "run", "bundle")
    assert "(ran on: parser CPU)" in python(changed, "parse.py", "bundle/sample.npz", "--bundle", "bundle")
    code = ("import torch, uwav; torch.manual_seed(0); han = uwav.HAN(uwav.HANConfig(3, 4, 4, 0, 8, 2, 8, 1)).eval(); "
            "a, v = torch.randn(2, 1, 9, 4); b = a.clone(); b[:, 8] += 1; x, y = (han(t, v).audio_logit for t in (a, b)); "
            "print(torch.equal(x[:, :7], y[:, :7]), torch.equal(x[:, 7], y[:, 7]))")
    assert python(changed, "-c", code).split() == ["True", "False"], "a layer sees one second to either side"


def test_dataset_becomes_two_tables_that_are_packed_and_trained_on(changed):
    assert_fails_what_the_page_says(changed, "dataset")
    videos = [f"video{n:02d}" for n in range(30)]
    rows = [f"{('Church bell', 'Dog bark')[n % 2]}&{video}&good&{n % 5}&{6 + n % 5}" for n, video in enumerate(videos)]
    (changed / "Annotations.txt").write_text("Category&VideoID&Quality&StartTime&EndTime\n" + "\n".join(rows) + "\n")
    write_own(changed / "ave", "", classes=("Church bell", "Dog bark"), segments=10, videos=videos)
    python(changed, "ave.py", "Annotations.txt", "ave")
    python(changed, "features.py", "pack", "ave", "run/data")
    assert [len(np.load(changed / f"run/data/llp/{s}/weak.npy")) for s in ("train", "val", "test")] == [24, 3, 3]
    truth = np.load(changed / "run/data/llp/val/visual.npy")  # (N, T, C); the first is video00: a bell from 0 to 6
    assert truth[0].T.tolist() == [[1] * 6 + [0] * 4, [0] * 10] and (truth == np.load(changed / "run/data/llp/val/audio.npy")).all()
    python(changed, "uwav.py", "label", "run/data", "run", "--per-segment")
    python(changed, "uwav.py", "train", "run/data", "run/han", "--labels", "run/labels_segment.npz", "--setting", "binary", *TRAINED)
    python(changed, "uwav.py", "evaluate", "run/data", "run/han/han.pt")
    assert (changed / "run/han/scores_test.json").exists()


def test_runtime_finds_the_same_events(changed, bundle):
    if not importlib.util.find_spec("openvino"):
        unavailable("OpenVINO: pip install openvino")
    said = {}
    for folder in (changed, ROOT):
        out = changed / f"{folder.name}.json"
        said[folder] = python(folder, "parse.py", bundle / "sample.npz", "--bundle", bundle, "--json", out)
    assert "(ran on: parser OpenVINO)" in said[changed] and "(ran on: parser CPU)" in said[ROOT]
    results = [json.loads((changed / f"{folder.name}.json").read_text()) for folder in (changed, ROOT)]
    for name in ("audio_prob", "visual_prob", "video_prob"):
        np.testing.assert_allclose(*(x[name] for x in results), atol=1e-4)
    timelines = [text.rsplit("(ran on", 1)[0] for text in said.values()]
    assert timelines[0] == timelines[1]
    assert_fails_what_the_page_says(changed, "runtime")


@pytest.mark.parametrize("text, language, lines", [(EXERCISES, "python", 3), (QUESTIONS, "", 20)], ids=["exercises", "questions"])
def test_commands_of_the_page_run(text, language, lines, finished, monkeypatch):
    """On two seeds of a small world, one epoch: that they run and print as many lines as the page has."""
    from train.presets import PRESETS

    small = PRESETS["demo"]._replace(train=uwav.TrainConfig(epochs=1, batch=32, warmup=1))
    monkeypatch.setitem(PRESETS, "demo", small)
    monkeypatch.setattr(uwav, "segment_loss", uwav.segment_loss)  # which the page replaces
    names = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for kind, block in re.findall(r"^```([\w ]*)\n(.*?)^```$", text, re.M | re.S):
            if kind == language:
                exec(block.replace("runs/demo", str(finished)).replace("range(5)", "range(2)"), names)
    assert len(printed.getvalue().splitlines()) == lines
