"""The stages of the method: which files go into each and which come out.

    packed data --pretrain--> teacher.pt --label--> labels_teacher.npz --train--> han.pt --evaluate--> scores.json

A stage whose result is there already, made with the same settings from the same inputs, is not run again; one that was
interrupted continues. What cannot be read is a FileNotFoundError or a ValueError that names the file.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import uwav
from common.command import did_you_mean, working_in
from common.files import file_hash, made_by, plain, read_arrays, read_sealed, reading, write_arrays, write_sealed
from data.annotations import LLP_WEAK_FILES, UNAV_SPLITS, some
from data.layout import (check_source, dry_run, encoders_of, feature_set_of, made_alike, packed_feature_sets,
                         read_index)
from data.splits import load_source, load_target, load_text, load_truth, load_weak
from field import coleaf, jomold, mgn, mm_pyramid, prototypes
from train import lacking
from train.checkpoints import PARSERS, Run, check_fields, load_file, load_model, settings_of
from train.presets import ABLATION, PRESETS, for_features
from uwav import TargetSplit

BACKBONES = {"han": uwav.HAN, "mgn": mgn.MGN, "mm_pyramid": mm_pyramid.MMPyramid}
OWN_RULES = {jomold.JoMoLD: jomold, coleaf.CoLeaF: coleaf}  # all other parsers decide by the joint gate


@dataclass(frozen=True)
class Context:
    """The options that all stages share."""

    data: Path  # packed folder
    preset: str = "paper"
    seed: int = 0  # added to the published seeds
    device: str = "cpu"
    overrides: tuple[str, ...] = ()  # FIELD=VALUE
    stream: float = 0.0  # MB of training features that are read at a time; 0: all are kept in memory

    def config(self, config):
        """A config of the preset with the overrides that concern it, and this seed added to its own, if it has one."""
        config = changed(config, parse_overrides(self.overrides))
        return replace(config, seed=config.seed + self.seed) if hasattr(config, "seed") else config

    def target(self, split: str, features: str) -> TargetSplit:
        """A split of LLP, read once and kept on the device, unless it is to stay on disk."""
        return _target(self.identity, self.data, split, features, self.device, self.stream * (split == "train"))

    @property
    def identity(self) -> str:
        """Changes when anything in the packed folder does: index.json holds the hashes of all its files."""
        return read_index(self.data)["sha256"]


# Three splits of both feature sets, shared by all rows and seeds.
_target = functools.lru_cache(maxsize=6)(lambda identity, *of_what: load_target(*of_what))
FROM_DATA = ("classes", "audio_dim", "visual_dim", "visual_2d_dim", "visual_3d_dim")  # no fields for --set
CONFIGS = {uwav.TeacherConfig: "teacher.", uwav.PretrainConfig: "teacher.", uwav.HANConfig: "han.",
           uwav.TrainConfig: "han.", **{type(x): "han." for pair in PRESETS["paper"].field.values() for x in pair}}


def changed(config, values: dict):
    """A config with the values that concern it: of its fields, by their names alone or with whose they are before."""
    values = {name.removeprefix(CONFIGS[type(config)]): value for name, value in values.items()}
    return replace(config, **{name: value for name, value in values.items() if hasattr(config, name)})


def parse_overrides(overrides: tuple[str, ...], both: bool = False) -> dict[str, bool | int | float | str]:
    """("epochs=3", "han.heads=4") -> {"epochs": 3, "han.heads": 4}; ValueError for an unknown field, a wrong value and,
    if a command builds both a teacher and parsers, a name by which the networks of both would change."""
    types = {whose + f.name: f.type for config, prefix in CONFIGS.items() for f in fields(config)
             if f.name not in FROM_DATA for whose in ("", prefix)}
    read = {"int": int, "float": float, "str": str, "bool": {"true": True, "false": False}.__getitem__}
    values = {}
    for text in overrides:
        name, _, value = text.partition("=")
        if name not in types:
            meant = did_you_mean(name, types) or f"; there are {', '.join(x for x in types if '.' not in x)}"
            raise ValueError(f"--set {text}: no such field{meant}")
        if both and hasattr(uwav.TeacherConfig, name) and f"han.{name}" in types:
            raise ValueError(f"--set {text}: both networks have {name}; say teacher.{text}, han.{text}, or both")
        try:
            values[name] = read[types[name]](value.lower() if types[name] == "bool" else value)
        except (ValueError, KeyError):
            raise ValueError(f"--set {text}: {name} takes a value of type {types[name]}") from None
    for config in CONFIGS:  # now, not after the stages before
        try:
            check_fields(changed(config(), values))
        except ValueError as error:
            raise ValueError(f"--set {error}") from None
    return values


def check_finished(path: Path, settings: dict, made_with: dict | None = None) -> None:
    if made_with is None:
        with reading(path, "{cause}; delete it, and the same command makes it again"):
            made_with = settings_of(path)
    if made_with != settings:
        raise ValueError(f"{path}: made with other settings or other data; delete it or choose another folder")
    path.with_suffix(".state.pt").unlink(missing_ok=True)  # of a run that was killed at its very end
    print(f"{path}: finished before, kept", flush=True)


# ---- pretrain, label, train, evaluate ------------------------------------------------------------

def alone(stage: Callable) -> Callable:
    """One run at a time in the folder that a stage writes to, its second argument."""

    @functools.wraps(stage)  # which worker processes find by its name
    def run(context: Context, out: Path, *options, **named) -> None:
        with working_in(out):
            return stage(context, out, *options, **named)

    return run


@alone
def pretrain(context: Context, out: Path) -> None:
    """Teacher on UnAV -> out/teacher.pt, teacher.jsonl (history)."""
    index, preset = read_index(context.data), PRESETS[context.preset]
    if "unav" not in index:
        raise ValueError(f"{context.data}: your own data have no UnAV part to pre-train on; bring a teacher from "
                         "elsewhere, `python uwav.py label --teacher FILE`, or do without, `--per-segment`")
    model_config, config = context.config(preset.teacher), context.config(preset.pretrain)
    settings = dict(data=context.identity, dry_run=dry_run(index), encoders=encoders_of(index),
                    model=asdict(model_config), training=asdict(config))
    settings |= dict(stream=context.stream) if context.stream else {}
    path = out / "teacher.pt"
    if path.exists():
        return check_finished(path, settings)
    data, validation, test = (load_source(context.data, s, context.device, context.stream * (s == "train"))
                              for s in UNAV_SPLITS)
    text = load_text(context.data, "unav", context.device)
    model = uwav.train_teacher(data, validation, text, model_config, config, Run(path, "teacher", settings))
    scores = [uwav.teacher_scores(model, split, text) for split in (validation, test)]
    print(f"{path}: AV F-score on UnAV validation {scores[0]['av']:.1f}, test {scores[1]['av']:.1f}", flush=True)
    if warning := dead_branch(scores[0]):
        print(f"WARNING: {warning}", flush=True)


def dead_branch(scores: dict[str, float]) -> str:
    """A sentence, with what helps, if a branch of the teacher has fallen asleep; empty if both are awake."""
    dead = {m: x for m in ("audio", "visual") if (x := scores[f"spread_{m}"]) < uwav.DEAD_BRANCH}
    if not dead:
        return ""
    return (f"the teacher's {' and '.join(dead)} branch is dead: its logits hardly move within a video (spread "
            f"{min(dead.values()):.2f}), so it labels every second alike; a lower rate or a longer warm-up helps "
            "(--set peak_lr=..., --set warmup=...)")


class Labels(NamedTuple):
    """What `label` writes: logits of every split and the thresholds; hard and soft labels follow from them."""

    settings: dict
    logits: dict[str, tuple[Tensor, Tensor]]  # split -> audio, visual (N, T, C)
    thresholds: tuple[Tensor, Tensor]  # audio, visual (C,)
    weakly: dict[str, list[str]]  # modality -> the classes with a threshold from weak labels


@alone
def label(context: Context, out: Path, teacher: Path | None, rule: str = "val", try_out: bool = False,
          own: Path | None = None) -> None:
    """Logits and thresholds on LLP -> out/labels_teacher.npz or, without a teacher, out/labels_segment.npz; from a
    parser's own idea of the classes (field/prototypes.py) out/labels_prototypes.npz.

    rule: a key of THRESHOLDS. try_out: take a teacher that has seen nothing real."""
    index = read_index(context.data)
    model, ours = teacher and load_model(teacher, context.device, kind=uwav.Teacher), dry_run(index)
    saw = seen_by(teacher, ours, try_out)
    reasons = [f"a teacher of {saw}"] * (saw not in ("", ours)) + [ours] * bool(ours)
    settings = dict(data=context.identity, teacher=file_hash(teacher) if teacher else None, dry_run="; ".join(reasons))
    settings |= {} if rule == "val" else dict(thresholds=rule)
    settings |= dict(prototypes=file_hash(own)) if own else {}
    path, made_with = out / f"labels_{'teacher' if teacher else 'prototypes' if own else 'segment'}.npz", None
    with contextlib.suppress(FileNotFoundError, ValueError):  # damaged: made again
        made_with = read_labels(path, "cpu").settings
    if made_with:
        return check_finished(path, settings, made_with)
    if teacher:
        check_encoders(teacher, context)
    text = load_text(context.data, "llp", context.device)
    parser = own and load_model(own, context.device, kind=uwav.HAN)
    features = feature_set_of(parser.config, own) if parser else "clip_clap"
    splits = {s: context.target(s, features) for s in index["llp"]["videos"]}
    arrays, weakly, thresholds = {}, {}, []
    if parser:
        logits = prototypes.logits(parser, splits)
    else:
        logits = {s: uwav.teacher_logits(model, x, text) if model else segment_logits(x, text)
                  for s, x in splits.items()}
    if not all(z.isfinite().all() for pair in logits.values() for z in pair):
        raise ValueError(f"{teacher or own or context.data}: its logits are not finite; weights or features too large?")
    for m, modality in enumerate(("audio", "visual")):
        logit = {s: x[m] for s, x in logits.items()}
        threshold, from_train = choose_thresholds(logit, splits, modality, rule, "unav" not in index)
        weakly[modality] = [name for name, x in zip(index["llp"]["classes"], from_train.tolist()) if x]
        arrays |= {f"threshold_{modality}": threshold, **{f"{s}_{modality}": x for s, x in logit.items()}}
        thresholds.append(threshold)
    scores = {s: hard_scores(logits[s], thresholds, x.weak, x.audio_truth, x.visual_truth)
              for s, x in splits.items() if x.audio_truth is not None}
    write_sealed(path.with_suffix(".json"), scores)  # for people; first, so that it is never the older
    write_arrays(path, settings=np.array(json.dumps(settings)), weakly=np.array(json.dumps(weakly)),
                 **{k: v.cpu().numpy() for k, v in arrays.items()})
    if any(weakly.values()):
        print(f"{path}: thresholds from weak labels alone: "
              + ", ".join(f"{modality} of {some(names)}" for modality, names in weakly.items() if names))
    for s in [*scores][-1:]:
        print(f"{path}: hard labels on {s}: {one_line(scores[s])}")


def label_scores(path: Path, data: Path, split: str) -> dict[str, float]:
    """The ten scores of the hard labels of a file on a split."""
    labels = read_labels(path, "cpu", data)
    return hard_scores(labels.logits[split], labels.thresholds, load_weak(data, split), *load_truth(data, split))


def hard_scores(logits: Sequence[Tensor], thresholds: Sequence[Tensor], weak: Tensor,
                *truth: Tensor) -> dict[str, float]:
    """Those of the hard labels; per modality: logits and truth (N, T, C), thresholds (C,); weak (N, C)."""
    return uwav.parsing_scores(*(uwav.hard_labels(z, theta, weak) for z, theta in zip(logits, thresholds)), *truth)


def check_encoders(model: Path, context: Context) -> None:
    """ValueError if what a model learned from was made by other weights or another recipe than these data are."""
    index, learned = read_index(context.data), settings_of(model)
    made_alike({str(context.data): encoders_of(index), str(model): learned.get("encoders", {})})
    if not learned.get("encoders") and learned.get("data") != index["sha256"] and not dry_run(index):
        print(f"{model}: the weights behind its training features are not recorded, so {context.data} is not compared")


def seen_by(teacher: Path | None, ours: str = "", try_out: bool = False) -> str:
    """What a teacher was trained on, if nothing real; ValueError if our data are better, unless it is tried out."""
    if teacher is None:
        return ""
    with made_by("python uwav.py pretrain", teacher):
        saw = load_file(teacher).get("settings", dict(dry_run=""))["dry_run"]  # a released one has no settings
    if saw not in ("", ours) and not try_out:
        raise ValueError(f"{teacher}: this teacher has seen {saw} only, its labels for your videos would mean nothing; "
                         "--dry-run takes it all the same; docs/own_videos.md says where one comes from")
    return saw


def segment_logits(data: TargetSplit, text: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Without a teacher, as in VALOR: cosine similarity of each segment's own CLAP / CLIP embedding with the text,
    (C, 512) and (C, 768) -> audio, visual (N, T, C)."""
    return tuple(F.normalize(x, dim=-1) @ t.T for x, t in zip(data.inputs(slice(None)), text))


