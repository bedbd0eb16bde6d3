"""Training under torchrun: two and three processes give the numbers of one."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common import devices
from data import demo_world
from train import checkpoints, cli

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ["--preset", "demo", "--device", "cpu"]
for name, value in (("hidden", 32), ("feedforward", 32), ("layers", 2), ("dropout", 0), ("epochs", 3), ("peak_lr", 1e-4),
                    ("min_lr", 1e-5)):  # the published rates
    OPTIONS += ["--set", f"{name}={value}"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "data"
    demo_world.make(folder, replace(demo_world.WorldConfig(), train=60, val=30, test=5, source_train=40, source_validation=20,
                                    source_test=5))
    return folder


def torchrun(processes: int, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", str(ROOT / "uwav.py")]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def history(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_close(a: object, b: object) -> None:
    """Numbers of two histories to 1e-5 relative, whatever their nesting."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for k in a:
            assert_close(a[k], b[k])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_close(x, y)
    else:
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("processes, batch", [(2, 13), (3, 29)])
def test_pretraining_and_training_under_torchrun_equal_one_process(world, tmp_path, processes, batch):
    """Without dropout, at the same batch over all ranks: losses, scores and outputs to 1e-5.

    60 videos in batches of 13: two ranks share 6 and 7; in batches of 29: the last has 2, one of three ranks has none."""
    options = [*OPTIONS, "--set", f"batch={batch}"]
    cli.main(["label", str(world), str(tmp_path), "--per-segment", "--device", "cpu"])
    commands = {"teacher": ["pretrain", world, None, *options],
                "han": ["train", world, None, "--labels", tmp_path / "labels_segment.npz", "--features", "clip_clap", *options]}
    for name, command in commands.items():
        command[2] = tmp_path / "one"
        cli.main([str(a) for a in command])
        command[2] = tmp_path / "more"
        result = torchrun(processes, *command)
        assert result.returncode == 0, result.stderr[-3000:]
        assert result.stdout.count(f"{name}.pt: ") == 1, "one rank speaks for all"
        assert_close(history(tmp_path / f"more/{name}.jsonl"), history(tmp_path / f"one/{name}.jsonl"))
        torch.manual_seed(0)
        inputs = [torch.randn(2, 7, 512), torch.randn(2, 7, 768)]
        if name == "teacher":
            inputs += [torch.randn(5, 512), torch.randn(5, 768)]
        with torch.no_grad():
            outputs = [checkpoints.load_model(tmp_path / folder / f"{name}.pt")(*inputs) for folder in ("one", "more")]
        for x, y in zip(*outputs):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5 * float(x.abs().max()))


def test_other_stages_refuse_to_run_in_many_processes(world, tmp_path):
    result = torchrun(2, "ablate", world, tmp_path, *OPTIONS)
    assert result.returncode != 0 and "error: ablate runs in one process; torchrun is for pretrain and train" in result.stderr


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_shares_of_all_ranks_cover_a_batch_once_in_order(monkeypatch, world_size, n):
    monkeypatch.setattr(devices, "WORLD", world_size)
    rows = []
    for rank in range(world_size):
        monkeypatch.setattr(devices, "RANK", rank)
        rows += range(n)[devices._rows(n)]
    assert rows == list(range(n))


def test_without_torchrun_a_model_is_called_as_it_is():
    model = torch.nn.Linear(2, 2)
    assert devices.shared_out(devices.parallel(model)) is model and devices.all_of(5) == [5]
