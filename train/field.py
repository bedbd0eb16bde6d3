"""The paper's comparison: every system of its tables on the same data, each as it was published (field/).

Three tables, as in the paper: the systems (Table 1), their labels (Table 2), and two other networks in the place of the
HAN. Rows that the ablation has are taken from it. Seeds S, videos N of the test split.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

import uwav
from common.files import atomic, read_arrays, write_arrays, write_sealed
from data.layout import dry_run, encoders_of, packed_feature_sets, read_index
from data.splits import load_text, load_truth
from field import coleaf, jomold, leap
from train.ablation import (PAPER_FULL, PAPER_LABELS, ROWS, Table, as_text, cell, difference_table, files_scored,
                            our_row, over_seeds, paired_differences, paper_row, train_row, train_rows)
from train.checkpoints import Run, load_model
from train.presets import PRESETS, for_features
from train.stages import (SHORT, Context, alone, check_finished, evaluate, label, need_source, pretrain, read_labels,
                          read_predictions, read_quality)
from uwav import SCORES


class System(NamedTuple):
    title: str
    rule: str  # when a second of a video has a class
    kept: str  # the validation score that chose the epoch
    paper: tuple[float, ...] | None  # its ten published scores, features `base`: Table 1 of the paper


JOINT = "p > 0.5, and so the video's, of both senses"
SYSTEMS = {
    "video_only": System("HAN", JOINT, "Type", (60.1, 52.9, 48.9, 54.0, 55.4, 51.3, 48.9, 43.0, 47.7, 48.0)),
    "jomold": System("JoMoLD", "p >= 0.5, and so the video's, of that sense", "event-level A",
                     (61.3, 63.8, 57.2, 60.8, 59.9, 53.9, 59.9, 49.6, 54.5, 52.5)),
    "valor": System("VALOR-style", JOINT, "Type", (61.8, 65.9, 58.4, 62.0, 61.5, 55.4, 62.6, 52.2, 56.7, 54.2)),
    "prototypes": System("prototype labels", JOINT, "Type", None),
    "coleaf": System("CoLeaF", "p >= 0.25, and the video's, of that sense, >= 0.52", "mean of the Ao / Vo scores",
                     (64.2, 64.4, 59.3, 62.6, 62.5, 57.6, 63.2, 54.2, 57.9, 55.6)),
    "leap": System("LEAP", JOINT, "Type", (62.7, 65.6, 59.3, 62.5, 61.8, 56.4, 63.1, 54.1, 57.8, 55.0)),
    "full": System("UWAV", JOINT, "Type", PAPER_FULL["base"]),
}
TRAINED_HERE = [name for name in SYSTEMS if name not in ROWS]  # the others are rows of the ablation
NETWORKS = {"han": "HAN", "mgn": "MGN", "mm_pyramid": "MM-Pyramid"}
LABELS = {"video_only": "weak alone", "valor": "VALOR's", "full": "UWAV's"}  # rows of the ablation
LABELLERS = {"segment": "per segment, no teacher (VALOR)", "prototypes": "prototypes", "teacher": "teacher (UWAV)"}
CHOICES = (*TRAINED_HERE, *list(NETWORKS)[1:])


@alone
def run_systems(context: Context, run: Path, seeds: int, features: str | None, systems: list[str] | None) -> None:
    """Train what is missing -> run/seedK/FEATURES/field/SYSTEM/..., run/field.json, run/field.txt."""
    if seeds < 1:
        raise ValueError(f"--seeds {seeds}: at least one seed is needed")
    index, chosen = read_index(context.data), systems or CHOICES
    need_source(context.data, index)
    features = features or packed_feature_sets(index)[0]
    numbers = [context.seed + k for k in range(seeds)]
    label(context, run, None)
    first, second = [], []  # jobs; the second need what the first make
    for k in numbers:
        seeded, folder = replace(context, seed=k), run / f"seed{k}"
        pretrain(seeded, folder)
        label(seeded, folder, folder / "teacher.pt")
        rows, field = folder / features, folder / features / "field"
        for name in LABELS:
            row = ROWS[name]
            labels = row.labels and (run if row.labels == "segment" else folder) / f"labels_{row.labels}.npz"
            first.append(partial(train_row, seeded, rows / name, labels, row.setting, features))
            first += [partial(train_row, seeded, field / f"{net}_{name}", labels, row.setting, features, net)
                      for net in list(NETWORKS)[1:] if net in chosen]
        if "leap" in chosen:
            first.append(partial(train_leap, seeded, field / "leap", run / "labels_segment.npz", features))
        if {"jomold", "coleaf"} & set(chosen):
            first.append(partial(estimate_noise, seeded, field / "noise", features))
        second += [partial(train_denoised, seeded, field / name, field / "noise/ratios.npz", features, name)
                   for name in ("jomold", "coleaf") if name in chosen]
        if "prototypes" in chosen:
            second.append(partial(train_on_prototypes, seeded, field / "prototypes", rows / "video_only/han.pt",
                                  features))
    results = {}
    for jobs in (first, second):
        for job, result in zip(jobs, train_rows(jobs, run) if jobs else ()):
            results.setdefault(job.args[1].name, []).append(result)
    results.pop("noise", None)
    write_tables(context, run, numbers, features, results, files_scored(run, first + second))


def train_leap(context: Context, out: Path, labels_path: Path, features: str) -> dict[str, float]:
    """LEAP, with VALOR's labels."""
    labels = read_labels(labels_path, context.device, context.data)
    weak = context.target("train", features).weak
    hard = uwav.pseudo_labels(labels.logits["train"], labels.thresholds, weak,
                              uwav.TrainConfig(pseudo_label="hard", reweight=False))
    names = leap.name_vectors(*load_text(context.data, "llp", context.device))  # (C, 512 + 768)
    train_system(context, out, features, "leap", leap.train, labels.settings, hard, names)
    return evaluate(context, out / "han.pt", "test", out)


