"""The command line of uwav.py."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from common.command import LESS, Parser, one_sentence_errors
from common.devices import choose_device, ranks
from data.layout import FEATURE_SETS
from train.ablation import SWEEP, ablate
from train.field import CHOICES, run_systems
from train.presets import ABLATION, PRESETS
from train.score import score
from train.stages import (BACKBONES, GATES, THRESHOLDS, Context, evaluate, label, own, parse_overrides, pretrain,
                          seen_by, train)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="uwav.py",
        description="UWAV: learn from video-level labels which events are audible and visible in every second.",
        epilog="Stages in order: pretrain, label, train, evaluate; ablate runs them all for every row of the ablation. "
               "DATA is a packed folder made by `python features.py pack` or `python features.py demo`.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, run: Callable, trains: bool) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.",
                                  formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.set_defaults(run=run)
        sub.add_argument("data", type=Path, metavar="DATA", help="packed folder")
        sub.add_argument("--device", help="cpu, cuda or cuda:1; None: cuda where there is a GPU")
        if trains:
            sub.add_argument("--preset", choices=PRESETS, default="paper",
                             help="paper: the published run; demo: small models for a CPU")
            sub.add_argument("--seed", type=int, default=0, help="added to the published seeds; 0 is the published run")
            sub.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="overrides",
                             help="change a field of the configurations on top of uwav.py, e.g. --set temperature=1 "
                                  "(repeatable). teacher.FIELD or han.FIELD: for the teacher or for the parsers alone. "
                                  "Without, a field of the training, like epochs, is changed for both; one of the "
                                  "networks, like hidden, only by a stage that trains one of them")
            sub.add_argument("--fast", action="append_const", const="fast=true", dest="overrides",
                             help="train in bf16 and, on a GPU, with compiled kernels; the same as --set fast=true")
        if name in ("pretrain", "label", "train"):
            sub.add_argument("--stream", type=float, nargs="?", const=16.0, default=0.0, metavar="MB",
                             help="leave training features on disk, read so many MB (16) at a time: docs/scale.md")
        return sub

    sub = command("pretrain", "pre-train the teacher on UnAV", lambda c, o: pretrain(c, o.out), trains=True)
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for teacher.pt and its history")
    sub = command("label", "write pseudo-labels for LLP: logits, and thresholds fitted on validation",
                  lambda c, o: label(c, o.out, o.teacher, o.thresholds, o.dry_run, o.prototypes), trains=False)
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for labels_teacher.npz or labels_segment.npz")
    who = sub.add_mutually_exclusive_group(required=True)
    who.add_argument("--teacher", type=Path, help="teacher.pt, or a teacher checkpoint of the released code")
    who.add_argument("--prototypes", type=Path, metavar="HAN",
                     help="no teacher: prototypes of the key seconds of a HAN that learnt from weak labels")
    who.add_argument("--per-segment", action="store_true",
                     help="no teacher: similarity of each segment's own CLIP / CLAP embedding with the text (VALOR)")
    sub.add_argument("--dry-run", action="store_true", help="take a teacher that has seen invented features only")
    sub.add_argument("--thresholds", choices=THRESHOLDS, default="val",
                     help="; ".join(f"{rule}: {text}" for rule, text in THRESHOLDS.items()))
    sub = command("train", "train the HAN on LLP with weak labels and pseudo-labels",
                  lambda c, o: train(c, o.out, o.labels, o.setting, o.features, o.backbone), trains=True)
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for han.pt and its history")
    sub.add_argument("--labels", type=Path, help="labels_teacher.npz or labels_segment.npz")
    sub.add_argument("--setting", choices=ABLATION, default="full", help="row of the ablation; full is UWAV")
    sub.add_argument("--backbone", choices=BACKBONES, default="han", help="the network: the HAN, or one of field/")
    sub.add_argument("--features", choices=FEATURE_SETS,
                     help="base: VGGish, ResNet-152, R(2+1)D; clip_clap: CLIP and CLAP; None: base if it was packed")
    sub = command("evaluate", "the ten parsing scores of a trained HAN",
                  lambda c, o: evaluate(c, o.checkpoint, o.split, o.out or o.checkpoint.parent, o.gate), trains=False)
    sub.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="han.pt, or one of the released code")
    sub.add_argument("--split", choices=("val", "test"), default="test")
    sub.add_argument("--out", type=Path,
                     help="folder for scores_SPLIT.json and predictions_SPLIT.npz; None: that of the checkpoint")
    sub.add_argument("--gate", choices=(*GATES, "all"), help="also print what another gate, or all of them, would make "
                     "of the same predictions (docs/scoring.md); the scores that are saved are the published gate's")
    sub = command("own", "your own data: labels, a parser, and its scores if any video is annotated",
                  lambda c, o: own(c, o.out, o.teacher, o.dry_run), trains=True)
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for everything")
    sub.add_argument("--teacher", type=Path, help="as of `label`; None: single seconds (VALOR)")
    sub.add_argument("--dry-run", action="store_true", help="take a teacher that has seen invented features only")
    sub = command("ablate", "every stage, every row of the ablation, every seed; prints the tables",
                  lambda c, o: ablate(c, o.out, o.seeds, o.features, o.sweep), trains=True)
    sub.add_argument("out", type=Path, metavar="RUN", help="folder for everything")
    sub.add_argument("--seeds", type=int, default=1, help="how many, beginning with --seed")
    sub.add_argument("--features", choices=FEATURE_SETS, nargs="+", help="None: all that were packed")
    sub.add_argument("--sweep", action="store_true", help="also train UWAV with alpha and W varied, one at a time: "
                     + ", ".join(row.short for row in SWEEP.values()))
    sub = command("field", "the systems of the paper's tables on the same data, each as published; prints three tables",
                  lambda c, o: run_systems(c, o.out, o.seeds, o.features, o.systems), trains=True)
    sub.add_argument("out", type=Path, metavar="RUN", help="folder for everything; what `ablate` made there is kept")
    sub.add_argument("--seeds", type=int, default=1, help="how many, beginning with --seed")
    sub.add_argument("--features", choices=FEATURE_SETS, help="None: base if it was packed")
    sub.add_argument("--systems", choices=CHOICES, nargs="+",
                     help="besides HAN, VALOR-style and UWAV, rows of the ablation; None: all")
    sub = commands.add_parser(
        "score", help="the ten parsing scores of anybody's predictions: a table of events, nothing else is needed",
        description="The ten parsing scores of predicted events; the rules: docs/scoring.md.")
    sub.set_defaults(device="cpu", run=lambda c, o: score(o.table, o.data, o.split, o.only, o.json, o.against))
    sub.add_argument("table", type=Path, metavar="PREDICTIONS",
                     help="csv with the columns video, label, modality, onset, offset; or a folder of files that "
                          "`parse.py --csv` or `--json` wrote")
    sub.add_argument("data", type=Path, metavar="DIR", help="LLP's five csv files; or your labels.csv and events.csv")
    sub.add_argument("--split", choices=("val", "test"), default="test")
    sub.add_argument("--only", action="store_true", help="also the scores of what is audible only, visible only")
    sub.add_argument("--json", type=Path, metavar="FILE", help="everything, by class and by video, too")
    sub.add_argument("--against", type=Path, metavar="OTHER", help="what PREDICTIONS gain over these, with intervals")
    return parser


def check(arguments: list[str]) -> None:
    """Whether the options of a stage make sense: for run_all.sh, before any work."""
    with one_sentence_errors():
        options = build_parser().parse_args(arguments)
        parse_overrides(getattr(options, "overrides", ()), both="seeds" in options)  # ablate and field
        seen_by(getattr(options, "teacher", None), try_out=getattr(options, "dry_run", False))


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with one_sentence_errors(less=LESS * hasattr(options, "overrides")), ranks(options):
        given = {k: getattr(options, k) for k in ("preset", "seed", "overrides", "stream") if hasattr(options, k)}
        parse_overrides(given.get("overrides", ()), both="seeds" in options)
        options.run(Context(options.data, device=choose_device(options.device), **given), options)


if __name__ == "__main__":
    main()
