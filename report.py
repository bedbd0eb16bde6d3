"""One page that tells the whole story of a run, made from its saved numbers alone, so it can be made again at any time.

    python report.py RUN      # RUN: the output folder of run_all.sh -> RUN/report.html, RUN/pictures/*.svg and *.png

The page is one file: pictures are inside, nothing is loaded from anywhere. A part whose numbers are not there (a stage
that has not run, a split without truth) says so in its place; the others are written. The pictures are drawn in
figures.py, the statistics computed in evidence.py.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import uwav
from common.command import one_sentence_errors
from common.files import atomic, made_by
from data.annotations import LLP_CLASSES
from data.layout import read_index
from data.splits import load_truth, load_weak, target_shape
from reporting import evidence, figures
from reporting.page import Page, facts, mean_and_spread, paragraph, table
from train.ablation import COVERAGE, PAPER_FULL, PAPER_LABELS, RESAMPLES, ROWS, paper_column, read_ablation
from train.checkpoints import check_fields, load_file, read_history
from train.stages import Labels, dead_branch, read_labels, read_predictions
from uwav import SCORES, video_scores

MODALITIES = tuple(figures.MODALITIES)  # audible, visible: the order of all pairs below
TEMPERATURES = {1.0: "the paper's", 2.0: "the released code's"}  # of the soft labels


# ---- What a run has saved; everything missing is a FileNotFoundError with a sentence -------------


@dataclass(frozen=True)
class Saved:
    run: Path
    seed: int  # of the models that pictures show
    data: Path  # packed folder

    @property
    def folder(self) -> Path:
        return self.run / f"seed{self.seed}"

    @cached_property
    def index(self) -> dict:
        return read_index(self.data)

    @property
    def classes(self) -> list[str]:
        """As people write them."""
        return [name.replace("_", " ") for name in self.index["llp"]["classes"]]

    @cached_property
    def ablation(self) -> dict:
        return read_ablation(self.run / "ablation.json")

    @cached_property
    def parser(self) -> Path:
        """Folder of the parser that is looked at: the one with features `base` where it is there."""
        trained = sorted(path.parent for path in self.folder.glob("*/full/han.pt"))
        if not trained:
            raise FileNotFoundError(f"{self.folder}/*/full/han.pt: no trained parser (`python uwav.py train`)")
        return trained[0]

    @cached_property
    def training(self) -> uwav.TrainConfig:
        path = self.parser / "han.pt"
        with made_by("python uwav.py train", path):
            config = uwav.TrainConfig(**load_file(path)["settings"]["training"])
            check_fields(config)
            if not min(config.temperature, config.alpha, config.batch) > 0:
                raise ValueError("temperature, alpha and batch should be above 0")
        return config

    def labels_of(self, path: Path) -> Labels:
        """Labels of these very videos."""
        labels = read_labels(path, "cpu")
        shapes = {split: target_shape(self.data, split) for split in self.index["llp"]["videos"]}
        found = {split: tuple(audio.shape) for split, (audio, _) in labels.logits.items()}
        if labels.settings.get("data") != self.index["sha256"] or found != shapes:
            raise ValueError(f"{path}: its labels are not of the videos in {self.data}")
        return labels

    @cached_property
    def labels(self) -> Labels:
        return self.labels_of(self.folder / "labels_teacher.npz")

    @cached_property
    def labels_of_all_seeds(self) -> list[Labels]:
        return [self.labels_of(path) for path in sorted(self.run.glob("seed*/labels_teacher.npz"))]

    @cached_property
    def predictions(self) -> tuple[Tensor, Tensor]:
        return read_predictions(self.parser / "predictions_test.npz", self.data)

    @property
    def judged(self) -> str:
        """The split on which labels are judged: test; without its truth val, on which thresholds were fitted."""
        return "test" if "llp/test/audio.npy" in self.index["files"] else "val"

    @property
    def is_llp(self) -> bool:
        """Whether the paper's numbers may stand beside ours: real features of the real LLP."""
        return self.index["source"] == "pack" and tuple(self.index["llp"]["classes"]) == LLP_CLASSES


# ---- 1  What ran ---------------------------------------------------------------------------------