def estimate_noise(context: Context, out: Path, features: str) -> dict[str, float]:
    """JoMoLD's first two stages: a parser without cross-attention -> which share of the labels is noise, by class."""
    train_system(context, out, features, "noise", jomold.train, {}, None)
    ratios = jomold.noise_ratios(load_model(out / "han.pt", context.device), context.target("train", features))
    write_arrays(out / "ratios.npz", **{m: x.cpu().numpy() for m, x in zip(("audio", "visual"), ratios)})
    return {}  # nothing that a table holds


def train_denoised(context: Context, out: Path, ratios: Path, features: str, name: str) -> dict[str, float]:
    arrays = read_arrays(ratios)
    given = tuple(torch.from_numpy(arrays[m]).to(context.device) for m in ("audio", "visual"))  # (C,) each
    train_it = dict(jomold=jomold.train, coleaf=coleaf.train)[name]
    train_system(context, out, features, name, train_it, dict(ratios=[x.tolist() for x in given]), given)
    return evaluate(context, out / "han.pt", "test", out)


def train_on_prototypes(context: Context, out: Path, parser: Path, features: str) -> dict[str, float]:
    """A HAN that learnt from weak labels alone labels its own training videos; another one learns from that."""
    label(context, out, None, own=parser)
    return train_row(context, out, out / "labels_prototypes.npz", "binary", features)


@alone
def train_system(context: Context, out: Path, features: str, name: str, train_it: Callable, made_from: dict,
                 *learns_from) -> None:
    """One of the systems with a loop of their own -> out/han.pt, and its history."""
    index, path = read_index(context.data), out / "han.pt"
    model_config, config = PRESETS[context.preset].field[name]
    model_config = context.config(for_features(model_config, features, len(index["llp"]["classes"])))
    config = context.config(config)
    settings = dict(data=context.identity, features=features, dry_run=dry_run(index), made_from=made_from,
                    encoders=encoders_of(index), classes=index["llp"]["classes"], model=asdict(model_config),
                    training=asdict(config))
    data, validation = (context.target(s, features) for s in ("train", "val"))
    if path.exists():
        return check_finished(path, settings)
    train_it(data, validation, *learns_from, model_config, config, Run(path, name, settings))


def write_tables(context: Context, run: Path, seeds: list[int], features: str, results: dict[str, list[dict]],
                 made_from: dict[str, str]) -> None:
    """The three tables and what separates each system from UWAV -> run/field.json, run/field.txt."""
    truth, folders = load_truth(context.data, "test"), [run / f"seed{k}" / features for k in seeds]
    joint, by_video = {}, {}
    for name in (x for x in SYSTEMS if x in results):
        paths = [folder / ("" if name in ROWS else "field") / name / "predictions_test.npz" for folder in folders]
        joint[name] = [uwav.parsing_scores(*read_predictions(path, context.data, joint=True), *truth)["seg_type"]
                       for path in paths]
        made = [read_predictions(path, context.data, model=path.with_name("han.pt")) for path in paths]
        by_video[name] = [uwav.video_scores(*x, *truth) for x in made]
    labels = {name: [read_quality(path)["test"] for path in paths] for name, paths in (
        ("segment", [run / "labels_segment.npz"] * len(seeds)),
        ("prototypes", [folder / "field/prototypes/labels_prototypes.npz" for folder in folders]),
        ("teacher", [folder.parent / "labels_teacher.npz" for folder in folders]))
        if name != "prototypes" or name in results}
    differences = paired_differences(by_video, tuple((name, "full") for name in by_video if name != "full"))
    content = dict(data=read_index(context.data)["sha256"], made_from=made_from, seeds=seeds, features=features,
                   preset=context.preset, overrides=context.overrides, scores=results, joint=joint, labels=labels,
                   differences=differences)
    write_sealed(run / "field.json", content)
    text = as_text(tables(content)) + difference_table(
        features, differences, len(seeds), {name: system.title for name, system in SYSTEMS.items()})
    with atomic(run / "field.txt") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"\n{text}")


def tables(field: dict) -> list[Table]:
    """Those of field.json, the paper's rows beneath ours."""
    scores, spread = field["scores"], over_seeds(len(field["seeds"]))

    systems, labels, names = [], [], [name for name in SYSTEMS if name in scores]
    for name in names:
        systems.append([*our_row(SYSTEMS[name].title, scores[name]), cell(field["joint"][name])])
        systems += [paper_row(SYSTEMS[name].paper)] if SYSTEMS[name].paper else []
    for name, values in field["labels"].items():
        labels.append(our_row(LABELLERS[name], values, SCORES[:5]))
        labels += [paper_row(PAPER_LABELS[name].values())] if name in PAPER_LABELS else []
    networks = [our_row(f"{title}, {whose}", scores[name]) for (net, title), (whose_row, whose) in itertools.product(
        NETWORKS.items(), LABELS.items()) if (name := whose_row if net == "han" else f"{net}_{whose_row}") in scores]
    return [
        (f"Table 1: parsing scores on the test split, features {field['features']} ({spread}). Each system decides by "
         "its own published rule; joint: segment-level Type if all decided like the HAN", [*SHORT, "joint"], systems),
        ("Rules: when a second has a class; and the validation score that chose the epoch", [],
         [[SYSTEMS[name].title, f"{SYSTEMS[name].rule}; {SYSTEMS[name].kept}"] for name in names]),
        (f"Table 2: segment-level F-scores of the hard labels on the test split ({spread})",
         [s[4:] for s in SCORES[:5]], labels),
        (f"Other networks in the place of the HAN, by their labels ({spread})", SHORT, networks)]
