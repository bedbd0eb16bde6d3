# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26,<3", "onnxruntime>=1.20,<2", "av>=17.1,<20", "pillow", "matplotlib>=3.8,<4",
#     "tokenizers", "ftfy"]
# ///
"""Parse a video with an exported bundle: which events are audible, visible or both in every second. No PyTorch.

    python parse.py VIDEO --bundle OUT                   # a video; the bundle has the encoders
    python parse.py FEATURES.npz --bundle OUT            # features: audio (T, Da), visual_2d (T, D2), visual_3d (T, D3)
    python parse.py FOLDER --bundle OUT --csv EVENTS     # all that is in it, into another folder
    python parse.py VIDEO --bundle OUT --classes "kettle,dog,rain"      # your own, by the teacher; needs tokenizers

Needs numpy and onnxruntime; av and pillow for videos, matplotlib for --plot; `uv run parse.py ...` brings them all.
OUT was made by export_onnx.py, and has OUT/sample.npz to try. `--help` names the other outputs.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import html
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CLIP_SECONDS = 10  # segments: of LLP's clips. The bundle knows how long those were that its parser was trained on
AT_ONCE = 16  # windows through a graph
PREFIXES = {"audible": "audio", "visible": "visual", "both": "av"}  # of the names of arrays, by modality
BUNDLE_FORMAT = 2
JSON_FORMAT = 1  # of what --json writes (docs/deploy.md)
ORIGIN = "seconds from the first time stamp of the file"  # of onsets and offsets
# Characters that no text of a bundle has: a terminal may obey them, or they are invisible, or turn what follows around.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
FORMULA = re.compile("'*[=+@\uff0b\uff0d\uff1d\uff20-]")  # how a cell begins that a spreadsheet would compute
PLAIN = re.compile("[ -%'-~]*")  # ASCII that can be printed, but "&", which HTML begins entities with
OUTPUTS = dict(json=".json", csv=".csv", vtt=".vtt", labels=".txt", plot=".png", save_features=".npz")  # of several
TAKEN = tuple(".npz .mp4 .mkv .webm .avi .mov .m4v .flv .f4v .wmv .asf .mpg .mpeg .vob .ts .mts .m2ts .mxf .3gp .3g2 "
              ".ogv .ogg .opus .wav .mp3 .m4a .aac .flac .wma .mka .aif .aiff".split())  # of the files in a folder
NOTES = ".parsed"  # in a folder of outputs; no table, nor JSON, that `uwav.py score` would read
CLOSEST = 5  # probabilities that are told of where there is no event
LONGEST_VIDEO = 3600.0  # s of a video: it takes as long to encode, but no more memory than a short one
LARGEST = 1 << 30  # bytes that an .npz file of features may unpack to
READ_BY_ALL = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # by Node and the page, too
HALF = 65504  # the largest number in half precision, in which parsers are trained
# A tensor of an .onnx file may name another file, anywhere, to take its numbers from, under the key "location": a
# string in protobuf, after a byte that ends its length, 8 (or 0, if that is written longer than needed).
EXTERNAL = re.compile(rb"[\x08\x00]location")

# ---- The bundle ----------------------------------------------------------------------------------

class Bundle:
    """A folder written by export_onnx.py. Raises FileNotFoundError or ValueError naming the file."""

    def __init__(self, folder: str | Path, provider: str | None = None, variant: str | None = None):
        self.folder, self.variant = Path(folder), variant
        path = _file(self.folder / "bundle.json")
        try:
            self.info = json.loads(path.read_text(encoding="utf-8"))
            version, self.classes, self.files = self.info["format"], self.info["classes"], self.info["files"]
            self.feature_set, self.gate = self.info["features"]["set"], self.info["gate"]
            self.window = self.info.get("segments", CLIP_SECONDS)  # longer videos are parsed piece by piece
            self.recipe = self.info.get("preprocessing", {}).get("recipe_of_training")  # video/ has the recipes
            self.sizes = {name: x["shape"][-1] for name, x in self.files["parser"]["inputs"].items()}
            numbers, checksums = [self.window, *self.sizes.values()], [f["sha256"] for f in self.files.values()]
            whole = version != BUNDLE_FORMAT or (
                isinstance(self.classes, list) and all(isinstance(c, str) for c in checksums)
                and all(type(n) is int and n > 0 for n in numbers)
                and 0 < self.gate < 1 and {"audio", "visual_2d"} <= self.sizes.keys()
                and all(type(c) is str for c in self.classes) and 0 < len(set(self.classes)) == len(self.classes)
                and not any(map(CONTROL.search, _texts(self.info))))
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"{path}: no such file; make a bundle with export_onnx.py") from None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            whole = False
        if not whole:
            raise ValueError(f"{path}: not the description of a bundle")
        if version != BUNDLE_FORMAT:
            raise ValueError(f"{path}: a bundle of format {version!r:.20}, this program reads {BUNDLE_FORMAT}")
        self.parser = self.chosen("parser")
        if variant and self.parser == "parser":
            raise ValueError(f"{path}: the bundle has no {variant} parser; export it with --{variant}")
        self.inputs = {"audio": ["audio"], "visual": [name for name in self.sizes if name != "audio"]}  # by modality
        self.wanted, self.providers, self.sessions, self.texts = provider, {}, {}, {}

    def chosen(self, name: str) -> str:
        """NAME, or its smaller variant, if one is wanted and there."""
        smaller = f"{name}_{self.variant}"
        return smaller if smaller in self.files else name

    def run(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of a graph, by name."""
        session = self.session(name)
        try:
            outputs = session.run(None, inputs)
        except Exception as error:  # onnxruntime's own kinds have no common parent
            raise ValueError(f"{self.path(name)}: cannot be run ({_first_line(error)})") from None
        return dict(zip((o.name for o in session.get_outputs()), outputs))

    def session(self, name: str):
        """Of a graph, opened once."""
        name = self.chosen(name)
        self.sessions[name] = self.sessions.get(name) or self._open(name)
        return self.sessions[name]

    def path(self, name: str) -> Path:
        return self.folder / "onnx" / f"{self.chosen(name)}.onnx"

    def _open(self, name: str):
        import onnxruntime

        if name not in self.files:
            encoder, kind = name.split("_")
            raise FileNotFoundError(f"{self.folder}: the bundle has no {name}.onnx; export it with --{encoder}-weights"
                                    + (" and --texts" if kind == "text" else ", or parse features instead of a video"))
        path = self.path(name)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file, though bundle.json names it")
        content = path.read_bytes()
        if EXTERNAL.search(content):
            raise ValueError(f"{path}: keeps weights in other files, which are not read")
        if hashlib.sha256(content).hexdigest() != self.files[name]["sha256"]:
            raise ValueError(f"{path}: not the file that bundle.json describes (its checksum differs)")
        onnxruntime.set_default_logger_severity(4)  # a GPU that is not there is no news
        gpu = self.wanted != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        wanted = ["CUDAExecutionProvider"] * gpu + ["CPUExecutionProvider"]
        try:
            session = onnxruntime.InferenceSession(str(path), providers=wanted)
        except Exception as error:  # onnxruntime's own kinds have no common parent
            raise ValueError(f"{path}: onnxruntime cannot read it ({_first_line(error)})") from None
        self.providers[name] = session.get_providers()[0].removesuffix("ExecutionProvider")
        if self.wanted == "cuda" and self.providers[name] != "CUDA":
            raise ValueError("--device cuda: onnxruntime finds no GPU that it can use; --device cpu does without")
        return session


