"""The plain ways of bench.py do the same work as ours, and its command runs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import bench
import uwav
from uwav import SourceSplit

CPU = torch.device("cpu")


def test_plain_attention_gives_the_same_model():
    torch.manual_seed(0)
    han = uwav.HAN(uwav.HANConfig(hidden=16, heads=2, feedforward=16, layers=2)).eval()
    inputs = [torch.randn(3, 10, d) for d in (128, 2048, 512)]
    for ours, plain in zip(han(*inputs), bench.plain_model(han).eval()(*inputs)):
        torch.testing.assert_close(ours, plain)
    teacher = uwav.Teacher(uwav.TeacherConfig(hidden=16, heads=2, feedforward=16, layers=2)).eval()
    mask = torch.arange(7) < torch.tensor([[3], [7]])
    inputs = torch.randn(2, 7, 512), torch.randn(2, 7, 768), *bench.random_pair(5, CPU), mask
    for ours, plain in zip(teacher(*inputs), bench.plain_model(teacher).eval()(*inputs)):
        torch.testing.assert_close(ours[mask], plain[mask])


def test_plain_scores_are_ours():
    torch.manual_seed(0)
    weak = (torch.rand(12, bench.C) < 0.1).float()
    arrays = [x > 0 for x in (*bench.random_truth(weak), *bench.random_truth(weak))]
    assert bench.plain_scores(*(x.numpy() for x in arrays)) == pytest.approx(uwav.parsing_scores(*arrays))


def test_padding_to_the_longest_of_all_leaves_the_masked_loss_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "FILES", 4)
    length = np.array([12, 10, 30, 31])
    bench.write_files(tmp_path, length)
    audio, visual, mask = bench.read_source(tmp_path, 31, range(4))
    data = SourceSplit(audio[mask], visual[mask], torch.zeros(83, 7), length)
    own_audio, _, _, own_mask = data.batch(np.arange(4))
    assert torch.equal(mask, own_mask) and torch.equal(audio[mask], own_audio[own_mask])


def test_one_command_prints_a_table_and_writes_the_figures(tmp_path):
    command = [sys.executable, "bench.py", "score", "--device", "cpu", "--json", str(tmp_path / "new/bench.json")]
    done = subprocess.run(command, cwd=Path(bench.__file__).parent, capture_output=True, text=True, check=True)
    assert "ten scores of 1,200 videos" in done.stdout
    figures = json.loads((tmp_path / "new/bench.json").read_text())
    (row,) = figures["rows"]
    assert 0 < row["floor"] < row["seconds"] < row["plain"] and figures["operations_per_s"] > 1e8


def test_unknown_row_is_refused_in_one_sentence():
    done = subprocess.run([sys.executable, "bench.py", "lode"], cwd=Path(bench.__file__).parent, capture_output=True, text=True)
    assert done.returncode == 1 and "lode: no such row; there are epoch, " in done.stderr and "Traceback" not in done.stderr
