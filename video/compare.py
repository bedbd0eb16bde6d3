"""Are my features theirs? Two folders with features of the same videos -> a table, a picture, a verdict in words.

    python features.py compare MINE THEIRS [--teacher FILE]

Vectors of unrelated videos are far from orthogonal, so a cosine says little by itself: `alike` is 0 for what any two
videos of these folders have in common, and 1 for equal directions. N videos, T seconds, D size, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import uwav
from common.command import progress
from common.files import atomic, finite, read_array, shaped
from data.annotations import LLP_DENSE_FILES, read_llp
from data.layout import ENCODERS, TEXTED
from data.pack import average_groups

SHIFTS = (0, 1, -1, 2, -2)  # s that are tried; the first of equals wins
SAME, RELATED = 0.99, 0.5  # of `alike`: more is rounding; less is another encoder
WITHOUT_TRUTH = 1000  # videos whose labels are compared where no second is annotated
HINTS = {"clip": "pictures cropped or squashed, another frame of each second", "clap": "sound cut or mixed otherwise",
         "texts": "other prompts"}


@dataclass(frozen=True)
class Likeness:
    """Of the vectors that one encoder made of N videos, mine and theirs."""

    ids: list[str]
    lengths: int  # videos that have another number of seconds there
    equal: bool  # number by number
    cosine: np.ndarray  # (all seconds,)
    of_video: np.ndarray  # (N,) mean cosine
    norm: tuple[float, float]  # median: mine, theirs
    shift: int  # s by which mine come later than theirs
    strangers: float  # mean cosine of different videos
    moved: dict[str, str]  # videos of mine -> which of theirs they are
    pattern: float  # correlation of "which videos resemble each other" in mine and in theirs

    def alike(self, cosine: float) -> float:
        return (cosine - self.strangers) / max(1 - self.strangers, 1e-9)

    @property
    def worst(self) -> str:
        return self.ids[int(self.of_video.argmin())]

    def verdict(self, kind: str) -> str:
        """kind: a key of HINTS; capitals for what is wrong."""
        middle, low = (self.alike(float(np.quantile(self.cosine, q))) for q in (0.5, 0.05))
        if self.equal:
            return "the same numbers"
        if self.moved:
            mine, theirs = next(iter(self.moved.items()))
            return (f"SHUFFLED, {len(self.moved)} of {len(self.ids)} hold what another one should; {mine} is their "
                    f"{theirs}")
        if self.shift:
            return f"SHIFTED, mine come {self.shift:+d} s later"
        if low > SAME:
            return "the same but for rounding, as of half precision: harmless"
        if middle > SAME:
            return f"MOSTLY THE SAME, but not all: look at {self.worst}, which may be another upload or another cut"
        if middle > RELATED:
            return f"PREPARED OTHERWISE ({HINTS.get(kind, 'another preparation')})"
        if self.pattern > RELATED:
            return "ANOTHER CHECKPOINT of the encoder: the same videos resemble each other, the vectors do not"
        return "NOTHING IN COMMON: other videos, or another encoder"


def unit(x: np.ndarray) -> np.ndarray:
    """(..., D) of length 1; zeros stay."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def likeness(pairs: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> Likeness:
    """Of (id, mine, theirs), (T, D) each; of different lengths, what both have is compared."""
    ids, cosines, means, norms, lengths, equal = [], [], ([], []), ([], []), 0, True
    shifted = {s: [] for s in SHIFTS}  # cosines of mine at t + s and theirs at t
    for video, *both in pairs:
        ids.append(video)
        lengths += len(both[0]) != len(both[1])
        equal &= np.array_equal(*both)
        a, b = map(unit, both)
        for s in SHIFTS:
            x, y = a[max(s, 0) :], b[max(-s, 0) :]
            n = min(len(x), len(y))
            shifted[s].append((x[:n] * y[:n]).sum(1))
        cosines.append(shifted[0][-1])
        for x, original, mean, norm in zip((a, b), both, means, norms):
            mean.append(x.mean(0))
            norm.append(np.linalg.norm(original, axis=1))
    N, (A, B) = len(ids), map(np.stack, means)  # (N, D)
    strangers = _strangers(A, B)
    by_shift = {s: np.concatenate(x) for s, x in shifted.items()}
    gap = {s: 1 - x.mean() for s, x in by_shift.items() if len(x)}
    shift = min(gap, key=gap.get)
    some = slice(0, WITHOUT_TRUTH)
    patterns = [(x[some] @ x[some].T)[np.triu_indices(min(N, WITHOUT_TRUTH), 1)] for x in (A, B)]
    return Likeness(
        ids, lengths, bool(equal), by_shift[0], np.array([x.mean() for x in cosines]),
        tuple(float(np.median(np.concatenate(x))) for x in norms), shift if gap[shift] < gap[0] / 2 else 0, strangers,
        {ids[i]: ids[j] for i, j in _moved(unit(A), unit(B))},
        float(np.corrcoef(*patterns)[0, 1]) if len(patterns[0]) > 2 else 0.0)