def _file(path: str | Path) -> Path:
    """The path, unless it is something else than a file, which might have no end; a file would replace a device."""
    path = Path(path)
    if (path.exists() and not path.is_file()) or Path("/dev") in path.absolute().parents:
        raise ValueError(f"{path}: not a file")
    return path


def _named(path: str | Path) -> str:
    """The name of a file, whose bytes need not be text."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _texts(content: object) -> Iterator[str]:
    """Every text of a JSON file, at any depth."""
    if isinstance(content, str):
        yield content
    if isinstance(content, dict):
        content = [*content, *content.values()]
    for x in content if isinstance(content, list) else ():
        yield from _texts(x)


def _first_line(error: Exception) -> str:
    """What it says, which may quote a file; of a long one both ends: onnxruntime tells the cause last, after paths and
    signatures."""
    line = CONTROL.sub("?", (str(error).strip() or repr(error)).splitlines()[0])
    return line if len(line) <= 300 else f"{line[:90]} ... {line[-200:]}"


# ---- Features: from a file, or of a video by the bundle's encoders -------------------------------

def features_of_file(path: str | Path, bundle: Bundle) -> dict[str, np.ndarray]:
    """The parser's inputs, (T, D) each, from an .npz file, which may lack those of one modality. Raises
    FileNotFoundError or ValueError naming the file."""
    try:
        with zipfile.ZipFile(_file(path)) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST:
                raise ValueError("it would unpack to more than 1 GB")
            if any(member.compress_type not in READ_BY_ALL for member in archive.infolist()):
                raise ValueError("it is not compressed the way np.savez_compressed does it")
            if archive.testzip():
                raise ValueError("it is damaged")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if not all(isinstance(x, np.ndarray) for x in arrays.values()):
            raise ValueError("it holds something other than arrays")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except Exception as error:  # zip and npy raise a dozen kinds
        raise ValueError(f"{path}: not an .npz file ({_first_line(error)})") from None
    groups = list(bundle.inputs.values())
    there = [names for names in groups if arrays.keys() & set(names)]  # sound or picture may be absent, not misnamed
    needed = sum(there if there and arrays.keys() <= bundle.sizes.keys() else groups, [])
    for name in needed:
        x, size = arrays.get(name), bundle.sizes[name]
        if x is None or x.dtype.kind not in "fiu" or x.itemsize > 8 or x.ndim != 2 or x.shape[1] != size or not len(x):
            found = f"{name} is {x.dtype} {x.shape}" if x is not None else f"it has {list(arrays)!r:.200}"
            raise ValueError(f"{path}: the parser needs {name} of shape (T, {size}), but {found}")
        if len(x) != len(arrays[needed[0]]):
            raise ValueError(f"{path}: {name} has another length than {needed[0]}")
        if not (np.abs(x.astype(np.float64)) <= HALF).all():  # nor NaN
            raise ValueError(f"{path}: {name} holds NaN or infinite values, or values beyond half precision")
    return {name: arrays[name].astype(np.float32) for name in needed}


def features_of_video(path: str | Path, bundle: Bundle, longest: float = LONGEST_VIDEO) -> dict[str, np.ndarray]:
    """CLAP of every second's sound, CLIP of the picture in its middle; ValueError names the file and the cause."""
    if bundle.feature_set != "clip_clap":
        raise ValueError(f"{bundle.folder}: its parser reads feature set {bundle.feature_set!r}, which has no encoders "
                         "here; give it an .npz file of features")
    if not _file(path).exists():
        raise FileNotFoundError(f"{path}: no such file" + "; download what a URL names first" * (":/" in str(path)))
    with open(path, "rb") as file:
        if file.read(6) == b"\x93NUMPY":
            raise ValueError(f"{path}: is one array; features are an .npz file with several: {', '.join(bundle.sizes)}")
    for name in ("clap_audio", "clip_image"):  # a missing one is said before minutes of decoding
        bundle.session(name)
    try:
        from video import decode

        clip = decode.read_clip(path, longest=longest, encode=dict(
            sound=lambda wave: bundle.run("clap_audio", dict(wave=wave))["embedding"],
            picture=lambda pixels: bundle.run("clip_image", dict(pixels=pixels))["embedding"]))
    except ModuleNotFoundError as error:
        raise ValueError(f"reading videos needs {error.name}: the folders video/ and common/ beside parse.py, and "
                         "`pip install av pillow`") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    found = dict(audio=clip.sounds, visual_2d=clip.images)  # (T, 512), (T, 768)
    return {name: x for name, x in found.items() if x is not None}