def data_notice(page: Page) -> str:
    source = page.saved.index["source"]  # the demo world's is a dict
    if isinstance(source, str) and "random weights" not in source:
        return ""
    kind = ("come from encoders with random weights: a dry run" if isinstance(source, str) else
            "are invented: the numbers show that every part runs, not how good the method is on real videos")
    return f'<p class="notice">The features of this run {kind}. Do not compare its numbers with published ones.</p>'


def data_table(page: Page) -> str:
    index = page.saved.index
    source = index["source"]
    if isinstance(source, dict):
        real = source.get("real_annotations")
        source = "demo world: invented features, " + (f"real annotations ({', '.join(real)})" if real else
                                                      "invented annotations")
    rows = {"source": escape(str(source))}
    for key, name in (("llp", "target set"), ("unav", "pre-training set")):
        if key in index:  # own data have no pre-training set
            videos = ", ".join(f"{split} {len(ids):,}" for split, ids in index[key]["videos"].items())
            rows[name] = f"{len(index[key]['classes'])} classes; videos: {videos}"
    return facts("Data", rows)


def settings_table(page: Page) -> str:
    ablation = page.saved.ablation
    rows = {"preset": ablation["preset"], "changed by --set": ", ".join(ablation["overrides"]) or "nothing",
            "seeds": ", ".join(map(str, ablation["seeds"])), "seed in pictures": str(page.saved.seed)}
    return facts("Settings", {name: escape(value) for name, value in rows.items()})


def stage_table(page: Page) -> str:
    path = page.saved.run / "stages.tsv"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run_all.sh notes machine, commit and times in it")
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    # a line may be torn where the disk was full
    records = [x for x in lines if len(x) == 7 and re.fullmatch("[0-9]{1,9}", x[1])]
    rows, total = [], 0
    for title in dict.fromkeys(r[3] for r in records):
        runs = [r for r in records if r[3] == title]
        runs = [r for r in runs if r[2] != "kept"] or runs[:1]
        seconds = sum(int(r[1]) for r in runs)
        total += seconds
        times = f" in {len(runs)} goes" if len(runs) > 1 else ""
        rows.append([escape(title), f"{seconds:,} s{times}", escape(runs[-1][0])])
    where = {name: "<br>".join(dict.fromkeys(escape(r[k]) for r in records if r[2] != "kept"))
             for name, k in (("commit", 4), ("machine", 5), ("command", 6))}
    return facts("Where and how", where) + table(
        ["stage", "time", "date"], [*rows, ["together", f"{total:,} s", ""]]) + paragraph(
        "The time in which results were made; later runs that found them there are not counted.")


def repeatability(page: Page) -> str:
    return "<h3>Would it come out the same again?</h3>" + paragraph(
        "On one CPU yes, to the last bit: the same commit, command, seed and number of threads. Another CPU or number "
        "of threads rounds differently, and a long training magnifies that. On a GPU not quite: the backward pass of "
        "attention may add numbers in an order that changes from run to run; with --fast, PyTorch chooses some kernels "
        "by timing them; another GPU, or version of CUDA or PyTorch, has other kernels. (What is said of GPUs follows "
        "PyTorch's documentation; it was not measured.)")


# ---- 2  Scores -----------------------------------------------------------------------------------

KINDS = ["A", "V", "AV", "Type", "Event"]


def spread_note(seeds: int) -> str:
    return f"Mean and standard deviation over {seeds} seeds." if seeds > 1 else "One seed, so no spread is known."


def score_tables(page: Page) -> str:
    """The ten scores of every row, for each feature set."""
    llp, parts = page.saved.is_llp, []
    for features, rows in page.saved.ablation["scores"].items():
        shown = []
        for name, values in rows.items():
            row = ROWS[name]
            title = f"{escape(row.title)} <small>{escape(row.short)}</small>"
            shown.append([title] + [mean_and_spread([v[s] for v in values]) for s in SCORES])
            if llp and name == "full":
                shown.append(paper_row(map("{:.1f}".format, PAPER_FULL[features])))
            elif llp and paper_column(features, "pack"):
                shown.append(paper_row(str(row.paper_type) if s == "seg_type" else "" for s in SCORES))
        parts.append(f"<h3>Parser, features {escape(features)}</h3>" + table(
            ["row of the ablation"] + 2 * KINDS, shown, [("", 1), ("segment level", 5), ("event level", 5)]))
    paper = "" if llp else " The paper's rows stand here only when the data are LLP with its features."
    return paragraph(
        "F-scores on the test split in percent, higher is better. A: what is audible; V: what is visible; AV: what is "
        "both at once; Type: the mean of these three; Event: audible and visible counted together. Segment level "
        "compares seconds, event level whole events (at least half overlap). The small name is used in pictures. "
        + spread_note(len(page.saved.ablation["seeds"])) + paper) + "".join(parts)