def _strangers(A: np.ndarray, B: np.ndarray) -> float:
    """Mean inner product of rows of different videos."""
    N = len(A)
    return float(A.sum(0) @ B.sum(0) - (A * B).sum()) / (N * N - N) if N > 1 else 0.0


def _moved(A: np.ndarray, B: np.ndarray) -> list[tuple[int, int]]:
    """Rows of A (N, D) that equal another row of B much better than their own."""
    low, own, found = _strangers(A, B), (A * B).sum(1), []
    for first in range(0, len(A), 512):
        similar = A[first : first + 512] @ B.T  # (512, N)
        for i, j in enumerate(similar.argmax(1), first):
            best = similar[i - first, j]
            if 1 - best < (1 - SAME) * (1 - low) and own[i] - low < RELATED * (1 - low):
                found.append((i, int(j)))
    return found


# ---- What matters: labels ------------------------------------------------------------------------

@torch.inference_mode()
def agreement(mine: Path, theirs: Path, teacher: uwav.Teacher | None) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """In how many percent of seconds mine and theirs lead to the same label: "audible, teacher" -> (C,); the classes.

    With LLP's annotations in either folder: hard labels of the val and test videos that have the class, by thresholds
    that are fitted to val, mine to mine and theirs to theirs. Without: of the seconds in which the class has the
    highest logit in mine or in theirs, those in which it has in both."""
    annotated = [folder for folder in (mine, theirs) if (folder / LLP_DENSE_FILES["audio"]).exists()]
    llp = read_llp(annotated[0], lambda line: None) if annotated else None
    shared = set.intersection(*(ids_of(folder, name) for folder in (mine, theirs) for name in TEXTED))
    rows = {video: (split, n) for split in (llp.val, llp.test) for n, video in enumerate(split.ids)} if llp else {}
    ids = [v for v in rows if v in shared] if llp else sorted(shared)[:WITHOUT_TRUTH]
    fitted = torch.tensor([rows[v][0] is llp.val for v in ids]) if llp else torch.zeros(0)
    sides = [_logits(folder, ids, llp and llp.segments, teacher) for folder in (mine, theirs)]
    found = {}
    for rule in sides[0]:
        for m, modality in enumerate(("audible", "visible")):
            logits, C = [side[rule][m] for side in sides], sides[0][rule][m][0].shape[1]
            if fitted.any():
                weak = torch.from_numpy(np.stack([split.weak[n] for split, n in map(rows.get, ids)]))  # (N, C)
                truth = torch.from_numpy(np.stack([(split.visual if m else split.audio)[n]
                                                   for split, n in map(rows.get, ids)]))  # (N, T, C)
                z = [torch.stack(x) for x in logits]  # (N, T, C) each
                theta = [uwav.fit_thresholds(x[fitted], truth[fitted], weak[fitted])[0] for x in z]
                a, b = (uwav.hard_labels(x, t, weak) > 0 for x, t in zip(z, theta))
                counted = (weak[:, None] > 0).expand(a.shape)
            else:
                a, b = (F.one_hot(torch.cat(x).argmax(-1), C) > 0 for x in logits)  # (seconds, C)
                counted = a | b
            dims = tuple(range(a.ndim - 1))
            found[f"{modality}, {rule}"] = (100 * ((a == b) & counted).sum(dims) / counted.sum(dims)).numpy()
    return found, llp.classes if llp else tuple(f"class {c}" for c in range(C))