def warnings(bundle: Bundle, own_classes: bool = False) -> list[str]:
    """Why the events mean nothing, if they do: what the parser learned from, or its encoders, are not real. Whether
    videos are prepared otherwise than those of the training, and how good classes of one's own are."""
    why = [f"RANDOM WEIGHTS in {n}.onnx" for n, f in bundle.files.items() if f.get("weights") == dict(weights="random")]
    why += [str(bundle.info.get("dry_run") or "")]
    found = [f"a dry run ({'; '.join(filter(None, why))}): the events mean nothing for real videos"] * any(why)
    if bundle.recipe and bundle.recipe != "uwav":
        found.append(f"trained on features of recipe {bundle.recipe}, but videos are prepared by recipe uwav")
    if own_classes:
        left_out = {name: f"{x:.1f}" for name, x in bundle.info["open_classes"]["left_out"].items()}
        found += ["classes of your own, found by the teacher alone, are recognised less well than the parser's; with "
                  f"classes left out in turn it scores (segments): A {left_out['seg_a']} V {left_out['seg_v']} Type "
                  f"{left_out['seg_type']}"]
    return found


# ---- Classes of one's own: the teacher, which knows them by their names --------------------------

def texts_of(classes: list[str], bundle: Bundle) -> dict[str, np.ndarray]:
    """The text embeddings of any classes, (C, 512) for sound and (C, 768) for pictures, by the bundle's encoders."""
    from tokenizers import Tokenizer

    if tuple(classes) in bundle.texts:
        return bundle.texts[tuple(classes)]
    found, prompts = {}, bundle.info["preprocessing"]["prompts"]
    for modality, name in (("audio", "clap"), ("visual", "clip")):
        bundle.session(f"{name}_text")  # a missing one is said first
        file = _file(bundle.folder / f"{name}_tokenizer.json")
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != bundle.files[f"{name}_text"].get("tokenizer"):
            raise ValueError(f"{file}: not the file that bundle.json describes (its checksum differs)")
        texts = [prompts[name].format(c.replace("_", " ")) for c in classes]
        if name == "clip":
            texts = [cleaned(text) for text in texts]
        tokens = [encoding.ids for encoding in Tokenizer.from_buffer(content).encode_batch(texts)]
        found[modality] = bundle.run(f"{name}_text", dict(tokens=np.array(tokens, np.int64)))["embedding"]
    bundle.texts[tuple(classes)] = found
    return found