THRESHOLDS = {
    "val": "from the annotated seconds of val; for a class of your own data that has none, weak",
    "weak": "from the weak labels of train alone: a video has the class if any of its seconds passes",
    "all": "none: every second of a video that has the class",
}


def choose_thresholds(logit: dict[str, Tensor], splits: dict[str, TargetSplit], modality: str, rule: str,
                      own: bool) -> tuple[Tensor, Tensor]:
    """Thresholds, and which come from the weak labels of train, (C,) each; logit: split -> (N, T, C)."""
    rows = slice(None)
    if own and (there := lacking.present(splits["train"])[int(modality == "visual")]).any():  # (N,)
        rows = there
    threshold, _ = weak_thresholds(logit["train"][rows], splits["train"].weak[rows])
    from_train = torch.ones_like(threshold, dtype=torch.bool)
    if rule == "all":
        return torch.full_like(threshold, -torch.inf), ~from_train
    if rule == "weak" or "val" not in splits:
        return threshold, from_train
    truth = getattr(splits["val"], f"{modality}_truth")  # (N, T, C)
    fitted, _ = uwav.fit_thresholds(logit["val"], truth, splits["val"].weak)
    from_train = ~truth.bool().flatten(0, 1).any(0) & own  # (C,); on LLP such a class keeps the published -inf
    return torch.where(from_train, threshold, fitted), from_train


