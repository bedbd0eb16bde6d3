"""The demo world: CLIP- and CLAP-like embeddings of an invented LLP and an invented UnAV-100.

For machines without the data. It lets every stage run for real, in minutes, on arrays of the real
layout. Its scores say nothing about LLP, and little about how good the method is.

    python demo_world.py make OUT                          # an invented LLP and UnAV, small
    python demo_world.py make OUT --llp DIR --unav FILE    # the real annotation files, with invented features
    python demo_world.py calibrate                         # how the two noise levels below were found

How a segment's embedding arises, per modality (all directions are random, nothing is learned):

    z = sum over classes: strength x evidence x (class direction + this video's own variation)
      + noise x (the video's scene + slowly drifting background)
    embedding = unit( cone + domain offset + z in R^D + noise x white noise )

* related classes are close: families of classes, and for most target classes a relative among the source classes;
* an active class now and then loses its evidence for a while, and a class of the video is faintly felt
  (`context`) in seconds, or in the modality, where it is not perceived;
* noise persists: the scene stays for the whole video, the background drifts;
* text and embedding are misaligned, by a map common to all classes and by an error of each class;
* the source and the target set differ in offset and, half, in their scenes;
* who is audible or visible when follows the statistics measured on the dense truth of LLP (constants below).

The two noise levels are fitted, by `calibrate`, to the published scores of VALOR's per-segment labels; neither a
teacher nor a HAN takes part in that. LATENT and SKEW were chosen after looking at teachers on drafts of this world
(README, "The demo world").
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from common.command import progress
from common.files import write_array, write_rows
from data.annotations import (LLP, LLP_CLASSES, LLP_SEGMENTS, LLP_WEAK_FILES, UNAV_SPLITS, LLPSplit, UnAV, UnAVSplit)
from data.layout import begin_pack, finish_pack, make_plan, read_index, write_annotations
from uwav import fit_thresholds, hard_labels, parsing_scores


@dataclass(frozen=True)
class WorldConfig:
    seed: int = 0
    # Length of the noise, a class signal being about 1 long; along any one latent direction it is a seventh of that.
    # Both found by `python demo_world.py calibrate`.
    audio_noise: float = 1.16
    visual_noise: float = 3.47
    # videos of the invented sets (the real ones bring their own)
    train: int = 1500
    val: int = 400
    test: int = 600
    source_train: int = 1500
    source_validation: int = 250
    source_test: int = 250


# ---------------------------------------------------------------------------------------------
# Who is audible and visible when: measured on LLP val + test (README, "The demo world")
# ---------------------------------------------------------------------------------------------

CLASSES_PER_VIDEO = {1: 0.33, 2: 0.55, 3: 0.09, 4: 0.03}
# A weakly labelled class is perceived in both modalities, in one, or in neither (a weak label without dense row)
PERCEIVED = ("both", "audio", "visual", "neither")
PERCEIVED_SPEECH = (0.22, 0.77, 0.00, 0.01)  # off-screen speakers
PERCEIVED_OTHER = (0.76, 0.17, 0.06, 0.01)
# When both: the time spans are
SPANS = ("both full", "same, partial", "audio partial, visual full", "audio full, visual partial", "different")
SPANS_OF_BOTH = (0.43, 0.18, 0.20, 0.08, 0.11)
FULL_ALONE = {"audio": 0.24, "visual": 0.58}  # a class in one modality only fills the whole clip
ONE_RUN = {"audio": 0.57, "visual": 0.71}  # a partial span is one unbroken run
FREQUENT, COMMON, RARE = 0.50, 0.15, 0.01  # share of videos with the most frequent class, the next, the rarest

SOURCE_CLASSES = 100
SOURCE_CLASSES_PER_VIDEO = {1: 0.60, 2: 0.27, 3: 0.09, 4: 0.04}
SOURCE_SECONDS = (10, 42, 60, 10)  # shortest, mean, longest, standard deviation
SOURCE_FULL = 0.2  # an event fills its video
SOURCE_RUNS, SOURCE_RUN_SHARE = 3.2, 0.3  # else: mean number of runs, mean share of the video each covers
SOURCE_DISTRACTOR = 0.5  # chance of an unannotated class heard but not seen, and of one seen but not heard


def choose(table: dict, rng: np.random.Generator):
    return list(table)[rng.choice(len(table), p=list(table.values()))]


def draw_weak(videos: int, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Weak labels (N, C) uint8: class 0 in half of the videos, the others from common to rare."""
    share = np.concatenate([[FREQUENT], np.geomspace(COMMON, RARE, classes - 1)])  # (C,)
    weak = np.zeros((videos, classes), np.uint8)
    for n in range(videos):
        weak[n, rng.choice(classes, choose(CLASSES_PER_VIDEO, rng), replace=False, p=share / share.sum())] = 1
    return weak