def paper_row(cells: Iterable[str]) -> list[str]:
    return [f"<em>{cell}</em>" for cell in ("the paper's", *cells)]


def label_table(page: Page) -> str:
    rows = []
    for name, title in (("segment", "per segment, no teacher (as VALOR does)"), ("teacher", "teacher")):
        values = page.saved.ablation["labels"][name]
        rows.append([title] + [mean_and_spread([v[s] for v in values]) for s in SCORES[:5]])
        if page.saved.is_llp:
            rows.append(paper_row(str(PAPER_LABELS[name][s]) for s in SCORES[:5]))
    return "<h3>Quality of the pseudo-labels</h3>" + paragraph(
        "Segment-level F-scores of the hard labels on the test split, where the weak label is known to the labeller "
        "but not to the parser above: the two tables answer different questions.") + table(["labels"] + KINDS, rows)


def label_figure(page: Page) -> str:
    """F of the hard labels per class: per-segment against teacher."""
    saved = page.saved
    truth, weak = load_truth(saved.data, "test"), load_weak(saved.data, "test")
    sources = {"teacher": saved.labels, "per segment": saved.labels_of(saved.run / "labels_segment.npz")}
    panels, better = [], []
    for m, modality in enumerate(MODALITIES):
        f = {name: evidence.class_f_scores(uwav.hard_labels(x.logits["test"][m], x.thresholds[m], weak), truth[m])
             for name, x in sources.items()}
        order = np.argsort(-np.nan_to_num(f["teacher"], nan=-1), kind="stable")
        wins, ties = ((f["teacher"] > f["per segment"]).sum(), (f["teacher"] == f["per segment"]).sum())
        better.append(f"{modality}: better for {wins}, equal for {ties} of {len(order)} classes")
        panels.append(figures.dots(modality, "F-score of the class, %", [saved.classes[c] for c in order],
                                   {name: x[order] for name, x in f.items()}))
    return page.figure("labels", panels, "Labels, class by class", (
        "Segment-level F-score of the hard labels on the test split, counted over all seconds of all videos; sorted by "
        "the teacher's. Where the filled circle lies to the right of the hollow square, the temporal teacher labels "
        f"the class better than single seconds do ({'; '.join(better)})."))


def difference_figure(page: Page) -> str:
    ablation, parts = page.saved.ablation, []
    seeds = len(ablation["seeds"])
    for features, differences in ablation["differences"].items():
        named = [(f"{ROWS[d['first']].short} → {ROWS[d['second']].short}", d["scores"]) for d in differences]
        panels = [figures.forest(title, [(name, scores[score]) for name, scores in named])
                  for title, score in (("Type, segment level", "seg_type"), ("Type, event level", "event_type"))]
        clear = [f"{name} ({x['mean']:+.1f})" for name, scores in named if one_sign(x := scores["seg_type"])]
        of_seeds = (
            "Each seed's own difference is a hollow diamond: if diamonds lie on both sides of zero, another seed may "
            "turn the sign, however narrow the bar. Segment-level Type: the interval excludes zero, and every seed "
            f"has its sign, in {len(clear)} of {len(named)} steps" + f": {escape('; '.join(clear))}" * bool(clear) + "."
            if seeds > 1 else
            "There is one seed here, so how far seeds scatter is unknown; --seeds 3 would show it.")
        caption = (
            "What one step changes, in points, on the same test videos: the dot is the mean over videos and seeds, the "
            f"bar the {COVERAGE:.0%} interval of a bootstrap over test videos ({RESAMPLES:,} resamples), which tells "
            f"how much the choice of test videos matters, and does not cover the training seed. {of_seeds}")
        parts.append(page.figure(f"differences_{features}", panels, f"Differences between rows, features {features}",
                                 caption))
    return "<h3>What each step adds</h3>" + "".join(parts)


