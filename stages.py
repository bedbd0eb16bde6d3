"""The command line of uwav.py: which files go into each stage of the method and which come out.

    packed data --pretrain--> teacher.pt --label--> labels_teacher.npz --train--> han.pt --evaluate--> scores.json

`ablate` runs all of it for every row of the ablation and every seed, and prints two tables and the differences between
rows. A stage whose result is there already, made with the same settings from the same inputs, is not run again; one
that was interrupted continues.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import evidence
import ranks
import uwav
from annotations import LLP_WEAK_FILES, UNAV_SPLITS, some
from data import FEATURE_SETS, TargetSplit, load_source, load_target, load_text, load_truth
from features import RANDOM_SOURCE, read_index
from files import (atomic, is_number, one_sentence_errors, read_history, read_json, read_npz, shaped, write_arrays,
                   write_json)
from scores import video_scores

# What the paper reports for LLP, for orientation beside our numbers.
PAPER_LABELS = {  # Table 2
    "segment": dict(seg_a=80.5, seg_v=61.7, seg_av=55.7, seg_type=66.0, seg_event=74.6),
    "teacher": dict(seg_a=78.4, seg_v=74.5, seg_av=65.5, seg_type=72.8, seg_event=78.4),
}
PAPER_TYPE = {  # its ablation, segment-level Type, features `base`
    "video_only": 54.0, "valor": 62.0, "binary": 64.2, "soft": 64.4,
    "soft_reweight": 65.4, "soft_mixup": 65.2, "full": 65.9,
}
PAPER_FULL = {  # the ten scores of UWAV: Table 1, and the supplement's table with CLIP and CLAP features
    "base": (64.2, 70.0, 63.4, 65.9, 63.9, 58.6, 66.7, 57.5, 60.9, 57.4),
    "clip_clap": (68.9, 72.3, 65.6, 68.9, 68.3, 63.5, 68.7, 59.6, 63.9, 62.4),
}
SCORES = tuple(f"{level}_{kind}" for level in ("seg", "event") for kind in ("a", "v", "av", "type", "event"))

# Rows of the ablation: (title, setting in uwav.ABLATION, whose labels).
ROWS = {
    "video_only": ("L_video only (HAN)", "video_only", None),
    "valor": ("hard labels, per segment (VALOR)", "binary", "segment"),
    "binary": ("hard labels of the teacher", "binary", "teacher"),
    "soft": ("soft labels", "soft", "teacher"),
    "soft_reweight": ("soft + class balance", "soft_reweight", "teacher"),
    "soft_mixup": ("soft + mixup", "soft_mixup", "teacher"),
    "full": ("all (UWAV)", "full", "teacher"),
}
# Which rows are compared: the paper's claims, one step at a time, then all of it.
COMPARISONS = (("valor", "binary"), ("binary", "soft"), ("soft", "soft_reweight"), ("soft", "soft_mixup"),
               ("soft", "full"), ("valor", "full"), ("video_only", "full"))
# `--sweep`: "full" with one field varied at a time. The grid is ours; it holds the published values, 1.7 and 0.5.
SWEEP = {"alpha": (0.5, 1.0, 1.7, 3.0), "W": (0.25, 0.5, 1.0, 2.0)}


# ---------------------------------------------------------------------------------------------
# What a stage works with
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Context:
    """The options that all stages share."""

    data: Path  # packed folder
    preset: str = "paper"
    seed: int = 0  # added to the published seeds
    device: str = "cpu"
    overrides: tuple[str, ...] = ()  # FIELD=VALUE
    loaded: dict = field(default_factory=dict, repr=False)  # what `target` has read; shared by all rows and seeds

    def config(self, config):
        """A config of the preset with the overrides that concern it."""
        return replace(config, **{k: v for k, v in parse_overrides(self.overrides).items() if hasattr(config, k)})

    def target(self, split: str, features: str) -> TargetSplit:
        """A split of LLP, read once and kept on the device."""
        if (split, features) not in self.loaded:
            self.loaded[split, features] = load_target(self.data, split, features, self.device)
        return self.loaded[split, features]

    @property
    def identity(self) -> str:
        """Changes when the packed data do."""
        return hashlib.sha256((self.data / "index.json").read_bytes()).hexdigest()[:16]


CONFIGS = (uwav.TeacherConfig, uwav.PretrainConfig, uwav.HANConfig, uwav.TrainConfig)


def parse_overrides(overrides: tuple[str, ...]) -> dict[str, bool | int | float | str]:
    """("epochs=3", ...) -> {"epochs": 3, ...}; ValueError for an unknown field or a value of the wrong type."""
    types = {f.name: f.type for config in CONFIGS for f in fields(config)}
    read = {"int": int, "float": float, "str": str, "bool": {"true": True, "false": False}.__getitem__}
    values = {}
    for text in overrides:
        name, _, value = text.partition("=")
        if name not in types:
            raise ValueError(f"--set {text}: no such field; there are {', '.join(types)}")
        try:
            values[name] = read[types[name]](value.lower() if types[name] == "bool" else value)
        except (ValueError, KeyError):
            raise ValueError(f"--set {text}: {name} takes a value of type {types[name]}") from None
    return values


def check_finished(path: Path, made_with: dict, settings: dict) -> None:
    if made_with != settings:
        raise ValueError(f"{path}: made with other settings or other data; delete it or choose another folder")
    path.with_suffix(".state.pt").unlink(missing_ok=True)  # of a run that was killed at its very end
    say(f"{path}: finished before, kept")


def say(line: str) -> None:
    """Under torchrun, one rank speaks for all."""
    if ranks.RANK == 0:
        print(line, flush=True)


# ---------------------------------------------------------------------------------------------
# pretrain, label, train, evaluate
# ---------------------------------------------------------------------------------------------


def alone(stage: Callable) -> Callable:
    """One run at a time in the folder that a stage writes to, its second argument."""

    @functools.wraps(stage)
    def run(context: Context, out: Path, *options, **named) -> None:
        with ranks.alone_in(out):
            return stage(context, out, *options, **named)

    return run


@alone
def pretrain(context: Context, out: Path) -> None:
    """Teacher on UnAV -> out/teacher.pt, teacher.jsonl (history), teacher.json (AV F-score on validation and test)."""
    need_source(context.data, read_index(context.data))
    preset = uwav.PRESETS[context.preset]
    model_config, config = context.config(preset.teacher), context.config(preset.pretrain)
    config = replace(config, seed=config.seed + context.seed)
    settings = dict(data=context.identity, model=asdict(model_config), training=asdict(config))
    path = out / "teacher.pt"
    if path.exists():
        check_finished(path, uwav.load_file(path).get("settings"), settings)
        if (out / "teacher.json").exists():
            return
    train, validation, test = (load_source(context.data, s, context.device) for s in UNAV_SPLITS)
    text = load_text(context.data, "unav", context.device)
    if path.exists():  # but it was not scored
        model = uwav.load_model(path, context.device)
    else:
        model = uwav.train_teacher(path, train, validation, text, model_config, config, settings)
    scores = {s: uwav.teacher_score(model, split, text) for s, split in (("validation", validation), ("test", test))}
    if ranks.RANK == 0:
        write_json(out / "teacher.json", scores)
    say(f"{path}: AV F-score on UnAV validation {scores['validation']:.1f}, test {scores['test']:.1f}")


def need_source(data: Path, index: dict) -> None:
    if "unav" not in index:
        raise ValueError(f"{data}: your own data have no UnAV part to pre-train on; bring a teacher from elsewhere, "
                         "`python uwav.py label --teacher FILE`, or do without, `--per-segment`")


@dataclass(frozen=True)
class Labels:
    """What `label` writes: logits of every split and the thresholds; hard and soft labels follow from them."""

    settings: dict
    logits: dict[str, tuple[Tensor, Tensor]]  # split -> audio, visual (N, T, C)
    thresholds: tuple[Tensor, Tensor]  # audio, visual (C,)


@alone
def label(context: Context, out: Path, teacher: Path | None, rule: str = "val") -> None:
    """Logits and thresholds on LLP -> out/labels_teacher.npz or, without a teacher, out/labels_segment.npz.

    Beside it, as .json: the segment- and event-level scores of the hard labels on val and test and, for each modality,
    the classes with a threshold from weak labels. rule: a key of THRESHOLDS.
    """
    index = read_index(context.data)
    model = teacher and uwav.load_model(teacher, context.device)
    if model and not isinstance(model, uwav.Teacher):
        raise ValueError(f"{teacher}: holds a {type(model).__name__}, expected a teacher")
    settings = dict(data=context.identity, teacher=identity_of_checkpoint(teacher) if teacher else None)
    settings |= {} if rule == "val" else dict(thresholds=rule)
    path = out / f"labels_{'teacher' if teacher else 'segment'}.npz"
    if path.exists() and path.with_suffix(".json").exists():
        return check_finished(path, read_labels(path, "cpu").settings, settings)
    text = load_text(context.data, "llp", context.device)
    splits = {s: context.target(s, "clip_clap") for s in index["llp"]["videos"]}
    arrays, quality, logits, weakly = {}, {}, {}, {}
    for s, x in splits.items():
        audio, visual, _ = x.inputs(slice(None))  # (N, T, 512) (N, T, 768)
        logits[s] = uwav.teacher_logits(model, x, text) if model else uwav.segment_logits(audio, visual, *text)
    thresholds = []
    for m, modality in enumerate(("audio", "visual")):
        logit = {s: x[m] for s, x in logits.items()}
        threshold, f1, from_train = choose_thresholds(logit, splits, modality, rule, "unav" not in index)
        weakly[modality] = [name for name, x in zip(index["llp"]["classes"], from_train.tolist()) if x]
        arrays |= {f"threshold_{modality}": threshold, f"f1_{modality}": f1}
        arrays |= {f"{s}_{modality}": logits[s][m] for s in splits}
        thresholds.append(threshold)
    for s in [s for s, x in splits.items() if x.audio_truth is not None]:
        hard = [uwav.hard_labels(z, theta, splits[s].weak) for z, theta in zip(logits[s], thresholds)]
        quality[s] = uwav.parsing_scores(*hard, splits[s].audio_truth, splits[s].visual_truth)
    write_arrays(path, settings=np.array(json.dumps(settings)), **{k: v.cpu().numpy() for k, v in arrays.items()})
    if any(weakly.values()):
        quality["weak_thresholds"] = weakly
        print(f"{path}: thresholds from weak labels alone: "
              + ", ".join(f"{modality} of {some(names)}" for modality, names in weakly.items() if names))
    write_json(path.with_suffix(".json"), quality)
    for s in [s for s in ("test", "val") if s in quality][:1]:
        print(f"{path}: hard labels on {s}: {one_line(quality[s])}")


THRESHOLDS = {
    "val": "from the annotated seconds of val; for a class of your own data that has none, weak",
    "weak": "from the weak labels of train alone: a video has the class if any of its seconds passes",
    "all": "none: every second of a video that has the class",
}


def choose_thresholds(logit: dict[str, Tensor], splits: dict[str, TargetSplit], modality: str, rule: str,
                      own: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Threshold, F1, and whether it comes from the weak labels of train, (C,) each; logit: split -> (N, T, C)."""
    threshold, f1 = weak_thresholds(logit["train"], splits["train"].weak)
    from_train = torch.ones_like(threshold, dtype=torch.bool)
    if rule == "all":
        return torch.full_like(threshold, -torch.inf), torch.full_like(f1, torch.nan), ~from_train
    if rule == "weak" or "val" not in splits:
        return threshold, f1, from_train
    truth = getattr(splits["val"], f"{modality}_truth")  # (N, T, C)
    fitted, fitted_f1 = uwav.fit_thresholds(logit["val"], truth, splits["val"].weak)
    from_train = ~truth.bool().flatten(0, 1).any(0) & own  # (C,); on LLP such a class keeps the published -inf
    return torch.where(from_train, threshold, fitted), torch.where(from_train, f1, fitted_f1), from_train