def weak_thresholds(logit: Tensor, weak: Tensor) -> tuple[Tensor, Tensor]:
    """Thresholds without any annotated second: by their highest logit, the best F1 of telling the videos that have the
    class in their weak label from those that have not. What it is biased to: docs/own_videos.md.

    logit (N, T, C), weak (N, C), both of the training split -> threshold, f1 (C,); f1 counts videos."""
    highest = logit.amax(1, keepdim=True)  # (N, 1, C)
    return uwav.fit_thresholds(highest, weak[:, None, :], torch.ones_like(weak))


def read_labels(path: Path, device: str, data: Path | None = None) -> Labels:
    """What `label` wrote, of these data, if they are named."""
    with made_by("python uwav.py label", path):
        arrays = read_arrays(path)
        settings, weakly = (dict(plain(json.loads(str(arrays.pop(name))))) for name in ("settings", "weakly"))
        settings["dry_run"]  # an earlier version's have none
        x = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        splits = [s for s in LLP_WEAK_FILES if s == "train" or f"{s}_audio" in x]
        labels = Labels(settings, {s: (x[f"{s}_audio"], x[f"{s}_visual"]) for s in splits},
                        (x["threshold_audio"], x["threshold_visual"]), weakly)
    if data and settings["data"] != read_index(data)["sha256"]:
        raise ValueError(f"{path}: made from other data than {data}; make them in another folder, with "
                         "`python uwav.py label`")
    return labels


