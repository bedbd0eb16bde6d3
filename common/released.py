"""Checkpoints that were trained with the authors' released code: their sizes, and their weights under our names."""

from __future__ import annotations

import pickle
import re
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from common.files import regular

NAMES = (  # of weights, released code -> here: regular expressions, applied in this order
    (r"^proj_([av])\.", r"\1.mlp_in."), (r"^final_proj_([av])\.", r"\1.mlp_out."),
    (r"^([av])_transformer\.encoder", r"\1"), (r"^a\.", "audio."), (r"^v\.", "visual."),
    (r"^hat_encoder\.", ""), (r"^fc_a\.", "audio_proj."), (r"^fc_fusion\.layers\.0", "visual_proj"),
    (r"^fc_prob\.", "classifier."), (r"^fc_frame_att(\.layers\.0)?", "time_pool"),
    (r"^fc_av_att(\.layers\.0)?", "modal_pool"),
    (r"(mlp_in|mlp_out|audio_proj)\.layers\.", r"\1."),
    (r"(mlp_in|mlp_out|audio_proj)\.1\.", r"\1.2."),  # an MLP's layers, numbered without and with the ReLU
    (r"in_proj_", "in_proj."), (r"\.cm_attn", ".cross_attn"), (r"\.norm1", ".norm"), (r"\.norm2", ".feedforward.norm"),
    (r"\.(linear[12])", r".feedforward.\1"))
UNUSED = re.compile(r"hat_encoder\.(final_norm_|norm\d)|[av]_logit_scale|(audio|visual|cmt)_encoder")
PUBLISHED_VISUAL = 2048, 512  # sizes of the 2D and 3D features


class _TensorsOnly(pickle.Unpickler):
    """Unpickles tensors, numbers and containers; anything else in the file is refused, nothing is executed."""

    allowed = {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter",
               "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "_codecs.encode",
               "torch.Size", "torch.device"}

    def find_class(self, module: str, name: str) -> object:
        if f"{module}.{name}" not in self.allowed and not (module == "torch" and name.endswith("Storage")):
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module, name)


def read_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> object:
    """What torch.save wrote, of tensors, numbers and containers, with right checksums; training checkpoints hold NumPy
    numbers, or are of a pickle protocol that weights_only does not read."""
    if zipfile.is_zipfile(regular(path)):  # PyTorch does not look at the checksums; its older format has none
        with zipfile.ZipFile(path) as archive:
            if (broken := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {broken} differs")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        reader = types.SimpleNamespace(
            __name__="tensors_only", Unpickler=_TensorsOnly, load=lambda f, **k: _TensorsOnly(f, **k).load())
        return torch.load(path, map_location=device, weights_only=False, pickle_module=reader)


def weights_of(content: dict) -> dict[str, Tensor]:
    """The weights in a checkpoint under the names that the model gave them. Training checkpoints nest them, mostly in
    `state_dict`, beside the optimiser's state. Raises ValueError."""
    found = {name: x for name, x in content.items() if isinstance(x, Tensor)}
    inside = {k: x for k, x in content.items() if isinstance(x, dict)}
    nested = {k: x for k, x in inside.items() if any(isinstance(y, Tensor) for y in x.values())} or inside
    if not found and nested:
        if len(nested) > 1 and "state_dict" not in nested:
            raise ValueError(f"which weights are meant: it has {', '.join(map(str, nested))}")
        return weights_of(nested.get("state_dict") or nested.popitem()[1])
    plain = {".".join(part for part in name.split(".") if part not in ("module", "_orig_mod")): x
             for name, x in found.items()}  # which DataParallel and torch.compile put there
    if len(plain) < len(found):
        raise ValueError("two weights have one name, but for `module` or `_orig_mod`")
    return plain


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


def han_of(state_dict: dict[str, Tensor], heads: int | None,
           visual_3d_dim: int | None) -> tuple[dict, dict[str, Tensor]]:
    """Fields of HANConfig, and the weights under our names. None: as published. visual_3d_dim: how many of the visual
    inputs are 3D features, of which the HAN of 2020 and that of VALOR tell themselves."""
    older, of_2020 = "fc_v.weight" in state_dict, "hat_encoder.norm1.weight" in state_dict
    weights = _renamed(_one_visual_map(state_dict) if older else state_dict)
    classes, hidden = weights["classifier.weight"].shape
    project = "visual_proj.weight" in weights
    visual_dim = weights["visual_proj.weight"].shape[1] if project else hidden
    if older:
        visual_3d_dim = state_dict["fc_st.weight"].shape[1]
    elif visual_3d_dim is None:
        visual_3d_dim = PUBLISHED_VISUAL[1] if project and visual_dim == sum(PUBLISHED_VISUAL) else 0
    config = dict(
        classes=classes, audio_dim=weights["audio_proj.weight" if older else "audio_proj.0.weight"].shape[1],
        visual_2d_dim=visual_dim - visual_3d_dim, visual_3d_dim=visual_3d_dim, hidden=hidden,
        heads=heads or (1 if of_2020 else 8 if older else 16),
        feedforward=weights["layers.0.feedforward.linear1.weight"].shape[0],
        layers=sum(name.endswith("linear1.weight") for name in weights), project_visual=project,
        audio_first=not of_2020, audio_mlp=not older)
    return config, weights


def _one_visual_map(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Visual features went through three linear maps in a row, fc_v (2D) and fc_st (3D), then fc_fusion: one matrix."""
    layers = "fc_v", "fc_st", "fc_fusion"
    w_2d, w_3d, w = (state_dict[f"{name}.weight"].double() for name in layers)
    b_2d, b_3d, b = (state_dict[f"{name}.bias"].double() for name in layers)
    left, right = w.split([len(w_2d), len(w_3d)], 1)  # (h, h) each
    merged = {"visual_proj.weight": torch.cat([left @ w_2d, right @ w_3d], 1),
              "visual_proj.bias": b + left @ b_2d + right @ b_3d}
    return {name: x for name, x in state_dict.items() if name.split(".")[0] not in layers} | merged
