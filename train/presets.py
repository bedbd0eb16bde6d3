"""Sets of configurations: the published run, one small enough for two CPU cores, and the rows of the ablation."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from uwav import CLIP_CLAP, HANConfig, PretrainConfig, TeacherConfig, TrainConfig


class Preset(NamedTuple):
    teacher: TeacherConfig
    pretrain: PretrainConfig
    han: dict[str, HANConfig]  # by feature set
    train: TrainConfig


_SMALL = dict(hidden=64, heads=4, feedforward=128, layers=2)
PRESETS = {
    "paper": Preset(TeacherConfig(), PretrainConfig(), {"base": HANConfig(), "clip_clap": CLIP_CLAP}, TrainConfig()),
    # The same method and losses, smaller models, fewer epochs and a learning rate to match. The teacher's were found by
    # the quality of its labels, the HAN's by how soon one row's validation score stops rising (docs/demo_world.md).
    "demo": Preset(
        TeacherConfig(hidden=128, heads=4, feedforward=256, layers=2),
        PretrainConfig(epochs=7, batch=16, warmup=3, peak_lr=3e-4, min_lr=3e-5),
        {"base": HANConfig(**_SMALL), "clip_clap": replace(CLIP_CLAP, **_SMALL, project_visual=True)},
        TrainConfig(epochs=8, batch=32, warmup=2, peak_lr=2e-3, min_lr=1e-4)),
}

# The rows of the paper's ablation: what each of them sets in TrainConfig.
ABLATION = {
    "video_only": dict(pseudo_label="none", reweight=False, mixup=False),
    "binary": dict(pseudo_label="hard", reweight=False, mixup=False),
    "soft": dict(pseudo_label="soft", reweight=False, mixup=False),
    "soft_reweight": dict(pseudo_label="soft", reweight=True, mixup=False),
    "soft_mixup": dict(pseudo_label="soft", reweight=False, mixup=True),
    "full": dict(pseudo_label="soft", reweight=True, mixup=True),
}