def draw_span(T: int, modality: str, rng: np.random.Generator) -> np.ndarray:
    """A partial span, (T,) bool: one run of any length, or a long one with one or two gaps."""
    span = np.zeros(T, bool)
    if rng.random() < ONE_RUN[modality]:
        length = rng.integers(1, T)
        start = rng.integers(0, T - length + 1)
        span[start : start + length] = True
    else:
        length = rng.integers(T // 2, T + 1)
        start = rng.integers(0, T - length + 1)
        span[start : start + length] = True
        for _ in range(rng.choice([1, 2], p=[0.8, 0.2])):  # short gaps
            gap = rng.integers(start + 1, start + length - 1)
            span[gap : min(gap + rng.geometric(0.5), start + length - 1)] = False
    return span


def draw_truth(weak: np.ndarray, T: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Dense truth that agrees with weak labels (N, C): audible and visible, (N, T, C) uint8 each."""
    N, C = weak.shape
    truth = {m: np.zeros((N, T, C), np.uint8) for m in ("audio", "visual")}
    for n, c in zip(*np.nonzero(weak)):
        perceived = PERCEIVED[rng.choice(4, p=PERCEIVED_SPEECH if c == 0 else PERCEIVED_OTHER)]
        if perceived == "both":
            spans = SPANS[rng.choice(5, p=SPANS_OF_BOTH)]
            audio_full = spans in ("both full", "audio full, visual partial")
            visual_full = spans in ("both full", "audio partial, visual full")
            truth["audio"][n, :, c] = True if audio_full else draw_span(T, "audio", rng)
            truth["visual"][n, :, c] = True if visual_full else draw_span(T, "visual", rng)
            audio = truth["audio"][n, :, c]
            if spans == "same, partial":
                truth["visual"][n, :, c] = audio
            elif spans == "different":  # but of one event: the nearer of two draws
                draws = [truth["visual"][n, :, c].copy(), draw_span(T, "visual", rng).astype(np.uint8)]
                truth["visual"][n, :, c] = max(draws, key=lambda v: (audio & v).sum() / (audio | v).sum())
        elif perceived != "neither":
            full = rng.random() < FULL_ALONE[perceived]
            truth[perceived][n, :, c] = True if full else draw_span(T, perceived, rng)
    return truth["audio"], truth["visual"]


def draw_source_video(classes: int, rng: np.random.Generator) -> np.ndarray:
    """Audio-visual labels of one source video, (T, C) uint8."""
    shortest, mean, longest, deviation = SOURCE_SECONDS
    T = int(np.clip(round(rng.normal(mean, deviation)), shortest, longest))
    label = np.zeros((T, classes), np.uint8)
    for c in rng.choice(classes, choose(SOURCE_CLASSES_PER_VIDEO, rng), replace=False):
        label[:, c] = draw_source_span(T, rng)
    return label


def draw_source_span(T: int, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < SOURCE_FULL:
        return np.ones(T, bool)
    span = np.zeros(T, bool)
    for _ in range(rng.geometric(1 / SOURCE_RUNS)):
        length = min(T, math.ceil(rng.exponential(SOURCE_RUN_SHARE * T)))
        start = rng.integers(0, T - length + 1)
        span[start : start + length] = True
    return span


def invented_llp(config: WorldConfig) -> LLP:
    def split(name: str, seed: int) -> LLPSplit:
        rng = np.random.default_rng((config.seed, 1, seed))
        weak = draw_weak(getattr(config, name), len(LLP_CLASSES), rng)
        ids = [f"demo-{name}-{n:05d}" for n in range(len(weak))]
        truth = draw_truth(weak, LLP_SEGMENTS, rng) if name != "train" else ()
        return LLPSplit(ids, weak, *truth)

    return LLP(LLP_CLASSES, *(split(name, seed) for seed, name in enumerate(LLP_WEAK_FILES)))


def invented_unav(config: WorldConfig) -> UnAV:
    """Class names: a relative of each target class but the last three, and others that have none."""
    relatives = [f"{name} (relative)" for name in LLP_CLASSES[:-3]]
    classes = tuple(relatives + [f"unrelated {i}" for i in range(SOURCE_CLASSES - len(relatives))])

    def split(name: str, seed: int) -> UnAVSplit:
        rng = np.random.default_rng((config.seed, 2, seed))
        labels = [draw_source_video(len(classes), rng) for _ in range(getattr(config, f"source_{name}"))]
        return UnAVSplit([f"demo-{name}-{n:05d}" for n in range(len(labels))], labels)

    return UnAV(classes, *(split(name, seed) for seed, name in enumerate(UNAV_SPLITS)))


# ---------------------------------------------------------------------------------------------
# Geometry: where classes, texts, scenes and domains lie
# ---------------------------------------------------------------------------------------------

LATENT = 48  # real embeddings fill far fewer directions than they have numbers
SIZES = {"clap": 512, "clip": 768}
MODALITY = {"clap": "audio", "clip": "visual"}
FAMILIES, FAMILY_SHARE = 12, 0.5  # cosine of two classes of one family is about share ** 2
RELATIVE_COSINE = 0.85  # of a target class and its relative in the source set
SKEW = {"clap": 0.5, "clip": 2.0}  # misalignment of text and embedding, common to all classes
CLASS_ERROR = 0.3  # and of each class
VARIATION = 0.5  # of a class from video to video
STRENGTH_SPREAD = 0.3  # of the logarithm of a class's strength in a video
LOSE, RECOVER, LOST = 0.12, 0.5, 0.15  # chance a second to lose evidence, to get it back; what is left meanwhile
CONTEXT = 0.2  # how much of a class is felt where it is not perceived
SCENES, SHARED_SCENES = 60, 30  # kinds of scene in each set; how many both sets have
SCENE, DRIFT, WHITE = 0.7, 0.6, 0.4  # shares of the noise (their squares add up to about 1)
DRIFT_MEMORY = 0.8  # correlation of the drifting background from one second to the next
OFFSET = 0.5  # length of each set's own offset
CONE = 1.0  # length of the direction that all embeddings of a modality share


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def related(target: str, source: str) -> bool:
    """Two class names share a word up to its ending ("Lawn_mower", "lawn mowing")."""

    def stems(name: str) -> set[str]:
        name = name.lower().replace("speaking", "speech")  # the one irregular pair
        return {word[:4] for word in re.findall("[a-z]+", name)}

    return bool(stems(target) & stems(source))


def class_concepts(target: tuple[str, ...], source: tuple[str, ...],
                   rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Unit concept vectors of target (C, K) and source classes, before modality."""
    families = unit(rng.standard_normal((FAMILIES, LATENT)))

    def with_family(n: int) -> np.ndarray:
        own = unit(rng.standard_normal((n, LATENT)))
        return unit(FAMILY_SHARE * families[rng.integers(0, FAMILIES, n)] + math.sqrt(1 - FAMILY_SHARE**2) * own)

    source_concepts, target_concepts = with_family(len(source)), with_family(len(target))
    for c, name in enumerate(target):
        relatives = [s for s, other in enumerate(source) if related(name, other)]
        if relatives:
            own = math.sqrt(1 - RELATIVE_COSINE**2) * unit(rng.standard_normal(LATENT))
            target_concepts[c] = unit(RELATIVE_COSINE * source_concepts[relatives[0]] + own)
    return target_concepts, source_concepts


@dataclass(frozen=True)
class Geometry:
    """One dataset in one modality. K = LATENT, D = size of the embedding."""

    text: np.ndarray  # (C, D) unit text embeddings
    direction: np.ndarray  # (C, K) class directions
    scenes: np.ndarray  # (S, K)
    basis: np.ndarray  # (K, D) orthonormal rows
    offset: np.ndarray  # (D,) cone + domain


def build_geometry(llp: LLP, unav: UnAV, seed: int) -> dict[tuple[str, str], Geometry]:
    """(dataset, feature) -> Geometry."""
    rng = np.random.default_rng((seed, 0))
    concepts = dict(zip(("llp", "unav"), class_concepts(llp.classes, unav.classes, rng)))
    geometry = {}
    for feature, D in SIZES.items():
        basis = np.linalg.qr(rng.standard_normal((D, LATENT)))[0].T  # (K, D)
        skew = np.eye(LATENT) + SKEW[feature] * rng.standard_normal((LATENT, LATENT)) / math.sqrt(LATENT)  # (K, K)
        cone, text_cone = CONE * unit(rng.standard_normal((2, D)))  # the gap between embeddings and texts
        scenes = unit(rng.standard_normal((2 * SCENES - SHARED_SCENES, LATENT)))
        for dataset, own_scenes in (("llp", scenes[:SCENES]), ("unav", scenes[-SCENES:])):
            u = concepts[dataset]  # (C, K)
            text = unit(u @ basis + text_cone)  # (C, D)
            direction = unit(u @ skew + CLASS_ERROR * unit(rng.standard_normal(u.shape)))  # (C, K)
            offset = cone + OFFSET * unit(rng.standard_normal(D))
            geometry[dataset, feature] = Geometry(text.astype(np.float32), direction, own_scenes, basis, offset)
    return geometry


# ---------------------------------------------------------------------------------------------
# Rendering: from truth to embeddings
# ---------------------------------------------------------------------------------------------


def drift(n: int, T: int, size: int, memory: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise (n, T, size) of unit variance, correlated by `memory` from one second to the next."""
    x = rng.standard_normal((n, T, size), np.float32)
    for t in range(1, T):
        x[:, t] = memory * x[:, t - 1] + math.sqrt(1 - memory**2) * x[:, t]
    return x


def lost_evidence(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Factor (n, T, C) on the evidence: 1, or LOST while it is lost."""
    draws, lost = rng.random(shape, np.float32), np.zeros(shape, bool)
    lost[:, 0] = draws[:, 0] < LOSE / (LOSE + RECOVER)
    for t in range(1, shape[1]):
        lost[:, t] = np.where(lost[:, t - 1], draws[:, t] >= RECOVER, draws[:, t] < LOSE)
    return np.where(lost, np.float32(LOST), np.float32(1))


def render(truth: np.ndarray, present: np.ndarray, g: Geometry, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Unit embeddings (n, T, D); truth (n, T, C): perceived in this modality, present (n, C): in the video."""
    n, T, C = truth.shape
    K, D = g.basis.shape
    strength = np.exp(STRENGTH_SPREAD * rng.standard_normal((n, 1, C)))
    context = CONTEXT * np.abs(rng.standard_normal((n, 1, C))) * present[:, None]
    evidence = np.where(truth > 0, strength * lost_evidence(truth.shape, rng), context)  # (n, T, C)
    appearance = unit(g.direction + VARIATION * unit(rng.standard_normal((n, C, K))))  # (n, C, K)
    signal = evidence @ appearance  # (n, T, K)
    scene = g.scenes[rng.integers(0, len(g.scenes), (n, 1))]  # (n, 1, K)
    background = drift(n, T, K, DRIFT_MEMORY, rng) / math.sqrt(K)  # (n, T, K)
    z = signal + noise * (SCENE * scene + DRIFT * background)  # (n, T, K)
    white = rng.standard_normal((n, T, D), np.float32) / math.sqrt(D)  # (n, T, D)
    return unit((z @ g.basis + g.offset).astype(np.float32) + np.float32(noise * WHITE) * white)  # (n, T, D)


VIDEOS_AT_A_TIME = 128


def perceived(split: LLPSplit | UnAVSplit, modality: str, seed: tuple[int, ...]) -> tuple[list[np.ndarray], np.ndarray]:
    """What the features of a split show in one modality: N truths (T_n, C), and the classes of each video (N, C).

    LLP train: a truth drawn to agree with the weak labels (the same for both modalities; it is never stored).
    UnAV: the annotations, and in some videos a class perceived in this modality alone that nobody annotated.
    """
    rng = np.random.default_rng(seed)
    if isinstance(split, LLPSplit):
        known = split.audio is not None
        audio, visual = (split.audio, split.visual) if known else draw_truth(split.weak, LLP_SEGMENTS, rng)
        return list(audio if modality == "audio" else visual), split.weak | (audio | visual).any(1)
    present = np.stack([label.any(0) for label in split.labels])  # (N, C)
    truths = []
    for _ in range(1 + list(MODALITY.values()).index(modality)):  # each modality has its own distractors
        truths = [add_distractor(label, rng) for label in split.labels]
    return truths, present


def add_distractor(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(T, C) -> (T, C), in some videos with one more class."""
    label = label.copy()
    if rng.random() < SOURCE_DISTRACTOR:
        label[:, rng.integers(label.shape[1])] |= draw_source_span(len(label), rng).astype(np.uint8)
    return label


def render_split(truths: list[np.ndarray], present: np.ndarray, g: Geometry, noise: float,
                 seed: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The embeddings of all videos of a split, a few videos at a time: (segments of those end to end, D)."""
    lengths = np.array([len(t) for t in truths])
    for start in range(0, len(truths), VIDEOS_AT_A_TIME):
        videos = slice(start, min(start + VIDEOS_AT_A_TIME, len(truths)))
        padded = np.zeros((videos.stop - start, lengths[videos].max(), present.shape[1]), np.uint8)  # (n, T, C)
        for row, truth in zip(padded, truths[videos]):
            row[: len(truth)] = truth
        x = render(padded, present[videos], g, noise, np.random.default_rng((*seed, start)))  # (n, T, D)
        real = np.arange(padded.shape[1]) < lengths[videos, None]  # (n, T)
        yield x[real]  # (segments, D)


def make(out: str | Path, config: WorldConfig, llp: LLP | None = None, unav: UnAV | None = None,
         replace: bool = False) -> dict:
    """Write a packed folder (layout: features.py) and return its index; finished arrays of an interrupted run are kept.

    With `llp` / `unav` read from the real files, those videos, classes, splits and truths are dressed with
    invented features; the truth of the training split, which nobody knows, is drawn to agree with its weak labels.
    """
    out = Path(out)
    real = [name for name, data in (("llp", llp), ("unav", unav)) if data]
    data = {"llp": llp or invented_llp(config), "unav": unav or invented_unav(config)}
    splits = {"llp": tuple(LLP_WEAK_FILES), "unav": UNAV_SPLITS}
    source = {"demo_world": asdict(config), "real_annotations": real}
    plan = make_plan(source, data["llp"], data["unav"], list(SIZES))
    part = begin_pack(out, plan, replace)
    if part is None:
        return read_index(out)
    write_annotations(part, data["llp"], data["unav"])
    geometry = build_geometry(data["llp"], data["unav"], config.seed)
    todo = [(key, g, number, split) for key, g in geometry.items() for number, split in enumerate(splits[key[0]])]
    for (dataset, feature), g, number, split in progress(todo, desc="demo world", unit="array"):
        write_array(part / dataset / f"text_{feature}.npy", g.text)
        path = part / dataset / split / f"{feature}.npy"
        if not path.exists():
            truths, present = perceived(getattr(data[dataset], split), MODALITY[feature], (config.seed, 3, number))
            shape = (len(truths), LLP_SEGMENTS) if dataset == "llp" else (sum(map(len, truths)),)
            seed = (config.seed, 4, list(geometry).index((dataset, feature)), number)
            blocks = render_split(truths, present, g, noise_of(config, feature), seed)
            write_rows(path, (*shape, SIZES[feature]), blocks)
    return finish_pack(out, plan)


def noise_of(config: WorldConfig, feature: str) -> float:
    return getattr(config, f"{MODALITY[feature]}_noise")


# ---------------------------------------------------------------------------------------------
# Calibration: the noise at which per-segment labels are as good as VALOR's
# ---------------------------------------------------------------------------------------------

# VALOR's hard labels (per-segment CLIP / CLAP similarity, validation thresholds) on the LLP test split: paper, Table 2
VALOR = {"seg_a": 80.5, "seg_v": 61.7, "seg_av": 55.7, "seg_type": 66.0, "seg_event": 74.6}
BISECTIONS = 8


def segment_label_scores(config: WorldConfig) -> dict[str, float]:
    """Segment-level scores of per-segment hard labels on the invented test split, thresholds from validation."""
    llp = invented_llp(config)
    geometry = build_geometry(llp, invented_unav(config), config.seed)
    logit = {}  # (split, modality) -> (N, T, C)
    for feature, modality in MODALITY.items():
        g = geometry["llp", feature]
        for number, split in ((1, "val"), (2, "test")):
            truths, present = perceived(getattr(llp, split), modality, (config.seed, 3, number))
            seed = (config.seed, 4, list(geometry).index(("llp", feature)), number)
            parts = list(render_split(truths, present, g, noise_of(config, feature), seed))
            x = np.concatenate(parts, dtype=np.float32)
            similarity = torch.from_numpy(x) @ torch.from_numpy(g.text).T
            logit[split, modality] = similarity.view(len(truths), LLP_SEGMENTS, -1)
    hard = []
    for modality in MODALITY.values():
        truth, weak = torch.from_numpy(getattr(llp.val, modality)), torch.from_numpy(llp.val.weak)
        threshold, _ = fit_thresholds(logit["val", modality], truth, weak)
        hard.append(hard_labels(logit["test", modality], threshold, torch.from_numpy(llp.test.weak)))
    scores = parsing_scores(*hard, torch.from_numpy(llp.test.audio), torch.from_numpy(llp.test.visual))
    return {name: scores[name] for name in VALOR}


def calibrate(config: WorldConfig) -> WorldConfig:
    """Bisect each modality's noise until the segment score of that modality is VALOR's; print every trial."""
    for field, score in (("audio_noise", "seg_a"), ("visual_noise", "seg_v")):
        low, high = 0.0, 8.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            config = replace(config, **{field: middle})
            scores = segment_label_scores(config)
            print(f"{field} {middle:.3f}  " + "  ".join(f"{k} {v:.1f}" for k, v in scores.items()), flush=True)
            low, high = (middle, high) if scores[score] > VALOR[score] else (low, middle)
    return config
