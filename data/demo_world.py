"""The demo world: CLIP- and CLAP-like embeddings of an invented LLP and an invented UnAV-100.

For machines without the data. It lets every stage run for real, in minutes, on arrays of the real layout. What it can
show and what it cannot, where each constant comes from, and how four of them were fitted: docs/demo_world.md.

How a segment's embedding arises, per modality (all directions are random, nothing is learned):

    z = sum over classes: strength x evidence x (class direction + this video's own variation)
      + noise x (the video's scene + slowly drifting background)
    embedding = unit( cone + z in R^D + noise x white noise )

A class's direction is its text's, turned: a text + sqrt(1 - a^2) (text, a quarter turn on), a being the alignment.

Shapes: N videos (n at a time), T segments, C classes, K = LATENT, D = size of an embedding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.annotations import LLP, LLP_CLASSES, LLP_SEGMENTS, LLP_WEAK_FILES, UNAV_SPLITS, LLPSplit, UnAV, UnAVSplit
from data.layout import TEXTED, make_plan, write_pack


@dataclass(frozen=True)
class WorldConfig:
    seed: int = 0
    # Fitted by tests/helpers/calibrate.py. Noise: its length, a class signal being about 1 long. Alignment: cosine of a
    # class's direction among the embeddings and its text.
    audio_noise: float = 2.37
    visual_noise: float = 1.88
    audio_alignment: float = 0.84
    visual_alignment: float = 0.254
    # videos of the invented sets (the real ones bring their own)
    train: int = 1500
    val: int = 649
    test: int = 1200
    source_train: int = 1000
    source_validation: int = 250
    source_test: int = 250


# ---- Who is audible and visible when. Measured: on LLP val + test; what begins with SOURCE_, on UnAV-100 train

TRAIN_CLASSES = {1: 0.40, 2: 0.59, 3: 0.01}  # classes per video, LLP train
CLASSES_PER_VIDEO = {1: 0.33, 2: 0.55, 3: 0.09, 4: 0.03}
SPEECH = 0.8  # of the videos with several classes have Speech (class 0); of those with one, hardly any
# By class, in %: of the videos have it in their weak label; of these, it is audible and visible in, audible only in,
# visible only in (in the rest it is neither: a weak label without dense row)
CLASSES = (
    (53.5, 22, 76, 0), (7.2, 78, 1, 20), (7.1, 37, 56, 4), (9.1, 79, 8, 12), (3.1, 68, 4, 26), (3.5, 91, 6, 2),
    (4.4, 75, 5, 17), (1.9, 83, 17, 0), (2.4, 98, 2, 0), (6.6, 76, 19, 4), (2.4, 76, 18, 4), (14.3, 68, 31, 0),
    (5.3, 88, 7, 5), (12.5, 80, 17, 3), (5.4, 93, 6, 1), (1.7, 78, 22, 0), (4.4, 73, 26, 1), (2.4, 91, 7, 2),
    (4.4, 87, 5, 8), (5.6, 89, 9, 2), (8.4, 81, 8, 10), (1, 58, 42, 0), (4.2, 81, 17, 1), (3, 98, 0, 2),
    (7, 53, 40, 5),
)
FULL = {"both": 0.43, "audio": 0.24, "visual": 0.58}  # it fills the clip; "both": in both modalities
ONE_RUN = 0.67  # a partial span is one unbroken run; with every further run, the same chance to be the last
# Perceived in both, but not throughout: the time spans are
SPANS_OF_BOTH = {"same": 0.31, "visual full": 0.35, "audio full": 0.15, "one longer": 0.19}

SOURCE_CLASSES = 100
SOURCE_SHARE = {"Speech": 0.22, "Singing": 0.08}  # weights of their relatives: 19 % and 7 % of the videos, as measured
SOURCE_SHARE_OTHER = 0.014  # of any other class: 1.3 %; in the real set the median is 1.2 %, the highest 4.5 %
SOURCE_CLASSES_PER_VIDEO = {1: 0.60, 2: 0.27, 3: 0.09, 4: 0.04}
SOURCE_SECONDS = (10, 42, 60, 10)  # shortest, mean, longest, standard deviation
SOURCE_FULL, SOURCE_ONE_RUN = 0.23, 0.49
UNANNOTATED = {"audio": 0.53, "visual": 0.07}  # of the videos (LLP's) have a class perceived in this modality alone


def choose(table: dict, rng: np.random.Generator) -> int | str:
    return list(table)[rng.choice(len(table), p=list(table.values()))]


def draw_weak(videos: int, rng: np.random.Generator, per_video: dict = CLASSES_PER_VIDEO) -> np.ndarray:
    """Weak labels (N, C) uint8: Speech beside others only, these as often as in LLP."""
    others = np.array([share for share, *_ in CLASSES[1:]])  # (C - 1,)
    weak = np.zeros((videos, len(CLASSES)), np.uint8)
    for label in weak:
        number = choose(per_video, rng)
        label[0] = number > 1 and rng.random() < SPEECH
        label[1 + rng.choice(len(others), number - label[0], replace=False, p=others / others.sum())] = 1
    return weak


def draw_span(T: int, full: float, one_run: float, rng: np.random.Generator) -> np.ndarray:
    """When an event goes on, (T,) bool: all the time, or in any part of it, in one run or several."""
    if rng.random() < full or T == 1:
        return np.ones(T, bool)
    runs = min(rng.geometric(one_run), T // 2)
    covered = rng.integers(runs, T - max(runs - 1, 1) + 1)

    def cut(total: int, parts: int) -> np.ndarray:  # lengths >= 1, every division as likely as any other
        return np.diff([0, *np.sort(1 + rng.choice(total - 1, parts - 1, replace=False)), total])

    on, off = cut(covered, runs), cut(T - covered + 2, runs + 1)
    off[[0, -1]] -= 1  # an event may begin or end with the video
    lengths = np.insert(off, np.arange(1, runs + 1), on)  # off, on, off, ..., off
    return np.repeat(np.arange(2 * runs + 1) % 2 == 1, lengths)


def widen(both: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """When an event is audible and when it is visible, from when it is both, (T,) bool each."""
    spans = "same" if both.all() else choose(SPANS_OF_BOTH, rng)
    if spans == "visual full":
        return both, np.ones_like(both)
    if spans == "audio full":
        return np.ones_like(both), both
    if spans == "one longer":
        longer = both | draw_span(len(both), 0, ONE_RUN, rng)
        return (longer, both) if rng.random() < 0.5 else (both, longer)
    return both, both


def draw_truth(weak: np.ndarray, T: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Dense truth that agrees with weak labels (N, C): audible and visible, (N, T, C) uint8 each."""
    N, C = weak.shape
    truth = {m: np.zeros((N, T, C), np.uint8) for m in ("audio", "visual")}
    for n, c in zip(*np.nonzero(weak)):
        both, audio, visual = (percent / 100 for percent in CLASSES[c][1:])
        perceived = choose(dict(both=both, audio=audio, visual=visual, neither=max(0, 1 - both - audio - visual)), rng)
        if perceived == "both":
            common = draw_span(T, FULL["both"], ONE_RUN, rng)
            truth["audio"][n, :, c], truth["visual"][n, :, c] = widen(common, rng)
        elif perceived != "neither":
            truth[perceived][n, :, c] = draw_span(T, FULL[perceived], ONE_RUN, rng)
    return truth["audio"], truth["visual"]


