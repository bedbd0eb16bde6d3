"""Checkpoints that were trained with the authors' released code: their sizes, and their weights under our names."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

NAMES = (  # of weights, released code -> here: regular expressions, applied in this order
    (r"^proj_([av])\.", r"\1.mlp_in."), (r"^final_proj_([av])\.", r"\1.mlp_out."),
    (r"^([av])_transformer\.encoder", r"\1"), (r"^a\.", "audio."), (r"^v\.", "visual."),
    (r"^hat_encoder\.", ""), (r"^fc_a\.", "audio_proj."), (r"^fc_fusion\.layers\.0", "visual_proj"),
    (r"^fc_prob\.", "classifier."), (r"^fc_frame_att\.layers\.0", "time_pool"),
    (r"^fc_av_att\.layers\.0", "modal_pool"),
    (r"(mlp_in|mlp_out|audio_proj)\.layers\.", r"\1."),
    (r"(mlp_in|mlp_out|audio_proj)\.1\.", r"\1.2."),  # an MLP's layers, numbered without and with the ReLU
    (r"in_proj_", "in_proj."), (r"\.cm_attn", ".cross_attn"), (r"\.norm1", ".norm"), (r"\.norm2", ".feedforward.norm"),
    (r"\.(linear[12])", r".feedforward.\1"))
UNUSED = re.compile(r"hat_encoder\.final_norm_|[av]_logit_scale")  # two norms, two numbers


def with_weights(model: Callable[[], nn.Module], weights: dict[str, Tensor]) -> nn.Module:
    """The model that holds these very tensors; making it takes no other memory."""
    with torch.device("meta"):
        made = model()
    made.load_state_dict({name: x.float() for name, x in weights.items()}, assign=True)
    return made


def _renamed(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {}
    for name, weight in state_dict.items():
        if not UNUSED.match(name):
            for theirs, ours in NAMES:
                name = re.sub(theirs, ours, name)
            weights[name] = weight
    return weights


def teacher_of(state_dict: dict[str, Tensor], heads: int) -> tuple[dict, dict[str, Tensor]]:
    """Fields of TeacherConfig, and the weights under our names. Sizes are read off the weights."""
    weights = _renamed(state_dict)
    config = dict(
        audio_dim=weights["audio.mlp_in.0.weight"].shape[1], visual_dim=weights["visual.mlp_in.0.weight"].shape[1],
        hidden=weights["audio.mlp_in.2.weight"].shape[0], heads=heads,
        feedforward=weights["audio.layers.0.feedforward.linear1.weight"].shape[0],
        layers=sum(name.startswith("audio.") and name.endswith("linear1.weight") for name in weights),
        audio_scale=float(state_dict["a_logit_scale"]), visual_scale=float(state_dict["v_logit_scale"]))
    return config, weights


def han_of(state_dict: dict[str, Tensor], heads: int, visual_3d_dim: int) -> tuple[dict, dict[str, Tensor]]:
    """Fields of HANConfig, and the weights under our names; visual_3d_dim: how many of the visual inputs are 3D
    features, if there are more inputs than that."""
    weights = _renamed(state_dict)
    classes, hidden = weights["classifier.weight"].shape
    project = "visual_proj.weight" in weights
    visual_dim = weights["visual_proj.weight"].shape[1] if project else hidden
    config = dict(
        classes=classes, audio_dim=weights["audio_proj.0.weight"].shape[1], visual_2d_dim=visual_dim - visual_3d_dim,
        visual_3d_dim=visual_3d_dim, hidden=hidden, heads=heads,
        feedforward=weights["layers.0.feedforward.linear1.weight"].shape[0],
        layers=sum(name.endswith("linear1.weight") for name in weights), project_visual=project)
    return config, weights
