"""One page that tells the whole story of a run, made from its saved numbers alone, so it can be made again at any time.

    python report.py RUN      # RUN: the output folder of run_all.sh -> RUN/report.html, RUN/pictures/*.svg and *.png

The page is one file: pictures are inside, nothing is loaded from anywhere. A part whose numbers are not there (a stage
that has not run, a split without truth) says so in its place; the others are written. The pictures are drawn in
figures.py, the statistics computed in evidence.py.
"""

from __future__ import annotations

import collections
import contextlib
import re
from functools import cached_property
from html import escape
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import uwav
from common.command import Parser, one_sentence_errors, working_in
from common.devices import ranks
from common.files import atomic, lack, made_by, read_sealed, reason
from data.annotations import LLP_CLASSES
from data.layout import FEATURE_SETS, check_source, dry_run, encoders_of, read_index
from data.splits import load_truth, load_weak
from reporting import evidence, figures
from reporting.page import facts, figure, html, paragraph, picture, section, table
from train import field
from train.ablation import COVERAGE, RESAMPLES, ROWS, Table, cell, tables
from train.checkpoints import check_fields, load_file, settings_of
from train.stages import (SHORT, THRESHOLDS, Labels, dead_branch, labels_beside, no_better_than_silence,
                          read_predictions, trivial_scores)
from uwav import video_scores


# ---- What a run has saved; what is missing, or made from something else, is a FileNotFoundError ----

class Saved:
    def __init__(self, run: Path, seed: int, data: Path):
        """seed: of the models that pictures show; data: the packed folder."""
        self.run, self.seed, self.data, self.folder = run, seed, data, run / f"seed{seed}"

    @cached_property
    def index(self) -> dict:
        return read_index(self.data)

    @property
    def classes(self) -> list[str]:
        """As people write them."""
        return [name.replace("_", " ") for name in self.index["llp"]["classes"]]

    @cached_property
    def ablation(self) -> dict:
        ablation = self.tables("ablation.json", "python uwav.py ablate")
        if unknown := {*ablation["scores"], *ablation["differences"]} - FEATURE_SETS.keys():  # pictures are called so
            raise ValueError(f"{self.run / 'ablation.json'}: no ablation has the feature set {min(unknown)!r}")
        return ablation

    def tables(self, name: str, command: str) -> dict:
        """What `command` wrote of these data, and of the parsers and labels that are there now."""
        path = self.run / name
        made = read_sealed(path, command)
        if made["data"] != self.index["sha256"]:
            raise ValueError(f"{path}: made from other data than {self.data}; make one with `{command}`, elsewhere")
        for name, recorded in made.get("made_from", {}).items():
            check_source(path, recorded, self.run / name, command)
        return made

    @cached_property
    def parser(self) -> Path:
        """Folder of the parser that is looked at: the one with features `base` where it is there."""
        trained = [path.parent for row in ("full", "valor") for path in sorted(self.folder.glob(f"*/{row}/han.pt"))]
        if not trained or (trained[0].name == "valor" and not self.is_own):
            raise FileNotFoundError(f"{self.folder}/*/full/han.pt: no trained parser (`python uwav.py train`)")
        return trained[0]

    @cached_property
    def training(self) -> uwav.TrainConfig:
        path = self.parser / "han.pt"
        with made_by("python uwav.py train", path):
            config = uwav.TrainConfig(**settings_of(path)["training"])
            check_fields(config)
        return config

    @cached_property
    def labels(self) -> Labels:
        who = "segment" if self.is_own and self.parser.name == "valor" else "teacher"
        parsers = sorted(self.folder.glob(f"*/{'valor' if who == 'segment' else 'full'}/han.pt"))  # there may be none
        return labels_beside(self.folder / f"labels_{who}.npz", self.data, *parsers[:1])

    @cached_property
    def labels_of_all_seeds(self) -> list[Labels]:
        paths = [] if self.is_own else sorted(self.run.glob("seed*/labels_teacher.npz"))
        return [labels_beside(path, self.data) for path in paths] or [self.labels]

    @cached_property
    def predictions(self) -> tuple[Tensor, Tensor]:
        return read_predictions(self.parser / f"predictions_{self.split}.npz", self.data, model=self.parser / "han.pt")

    @property
    def split(self) -> str:
        """On which the parser is judged: test; of your own data without it val, by which its epoch was chosen."""
        return "val" if self.is_own and "llp/test/audio.npy" not in self.index["files"] else "test"

    @property
    def is_own(self) -> bool:
        return "unav" not in self.index

    @property
    def is_llp(self) -> bool:
        """Whether the paper's numbers may stand beside ours: real features of the real LLP."""
        return self.index["source"] == "pack" and tuple(self.index["llp"]["classes"]) == LLP_CLASSES


