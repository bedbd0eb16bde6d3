"""How a long file is best parsed in windows: 100 unrelated test clips of a demo run joined, and begun 0, 3 and 5 s late.

    python tests/helpers/windows.py runs/demo      # the table of docs/deploy.md; ten seconds

Rules: how many seconds from window to window; how a segment weighs by its place in the window (flat, or growing towards
the middle); whether an event needs one window that admits it, most of them by weight, or counts only in those that do.
"""

import argparse
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

import uwav
from data.splits import load_target
from train.checkpoints import load_model

W, CLIPS, LATE, REPEATS = 10, 100, (0, 3, 5), 2
WEIGHTS = {"flat": np.ones(W), "growing": np.minimum(np.arange(W), np.arange(W)[::-1]) + 1.0}


def outputs(han: uwav.HAN, data: uwav.TargetSplit, ids: np.ndarray, late: int) -> list[np.ndarray]:
    """Of the window from every second on: video (windows, C), audio, visual (windows, W, C) probabilities."""
    audio, visual = (x[ids].float().flatten(0, 1)[late:] for x in (data.audio, data.visual_2d))
    rows = torch.arange(len(audio) - W + 1)[:, None] + torch.arange(W)
    with torch.inference_mode():
        parts = [han(audio[r], visual[r]) for r in rows.split(256)]
    video, a, v = (torch.cat([p[k] for p in parts]) for k in range(3))
    return [video.numpy(), a.sigmoid().numpy(), v.sigmoid().numpy()]


def predict(video: np.ndarray, probs: list[np.ndarray], stride: int, weight: np.ndarray, gate: str) -> list[np.ndarray]:
    """Audible and visible, (T, C) bool each."""
    starts = np.unique([*range(0, len(video), stride), len(video) - 1])
    rows, T, C = starts[:, None] + np.arange(W), len(video) + W - 1, video.shape[1]
    admits = (video[starts] > uwav.GATE)[:, None]  # (windows, 1, C)

    def gathered(x: np.ndarray) -> np.ndarray:
        total, weights = np.zeros((T, C)), np.zeros((T, 1))
        np.add.at(total, rows, np.broadcast_to(x, (len(starts), W, C)) * weight[:, None])
        np.add.at(weights, rows, np.broadcast_to(weight[:, None], (*rows.shape, 1)))
        return total / weights

    if gate == "inside":
        return [gathered(p[starts] * admits) > uwav.GATE for p in probs]
    share = gathered(admits.astype(float))
    return [(gathered(p[starts]) > uwav.GATE) & (share > (0 if gate == "one" else 0.5)) for p in probs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    data, rng, rows = load_target(run / "data", "test", "clip_clap", "cpu"), np.random.default_rng(0), {}
    truths = [x.bool().numpy() for x in (data.audio_truth, data.visual_truth)]
    for folder, _ in itertools.product(sorted(run.glob("seed[0-9]*")), range(REPEATS)):
        han, ids = load_model(folder / "clip_clap/full/han.pt"), rng.choice(len(data.weak), CLIPS, replace=False)
        joined, found = [x[ids].reshape(CLIPS * W, -1) for x in truths], [outputs(han, data, ids, late) for late in LATE]
        for rule in itertools.product((1, 2, 5, 10), WEIGHTS, ("one", "most", "inside")):
            stride, weight, gate = rule
            predicted = [predict(video, probs, stride, WEIGHTS[weight], gate) for video, *probs in found]
            f = []
            for late, pair in zip(LATE, predicted):
                tp, wrong = (sum(op(p, t[late:]).sum() for p, t in zip(pair, joined)) for op in (np.logical_and, np.logical_xor))
                f.append(200 * tp / (2 * tp + wrong))
            ends = [np.stack(pair)[:, 2 * W - late:] for late, pair in zip(LATE, predicted)]  # without the beginning
            changed = [100 * (ends[0] != x).sum() / (ends[0] | x).sum() for x in ends[1:]]
            rows.setdefault(rule, []).append([*f, *changed])
    print(f"{'stride, weight, gate':24s} micro-F at {LATE} s late       positives that change")
    for rule, values in sorted(rows.items(), key=lambda x: -np.mean(x[1], 0)[:3].mean()):
        print(f"{str(rule):28s}" + "".join(f"{x:8.1f}" for x in np.mean(values, 0)))


if __name__ == "__main__":
    main()