def one_sign(difference: dict) -> bool:
    """Whether the interval over videos and the difference of every seed lie on one side of zero."""
    values = (*difference["interval"], *difference["by_seed"])
    return min(values) > 0 or max(values) < 0


def sweep_figure(page: Page) -> str:
    swept = page.saved.ablation["sweep"]
    if not swept:
        raise FileNotFoundError("the sweep of alpha and W, which is off by default (`bash run_all.sh --sweep`)")
    meaning = {"alpha": "alpha of the mixing weight", "W": "W, weight of the positives"}
    parts = []
    for features, fields in swept.items():
        panels = []
        for field, by_value in fields.items():
            scores = {name: np.array([[s[key] for s in of_seeds] for of_seeds in by_value.values()])
                      for name, key in (("segment-level Type", "seg_type"), ("event-level Type", "event_type"))}
            default = getattr(page.saved.training, field)
            panels.append(figures.sweep(meaning[field], [float(v) for v in by_value], scores, default))
        parts.append(page.figure(f"sweep_{features}", panels, f"Sensitivity to alpha and W, features {features}", (
            "UWAV with one setting varied at a time (the grid is ours, not the paper's), scores on test; bars are one "
            "standard deviation over seeds. Lambda of mixup is drawn from Beta(alpha, alpha): the larger alpha, the "
            "more even the mixture.")))
    return "<h3>Sensitivity</h3>" + "".join(parts)


# ---- 3  Training ---------------------------------------------------------------------------------


def teacher_figure(page: Page) -> str:
    path = page.saved.folder / "teacher.pt"
    with made_by("python uwav.py pretrain", path):
        history = read_history(path)
        loss, score = [float(r["loss"]) for r in history], [float(r["val"]["av"]) for r in history]
        best = score.index(max(score))
        warning = dead_branch(history[best]["val"])
    panels = [figures.lines("training loss (Eq. 3)", "loss", {"loss": loss}),
              figures.lines("validation, segments both audible and visible", "F-score, %", {"AV": score})]
    return page.figure("curves_teacher", panels, "Pre-training of the teacher", (
        f"Left (above on a phone) the loss, which should fall; right the F-score on the validation split, which "
        f"decides the epoch that is kept: {best + 1} of {len(score)}, with {score[best]:.1f} %."
        + (f" Warning: {escape(warning)}." if warning else "")))


def parser_figure(page: Page) -> str:
    terms, scores, absent = ("video (weak labels)", "audible", "visible", "mixed, audible", "mixed, visible"), {}, []
    for name, row in ROWS.items():
        path = page.saved.parser.parent / name / "han.pt"
        if not path.is_file():
            absent.append(row.short)
            continue
        with made_by("python uwav.py train", path):
            history = read_history(path)
            scores[row.short] = [float(r["val"]["seg_type"]) for r in history if r["val"]]
            losses = {term: [float(r[key]) for r in history] for term, key in zip(terms, uwav.LOSSES)}
    own = scores[row.short]  # of the last row, UWAV
    panels = [figures.lines("UWAV: parts of the loss (Eq. 9)", "loss", losses)]
    if own:
        panels.append(figures.lines("validation, segment-level Type", "F-score, %", scores, row.short))
        said = ("Beside them the validation score of every row of the ablation. Of UWAV, epoch "
                f"{own.index(max(own)) + 1} of {len(own)} was kept ({max(own):.1f} %). A score that still rises at the "
                "end means that training was short.")
    else:
        said = "No video is annotated, so there is no validation score, and the last epoch was kept."
    said += f" Missing in this run: {', '.join(absent)}." if absent else ""
    return page.figure("curves", panels, "Training of the parser", f"The five terms that UWAV's loss adds up. {said}")


# ---- 4  Uncertainty ------------------------------------------------------------------------------


def reliabilities(saved: Saved, labels: Labels, m: int) -> dict[str, evidence.Reliability]:
    """Soft labels of one modality against the dense truth, by temperature."""
    split = saved.judged
    truth, weak, result = load_truth(saved.data, split)[m], load_weak(saved.data, split), {}
    for temperature in TEMPERATURES:
        soft = uwav.soft_labels(labels.logits[split][m], labels.thresholds[m], weak, temperature)
        probability = evidence.labelled(soft, weak)
        if not len(probability):
            raise FileNotFoundError(f"no video of the {split} split has a weak label, so no soft label to judge")
        result[f"temperature {temperature:g}"] = evidence.reliability(probability, evidence.labelled(truth, weak))
    return result