# ---- What ran ------------------------------------------------------------------------------------

def data_notice(saved: Saved) -> str:
    why = dry_run(saved.index)
    with contextlib.suppress(FileNotFoundError):
        why = saved.labels.settings["dry_run"] or why
    return why and (f'<p class="notice">This run has seen {escape(why)}: its numbers show that every part runs, not '
                    "how good the method is on real videos. Do not compare them with published ones.</p>")


def run_table(saved: Saved) -> str:
    index = saved.index
    rows = {"data": index["source"], "recipe of the features": encoders_of(index).get("recipe", "not noted"),
            "seed in pictures": saved.seed}
    if isinstance(index["source"], dict):
        real = ", ".join(index["source"].get("real_annotations") or ())
        rows["data"] = f"demo world: invented features; real annotations: {real or 'none'}"
    if not saved.is_own:
        ablation = saved.ablation
        rows |= {"preset": ablation["preset"], "changed by --set": ", ".join(ablation["overrides"]) or "nothing",
                 "seeds": ", ".join(map(str, ablation["seeds"]))}
    for key, name in (("llp", "target set"), ("unav", "pre-training set")):
        if key in index:
            videos = ", ".join(f"{split} {len(ids):,}" for split, ids in index[key]["videos"].items())
            rows[name] = f"{len(index[key]['classes'])} classes; videos: {videos}"
    return facts("What was run", rows)


def stage_table(saved: Saved) -> str:
    path = saved.run / "stages.tsv"
    if not path.is_file() or path.is_symlink():
        raise FileNotFoundError(f"{path}: no such file; run_all.sh notes machine, commit and times in it")
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    # a line may be torn where the disk was full
    made = [x for x in lines if len(x) == 7 and re.fullmatch("[0-9]{1,9}", x[1]) and x[2] != "kept"]
    rows = [[escape(r[3]), f"{int(r[1]):,} s", escape(r[0])] for r in made]
    rows.append(["together", f"{sum(int(r[1]) for r in made):,} s", ""])
    where = {name: "; ".join(dict.fromkeys(r[k] for r in made))
             for name, k in (("commit", 4), ("machine", 5), ("command", 6))}
    return facts("Where and how", where) + table(["stage", "time it took", "date"], rows) + paragraph(
        "On one CPU the same commit, command, seed and number of threads give the same numbers to the last bit; on a "
        "GPU not quite (docs/promises.md).")


# ---- Result --------------------------------------------------------------------------------------

def shown(tables: list[Table]) -> str:
    """Tables that a command printed, as HTML."""
    return "".join(paragraph(escape(heading) + ".") * bool(heading) +
                   table(["", *(escape(name.strip(" |")) for name in header)], [list(map(escape, row)) for row in rows])
                   for heading, header, rows in tables)


def result(saved: Saved) -> str:
    """Three sentences: what came out, by what, and how far it is that of the paper."""
    ablation = saved.ablation
    features, rows = next(iter(ablation["scores"].items()))
    of_row, of_labels = ({name: cell([v["seg_type"] for v in values]) for name, values in x.items()}
                         for x in (rows, ablation["labels"]))
    against = []
    for d in ablation["differences"][features]:
        first, second, ours = ROWS[d["first"]], ROWS[d["second"]], d["scores"]["seg_type"]
        papers, (low, high) = second.paper_type - first.paper_type, ours["interval"]
        if ours["mean"] * papers < 0 < low * high:
            against.append(f"{first.short} → {second.short} ({ours['mean']:+.1f}, in the paper {papers:+.1f})")
    return paragraph(
        f"On the test split UWAV scores {of_row['full']} % of Type, with features {features}; the same parser scores "
        f"{of_row['valor']} % with labels of single seconds (VALOR) and {of_row['video_only']} % with weak labels "
        f"alone. The labels themselves score {of_labels['teacher']} % if the teacher makes them, and "
        f"{of_labels['segment']} % if single seconds do. "
        f"Against the paper's order: {'; '.join(against) or 'no step whose interval excludes zero'}.")