def weak_thresholds(logit: Tensor, weak: Tensor) -> tuple[Tensor, Tensor]:
    """Thresholds without any annotated second: by their highest logit, the best F1 of telling the videos that have the
    class in their weak label from those that have not. What it is biased to: README, "Your own data".

    logit (N, T, C), weak (N, C), both of the training split -> threshold, f1 (C,); f1 counts videos.
    """
    highest = logit.amax(1, keepdim=True)  # (N, 1, C)
    return uwav.fit_thresholds(highest, weak[:, None, :], torch.ones_like(weak))


def read_labels(path: Path, device: str) -> Labels:
    """Raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; make it with `python uwav.py label`")
    arrays, sizes = read_npz(path), set()
    try:
        settings = dict(json.loads(str(arrays.pop("settings"))))
        logits, thresholds = {}, tuple(arrays[f"threshold_{m}"] for m in ("audio", "visual"))
        for s in LLP_WEAK_FILES:
            if s == "train" or f"{s}_audio" in arrays:
                logits[s] = arrays[f"{s}_audio"], arrays[f"{s}_visual"]
                N, T, C = logits[s][0].shape
                sizes |= {(T, C), logits[s][1].shape[1:], (T, *thresholds[0].shape), (T, *thresholds[1].shape)}
                if logits[s][1].shape[0] != N or not all(np.isfinite(x).all() for x in logits[s]):
                    raise ValueError(f"its logits of {s} hold NaN or are of different numbers of videos")
        every = [*thresholds, *(x for pair in logits.values() for x in pair)]
        if len(sizes) > 1 or any(x.dtype != np.float32 or np.isnan(x).any() for x in every):
            raise ValueError("its arrays do not fit together")
    except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a label file ({error!r:.200})") from None
    audio, visual = (torch.from_numpy(x).to(device) for x in thresholds)
    return Labels(settings, {s: tuple(torch.from_numpy(x).to(device) for x in pair) for s, pair in logits.items()},
                  (audio, visual))


def identity_of_checkpoint(path: Path) -> dict | str:
    """The settings that our checkpoints carry (the same after an interruption), the hash of any other file."""
    return uwav.load_file(path).get("settings") or hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@alone
def train(context: Context, out: Path, labels_path: Path | None, setting: str, features: str) -> None:
    """HAN on LLP -> out/han.pt, han.jsonl (history). Labels are needed unless pseudo_label = none."""
    index = read_index(context.data)
    preset = uwav.PRESETS[context.preset]
    model_config = context.config(replace(preset.han[features], classes=len(index["llp"]["classes"])))
    config = context.config(replace(preset.train, **uwav.ABLATION[setting]))
    config = replace(config, seed=config.seed + context.seed)
    if config.pseudo_label == "none":
        labels = None
    elif labels_path is None:
        raise ValueError(f"setting {setting} learns from pseudo-labels: name the file with --labels")
    else:
        labels = read_labels(labels_path, context.device)
    settings = dict(data=context.identity, features=features, labels=labels and labels.settings,
                    model=asdict(model_config), training=asdict(config))
    path = out / "han.pt"
    if path.exists():
        return check_finished(path, uwav.load_file(path).get("settings"), settings)
    data, validation = (context.target(s, features) if s in index["llp"]["videos"] else None for s in ("train", "val"))
    if labels and labels.logits["train"][0].shape != (*data.audio.shape[:2], data.weak.shape[1]):
        raise ValueError(f"{labels_path}: holds labels (N, T, C) of {tuple(labels.logits['train'][0].shape)}, but "
                         f"{context.data} has {(*data.audio.shape[:2], data.weak.shape[1])}")
    pseudo = labels and uwav.pseudo_labels(labels.logits["train"], labels.thresholds, data.weak, config)
    uwav.train_han(path, out.name, data, validation, pseudo, model_config, config, settings)
    if ranks.RANK == 0:
        history = read_history(path.with_suffix(".jsonl"))
        if validation:
            best = max(history, key=lambda record: record["val"]["seg_type"])
            say(f"{path}: best epoch {best['epoch']}, validation: {one_line(best['val'])}")
        else:
            say(f"{path}: no annotated video to choose an epoch by, the last one is kept")


def evaluate(context: Context, checkpoint: Path, split: str, out: Path) -> dict[str, float]:
    """The ten scores of a HAN -> out/scores_SPLIT.json, its probabilities -> out/predictions_SPLIT.npz."""
    index = read_index(context.data)
    if split not in index["llp"]["videos"]:
        raise ValueError(f"{context.data}: has no annotated split {split} to score, only "
                         + (", ".join(s for s in index["llp"]["videos"] if s != "train") or "training videos"))
    model = uwav.load_model(checkpoint, context.device)
    if not isinstance(model, uwav.HAN):
        raise ValueError(f"{checkpoint}: holds a {type(model).__name__}, expected a HAN")
    if model.config.classes != len(index["llp"]["classes"]):
        raise ValueError(f"{checkpoint}: its classes are {model.config.classes}, "
                         f"those of {context.data} {len(index['llp']['classes'])}")
    features = "base" if model.config.audio_dim == uwav.HANConfig().audio_dim else "clip_clap"
    data = context.target(split, features)
    probabilities = uwav.han_probabilities(model, data)
    scores = uwav.parsing_scores(*uwav.gated_predictions(*probabilities), data.audio_truth, data.visual_truth)
    with ranks.alone_in(out):
        named = zip(("video", "audio", "visual"), probabilities)
        write_arrays(out / f"predictions_{split}.npz", **{k: p.cpu().numpy() for k, p in named})
        write_json(out / f"scores_{split}.json", scores)
    print(f"{checkpoint}: {split}: {one_line(scores)}", flush=True)
    return scores


def read_predictions(path: Path, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """What `evaluate` wrote, gated: audio and visual, bool of `shape`, (N, T, C).

    Raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; make it with `python uwav.py evaluate`")
    arrays, (N, T, C) = read_npz(path), shape
    for name, expected in dict(video=(N, C), audio=(N, T, C), visual=(N, T, C)).items():
        if name not in arrays:
            raise ValueError(f"{path}: holds no probabilities named {name}")
        x = shaped(arrays[name], expected, f"{path}, {name}")
        highest = 2 if name == "video" else 1  # HAN.pool
        if x.dtype != np.float32 or not ((x >= 0) & (x <= 1.001 * highest)).all():
            raise ValueError(f"{path}: {name} holds something else than probabilities (float32)")
    return uwav.gated_predictions(*(torch.from_numpy(arrays[name]) for name in ("video", "audio", "visual")))