def labels_beside(path: Path, data: Path, parser: Path | None = None) -> Labels:
    """Labels of these data: by the teacher beside them, if one is there; those that a parser learned from, if named."""
    labels = read_labels(path, "cpu", data)
    check_source(path, labels.settings["teacher"], path.with_name("teacher.pt"), "python uwav.py label")
    if parser:
        with made_by("python uwav.py train", parser):
            learned = settings_of(parser).get("labels")
        check_source(parser, learned, path, "python uwav.py train")
    return labels


@alone
def train(context: Context, out: Path, labels_path: Path | None, setting: str, features: str | None,
          backbone: str = "han") -> None:
    """HAN on LLP -> out/han.pt, han.jsonl (history). Labels are needed unless pseudo_label = none. backbone: what takes
    the place of the HAN, a key of BACKBONES."""
    index, preset = read_index(context.data), PRESETS[context.preset]
    features = features or packed_feature_sets(index)[0]
    model_config, config = (preset.han[features], preset.train) if backbone == "han" else preset.field[backbone]
    model_config = context.config(for_features(model_config, features, len(index["llp"]["classes"])))
    config = context.config(replace(config, **ABLATION[setting]))
    taught = config.pseudo_label != "none"
    if taught and labels_path is None:
        raise ValueError(f"setting {setting} learns from pseudo-labels: name the file with --labels")
    labels = read_labels(labels_path, context.device, context.data) if taught else None
    settings = dict(data=context.identity, features=features, labels=labels and file_hash(labels_path),
                    dry_run=labels.settings["dry_run"] if labels else dry_run(index), encoders=encoders_of(index),
                    classes=index["llp"]["classes"], model=asdict(model_config), training=asdict(config))
    settings |= dict(stream=context.stream) if context.stream else {}
    path = out / "han.pt"
    if path.exists():
        return check_finished(path, settings)
    data, validation = (context.target(s, features) if s in index["llp"]["videos"] else None for s in ("train", "val"))
    whole = "unav" in index or lacking.present(data).all()
    if not whole and not taught:
        raise ValueError(f"setting {setting}: some clips lack sound or picture, which only pseudo-labels can leave out")
    pseudo = labels and (uwav.pseudo_labels(labels.logits["train"], labels.thresholds, data.weak, config) if whole else
                         lacking.pseudo_labels(labels.logits["train"], labels.thresholds, data, config))
    run = Run(path, out.name, settings)
    if not whole:  # the shapes of these losses follow the batch, so --fast leaves them as they are
        fast, run.fast = run.fast, lambda f, one_shape: lacking.losses if f is uwav.han_losses else fast(f, one_shape)
    uwav.train_han(data, validation, pseudo, model_config, config, run, BACKBONES[backbone])
    if validation:
        best = max(run.history, key=lambda record: record["val"]["seg_type"])
        print(f"{path}: best epoch {best['epoch']}, with {best['val']['seg_type']:.1f} Type on validation", flush=True)
        truth = validation.audio_truth, validation.visual_truth
        if warning := no_better_than_silence(best["val"]["seg_type"], validation.weak, *truth):
            print(f"WARNING: {path}: {warning}", flush=True)
    else:
        print(f"{path}: no annotated video to choose an epoch by, the last one is kept", flush=True)