def cleaned(text: str) -> str:
    """As CLIP's own tokenizer begins. Of plain letters its library ftfy changes nothing; others need it."""
    if not PLAIN.fullmatch(text):
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def teacher_of(classes: list[str], bundle: Bundle) -> Callable[[dict], dict]:
    """What takes the parser's place for `classes`: its inputs -> soft labels of the teacher (Eq. 4, without a weak
    label) as probabilities. The threshold is one for all classes, which other classes were annotated for."""
    rule = bundle.info.get("open_classes")
    if bundle.feature_set != "clip_clap" or not rule:
        raise ValueError(f"{bundle.folder}: knows only its own classes; others need a run with CLIP and CLAP "
                         "features, a teacher, and an annotated val split")
    texts, temperature = texts_of(classes, bundle), bundle.info["label_temperature"]

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        audio, visual = inputs["audio"], inputs["visual_2d"]  # (B, T, D) each
        logits = bundle.run("teacher", dict(
            audio=audio, visual=visual, mask=np.ones(audio.shape[:2], bool), audio_text=texts["audio"],
            visual_text=texts["visual"]))
        found = {}
        for m, threshold in rule["thresholds"].items():
            found[f"{m}_prob"] = 1 / (1 + np.exp((threshold - logits[f"{m}_logit"]) / temperature))  # (B, T, C)
        return found | dict(video_prob=np.maximum(*(p.max(1) for p in found.values())))  # (B, C)

    return run


# ---- Parsing -------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Parse:
    """T segments, C classes."""

    classes: list[str]
    audio_prob: np.ndarray | None  # (T, C); None: the video has no sound
    visual_prob: np.ndarray | None  # (T, C); None: no picture
    video_prob: np.ndarray  # (C,): of the whole video, can exceed 1 (Eq. 1); of a long one the largest of its windows
    audio_event: np.ndarray  # (T, C) bool
    visual_event: np.ndarray  # (T, C) bool
    av_event: np.ndarray  # (T, C) bool
    threshold: float = 0.5  # that the probabilities of an event exceed, of the second and of a window around it
    window_prob: np.ndarray | None = None  # (T, C): of the windows around each second, the largest

    @property
    def lacks(self) -> dict[str, str]:
        """The modalities that the video does not have -> why; what is not there has no events, nor has "both"."""
        there = ("audible", "no sound", self.audio_prob), ("visible", "no picture", self.visual_prob)
        gone = {modality: reason for modality, reason, prob in there if prob is None}
        return gone | {"both": reason for reason in gone.values()}

    def shown(self) -> list[int]:
        """The classes that have an event."""
        return np.flatnonzero((self.audio_event | self.visual_event).any(0)).tolist()

    def events(self) -> list[dict]:
        """Every run of positive segments: class, modality, onset and offset in s, mean probability."""
        found, probability = [], {"audio": self.audio_prob, "visual": self.visual_prob}
        probability["av"] = None if self.lacks else np.minimum(self.audio_prob, self.visual_prob)  # (T, C)
        for modality, name in PREFIXES.items():
            positive = getattr(self, f"{name}_event")  # (T, C)
            edges = np.diff(np.pad(positive.astype(np.int8), ((1, 1), (0, 0))), axis=0)  # (T + 1, C)
            for c in np.flatnonzero(positive.any(0)):
                for onset, offset in zip(np.flatnonzero(edges[:, c] == 1), np.flatnonzero(edges[:, c] == -1)):
                    mean = float(probability[name][onset:offset, c].mean())
                    found.append(dict(label=self.classes[c], modality=modality, onset=int(onset), offset=int(offset),
                                      probability=round(mean, 6)))
        return sorted(found, key=lambda e: self.classes.index(e["label"]))  # then as found: modality, onset