def one_line(scores: dict[str, float]) -> str:
    return "  ".join(f"{name} {scores[name]:.1f}" for name in SCORES if name in scores)


# ---------------------------------------------------------------------------------------------
# ablate: every row, every seed, two tables, and what separates the rows
# ---------------------------------------------------------------------------------------------


@alone
def ablate(context: Context, run: Path, seeds: int, features: list[str] | None, sweep: bool = False) -> None:
    """All stages for every seed, feature set and row -> run/seed*/..., run/ablation.json, run/tables.txt.

    Layout: labels_segment.npz, seedK/{teacher.pt, labels_teacher.npz}, seedK/FEATURES/ROW/{han.pt, scores_test.json}.
    """
    if seeds < 1:
        raise ValueError(f"--seeds {seeds}: at least one seed is needed")
    index = read_index(context.data)
    need_source(context.data, index)
    packed = {*index["llp"]["features"], None}
    features = features or [name for name, arrays in FEATURE_SETS.items() if packed.issuperset(arrays)]
    label_scores, scores, swept = {"segment": [], "teacher": []}, {}, {}
    label(context, run, None)
    for k in range(seeds):
        seeded, folder = replace(context, seed=context.seed + k), run / f"seed{context.seed + k}"
        pretrain(seeded, folder)
        label(seeded, folder, folder / "teacher.pt")
        for name, where in (("segment", run), ("teacher", folder)):
            label_scores[name].append(read_label_quality(where / f"labels_{name}.json"))
        for feature_set in features:
            for row, (_, setting, source) in ROWS.items():
                out = folder / feature_set / row
                labels = source and (run if source == "segment" else folder) / f"labels_{source}.npz"
                train(seeded, out, labels, setting, feature_set)
                result = evaluate(seeded, out / "han.pt", "test", out)
                scores.setdefault(feature_set, {}).setdefault(row, []).append(result)
            for name, values in SWEEP.items() if sweep else ():
                for value in values:
                    result = sweep_one(seeded, folder / feature_set, name, value, feature_set)
                    swept.setdefault(feature_set, {}).setdefault(name, {}).setdefault(str(value), []).append(result)
    seed_numbers = [context.seed + k for k in range(seeds)]
    differences = {f: differences_of(context.data, run, seed_numbers, f) for f in features}
    write_json(run / "ablation.json", dict(
        seeds=seed_numbers, source=index["source"], preset=context.preset, overrides=context.overrides,
        labels=label_scores, scores=scores, differences=differences, sweep=swept))
    text = tables(label_scores, scores, index["source"]) + "".join(
        [difference_table(f, d, seeds) for f, d in differences.items()] + [sweep_table(f, x) for f, x in swept.items()])
    with atomic(run / "tables.txt") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"\n{text}")


