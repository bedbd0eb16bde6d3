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

The files are written to OUT/.part and moved to OUT only when the ONNX checker has passed all of them and onnxruntime
agrees with PyTorch, at sizes other than the one that was traced. Until then OUT keeps what it had.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

try:
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401  (the exporter needs it)
except ModuleNotFoundError as error:
    raise SystemExit(f"error: exporting needs {error.name}: pip install onnx onnxscript onnxruntime-gpu") from None

import uwav
from common.command import one_sentence_errors, working_in
from common.files import atomic, write_json
from data.annotations import LLP_CLASSES, LLP_SEGMENTS
from data.layout import FEATURE_SETS, LLP_FEATURES, read_index
from data.splits import load_target, load_text
from train.checkpoints import load_model
from train.stages import read_labels
from uwav import SCORES
from video.encoders import quiet

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
    """parser.onnx: the same behind the gate of inference (`uwav.gated_predictions`), which is part of the graph."""

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

    def forward(self, audio: Tensor, visual: Tensor, mask: Tensor, audio_text: Tensor,
                visual_text: Tensor) -> tuple[Tensor, ...]:
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

    free = {k: {0: "B", 1: "T"} for k in ("audio", "visual", "mask")} | dict(audio_text={0: "C"}, visual_text={0: "C"})
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


def trace(export: Export) -> onnx.ModelProto:
    """A module as a graph: free axes named B, T, C; no trace of the machine it was made on."""
    module = export.module.eval()
    inputs = export.inputs(EXAMPLE["B"], EXAMPLE["T"], EXAMPLE["C"])
    dims = {name: Dim(name, min=1, max=1 << 20) for name in "BTC"}
    shapes = {name: {axis: dims[d] for axis, d in export.free.get(name, {}).items()} for name in inputs}
    with quiet(), torch.no_grad():  # the exporter speaks of itself
        program = torch.onnx.export(
            module, tuple(inputs.values()), dynamo=True, opset_version=OPSET, external_data=False, verbose=False,
            input_names=list(inputs), output_names=list(module.outputs), dynamic_shapes=tuple(shapes.values()))
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


def session(path: str | Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def largest_difference(export: Export, path: Path, batches: tuple[int, ...]) -> float:
    """Between onnxruntime and PyTorch, over all outputs and sizes. A bool may differ where rounding decides it."""
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
                raise ValueError(f"{export.name}.onnx, B = {B}, T = {T}: {name} is {b.dtype} {b.shape} instead of "
                                 f"{a.dtype} {a.shape}")
            if a.dtype == bool:
                worst = max(worst, float(((a != b) & ~_on_the_edge(expected, name)).any()))
            else:
                finite = np.isfinite(a)
                worst = max(worst, float(np.abs(a[finite] - b[finite]).max(initial=0.0)),
                            float((finite != np.isfinite(b)).any()))
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
    started = time.monotonic()
    model = trace(export)
    onnx.helper.set_model_props(model, properties)
    path = out / f"{export.name}.onnx"
    with atomic(path) as temporary:
        onnx.save(model, temporary)
        onnx.checker.check_model(str(temporary))
        difference = largest_difference(export, temporary, batches)
        if not difference <= TOLERANCE:
            raise ValueError(f"{path.name}: not written, onnxruntime and PyTorch differ by {difference:.1e}, "
                             f"more than {TOLERANCE:.0e}")
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, onnxruntime within {difference:.1e} of PyTorch at "
          f"{len(batches) * len(export.lengths)} sizes, {time.monotonic() - started:.0f} s", flush=True)
    return describe(path) | dict(verified=dict(batches=batches, lengths=export.lengths, largest_difference=difference))


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
    """clip_image.onnx and clap_audio.onnx: what video/encoders.py computes, but resizing and cropping pictures."""

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
        yield Export("clap_audio", Embedding(clap, clap.forward), lambda B, T, C: dict(
            wave=0.3 * torch.randn(B, 48_000)), {"wave": {0: "B"}}, lengths=(1,))


