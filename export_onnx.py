"""A trained parser leaves Python: ONNX files that any runtime reads, each checked against PyTorch before it is kept.

    python export_onnx.py RUN OUT                                          # a run of run_all.sh
    python export_onnx.py --released-han FILE --released-teacher FILE OUT  # checkpoints of the authors' code

OUT, the *bundle*, holds (B videos, T segments, C classes; B, T and C are free, of the teacher's inputs too):

    parser.onnx      features -> gated events, audible, visible, both (bool), and their probabilities
    han.onnx         features -> segment and video probabilities
    teacher.onnx     CLAP, CLIP, mask and the texts of *any* classes -> logits
    labels.onnx      logits, weak labels, thresholds -> hard and soft labels (Eq. 4)
    clip_image.onnx  (N, 224, 224, 3) uint8 -> (N, 768)       with --clip-weights
    clap_audio.onnx  (N, 48000) float32     -> (N, 512)       with --clap-weights
    texts.json       the classes' text embeddings, for teacher.onnx
    bundle.json      everything a program must know to use them

A file is written under a temporary name and renamed only after the ONNX checker and a comparison of onnxruntime with
PyTorch, at sizes other than the one that was traced, have passed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

import uwav
from data import FEATURE_SETS, load_target, load_text
from features import LLP_CLASSES, LLP_FEATURES, atomic, one_sentence_errors, read_index, write_json
from stages import SCORES, read_labels

OPSET = 20
FORMAT = 1  # of the bundle
TOLERANCE = 1e-4  # largest difference to PyTorch that is accepted
BATCHES, LENGTHS = (1, 2, 7, 64), (1, 10, 60)  # that every export is tried at
EXAMPLE = dict(B=3, T=5, C=4)  # what is traced: none of the sizes above
LICENCE = "MIT (code and export); the weights follow the terms of the data and encoders they were trained with"

# ---------------------------------------------------------------------------------------------
# What is exported: thin modules around the models, with named inputs and outputs
# ---------------------------------------------------------------------------------------------


class Probabilities(nn.Module):
    """han.onnx"""

    outputs = ("audio_prob", "visual_prob", "video_prob")

    def __init__(self, han: uwav.HAN):
        super().__init__()
        self.han = han

    def forward(self, audio: Tensor, visual_2d: Tensor, visual_3d: Tensor | None = None) -> tuple[Tensor, ...]:
        out = self.han(audio, visual_2d, visual_3d)
        return out.audio_logit.sigmoid(), out.visual_logit.sigmoid(), out.video_prob  # (B, T, C) twice, (B, C)


class Parser(Probabilities):
    """parser.onnx: the gate of SPEC's inference (`uwav.gated_predictions`) inside the graph."""

    outputs = ("audio_event", "visual_event", "av_event", *Probabilities.outputs)

    def forward(self, audio: Tensor, visual_2d: Tensor, visual_3d: Tensor | None = None) -> tuple[Tensor, ...]:
        audio_prob, visual_prob, video_prob = super().forward(audio, visual_2d, visual_3d)
        audio_event, visual_event = uwav.gated_predictions(video_prob, audio_prob, visual_prob)  # (B, T, C) bool each
        return audio_event, visual_event, audio_event & visual_event, audio_prob, visual_prob, video_prob


class TeacherLogits(nn.Module):
    """teacher.onnx"""

    outputs = ("audio_logit", "visual_logit")

    def __init__(self, teacher: uwav.Teacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, audio: Tensor, visual: Tensor, mask: Tensor, audio_text: Tensor, visual_text: Tensor) -> tuple[Tensor, ...]:
        return self.teacher(audio, visual, audio_text, visual_text, mask)  # (B, T, C) each


class Labels(nn.Module):
    """labels.onnx"""

    outputs = ("audio_hard", "visual_hard", "audio_soft", "visual_soft")

    def forward(self, audio_logit: Tensor, visual_logit: Tensor, weak: Tensor, audio_threshold: Tensor,
                visual_threshold: Tensor) -> tuple[Tensor, ...]:
        pairs = ((audio_logit, audio_threshold), (visual_logit, visual_threshold))
        hard = [uwav.hard_labels(z, theta, weak) for z, theta in pairs]  # (B, T, C) each
        soft = [uwav.soft_labels(z, theta, weak, uwav.TrainConfig().temperature) for z, theta in pairs]
        return *hard, *soft


@dataclasses.dataclass(frozen=True)
class Export:
    """One file: the module, and inputs of any size to trace and to try it with."""

    name: str
    module: nn.Module
    inputs: Callable[[int, int, int], dict[str, Tensor]]  # (B, T, C) -> by name
    free: dict[str, dict[int, str]]  # input -> axis -> B, T or C
    lengths: tuple[int, ...] = LENGTHS


