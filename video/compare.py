"""Are my features theirs? Two folders with features of the same videos -> tables, and a verdict in words.

Vectors of unrelated videos are far from orthogonal, so a cosine says little by itself: what any two different videos
have in common counts as 0 here, equal directions as 1. N videos, T seconds, D size, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import uwav
from common.command import progress
from common.files import finite, read_array, shaped
from data.annotations import LLP, LLP_DENSE_FILES, LLP_SEGMENTS, read_llp
from data.layout import TEXTED, ids_in

SHIFTS = (0, 1, -1, 2, -2)  # s that are tried
SAME, RELATED = 0.99, 0.5  # of equal directions: more is rounding; less is another encoder
HINTS = {"clip": "pictures cropped or squashed, another frame of each second", "clap": "sound cut or mixed differently",
         "clip texts": "other prompts", "clap texts": "other prompts"}


def likeness(name: str, ids: list[str], pairs: Iterable[list[np.ndarray]]) -> tuple[dict[str, str], str]:
    """Of videos that both sides have, mine and theirs (T, D), as far as both go: a row of the table, and a verdict,
    which begins with "the same" or with capitals."""
    lengths, equal, means, norms = 0, True, [], []
    shifted = {s: [] for s in SHIFTS}  # cosines of mine at t + s and theirs at t, by video
    for both in progress(pairs, total=len(ids), desc=name):
        a, b = map(unit, both)
        for s in SHIFTS:
            shifted[s].append(np.array([x @ y for x, y in zip(a[max(s, 0) :], b[max(-s, 0) :])]))
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
    row = {"videos": str(len(ids)), "cosine, median": f"{median:.4f}", "5 %": f"{low:.4f}",
           "strangers": f"{strangers:.4f}", "norm": f"{mine:.3f}", "theirs": f"{theirs:.3f}", "shift": f"{shift:+d} s",
           "other length": str(lengths), "worst": f"{ids[worst]} ({of_video[worst]:.3f})"}
    middle, least = (np.array((median, low)) - strangers) / max(1 - strangers, 1e-9)
    similar = unit(A) @ unit(B).T  # (N, N): a row whose best column is as good as equal, while its own is not, moved
    room = 1 - off_diagonal(similar)
    moved = [(i, j) for i, j in enumerate(similar.argmax(1))
             if 1 - similar[i, j] < (1 - SAME) * room and 1 - similar[i, i] > RELATED * room]
    if moved:
        i, j = moved[0]
        verdict = f"SHUFFLED: {len(moved)} of {len(ids)} are another one there, {ids[i]} is their {ids[j]}"
    elif shift:
        verdict = f"SHIFTED: mine come {abs(shift)} s {'later' if shift > 0 else 'earlier'}"
    elif least > SAME:
        verdict = "the same" + " but for rounding, as of half precision: harmless" * (not equal)
    elif middle > SAME:
        verdict = f"MOSTLY THE SAME: look at {ids[worst]}, which may be another upload or another cut"
    else:
        verdict = (f"PREPARED OTHERWISE: {HINTS[name]}" if middle > RELATED else
                   "ANOTHER CHECKPOINT of the encoder, or other videos")
    return row, verdict


def read(path: Path, size: int, length: int | None = None) -> np.ndarray:
    return finite(shaped(read_array(path), (length, size), path), path).astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    """(..., D) of length 1; zeros stay."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def off_diagonal(similar: np.ndarray) -> float:
    """Mean of (N, N) where both videos differ."""
    return float(similar.sum() - similar.trace()) / max(similar.size - len(similar), 1)