def no_better_than_silence(best: float, weak: Tensor, audio_truth: Tensor, visual_truth: Tensor) -> str:
    """A sentence, if the best Type of any epoch is no more than predicting nothing has; empty if it is."""
    silence = trivial_scores(weak, audio_truth, visual_truth)["nothing at all"]["seg_type"]
    return f"no epoch scored more than predicting nothing does, {silence:.1f}" * (best <= silence + 1e-6)


def evaluate(context: Context, checkpoint: Path, split: str, out: Path, gate: str | None = None) -> dict[str, float]:
    """The ten scores of a HAN -> out/scores_SPLIT.json, its probabilities -> out/predictions_SPLIT.npz.

    gate: of which gate a table tells besides, a key of GATES or "all"; the files hold what the published one gives."""
    index = read_index(context.data)
    if split not in index["llp"]["videos"]:
        raise ValueError(f"{context.data}: has no annotated split {split} to score, only "
                         + (", ".join(s for s in index["llp"]["videos"] if s != "train") or "training videos"))
    model = load_model(checkpoint, context.device, kind=PARSERS)
    made_from = dict(data=context.identity, model=file_hash(checkpoint))
    scores_path = out / f"scores_{split}.json"
    settings, classes = settings_of(checkpoint), index["llp"]["classes"]
    learned = settings.get("classes", [])  # not noted in a checkpoint of the released code
    if model.config.classes != len(classes) or learned not in ([], classes):
        raise ValueError(f"{checkpoint}: its classes are {model.config.classes} {some(learned, 3)}, those of "
                         f"{context.data} {len(classes)} {some(classes, 3)}; number and order must be the same")
    check_encoders(checkpoint, context)
    data = context.target(split, feature_set_of(model.config, checkpoint))
    rule = OWN_RULES.get(type(model))
    probabilities = (rule.joint if rule else uwav.han_probabilities)(model, data)  # (N, C), (N, T, C), (N, T, C)
    if not all(p.isfinite().all() for p in probabilities):
        raise ValueError(f"{checkpoint}: its probabilities are not finite")
    predicted = rule.predictions(model, data) if rule else uwav.gated_predictions(*probabilities)
    scores = uwav.parsing_scores(*predicted, data.audio_truth, data.visual_truth)
    with working_in(out):
        before = made_from
        with contextlib.suppress(FileNotFoundError, ValueError):  # what is damaged is written again
            before = read_sealed(scores_path, "python uwav.py evaluate").get("made_from", made_from)
        if checkpoint == out / "han.pt":  # trained anew, maybe: then the parser that its scores were of is gone
            before = before | dict(model=made_from["model"])
        if before != made_from:
            raise ValueError(f"{scores_path}: scores of another model or other data; choose another folder with --out")
        named = zip(("video", "audio", "visual", *(("audio_predicted", "visual_predicted") if rule else ())),
                    (*probabilities, *predicted))
        write_arrays(out / f"predictions_{split}.npz", made_from=np.array(json.dumps(made_from)),
                     **{k: p.cpu().numpy() for k, p in named})
        write_sealed(scores_path, dict(scores, made_from=made_from))
    print(f"{checkpoint}: {split}: {one_line(scores)}", flush=True)
    if gate and rule:
        raise ValueError(f"--gate: a {type(model).__name__} decides by a rule of its own; these gates are for a HAN")
    if gate:
        print(gate_table(gate_scores(model, data, *probabilities), gate), flush=True)
    if not any(x.any() for x in predicted):
        print(f"WARNING: {checkpoint} predicts no event at all; these are the scores of silence", flush=True)
    if "unav" not in index:
        for title, trivial in trivial_scores(data.weak, data.audio_truth, data.visual_truth).items():
            print(f"  for comparison, {title}: {one_line(trivial)}", flush=True)
        if why := settings.get("dry_run"):
            print(f"A DRY RUN ({why}): these numbers mean nothing", flush=True)
    return scores