def own_result(saved: Saved) -> str:
    """What can be said of your own data: how many, labels and thresholds from what, scores beside trivial ones."""
    index = saved.index["llp"]
    annotated = {s: len(ids) for s, ids in index["videos"].items() if s != "train"}
    learned, teacher = len(index["videos"]["train"]), saved.parser.name == "full"
    weakly = "; ".join(f"{m} of {', '.join(names)}" for m, names in saved.labels.weakly.items() if names)
    rule = saved.labels.settings.get("thresholds", "val")
    sentences = [
        f"{learned + sum(annotated.values())} clips of {index['segments']} s, {len(index['classes'])} classes; learned "
        f"from: {learned}, annotated: {', '.join(f'{n} ({s})' for s, n in annotated.items()) or 'none'}.",
        f"Labels come from {'a teacher' if teacher else 'single seconds, without a teacher (as in VALOR)'}, thresholds "
        f"{THRESHOLDS[rule]}. " + f"From weak labels alone: {escape(weakly)}." * bool(weakly)]
    if not annotated:
        return paragraph(" ".join([*sentences, "Nothing is annotated, so nothing can be scored."]))
    weak, truth = load_weak(saved.data, saved.split), load_truth(saved.data, saved.split)
    rows = {"the parser": uwav.parsing_scores(*saved.predictions, *truth)} | trivial_scores(weak, *truth)
    sentences.append(
        f"F-scores on the annotated clips of {saved.split}, percent"
        + ("; thresholds and the epoch were chosen by these very clips, so they flatter" * (saved.split == "val"))
        + ". A parser is worth something if it is above both other lines; the last one knows the weak labels."
        + " This parser predicts no event at all." * (not any(x.any() for x in saved.predictions)))
    scores = [[title, *(f"{x:.1f}" for x in row.values())] for title, row in rows.items()]
    return paragraph(" ".join(sentences)) + shown([("", SHORT, scores)])


def clip_table(saved: Saved) -> str:
    """What became of each clip of your labels.csv, by name; first in how many of them what happened."""
    clips = saved.index["llp"].get("clips", {})
    counts = collections.Counter(what.split(":")[0] for what in clips.values())
    counted = ", ".join(f"{n} {what}" for what, n in counts.items())
    return paragraph(f"Of {len(clips)} clips in labels.csv: {counted}.") + table(
        ["clip", "what became of it"], [[escape(clip), escape(what)] for clip, what in clips.items()])


def score_tables(saved: Saved) -> str:
    """The ten scores of every row, for each feature set."""
    return shown(tables(saved.ablation, paper=saved.is_llp)[1:]) + paragraph(
        "In percent; what the columns mean stands under Terms. In pictures rows have short names: "
        + "; ".join(f"{row.short}, {row.title}" for row in ROWS.values()) + ". "
        + ("" if saved.is_llp else " The paper's rows stand here only when the data are LLP with its features."))


def label_table(saved: Saved) -> str:
    return shown(tables(saved.ablation, paper=saved.is_llp)[:1]) + paragraph(
        "The labeller knows the weak label, the parser above does not.")


def difference_figure(saved: Saved) -> str:
    ablation, parts = saved.ablation, []
    for features, differences in ablation["differences"].items():
        named = [(f"{ROWS[d['first']].short} → {ROWS[d['second']].short}", d["scores"]) for d in differences]
        panels = [figures.forest(title, [(name, x[score]) for name, x in steps])
                  for steps in (named[:-1], named[-1:])  # the last, from weak labels alone, would squeeze the others
                  for title, score in (("Type, segment level", "seg_type"), ("Type, event level", "event_type"))]
        ranges = [(*scores["seg_type"]["interval"], *scores["seg_type"]["by_seed"]) for _, scores in named]
        clear = sum(min(x) > 0 or max(x) < 0 for x in ranges)
        caption = (
            f"What one step changes: mean over videos and seeds, and the {COVERAGE:.0%} interval of a bootstrap over "
            f"test videos ({RESAMPLES:,} resamples), which does not cover the training seed. " + (
                "Diamonds are single seeds. Segment-level Type: the interval excludes zero, and every seed has its "
                f"sign, in {clear} of {len(named)} steps." if ablation["seeds"][1:] else
                "There is one seed, so how far seeds scatter is unknown; --seeds 3 would show it."))
        parts.append(figure(saved.run, f"differences_{features}", panels,
                            f"Differences between rows, features {features}.", caption))
    return "".join(parts)