@torch.inference_mode()
def agreement(sides: tuple[Path, Path], llp: LLP, ids: set[str], teacher: uwav.Teacher | None) -> dict[str, np.ndarray]:
    """What matters: in how many percent of the seconds of videos with a class the hard labels of mine and theirs are
    equal: "audible, teacher" -> (C,). Of the videos of val among `ids`; thresholds are fitted to each side's own."""
    rows = [n for n, video in enumerate(llp.val.ids) if video in ids]
    weak = torch.from_numpy(llp.val.weak[rows])  # (N, C)
    hard: dict[str, list[Tensor]] = {}  # of both sides, (N, T, C) each
    for folder in sides if rows else ():
        x, text = [], []  # audio and visual: (N, T, D), (C, D)
        for e in TEXTED.values():
            files = [folder / e.folder / f"{llp.val.ids[n]}.npy" for n in rows]
            x.append(torch.from_numpy(np.stack([read(file, e.size, LLP_SEGMENTS) for file in files])))
            text.append(torch.from_numpy(unit(read(folder / e.texts, e.size, len(llp.classes)))))
        logits = {"single seconds": [F.normalize(v, dim=-1) @ t.T for v, t in zip(x, text)]}  # as in VALOR
        logits |= {"teacher": teacher(*x, *text)} if teacher else {}
        for rule, both in logits.items():
            for modality, z, dense in zip(("audible", "visible"), both, (llp.val.audio, llp.val.visual)):
                thresholds, _ = uwav.fit_thresholds(z, torch.from_numpy(dense[rows]), weak)
                hard.setdefault(f"{modality}, {rule}", []).append(uwav.hard_labels(z, thresholds, weak))
    seconds = LLP_SEGMENTS * weak.sum(0)  # (C,)
    return {name: (100 - 100 * (a != b).sum((0, 1)) / seconds).numpy() for name, (a, b) in hard.items()}


def compare(mine: Path, theirs: Path, teacher: uwav.Teacher | None = None) -> dict[str, str]:
    """Prints tables and verdicts, and returns them, by name. Raises FileNotFoundError or ValueError naming the file."""
    sides = mine, theirs
    ids, found = {name: ids_in(side / e.folder for side in sides) for name, e in TEXTED.items()}, {}
    for name, e in TEXTED.items():
        if shared := sorted(ids[name]):
            found[name] = likeness(name, shared, ([read(folder / e.folder / f"{v}.npy", e.size) for folder in sides]
                                                  for v in shared))
        if all((folder / e.texts).exists() for folder in sides):  # a class is a video of one second
            texts = list(zip(*(read(folder / e.texts, e.size)[:, None] for folder in sides)))  # (1, D) twice, C times
            found[f"{name} texts"] = likeness(f"{name} texts", [f"class {c}" for c in range(len(texts))], texts)
    if not found:
        raise FileNotFoundError(f"{mine} and {theirs}: no file of features in both, {TEXTED['clap'].folder}/ID.npy")
    verdicts = {name: verdict for name, (_, verdict) in found.items()}
    table({name: row for name, (row, _) in found.items()})
    annotated = [folder for folder in sides if (folder / LLP_DENSE_FILES["audio"]).exists()]
    if annotated and found.keys() >= HINTS.keys():  # vectors and texts of both encoders
        llp = read_llp(annotated[0], lambda line: None)
        if agrees := agreement(sides, llp, set.intersection(*ids.values()), teacher):
            print("\nThe same hard label, in % of the seconds of videos of val that have the class:")
            table({name: {column: f"{x[c]:.1f}" for column, x in agrees.items()} for c, name in enumerate(llp.classes)
                   if not np.isnan([x[c] for x in agrees.values()]).any()})
    print(*map(": ".join, verdicts.items()), sep="\n")
    wrong = ", ".join(name for name, verdict in verdicts.items() if not verdict.startswith("the same"))
    print(f"VERDICT: NOT the same features: {wrong}" if wrong else "VERDICT: the same features")
    return verdicts


def table(rows: dict[str, dict[str, str]]) -> None:
    lines = [["", *columns] for columns in list(rows.values())[:1]] + [[name, *x.values()] for name, x in rows.items()]
    width = [max(map(len, column)) for column in zip(*lines)]
    for name, *cells in lines:
        print(name.ljust(width[0]), *map(str.rjust, cells, width[1:]), sep="  ")
