"""The plain ways of bench.py do the same work as ours, and its command runs."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import bench
from uwav import SourceSplit


def test_padding_to_the_longest_of_all_leaves_the_masked_loss_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "COPIES", 4)
    length = np.array([12, 10, 30, 31])
    files = bench.Files(tmp_path, ("clap", "clip"), length)
    number, mask, audio, visual = torch.utils.data.default_collate([files[n] for n in range(4)])
    data = SourceSplit(audio[mask], visual[mask], torch.zeros(83, 7), length)
    own_audio, _, _, own_mask = data.batch(number.numpy())
    assert torch.equal(mask, own_mask) and torch.equal(audio[mask], own_audio[own_mask])


def test_files_are_read_again_and_again_in_the_shapes_of_the_authors_download(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "COPIES", 2)
    files = bench.Files(tmp_path, bench.FEATURE_SETS["base"], np.full(5, bench.T))
    number, mask, *features = files[3]
    assert len(files) == 5 and number == 3 and mask.all() and [tuple(x.shape) for x in features] == [(10, 128), (80, 2048), (10, 512)]
    assert torch.equal(features[0], files[1][2])


def test_one_command_prints_a_table():
    command = [sys.executable, "bench.py", "evaluate", "--device", "cpu"]
    done = subprocess.run(command, cwd=Path(bench.__file__).parent, capture_output=True, text=True, check=True)
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("HAN, 1,200 videos parsed and scored"))
    ours, plain, floor = (float(x) * (1 if unit == "s" else 1e-3) for x, unit in re.findall(r" ([0-9.e+-]+) (m?s)\b", row))
    assert min(floor, ours, plain) > 0 and float(re.search(r"([0-9.]+)x ", row)[1]) == pytest.approx(plain / ours, rel=0.02)


def test_unknown_row_is_refused_in_one_sentence():
    done = subprocess.run([sys.executable, "bench.py", "lode"], cwd=Path(bench.__file__).parent, capture_output=True, text=True)
    assert done.returncode == 1 and "lode: no such row; there are epoch, " in done.stderr and "Traceback" not in done.stderr
