"""How four constants of the demo world were fitted: the noise and the alignment at which labels are as good as published.

    python tests/helpers/calibrate.py TRIALS.json [--seeds N]    # half an hour; goes on from the trials that the file holds

What came out and what it means: docs/demo_world.md. A maintainer's tool: no run needs it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
import torch.nn.functional as F

import uwav
from common.command import one_sentence_errors
from common.files import read_json, write_json
from data import demo_world
from data.annotations import LLP_SEGMENTS
from data.demo_world import WorldConfig, invented_llp, invented_unav
from data.layout import TEXTED
from train.presets import PRESETS
from uwav import PretrainConfig, SourceSplit, TargetSplit, TeacherConfig

SEGMENT_LABELS = dict(seg_a=80.5, seg_v=61.7)  # published: hard labels per segment (VALOR), LLP test; paper, Table 2
TEACHER_LABELS = dict(seg_a=78.4, seg_v=74.5)  # of the teacher
FIT_SEED = 2_000_000  # first seed of the fit's own worlds, which no table reports
FIT_WORLDS, FIT_TEST = 8, 1000  # for the alignment; test videos of each
BISECTIONS = 8  # of an alignment
TRIALS = ((2.0, 2.0), (2.6, 2.6))  # audio and visual noise at which teachers are trained


class World(demo_world.World):
    """Its splits in memory, as training wants them."""

    def whole(self, dataset: str, name: str) -> tuple[torch.Tensor, ...]:
        """All embeddings of a split, (segments, D) half, of audio and of visual."""
        return tuple(torch.from_numpy(np.concatenate(list(self.embeddings(dataset, name, f)))) for f in TEXTED)

    def target(self, name: str) -> TargetSplit:
        split, (audio, visual) = getattr(self.llp, name), self.whole("llp", name)
        weak, *truth = (torch.from_numpy(x) for x in (split.weak, split.audio, split.visual))
        per_video = (len(weak), LLP_SEGMENTS, -1)
        return TargetSplit(audio.view(per_video), visual.view(per_video), None, weak.float(), *truth)

    def source(self, name: str) -> SourceSplit:
        labels = getattr(self.unav, name).labels
        label, length = torch.from_numpy(np.concatenate(labels)), np.array([len(x) for x in labels])
        return SourceSplit(*self.whole("unav", name), label, length)

    def texts(self, dataset: str) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(self.geometry[dataset, feature].text) for feature in TEXTED)


def label_scores(world: World, logits_of: Callable) -> dict[str, float]:
    """The ten scores of hard labels on the test split, thresholds from validation; logits_of(split): two (N, T, C)."""
    val, test = (world.target(split) for split in ("val", "test"))
    thresholds = [uwav.fit_thresholds(z, truth, val.weak)[0]
                  for z, truth in zip(logits_of(val), (val.audio_truth, val.visual_truth))]
    hard = [uwav.hard_labels(z, threshold, test.weak) for z, threshold in zip(logits_of(test), thresholds)]
    return uwav.parsing_scores(*hard, test.audio_truth, test.visual_truth)


def segment_scores(world: World) -> dict[str, float]:
    """Those of labels per segment, without a teacher."""
    texts = world.texts("llp")
    return label_scores(world, lambda split: [
        F.normalize(x, dim=-1) @ text.T for x, text in zip(split.inputs(slice(None))[:2], texts)])


def teacher_scores(world: World, model_config: TeacherConfig, config: PretrainConfig) -> dict[str, float]:
    """Those of a teacher pre-trained in this world, and how much its two branches move."""
    validation, text = world.source("validation"), world.texts("unav")
    model = uwav.train_teacher(world.source("train"), validation, text, model_config, config)
    spread = {k: x for k, x in uwav.teacher_scores(model, validation, text).items() if k.startswith("spread")}
    dead = sum(x < uwav.DEAD_BRANCH for x in spread.values())
    scores = label_scores(world, lambda split: uwav.teacher_logits(model, split, world.texts("llp")))
    return scores | spread | dict(dead=dead)


def mean(scores: Iterable[dict[str, float]]) -> dict[str, float]:
    scores = list(scores)
    return {name: sum(s[name] for s in scores) / len(scores) for name in scores[0]}


def fit_alignment(config: WorldConfig, seeds: list[int]) -> dict[str, float]:
    """The alignments at which, with config's noise, the mean per-segment scores are the published ones."""
    annotations = [(invented_llp(replace(config, seed=s)), invented_unav(replace(config, seed=s))) for s in seeds]
    low, high = dict.fromkeys(SEGMENT_LABELS, 0.0), dict.fromkeys(SEGMENT_LABELS, 1.0)
    for _ in range(BISECTIONS):
        middle = {score: (low[score] + high[score]) / 2 for score in low}
        config = replace(config, audio_alignment=middle["seg_a"], visual_alignment=middle["seg_v"])
        scores = mean(segment_scores(World(replace(config, seed=s), *x)) for s, x in zip(seeds, annotations))
        for score, published in SEGMENT_LABELS.items():
            side = low if scores[score] < published else high
            side[score] = middle[score]
    return dict(audio_alignment=config.audio_alignment, visual_alignment=config.visual_alignment) | scores


def calibrate(path: Path, number: int, model_config: TeacherConfig, config: PretrainConfig) -> WorldConfig:
    """Fit noise, by `number` teachers, and alignment; what is finished stands in `path` and is not done again."""
    done = read_json(path) if path.exists() else {}
    seeds = [FIT_SEED + n for n in range(FIT_WORLDS)]

    def once(title: str, compute: Callable[..., dict], *arguments) -> dict[str, float]:
        if title not in done:
            started = time.monotonic()
            done[title] = compute(*arguments) | dict(seconds=time.monotonic() - started)
            write_json(path, done)
        print(f"{title}: " + "  ".join(f"{name} {x:.4g}" for name, x in done[title].items()), flush=True)
        return done[title]

    def trial(audio_noise: float, visual_noise: float) -> tuple[WorldConfig, dict[str, float]]:
        world = WorldConfig(audio_noise=audio_noise, visual_noise=visual_noise, test=FIT_TEST)
        title = f"noise {audio_noise:.3f} {visual_noise:.3f}"
        fitted = once(f"{title}, per segment", fit_alignment, world, seeds)
        world = replace(world, **{name: fitted[name] for name in ("audio_alignment", "visual_alignment")})
        return world, mean(once(f"{title}, teacher {n}", teacher_scores, World(replace(world, seed=s)), model_config,
                                replace(config, seed=config.seed + n)) for n, s in enumerate(seeds[:number]))

    scores = [trial(*noise)[1] for noise in TRIALS]
    fitted = []
    for noise, (score, published) in zip(np.log(TRIALS).T, TEACHER_LABELS.items()):
        slope, level = np.polyfit(noise, [s[score] - published for s in scores], 1)  # a line through the trials
        fitted.append(float(np.exp(-level / slope)))
    return trial(*fitted)[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fit the demo world to the scores of published labels.")
    parser.add_argument("trials", type=Path, help="JSON file for finished trials; the same command goes on from there")
    parser.add_argument("--seeds", type=int, default=3, help="worlds and teachers (default: 3)")
    options = parser.parse_args()
    with one_sentence_errors():
        world = calibrate(options.trials, options.seeds, PRESETS["demo"].teacher, PRESETS["demo"].pretrain)
        for name in ("audio_noise", "visual_noise", "audio_alignment", "visual_alignment"):
            print(f"    {name}: float = {getattr(world, name):.3g}")