def reliability_figure(page: Page) -> str:
    panels, unsure, split = [], [], page.saved.judged
    for m, modality in enumerate(MODALITIES):
        curves = reliabilities(page.saved, page.saved.labels, m)
        panels.append(figures.reliability(f"{split}, {modality}", curves))
        middle = [f"{100 * r.count[5:10].sum() / r.count.sum():.0f} %" for r in curves.values()]  # of 15 bins
        unsure.append(f"{' and '.join(middle)} ({modality})")
    return page.figure("reliability", panels, "Do soft labels mean what they say?", (
        "If labels are honest probabilities, then of all labels near 0.8, 80 % are true, and the curve lies on the "
        "dotted diagonal. Above it labels are too low, below it too high. Only entries (video, second, class) "
        "whose class is in the video's weak label are counted; elsewhere labels are 0 by construction. "
        + ("Thresholds were fitted on these very videos: test has no truth. " if split == "val" else "")
        + "The legend gives the expected calibration error: the distance between label and share of truth in "
        f"{evidence.BINS} equally wide bins, averaged over entries. A higher temperature pulls labels towards the "
        f"middle: between 1/3 and 2/3 lie, at temperature 1 and 2, {'; '.join(unsure)} of them."))


def calibration_table(page: Page) -> str:
    """Expected calibration error over all seeds; of one seed it stands in the figure."""
    labels, rows = page.saved.labels_of_all_seeds, []
    for m, modality in enumerate(MODALITIES):
        by_temperature = zip(*(reliabilities(page.saved, x, m).values() for x in labels))
        rows.append([modality] + [mean_and_spread([100 * r.calibration_error for r in x]) for x in by_temperature])
    header = [f"temperature {t:g} <small>{who}</small>" for t, who in TEMPERATURES.items()]
    return table(["calibration error, %", *header], rows) + paragraph(spread_note(len(labels))) if labels[1:] else ""


def distance_figure(page: Page) -> str:
    """Is farther from the threshold more certain? The text says what came out."""
    saved, panels, sentences, split = page.saved, [], [], page.saved.judged
    truth, weak = load_truth(saved.data, split), load_weak(saved.data, split)
    for m, modality in enumerate(MODALITIES):
        d, *of_seeds = (evidence.accuracy_by_distance(x.logits[split][m], x.thresholds[m], truth[m], weak)
                        for x in (saved.labels, *saved.labels_of_all_seeds))
        if not d:
            continue
        panels.append(figures.distance(f"{split}, {modality}", d))
        said = (f"{modality.capitalize()}: {100 * d.accuracy[0]:.0f} % of the labels nearest to the threshold are "
                f"right and {100 * d.accuracy[-1]:.0f} % of the farthest")
        chances = [100 * x.concordance for x in of_seeds if x]
        if not np.isnan(chances).any():  # NaN: all labels are right, or all wrong
            spread = f"{min(chances):.0f} to {max(chances):.0f} % over all seeds; " if len(chances) > 1 else ""
            said += (f", and a right label lies farther away than a wrong one in {100 * d.concordance:.0f} % of all "
                     f"pairs ({spread}50 %: distance says nothing)")
        sentences.append(said + (f"; left out are {d.left_out} classes with threshold -inf." if d.left_out else "."))
    if not panels:
        raise FileNotFoundError(f"labels of the {split} split with finite thresholds")
    return page.figure("distance", panels, "Is farther from the threshold more certain?", (
        "That is the claim soft labels rest on. Labels are sorted by the distance of their logit from the class's "
        f"threshold and cut into {evidence.DISTANCE_BINS} bins of equal count; the height is how often the hard label "
        f"is right. If the claim holds, curves rise. {' '.join(sentences)}"))


# ---- 5-7  Timelines; classes and modalities; class balance and mixup -----------------------------