def draw_source_truth(labels: list[np.ndarray], rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What is audible and what is visible, (T_n, C) uint8 each, in videos labelled (T_n, C) where a class is both. In
    some videos a class goes on in one modality alone, which nobody annotated."""
    frequency = 1 + np.sum([label.any(0) for label in labels], axis=0)  # (C,)
    audible, visible = [label.copy() for label in labels], [label.copy() for label in labels]
    for label, audio, visual in zip(labels, audible, visible):
        annotated = label.any(0)  # (C,)
        for c in np.flatnonzero(annotated):
            audio[:, c], visual[:, c] = widen(label[:, c] > 0, rng)
        for truth, chance in zip((audio, visual), UNANNOTATED.values()):
            if rng.random() < chance and not annotated.all():
                other = frequency * ~annotated  # (C,)
                c = rng.choice(len(other), p=other / other.sum())
                truth[:, c] = draw_span(len(label), SOURCE_FULL, SOURCE_ONE_RUN, rng)
                annotated[c] = True  # not in the other modality, too
    return audible, visible


def invented_llp(config: WorldConfig) -> LLP:
    def split(name: str, seed: int) -> LLPSplit:
        rng = np.random.default_rng((config.seed, 1, seed))
        per_video = TRAIN_CLASSES if name == "train" else CLASSES_PER_VIDEO
        weak = draw_weak(getattr(config, name), rng, per_video)
        ids = [f"demo-{name}-{n:05d}" for n in range(len(weak))]
        truth = draw_truth(weak, LLP_SEGMENTS, rng) if name != "train" else ()
        return LLPSplit(ids, weak, *truth)

    return LLP(LLP_CLASSES, *(split(name, seed) for seed, name in enumerate(LLP_WEAK_FILES)))


WITHOUT_RELATIVE = ("Frying_(food)", "Chicken_rooster", "Blender")  # target classes like none of the real UnAV-100


def invented_unav(config: WorldConfig) -> UnAV:
    """Class names: a relative of each target class but three, and others that have none."""
    tied = [name for name in LLP_CLASSES if name not in WITHOUT_RELATIVE]
    classes = [f"{name} (relative)" for name in tied] + [f"unrelated {i}" for i in range(SOURCE_CLASSES - len(tied))]
    share = np.full(SOURCE_CLASSES, SOURCE_SHARE_OTHER)
    share[[tied.index(name) for name in SOURCE_SHARE]] = list(SOURCE_SHARE.values())
    shortest, mean, longest, deviation = SOURCE_SECONDS

    def split(name: str, seed: int) -> UnAVSplit:
        rng = np.random.default_rng((config.seed, 2, seed))
        labels = []
        for _ in range(getattr(config, f"source_{name}")):
            T = int(np.clip(round(rng.normal(mean, deviation)), shortest, longest))
            labels.append(np.zeros((T, SOURCE_CLASSES), np.uint8))
            present = choose(SOURCE_CLASSES_PER_VIDEO, rng)
            for c in rng.choice(SOURCE_CLASSES, present, replace=False, p=share / share.sum()):
                labels[-1][:, c] = draw_span(T, SOURCE_FULL, SOURCE_ONE_RUN, rng)
        return UnAVSplit([f"demo-{name}-{n:05d}" for n in range(len(labels))], labels)

    return UnAV(tuple(classes), *(split(name, seed) for seed, name in enumerate(UNAV_SPLITS)))


# ---- Geometry: where classes, texts and scenes lie. Lengths are in class signals -----------------

MODALITY = {"clap": "audio", "clip": "visual"}
# Plain choices, none fitted:
LATENT = 48  # real embeddings fill far fewer directions than they have numbers
RELATIVE_COSINE = 0.85  # of a target class and its relative in the source set
VARIATION = 0.5  # of a class from video to video
STRENGTH_SPREAD = 0.3  # of the logarithm of a class's strength in a video
CONTEXT = 0.2  # how much of a class is felt where it is not perceived
SCENES = 60  # kinds of scene
SCENE, DRIFT, WHITE = 0.7, 0.6, 0.4  # shares of the noise (their squares add up to about 1)
DRIFT_MEMORY = 0.8  # correlation of the drifting background from one second to the next
CONE = 1.0  # length of the direction that all embeddings of a modality share


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def relative(target: str, source: tuple[str, ...]) -> int | None:
    """The source class that shares most words with a target class, up to their endings; the first of several."""

    def words(name: str) -> set[str]:
        return set(re.findall("[a-z]+", name.lower().replace("speaking", "speech")))  # the one irregular pair

    shared = [sum(any(other.startswith(word[:4]) for other in words(name)) for word in words(target))
              for name in source]
    return shared.index(max(shared)) if any(shared) else None


@dataclass(frozen=True)
class Geometry:
    """One dataset in one modality."""

    text: np.ndarray  # (C, D) unit text embeddings
    direction: np.ndarray  # (C, K) unit class directions
    scenes: np.ndarray  # (S, K)
    basis: np.ndarray  # (K, D) orthonormal rows
    cone: np.ndarray  # (D,)


def build_geometry(llp: LLP, unav: UnAV, config: WorldConfig) -> dict[tuple[str, str], Geometry]:
    """(dataset, feature) -> Geometry."""
    rng, geometry = np.random.default_rng((config.seed, 0)), {}
    target, source = (unit(rng.standard_normal((len(x.classes), LATENT))) for x in (llp, unav))  # (C, K) each
    for c, name in enumerate(llp.classes):
        if (s := relative(name, unav.classes)) is not None:
            target[c] = unit(RELATIVE_COSINE * source[s] + math.sqrt(1 - RELATIVE_COSINE**2) * target[c])
    for feature, D in ((name, encoder.size) for name, encoder in TEXTED.items()):
        basis = np.linalg.qr(rng.standard_normal((D, LATENT)))[0].T  # (K, D)
        axes = np.linalg.qr(rng.standard_normal((LATENT, LATENT)))[0]  # (K, K)
        turn = axes.T @ np.kron(np.eye(LATENT // 2), [[0, 1], [-1, 0]]) @ axes  # (K, K): u . u turn = 0 for every u
        cone, text_cone = CONE * unit(rng.standard_normal((2, D)))  # the gap between embeddings and texts
        scenes = unit(rng.standard_normal((SCENES, LATENT)))
        a = getattr(config, f"{MODALITY[feature]}_alignment")
        for dataset, u in dict(llp=target, unav=source).items():  # u (C, K)
            text = unit(u @ basis + text_cone).astype(np.float32)  # (C, D)
            direction = a * u + math.sqrt(1 - a**2) * u @ turn  # (C, K)
            geometry[dataset, feature] = Geometry(text, direction, scenes, basis, cone)
    return geometry


# ---- Rendering: from truth to embeddings ---------------------------------------------------------

def render(truth: np.ndarray, present: np.ndarray, g: Geometry, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Unit embeddings (n, T, D); truth (n, T, C): perceived in this modality, present (n, C): in the video."""
    n, T, C = truth.shape
    K, D = g.basis.shape
    strength = np.exp(STRENGTH_SPREAD * rng.standard_normal((n, 1, C)))
    context = CONTEXT * np.abs(rng.standard_normal((n, 1, C))) * present[:, None]
    evidence = np.where(truth > 0, strength, context)  # (n, T, C)
    appearance = unit(g.direction + VARIATION * unit(rng.standard_normal((n, C, K))))  # (n, C, K)
    signal = evidence @ appearance  # (n, T, K)
    scene = g.scenes[rng.integers(0, len(g.scenes), (n, 1))]  # (n, 1, K)
    drift = rng.standard_normal((n, T, K), np.float32)
    for t in range(1, T):
        drift[:, t] = DRIFT_MEMORY * drift[:, t - 1] + math.sqrt(1 - DRIFT_MEMORY**2) * drift[:, t]
    z = signal + noise * (SCENE * scene + DRIFT * (drift / math.sqrt(K)))  # (n, T, K)
    white = rng.standard_normal((n, T, D), np.float32) / math.sqrt(D)  # (n, T, D)
    return unit((z @ g.basis + g.cone).astype(np.float32) + np.float32(noise * WHITE) * white)  # (n, T, D)


SPLITS = [("llp", split) for split in LLP_WEAK_FILES] + [("unav", split) for split in UNAV_SPLITS]
VIDEOS_AT_A_TIME = 128


class World:
    """Annotations and geometry; the embeddings are made when asked for. `llp` / `unav` read from the real files are
    dressed with invented features; the truth of LLP's training split, which nobody knows, is drawn to agree with its
    weak labels, and never stored."""

    def __init__(self, config: WorldConfig, llp: LLP | None = None, unav: UnAV | None = None):
        self.config, self.llp, self.unav = config, llp or invented_llp(config), unav or invented_unav(config)
        self.geometry = build_geometry(self.llp, self.unav, config)

    def perceived(self, dataset: str, name: str) -> tuple[dict[str, list[np.ndarray]], np.ndarray]:
        """What the features of a split show: modality -> N truths (T_n, C); and the classes of each video (N, C)."""
        split = getattr(getattr(self, dataset), name)
        rng = np.random.default_rng((self.config.seed, 3, SPLITS.index((dataset, name))))
        if dataset == "unav":
            audio, visual = draw_source_truth(split.labels, rng)
            present = np.stack([label.any(0) for label in split.labels])  # (N, C)
        else:
            known = split.audio is not None
            audio, visual = (split.audio, split.visual) if known else draw_truth(split.weak, LLP_SEGMENTS, rng)
            present = split.weak | (audio | visual).any(1)  # (N, C)
        return dict(audio=list(audio), visual=list(visual)), present

    def embeddings(self, dataset: str, name: str, feature: str) -> Iterator[np.ndarray]:
        """Of all videos of a split, a few videos at a time: half-precision (segments of those end to end, D)."""
        truths, present = self.perceived(dataset, name)
        truths, g = truths[MODALITY[feature]], self.geometry[dataset, feature]
        noise = getattr(self.config, f"{MODALITY[feature]}_noise")
        seed = (self.config.seed, 4, SPLITS.index((dataset, name)), TEXTED[feature].size)
        lengths = np.array([len(t) for t in truths])
        for start in range(0, len(truths), VIDEOS_AT_A_TIME):
            videos = slice(start, start + VIDEOS_AT_A_TIME)
            padded = np.zeros((len(truths[videos]), lengths[videos].max(), present.shape[1]), np.uint8)  # (n, T, C)
            for row, truth in zip(padded, truths[videos]):
                row[: len(truth)] = truth
            x = render(padded, present[videos], g, noise, np.random.default_rng((*seed, start)))  # (n, T, D)
            yield x[np.arange(padded.shape[1]) < lengths[videos, None]].astype("<f2")  # (segments, D)


def make(out: str | Path, config: WorldConfig, llp: LLP | None = None, unav: UnAV | None = None,
         replace: bool = False) -> dict:
    """Write a packed folder (layout.py) and return its index; finished arrays of an interrupted run are kept."""
    out, world = Path(out), World(config, llp, unav)
    real = [name for name, data in (("llp", llp), ("unav", unav)) if data]
    plan = make_plan({"demo_world": asdict(config), "real_annotations": real}, world.llp, world.unav, list(TEXTED))

    def features(dataset: str, split: str, feature: str) -> np.ndarray:
        x = np.concatenate(list(world.embeddings(dataset, split, feature)))  # (segments, D)
        return x.reshape(-1, LLP_SEGMENTS, x.shape[1]) if dataset == "llp" else x

    arrays = {f"{dataset}/text_{feature}.npy": g.text for (dataset, feature), g in world.geometry.items()}
    arrays |= {f"{x}/{split}/{feature}.npy": partial(features, x, split, feature)
               for x, split in SPLITS for feature in TEXTED}
    return write_pack(out, plan, world.llp, world.unav, replace, arrays)