def parse(features: dict[str, np.ndarray], bundle: Bundle, classes: list[str] | None = None,
          threshold: float | None = None) -> Parse:
    """Parse T segments, in windows as long as the clips of the training, one from every second on: nothing depends on
    where a file begins. Probabilities are averaged, a segment weighing the more the farther it lies from the ends of a
    window; an event needs one window that admits it (docs/deploy.md). The parser is given zeros for inputs that are not
    there, and what it says of their modality is left out. classes, threshold: others than the bundle's; classes are
    found by the teacher."""
    graph, run = "parser", lambda inputs: bundle.run("parser", inputs)
    if classes:
        graph, run = "teacher", teacher_of(classes, bundle)
    classes, threshold = classes or bundle.classes, bundle.gate if threshold is None else threshold
    T, C = len(next(iter(features.values()))), len(classes)
    absent = [m for m, names in bundle.inputs.items() if not features.keys() & set(names)]
    features = {name: features.get(name, np.zeros((T, size), np.float32)) for name, size in bundle.sizes.items()}
    place = np.arange(min(T, bundle.window))  # (length,)
    weight = np.minimum(place, place[::-1])[:, None] + 1.0  # (length, 1)
    windows, best = np.zeros((T, 1)), np.zeros((T, C), np.float32)
    prob = {m: np.zeros((T, C)) for m in bundle.inputs}
    for start in range(0, T - len(place) + 1, AT_ONCE):
        rows = np.add.outer(np.arange(start, min(start + AT_ONCE, T - len(place) + 1)), place)  # (windows, length)
        inputs = {name: np.ascontiguousarray(x[rows], np.float32) for name, x in features.items()}
        out = run(inputs)
        shapes = {f"{m}_prob": (*rows.shape, C) for m in prob} | {"video_prob": (len(rows), C)}
        if any(n not in out or out[n].shape != x or not np.isfinite(out[n]).all() for n, x in shapes.items()):
            raise ValueError(f"{bundle.path(graph)}: its outputs are not those of a {graph} of {C} classes, or not "
                             "finite")
        np.add.at(windows, rows, weight)
        np.maximum.at(best, rows, out["video_prob"][:, None])
        for m in prob:
            np.add.at(prob[m], rows, weight * out[f"{m}_prob"])
    prob = {m: (total / windows).astype(np.float32) for m, total in prob.items()}  # (T, C) each
    event = {m: (p > threshold) & (best > threshold) & (m not in absent) for m, p in prob.items()}
    prob = {m: None if m in absent else p for m, p in prob.items()}
    return Parse(classes, prob["audio"], prob["visual"], best.max(0), event["audio"], event["visual"],
                 event["audio"] & event["visual"], threshold, best)


# ---- Telling the result --------------------------------------------------------------------------