def timeline_figure(page: Page) -> str:
    saved = page.saved
    truth, predicted = load_truth(saved.data, "test"), saved.predictions
    score = 100 * video_scores(*predicted, *truth)["seg_type"].numpy()  # (N,)
    chosen = evidence.choose_videos(score, *truth)
    weak = load_weak(saved.data, "test")
    soft = [uwav.soft_labels(z, theta, weak, saved.training.temperature).numpy()
            for z, theta in zip(saved.labels.logits["test"], saved.labels.thresholds)]  # (N, T, C) each
    panels, names = [], []
    for kind, n in chosen.items():
        arrays = (*predicted, *truth)
        shown = np.flatnonzero(np.any([x[n].any(0).numpy() for x in arrays], axis=0))  # classes true or predicted
        for m, modality in enumerate(MODALITIES):
            panels.append(figures.timeline(
                f"{kind}: {modality}", modality, [saved.classes[c] for c in shown], truth[m][n][:, shown].numpy(),
                soft[m][n][:, shown], predicted[m][n][:, shown].numpy()))
        names.append(f"{kind}: {saved.index['llp']['videos']['test'][n]}, {score[n]:.0f}")
    return page.figure("timelines", panels, "Truth, soft labels and prediction, second by second", (
        "Per class three strips: filled, the truth; shaded, the teacher's soft label, the more opaque the more "
        "certain; hatched, what the parser predicts. Labels know which classes occur in the video, the parser does "
        "not. The videos of the test split with the best, median and worst segment-level Type (of equals, the one with "
        "the most events), and the one in which what is audible and what is visible coincide least. "
        f"Video and its Type: {escape('; '.join(names))}."))


def class_figure(page: Page) -> str:
    saved = page.saved
    pred, truth = saved.predictions, load_truth(saved.data, "test")
    f = {modality: evidence.class_f_scores(pred[m], truth[m]) for m, modality in enumerate(MODALITIES)}
    order = np.argsort(-sum(np.nan_to_num(x) for x in f.values()), kind="stable")
    names = [saved.classes[c] for c in order]
    seconds = [x.float().sum((0, 1)).numpy()[order] for x in truth]
    scores = {modality: x[order] for modality, x in f.items()}
    panels = [figures.dots("F-score of the parser", "F-score of the class, %", names, scores),
              figures.dots("how much of it there is", "true seconds in the test split", names,
                           dict(zip(MODALITIES, seconds)), percent=False)]
    return page.figure("classes", panels, "The parser, class by class", (
        "Segment-level F-score of UWAV on the test split, counted over all seconds of all videos, and how many seconds "
        "of each class there are to find. A class without a mark is neither true nor predicted."))


def threshold_figure(page: Page) -> str:
    saved = page.saved
    truth, weak = load_truth(saved.data, "val"), load_weak(saved.data, "val")
    panels, infinite, C = [], [], len(saved.classes)
    for m, modality in enumerate(MODALITIES):
        threshold, logit = saved.labels.thresholds[m], saved.labels.logits["val"][m]
        order, spans = threshold.argsort(stable=True), {}
        infinite += [f"{saved.classes[c]} ({modality})" for c in order if threshold[c].isinf()]
        for name, value in (("true seconds", 1), ("other seconds", 0)):
            z = logit.masked_fill((weak[:, None] == 0) | (truth[m] != value), torch.nan).reshape(-1, C)  # (N T, C)
            bounds = z.nanquantile(torch.tensor([0.1, 0.9]), 0).T  # (C, 2)
            spans[f"logits of {name}, middle 80 %"] = bounds[order].numpy()
        drawn = threshold.masked_fill(threshold.isinf(), torch.nan)[order].numpy()
        panels.append(figures.dots(modality, "teacher's logit", [saved.classes[c] for c in order],
                                   {"threshold": drawn}, spans, percent=False))
    return page.figure("thresholds", panels, "Thresholds of the teacher's logits", (
        "For each class the threshold of best F1 on val, sorted, over the logits of the seconds in which the class is "
        "there and of those in which it is not (videos with the class in their weak label only). The less the two bars "
        "overlap, the better the teacher tells seconds apart; if they coincide, labels are little better than the "
        "weak label. " + (f"Threshold -inf, so every second of a video with the class is labelled: "
                          f"{escape(', '.join(infinite))}." if infinite else "")))


