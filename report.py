"""Pictures of a run, made from its saved numbers alone, so they can be made again at any time.

    python report.py RUN      # RUN: the output folder of run_all.sh -> RUN/curves.png, RUN/timelines.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws to files, needs no screen
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from features import read_index
from files import atomic, one_sentence_errors, read_array
from stages import ROWS
from uwav import gated_predictions, parsing_scores

# Okabe and Ito's colours, told apart by colour-blind readers too
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2")
TRUE_COLOUR, PREDICTED_COLOUR = "#0072B2", "#E69F00"


def read_history(path: Path) -> list[dict]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; has this run trained?")
    return [json.loads(line) for line in path.read_text().splitlines()]


def curves(seed: Path, features: str) -> Figure:
    """Teacher loss and validation score, and the validation Type score of every row of the ablation that was run."""
    figure, (teacher_axes, han_axes) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    history = read_history(seed / "teacher.jsonl")
    epochs = [r["epoch"] for r in history]
    loss_axes = teacher_axes.twinx()
    losses, scores = [r["loss"] for r in history], [r["val_av"] for r in history]
    loss_line = loss_axes.plot(epochs, losses, color=COLOURS[1], label="training loss (right axis)")
    score_line = teacher_axes.plot(epochs, scores, color=COLOURS[6], label="validation AV F-score")
    teacher_axes.set(title="Teacher, pre-training", xlabel="epoch", ylabel="F-score, %", ylim=(0, None))
    loss_axes.set(ylabel="loss (Eq. 3)", ylim=(0, None))
    teacher_axes.legend(handles=[*score_line, *loss_line], loc="center right", frameon=False)
    for colour, (row, (title, _, _)) in zip(COLOURS, ROWS.items()):
        path = seed / features / row / "han.jsonl"
        if path.exists():
            history = read_history(path)
            han_axes.plot([r["epoch"] for r in history], [r["val"]["seg_type"] for r in history], color=colour,
                          label=title, linewidth=2.5 if row == "full" else 1.2)
    han_axes.set(title=f"HAN ({features})", xlabel="epoch", ylabel="validation, segment-level Type, %")
    han_axes.legend(loc="lower right", frameon=False, fontsize="small")
    return figure


def timelines(data: Path, predictions: Path, videos: int = 4) -> Figure:
    """Truth and prediction of test videos, from the best to the worst at equal steps of segment-level Type."""
    index = read_index(data)["llp"]
    paths = (data / "llp/test" / f"{modality}.npy" for modality in ("audio", "visual"))
    truth = [torch.from_numpy(read_array(path)) for path in paths]  # (N, T, C) each
    with np.load(predictions, allow_pickle=False) as file:
        probabilities = [torch.from_numpy(file[k]) for k in ("video", "audio", "visual")]
    predicted = gated_predictions(*probabilities)  # (N, T, C) each
    arrays = (*predicted, *truth)
    scores = [parsing_scores(*(x[n : n + 1] for x in arrays))["seg_type"] for n in range(len(truth[0]))]
    ranked = np.argsort(scores, kind="stable")[::-1]
    chosen = ranked[np.linspace(0, len(ranked) - 1, videos).astype(int)]
    figure, axes = plt.subplots(videos, 2, figsize=(11, 1.7 * videos), layout="constrained", squeeze=False)
    for row, n in zip(axes, chosen):
        shown = np.flatnonzero(sum(x[n].any(0).int() for x in arrays).numpy())  # classes true or predicted
        for m, (axis, modality) in enumerate(zip(row, ("audible", "visible"))):
            strips(axis, truth[m][n][:, shown].numpy(), predicted[m][n][:, shown].numpy())
            axis.set_yticks(range(len(shown)), [index["classes"][c] for c in shown] if m == 0 else [""] * len(shown))
            title = f"{modality}, {index['videos']['test'][n]}, Type of the video {scores[n]:.0f}"
            axis.set_title(title, fontsize="small", loc="left")
    for axis in axes[-1]:
        axis.set_xlabel("second")
    handles = [plt.Rectangle((0, 0), 1, 1, color=c) for c in (TRUE_COLOUR, PREDICTED_COLOUR)]
    figure.legend(handles, ["truth", "predicted"], loc="outside upper right", ncols=2, frameon=False)
    return figure


def strips(axis: Axes, truth: np.ndarray, predicted: np.ndarray) -> None:
    """One line a class: truth (T, C) above, prediction (T, C) below."""
    T, C = truth.shape
    for offset, colour, active in ((-0.35, TRUE_COLOUR, truth), (0.05, PREDICTED_COLOUR, predicted)):
        for c in range(C):
            axis.broken_barh([(t, 1) for t in np.flatnonzero(active[:, c])], (c + offset, 0.3), color=colour)
    axis.set(xlim=(0, T), ylim=(max(C, 1) - 0.4, -0.6), xticks=range(0, T + 1, 2))
    axis.tick_params(labelsize="small", left=False)
    axis.spines[["top", "right", "left"]].set_visible(False)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Pictures of a run: training curves and timelines of test videos.")
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder of run_all.sh")
    parser.add_argument("--seed", type=int, default=0, help="which seed's run to show (default: 0)")
    options = parser.parse_args(arguments)
    with one_sentence_errors():
        seed = options.run / f"seed{options.seed}"
        predictions = sorted(seed.glob("*/full/predictions_test.npz"))  # base before clip_clap
        if not predictions:
            raise FileNotFoundError(f"{seed}: no evaluated HAN in it; run `bash run_all.sh` first")
        features = predictions[0].parts[-3]
        figures = {"curves": curves(seed, features), "timelines": timelines(options.run / "data", predictions[0])}
        for name, figure in figures.items():
            path = options.run / f"{name}.png"
            with atomic(path) as temporary:
                figure.savefig(temporary, dpi=110)
            print(f"{path}: written")


if __name__ == "__main__":
    main()