@contextlib.contextmanager
def free_batch_size_of_htsat() -> Iterator[None]:
    """HTSAT computes its batch size with `int(...)`, which a trace would bake in without a word."""
    from video import encoders

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
    from video import encoders, weights
    from features import need_feature_packages

    need_feature_packages()
    files = {}
    if clip_choice:
        files["clip"] = weights.clip_weights(clip_choice)
    if clap_choice:
        files["clap"] = weights.clap_weights(clap_choice)
    weights.warn_of_random(files)
    clip = encoders.ClipEncoder(files["clip"]) if "clip" in files else None
    clap = encoders.ClapEncoder(files["clap"]) if "clap" in files else None
    entries = {}
    for export in exports_of_encoders(clip, clap):
        choice, file = (clip_choice, files["clip"]) if export.name == "clip_image" else (clap_choice, files["clap"])
        with free_batch_size_of_htsat():
            entry = keep(export, out, properties)
        entries[export.name] = entry | dict(weights=weights.identity_of_weights(choice, file))
    return entries


# ---------------------------------------------------------------------------------------------
# Smaller variants of the parser, each measured
# ---------------------------------------------------------------------------------------------

TIMED_RUNS = 50


def make_variant(kind: str, source: Path, target: Path) -> None:
    """parser.onnx in half precision, or with 8-bit weights."""
    if kind == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with quiet():  # it would like the model to be preprocessed, which changes nothing here
            quantize_dynamic(str(source), str(target), weight_type=QuantType.QInt8)
        return
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = OnnxModel(convert_float_to_float16(onnx.load(source), keep_io_types=True))
    model.topological_sort()  # the conversion leaves its casts at the end
    onnx.save(model.model, target)


def measure(path: Path, inputs: dict[str, np.ndarray], truth: tuple[Tensor, Tensor] | None) -> tuple[dict, dict]:
    """(outputs on all of `inputs`, {bytes, ms_batch_1, and the ten scores if there is truth})."""
    run, N = session(path), len(inputs["audio"])
    chunks = [run.run(None, {k: x[i : i + 64] for k, x in inputs.items()}) for i in range(0, N, 64)]
    outputs = dict(zip(Parser.outputs, (np.concatenate(x) for x in zip(*chunks))))
    one, times = {k: x[:1] for k, x in inputs.items()}, []
    for _ in range(TIMED_RUNS):
        started = time.perf_counter()
        run.run(None, one)
        times.append(1e3 * (time.perf_counter() - started))
    figures = dict(bytes=path.stat().st_size, ms_batch_1=statistics.median(times))
    if truth is not None:
        events = [torch.from_numpy(outputs[k]) for k in ("audio_event", "visual_event")]
        figures["scores"] = uwav.parsing_scores(*events, *truth)
    return outputs, figures


def keep_variants(kinds: list[str], out: Path, inputs: dict[str, np.ndarray], truth: tuple[Tensor, Tensor] | None,
                  measured_on: str) -> dict:
    """parser_KIND.onnx beside parser.onnx; size, speed, and how far and how often it disagrees with fp32."""
    reference, figures = measure(out / "parser.onnx", inputs, truth)
    rows = {"fp32": figures | dict(file="parser.onnx")}
    for kind in kinds:
        path = out / f"parser_{kind}.onnx"
        with atomic(path) as temporary:
            make_variant(kind, out / "parser.onnx", temporary)
            onnx.checker.check_model(str(temporary))
            outputs, figures = measure(temporary, inputs, truth)
        flips = sum(int((outputs[k] != reference[k]).sum()) for k in ("audio_event", "visual_event"))
        difference = max(float(np.abs(outputs[k] - reference[k]).max()) for k in Probabilities.outputs)
        rows[kind] = figures | describe(path) | dict(
            largest_difference=difference, flips=flips, predictions=2 * reference["audio_event"].size,
            events=int(sum(reference[k].sum() for k in ("audio_event", "visual_event"))))
    print(f"parser, measured on {measured_on}:")
    for kind, row in rows.items():
        line = f"  {kind:5s} {row['bytes'] / 1e6:7.1f} MB  {row['ms_batch_1']:6.2f} ms at batch 1"
        if kind != "fp32":
            line += (f"  largest difference of a probability {row['largest_difference']:.1e}, {row['flips']} of "
                     f"{row['predictions']} predictions flip ({row['events']} are positive)")
        print(line)
        if "scores" in row:
            print("        " + "  ".join(f"{k} {row['scores'][k]:.2f}" for k in SCORES))
    return dict(measured_on=measured_on, rows=rows)