def own(context: Context, out: Path, teacher: Path | None, try_out: bool = False) -> None:
    """Of data of your own: labels, by single seconds where there is no teacher; a parser; its scores, if any video is
    annotated."""
    who, row, setting = ("teacher", "full", "full") if teacher else ("segment", "valor", "binary")
    if not teacher:
        print("No --teacher: labels come from single seconds, without their context, as in VALOR. In the paper that "
              "costs\n3.9 points of Type (62.0 for 65.9), in the demo world 5.1; docs/own_videos.md")
    label(context, out, teacher, try_out=try_out)
    folder = out / "clip_clap" / row
    train(context, folder, out / f"labels_{who}.npz", setting, "clip_clap")
    for split in [s for s in read_index(context.data)["llp"]["videos"] if s != "train"][-1:]:
        evaluate(context, folder / "han.pt", split, folder)


# A class may occur only in a video whose probability is above uwav.GATE: that of both modalities together, each
# modality's own, or whatever it is.
GATES = {"joint": "joint (published)", "modality": "modality (as JoMoLD)", "none": "none"}


def modality_prob(model: uwav.HAN, out: uwav.HANOutput) -> Tensor:
    """HAN.pool without the weights over modalities, for each modality -> (B, 2, C), from 0 to 1. JoMoLD's gate."""
    if not hasattr(model, "time_pool"):  # field/leap.py has these probabilities instead
        return torch.stack([out.heard_prob, out.seen_prob], 1)  # (B, 2, C)
    pairs = (out.audio_feat, out.audio_logit), (out.visual_feat, out.visual_logit)  # (B, T, h) and (B, T, C) each
    return torch.stack([jomold.pool_time(model.time_pool(x), logit) for x, logit in pairs], 1)  # (B, 2, C)