def sweep_one(context: Context, folder: Path, name: str, value: float, features: str) -> dict[str, float]:
    """Scores of row "full" with one field of TrainConfig set; the row itself where that changes nothing."""
    out = folder / f"full_{name}_{value:g}"
    if getattr(context.config(uwav.PRESETS[context.preset].train), name) == value:
        out = folder / "full"
    changed = replace(context, overrides=(*context.overrides, f"{name}={value}"))
    train(changed, out, folder.parent / "labels_teacher.npz", "full", features)
    return evaluate(changed, out / "han.pt", "test", out)


def differences_of(data: Path, run: Path, seeds: list[int], features: str) -> list[dict]:
    """evidence.paired_differences between the rows of a finished ablation, from its saved predictions."""
    truth, scores = load_truth(data, "test"), {}
    for row in ROWS:
        paths = [run / f"seed{k}" / features / row / "predictions_test.npz" for k in seeds]
        scores[row] = [video_scores(*read_predictions(path, truth[0].shape), *truth) for path in paths]
    return evidence.paired_differences(scores, COMPARISONS)


def read_label_quality(path: Path) -> dict[str, float]:
    """The scores on test that `label` wrote."""
    content = read_json(path)
    if not isinstance(content, dict) or not _is_scores(content.get("test")):
        raise ValueError(f"{path}: holds no scores of the test split; delete it, and they are made again")
    return content["test"]


