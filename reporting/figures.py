"""The pictures of a report: panels drawn with matplotlib, each as SVG for light and dark pages, all of them as PNG.

A picture is a list of panels of one width, narrow enough for a phone; a page or a PNG sets them side by side. A panel
draws on the axes that it is given, and returns how many inches high they should be. Colours are those of Okabe and Ito,
told apart by colour-blind readers too, and never the only difference: lines have markers, bars have positions.

Shapes: T segments, C classes. What is drawn was computed in evidence.py or read from a run's files.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws to files, needs no screen
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import offset_copy

from common.files import atomic
from reporting.evidence import Reliability

# light -> dark: drawn in light colours; in SVG each becomes a variable that follows the reader's colour scheme
INK, PAPER, LINE, GREY = "#1c1c1e", "#ffffff", "#dcd9d3", "#6b6b70"
BLUE, VERMILION, ORANGE, SKY, GREEN, PURPLE = "#0072b2", "#d55e00", "#e69f00", "#56b4e9", "#009e73", "#cc79a7"
DARK = {INK: "#ececee", PAPER: "#1f1f22", LINE: "#3c3c42", GREY: "#a0a0a8", BLUE: "#4a9fe0", VERMILION: "#f4743b",
        ORANGE: "#e69f00", SKY: "#a6d8f5", GREEN: "#2fc295", PURPLE: "#e29bc4"}
COLOURS = {"audible": BLUE, "visible": VERMILION}

STYLE = {
    "font.size": 9, "axes.titlesize": 9.5, "axes.titlelocation": "left", "legend.fontsize": 8, "legend.frameon": False,
    "text.color": INK, "axes.edgecolor": GREY, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "figure.facecolor": PAPER, "axes.facecolor": "none", "grid.color": LINE, "axes.grid": True, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "uwav", "hatch.linewidth": 0.6,
    "text.parse_math": False,  # a name with a $ is a name
}
WIDTH = 4.6  # inches of a panel: on a phone its letters are as large as the page's small print
MARKERS = "osD^vPX"


Panel = Callable[[Axes], float]


def panel(draw: Callable[..., float]) -> Callable[..., Panel]:
    """For a function of axes and more that draws: what is given now is all but the axes."""
    return functools.wraps(draw)(lambda *given, **named: lambda axis: draw(axis, *given, **named))


def write(panels: list[Panel], folder: Path, name: str) -> list[str]:
    """Every panel as folder/NAME-K.svg, all of them as folder/NAME.png in two columns; returns the SVG texts."""
    with plt.rc_context(STYLE):
        texts = list(map(_svg, panels))
        for k, text in enumerate(texts, 1):
            with atomic(folder / f"{name}-{k}.svg") as temporary:
                temporary.write_text(text, encoding="utf-8")
        with atomic(folder / f"{name}.png") as temporary:
            _save(panels, min(2, len(panels)), temporary, dpi=110)
    return texts


def _save(panels: list[Panel], columns: int, file: Path | io.StringIO, **options) -> None:
    figure = plt.figure(layout="constrained")
    grid = figure.add_gridspec(-(-len(panels) // columns), columns)
    heights = [draw(figure.add_subplot(place)) for draw, place in zip(panels, grid)]
    heights = [max(heights[i : i + columns]) for i in range(0, len(heights), columns)]  # of rows
    grid.set_height_ratios(heights)
    figure.set_size_inches(WIDTH * columns, sum(heights))
    figure.savefig(file, **options)
    plt.close(figure)


def _svg(panel: Panel) -> str:
    _save([panel], 1, file := io.StringIO(), format="svg", metadata={"Date": None, "Creator": None})
    light = "".join(f"--c{k}:{light};" for k, light in enumerate(DARK))
    dark = "".join(f"--c{k}:{dark};" for k, dark in enumerate(DARK.values()))
    style = f"<style>svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    text = file.getvalue()
    for k, light in enumerate(DARK):
        text = text.replace(light, f"var(--c{k})")
    text = text[text.index("<svg"):]  # without the reference to a document type on another server
    return text.replace(">", ">" + style, 1)


def legend_below(axis: Axes, columns: int = 2) -> None:
    """A legend under the label of the x axis, where it covers no data."""
    below = offset_copy(axis.transAxes, axis.figure, 0, -32, units="points")
    axis.legend(loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=below, ncols=columns, borderaxespad=0)


def without_rows(axis: Axes) -> None:
    """Names at the left, and no line, tick or grid of the y axis."""
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="y", visible=False)


# ---- The panels ----------------------------------------------------------------------------------

@panel
def lines(axis: Axes, title: str, ylabel: str, series: dict[str, list[float]], strong: str = "") -> float:
    """One line a name over epochs 1, 2, ...; `strong` is drawn thick, and the axis need not begin at 0."""
    colours = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
    for k, (name, values) in enumerate(series.items()):
        axis.plot(range(1, len(values) + 1), values, label=name, markersize=3.5, marker=MARKERS[k % len(MARKERS)],
                  markevery=max(1, len(values) // 10), color=INK if name == strong else colours[k % len(colours)],
                  linewidth=2.4 if name == strong else 1.2)
    axis.set(title=title, xlabel="epoch", ylabel=ylabel)
    axis.xaxis.get_major_locator().set_params(integer=True)
    if not strong:
        axis.set_ylim(bottom=0)
    if len(series) > 1:
        legend_below(axis)
    return 2.7 + 0.17 * (len(series) // 2)


@panel
def forest(axis: Axes, title: str, differences: list[tuple[str, dict]]) -> float:
    """(name, one score of ablation.paired_differences): mean, interval, and below it every seed."""
    axis.axvline(0, color=INK, linewidth=1)
    for y, (name, x) in enumerate(differences):
        low, high = x["interval"]
        axis.plot([low, high], [y, y], color=BLUE, linewidth=2.5, solid_capstyle="butt")
        axis.plot(x["mean"], y, "o", color=BLUE, markersize=6)
        if len(x["by_seed"]) > 1:
            axis.plot(x["by_seed"], [y + 0.22] * len(x["by_seed"]), "D", color=GREY, markersize=3.5,
                      markerfacecolor=PAPER)
        for where, side, text in ((0, "left", name), (1, "right", f"{x['mean']:+.1f} [{low:+.1f}, {high:+.1f}]")):
            axis.annotate(text, (where, y - 0.3), ha=side, xycoords=("axes fraction", "data"),
                          bbox=dict(facecolor=PAPER, edgecolor="none", pad=1))
    axis.set(title=title, xlabel="points", yticks=[], ylim=(len(differences) - 0.5, -0.75))
    without_rows(axis)
    return 0.8 + 0.5 * len(differences)


@panel
def reliability(axis: Axes, title: str, curves: dict[str, Reliability]) -> float:
    """How often labels of a given probability are true, by what the legend says; honest ones lie on the diagonal."""
    axis.axline((0, 0), slope=1, color=GREY, linestyle=":")
    for style, colour, (name, r) in zip(("o-", "s--"), (BLUE, VERMILION), curves.items()):
        seen = r.count > 0  # (bins,)
        axis.plot(r.probability[seen], r.frequency[seen], style, color=colour, label=name, markersize=4.5)
    axis.set(title=title, xlabel="soft label", ylabel="share that is true", xlim=(0, 1), ylim=(0, 1))
    legend_below(axis, columns=1)
    return 3.5


@panel
def timeline(axis: Axes, title: str, modality: str, classes: list[str], truth: np.ndarray, soft: np.ndarray,
             predicted: np.ndarray) -> float:
    """Per class three strips: truth (filled), soft label (the more certain the more opaque), prediction (hatched); all
    (T, C), of the classes to show."""
    T, C = truth.shape
    colour = COLOURS[modality]
    for c in range(C):
        axis.broken_barh(_runs(truth[:, c]), (c - 0.38, 0.2), color=colour)
        axis.broken_barh([(t, 1) for t in range(T)], (c - 0.1, 0.2), facecolor=[(colour, a) for a in soft[:, c]])
        axis.broken_barh([(0, T)], (c - 0.1, 0.2), facecolor="none", edgecolor=LINE, linewidth=0.6)
        axis.broken_barh(_runs(predicted[:, c]), (c + 0.18, 0.2), facecolor="none", edgecolor=colour, hatch="/////",
                         linewidth=1)
    for name, y in zip(("truth", "soft label", "predicted") if C else (), (-0.28, 0, 0.28)):  # beside the first
        axis.annotate(name, (T, y), (3, 0), textcoords="offset points", va="center", fontsize=7, color=GREY,
                      annotation_clip=False)
    axis.set(title=title, xlim=(0, T), ylim=(max(C, 1) - 0.45, -0.55), xlabel="second")
    axis.set_yticks(range(C), [shorten(c) for c in classes])
    without_rows(axis)
    axis.xaxis.get_major_locator().set_params(integer=True)
    if not C:
        axis.text(T / 2, 0.2, "nothing, in truth and prediction", ha="center", color=GREY)
    return 0.85 + 0.5 * max(C, 1)


def _runs(active: np.ndarray) -> list[tuple[int, int]]:
    """(T,) of 0 / 1 -> (first second, length) of every run."""
    change = np.flatnonzero(np.diff(np.concatenate([[0], active.astype(int), [0]])))
    return [(int(a), int(b - a)) for a, b in zip(change[::2], change[1::2])]


def shorten(name: str, most: int = 18) -> str:
    """A class name, cut to fit beside a panel."""
    return name if len(name) <= most else name[: most - 1] + "…"


@panel
def dots(axis: Axes, title: str, xlabel: str, classes: list[str], series: dict[str, np.ndarray],
         spans: dict[str, np.ndarray] | None = None) -> float:
    """One row a class, in the order given. series: name -> (C,), NaN: not drawn, percent if there are no spans:
    name -> (C, 2), a bar each."""
    C, colours = len(classes), (BLUE, VERMILION, GREEN)
    styles = dict(color=SKY), dict(facecolor="none", edgecolor=GREY, hatch="////")
    axis.use_sticky_edges = False  # of bars, which would end at the frame
    for (name, bounds), style, y in zip((spans or {}).items(), styles, (0.18, -0.18)):
        low, high = bounds.T  # (C,) each
        axis.barh(np.arange(C) + y, high - low, 0.3, low, label=name, linewidth=0.8, **style)
    for k, (name, values) in enumerate(series.items()):
        axis.plot(values, range(C), MARKERS[k], label=name, markersize=5.5,
                  color=colours[k] if not spans else INK, markerfacecolor="none" if k else None)
    axis.set_yticks(range(C), [shorten(c) for c in classes], fontsize=8)
    axis.set(title=title, xlabel=xlabel, ylim=(C - 0.4, -0.6))
    if not spans:
        axis.set_xlim(-2, 102)
    if len(series) + len(spans or {}) > 1:
        legend_below(axis, columns=1 if spans else 2)
    return 1.2 + 0.2 * C + (0.4 if spans else 0)