# ---- The field -----------------------------------------------------------------------------------

def field_tables(saved: Saved) -> str:
    """Every system of the paper's tables, its labels, and other networks in the place of the HAN."""
    made = saved.tables("field.json", "python uwav.py field")
    return shown(field.tables(made)) + paragraph("The paper's rows are LLP's, with real features." + (
        "" if saved.is_llp else " Compare our rows with each other, not with the paper's."))


# ---- Training ------------------------------------------------------------------------------------

def method_picture(saved: Saved) -> str:
    drawn = (Path(__file__).parent / "docs/pictures/method.svg").read_text(encoding="utf-8")
    return picture("method", [drawn], "The method.", "What is trained on which data, and what is handed on.")


def teacher_figure(saved: Saved) -> str:
    path = saved.folder / "teacher.pt"
    with made_by("python uwav.py pretrain", path):
        history = load_file(path)["history"]
        scores = [r["val"] for r in history]
        loss, *curves = ([float(r[key]) for r in x] for x, key in (
            (history, "loss"), (scores, "av"), (scores, "spread_audio"), (scores, "spread_visual")))
        best = curves[0].index(max(curves[0]))
        warning = dead_branch(scores[best])
    panels = [figures.lines("training loss (Eq. 3)", "loss", {"loss": loss}),
              figures.lines("validation, segments both audible and visible", "F-score, %", {"AV": curves[0]}),
              figures.lines("how far each branch moves within a video", "spread",
                            dict(zip(figures.COLOURS, curves[1:])))]
    return figure(saved.run, "curves_teacher", panels, "Pre-training of the teacher.", (
        f"The F-score on the validation split decides the epoch that is kept: {best + 1} of {len(loss)}, with "
        f"{curves[0][best]:.1f} %." + (f" Warning: {escape(warning)}." if warning else "")))


def parser_figure(saved: Saved) -> str:
    terms, scores = ("video (weak labels)", "audible", "visible", "mixed, audible", "mixed, visible"), {}
    paths = [(row, saved.parser.parent / name / "han.pt") for name, row in ROWS.items()]
    for row, path in [x for x in paths if x[1].is_file()]:  # the last one is our parser
        with made_by("python uwav.py train", path):
            history = load_file(path)["history"]
            scores[row.short] = [float(r["val"]["seg_type"]) for r in history if r["val"]]
            losses = {term: [float(r[key]) for r in history] for term, key in zip(terms, uwav.LOSSES)}
    own = scores[row.short]
    panels = [figures.lines(f"{row.short}: parts of the loss (Eq. 9)", "loss", losses)]
    if own:
        panels.append(figures.lines("validation, segment-level Type", "F-score, %", scores, row.short))
        said = (f"Of {row.short}, epoch {own.index(max(own)) + 1} of {len(own)} was kept ({max(own):.1f} %). A score "
                "that still rises at the end means that training was short.")
        if warning := no_better_than_silence(max(own), load_weak(saved.data, "val"), *load_truth(saved.data, "val")):
            said = f"Warning: {warning}, so the epoch that was kept ({own.index(max(own)) + 1}) is not a good one."
    else:
        said = "No video is annotated, so there is no validation score, and the last epoch was kept."
    return figure(saved.run, "curves", panels, "Training of the parser.", said)


# ---- Uncertainty ---------------------------------------------------------------------------------