def read_ablation(path: Path) -> dict:
    """What `ablate` wrote. Raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the ablation has not run (`python uwav.py ablate`)")
    content = read_json(path)
    try:
        S, rows = len(content["seeds"]), list(content["scores"].values())
        swept = [values for fields in content["sweep"].values() for values in fields.values()]
        lists = [x for group in (content["labels"], *rows, *swept) for x in group.values()]
        whole = (S > 0 and all(type(seed) is int for seed in content["seeds"])
                 and all(isinstance(x, str) for x in (content["preset"], *content["overrides"]))
                 and set(content["labels"]) == set(PAPER_LABELS) and set(content["scores"]) <= set(FEATURE_SETS)
                 and all(set(x) <= set(ROWS) for x in rows)
                 and all(set(fields) <= set(SWEEP) for fields in content["sweep"].values())
                 and all(values and all(is_number(float(value)) for value in values) for values in swept)
                 and all(len(x) == S and all(map(_is_scores, x)) for x in lists)
                 and set(content["differences"]) == set(content["scores"])
                 and all(x and all(_is_difference(d, S) for d in x) for x in content["differences"].values()))
    except (KeyError, TypeError, AttributeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(f"{path}: damaged, or of another version; run `python uwav.py ablate` again")
    return content


def _is_scores(x: object) -> bool:
    """Whether these are the ten scores, in percent."""
    return isinstance(x, dict) and all(is_number(x.get(score)) and 0 <= x[score] < 100.01 for score in SCORES)


def _is_difference(x: dict, seeds: int) -> bool:
    """Whether this is one of evidence.paired_differences."""
    found = [x["scores"][score] for score in SCORES]
    return {x["first"], x["second"]} <= set(ROWS) and all(
        len(d["interval"]) == 2 and len(d["by_seed"]) == seeds
        and all(is_number(v) and abs(v) < 100.01 for v in (d["mean"], *d["interval"], *d["by_seed"])) for d in found)


def tables(label_scores: dict, scores: dict, source: object) -> str:
    """Label quality and parsing scores as text; each of our rows above the paper's."""
    if source == "pack":
        note = "Paper's rows: LLP, the published numbers."
    elif source == RANDOM_SOURCE:
        note = "OUR FEATURES COME FROM ENCODERS WITH RANDOM WEIGHTS: a dry run. Do not compare the numbers."
    else:
        note = ("Rows and columns named `paper`: the published numbers, on LLP with real features, for orientation.\n"
                "OURS IS ANOTHER DATASET: its features are invented. Do not compare the numbers.")
    seeds = len(next(iter(label_scores.values())))
    spread = f"mean±standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    segment_level = SCORES[:5]
    lines = [f"Label quality: segment-level F-scores of the hard labels on the test split ({spread})",
             table_row("", [s[4:] for s in segment_level])]
    for name, title in (("segment", "per segment, no teacher"), ("teacher", "teacher")):
        lines.append(table_row(title, [cell([s[c] for s in label_scores[name]]) for c in segment_level]))
        lines.append(table_row("  paper", [f"{PAPER_LABELS[name][c]:.1f}" for c in segment_level]))
    for feature_set, rows in scores.items():
        header = [s.replace("event_", "ev_") for s in SCORES]
        header += ["  | paper: seg_type"] if paper_column(feature_set, source) else []
        lines += ["", f"Parsing scores on the test split, features {feature_set} ({spread})", table_row("", header)]
        for row, values in rows.items():
            paper_type = f"{PAPER_TYPE[row]:.1f}" if paper_column(feature_set, source) else ""
            lines.append(table_row(ROWS[row][0], [cell([v[c] for v in values]) for c in SCORES] + [paper_type]))
        lines.append(table_row(f"  paper, all (UWAV), {feature_set}", [f"{x:.1f}" for x in PAPER_FULL[feature_set]]))
    return "\n".join([*lines, "", note, ""])


