"""Sets of configurations: the published run, one small enough for two CPU cores, and the rows of the ablation."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from field.coleaf import CoLeaFConfig, CoLeaFTraining
from field.jomold import JoMoLDConfig, JoMoLDTraining
from field.leap import LEAPConfig, LEAPTraining
from field.mgn import MGNConfig
from field.mm_pyramid import MMPyramidConfig
from uwav import CLIP_CLAP, HANConfig, PretrainConfig, TeacherConfig, TrainConfig


class Preset(NamedTuple):
    teacher: TeacherConfig
    pretrain: PretrainConfig
    han: dict[str, HANConfig]  # by feature set
    train: TrainConfig
    field: dict[str, tuple]  # the other systems (field/): their networks, for features `base`, and their training


def for_features(config: HANConfig, features: str, classes: int) -> HANConfig:
    """The same network for another feature set: only what it reads differs."""
    inputs = {} if features == "base" else {x: getattr(CLIP_CLAP, x) for x in
                                            ("audio_dim", "visual_2d_dim", "visual_3d_dim")}
    return replace(config, classes=classes, **inputs)


_SMALL = dict(hidden=64, heads=4, feedforward=128, layers=2)
_SMALL_TRAIN = TrainConfig(epochs=8, batch=32, warmup=2, peak_lr=2e-3, min_lr=1e-4)
_TEXTS = CLIP_CLAP.audio_dim + CLIP_CLAP.visual_2d_dim  # CLAP's and CLIP's embeddings of a name, end to end
PRESETS = {
    "paper": Preset(TeacherConfig(), PretrainConfig(), {"base": HANConfig(), "clip_clap": CLIP_CLAP}, TrainConfig(), {
        "leap": (LEAPConfig(text_dim=_TEXTS), LEAPTraining()), "noise": (JoMoLDConfig(), JoMoLDTraining()),
        "jomold": (JoMoLDConfig(), JoMoLDTraining()), "coleaf": (CoLeaFConfig(), CoLeaFTraining()),
        "mgn": (MGNConfig(), TrainConfig()), "mm_pyramid": (MMPyramidConfig(), TrainConfig())}),
    # The same method and losses, smaller models, fewer epochs and a learning rate to match. The teacher's were found by
    # the quality of its labels, the HAN's by how soon one row's validation score stops rising (docs/demo_world.md).
    "demo": Preset(
        TeacherConfig(hidden=128, heads=4, feedforward=256, layers=2),
        PretrainConfig(epochs=7, batch=16, warmup=3, peak_lr=3e-4, min_lr=3e-5),
        {"base": HANConfig(**_SMALL), "clip_clap": replace(CLIP_CLAP, **_SMALL, project_visual=True)},
        _SMALL_TRAIN,
        # The others by one rule, rates and epochs by validation: docs/field.md.
        {"leap": (LEAPConfig(**_SMALL, text_dim=_TEXTS, decoder_heads=4, decoder_feedforward=128),
                  LEAPTraining(epochs=32, drop_every=12, peak_lr=1e-3)),
         "noise": (JoMoLDConfig(hidden=64, feedforward=128), JoMoLDTraining(epochs=64, lr_epochs=16, peak_lr=8e-3)),
         "jomold": (JoMoLDConfig(hidden=64, feedforward=128), JoMoLDTraining(epochs=64, lr_epochs=16, peak_lr=4e-3)),
         "coleaf": (CoLeaFConfig(hidden=64, feedforward=128),
                    CoLeaFTraining(epochs=32, lr_epochs=19, peak_lr=8e-3, references_from=4, anchor_from=11)),
         "mgn": (MGNConfig(hidden=64, heads=4, feedforward=128, layers=1, cross_layers=2),
                 replace(_SMALL_TRAIN, peak_lr=4e-3, min_lr=2e-4)),
         "mm_pyramid": (MMPyramidConfig(hidden=64, heads=4, feedforward=128),
                        replace(_SMALL_TRAIN, peak_lr=8e-3, min_lr=4e-4))}),
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