def reliability_figure(saved: Saved) -> str:
    """Soft labels of both modalities against the dense truth; the error over all seeds."""
    panels, left_out = [], []
    truth, weak = load_truth(saved.data, "test"), load_weak(saved.data, "test")
    for m, modality in enumerate(figures.COLOURS):
        curves = {}
        for temperature, whose in ((1, "the paper's"), (2, "the released code's")):
            judged = []
            for x in (saved.labels, *saved.labels_of_all_seeds):
                soft = uwav.soft_labels(x.logits["test"][m], x.thresholds[m], weak, temperature)  # (N, T, C)
                finite = weak * x.thresholds[m].isfinite()  # (N, C)
                if not finite.any():
                    raise FileNotFoundError("soft labels to judge: no video of the test split has a class with a "
                                            "finite threshold")
                entries = [evidence.labelled(values, finite) for values in (soft, truth[m])]  # (M,) each
                judged.append(evidence.reliability(*entries))
            error = cell([100 * r.calibration_error for r in judged[1:]], " ± {}")
            curves[f"temperature {temperature}, {whose}: error {error} %"] = judged[0]
        panels.append(figures.reliability(f"test, {modality}", curves))
        left_out.append(f"{int(saved.labels.thresholds[m].isinf().sum())} {modality}")
    return figure(saved.run, "reliability", panels, "Do soft labels mean what they say?", (
        "If of all labels near 0.8, 80 % are true, the curve lies on the dotted diagonal; above it labels are too low, "
        "below it too high. Entries (video, second, class) of the weak label only. In the legend the expected "
        f"calibration error over {evidence.BINS} equally wide bins, mean and standard deviation over seeds. Classes "
        "whose threshold is -inf are left out: all their seconds are labelled, and how certainly depends on the lowest "
        f"logit alone, which says nothing of truth. They are {' and '.join(left_out)}."))


# ---- Timelines; classes and modalities; class balance --------------------------------------------

def timeline_figure(saved: Saved) -> str:
    split, predicted = saved.split, saved.predictions
    truth, weak = load_truth(saved.data, split), load_weak(saved.data, split)
    score = 100 * video_scores(*predicted, *truth)["seg_type"].numpy()  # (N,)
    hard = saved.training.pseudo_label == "hard"
    soft = [(uwav.hard_labels(z, theta, weak) if hard else
             uwav.soft_labels(z, theta, weak, saved.training.temperature)).numpy()
            for z, theta in zip(saved.labels.logits[split], saved.labels.thresholds)]  # (N, T, C) each
    panels, names, chosen = [], [], {}
    for kind, n in evidence.choose_videos(score, *truth).items():
        chosen.setdefault(n, []).append(kind)
    for n, kinds in chosen.items():
        kind = ", ".join(kinds)
        shown = np.flatnonzero(sum(x[n].any(0).int() for x in (*predicted, *truth)))  # classes true or predicted
        for m, modality in enumerate(figures.COLOURS):
            panels.append(figures.timeline(
                f"{kind}: {modality}", modality, [saved.classes[c] for c in shown], truth[m][n][:, shown].numpy(),
                soft[m][n][:, shown], predicted[m][n][:, shown].numpy()))
        names.append(f"{kind}: {saved.index['llp']['videos'][split][n]}, {score[n]:.0f}")
    title = f"Truth, {'' if hard else 'soft '}labels and prediction of some videos."
    return figure(saved.run, "timelines", panels, title, (
        f"Those of the {split} split with the best, median and worst segment-level Type, and the one in which what "
        "is audible and what is visible coincide least. Labels know the classes of the video, the parser does not. "
        f"Video and its Type: {escape('; '.join(names))}."))


def class_figure(saved: Saved) -> str:
    pred, truth = saved.predictions, load_truth(saved.data, saved.split)
    f = {modality: evidence.class_f_scores(pred[m], truth[m]) for m, modality in enumerate(figures.COLOURS)}
    order = np.argsort(-sum(np.nan_to_num(x) for x in f.values()), kind="stable")
    panels = [figures.dots("F-score of the parser", "F-score of the class, %", [saved.classes[c] for c in order],
                           {m: x[order] for m, x in f.items()})]
    never = [f"{modality} {saved.classes[c]}" for m, modality in enumerate(figures.COLOURS)
             for c in np.flatnonzero(~pred[m].any(1).any(0) & truth[m].any(1).any(0))]
    return figure(saved.run, "classes", panels, "The parser, class by class.", (
        f"Segment-level F-score on the {saved.split} split, counted over all seconds of all videos. A class without a "
        f"mark is neither true nor predicted. Never predicted: {escape(', '.join(never)) or 'none'}."))