def difference_table(features: str, differences: list[dict], seeds: int) -> str:
    """Paired differences as text, segment- and event-level Type."""
    shown = ("seg_type", "event_type")
    kind = "points [95% interval over videos]" + (", ± over seeds" if seeds > 1 else "")
    lines = ["", f"Paired differences on the test split, features {features}: {kind}",
             f"{'':68s}" + "".join(f"{s:>30s}" for s in shown)]
    for d in differences:
        cells = []
        for score in shown:
            x = d["scores"][score]
            low, high = x["interval"]
            spread = f" ±{statistics.stdev(x['by_seed']):.1f}" if seeds > 1 else ""
            cells.append(f"{x['mean']:+.1f} [{low:+.1f}, {high:+.1f}]{spread}")
        title = f"{ROWS[d['first']][0]} -> {ROWS[d['second']][0]}"
        lines.append(f"{title:68s}" + "".join(f"{c:>30s}" for c in cells))
    note = ("The interval says how much the choice of test videos matters (bootstrap), the trained models being what\n"
            "they are; it does not cover the training seed.")
    return "\n".join([*lines, "", note, ""])


def sweep_table(features: str, swept: dict[str, dict[str, list[dict]]]) -> str:
    """The sweep as text; the grid is ours."""
    lines = ["", f"All (UWAV) with one setting varied at a time, features {features} (the grid is ours)",
             table_row("", ["seg_type", "ev_type"])]
    for name, values in swept.items():
        for value, scores in values.items():
            cells = [cell([s[c] for s in scores]) for c in ("seg_type", "event_type")]
            lines.append(table_row(f"{name} = {value}", cells))
    return "\n".join([*lines, ""])