def confusion_figure(page: Page) -> str:
    counts = evidence.modality_confusion(*page.saved.predictions, *load_truth(page.saved.data, "test"))
    return page.figure("confusion", [figures.confusion(counts)], "Audible, visible or both", (
        "Each second of each class in the test videos, by what it truly is (row) and what the parser says (column); "
        "per cell the share of its row and the count. The last row holds false alarms; what is neither in truth nor in "
        "prediction is left out."))


def balance_table(page: Page) -> str:
    saved, rows = page.saved, []
    weak, config = load_weak(saved.data, "train"), saved.training
    for modality, logit, threshold in zip(MODALITIES, saved.labels.logits["train"], saved.labels.thresholds):
        hard = uwav.hard_labels(logit, threshold, weak)  # (N, T, C)
        w_pos, w_neg = map(float, uwav.class_balance(hard, config.W, config.balance_sum))
        ratio = f"{w_pos / w_neg:.1f}" if w_neg else "–"
        rows.append([modality, f"{100 * hard.mean():.2f} %", f"{w_pos:.2f}", f"{w_neg:.2f}", ratio])
    return paragraph(
        "Few entries of the label table (video, second, class) are positive. Eq. 7-8 therefore let the classes of the "
        "video's weak label weigh w_pos in the loss and all others w_neg. Computed from the hard labels of the "
        f"training set, with W = {config.W:g}" + (", and, as in the released code, times the number of classes." if
                                         config.balance_sum else ".")) + table(
        ["modality", "positive entries", "w_pos", "w_neg", "w_pos / w_neg"], rows)


def mixup_figure(page: Page) -> str:
    saved, panels = page.saved, []
    weak, config = load_weak(saved.data, "train"), saved.training
    for m, modality in enumerate(MODALITIES):
        soft = uwav.soft_labels(saved.labels.logits["train"][m], saved.labels.thresholds[m], weak, config.temperature)
        pair = evidence.mixed_pair(soft, config.alpha, config.batch, saved.seed)
        if pair:
            panels.append(figures.mixed_labels(modality, saved.classes, pair))
    if not panels:
        raise FileNotFoundError("an example of mixup: no two segments of the training set are labelled differently")
    return page.figure("mixup", panels, "Mixed labels", (
        "Mixup adds the features of two segments of the batch with weights lambda and 1 - lambda, and asks the "
        "classifier for the equally mixed labels, so the uncertainty of both is kept. Shown is the first pair with "
        f"different classes in a batch of {config.batch} training videos, drawn with seed {saved.seed}; "
        f"lambda ~ Beta({config.alpha:g}, {config.alpha:g})."))


# ---- The whole page ------------------------------------------------------------------------------


def build(saved: Saved, pictures: Path) -> str:
    page = Page(saved.run, pictures, saved)
    page.section("What ran", data_table, settings_table, stage_table, repeatability)
    page.section("Scores", score_tables, difference_figure, sweep_figure, label_table, label_figure)
    page.section("Training", teacher_figure, parser_figure)
    page.section("Uncertainty", reliability_figure, calibration_table, distance_figure)
    page.section("Timelines", timeline_figure)
    page.section("Classes and modalities", class_figure, confusion_figure, threshold_figure)
    page.section("Class balance and mixup", balance_table, mixup_figure)
    return page.html(page.attempt(data_notice))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="RUN/report.html: scores, pictures and what they mean, in one page.")
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder of run_all.sh")
    parser.add_argument("--seed", type=int, default=0, help="which seed's run the pictures show (default: 0)")
    parser.add_argument("--data", type=Path, help="packed folder that the run was made from (default: RUN/data)")
    options = parser.parse_args(arguments)
    with one_sentence_errors():
        saved = Saved(options.run, options.seed, options.data or options.run / "data")
        if not saved.data.is_dir() and not saved.folder.is_dir():
            raise FileNotFoundError(f"{options.run}: holds neither data nor {saved.folder.name}; "
                                    "run `bash run_all.sh` first")
        text = build(saved, options.run / "pictures")
        with atomic(options.run / "report.html") as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"{options.run / 'report.html'}: written, {len(text) / 1e6:.1f} MB; its pictures are in "
              f"{options.run / 'pictures'}")


if __name__ == "__main__":
    main()