def threshold_figure(saved: Saved) -> str:
    truth, weak = load_truth(saved.data, "val"), load_weak(saved.data, "val")
    panels, C = [], len(saved.classes)
    for m, modality in enumerate(figures.COLOURS):
        threshold, logit = saved.labels.thresholds[m], saved.labels.logits["val"][m]
        order, spans = threshold.argsort(stable=True), {}
        for name, value in (("true seconds", 1), ("other seconds", 0)):
            z = logit.masked_fill((weak[:, None] == 0) | (truth[m] != value), torch.nan).reshape(-1, C)  # (N T, C)
            bounds = z.nanquantile(torch.tensor([0.1, 0.9]), 0).T  # (C, 2)
            spans[f"logits of {name}, middle 80 %"] = bounds[order].numpy()
        drawn = threshold.masked_fill(threshold.isinf(), torch.nan)[order].numpy()
        panels.append(figures.dots(modality, "logit", [saved.classes[c] for c in order],
                                   {"threshold": drawn}, spans))
    return figure(saved.run, "thresholds", panels, "Thresholds.", (
        "For each class the threshold of best F1 on val, over the logits of its seconds and of all others of videos "
        "with the class in their weak label. The less the bars overlap, the better the logits tell seconds apart. "
        "Without a mark, the threshold is -inf: every second of a video with the class is labelled."))


def balance(saved: Saved) -> str:
    """The weights of Eq. 7-8, and the share of positive labels that they follow from."""
    weak, config, said = load_weak(saved.data, "train"), saved.training, []
    if not config.reweight or any(", no " in what for what in saved.index["llp"].get("clips", {}).values()):
        return ""  # of clips that lack sound or picture, not all is counted
    for modality, logit, threshold in zip(figures.COLOURS, saved.labels.logits["train"], saved.labels.thresholds):
        hard = uwav.hard_labels(logit, threshold, weak)  # (N, T, C)
        w_pos, w_neg = map(float, uwav.class_balance(hard, config.W, config.balance_sum))
        said.append(f"{100 * hard.mean():.2f} % {modality}, w_pos {w_pos:.2f}, w_neg {w_neg:.2f}")
    return paragraph(f"Class balance (Eq. 7-8), by the hard labels of the training set: {'; '.join(said)}.")


# ---- The whole page ------------------------------------------------------------------------------

def build(saved: Saved) -> str:
    own, notice, teacher = False, "", True
    with contextlib.suppress(FileNotFoundError):  # said in the sections
        own, notice = saved.is_own, data_notice(saved)
        teacher = not own or saved.parser.name == "full"
    sections = {"Result": [own_result], "Your clips": [clip_table]} if own else {
        "Result": [result, score_tables], "What each step adds": [difference_figure], "Labels": [label_table]}
    if not own and (saved.run / "field.json").exists():
        sections["The systems of the paper's tables"] = [field_tables]
    sections |= {
        "Timelines": [timeline_figure],
        "Classes and modalities": [class_figure, threshold_figure],
        "Uncertainty": [reliability_figure],
        "Training": [method_picture] * teacher + [parser_figure, balance] + [teacher_figure] * (not own),
        "What ran": [run_table, stage_table],
    }
    return html(notice, {title: section(saved, *parts) for title, parts in sections.items()})


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description="RUN/report.html: scores, pictures and what they mean, in one page.")
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder of run_all.sh")
    parser.add_argument("--seed", type=int, default=0, help="which seed's run the pictures show (default: 0)")
    parser.add_argument("--data", type=Path, help="DATA of uwav.py, the packed folder (default: RUN/data)")
    options = parser.parse_args(arguments)
    with one_sentence_errors("begins again", ""), ranks(options):
        saved = Saved(options.run, options.seed, options.data or options.run / "data")
        seeds = sorted(path.name for path in options.run.glob("seed[0-9]*"))
        if not saved.folder.is_dir() and (seeds or not saved.data.is_dir()):
            raise FileNotFoundError(f"--seed {options.seed}: {options.run} has {', '.join(seeds) or 'no run'}; "
                                    "`bash run_all.sh` makes one")
        with working_in(options.run):
            try:
                text = build(saved)
            except (LookupError, TypeError, AttributeError, RuntimeError) as error:  # of what no stage writes
                if lack(error):
                    raise
                raise ValueError(f"{options.run}: its files do not go together ({reason(error)})") from error
            with atomic(options.run / "report.html") as temporary:
                temporary.write_text(text, encoding="utf-8")
        print(f"{options.run / 'report.html'}: written, {len(text) / 1e6:.1f} MB; its pictures are in "
              f"{options.run / 'pictures'}")


if __name__ == "__main__":
    main()