# ---------------------------------------------------------------------------------------------
# The bundle
# ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Source:
    """What is exported and what is known of it."""

    han: uwav.HAN
    teacher: uwav.Teacher | None
    classes: list[str]
    made_from: str
    segments: int = LLP_SEGMENTS  # of the clips it was trained on
    thresholds: tuple[Tensor, Tensor] | None = None  # (C,) audio and visual, of the pseudo-labels
    texts: tuple[Tensor, Tensor] | None = None  # (C, 512), (C, 768)
    data: Path | None = None  # packed folder, on whose test split variants are measured


def source_of_run(run: Path, seed: int, features: str | None, row: str, data: Path | None) -> Source:
    """The models of a run of run_all.sh. Raises FileNotFoundError or ValueError naming what is missing."""
    folder, data = run / f"seed{seed}", data or run / "data"
    index = read_index(data)
    if features is None:
        found = [name for name in ("clip_clap", "base") if (folder / name / row / "han.pt").exists()]
        if not found:
            raise FileNotFoundError(f"{folder}/clip_clap/{row}/han.pt: no such file, so {run} holds no trained HAN")
        features = found[0]
    han, teacher, labels = _load(folder / features / row / "han.pt", uwav.HAN), None, folder / "labels_teacher.npz"
    if "unav" in index or (folder / "teacher.pt").exists():  # with own data it may be elsewhere, or there is none
        teacher = _load(folder / "teacher.pt", uwav.Teacher)
    if "unav" not in index and not labels.exists():
        labels = folder / "labels_segment.npz"
    kind = index["source"] if isinstance(index["source"], str) else "demo world"
    made_from = f"{'LLP' if kind == 'pack' else kind}, features {features}, {row}, seed {seed}"
    segments, classes = index["llp"].get("segments", LLP_SEGMENTS), index["llp"]["classes"]
    thresholds = read_labels(labels, "cpu").thresholds
    for path, C in ((folder / features / row / "han.pt", han.config.classes), (labels, len(thresholds[0]))):
        if C != len(classes):
            raise ValueError(f"{path}: made for {C} classes, but {data} has {len(classes)}")
    return Source(han, teacher, classes, made_from, segments, thresholds, load_text(data, "llp", "cpu"), data)


def source_of_released(han: Path, teacher: Path | None, heads: int, visual_3d_dim: int | None) -> Source:
    """Checkpoints of the authors' code."""
    models = (_load(han, uwav.HAN, heads, visual_3d_dim), teacher and _load(teacher, uwav.Teacher, heads))
    C = models[0].config.classes
    classes = list(LLP_CLASSES) if C == len(LLP_CLASSES) else [f"class {c}" for c in range(C)]
    return Source(*models, classes, "checkpoints of the authors' code")


def _load(path: Path, kind: type, *sizes: int | None) -> nn.Module:
    model = load_model(path, "cpu", *sizes)
    if not isinstance(model, kind):
        raise ValueError(f"{path}: holds a {type(model).__name__}, expected a {kind.__name__}")
    return model


