"""The paper's comparison: every system of its tables on the same data, each as it was published (field/).

Three tables, as in the paper: the systems (Table 1), their labels (Table 2), and two other networks in the place of the
HAN. Rows that the ablation has are taken from it. Seeds S, videos N of the test split.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

import uwav
from common.files import read_arrays, write_arrays
from data.layout import dry_run, encoders_of, packed_feature_sets, read_index
from data.splits import load_text, load_truth
from field import coleaf, jomold, leap
from train.ablation import (PAPER_FULL, ROWS, Table, as_text, cell, difference_table, differences_of, label_table,
                            noted, our_row, over_seeds, paper_row, publish, row_job, seeds_of, train_row, train_rows)
from train.checkpoints import Run, load_model
from train.presets import PRESETS, for_features
from train.stages import (SHORT, Context, alone, check_finished, evaluate, label, label_scores, read_labels,
                          read_predictions)


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
NETWORKS = {"han": "HAN", "mgn": "MGN", "mm_pyramid": "MM-Pyramid"}
LABELS = {"video_only": "weak alone", "valor": "VALOR's", "full": "UWAV's"}  # rows of the ablation
LABELLERS = {"segment": "per segment, no teacher (VALOR)", "prototypes": "prototypes", "teacher": "teacher (UWAV)"}
CHOICES = (*(x for x in SYSTEMS if x not in ROWS), *list(NETWORKS)[1:])  # the others are rows of the ablation


@alone
def run_systems(context: Context, run: Path, seeds: int, features: str | None, systems: list[str] | None) -> None:
    """Train what is missing -> run/seedK/FEATURES/field/SYSTEM/..., run/field.json, run/field.txt."""
    chosen, features = systems or CHOICES, features or packed_feature_sets(read_index(context.data))[0]
    wanted, seeded = {*chosen, *["noise"] * bool({"jomold", "coleaf"} & {*chosen})}, seeds_of(context, run, seeds)
    first, second = [], []  # jobs; the second need what the first make
    for each, folder in seeded:
        place = folder / features
        first += [row_job(each, folder, features, row, network) for row in LABELS for network in NETWORKS
                  if network in ("han", *chosen)]
        ratios = place / "field/noise/ratios.npz"
        for jobs, given in ((first, dict(leap=run / "labels_segment.npz", noise=None)), (second, dict(
                jomold=ratios, coleaf=ratios, prototypes=place / "video_only/han.pt"))):
            jobs += [partial(train_system, each, place / "field" / name, path, name, features)
                     for name, path in given.items() if name in wanted]
    scores = {}
    for folder, result in (train_rows(first, run) | train_rows(second, run)).items():
        if result:  # the estimator of noise has none
            scores.setdefault(folder.name, []).append(result)
    folders = {name: [x / features / ("" if name in ROWS else "field") / name for _, x in seeded]
               for name in SYSTEMS if name in scores}
    truth = load_truth(context.data, "test")
    joint = {name: [uwav.parsing_scores(*read_predictions(x / "predictions_test.npz", context.data, joint=True), *truth)
                    for x in each] for name, each in folders.items()}
    made = noted(context, run, seeded, first + second) | dict(
        features=features, scores=scores, joint={name: [x["seg_type"] for x in each] for name, each in joint.items()},
        differences=differences_of(context.data, folders, [(name, "full") for name in folders if name != "full"]))
    if "prototypes" in folders:
        made["labels"]["prototypes"] = [label_scores(x / "labels_prototypes.npz", context.data, "test")
                                        for x in folders["prototypes"]]
    publish(run / "field.json", run / "field.txt", made,
            as_text(tables(made)) + difference_table(features, made["differences"], seeds, SYSTEMS))


@alone
def train_system(context: Context, out: Path, given: Path | None, name: str, features: str) -> dict[str, float]:
    """One of the systems with a way of their own -> out/han.pt, its history and scores. given: the file that it learns
    from besides weak labels. noise, JoMoLD's first stages, has none: a parser without cross-attention, and ratios.npz,
    which share of the labels is noise, by class."""
    if name == "prototypes":  # a HAN that learnt from weak labels alone labels its own training videos
        label(context, out, None, own=given)
        return train_row(context, out, out / "labels_prototypes.npz", "binary", features)
    index, path = read_index(context.data), out / "han.pt"
    model_config, config = PRESETS[context.preset].field[name]
    model_config = context.config(for_features(model_config, features, len(index["llp"]["classes"])))
    config = context.config(config)
    data, validation = (context.target(s, features) for s in ("train", "val"))
    made_from, learns_from = {}, (None,)
    if name == "leap":  # from VALOR's labels
        labels = read_labels(given, context.device, context.data)
        hard = uwav.pseudo_labels(labels.logits["train"], labels.thresholds, data.weak,
                                  uwav.TrainConfig(pseudo_label="hard", reweight=False))
        names = leap.name_vectors(*load_text(context.data, "llp", context.device))  # (C, 512 + 768)
        made_from, learns_from = labels.settings, (hard, names)
    elif given:
        ratios = tuple(torch.from_numpy(x).to(context.device) for x in read_arrays(given).values())  # (C,) each
        made_from, learns_from = dict(ratios=[x.tolist() for x in ratios]), (ratios,)
    settings = dict(data=context.identity, features=features, dry_run=dry_run(index), made_from=made_from,
                    encoders=encoders_of(index), classes=index["llp"]["classes"], model=asdict(model_config),
                    training=asdict(config))
    if path.exists():
        check_finished(path, settings)
    else:
        fit = dict(leap=leap.train, coleaf=coleaf.train).get(name, jomold.train)
        fit(data, validation, *learns_from, model_config, config, Run(path, name, settings))
    if name != "noise":
        return evaluate(context, path, "test", out)
    shares = jomold.noise_ratios(load_model(path, context.device), data)
    write_arrays(out / "ratios.npz", **{m: x.cpu().numpy() for m, x in zip(("audio", "visual"), shares)})
    return {}  # nothing that a table holds


def tables(field: dict) -> list[Table]:
    """Those of field.json, the paper's rows beneath ours."""
    scores, spread = field["scores"], over_seeds(field)
    systems, names = [], [name for name in SYSTEMS if name in scores]
    for name in names:
        systems.append([*our_row(SYSTEMS[name].title, scores[name]), cell(field["joint"][name])])
        systems += [paper_row(SYSTEMS[name].paper)] if SYSTEMS[name].paper else []
    networks = [our_row(f"{title}, {whose}", scores[name]) for (net, title), (whose_row, whose) in itertools.product(
        NETWORKS.items(), LABELS.items()) if (name := whose_row if net == "han" else f"{net}_{whose_row}") in scores]
    return [
        (f"Table 1: parsing scores on the test split, features {field['features']} ({spread}). Each system decides by "
         "its own published rule; joint: segment-level Type if all decided like the HAN", [*SHORT, "joint"], systems),
        ("Rules: when a second has a class; and the validation score that chose the epoch", [],
         [[SYSTEMS[name].title, f"{SYSTEMS[name].rule}; {SYSTEMS[name].kept}"] for name in names]),
        label_table("Table 2", field, LABELLERS),
        (f"Other networks in the place of the HAN, by their labels ({spread})", SHORT, networks)]
