"""A trained parser leaves Python: ONNX files that any runtime reads, each checked against PyTorch before it is kept.

    python export_onnx.py RUN OUT                                          # a run of run_all.sh
    python export_onnx.py --released-han FILE --released-teacher FILE OUT  # checkpoints of the authors' code, or of one

OUT, the *bundle*, holds onnx/*.onnx (parser, teacher, labels; on demand encoders and smaller variants), bundle.json,
everything a program must know to use them, and what goes with them: docs/deploy.md lists the files. Of every input and
output the axes B (videos), T (seconds) and, of the teacher and labels, C (classes) are free.

The files are written to OUT/.part and moved to OUT only when the ONNX checker has passed all of them and onnxruntime
agrees with PyTorch, at sizes other than the one that was traced. Until then OUT keeps what it had.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import shutil
import statistics
import string
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

try:
    import onnx
    import onnxruntime
    import onnx.version_converter
    import onnxscript.optimizer
    from onnx_ir.passes.common import DeduplicateInitializersPass
    from onnxscript import ir, opset20
except ModuleNotFoundError as error:
    raise SystemExit(f"error: exporting needs {error.name}: pip install onnx onnxscript onnxruntime-gpu") from None

import uwav
from common.command import Parser, one_sentence_errors, working_in
from common.devices import processor, ranks
from common.files import atomic, file_hash, hash_of, inside, read_sealed, write_json, write_sealed
from data.annotations import LLP_CLASSES, LLP_SEGMENTS
from data.layout import ENCODERS, FEATURE_SETS, encoders_of, made_alike, read_index
from data.splits import load_target, load_text, load_truth
from parse import BUNDLE_FORMAT
from train.checkpoints import PARSERS, load_model, settings_of
from train.manifest import GRAPHS
from train.stages import OWN_RULES, labels_beside
from video import IMAGE_SIZE, RECIPES, SAMPLE_RATE
from video.encoders import quiet

OPSETS = (17, 20, 23)  # old runtimes stop at 17; in 23 attention is one node
OPSET = 17  # of parser, teacher and labels, unless another is asked for
TRACED = 20  # from which a lower one is converted; of the encoders, too: CLAP's Gelu and CLIP's norm are not in 17
TOLERANCE = 1e-4  # largest difference to PyTorch that is accepted
TRIED = ((1, 1), (1, 10), (1, 60), (2, 60), (7, 10), (64, 1))  # (B, T) that every export is tried at
FOLDED = 1 << 40  # elements of a constant that may be folded: any
LARGE = 1024  # numbers of an array that is worth storing in half precision
TIMED_RUNS, TIMED_SECONDS = 50, 3.0  # of a variant, at most
ENCODED = 16  # random inputs of an encoder that its variants are compared on
BITS = dict(fp16=16, int8=7)  # of a variant's weights
COSINE = 0.995  # of embeddings to those in single precision: a variant of an encoder that is further off is not kept
SAMPLE_TOKENS = 36  # of the smallest vocabulary: random texts are made of these
VALUES = {  # of inputs that are not normal random numbers, by shape
    "mask": lambda shape: torch.arange(shape[1]) < torch.randint(1, shape[1] + 1, (shape[0], 1)),  # some are shorter
    **dict.fromkeys(("audio_text", "visual_text"), lambda shape: nn.functional.normalize(torch.randn(shape), dim=-1)),
    "weak": lambda shape: (torch.rand(shape) < 0.5).float(),
    "audio_threshold": lambda shape: torch.randn(shape).index_fill(0, torch.tensor([0]), -math.inf),  # "always"
    "pixels": lambda shape: torch.randint(0, 256, shape, dtype=torch.uint8),
    "tokens": lambda shape: torch.randint(2, SAMPLE_TOKENS, shape),
    "wave": lambda shape: 0.3 * torch.randn(shape),
}
MEANINGS = {  # doc strings of inputs and outputs
    "audio": "sound, a vector a second: (B videos, T seconds, D)", "visual": "pictures, a CLIP embedding a second",
    "visual_2d": "pictures, a vector a second: (B, T, D)", "visual_3d": "motion, a vector a second: (B, T, D)",
    "mask": "(B, T), true where a second is part of the video", "audio_text": "(C classes, D) CLAP, unit length",
    "visual_text": "(C classes, D) CLIP, unit length", "weak": "(B, C), 1 where the class occurs in the video",
    "pixels": "(B, 224, 224, 3) RGB, 0 to 255; normalisation is inside", "wave": "(B, 48000): a second, in [-1, 1]",
    "tokens": "(B, 77) of the tokenizer beside", "embedding": "(B, D), unit length",
    "video_prob": "(B, C), of the whole video; can exceed 1 (Eq. 1)", "audio_prob": "(B, T, C), audible",
    "visual_prob": "(B, T, C), visible", "audio_event": "(B, T, C), audible, gated: second and video above 0.5",
    "visual_event": "(B, T, C), visible, gated", "av_event": "(B, T, C), audible and visible",
}
LICENCE = "MIT (code and export); the weights follow the terms of the data and encoders they were trained with"

# ---- What is exported: functions of named inputs -------------------------------------------------

PROBABILITIES, EVENTS = ("audio_prob", "visual_prob", "video_prob"), ("audio_event", "visual_event", "av_event")


def probabilities(out: uwav.HANOutput) -> tuple[Tensor, ...]:
    return out.audio_logit.sigmoid(), out.visual_logit.sigmoid(), out.video_prob  # (B, T, C) twice, (B, C)


def gated(audio_prob: Tensor, visual_prob: Tensor, video_prob: Tensor) -> tuple[Tensor, ...]:
    """The gate of inference, which is part of parser.onnx: EVENTS, (B, T, C) bool each, before PROBABILITIES."""
    audio_event, visual_event = uwav.gated_predictions(video_prob, audio_prob, visual_prob)
    return audio_event, visual_event, audio_event & visual_event, audio_prob, visual_prob, video_prob


def labels(audio_logit: Tensor, visual_logit: Tensor, weak: Tensor, *thresholds: Tensor) -> tuple[Tensor, ...]:
    lowest = torch.finfo(audio_logit.dtype).min  # -inf is "always", and no matter of the other videos of a call
    pairs = [(z, theta.clamp(min=lowest)) for z, theta in zip((audio_logit, visual_logit), thresholds)]
    hard = (uwav.hard_labels(z, theta, weak) for z, theta in pairs)  # (B, T, C) each
    soft = (uwav.soft_labels(z, theta, weak, uwav.TrainConfig().temperature) for z, theta in pairs)
    return *hard, *soft


class Export(nn.Module):
    """One file: a function, the axes of its inputs in order (B, T and C are free), the names of its outputs, and the
    model whose weights it uses and the tokenizer that it needs, if any."""

    def __init__(self, name: str, function: Callable, axes: dict[str, tuple[str | int, ...]], outputs: tuple[str, ...],
                 model: nn.Module | None = None, tokenizer: object = None):
        super().__init__()
        self.name, self.function, self.axes, self.outputs = name, function, axes, outputs
        self.model, self.tokenizer = model, tokenizer

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...] | Tensor:
        return self.function(*inputs)

    def inputs(self, B: int, T: int, C: int) -> dict[str, Tensor]:
        size = dict(B=B, T=T, C=C)
        return {name: VALUES.get(name, torch.randn)(tuple(size.get(axis, axis) for axis in axes))
                for name, axes in self.axes.items()}

    def sizes(self) -> list[tuple[int, int]]:
        """(B, T) to try; what has no time is tried once at every B, encoders, which take long, not at the largest."""
        timed = any("T" in axes for axes in self.axes.values())
        return list(dict.fromkeys((B, T) if timed else (B, 1) for B, T in TRIED if timed or B < 64))


def sizes_of(han: uwav.HAN | None) -> dict[str, int]:
    """Of the inputs that it takes."""
    sizes = {name: getattr(han.config, f"{name}_dim") for name in ("audio", "visual_2d", "visual_3d")} if han else {}
    return {name: size for name, size in sizes.items() if size}


def exports_of(han: uwav.HAN | None, teacher: uwav.Teacher | None) -> dict[str, Export]:
    """Every file but the encoders, by name."""
    found, logit, C = [], ("B", "T", "C"), ("C",)
    if han is not None:
        features = {name: ("B", "T", D) for name, D in sizes_of(han).items()}
        found.append(Export("parser", lambda *x: gated(*probabilities(han(*x))), features, EVENTS + PROBABILITIES, han))
    found.append(Export("labels", labels, dict(audio_logit=logit, visual_logit=logit, weak=("B", "C"),
                                               audio_threshold=C, visual_threshold=C),
                        ("audio_hard", "visual_hard", "audio_soft", "visual_soft")))
    if teacher is not None:
        audio, visual = teacher.config.audio_dim, teacher.config.visual_dim
        found.append(Export(
            "teacher", lambda audio, visual, mask, *texts: teacher(audio, visual, *texts, mask),
            dict(audio=("B", "T", audio), visual=("B", "T", visual), mask=("B", "T"), audio_text=("C", audio),
                 visual_text=("C", visual)), ("audio_logit", "visual_logit"), teacher))
    return {export.name: export for export in found}


ENCODER_GRAPHS = {"clip_image": "clip", "clap_audio": "clap", "clip_text": "clip", "clap_text": "clap"}  # whose weights


def export_of_encoder(name: str, weights: Path | None, activation: str = "quickgelu") -> Export:
    """What video/encoders.py computes, but resizing and cropping pictures, and tokens. activation: of CLIP."""
    from video import encoders

    if name == "clap_audio":
        clap = encoders.ClapEncoder(weights)
        return Export(name, clap, dict(wave=("B", SAMPLE_RATE)), ("embedding",), clap)
    tokens = dict(tokens=("B", encoders.TOKENS))
    if name == "clap_text":
        texts = encoders.ClapTextEncoder(weights)
        return Export(name, texts, tokens, ("embedding",), texts, tokenizer=texts)
    clip = encoders.ClipEncoder(weights, activation=activation)
    if name == "clip_text":
        return Export(name, clip.embed_tokens, tokens, ("embedding",), clip.model, tokenizer=clip)
    pixels = ("B", IMAGE_SIZE, IMAGE_SIZE, 3)
    return Export(name, clip.embed, dict(pixels=pixels), ("embedding",), clip.model)


# ---- Tracing, checking, keeping: the parser's files, the encoders, smaller variants --------------

def split(x: ir.Value, sizes: int | list[int], dim: int = 0) -> list[ir.Value]:
    """As slices: a Split of opset 20 has no form in 17, and that of a weight would not be computed beforehand."""
    ends = np.arange(sizes, x.shape[dim] + 1, sizes) if isinstance(sizes, int) else np.cumsum(sizes)
    return [opset20.Slice(x, [start], [end], [dim]) for start, end in zip([0, *ends.tolist()], ends.tolist())]


AS_SLICES = {torch.ops.aten.split.Tensor: split, torch.ops.aten.split_with_sizes.default: split}


def trace(export: Export, opset: int = TRACED) -> onnx.ModelProto:
    """A module as a graph: free axes named B, T, C; no trace of the machine it was made on."""
    inputs = export.inputs(B=3, T=5, C=4)  # none of TRIED
    dims = {name: Dim(name, min=1, max=1 << 20) for name in "BTC"}
    shapes = tuple({n: dims[a] for n, a in enumerate(axes) if a in dims} for axes in export.axes.values())
    with quiet(), torch.no_grad():  # the exporter speaks of itself
        program = torch.onnx.export(
            export.eval(), tuple(inputs.values()), dynamo=True, opset_version=max(opset, TRACED), external_data=False,
            verbose=False, optimize=False, input_names=list(inputs), output_names=list(export.outputs),
            dynamic_shapes=(shapes,), custom_translation_table=AS_SLICES)
        # What only weights go into is computed now, slices and transposes of weight matrices above all: onnxruntime
        # quantises the matrices that a product reads directly. By default two iterations; the second finds little.
        onnxscript.optimizer.optimize(
            program.model, num_iterations=1, input_size_limit=FOLDED, output_size_limit=FOLDED)
        DeduplicateInitializersPass(FOLDED)(program.model)  # layers that serve both modalities
    model = program.model_proto
    if any("T" in axes for axes in export.axes.values()):
        weigh_by_einsum(model.graph)
    if opset < TRACED:
        try:
            model = onnx.version_converter.convert_version(model, opset)
            model.ir_version = 8  # of that opset's time
        except RuntimeError as error:  # MGN's Gelu has no form that old
            print(f"{export.name}: stays at opset {TRACED}, not {opset}: {str(error).rpartition(': ')[2]}")
    graph = model.graph
    inside = (x for g in (graph, *model.functions) for x in (g, *g.node, *g.value_info))
    for part in (model, *graph.input, *graph.output, *inside):  # the exporter notes source files and stack traces
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for value in (*graph.input, *graph.output):
        value.doc_string = MEANINGS.get(value.name, "")
    return model


def weigh_by_einsum(graph: onnx.GraphProto) -> None:
    """Attention's second product (weights times values) as an Einsum: where it is a MatMul, OpenVINO 2026.4 gives other
    results for every length, once the first one was 1. Equal to the last bit in onnxruntime."""
    of_heads = {value.name for value in graph.value_info if len(value.type.tensor_type.shape.dim) == 4}  # (B, H, T, S)
    weights = {node.output[0] for node in graph.node if node.op_type == "Softmax"} & of_heads
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[0] in weights:
            node.op_type = "Einsum"
            node.attribute.append(onnx.helper.make_attribute("equation", "bhts,bhsd->bhtd"))


def session(path: str | Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """threads: 0, as many as there are cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def largest_difference(export: Export, run: onnxruntime.InferenceSession) -> float:
    """Between onnxruntime and PyTorch, over all outputs and sizes. The gate is compared on onnxruntime's own
    probabilities: rounding may carry one across it, but then its event must go with it."""
    differences = []
    for n, (B, T) in enumerate(export.sizes()):
        torch.manual_seed(n)
        inputs = export.inputs(B, T, 1 + n)
        got = [torch.from_numpy(x) for x in run.run(None, {k: v.numpy() for k, v in inputs.items()})]
        with torch.inference_mode():
            expected = export(*inputs.values())
            expected = expected if isinstance(expected, tuple) else (expected,)
            if export.outputs[:3] == EVENTS:
                expected = *gated(*got[3:])[:3], *expected[3:]
        for name, a, b in zip(export.outputs, expected, got):
            if a.shape != b.shape or a.dtype != b.dtype:
                raise ValueError(f"{export.name}.onnx, B = {B}, T = {T}: {name} is {b.dtype} {tuple(b.shape)}")
            differences.append(torch.where(a == b, 0.0, (a.double() - b.double()).abs()).max())  # NaN stays NaN
    return float(torch.stack(differences).max())