def exports_of_han(han: uwav.HAN) -> Iterator[Export]:
    config = han.config
    sizes = dict(audio=config.audio_dim, visual_2d=config.visual_2d_dim)
    if config.visual_3d_dim:
        sizes["visual_3d"] = config.visual_3d_dim

    def inputs(B: int, T: int, C: int) -> dict[str, Tensor]:
        return {name: torch.randn(B, T, D) for name, D in sizes.items()}

    for name, module in (("parser", Parser(han)), ("han", Probabilities(han))):
        yield Export(name, module, inputs, {k: {0: "B", 1: "T"} for k in sizes})


def exports_of_teacher(teacher: uwav.Teacher) -> Iterator[Export]:
    config = teacher.config

    def inputs(B: int, T: int, C: int) -> dict[str, Tensor]:
        length = torch.randint(1, T + 1, (B, 1))  # of each video; the rest is padding
        text = [nn.functional.normalize(torch.randn(C, D), dim=-1) for D in (config.audio_dim, config.visual_dim)]
        return dict(audio=torch.randn(B, T, config.audio_dim), visual=torch.randn(B, T, config.visual_dim),
                    mask=torch.arange(T) < length, audio_text=text[0], visual_text=text[1])

    free = {k: {0: "B", 1: "T"} for k in ("audio", "visual", "mask")} | {k: {0: "C"} for k in ("audio_text", "visual_text")}
    yield Export("teacher", TeacherLogits(teacher), inputs, free)


def exports_of_labels() -> Iterator[Export]:
    def inputs(B: int, T: int, C: int) -> dict[str, Tensor]:
        theta = torch.randn(2, C)
        theta[0, 0] = -math.inf  # "every segment of a video that has the class"
        return dict(audio_logit=3 * torch.randn(B, T, C), visual_logit=3 * torch.randn(B, T, C),
                    weak=(torch.rand(B, C) < 0.5).float(), audio_threshold=theta[0], visual_threshold=theta[1])

    free = {k: {0: "B", 1: "T", 2: "C"} for k in ("audio_logit", "visual_logit")}
    free |= {"weak": {0: "B", 1: "C"}, "audio_threshold": {0: "C"}, "visual_threshold": {0: "C"}}
    yield Export("labels", Labels(), inputs, free)


# ---------------------------------------------------------------------------------------------
# Tracing, checking, keeping
# ---------------------------------------------------------------------------------------------