@torch.no_grad()
def gate_scores(model: uwav.HAN, data: TargetSplit, video: Tensor, audio: Tensor,
                visual: Tensor) -> dict[str, dict[str, float]]:
    """The ten scores by each of GATES, of the same segment probabilities: video (N, C), audio, visual (N, T, C)."""
    batches = [slice(i, i + uwav.EVAL_BATCH) for i in range(0, len(data.weak), uwav.EVAL_BATCH)]
    own = torch.cat([modality_prob(model, model(*data.inputs(videos))) for videos in batches])  # (N, 2, C)
    scores = {}
    for name, gates in zip(GATES, ((video, video), own.unbind(1), [torch.ones_like(video)] * 2)):  # of audio, of visual
        predicted = [uwav.gated_predictions(gate, audio, visual)[m] for m, gate in enumerate(gates)]  # (N, T, C) each
        scores[name] = uwav.parsing_scores(*predicted, data.audio_truth, data.visual_truth)
    return scores


def gate_table(scores: dict[str, dict[str, float]], gate: str) -> str:
    """`gate`, or all of them: its scores, and in points what it brings over the published one."""
    lines = [table_row("gate", SHORT)]
    for name in GATES if gate == "all" else (gate,):
        lines.append(table_row(GATES[name], [f"{x:.1f}" for x in scores[name].values()]))
        if name != "joint":
            gained = [x - published for x, published in zip(scores[name].values(), scores["joint"].values())]
            lines.append(table_row("  over joint", [f"{x:+.1f}" for x in gained]))
    return "\n".join(lines)


SHORT = [name.replace("event_", "ev_") for name in uwav.SCORES]  # heads of columns


def table_row(title: str, cells: list[str], first: int = 34, wide: int = 10) -> str:
    """A line of a printed table; the widths of its first column and of the others."""
    return (f"{title:{first}s}" + "".join(f"{c:>{wide}s}" for c in cells)).rstrip()


def trivial_scores(weak: Tensor, audio_truth: Tensor, visual_truth: Tensor,
                   scores_of: Callable = uwav.parsing_scores) -> dict[str, dict[str, float]]:
    """The ten scores of two predictions that need no learning: weak (N, C), truth (N, T, C) -> title -> scores."""
    everything = weak[:, None].expand(audio_truth.shape)  # (N, T, C)
    return {title: scores_of(x, x, audio_truth, visual_truth) for title, x in (
        ("nothing at all", torch.zeros_like(everything)), ("every weak label, all the time", everything))}


def read_predictions(path: Path, data: Path, joint: bool = False, model: Path | None = None) -> tuple[Tensor, Tensor]:
    """What `evaluate` wrote of a split of `data`, decided by the system's own rule or by the joint gate: audio and
    visual, (N, T, C) bool; of this model, if it is named."""
    command = "python uwav.py evaluate" + " --split val" * path.stem.endswith("val")
    with made_by(command, path):
        arrays = read_arrays(path)
        made_from = json.loads(str(arrays.pop("made_from")))
        if made_from["data"] != read_index(data)["sha256"]:
            raise ValueError(f"made from other data than {data}")
        x = {name: torch.from_numpy(array) for name, array in arrays.items()}
        predicted = uwav.gated_predictions(x["video"], x["audio"], x["visual"])
        if "audio_predicted" in x and not joint:
            predicted = x["audio_predicted"], x["visual_predicted"]
    if model:
        check_source(path, made_from["model"], model, command)
    return predicted


def one_line(scores: dict[str, float]) -> str:
    return "  ".join(f"{name} {scores[name]:.1f}" for name in uwav.SCORES if name in scores)