def file_of(out: Path, name: str) -> Path:
    return out / "onnx" / f"{name}.onnx"


def keep(export: Export, out: Path, properties: dict[str, str], opset: int = TRACED) -> dict:
    """Export, check, and only then write NAME.onnx; returns what bundle.json says of it. Raises ValueError."""
    started, path = time.monotonic(), file_of(out, export.name)
    model = trace(export, opset)
    model.producer_name, model.producer_version = "uwav", str(BUNDLE_FORMAT)
    onnx.helper.set_model_props(model, properties)
    with atomic(path) as temporary:
        onnx.save(model, temporary)
        onnx.checker.check_model(str(temporary), full_check=True)
        run = session(temporary)
        difference = largest_difference(export, run)
        if not difference <= TOLERANCE:
            raise ValueError(f"{path.name}: not written, onnxruntime and PyTorch differ by {difference:.1e}, "
                             f"more than {TOLERANCE:.0e}")
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, onnxruntime within {difference:.1e} of PyTorch at "
          f"{len(export.sizes())} sizes, {time.monotonic() - started:.0f} s", flush=True)
    batches, lengths = (sorted(set(x)) for x in zip(*export.sizes()))
    return describe(path, run) | dict(verified=dict(batches=batches, lengths=lengths, largest_difference=difference))


