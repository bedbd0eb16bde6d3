"""Checkpoints that were trained with the authors' released code -> our models."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from uwav import HAN, HANConfig, Teacher, TeacherConfig

RELEASED_NAMES = (  # of weights, released code -> here: regular expressions, applied in this order
    (r"^proj_([av])\.", r"\1.mlp_in."), (r"^final_proj_([av])\.", r"\1.mlp_out."),
    (r"^([av])_transformer\.encoder", r"\1"), (r"^a\.", "audio."), (r"^v\.", "visual."),
    (r"^hat_encoder\.", ""), (r"^fc_a\.", "audio_proj."), (r"^fc_fusion\.layers\.0", "visual_proj"),
    (r"^fc_prob\.", "classifier."), (r"^fc_frame_att\.layers\.0", "time_pool"),
    (r"^fc_av_att\.layers\.0", "modal_pool"),
    (r"(mlp_in|mlp_out|audio_proj)\.layers\.", r"\1."),
    (r"(mlp_in|mlp_out|audio_proj)\.1\.", r"\1.2."),  # an MLP's layers, numbered without and with the ReLU
    (r"in_proj_", "in_proj."), (r"\.cm_attn", ".cross_attn"), (r"\.norm1", ".norm"), (r"\.norm2", ".feedforward.norm"),
    (r"\.(linear[12])", r".feedforward.\1"))
RELEASED_UNUSED = re.compile(r"hat_encoder\.final_norm_|[av]_logit_scale")  # two norms, two numbers


def with_weights(model: Callable[[], nn.Module], weights: dict[str, Tensor]) -> nn.Module:
    """The model that holds these very tensors; making it takes no other memory."""
    with torch.device("meta"):
        made = model()
    made.load_state_dict({name: x.float() for name, x in weights.items()}, assign=True)
    return made


def _renamed(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {}
    for name, weight in state_dict.items():
        if not RELEASED_UNUSED.match(name):
            for theirs, ours in RELEASED_NAMES:
                name = re.sub(theirs, ours, name)
            weights[name] = weight
    return weights


def _count_layers(weights: dict[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix):].split(".")[0] for name in weights if name.startswith(prefix)})


def load_released_teacher(state_dict: dict[str, Tensor], heads: int = 16) -> Teacher:
    """A teacher trained with the released code. Sizes are read off the weights; the number of heads cannot be."""
    weights = _renamed(state_dict)
    hidden, audio_dim = weights["audio.mlp_in.2.weight"].shape[0], weights["audio.mlp_in.0.weight"].shape[1]
    config = TeacherConfig(
        audio_dim, weights["visual.mlp_in.0.weight"].shape[1], hidden, heads,
        feedforward=weights["audio.layers.0.feedforward.linear1.weight"].shape[0],
        layers=_count_layers(weights, "audio.layers."),
        audio_scale=float(state_dict["a_logit_scale"]), visual_scale=float(state_dict["v_logit_scale"]))
    return with_weights(lambda: Teacher(config), weights)


def load_released_han(state_dict: dict[str, Tensor], heads: int = 16, visual_3d_dim: int | None = None) -> HAN:
    """A HAN trained with the released code.

    Neither the heads nor how many of the visual inputs are 3D features can be read off the weights; unless told,
    the latter is the published 512 where the total is the published 2048 + 512, else 0.
    """
    weights, published = _renamed(state_dict), HANConfig()
    classes, hidden = weights["classifier.weight"].shape
    project = "visual_proj.weight" in weights
    visual_dim = weights["visual_proj.weight"].shape[1] if project else hidden
    if visual_3d_dim is None:
        is_published = visual_dim == published.visual_2d_dim + published.visual_3d_dim
        visual_3d_dim = published.visual_3d_dim if is_published else 0
    config = HANConfig(
        classes, weights["audio_proj.0.weight"].shape[1], visual_dim - visual_3d_dim, visual_3d_dim, hidden, heads,
        feedforward=weights["layers.0.feedforward.linear1.weight"].shape[0], layers=_count_layers(weights, "layers."),
        project_visual=project)
    return with_weights(lambda: HAN(config), weights)