def paper_column(feature_set: str, source: object) -> bool:
    """The paper's ablation is on features `base`; beside real `clip_clap` features it would mislead."""
    return feature_set == "base" or source != "pack"


def cell(values: list[float]) -> str:
    return f"{values[0]:.1f}" if len(values) == 1 else f"{statistics.mean(values):.1f}±{statistics.stdev(values):.1f}"


def table_row(title: str, cells: list[str]) -> str:
    return (f"{title:34s}" + "".join(f"{c:>10s}" for c in cells)).rstrip()


# ---------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="uwav.py",
        description="UWAV: learn from video-level labels which events are audible and visible in every second.",
        epilog="Stages in order: pretrain, label, train, evaluate; ablate runs them all for every row of the ablation. "
               "DATA is a packed folder made by `python features.py pack` or `python demo_world.py make`.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, *, trains: bool) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.",
                                  formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.add_argument("data", type=Path, metavar="DATA", help="packed folder")
        sub.add_argument("--device", help="cpu, cuda or cuda:1; None: cuda where there is a GPU")
        if trains:
            sub.add_argument("--preset", choices=uwav.PRESETS, default="paper",
                             help="paper: the published run; demo: small models for a CPU")
            sub.add_argument("--seed", type=int, default=0, help="added to the published seeds; 0 is the published run")
            sub.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="overrides",
                             help="change a field of the configurations at the top of uwav.py, "
                                  "e.g. --set temperature=1 (repeatable)")
            sub.add_argument("--fast", action="append_const", const="fast=true", dest="overrides",
                             help="train in bf16 and, on a GPU, with compiled kernels; the same as --set fast=true")
        return sub

    sub = command("pretrain", "pre-train the teacher on UnAV", trains=True)
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for teacher.pt and its history")
    sub = command("label", "write pseudo-labels for LLP: logits, and thresholds fitted on validation", trains=False)
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for labels_teacher.npz or labels_segment.npz")
    who = sub.add_mutually_exclusive_group(required=True)
    who.add_argument("--teacher", type=Path, help="teacher.pt, or a teacher checkpoint of the released code")
    who.add_argument("--per-segment", action="store_true",
                     help="no teacher: similarity of each segment's own CLIP / CLAP embedding with the text (VALOR)")
    sub.add_argument("--thresholds", choices=THRESHOLDS, default="val",
                     help="; ".join(f"{rule}: {text}" for rule, text in THRESHOLDS.items()))
    sub = command("train", "train the HAN on LLP with weak labels and pseudo-labels", trains=True)
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for han.pt and its history")
    sub.add_argument("--labels", type=Path, help="labels_teacher.npz or labels_segment.npz")
    sub.add_argument("--setting", choices=uwav.ABLATION, default="full", help="row of the ablation; full is UWAV")
    sub.add_argument("--features", choices=FEATURE_SETS, default="base",
                     help="base: VGGish, ResNet-152, R(2+1)D; clip_clap: CLIP and CLAP")
    sub = command("evaluate", "the ten parsing scores of a trained HAN", trains=False)
    sub.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="han.pt, or one of the released code")
    sub.add_argument("--split", choices=("val", "test"), default="test")
    sub.add_argument("--out", type=Path,
                     help="folder for scores_SPLIT.json and predictions_SPLIT.npz; None: that of the checkpoint")
    sub = command("ablate", "every stage, every row of the ablation, every seed; prints the tables", trains=True)
    sub.add_argument("out", type=Path, metavar="RUN", help="folder for everything")
    sub.add_argument("--seeds", type=int, default=1, help="how many, beginning with --seed")
    sub.add_argument("--features", choices=FEATURE_SETS, nargs="+", help="None: all that were packed")
    grid = "; ".join(f"{field}: {', '.join(map(str, values))}" for field, values in SWEEP.items())
    sub.add_argument("--sweep", action="store_true", help=f"also train UWAV with one setting varied at a time ({grid})")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with one_sentence_errors():
        if ranks.WORLD > 1 and options.command not in ("pretrain", "train"):
            raise ValueError(f"{options.command} runs in one process; torchrun is for pretrain and train")
        trains = {k: getattr(options, k) for k in ("preset", "seed") if hasattr(options, k)}
        overrides = tuple(getattr(options, "overrides", ()))
        parse_overrides(overrides)
        device = ranks.connect(ranks.choose_device(options.device))
        context = Context(options.data, device=device, overrides=overrides, **trains)
        if options.command == "pretrain":
            pretrain(context, options.out)
        elif options.command == "label":
            label(context, options.out, options.teacher, options.thresholds)
        elif options.command == "train":
            train(context, options.out, options.labels, options.setting, options.features)
        elif options.command == "evaluate":
            evaluate(context, options.checkpoint, options.split, options.out or options.checkpoint.parent)
        else:
            ablate(context, options.out, options.seeds, options.features, options.sweep)
        ranks.disconnect()


if __name__ == "__main__":
    sys.exit("run `python uwav.py`")
