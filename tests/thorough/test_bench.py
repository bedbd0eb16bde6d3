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


def test_plain_scores_are_ours():
    torch.manual_seed(0)
    weak = (torch.rand(12, bench.C) < 0.1).float()
    arrays = [x > 0 for x in (*bench.random_truth(weak), *bench.random_truth(weak))]
    assert bench.plain_scores(*(x.numpy() for x in arrays)) == pytest.approx(uwav.parsing_scores(*arrays))


def test_the_plain_files_are_padded_to_the_longest_and_the_mask_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "FILES", 3)
    files = bench.Files(tmp_path / "UnAV", ("clap", "clip"), np.array([12, 10, 31, 7]))
    n, mask, audio, visual = files[1]
    assert (n, len(files), mask.sum()) == (1, 4, 10) and audio.shape == (31, 512) and visual.shape == (31, 768)
    assert torch.equal(audio[:10], torch.from_numpy(np.load(tmp_path / "UnAV/clap/1.npy"))) and not audio[10:].any()
    assert torch.equal(files[3][2][:12], torch.from_numpy(np.load(tmp_path / "UnAV/clap/0.npy")))  # the files go round


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
