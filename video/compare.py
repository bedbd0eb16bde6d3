"""Are my features theirs? Two folders with features of the same videos -> a table, a picture, a verdict in words.

    python features.py compare MINE THEIRS [--teacher FILE]

Vectors of unrelated videos are far from orthogonal, so a cosine says little by itself: what any two different videos
have in common counts as 0 here, equal directions as 1. N videos, T seconds, D size, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import uwav
from common.command import progress
from common.files import atomic, finite, read_array, shaped
from data.annotations import LLP, LLP_DENSE_FILES, LLP_SEGMENTS, read_llp
from data.layout import ENCODERS, TEXTED

SHIFTS = (0, 1, -1, 2, -2)  # s that are tried
SAME, RELATED = 0.99, 0.5  # of equal directions: more is rounding; less is another encoder
HINTS = {"clip": "pictures cropped or squashed, another frame of each second", "clap": "sound cut or mixed otherwise",
         **dict.fromkeys(("vggish", "res152", "r2plus1d_18"), "frames or sound cut otherwise, other weights"),
         "clip texts": "other prompts", "clap texts": "other prompts"}


class Likeness(NamedTuple):
    """Of the vectors that one encoder made of N videos, mine and theirs."""

    cosine: np.ndarray  # (all seconds,)
    row: dict[str, str]  # of the table
    verdict: str  # begins with "the same", or with capitals


def unit(x: np.ndarray) -> np.ndarray:
    """(..., D) of length 1; zeros stay."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def likeness(pairs: Iterable[tuple[str, np.ndarray, np.ndarray]], hint: str) -> Likeness:
    """Of (id, mine, theirs), (T, D) each; of different lengths, what both have is compared."""
    ids, lengths, equal, means, norms = [], 0, True, [], []
    shifted = {s: [] for s in SHIFTS}  # cosines of mine at t + s and theirs at t, by video
    for video, *both in pairs:
        a, b = map(unit, both)
        for s in SHIFTS:
            shifted[s].append(np.array([x @ y for x, y in zip(a[max(s, 0) :], b[max(-s, 0) :])]))
        ids.append(video)
        lengths += len(a) != len(b)
        equal = equal and np.array_equal(*both)
        means.append((a.mean(0), b.mean(0)))
        norms.append([np.median(np.linalg.norm(x, axis=1)) for x in both])
    A, B = np.stack(means, 1)  # (N, D) each
    cosine, of_video, strangers = np.concatenate(shifted[0]), [x.mean() for x in shifted[0]], off_diagonal(A @ B.T)
    (median, low), worst = np.quantile(cosine, (0.5, 0.05)), int(np.argmin(of_video))
    gap = {s: 1 - np.concatenate(x).mean() for s, x in shifted.items() if sum(map(len, x))}
    best = min(gap, key=gap.get)
    shift = best if gap[best] < gap[0] / 2 else 0
    mine, theirs = np.median(norms, 0)
    row = {"cosine, median": f"{median:.4f}", "5 %": f"{low:.4f}", "strangers": f"{strangers:.4f}",
           "norm": f"{mine:.3f}", "theirs": f"{theirs:.3f}", "shift": f"{shift:+d} s",
           "other length": f"{lengths} of {len(ids)}", "worst": f"{ids[worst]} ({of_video[worst]:.3f})"}
    middle, least = (np.array((median, low)) - strangers) / max(1 - strangers, 1e-9)
    if moved := moved_videos(unit(A) @ unit(B).T):
        i, j = moved[0]
        verdict = f"SHUFFLED: {len(moved)} of {len(ids)} are another one there, {ids[i]} is their {ids[j]}"
    elif shift:
        verdict = f"SHIFTED: mine come {abs(shift)} s {'later' if shift > 0 else 'earlier'}"
    elif least > SAME:
        verdict = "the same" + " but for rounding, as of half precision: harmless" * (not equal)
    elif middle > SAME:
        verdict = f"MOSTLY THE SAME: look at {ids[worst]}, which may be another upload or another cut"
    else:
        verdict = (f"PREPARED OTHERWISE: {hint}" if middle > RELATED else
                   "ANOTHER CHECKPOINT of the encoder, or other videos")
    return Likeness(cosine, row, verdict)


def off_diagonal(similar: np.ndarray) -> float:
    """Mean of (N, N) where both videos differ."""
    return float(similar.sum() - similar.trace()) / max(similar.size - len(similar), 1)


def moved_videos(similar: np.ndarray) -> list[tuple[int, int]]:
    """Rows of (N, N) cosines of whole videos whose best column is as good as equal, while their own is not."""
    room = 1 - off_diagonal(similar)
    return [(i, int(j)) for i, j in enumerate(similar.argmax(1))
            if 1 - similar[i, j] < (1 - SAME) * room and 1 - similar[i, i] > RELATED * room]


# ---- What matters: labels ------------------------------------------------------------------------

@torch.inference_mode()
def agreement(sides: tuple[Path, Path], llp: LLP, teacher: uwav.Teacher | None) -> dict[str, np.ndarray]:
    """In how many percent of the seconds of videos with a class the hard labels of mine and theirs are equal:
    "audible, teacher" -> (C,). Of the videos of val and test; thresholds are fitted to val, of each side its own."""
    shared = set.intersection(*(ids_of(folder, name) for folder in sides for name in TEXTED))
    names = [(split, n) for split in (llp.val, llp.test) for n, v in enumerate(split.ids) if v in shared]
    val, found = len(shared.intersection(llp.val.ids)), {}
    if not val:
        return {}
    weak = torch.from_numpy(np.stack([split.weak[n] for split, n in names]))  # (N, C)
    logits = [logits_of(folder, [split.ids[n] for split, n in names], teacher) for folder in sides]
    for rule in logits[0]:
        for m, modality in enumerate(("audible", "visible")):
            truth = torch.from_numpy(np.stack([(split.audio, split.visual)[m][n] for split, n in names[:val]]))
            hard = [uwav.hard_labels(z, uwav.fit_thresholds(z[:val], truth, weak[:val])[0], weak)
                    for z in (side[rule][m] for side in logits)]  # (N, T, C) each
            seconds = LLP_SEGMENTS * weak.sum(0)  # (C,)
            found[f"{modality}, {rule}"] = (100 * (1 - (hard[0] != hard[1]).sum((0, 1)) / seconds)).numpy()
    return found