def trace(export: Export):
    """The onnx.ModelProto of a module: free axes named B, T, C; no trace of the machine it was made on."""
    import onnx

    module = export.module.eval()
    inputs = export.inputs(EXAMPLE["B"], EXAMPLE["T"], EXAMPLE["C"])
    dims = {name: Dim(name, min=1, max=1 << 20) for name in "BTC"}
    shapes = {name: {axis: dims[d] for axis, d in export.free.get(name, {}).items()} for name in inputs}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.onnx.export(module, tuple(inputs.values()), dynamo=True, opset_version=OPSET, external_data=False,
                                    input_names=list(inputs), output_names=list(module.outputs), dynamic_shapes=tuple(shapes.values()),
                                    verbose=False)
    model = program.model_proto
    for graph in (model.graph, *model.functions):  # the exporter notes source files and stack traces
        for node in graph.node:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
        for value in graph.value_info:
            value.ClearField("metadata_props")
            value.ClearField("doc_string")
        graph.ClearField("doc_string")
        graph.ClearField("metadata_props")
    for value in (*model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
    model.ClearField("metadata_props")
    model.producer_name, model.producer_version = "uwav", str(FORMAT)
    onnx.checker.check_model(model, full_check=True)
    return model


def session(path: str | Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def largest_difference(export: Export, path: Path, batches: tuple[int, ...]) -> float:
    """Between onnxruntime and PyTorch over all outputs and sizes; a different bool counts if its probability is not on the edge."""
    run, worst = session(path), 0.0
    generator = torch.Generator().manual_seed(0)
    for n, (B, T) in enumerate((B, T) for B in batches for T in export.lengths):
        torch.manual_seed(int(torch.randint(1 << 30, (), generator=generator)))
        inputs = export.inputs(B, T, 1 + n)
        with torch.inference_mode():
            expected = export.module(*inputs.values())
        got = run.run(None, {k: v.numpy() for k, v in inputs.items()})
        expected = dict(zip(export.module.outputs, expected if isinstance(expected, tuple) else (expected,)))
        for (name, a), b in zip(expected.items(), got):
            a = a.numpy()
            if a.shape != b.shape or a.dtype != b.dtype:
                raise ValueError(f"{export.name}.onnx: {name} is {b.dtype}{b.shape} instead of {a.dtype}{a.shape} at B = {B}, T = {T}")
            if a.dtype == bool:
                worst = max(worst, float(((a != b) & ~_on_the_edge(expected, name)).any()))
            else:
                finite = np.isfinite(a)
                worst = max(worst, float(np.abs(a[finite] - b[finite]).max(initial=0.0)), float((finite != np.isfinite(b)).any()))
    return worst


def _on_the_edge(outputs: dict[str, Tensor], event: str) -> np.ndarray:
    """Where rounding may decide: a segment's or the video's probability within the tolerance of the gate."""
    near = {k: (outputs[k] - uwav.GATE).abs() < TOLERANCE for k in Probabilities.outputs}
    sides = {"audio_event": ("audio",), "visual_event": ("visual",), "av_event": ("audio", "visual")}[event]
    edge = near["video_prob"][:, None, :]
    for side in sides:
        edge = edge | near[f"{side}_prob"]
    return edge.numpy()


def keep(export: Export, out: Path, properties: dict[str, str], batches: tuple[int, ...] = BATCHES) -> dict:
    """Export, check, and only then write OUT/NAME.onnx; returns what bundle.json says of it. Raises ValueError."""
    import onnx

    started = time.monotonic()
    model = trace(export)
    onnx.helper.set_model_props(model, properties)
    path = out / f"{export.name}.onnx"
    with atomic(path) as temporary:
        onnx.save(model, temporary)
        onnx.checker.check_model(str(temporary))
        difference = largest_difference(export, temporary, batches)
        if not difference <= TOLERANCE:
            raise ValueError(f"{path}: not written, onnxruntime and PyTorch differ by {difference:.1e} (at most {TOLERANCE:.0e})")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, onnxruntime within {difference:.1e} of PyTorch at "
          f"{len(batches) * len(export.lengths)} sizes, {time.monotonic() - started:.0f} s", flush=True)
    return describe(path) | dict(verified=dict(batches=list(batches), lengths=list(export.lengths), largest_difference=difference))


def describe(path: Path) -> dict:
    run = session(path)

    def values(items: list) -> dict:
        return {v.name: dict(type=v.type.removeprefix("tensor(").removesuffix(")"), shape=v.shape) for v in items}

    return dict(file=path.name, bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                inputs=values(run.get_inputs()), outputs=values(run.get_outputs()))


# ---------------------------------------------------------------------------------------------
# The encoders
# ---------------------------------------------------------------------------------------------


class Embedding(nn.Module):
    """clip_image.onnx and clap_audio.onnx: what encoders.py computes, but resizing and cropping pictures."""

    outputs = ("embedding",)

    def __init__(self, model: nn.Module, embed: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model, self.embed = model, embed

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x)  # (N, D)


def exports_of_encoders(clip, clap) -> Iterator[Export]:
    if clip is not None:
        yield Export("clip_image", Embedding(clip.model, clip.embed), lambda B, T, C: dict(
            pixels=torch.randint(0, 256, (B, 224, 224, 3), dtype=torch.uint8)), {"pixels": {0: "B"}}, lengths=(1,))
    if clap is not None:
        yield Export("clap_audio", Embedding(clap, clap.forward), lambda B, T, C: dict(wave=torch.rand(B, 48_000) * 1.8 - 0.9),
                     {"wave": {0: "B"}}, lengths=(1,))


@contextlib.contextmanager
def free_batch_size_of_htsat() -> Iterator[None]:
    """HTSAT computes its batch size with `int(...)`, which a trace would bake in without a word."""
    import encoders

    encoders.clap_package()
    from clap_module import htsat

    def window_reverse(windows: Tensor, window_size: int, H: int, W: int) -> Tensor:
        w, C = window_size, windows.shape[-1]
        x = windows.reshape(-1, H // w, W // w, w, w, C)  # (B, H/w, W/w, w, w, C)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, H, W, C)  # (B, H, W, C)

    original, htsat.window_reverse = htsat.window_reverse, window_reverse
    try:
        yield
    finally:
        htsat.window_reverse = original


def export_encoders(out: Path, clip_choice: str | None, clap_choice: str | None, properties: dict[str, str]) -> dict:
    """clip_image.onnx and clap_audio.onnx of the weights named; what bundle.json says of them."""
    import encoders
    import fetch
    from features import need_feature_packages

    need_feature_packages()
    files = {}
    if clip_choice:
        files["clip"] = fetch.clip_weights(clip_choice)
    if clap_choice:
        files["clap"] = fetch.clap_weights(clap_choice)
    fetch.warn_of_random(files)
    clip = encoders.Clip(files["clip"]) if "clip" in files else None
    clap = encoders.ClapAudio(files["clap"]) if "clap" in files else None
    entries = {}
    for export in exports_of_encoders(clip, clap):
        choice, file = (clip_choice, files["clip"]) if export.name == "clip_image" else (clap_choice, files["clap"])
        with free_batch_size_of_htsat():
            entry = keep(export, out, properties)
        entries[export.name] = entry | dict(weights=fetch.identity_of_weights(choice, file))
    return entries
