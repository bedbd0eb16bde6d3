"""The commands as a user types them, where that takes a while: run_all.sh from nothing, a training that is killed."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from conftest import SMALL, TINY, need
from train import checkpoints

need("onnx", "onnxscript", "onnxruntime")  # else run_all.sh would install them
if os.name != "posix":
    pytest.skip("run_all.sh needs a POSIX shell", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ran:
    """run_all.sh on the whole demo world, small models, one epoch: with mistakes in an option, without, and once more."""

    out: Path
    mistaken: list[subprocess.CompletedProcess]
    first: str
    second: str
    seconds: float  # of the second

    @property
    def stages(self) -> list[list[str]]:
        return [line.split("\t") for line in (self.out / "stages.tsv").read_text().splitlines()]


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Ran:
    out = tmp_path_factory.mktemp("ran")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run_all(*settings: str) -> subprocess.CompletedProcess:
        options = [x for setting in settings for x in ("--set", setting)]
        return subprocess.run(["bash", ROOT / "run_all.sh", "--out", out, "--", *options], env=environment, capture_output=True, text=True,
                              timeout=600)

    mistaken = [run_all(x) for x in ("epoch=1", "pseudo_label=sfot", "temperature=hot", "hidden=16")]
    assert list(out.iterdir()) == [], "a mistake is said before any work"
    printed, tiny = [], ("epochs=1", *TINY, "batch=64")
    for _ in range(2):
        started = time.monotonic()
        result = run_all(*tiny)
        assert result.returncode == 0, result.stderr[-2000:]
        printed.append(result.stdout)
    return Ran(out, mistaken, *printed, time.monotonic() - started)


def test_run_all_goes_from_nothing_to_two_tables_a_bundle_and_a_report(ran):
    assert "Label quality" in ran.first and "Parsing scores" in ran.first and "== 3. Pseudo-labels" in ran.first
    assert "== 4. Export" in ran.first and (ran.out / "bundle/bundle.json").exists() and (ran.out / "report.html").exists()


def test_run_all_is_quick_the_second_time_and_prints_the_same_tables(ran):
    assert "finished before, kept" in ran.second and "exported before, kept" in ran.second and ran.seconds < 90
    tables = [text[text.index("Label quality"):].split("\n\n")[:2] for text in (ran.first, ran.second)]
    assert tables[0] == tables[1]


def test_run_all_notes_every_stage_and_whether_it_made_kept_or_lost_results(ran):
    stages = ran.stages
    outcomes = [r[2] for r in stages]  # data, teacher, ablation, export, report; twice
    assert outcomes == ["new", "new", "new", "new", "kept"] + ["kept"] * 5
    assert all(len(r) == 7 for r in stages) and "PyTorch" in stages[0][5] and stages[0][6].startswith("bash run_all.sh --out")
    assert not (ran.out / ".started").exists()


def test_run_all_names_a_mistake_in_an_option_before_any_work(ran):
    said = [x.stderr.strip() for x in ran.mistaken]
    assert [x.returncode for x in ran.mistaken] == [1] * 4 and all(len(x.splitlines()) == 1 for x in said)
    assert said[0] == "error: --set epoch=1: no such field; did you mean epochs?"
    assert said[1] == "error: --set pseudo_label = 'sfot': one of none, hard, soft" and "takes a value of type float" in said[2]
    assert said[3] == "error: --set hidden=16: both networks have hidden; say teacher.hidden=16, han.hidden=16, or both"


@pytest.mark.parametrize("options, said", [
    (["--seeds", "three"], "--seeds three: a number from 1 on"), (["--preset", "papper"], "--preset papper: demo or paper"),
    (["--features", "clip"], "--features clip: base or clip_clap"), (["--seed", "3"], "unknown option --seed; did you mean --seeds?"),
    (["--own", "nowhere"], "nowhere/labels.csv: no such file; `python features.py template CLIPS nowhere` writes one to fill in"),
    (["--videos", "."], "these go with --own DIR: --videos, --segments, --windows, --accept, --missing, --longest, --retry, --teacher, --clip-weights, --clap-weights, --dry-run"),
    (["quickly"], "unknown option quickly; bash run_all.sh --help lists them"), (["--out"], "--out needs a value"),
])
def test_a_wrong_option_of_run_all_is_one_line(options, said):
    done = subprocess.run(["bash", ROOT / "run_all.sh", *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr == f"error: {said}\n" and not done.stdout


def test_a_teacher_of_invented_features_is_refused_before_hours_of_extraction(finished, tmp_path):
    need("av", "pebble", "open_clip", "laion_clap")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/labels.csv").write_text("video,labels\na,dog\n")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", ROOT / "run_all.sh", "--own", tmp_path / "own", "--videos", tmp_path, "--out", tmp_path / "out", "--teacher",
                           finished / "seed0/teacher.pt"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "this teacher has seen invented features only" in done.stderr and not (tmp_path / "out").exists()


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "uwav.py"), *map(str, arguments)]


def test_killed_pretraining_run_again_equals_an_undisturbed_one(finished, tmp_path):
    world, options = finished / "data", [*SMALL, "--set", "epochs=6"]
    assert subprocess.run(command("pretrain", world, tmp_path / "whole", *options), capture_output=True).returncode == 0
    for epochs_done in (1, 3):
        process = subprocess.Popen(command("pretrain", world, tmp_path / "part", *options), stderr=subprocess.DEVNULL)
        history = tmp_path / "part/teacher.jsonl"
        while process.poll() is None and (not history.exists() or len(history.read_text().splitlines()) < epochs_done):
            time.sleep(0.005)
        assert process.poll() is None, "it finished before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command("pretrain", world, tmp_path / "part", *options), capture_output=True).returncode == 0
    part, whole = (checkpoints.load_file(tmp_path / f"{name}/teacher.pt")["weights"] for name in ("part", "whole"))
    assert part.keys() == whole.keys() and all(torch.equal(part[k], whole[k]) for k in part)