def logits_of(folder: Path, ids: list[str], teacher: uwav.Teacher | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Each second by itself, as in VALOR, and by the teacher: audio and visual, (N, T, C) each."""
    text = [torch.from_numpy(unit(read(folder / e.texts, e.size))) for e in TEXTED.values()]  # (C, D)
    found: dict[str, list] = {"single seconds": [], **({"teacher": []} if teacher else {})}
    for video in progress(ids, desc=f"labels of {folder}", unit="video"):
        x = [torch.from_numpy(vectors_of(folder, name, video, LLP_SEGMENTS))[None] for name in TEXTED]  # (1, T, D)
        found["single seconds"].append([F.normalize(v, dim=-1) @ t.T for v, t in zip(x, text)])
        if teacher:
            found["teacher"].append(teacher(*x, *text))
    return {rule: tuple(map(torch.cat, zip(*pairs))) for rule, pairs in found.items()}


# ---- Reading, telling ----------------------------------------------------------------------------

def ids_of(folder: Path, name: str) -> set[str]:
    return {file.stem for file in (folder / ENCODERS[name].folder).glob("[!.]*.npy")}


def vectors_of(folder: Path, name: str, video: str, segments: int | None = None) -> np.ndarray:
    """(T, D), one a second."""
    e = ENCODERS[name]
    x = read(folder / e.folder / f"{video}.npy", e.size, segments and segments * e.per_second)
    return x[: len(x) // e.per_second * e.per_second].reshape(-1, e.per_second, e.size).mean(1)


def read(path: Path, size: int, length: int | None = None) -> np.ndarray:
    return finite(shaped(read_array(path), (length, size), path), path).astype(np.float32)


def compare(mine: Path, theirs: Path, teacher: uwav.Teacher | None = None) -> dict[str, Likeness]:
    """Print tables and verdict, draw MINE/compare.png. Raises FileNotFoundError or ValueError naming the file."""
    found, agrees, sides, picture = {}, {}, (mine, theirs), mine / "compare.png"
    for name, e in ENCODERS.items():
        ids = [ids_of(folder, name) for folder in sides]
        if shared := sorted(ids[0] & ids[1]):
            print(f"{name}: {len(shared)} videos in both, {len(ids[0] ^ ids[1])} in one of them only", flush=True)
            found[name] = likeness(((video, *(vectors_of(folder, name, video) for folder in sides))
                                    for video in progress(shared, desc=name, unit="video")), HINTS[name])
        if e.texts and all((folder / e.texts).exists() for folder in sides):
            pairs = zip(*(read(folder / e.texts, e.size) for folder in sides))
            texts = ((f"class {c}", a[None], b[None]) for c, (a, b) in enumerate(pairs))
            found[f"{name} texts"] = likeness(texts, HINTS[f"{name} texts"])
    if not found:
        raise FileNotFoundError(f"{mine} and {theirs}: no file of features in both, {ENCODERS['clap'].folder}/ID.npy")
    table({name: x.row for name, x in found.items()})
    annotated = [folder for folder in sides if (folder / LLP_DENSE_FILES["audio"]).exists()]
    if annotated and found.keys() >= {*TEXTED, *(f"{name} texts" for name in TEXTED)}:
        llp = read_llp(annotated[0], lambda line: None)
        agrees = agreement(sides, llp, teacher)
    if agrees:
        print("\nThe same hard label, in % of the seconds of videos that have the class:")
        table({name: {column: f"{x[c]:.1f}" for column, x in agrees.items()} for c, name in enumerate(llp.classes)
               if not any(np.isnan(x[c]) for x in agrees.values())})
    draw({"cosine of mine and theirs": {name: x.cosine for name, x in found.items()},
          "the same label, % of seconds": agrees}, picture)
    print(*(f"{name}: {x.verdict}" for name, x in found.items()), f"{picture}: written", sep="\n")
    wrong = ", ".join(name for name, x in found.items() if not x.verdict.startswith("the same"))
    print(f"VERDICT: NOT the same features: {wrong}" if wrong else "VERDICT: the same features")
    return found


def table(rows: dict[str, dict[str, str]]) -> None:
    lines = [["", *next(iter(rows.values()))], *([name, *row.values()] for name, row in rows.items())]
    width = [max(map(len, column)) for column in zip(*lines)]
    print(*("  ".join([line[0].ljust(width[0]), *map(str.rjust, line[1:], width[1:])]) for line in lines), sep="\n")


def draw(panels: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Cosines of all seconds in order of size, and the agreement of labels over the classes -> a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {title: curves for title, curves in panels.items() if curves}
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 5), layout="constrained", squeeze=False)
    for axis, (title, curves) in zip(axes[0], panels.items()):
        for name, x in curves.items():
            x = np.sort(x[np.isfinite(x)])
            axis.plot(np.linspace(0, 100, len(x)), x, label=f"{name} ({len(x)})")
        axis.set(title=title, xlabel="% of them (how many: in brackets) that lie below")
        axis.legend(frameon=False)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