def describe_source(source: Source) -> dict:
    """All that a program must know besides the files themselves."""
    config = source.han.config
    feature_set = "base" if config.audio_dim == uwav.HANConfig().audio_dim else "clip_clap"
    names = dict(zip(("audio", "visual_2d", "visual_3d"), FEATURE_SETS[feature_set]))
    sizes = dict(audio=config.audio_dim, visual_2d=config.visual_2d_dim, visual_3d=config.visual_3d_dim)
    inputs = {k: dict(feature=names[k], size=sizes[k], per_second=1) for k in sizes if sizes[k]}
    if LLP_FEATURES[names["visual_2d"]][1] > 1:
        inputs["visual_2d"]["averaged_from"] = LLP_FEATURES[names["visual_2d"]][1]
    thresholds = None
    if source.thresholds is not None:  # JSON has no infinity: null is a threshold of -inf
        finite = [[x if math.isfinite(x) else None for x in theta.tolist()] for theta in source.thresholds]
        thresholds = dict(audio=finite[0], visual=finite[1])
    return dict(
        format=FORMAT, name="uwav", classes=source.classes, made_from=source.made_from, licence=LICENCE, gate=uwav.GATE,
        features=dict(set=feature_set, inputs=inputs), segments=source.segments,
        preprocessing=dict(
            segment_seconds=1,
            picture=dict(shown_at=0.5, short_side=224, resize="bicubic, antialiased, as Pillow does",
                         crop="centre, 224 x 224", values="RGB, uint8; normalisation is inside the graph"),
            sound=dict(rate=48_000, channels="averaged", samples=48_000, values="float32 in [-1, 1]"),
            prompts=dict(clip="A photo of {}", clap="This is the sound of {}")),
        label_thresholds=thresholds, label_temperature=uwav.TrainConfig().temperature,
        versions={name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript")})


def export_bundle(source: Source, out: Path, clip_weights: str | None = None, clap_weights: str | None = None,
                  variants: list[str] | None = None) -> dict:
    """Write the whole bundle; bundle.json last. Raises ValueError if a file does not agree with PyTorch.

    A complete bundle of the same models and options is kept as it is.
    """
    info = describe_source(source)
    properties = {k: v if isinstance(v, str) else json.dumps(v) for k, v in info.items()}
    weights = [x for m in (source.han, source.teacher) if m is not None for x in m.state_dict().values()]
    info["made_with"] = dict(
        models=hashlib.sha256(b"".join(x.numpy().tobytes() for x in weights)).hexdigest(), clip_weights=clip_weights,
        clap_weights=clap_weights, variants=variants or [])
    before = _complete_bundle(out)
    if before and {k: before.get(k) for k in info} == json.loads(json.dumps(info)):
        print(f"{out}: exported before, kept")
        return before
    part = out / ".part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _fill_bundle(part, source, info, properties)
        (out / "bundle.json").unlink(missing_ok=True)  # no bundle while its files change
        for name in ("parser", "han", "teacher", "labels", "clip_image", "clap_audio", "parser_fp16", "parser_int8"):
            (out / f"{name}.onnx").unlink(missing_ok=True)  # of an earlier export with other options
        for path in sorted(part.iterdir(), key=lambda p: p.name == "bundle.json"):  # that one last
            os.replace(path, out / path.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return info


def _fill_bundle(out: Path, source: Source, info: dict, properties: dict[str, str]) -> None:
    """All files into an empty folder; `info` gets what bundle.json says of them."""
    clip_weights, clap_weights, variants = (info["made_with"][k] for k in ("clip_weights", "clap_weights", "variants"))
    exports = [*exports_of_han(source.han), *exports_of_labels()]
    if source.teacher is not None:
        exports += exports_of_teacher(source.teacher)
    info["files"] = {export.name: keep(export, out, properties) for export in exports}
    if clip_weights or clap_weights:
        info["files"] |= export_encoders(out, clip_weights, clap_weights, properties)
    if source.texts is not None:
        clap, clip = (x.tolist() for x in source.texts)
        write_json(out / "texts.json", dict(classes=source.classes, clap=clap, clip=clip))
    if variants:
        info["variants"] = keep_variants(variants, out, *_measuring_data(source, info["features"]["set"]))
    write_json(out / "bundle.json", info)


def _complete_bundle(out: Path) -> dict | None:
    """The description of a bundle that was finished; None if there is none."""
    try:
        info = json.loads((out / "bundle.json").read_text(encoding="utf-8"))
        files = [*info["files"].values(), *info.get("variants", {}).get("rows", {}).values()]
        whole = all((out / f["file"]).stat().st_size == f["bytes"] for f in files)
        return info if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _measuring_data(source: Source,
                    feature_set: str) -> tuple[dict[str, np.ndarray], tuple[Tensor, Tensor] | None, str]:
    """The test split of the run (of own data without one: val, else train), or random features."""
    if source.data is not None:
        split = list(read_index(source.data)["llp"]["videos"])[-1]
        data = load_target(source.data, split, feature_set, "cpu")
        named = zip(("audio", "visual_2d", "visual_3d"), data.inputs(slice(None)))
        inputs = {k: x.numpy() for k, x in named if x is not None}
        truth = None if data.audio_truth is None else (data.audio_truth, data.visual_truth)
        return inputs, truth, f"the {split} split of {source.made_from}"
    torch.manual_seed(0)
    inputs = next(exports_of_han(source.han)).inputs(256, 10, 0)
    return {k: x.numpy() for k, x in inputs.items()}, None, "random features"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Export a trained parser to ONNX; every file is checked before it is kept.")
    parser.add_argument("paths", type=Path, nargs="+", metavar="[RUN] OUT", help="folder of a run; folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the run (default: 0)")
    parser.add_argument("--features", choices=FEATURE_SETS, help="of the run (default: clip_clap, else base)")
    parser.add_argument("--row", default="full", help="of the ablation (default: full, which is UWAV)")
    parser.add_argument("--data", type=Path, help="packed folder of the run (default: RUN/data)")
    parser.add_argument("--released-han", type=Path, metavar="FILE", help="a HAN of the authors' code, instead of RUN")
    parser.add_argument("--released-teacher", type=Path, metavar="FILE", help="a teacher of the authors' code")
    parser.add_argument("--heads", type=int, default=16, help="of released checkpoints, which do not say (default: 16)")
    parser.add_argument("--visual-3d-dim", type=int,
                        help="3D features of a released HAN (default: 512 if it has the published sizes, else 0)")
    parser.add_argument("--clip-weights", metavar="openai|random|FILE", help="export CLIP's image encoder, too")
    parser.add_argument("--clap-weights", metavar="NAME|random|FILE", help="export CLAP's audio encoder, too")
    parser.add_argument("--fp16", action="store_true", help="also parser_fp16.onnx, measured")
    parser.add_argument("--int8", action="store_true", help="also parser_int8.onnx, measured")
    options = parser.parse_args(arguments)
    with one_sentence_errors():
        if len(options.paths) != (1 if options.released_han else 2):
            raise ValueError("name RUN and OUT, or --released-han FILE and OUT")
        if options.released_han:
            source = source_of_released(options.released_han, options.released_teacher, options.heads,
                                        options.visual_3d_dim)
        else:
            source = source_of_run(options.paths[0], options.seed, options.features, options.row, options.data)
        variants = [kind for kind in ("fp16", "int8") if getattr(options, kind)]
        with working_in(options.paths[-1]):
            export_bundle(source, options.paths[-1], options.clip_weights, options.clap_weights, variants)
        print(f"{options.paths[-1]}: complete; try `python parse.py VIDEO|FEATURES.npz --bundle {options.paths[-1]}`")
        if not (options.clip_weights and options.clap_weights):
            print("(without the encoders, which --clip-weights and --clap-weights add: it parses features, not videos)")


if __name__ == "__main__":
    main()