def timeline(result: Parse, width: int = 100) -> str:
    """A line per event class and modality; a character is a second, or several in a long video (# if any has it)."""
    T = len(result.av_event)
    per = -(-T // width)  # seconds a character
    shown = result.shown()
    if not shown:
        return f"no event in {T} s" + "".join(f" ({why})" for why in set(result.lacks.values()))
    indent = max(len(result.classes[c]) for c in shown) + 11
    ruler = "".join(f"{t:<{10}d}" for t in range(0, T, 10 * per)) if T > 10 else "0" + " " * max(1, T - 1) + str(T)
    lines = [" " * indent + ruler + " s" + (f"   ({per} s a character)" if per > 1 else "")]
    for c in shown:
        for modality, name in PREFIXES.items():
            positive = getattr(result, f"{name}_event")[:, c]
            marks = "".join("#" if positive[t : t + per].any() else "." for t in range(0, T, per))
            marks = f"({result.lacks[modality]})" if modality in result.lacks else marks
            lines.append(f"{result.classes[c] if modality == 'audible' else '':{indent - 10}s}{modality:9s} {marks}")
    return "\n".join(lines)


def highest(result: Parse, count: int) -> str:
    """The classes and modalities of the highest probabilities, and which gates these do not pass."""
    rows = [(prob[t, c], result.window_prob[t, c], f"{result.classes[c]} {modality} in second {t}")
            for modality, prob in (("audible", result.audio_prob), ("visible", result.visual_prob)) if prob is not None
            for c, t in enumerate(prob.argmax(0))]
    lines = [f"highest probabilities; an event needs more than {result.threshold:g} in a second and around it:"]
    for second, video, name in sorted(rows, reverse=True)[:count]:
        low = [gate for gate, p in (("second", second), ("video", video)) if not p > result.threshold]
        why = f"stopped by the {' and the '.join(low)}" if low else "an event"
        lines.append(f"  {name}: {second:.3f}, the video around it {video:.3f}: {why}")
    return "\n".join(lines)


def plot(result: Parse, title: str, path: Path) -> None:
    """The same as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["text.parse_math"] = False  # a name with a $ is a name
    shown = result.shown()
    colours = {"audible": "#0072b2", "visible": "#d55e00", "both": "#555555"}
    T = len(result.av_event)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.75 * max(1, len(shown))), layout="constrained")
    for e in result.events():
        row = shown.index(result.classes.index(e["label"])) + 0.27 * (list(PREFIXES).index(e["modality"]) - 1)
        axes.barh(row, e["offset"] - e["onset"], 0.24, left=e["onset"], color=colours[e["modality"]])
    axes.set_yticks(range(len(shown)), [result.classes[c].replace("_", " ") for c in shown])
    axes.set(xlim=(0, T), ylim=(max(1, len(shown)) - 0.5, -0.5), xlabel="s", title=title)
    labels = {m: f"{m}: {result.lacks[m]}" if m in result.lacks else m for m in colours}
    figure.legend(handles=[plt.Rectangle((0, 0), 1, 1, color=x, label=labels[m]) for m, x in colours.items()], ncols=3,
                  frameon=False, loc="outside lower center")
    if not shown:
        axes.text(T / 2, 0, f"no event above {result.threshold:g}", ha="center", va="center")
    axes.spines[["top", "right"]].set_visible(False)
    with _written(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix[1:] or "png")
    plt.close(figure)


@contextlib.contextmanager
def _written(path: Path) -> Iterator[Path]:
    """Write to a temporary name; it becomes `path` only on success."""
    temporary = _file(path).with_name(f".{path.stem}.part{path.suffix}")
    temporary.unlink(missing_ok=True)  # of a killed run, or a link to elsewhere
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # a failed write does not name the file
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    with _written(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(result: Parse, source: Path, bundle: Bundle, path: Path) -> None:
    """Everything, in the format that web/parser.js writes too: docs/deploy.md."""
    own = result.classes is not bundle.classes
    identity = dict(made_from=bundle.info.get("made_from"),
                    parser=bundle.files[bundle.chosen("teacher") if own else bundle.parser]["sha256"])
    content = dict(format=JSON_FORMAT, source=_named(source), bundle=identity, warnings=warnings(bundle, own),
                   seconds=len(result.av_event), times=ORIGIN, threshold=result.threshold, classes=result.classes,
                   events=result.events(), providers=bundle.providers)
    for name in ("video_prob", "audio_prob", "visual_prob"):
        x = getattr(result, name)
        content[name] = None if x is None else x.astype(float).round(6).tolist()
    _write(path, json.dumps(content) + "\n")


def write_csv(result: Parse, source: Path, path: Path) -> None:
    """Events, one a row, each with its video, so that such files can be joined; `uwav.py score` reads them."""
    with _written(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("video", "label", "modality", "onset", "offset", "probability"))
        writer.writeheader()
        for e in result.events():
            texts = dict(video=str(source), label=e["label"])  # an apostrophe before what a spreadsheet would run
            writer.writerow(e | {name: f"'{x}" if FORMULA.match(x) else x for name, x in texts.items()})


def write_vtt(result: Parse, path: Path) -> None:
    """Subtitles in WebVTT, which players and browsers show."""
    def clock(t: int) -> str:
        return f"{t // 3600:02d}:{t // 60 % 60:02d}:{t % 60:02d}.000"

    cues = [f"{clock(e['onset'])} --> {clock(e['offset'])}\n{html.escape(e['label'], quote=False)}: {e['modality']}\n"
            for e in sorted(result.events(), key=lambda e: e["onset"])]
    _write(path, "\n".join(["WEBVTT\n", *cues]))


def write_labels(result: Parse, path: Path) -> None:
    """A label track for Audacity: begin, end, text."""
    _write(path, "".join(f"{e['onset']}\t{e['offset']}\t{e['label']}: {e['modality']}\n" for e in result.events()))


# ---- The command ---------------------------------------------------------------------------------

def own_classes(names: str) -> list[str]:
    """The names of --classes, which commas separate."""
    classes = [name.strip() for name in names.split(",")]
    if not all(classes) or len(set(classes)) < len(classes) or CONTROL.search(names):
        raise ValueError(f"--classes {names!r}: names of classes, each once, separated by commas")
    return classes


def check_before_work(sources: set[Path], outputs: dict[str, Path]) -> None:
    """What would stop the command after minutes of decoding stops it now. Raises ValueError or ModuleNotFoundError."""
    if len({path.resolve() for path in outputs.values()} - sources) < len(outputs):
        raise ValueError("an output is named twice, or is the source itself")
    for path in outputs.values():
        folder = next(x for x in _file(path).absolute().parents if x.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(f"{path}: cannot be written, {folder} is not a folder that may be written to")
    if plotted := outputs.get("plot"):
        from matplotlib.backend_bases import FigureCanvasBase as Canvas

        if plotted.suffix[1:].lower() not in ("", *Canvas.filetypes):
            raise ValueError(f"{plotted}: not a kind of picture; known are {', '.join(sorted(Canvas.filetypes))}")


def sources_of(paths: list[Path]) -> dict[str, Path]:
    """Every file that is meant, by its name; of a folder all TAKEN in and below it, by their names from there on."""
    found = {}
    for path in paths:
        files = (x for x in sorted(path.rglob("[!.]*")) if x.suffix.lower() in TAKEN and x.is_file())
        for file in files if path.is_dir() else [path]:
            name = str(file.relative_to(path if path.is_dir() else path.parent))
            if found.setdefault(name, file) != file:
                raise ValueError(f"{file}: has the name of {found[name]}; give the folder that holds both")
    if not found:
        raise ValueError(f"{paths[0]}: no video and no .npz file in it")
    return found


def _notes(output: Path) -> dict[str, list]:
    """What it and the outputs beside it were made of and with, by name."""
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):  # none, or damaged: all is made again
        return dict(json.loads(_file(output.with_name(NOTES)).read_text(encoding="utf-8")))
    return {}


def parse_one(source: Path, name: Path, outputs: dict[str, Path], bundle: Bundle, classes: list[str] | None,
              options: argparse.Namespace) -> None:
    """Tell the events and write the outputs, which call the source `name`."""
    if source.suffix.lower() == ".npz":
        features = features_of_file(source, bundle)
    else:
        features = features_of_video(source, bundle, options.longest)
    if "save_features" in outputs:
        with _written(outputs["save_features"]) as temporary, open(temporary, "wb") as file:
            np.savez(file, **features)
    result = parse(features, bundle, classes, options.threshold)
    print(timeline(result), flush=True)
    if top := CLOSEST * (not result.shown()) if options.top is None else options.top:
        print(highest(result, top), flush=True)
    write = dict(json=(write_json, name, bundle), csv=(write_csv, name), vtt=(write_vtt,), labels=(write_labels,),
                 plot=(plot, _named(name)))
    for kind in outputs.keys() & write.keys():
        function, *more = write[kind]
        function(result, *more, outputs[kind])


def parse_all(options: argparse.Namespace, bundle: Bundle) -> None:
    """Every source, with models that are opened once. Of several, what was made alike is kept, and one that cannot be
    parsed does not stop the others. Raises ValueError, OSError or ModuleNotFoundError."""
    classes, failed = None if options.classes is None else own_classes(options.classes), 0
    if classes:
        teacher_of(classes, bundle)  # which needs packages, encoders of texts and a threshold
    sources, several = sources_of(options.sources), len(options.sources) > 1 or options.sources[0].is_dir()
    places = {kind: vars(options)[kind] for kind in OUTPUTS if vars(options)[kind]}
    taken = {path.resolve() for path in sources.values()}
    alike = json.dumps([JSON_FORMAT, options.threshold, classes, options.variant, bundle.info])
    made_with = hashlib.sha256(alike.encode()).hexdigest()
    for n, (name, source) in enumerate(sources.items(), 1):
        outputs = {kind: place / f"{name}{OUTPUTS[kind]}" if several else place for kind, place in places.items()}
        note = [source.stat().st_size, source.stat().st_mtime_ns, made_with] if several else []
        kept = note and outputs and all(x.exists() and _notes(x).get(x.name) == note for x in outputs.values())
        if several:
            print(f"[{n} of {len(sources)}] {CONTROL.sub('?', _named(name))}{', kept' if kept else ''}", flush=True)
        if kept:
            continue
        try:
            check_before_work(taken, outputs)
            parse_one(source, Path(name), outputs, bundle, classes, options)
            for x in outputs.values() if several else ():
                _write(x.with_name(NOTES), json.dumps(_notes(x) | {x.name: note}))
        except (ValueError, PermissionError) as error:
            if not several:
                raise
            failed += 1
            print(f"error: {error}", file=sys.stderr, flush=True)
    for warning in warnings(bundle, bool(classes)):
        print(f"WARNING: {warning}", file=sys.stderr, flush=True)
    used = ", ".join(f"{name} {provider}" for name, provider in bundle.providers.items())
    print(f"(ran on: {used or 'nothing'})")
    if failed:
        raise ValueError(f"{failed} of {len(sources)} could not be parsed")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Which events are audible, visible or both in every second of a video.",
        epilog="For example: python parse.py runs/demo/bundle/sample.npz --bundle runs/demo/bundle --csv events.csv")
    parser.add_argument("sources", type=Path, nargs="*", metavar="VIDEO|FEATURES.npz|FOLDER",
                        help="several write into folders: --csv FOLDER ...")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--bundle", type=Path, metavar="OUT", help="folder written by export_onnx.py")
    where.add_argument("--serve", type=Path, metavar="OUT", help="show the page with this bundle, to this machine only")
    parser.add_argument("--port", type=int, default=8000, help="of --serve (default: 8000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="events and all probabilities")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="events: video, label, modality, onset, ...")
    parser.add_argument("--vtt", type=Path, metavar="FILE", help="events as subtitles (WebVTT)")
    parser.add_argument("--labels", type=Path, metavar="FILE.txt", help="events as labels for Audacity")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="a picture of the timeline")
    parser.add_argument("--save-features", type=Path, metavar="FILE.npz", help="the video's features, to parse again")
    parser.add_argument("--classes", metavar="A,B,...", help="your own classes, found by the teacher")
    parser.add_argument("--threshold", type=float, metavar="P", help="of both gates, in place of the bundle's")
    parser.add_argument("--top", type=int, metavar="N", help=f"N highest probabilities, too ({CLOSEST} if no event)")
    parser.add_argument("--variant", choices=("fp16", "int8"), help="smaller files, if the bundle has them")
    parser.add_argument("--longest", type=float, default=LONGEST_VIDEO, metavar="S",
                        help="refuse longer videos (default: %(default)s s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where onnxruntime has it")
    options = parser.parse_args(arguments)
    if options.bundle and not options.sources:
        parser.error("name a video, a features file, or a folder of them")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # one that knows ASCII alone shows the number of an ü
    try:
        if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":  # under torchrun
            said = ValueError(f"torchrun started {processes} processes, which would all do the same; start it without")
            raise said if os.environ["RANK"] == "0" else SystemExit(1)
        if options.serve:
            from web.serve import serve

            given = vars(options) | dict(serve=None, port=parser.get_default("port"))
            if given != vars(parser.parse_args(["--serve", "OUT"])) | dict(serve=None):
                raise ValueError("--serve shows a page, on which a video is chosen: it takes --port and nothing else")
            return serve(Bundle(options.serve).folder, options.port)
        if not 0 < (0.5 if options.threshold is None else options.threshold) < 1 or (options.top or 0) < 0:
            raise ValueError("--threshold takes a number between 0 and 1, --top one from 0 on")
        parse_all(options, Bundle(options.bundle, options.device, options.variant))
    except (ValueError, OSError) as error:
        named = isinstance(error, OSError) and error.filename
        sys.exit(f"error: {error.filename}: {error.strerror}" if named else f"error: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"error: this needs {error.name}: pip install {error.name}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command begins again")


if __name__ == "__main__":
    main()