def _logits(folder: Path, ids: list[str], segments: int | None,
            teacher: uwav.Teacher | None) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Of each second by itself, as in VALOR, and by the teacher: audio and visual, a (T, C) for each video."""
    text = [torch.from_numpy(unit(_read(folder / e.texts, (None, e.size)))) for e in TEXTED.values()]  # (C, D)
    found = {rule: ([], []) for rule in ("single seconds", "teacher")[: 2 if teacher else 1]}
    for video in progress(ids, desc=f"labels of {folder}", unit="video"):
        x = [torch.from_numpy(vectors_of(folder, name, video, segments))[None] for name in TEXTED]  # (1, T, D)
        by_rule = {"single seconds": [F.normalize(v, dim=-1) @ t.T for v, t in zip(x, text)],
                   "teacher": teacher(*x, *text) if teacher else ()}
        for rule, pair in found.items():
            for kept, z in zip(pair, by_rule[rule]):
                kept.append(z[0])
    return found


# ---- Reading, telling ----------------------------------------------------------------------------

def ids_of(folder: Path, name: str) -> set[str]:
    return {file.stem for file in (folder / ENCODERS[name].folder).glob("[!.]*.npy")}


def vectors_of(folder: Path, name: str, video: str, segments: int | None = None) -> np.ndarray:
    """(T, D), one a second."""
    e = ENCODERS[name]
    x = _read(folder / e.folder / f"{video}.npy", (segments and segments * e.per_second, e.size))
    return average_groups(x[: len(x) // e.per_second * e.per_second], e.per_second)


def _read(path: Path, shape: tuple[int | None, int]) -> np.ndarray:
    return finite(shaped(read_array(path), shape, path), path).astype(np.float32)


def compare(mine: Path, theirs: Path, picture: Path, teacher: uwav.Teacher | None = None) -> dict[str, str]:
    """Print the table and the verdict, draw the picture; returns the verdict on each kind of vectors."""
    found: dict[str, Likeness] = {}
    for name, e in ENCODERS.items():
        ids = [ids_of(folder, name) for folder in (mine, theirs)]
        if shared := sorted(ids[0] & ids[1]):
            print(f"{name}: {len(shared)} videos in both, {len(ids[0] - ids[1])} only in {mine}, "
                  f"{len(ids[1] - ids[0])} only in {theirs}", flush=True)
            found[name] = likeness((video, vectors_of(mine, name, video), vectors_of(theirs, name, video))
                                   for video in progress(shared, desc=name, unit="video"))
        if e.texts and all((folder / e.texts).exists() for folder in (mine, theirs)):
            texts = [_read(folder / e.texts, (None, e.size)) for folder in (mine, theirs)]
            found[f"{name} texts"] = likeness((f"class {c}", a[None], b[None]) for c, (a, b) in enumerate(zip(*texts)))
    if not found:
        raise FileNotFoundError(f"{mine} and {theirs}: no features of a video in both, such as "
                                f"{ENCODERS['clap'].folder}/ID.npy")
    print(f"\n{'':12s} cosine: median   5 %  strangers   norm: mine  theirs  shift  other length  worst")
    for name, x in found.items():
        median, low = np.quantile(x.cosine, (0.5, 0.05))
        print(f"{name:12s} {median:14.4f} {low:6.3f} {x.strangers:10.3f} {x.norm[0]:12.3f} {x.norm[1]:7.3f} "
              f"{x.shift:+4d} s {x.lengths:13d}  {x.worst} ({x.of_video.min():.3f})")
    agrees, classes = {}, ()
    if all(name in found and f"{name} texts" in found for name in TEXTED):
        agrees, classes = agreement(mine, theirs, teacher)
        print(f"\n{'the same label, in % of seconds':32s}" + "".join(f"{column:>26s}" for column in agrees))
        for c, name in enumerate(classes):
            print(f"{name:32s}" + "".join(f"{x[c]:26.1f}" for x in agrees.values()))
        print(f"{'mean':32s}" + "".join(f"{np.nanmean(x):26.1f}" for x in agrees.values()))
    draw(found, agrees, classes, picture)
    verdicts = {name: x.verdict("texts" if "texts" in name else name) for name, x in found.items()}
    print("\n" + "\n".join(f"{name}: {verdict}" for name, verdict in verdicts.items()))
    wrong = [name for name, verdict in verdicts.items() if not verdict.startswith("the same")]
    print(f"VERDICT: these are {'not ' * bool(wrong)}the same features" + f" ({', '.join(wrong)})" * bool(wrong)
          + f"; picture: {picture}")
    return verdicts


def draw(found: dict[str, Likeness], agrees: dict[str, np.ndarray], classes: tuple[str, ...], path: Path) -> None:
    """Cosines of all seconds in order of size, and the agreement of labels class by class -> a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 2 + max(3, 0.2 * len(classes))), layout="constrained")
    for name, x in found.items():
        axes[0].plot(np.linspace(0, 100, len(x.cosine)), np.sort(x.cosine), label=name)
    axes[0].set(xlabel="% of seconds (or classes) below", ylabel="cosine of mine and theirs", title="Vectors")
    for (name, x), marker in zip(agrees.items(), "os^v"):
        axes[1].plot(x, range(len(classes)), marker, label=name)
    axes[1].set_yticks(range(len(classes)), classes)
    axes[1].set(xlabel="% of seconds", title="The same label from mine and theirs", ylim=(len(classes) - 0.5, -0.5))
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