def describe(path: Path, run: onnxruntime.InferenceSession) -> dict:
    def values(items: list) -> dict:
        return {v.name: dict(type=v.type.removeprefix("tensor(").removesuffix(")"), shape=v.shape) for v in items}

    return dict(file=f"onnx/{path.name}", bytes=path.stat().st_size, sha256=file_hash(path),
                inputs=values(run.get_inputs()), outputs=values(run.get_outputs()))


def free_batch_size_of_htsat() -> contextlib.AbstractContextManager:
    """HTSAT computes its batch size with `int(...)`, which a trace would bake in without a word."""
    from video import encoders

    encoders.clap_package()
    with quiet():
        from clap_module import htsat

    def window_reverse(windows: Tensor, window_size: int, H: int, W: int) -> Tensor:
        w, C = window_size, windows.shape[-1]
        x = windows.reshape(-1, H // w, W // w, w, w, C)  # (B, H/w, W/w, w, w, C)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, H, W, C)  # (B, H, W, C)

    return mock.patch.object(htsat, "window_reverse", window_reverse)


def find_encoders(choices: dict[str, str | None], source: Source) -> tuple[dict[str, Path | None], dict[str, dict]]:
    """The files of the weights named (clip, clap), if any, and what tells them from others: the parser's features must
    have been made by the same. Raises FileNotFoundError or ValueError."""
    from video import weights

    if not (choices := {name: choice for name, choice in choices.items() if choice}):
        return {}, {}
    files, found = weights.chosen(choices)
    made_alike({"the features that the parser learned from": source.encoders, "what is to be exported": found})
    if source.han and not source.dry_run and not found.keys() <= source.encoders.keys():
        print("the weights behind the parser's training features are not recorded, so these are not compared")
    return files, found


def export_encoders(out: Path, files: dict[str, Path | None], made_with: dict, properties: dict[str, str]) -> dict:
    """The encoders of `find_encoders`, if any, and variants; what bundle.json says of them."""
    entries, kinds = {}, made_with["variants"]
    for name, whose in ENCODER_GRAPHS.items():
        if whose not in files or (name.endswith("text") and not made_with["texts"]):
            continue
        print(f"{name}: building, tracing and checking it takes minutes, CLIP up to 10 GB of memory", flush=True)
        identity = made_with[f"{whose}_weights"]
        export = export_of_encoder(name, files[whose], identity.get("activation", "quickgelu"))
        with free_batch_size_of_htsat():
            entries[name] = keep(export, out, properties) | dict(weights=identity)
        if export.tokenizer:
            export.tokenizer.write_tokenizer(out / f"{whose}_tokenizer.json")
            entries[name]["tokenizer"] = file_hash(out / f"{whose}_tokenizer.json")
        if kinds:
            inputs = {k: x.numpy() for k, x in export.inputs(ENCODED, 1, 1).items()}
            entries |= keep_variants(name, kinds, out, entries[name], inputs, None, f"{ENCODED} random inputs")
    return entries


def make_variant(kind: str, source: Path, target: Path) -> None:
    """A graph with 8-bit weights, or with weights that are stored in half precision and computed with in single:
    half the size at the same speed, in every runtime."""
    model = onnx.load(source)
    graph = model.graph
    graph.ClearField("value_info")  # shapes, which the quantiser would compare under names that it uses again
    if kind == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.quantization.registry import IntegerOpsRegistry

        kinds = [kind for kind in IntegerOpsRegistry if kind != "Attention"]  # ONNX's is taken for an older one
        with quiet():  # it would like the model to be preprocessed; `trace` did what matters
            # 7 bits: where there is no VNNI, x86 adds products in 16 bits, which those of 8 overflow (docs/deploy.md).
            return quantize_dynamic(model, str(target), kinds, reduce_range=True, weight_type=QuantType.QInt8)
    weights = [x for x in graph.initializer if x.data_type == onnx.TensorProto.FLOAT and math.prod(x.dims) >= LARGE]
    for n, x in enumerate(weights):
        name, half = x.name, onnx.numpy_helper.to_array(x).astype(np.float16)
        x.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_half"))
        graph.node.insert(n, onnx.helper.make_node("Cast", [x.name], [name], to=onnx.TensorProto.FLOAT))
    onnx.save(model, target)


def outputs_of(path: Path, inputs: dict[str, np.ndarray]) -> tuple[dict[str, Tensor], float]:
    """A graph's outputs on all of `inputs`, 64 at a time, and its milliseconds for one."""
    run, one = session(path), {k: x[:1] for k, x in inputs.items()}
    starts = range(0, len(next(iter(inputs.values()))), 64)
    chunks = [run.run(None, {k: x[i : i + 64] for k, x in inputs.items()}) for i in starts]
    timer = timeit.Timer(lambda: run.run(None, one))
    times = timer.repeat(min(TIMED_RUNS, 1 + int(TIMED_SECONDS / timer.timeit(1))), 1)
    outputs = (torch.from_numpy(np.concatenate(x)) for x in zip(*chunks))
    return dict(zip((o.name for o in run.get_outputs()), outputs)), 1e3 * statistics.median(times)


def deviation(got: dict[str, Tensor], reference: dict[str, Tensor], truth: tuple[Tensor, Tensor] | None) -> dict:
    """Of a variant from single precision; of a parser, also events that flip, and the ten scores if truth is known."""
    apart = [float((got[k] - x).abs().max()) for k, x in reference.items() if x.is_floating_point()]
    found = dict(largest_difference=max(apart))
    if "embedding" in got:
        cosine = nn.functional.cosine_similarity(got["embedding"], reference["embedding"])  # (N,)
        return found | dict(smallest_cosine=float(cosine.min()))
    mine, theirs = (torch.stack([x[k] for k in EVENTS[:2]]) for x in (got, reference))  # (2, N, T, C)
    found |= dict(flips=int((mine != theirs).sum()), predictions=mine.numel(), events=int(theirs.sum()))
    return found | (dict(scores=uwav.parsing_scores(*mine, *truth)) if truth else {})


def keep_variants(name: str, kinds: list[str], out: Path, entry: dict, inputs: dict[str, np.ndarray],
                  truth: tuple[Tensor, Tensor] | None, measured_on: str) -> dict:
    """NAME_KIND.onnx beside NAME.onnx; size, speed, and how far and how often it disagrees. bundle.json's entries."""
    paths, reference, entries = {"": file_of(out, name)}, None, {name: entry}
    print(f"{name}, measured on {measured_on}:")
    for kind, path in (paths | {kind: file_of(out, f"{name}_{kind}") for kind in kinds}).items():
        if kind:
            with atomic(path) as temporary:
                make_variant(kind, paths[""], temporary)
                onnx.checker.check_model(str(temporary))
            entries[path.stem] = describe(path, session(path)) | dict(weight_bits=BITS[kind])
        got, ms = outputs_of(path, inputs)
        reference = reference or got
        measured = dict(on=measured_on, processor=processor(), ms_batch_1=ms) | deviation(got, reference, truth)
        entries[path.stem]["measured"] = measured
        numbers = dict(bytes=path.stat().st_size) | {k: n for k, n in measured.items() if isinstance(n, int | float)}
        told = ", ".join(f"{k} {n:{',' if isinstance(n, int) else '.3g'}}" for k, n in numbers.items())
        bad = measured.get("smallest_cosine", 1.0) < COSINE
        print(f"  {path.stem}: {told}{': not kept' * bad}")
        if bad:
            path.unlink()
            del entries[path.stem]
    return entries


# ---- The bundle ----------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Source:
    """What is exported and what is known of it."""

    han: uwav.HAN | None  # None: a teacher alone
    teacher: uwav.Teacher | None
    classes: list[str]
    made_from: str
    dry_run: str = ""  # why its events mean nothing, if they do
    features: str = "clip_clap"  # the feature set
    segments: int = LLP_SEGMENTS  # of the clips it was trained on
    thresholds: tuple[Tensor, Tensor] | None = None  # (C,) audio and visual, of the pseudo-labels, finite
    texts: tuple[Tensor, Tensor] | None = None  # (C, 512), (C, 768)
    data: Path | None = None  # packed folder, on whose test split variants are measured
    open_classes: dict | None = None  # of `open_classes`
    scores: dict[str, list[float]] | None = None  # of the test split, a number a seed
    encoders: dict = dataclasses.field(default_factory=dict)  # that made its features and texts, as far as was noted
    model: str = ""  # SHA-256 of the parser's checkpoint

    def describe(self) -> dict:
        """All that a program must know besides the files themselves."""
        inputs = {name: dict(feature=feature, size=size, per_second=1)
                  for feature, (name, size) in zip(FEATURE_SETS[self.features], sizes_of(self.han).items())}
        for x in inputs.values():
            if x["feature"] and (rate := ENCODERS[x["feature"]].per_second) > 1:
                x["averaged_from"] = rate
        thresholds = self.thresholds and {m: x.tolist() for m, x in zip(("audio", "visual"), self.thresholds)}
        return dict(
            format=BUNDLE_FORMAT, name="uwav", classes=self.classes, made_from=self.made_from, model=self.model,
            dry_run=self.dry_run, licence=LICENCE, gate=uwav.GATE, features=dict(set=self.features, inputs=inputs),
            segments=self.segments, preprocessing=dict(
                recipe_of_training=self.encoders.get("recipe", ""), segment_seconds=1,
                picture=dict(shown_at=0.5, short_side=IMAGE_SIZE, resize="bicubic, antialiased, as Pillow does",
                             crop="centre, 224 x 224", values="RGB, uint8; normalisation is inside the graph"),
                sound=dict(rate=SAMPLE_RATE, channels="averaged", samples=SAMPLE_RATE, values="float32 in [-1, 1]"),
                prompts=RECIPES["uwav"].prompts),
            label_thresholds=thresholds, label_temperature=uwav.TrainConfig().temperature,
            open_classes=self.open_classes,
            versions={name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript")})

    def measuring_data(self) -> tuple[dict[str, np.ndarray], tuple[Tensor, Tensor] | None, str]:
        """The test split of the run (of own data without one: val, else train), or random features; dense truth, if
        there is; what these are."""
        if self.data is None:
            torch.manual_seed(0)
            inputs = exports_of(self.han, None)["parser"].inputs(256, 10, 0)
            return {k: x.numpy() for k, x in inputs.items()}, None, "random features"
        split = list(read_index(self.data)["llp"]["videos"])[-1]
        data = load_target(self.data, split, self.features, "cpu")
        named = zip(("audio", "visual_2d", "visual_3d"), data.inputs(slice(None)))
        truth = None if data.audio_truth is None else (data.audio_truth, data.visual_truth)
        return {k: x.numpy() for k, x in named if x is not None}, truth, f"the {split} split of {self.made_from}"


def scores_of_seeds(run: Path, checkpoint: Path) -> dict[str, list[float]] | None:
    """The ten scores on test of the same row in every seed of the run that was trained alike, each of the very parser
    beside it; None if that of `checkpoint` was not scored."""
    found, alike = {}, _training_of(checkpoint)
    for file in sorted(run.glob(f"seed*/{checkpoint.parent.relative_to(checkpoint.parents[2])}/scores_test.json")):
        han = file.with_name("han.pt")
        scores = read_sealed(file, "python uwav.py evaluate") if han.exists() and _training_of(han) == alike else {}
        if scores.get("made_from") == dict(data=alike["data"], model=file_hash(han)):
            found[han] = scores
    return {name: [scores[name] for scores in found.values()] for name in uwav.SCORES} if checkpoint in found else None


def _training_of(checkpoint: Path) -> dict:
    """What a parser was trained with, but for what differs between seeds."""
    settings = settings_of(checkpoint)
    return settings | dict(labels=None, made_from=None, training=settings.get("training", {}) | dict(seed=None))


def one_threshold(logit: Tensor, truth: Tensor) -> float:
    """Of the best F1 over all videos, seconds and classes, no weak label given; both (N, T, C)."""
    logit, truth = (x.transpose(1, 2).flatten(0, 1)[..., None] for x in (logit, truth))  # (N * C, T, 1)
    return uwav.fit_thresholds(logit, truth, torch.ones(len(logit), 1))[0].item()


def open_classes(logits: dict[str, tuple[Tensor, Tensor]], data: Path) -> dict | None:
    """For `parse.py --classes`: a threshold for classes that nobody has annotated, from all annotated ones, and how
    good it is: the scores of each class with the threshold of the others. None without an annotated val split."""
    try:
        truth = {split: load_truth(data, split) for split in ("val", "test")}
    except FileNotFoundError:
        return None
    C, left_out = logits["val"][0].shape[-1], []
    for m in (0, 1):
        z, y = logits["val"][m], truth["val"][m]
        others = [torch.arange(C) != c for c in range(C)]
        theta = torch.tensor([one_threshold(z[..., keep], y[..., keep]) for keep in others])
        left_out.append(logits["test"][m] > theta)  # (N, T, C)
    thresholds = {m: one_threshold(z, y) for m, z, y in zip(("audio", "visual"), logits["val"], truth["val"])}
    return dict(thresholds=thresholds, left_out=uwav.parsing_scores(*left_out, *truth["test"]))


def source_of_run(run: Path, seed: int, features: str | None, row: str | None, data: Path | None) -> Source:
    """The models of a run of run_all.sh; row: None, all of UWAV if it is there, else VALOR. Raises FileNotFoundError or
    ValueError naming what is missing."""
    folder, data = run / f"seed{seed}", data or run / "data"
    index = read_index(data)
    rows, sets = [row] if row else ["full", "valor"], [features] if features else ["clip_clap", "base"]
    trained = [(path, f, r) for r in rows for f in sets if (path := folder / f / r / "han.pt").exists()]
    if not trained:
        raise FileNotFoundError(f"{folder}/{sets[0]}/{rows[0]}/han.pt: no such file, so {run} holds no trained HAN")
    (checkpoint, features, row), teacher, labels = trained[0], None, folder / "labels_teacher.npz"
    han = load_model(checkpoint, kind=PARSERS)
    if type(han) in OWN_RULES:
        raise ValueError(f"{checkpoint}: a {type(han).__name__} decides by a rule of its own, which the exported files "
                         "do not have; export a HAN, LEAP, MGN or MM-Pyramid")
    if "unav" in index or (folder / "teacher.pt").exists():  # with own data it may be elsewhere, or there is none
        teacher = load_model(folder / "teacher.pt", kind=uwav.Teacher)
    if "unav" not in index and not labels.exists():
        labels = folder / "labels_segment.npz"
    kind = index["source"] if isinstance(index["source"], str) else "demo world"
    made_from = f"{'LLP' if kind == 'pack' else kind}, features {features}, {row}, seed {seed}"
    if settings_of(checkpoint).get("data") != index["sha256"]:
        raise ValueError(f"{checkpoint}: made from other data than {data}")
    others = row.endswith(("valor", "prototypes"))  # which learned from other labels than those that are exported
    read = labels_beside(labels, data, *[checkpoint] * (not others))
    # Where a threshold is -inf, training counted from the lowest logit of its own videos.
    thresholds = tuple(torch.where(theta == -torch.inf, z.amin((0, 1)) - 1, theta)
                       for theta, z in zip(read.thresholds, read.logits["train"]))
    return Source(han, teacher, index["llp"]["classes"], made_from, read.settings["dry_run"], features,
                  index["llp"].get("segments", LLP_SEGMENTS), thresholds, load_text(data, "llp", "cpu"), data,
                  open_classes(read.logits, data) if teacher and read.settings["teacher"] else None,
                  scores_of_seeds(run, checkpoint), encoders_of(index), file_hash(checkpoint))


def source_of_released(han: Path | None, teacher: Path | None, heads: int | None, teacher_heads: int | None,
                       visual_3d_dim: int | None) -> Source:
    """Checkpoints of the authors' code: of a HAN, a teacher, or both."""
    model = han and load_model(han, "cpu", heads, visual_3d_dim, uwav.HAN)
    labeller = teacher and load_model(teacher, "cpu", teacher_heads or heads, kind=uwav.Teacher)
    C = model.config.classes if model else 0
    classes = list(LLP_CLASSES) if C == len(LLP_CLASSES) else [f"class {c}" for c in range(C)]
    features = "base" if model and model.config.visual_3d_dim else "clip_clap"  # only one of them has 3D features
    return Source(model, labeller, classes, "checkpoints of the authors' code", features=features)


def write_card(out: Path, source: Source, info: dict) -> None:
    """What hubs show: README.md with its block of metadata, config.json, preprocessor_config.json."""
    card = string.Template((Path(__file__).parent / "docs/model_card.md").read_text(encoding="utf-8"))
    dataset, scores = info["made_from"].split(",")[0], source.scores or {}
    found = [(name, statistics.mean(x), f"±{statistics.stdev(x):.1f}" if x[1:] else "") for name, x in scores.items()]
    results = dict(task=dict(type="audio-visual-video-parsing"), dataset=dict(type=dataset, name=dataset),
                   metrics=[dict(type="f1", name=name, value=round(mean, 2)) for name, mean, _ in found])
    inputs = (f"{name} ({x['feature']}, {x['size']})" for name, x in info["features"]["inputs"].items())
    (out / "README.md").write_text(card.substitute(
        info, dataset=json.dumps(dataset), results=json.dumps([dict(name="uwav", results=[results] * bool(scores))]),
        count=len(source.classes), classes=", ".join(source.classes), inputs=", ".join(inputs),
        dry_run=f", A DRY RUN ({source.dry_run}): its events mean nothing" if source.dry_run else "",
        scores=", ".join(f"{name} {mean:.1f}{spread}" for name, mean, spread in found) or "not scored",
        checkpoint=f"; the parser's checkpoint has SHA-256 {source.model}" if source.model else "",
        files="\n".join(f"* `{x['file']}`, {x['bytes'] / 1e6:.1f} MB" for x in info["files"].values())),
        encoding="utf-8")
    numbered = dict(enumerate(source.classes))
    write_json(out / "config.json", dict(
        model_type="uwav", id2label=numbered, label2id={name: n for n, name in numbered.items()}))
    write_json(out / "preprocessor_config.json", dict(
        note="for people: no library loads this; normalisation is inside the graphs", do_normalize=False,
        do_rescale=False, do_resize=True, size=dict(shortest_edge=IMAGE_SIZE), resample=3, do_center_crop=True,
        crop_size=dict(height=IMAGE_SIZE, width=IMAGE_SIZE), sampling_rate=SAMPLE_RATE))


def export_bundle(source: Source, out: Path, clip_weights: str | None = None, clap_weights: str | None = None,
                  texts: bool = False, variants: tuple[str, ...] = (), opset: int = OPSET) -> dict:
    """Write the whole bundle; bundle.json last. A complete one of the same models and options is kept as it is. Raises
    ValueError if a file does not agree with PyTorch."""
    info = source.describe()
    properties = {k: v if isinstance(v, str) else json.dumps(v) for k, v in info.items()}
    weights = [x for m in (source.han, source.teacher) if m is not None for x in m.state_dict().values()]
    files, identities = find_encoders(dict(clip=clip_weights, clap=clap_weights), source)
    info["made_with"] = dict(models=hash_of(b"".join(x.numpy().tobytes() for x in weights)), **identities, texts=texts,
                             variants=list(variants), opset=opset, scores=source.scores)
    if before := finished_bundle(out, info):
        print(f"{out}: exported before, kept")
        return before
    inside(out / "onnx/x")
    part = out / ".part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)  # which fails where a link is in its place
    (part / "onnx").mkdir()
    try:
        _fill_bundle(part, source, info, properties, files)
        (out / "bundle.json").unlink(missing_ok=True)  # no bundle while its files change
        (out / "onnx").mkdir(exist_ok=True)
        for path in (out / "onnx").iterdir():
            if path.name in GRAPHS:
                path.unlink()  # of an earlier export with other options
        made = sorted(filter(Path.is_file, part.rglob("*")), key=lambda p: p.name == "bundle.json")  # that one last
        for path in made:
            os.replace(path, out / path.relative_to(part))
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return info


def _fill_bundle(out: Path, source: Source, info: dict, properties: dict[str, str],
                 encoders: dict[str, Path | None]) -> None:
    """All files into an empty folder; `info` gets what bundle.json says of them."""
    made_with, exports = info["made_with"], exports_of(source.han, source.teacher)
    opset = made_with["opset"]
    info["files"] = files = {
        name: keep(export, out, properties, opset if name == "parser" else min(opset, TRACED))
        for name, export in exports.items()}
    if made_with["variants"]:
        files |= keep_variants("parser", made_with["variants"], out, files["parser"], *source.measuring_data())
    files |= export_encoders(out, encoders, made_with, properties)
    if source.texts is not None:
        clap, clip = (x.tolist() for x in source.texts)
        write_json(out / "texts.json", dict(classes=source.classes, clap=clap, clip=clip))
    if source.data:
        inputs, truth, _ = source.measuring_data()
        few = {name: x[:300] for name, x in inputs.items()}
        n = telling(source.han, few, truth and [x[:300].bool() for x in truth])
        np.savez(out / "sample.npz", **{name: x[n] for name, x in inputs.items()})
    write_card(out, source, info)
    info["others"] = {path.name: file_hash(path) for path in sorted(out.iterdir()) if path.is_file()}
    write_sealed(out / "bundle.json", info)


@torch.no_grad()
def telling(han: nn.Module, inputs: dict[str, np.ndarray], truth: list[Tensor] | None) -> int:
    """The video to try a bundle with: in one of its classes what is heard and what is seen begin or end, and not
    together; of such videos, if there are any, the one whose events are predicted best."""
    video, *logits = han(*(torch.from_numpy(x).float() for x in inputs.values()))[:3]
    audio, visual = predicted = uwav.gated_predictions(video, *(x.sigmoid() for x in logits))  # (N, T, C)
    apart = (audio != visual).any(1) & (audio.any(1) & ~audio.all(1)) & (visual.any(1) & ~visual.all(1))  # (N, C)
    scores = uwav.video_scores(*predicted, *truth) if truth else dict.fromkeys(("event_a", "event_v"), 0.0)  # (N,)
    return int((2.0 * apart.any(1) + scores["event_a"] + scores["event_v"]).argmax())


def finished_bundle(out: Path, info: dict) -> dict | None:
    """What bundle.json says, if `out` holds a whole bundle of the same models, scores, weights and options."""
    with contextlib.suppress(Exception):  # it is missing or damaged: made again
        before = read_sealed(out / "bundle.json", "python export_onnx.py")
        hashes = before["others"] | {f["file"]: f["sha256"] for f in before["files"].values()}
        if ({k: before[k] for k in info} == json.loads(json.dumps(info))
                and all(file_hash(out / name) == recorded for name, recorded in hashes.items())):
            return before
    return None


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description="Export a trained parser to ONNX; every file is checked before it is kept.")
    parser.add_argument("paths", type=Path, nargs="+", metavar="[RUN] OUT", help="folder of a run; folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the run (default: 0)")
    parser.add_argument("--features", choices=FEATURE_SETS, help="of the run (default: clip_clap, else base)")
    parser.add_argument("--row", help="of the ablation, or field/leap (default: full, which is UWAV, else valor)")
    parser.add_argument("--data", type=Path, help="packed folder of the run (default: RUN/data)")
    parser.add_argument("--released-han", type=Path, metavar="FILE", help="a HAN of the authors' code, instead of RUN")
    parser.add_argument("--released-teacher", type=Path, metavar="FILE", help="a teacher of the authors' code")
    parser.add_argument("--heads", type=int, help="of released checkpoints, which do not say (default: as published)")
    parser.add_argument("--teacher-heads", type=int, help="of the teacher, if not as many as the HAN's")
    parser.add_argument("--visual-3d-dim", type=int, help="of a released HAN (default: 512 if its sizes are published)")
    parser.add_argument("--clip-weights", metavar="openai|random|FILE", help="export CLIP's image encoder, too")
    parser.add_argument("--clap-weights", metavar="NAME|random|FILE", help="export CLAP's audio encoder, too")
    parser.add_argument("--opset", type=int, choices=OPSETS, default=OPSET, help="of parser, teacher, labels (default: "
                        "%(default)s); 23 of the parser alone: its attention is one node, which fewer runtimes know")
    parser.add_argument("--texts", action="store_true", help="also their text encoders, for `parse.py --classes`")
    for kind, what in dict(fp16="in half precision", int8="with 8-bit weights").items():
        parser.add_argument(f"--{kind}", dest="variants", action="append_const", const=kind, default=[],
                            help=f"also parser and encoders {what}, measured")
    options = parser.parse_args(arguments)
    with one_sentence_errors("begins again", ""), ranks(options):
        if options.texts and not (options.clip_weights and options.clap_weights):
            raise ValueError("--texts needs --clip-weights and --clap-weights, to say whose text encoders")
        released = options.released_han, options.released_teacher
        if len(options.paths) != (1 if any(released) else 2):
            raise ValueError("name RUN and OUT, or --released-han FILE and OUT")
        if any(released):
            source = source_of_released(*released, options.heads, options.teacher_heads, options.visual_3d_dim)
        else:
            source = source_of_run(options.paths[0], options.seed, options.features, options.row, options.data)
        out = options.paths[-1]
        with working_in(out):
            export_bundle(source, out, options.clip_weights, options.clap_weights, options.texts,
                          tuple(sorted(set(options.variants))), options.opset)
        print(f"{out}: complete; " + (f"try `python parse.py VIDEO|FEATURES.npz --bundle {out}`" if source.han else
                                      "a teacher alone, which parse.py does not run"))
        if source.han and not (options.clip_weights and options.clap_weights):
            print("(without the encoders, which --clip-weights and --clap-weights add: it parses features, not videos)")


if __name__ == "__main__":
    main()
