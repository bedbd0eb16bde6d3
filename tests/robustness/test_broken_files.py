"""Whatever a file holds, its reader gives a right result or one sentence that names it: 1,000 broken copies for each.

A reader here is a folder of small whole files, how to read it, and what holds of any result. A case breaks one of the files.
A result is right if it equals that of the whole files, or what a slow reading of our own finds in the changed ones. Any
other is a silent change; of a file with a checksum there may be none, and SILENT says why the others cannot do better.
UWAV_SOAK=N tries N times as many, others every time.
"""

import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

if __name__ == "__main__":  # the process with little memory, below
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1] / "helpers")]

import parse
import uwav
from common import files
from data import annotations, fetch, layout, pack, splits
from sources import write_llp, write_own, write_source, write_unav
from truth import content_of, slow_classes, slow_llp, slow_own, slow_unav
from train import ablation, checkpoints, cli, stages
from video import encoders, extract

SOAK = int(os.environ.get("UWAV_SOAK", 0))
CASES = 1000 * (SOAK or 1)  # a reader
SECONDS, BYTES = 10.0, 1 << 30  # at most, for one file

# ---- what can be wrong ----

NAMES = ("../../x", "/etc/passwd", "..", ".", "", "a\0b", "a\nb", "\ud800", "a/b", "a\\b", "C:\\x", "x" * 5000, "\u202e", "é", "9" * 5000, "1e400",
         "nan", "-1", "-0.5", "1e12", "²", "0x10", "None", "=1+1", '"', "🦊", "1_000", " ", "1,5")
VALUES = (*NAMES, None, True, False, 0, 1, -1, 0.5, -2.5, 25, 10**6, 1e12, 1e308, 10**30, float("nan"), float("inf"), float("-inf"), [], {}, [[]],
          {"a": 1}, [1, 2], ["x"], ["x", "x"])


def broken_bytes(rng: np.random.Generator, whole: bytes) -> bytes:
    """Cut, flipped, empty, noise, a piece taken out, doubled or put in."""
    kind, a, b = rng.integers(10), *sorted(rng.integers(0, len(whole) + 1, 2))
    if kind == 0:
        return whole[:a]
    if kind <= 4:
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.choice([1, 2, 10, 100])):
            content[place] ^= 1 << rng.integers(8)
        return bytes(content)
    if kind == 5:
        return (b"", rng.bytes(rng.integers(1, 300)), bytes(len(whole)), b"PK\x03\x04" + whole, b"\x80\x04" + whole)[rng.integers(5)]
    piece = (b"\0", b"\xff\xfe", b"\r", b"\n", b'"', b"\xef\xbb\xbf", b"[" * 100_000, b"9" * 5000, rng.bytes(9))[rng.integers(9)]
    return (whole[:a] + whole[b:], whole[:b] + whole[a:], whole[:a] + piece + whole[a:], piece + whole)[kind - 6]


def broken_text(rng: np.random.Generator, whole: bytes) -> bytes:
    """Another encoding or other line ends."""
    text = whole.decode()
    return (text.encode("utf-8-sig"), text.encode("utf-16"), text.encode("utf-16-le"), text.replace("\n", "\r\n").encode(),
            text.replace("\n", "\r").encode(), text.replace("a", "é").encode("latin-1"))[rng.integers(6)]


def broken_table(rng: np.random.Generator, whole: bytes) -> bytes:
    """A cell, row or column replaced, gone or doubled."""
    separator = "\t" if b"\t" in whole else ","
    rows = [line.split(separator) for line in whole.decode().splitlines()]
    n = rng.integers(len(rows))
    c, kind = rng.integers(len(rows[n])), rng.integers(8)
    if kind <= 2:
        rows[n][c] = NAMES[rng.integers(len(NAMES))]
    elif kind == 3:
        rows[n][c] = rows[rng.integers(len(rows))][0]
    elif kind == 4:
        del rows[n]
    elif kind == 5:
        rows.insert(rng.integers(len(rows) + 1), list(rows[n]))
    elif kind == 6:
        rows = [[cell for k, cell in enumerate(row) if k != c] for row in rows]
    else:
        rows[n].insert(c, rows[n][c])
    return "\n".join(map(separator.join, rows)).encode("utf-8", "surrogatepass") + b"\n"


def places(tree: object) -> list[tuple[object, object]]:
    """(container, key) of everything inside dicts and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, x in items for place in ((tree, key), *places(x))]


def broken_tree(rng: np.random.Generator, tree: dict, values: tuple) -> dict:
    """A value replaced, gone, nested a thousand times, or under another name."""
    box = {"": tree}
    found = places(box)
    container, key = found[rng.integers(len(found))]
    kind, value = rng.integers(8), values[rng.integers(len(values))]
    if kind <= 4:
        container[key] = value
    elif kind == 5:
        del container[key]
    elif kind == 6 and isinstance(container, dict):
        container[NAMES[rng.integers(len(NAMES))]] = container.pop(key)
    else:
        other, name = found[rng.integers(len(found))]
        container[key] = other.get(name) if isinstance(other, dict) else value
        if container[key] is box or not isinstance(container[key], int | float | str):
            container[key] = value
    return box.get("", {})


def broken_json(rng: np.random.Generator, whole: bytes) -> bytes:
    text = json.dumps(broken_tree(rng, json.loads(whole), VALUES))
    return (text if rng.integers(20) else text.replace(":", ":" + "[" * 10_000, 1)).encode()


def broken_lines(rng: np.random.Generator, whole: bytes) -> bytes:
    lines = whole.splitlines(keepends=True)
    n = rng.integers(len(lines))
    lines[n] = (broken_json(rng, lines[n]) + b"\n", b"", lines[n] * 2, b"\n")[rng.integers(4)]
    return b"".join(lines)


def npy(x: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, x, allow_pickle=True)
    return buffer.getvalue()


DTYPES = (np.float64, np.float32, np.float16, np.int64, np.uint8, np.int8, bool, "U3", "S2", ">f2", ">f4", complex, object, "M8[s]", "V4", "f4,i8")
HEADERS = ("(999999999999,)", "(1000000000000, 768)", "(-1, 4)", "(3, 0)", "(1000000000000000000, 0)", "()", "(4.5,)", "(True, 2)", "('a',)", "((3,),)",
           "3", "(3", "None", "(10**9,)", "(99999999999999999999999999,)", "(" * 3000 + ")" * 3000)
DESCRIPTIONS = ("'<f4'", "'|O'", "'<f16'", "'<V0'", "'|S0'", "[('a', '<f4')]", "'(9999, 9999)<f4'", "3", "'<M8'", "'|V999999999'", "[]", "{}", "'=f4'", "'<i3'")


def broken_array(rng: np.random.Generator, whole: bytes) -> bytes:
    """Another type, another shape, wrong values; a header that does not fit."""
    x = np.load(io.BytesIO(whole))
    kind = rng.integers(8)
    if kind == 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dtype = np.dtype(DTYPES[rng.integers(len(DTYPES))])
            return npy(np.zeros(x.shape, dtype) if dtype.kind in "VMO" else x.astype(dtype))
    if kind == 1:
        others = (x[:0], x[:-1], np.concatenate([x, x]), x[None], x.reshape(-1), x.T, x[..., :1])
        return npy(others[rng.integers(len(others))])
    if kind <= 4:
        x = x.copy()
        values = (np.nan, np.inf, -np.inf, 0, -1, 6e4) if x.dtype.kind == "f" else (0, 1, 2, 200, 255)
        x.flat[rng.integers(x.size)] = values[rng.integers(len(values))]
        return npy(x)
    start, text = whole.index(b"{"), whole[: whole.index(b"\n")].decode("latin-1")
    header = text[start:]
    if kind == 5:
        header = header.replace(f"'shape': {x.shape}", f"'shape': {HEADERS[rng.integers(len(HEADERS))]}")
    elif kind == 6:
        header = header.replace(f"'descr': '{x.dtype.str}'", f"'descr': {DESCRIPTIONS[rng.integers(len(DESCRIPTIONS))]}")
    else:
        header = header.replace("False", ("True", "2", "__import__('os').system('touch canary')")[rng.integers(3)])
    return whole[:8] + len(header + "\n").to_bytes(2, "little") + (header + "\n").encode("latin-1") + whole[len(text) + 1 :]


def broken_arrays(rng: np.random.Generator, whole: bytes) -> bytes:
    """An .npz with a broken member, or without it, or with one more."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = list(members)[rng.integers(len(members))]
    kind = rng.integers(8)
    if kind <= 3 and members[name][6:].find(b"<U") < 0:
        members[name] = broken_array(rng, members[name])
    elif kind <= 5:
        members[name] = broken_bytes(rng, members[name])
    elif kind == 6:
        del members[name]
    else:
        members[("../x.npy", "/x.npy", "x")[rng.integers(3)]] = members[name]
    return zipped(members)


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def broken_archive(rng: np.random.Generator, whole: bytes) -> bytes:
    """Other names in a zip file, another compression, a size that is not true."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    kind, n = rng.integers(4), rng.integers(len(members))
    if kind <= 1:
        name = NAMES[rng.integers(len(NAMES))].encode("utf-8", "replace").decode() or "x"
        members[n] = (f"{name}.npy" if kind else f"{name}/a.npy"), members[n][1]
    elif kind == 2:
        members.append(members[n])
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", (0, 8, 12, 14)[rng.integers(4)]) as archive:
        warnings.simplefilter("ignore")
        for name, content in members:
            archive.writestr(name, content)
    content = buffer.getvalue()
    if kind == 3:  # the declared sizes
        place = content.index(b"PK\x01\x02")
        content = content[: place + 20] + rng.bytes(8) + content[place + 28 :]
    return content


TENSORS = (torch.tensor(float("nan")), torch.full((8,), float("inf")), torch.zeros(3), torch.zeros(8, 8), torch.zeros(8, dtype=torch.int64), torch.zeros(0),
           torch.zeros(1).expand(10**9), torch.zeros(1).expand(10**5, 10**5), torch.zeros(8, dtype=torch.complex64), torch.eye(8).to_sparse(),
           torch.zeros(8, dtype=torch.float16), torch.zeros(1).expand(8, 8))


def broken_checkpoint(rng: np.random.Generator, whole: bytes) -> bytes:
    content = broken_tree(rng, torch.load(io.BytesIO(whole)), (*VALUES, *TENSORS, *TENSORS))
    buffer = io.BytesIO()
    try:
        torch.save(content, buffer, _use_new_zipfile_serialization=bool(rng.integers(4)))
    except (RuntimeError, UnicodeError, OverflowError):  # what PyTorch cannot save, no file can hold
        return b""
    return buffer.getvalue()


BREAK = {".csv": (broken_table, broken_table, broken_text), ".json": (broken_json, broken_json, broken_text), ".jsonl": (broken_lines, broken_text), ".tsv": (broken_table, broken_text),
         ".txt": (broken_text,), ".npy": (broken_array, broken_array), ".npz": (broken_arrays, broken_arrays), ".zip": (broken_archive,),
         ".pt": (broken_checkpoint, broken_checkpoint), ".onnx": ()}

# ---- readers ----


@dataclass(frozen=True)
class Reader:
    read: Callable[[Path], object]
    holds: Callable[[object], bool]  # of any result
    only: tuple[str, ...] = ()  # files to break; (): all
    refuses: float = 0.3  # at least this share is refused, or the cases are harmless
    slow: Callable[[Path], object] | None = None  # what changed files hold, read from their definition
    saved_anew: bool = True  # broken by a program that writes such files as well


def of_llp(folder: Path) -> Reader:
    write_llp(folder)

    def holds(llp: annotations.LLP) -> bool:
        ids = [i for s in llp.splits.values() for i in s.ids]
        return (all(map(files.is_plain_name, ids)) and len(set(ids)) == len(ids) and llp.val.audio.shape == (len(llp.val.ids), 10, 25)
                and all(s.weak.shape == (len(s.ids), 25) and s.weak.max() <= 1 for s in llp.splits.values()))

    return Reader(lambda folder: annotations.read_llp(folder, report=lambda line: None), holds, slow=slow_llp)


def of_unav(folder: Path) -> Reader:
    write_unav(folder / "unav100_annotations.json")

    def holds(unav: annotations.UnAV) -> bool:
        splits = [getattr(unav, s) for s in annotations.UNAV_SPLITS]
        return all(files.is_plain_name(i) and x.shape[0] <= 3600 and x.shape[1] == len(unav.classes) for s in splits for i, x in zip(s.ids, s.labels))

    return Reader(lambda folder: annotations.read_unav(folder / "unav100_annotations.json"), holds,
                  slow=lambda folder: slow_unav(folder / "unav100_annotations.json"))


OWN = ("video,labels\na,dog\nb,dog;bell\nc,\nd,bell\ne,dog\nf,\n", "video,modality,onset,offset,label\ne,audible,0,2.5,dog\ne,visible,1,4,dog\n")


def of_own(folder: Path) -> Reader:
    for name, text in zip(("labels.csv", "events.csv"), OWN):
        (folder / name).write_text(text)

    def holds(own: annotations.LLP) -> bool:
        return set().union(*(s.ids for s in own.splits.values())) <= set("abcdef") and all(s.weak.max() <= 1 for s in own.splits.values())

    given = ("dog", "bell"), dict.fromkeys("abcdef", 4)
    return Reader(lambda folder: annotations.read_own(folder, *given, report=lambda line: None), holds, slow=lambda folder: slow_own(folder, *given))


def of_own_folder(folder: Path) -> Reader:
    write_own(folder, *OWN)
    return Reader(lambda folder: pack._read_own_folder(folder, "stop"), lambda own: own.segments >= 1 and own.train.ids,
                  ("text.json", "feats_CLAP/segment_feats/b.npy"))


def of_classes(folder: Path) -> Reader:
    (folder / "classes.txt").write_text("dog\nFrying_(food)\nbell ringing\nrain\n")
    return Reader(lambda folder: annotations.read_classes(str(folder / "classes.txt")), lambda names: names and all(n.isprintable() or n for n in names), refuses=0.1,
                  slow=lambda folder: slow_classes(folder / "classes.txt"))


def of_array(folder: Path) -> Reader:
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32))
    return Reader(lambda folder: (files.read_array(folder / "x.npy"), files.read_array(folder / "x.npy", mmap=True)),
                  lambda pair: all(isinstance(x, np.ndarray) and x.dtype != object for x in pair))


def packed(folder: Path) -> None:
    """A packed folder of tiny splits, with all features but the largest."""
    source = write_source(folder.parent / f"{folder.name}-source", videos=3)
    for name in ("res152", "r2plus1d_18"):
        os.rename(source / "LLP" / layout.ENCODERS[name].folder, folder.parent / f"{folder.name}-{name}")
    pack.pack(source, folder, workers=1)


def of_target(folder: Path) -> Reader:
    packed(folder)

    def holds(split: uwav.TargetSplit) -> bool:
        N, T, C = split.audio_truth.shape
        return split.audio.shape == (N, T, 512) and split.visual_2d.shape == (N, T, 768) and split.weak.shape == (N, C) and all(
            bool(torch.isfinite(x).all()) for x in (split.audio, split.visual_2d)) and split.visual_truth.shape == (N, T, C) and split.weak.max() <= 1

    return Reader(lambda folder: splits.load_target(folder, "val", "clip_clap", "cpu"), holds,
                  ("index.json", *(f"llp/val/{x}.npy" for x in ("clap", "clip", "weak", "audio", "visual"))))


def of_source(folder: Path) -> Reader:
    packed(folder)

    def holds(split: uwav.SourceSplit) -> bool:
        S = int(split.length.sum())
        *_, mask = split.batch(np.arange(len(split.length)))  # all videos, padded
        return split.audio.shape == (S, 512) and split.visual.shape == (S, 768) and len(split.label) == S and int(mask.sum()) == S

    return Reader(lambda folder: splits.load_source(folder, "train", "cpu"), holds,
                  ("index.json", *(f"unav/train/{x}.npy" for x in ("clap", "clip", "label", "length"))))


def of_text(folder: Path) -> Reader:
    packed(folder)
    return Reader(lambda folder: splits.load_text(folder, "llp", "cpu"), lambda text: [x.shape for x in text] == [(25, 512), (25, 768)]
                  and all(bool(torch.isfinite(x).all()) for x in text), ("index.json", "llp/text_clap.npy", "llp/text_clip.npy"))


def of_index(folder: Path) -> Reader:
    packed(folder)
    return Reader(layout.read_index, lambda index: all(files.is_plain_name(i) for d in ("llp", "unav") for s in index.get(d, {}).get("videos", {}).values()
                                                         for i in s), ("index.json",))


def of_labels(folder: Path) -> Reader:
    rng = np.random.default_rng(0)
    arrays = {f"{s}_{m}": rng.standard_normal((2, 3, 4)).astype(np.float32) for s in ("train", "val") for m in ("audio", "visual")}
    arrays |= {f"threshold_{m}": rng.standard_normal(4).astype(np.float32) for m in ("audio", "visual")}
    files.write_arrays(folder / "labels.npz", settings=np.array(json.dumps(dict(data="x", teacher=None, dry_run=""))), weakly=np.array("{}"), **arrays)

    def holds(labels: stages.Labels) -> bool:
        every = [x for pair in labels.logits.values() for x in pair]
        return "train" in labels.logits and all(x.shape[1:] == every[0].shape[1:] and x.isfinite().all() for x in every)

    return Reader(lambda folder: stages.read_labels(folder / "labels.npz", "cpu"), holds)


TINY = dict(hidden=8, heads=2, feedforward=8, layers=1)


def of_checkpoint(folder: Path) -> Reader:
    model = uwav.Teacher(uwav.TeacherConfig(audio_dim=6, visual_dim=8, **TINY))
    torch.save(dict(kind="Teacher", config=asdict(model.config), settings=dict(data="x", model={}), score=1.0, weights=model.state_dict()), folder / "ours.pt")
    han = uwav.HAN(uwav.HANConfig(classes=3, audio_dim=6, visual_2d_dim=8, visual_3d_dim=0, project_visual=True, **TINY))
    torch.save(dict(kind="HAN", config=asdict(han.config), settings=None, score=1.0, weights=han.state_dict()), folder / "han.pt")

    def holds(models: list[uwav.Teacher | uwav.HAN]) -> bool:
        teacher, han = models
        teacher(*(torch.zeros(1, 2, d) for d in (6, 8)), *(torch.zeros(3, d) for d in (6, 8)))
        han(torch.zeros(1, 2, 6), torch.zeros(1, 2, han.config.visual_2d_dim + han.config.visual_3d_dim))
        return all(bool(torch.isfinite(x).all()) and x.dtype == torch.float32 for m in models for x in m.parameters())

    return Reader(lambda folder: [checkpoints.load_model(folder / name) for name in ("ours.pt", "han.pt")], holds)


def of_state(folder: Path) -> Reader:
    def begin(folder: Path) -> checkpoints.Run:
        torch.manual_seed(0)
        run = checkpoints.Run(folder / "teacher.pt", "teacher", dict(data="x"))
        run.begin(uwav.Teacher(uwav.TeacherConfig(audio_dim=6, visual_dim=8, **TINY)), uwav.PretrainConfig(), videos=1)
        return run

    run = begin(folder)
    for x in run.model.parameters():
        x.grad = torch.ones_like(x)
    run.optimizer.step()
    for epoch, _ in run.epochs():
        run.end_epoch(dict(epoch=epoch, loss=1.0, val=dict(av=2.0)), 2.0)
        break
    (folder / "teacher.jsonl").unlink()

    def holds(run: checkpoints.Run) -> bool:
        for x in run.model.parameters():
            x.grad = torch.ones_like(x)
        run.optimizer.step()
        if run.best_weights is not None:
            run.model.load_state_dict(run.best_weights)
        return [record["epoch"] for record in run.history] == list(range(1, len(run.history) + 1))

    return Reader(begin, holds, saved_anew=False)  # nobody writes it but the run


def of_weights(folder: Path) -> Reader:
    state = {"a.weight": torch.randn(3, 4), "b": torch.randn(5)}
    torch.save(dict(epoch=1, state_dict=state), folder / "weights.pt")
    return Reader(lambda folder: encoders.read_state_dict(folder / "weights.pt"), lambda state: all(isinstance(x, torch.Tensor) for x in state.values()))


def of_failures(folder: Path) -> Reader:
    (folder / "failures.csv").write_text('file,bytes,cause\na.mp4,12,no sound\n"b,c.mp4",0,cannot be read: x\nsub/d.mp4,99,cut short\n')
    return Reader(lambda folder: extract.Failures(folder, folder / "videos").causes,
                  lambda causes: all(isinstance(name, str) and isinstance(size, int) for name, size in causes), refuses=0)


def of_made_with(folder: Path) -> Reader:
    """extract.json, which says what made the features beside it."""
    made_with = dict(clip_weights=dict(weights="x", sha256="y"), segments=None)
    (folder / "extract.json").write_text(json.dumps(made_with))
    (folder.parent / "videos").mkdir(exist_ok=True)
    (folder.parent / "videos/a.mp4").write_text("")
    return Reader(lambda folder: extract.check(folder.parent / "videos", folder, made_with), lambda nothing: nothing is None)


def of_archive(folder: Path) -> Reader:
    arrays = {f"x/segment_feats/{i}.npy": npy(np.full((2, 3), i, np.float32)) for i in range(4)}
    (folder / "LLP_CLIP.zip").write_bytes(zipped(arrays, zipfile.ZIP_DEFLATED))

    def read(folder: Path) -> tuple[int, dict[str, bytes]]:
        out = folder.parent / "out"
        shutil.rmtree(out, ignore_errors=True)
        count = fetch.extract_features(folder / "LLP_CLIP.zip", out)
        return count, {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.npy")}

    return Reader(read, lambda result: result[0] == len(result[1]) and not list(folder.parent.rglob("passwd*")))


def toy_parser(external: str | None = None) -> bytes:
    """Two classes: audible and visible where the first two numbers are above 0; a weight perhaps in another file."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper

    nodes, ends = [], [onnx.numpy_helper.from_array(np.array(x, np.int64), name) for name, x in (("begin", [0]), ("end", [2]), ("axis", [2]), ("time", [1]))]
    half = onnx.numpy_helper.from_array(np.array([0.5, 0.5], np.float32), "half")
    if external:
        half.ClearField("raw_data")
        half.data_location = onnx.TensorProto.EXTERNAL
        entry = half.external_data.add()
        entry.key, entry.value = "location", external
    for m, name in (("audio", "audio"), ("visual", "visual_2d")):
        nodes += [helper.make_node("Slice", [name, "begin", "end", "axis"], [f"{m}_logit"]), helper.make_node("Sigmoid", [f"{m}_logit"], [f"{m}_prob"]),
                  helper.make_node("Greater", [f"{m}_prob", "half"], [f"{m}_event"])]
    nodes += [helper.make_node("ReduceMean", ["audio_prob", "time"], ["video_prob"], keepdims=0), helper.make_node("And", ["audio_event", "visual_event"], ["av_event"])]
    inputs = [helper.make_tensor_value_info(name, 1, ["B", "T", d]) for name, d in (("audio", 4), ("visual_2d", 3))]
    outputs = [helper.make_tensor_value_info(f"{m}_prob", 1, None) for m in ("audio", "visual", "video")]
    outputs += [helper.make_tensor_value_info(f"{m}_event", 9, None) for m in ("audio", "visual", "av")]
    graph = helper.make_graph(nodes, "parser", inputs, outputs, [*ends, half])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def write_bundle(folder: Path, model: bytes) -> Path:
    import hashlib

    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    (folder / "onnx/parser.onnx").write_bytes(model)
    inputs = dict(audio=dict(shape=["B", "T", 4]), visual_2d=dict(shape=["B", "T", 3]))
    info = dict(format=2, classes=["dog", "bell"], gate=0.5, features=dict(set="clip_clap"), segments=3,
                files=dict(parser=dict(file="onnx/parser.onnx", bytes=len(model), sha256=hashlib.sha256(model).hexdigest(), inputs=inputs)))
    (folder / "bundle.json").write_text(json.dumps(info))
    np.savez(folder / "x.npz", audio=np.eye(5, 4, dtype=np.float32), visual_2d=np.ones((5, 3), np.float32))
    return folder


def of_run(folder: Path) -> Reader:
    """All that a report is made from; its pictures are not drawn here."""
    pytest.importorskip("matplotlib")
    from data import demo_world
    import report
    from conftest import SMALL

    sizes = dict(train=12, val=8, test=10, source_train=8, source_validation=6, source_test=6)
    demo_world.make(folder / "data", replace(demo_world.WorldConfig(), **sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "SWEEP", {name: ablation.SWEEP[name] for name in ("full_alpha_0.5",)})
        cli.main(["ablate", str(folder / "data"), str(folder), "--sweep", *SMALL, "--set", "epochs=1"])
    line = ["2026-01-02 03:04", "70", "new", "Train the HAN", "abc1234", "Linux, 2 CPU cores", "bash run_all.sh"]
    (folder / "stages.tsv").write_text("\t".join(line) + "\n" + "\t".join(line) + "\n")

    def read(folder: Path) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report.figures, "write", lambda panels, folder, name: [])
            page = report.build(report.Saved(folder, 0, folder / "data"))
        if said := re.search(r"[\w./]+: made by another \w+ than [\w./]+", page):  # in the place of the parts made from it
            raise ValueError(said[0])
        return page

    full = "seed0/clip_clap/full"
    return Reader(read, lambda html: html.endswith("</html>\n") and html.count("<h2>") == 9, (
        "ablation.json", "ablation.json", "stages.tsv", "data/index.json", *(f"data/llp/test/{x}.npy" for x in ("weak", "audio", "visual")),
        "data/llp/train/weak.npy", "labels_segment.npz", "seed0/labels_teacher.npz", "seed0/teacher.pt", f"{full}/han.pt",
        f"{full}/predictions_test.npz"))


def of_bundle(folder: Path) -> Reader:
    pytest.importorskip("onnxruntime")
    write_bundle(folder, toy_parser())

    def read(folder: Path) -> parse.Parse:
        bundle = parse.Bundle(folder, "cpu")
        return parse.parse(parse.features_of_file(folder / "x.npz", bundle), bundle)

    def holds(result: parse.Parse) -> bool:
        there = [p for p in (result.audio_prob, result.visual_prob) if p is not None]  # a stream that is not there says so
        return result.events() is not None and len(there) + bool(result.lacks) == 2 and all(
            p.shape[1] == len(result.classes) and np.isfinite(p).all() for p in there)

    return Reader(read, holds)


READERS = {name.removeprefix("of_"): make for name, make in globals().copy().items() if name.startswith("of_")}


# Files without a checksum of their own, or with one that whoever rewrites them as a whole renews: why a changed one is read.
SILENT = {
    "array": "any numbers are an .npy file; packed ones have their hashes in index.json",
    "checkpoint": "a checkpoint that was saved anew is another model; what is made from it records its hash",
    "weights": "as a checkpoint, of others",
    "failures": "a list that people may edit",
    "archive": "an archive that was packed anew is another one, of others",
    "bundle": "bundle.json is written to be read and edited; features are the user's",
    "run": "times in stages.tsv; checkpoints that were saved anew",
}
CHECKED = (".pt", ".npz", ".zip", ".onnx")  # damaged, not saved anew, they are noticed


def check(reader: Reader, folder: Path, whole: object = None) -> tuple[str | None, bool]:
    """The promise: the sentence, or None if there is a result; and whether that is another than it should be."""
    started, silent = time.monotonic(), False
    try:
        result = reader.read(folder)
    except (ValueError, FileNotFoundError) as error:
        sentence = str(error)
        assert any(f"{p.relative_to(folder)}" in sentence for p in folder.rglob("*") if p.is_file()), f"it names no file: {error!r}"
        assert "\n" not in sentence, sentence
    else:
        sentence = None
        if whole is not None and content_of(result) != whole:
            silent = not reader.slow or content_of(reader.slow(folder)) != content_of(result)
        assert reader.holds(result), result
    assert time.monotonic() - started < SECONDS
    return sentence, silent


def cases(reader: Reader, folder: Path, seed: int) -> Iterator[tuple[str, bytes, bool]]:
    """(file, broken content, whether the file was damaged and not saved anew), without end."""
    rng, whole = np.random.default_rng(seed), {n: (folder / n).read_bytes() for n in reader.only or sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())}
    names = list(whole)
    while True:
        name = names[rng.integers(len(names))]
        ways = (broken_bytes, *(BREAK[Path(name).suffix] if reader.saved_anew else ()))
        way = ways[rng.integers(len(ways))]
        yield name, way(rng, whole[name]), way is broken_bytes


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")
def test_a_broken_file_gives_a_right_result_or_one_sentence_that_names_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    reader = READERS[name](tmp_path / "folder")
    assert check(reader, tmp_path / "folder")[0] is None, "whole files are read"
    whole_content = content_of(reader.read(tmp_path / "folder"))
    before, refused, silent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0, []
    seed = 1 if not SOAK else int(time.time())
    for n, (file, content, damaged) in zip(range(CASES), cases(reader, tmp_path / "folder", seed)):
        whole = (tmp_path / "folder" / file).read_bytes()
        (tmp_path / "folder" / file).write_bytes(content)
        try:
            sentence, changed = check(reader, tmp_path / "folder", whole_content)
            refused += sentence is not None
            silent += [file] * changed
            assert not changed or (name in SILENT and not (damaged and Path(file).suffix in CHECKED)), "a silent change"
        except BaseException as error:
            error.add_note(f"seed {seed}, case {n}: {file} = {content[:300]!r}") if hasattr(error, "add_note") else None
            raise
        (tmp_path / "folder" / file).write_bytes(whole)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    print(f"{name}: seed {seed}, {CASES} cases, {refused} refused, {CASES - refused} read, {len(silent)} silent changes, {grown / 1e6:.0f} MB more")
    assert grown < BYTES and refused >= reader.refuses * CASES
    assert not list(tmp_path.rglob("canary"))


LITTLE_MEMORY = ("array", "unav", "own_folder", "labels", "checkpoint", "weights", "target")


def test_huge_declared_sizes_do_not_take_more_than_a_gigabyte():
    """As above in a process that may not even reserve more."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "PYTHONWARNINGS": "ignore"}
    result = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert [line for line in result.stdout.splitlines() if line in LITTLE_MEMORY] == list(LITTLE_MEMORY)


def run_with_little_memory(folder: Path) -> None:
    os.chdir(folder)
    readers = {name: READERS[name](make_folder(folder / name)) for name in LITTLE_MEMORY}
    reserved = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (reserved + BYTES, -1))
    for name, reader in readers.items():
        place = folder / name / "folder"
        for _, (file, content, _) in zip(range(CASES // 5), cases(reader, place, seed=2)):
            whole = (place / file).read_bytes()
            (place / file).write_bytes(content)
            check(reader, place)
            (place / file).write_bytes(whole)
        print(name)


def make_folder(parent: Path) -> Path:
    (parent / "folder").mkdir(parents=True)
    return parent / "folder"


# ---- many broken feature files at once ----


@pytest.mark.filterwarnings("ignore")
def test_pack_refuses_exactly_the_feature_files_that_are_broken(tmp_path, monkeypatch, capfd):
    """A thousand broken files beside whole ones; which are broken, a slow reading of our own decides."""
    videos = [f"v{n:04d}" for n in range(CASES + 20)]
    monkeypatch.setattr(pack, "some", lambda items: "; ".join(items))  # all of them, not ten
    own = write_own(tmp_path / "own", "video,labels\n" + "".join(f"{v},dog\n" for v in videos), videos=videos)
    rng, whole, expected = np.random.default_rng(3), (own / "feats_CLIP/segment_feats/v0000.npy").read_bytes(), set()
    for video in videos[20:]:
        path = own / f"feats_CLIP/segment_feats/{video}.npy"
        path.write_bytes((broken_bytes, broken_array)[rng.integers(2)](rng, whole))
        try:
            x = np.load(path, allow_pickle=False)
            good = x.dtype.kind in "fiu" and x.shape == (4, 768) and np.isfinite(x.astype(np.float16)).all()
        except Exception:
            good = False
        expected |= set() if good else {path}
    with pytest.raises(ValueError, match="feature files cannot be used: ") as error:
        pack.pack(own, tmp_path / "out", workers=1)
    named = set(map(Path, re.findall(rf"{own}/feats_CLIP/segment_feats/\w+.npy", str(error.value))))
    assert named == expected and 500 < len(expected) < CASES
    assert not (tmp_path / "out/index.json").exists() and not list(tmp_path.rglob("canary"))


@pytest.mark.parametrize("damage", ["an array half written", "no plan", "plan of another pack"])
def test_what_an_interrupted_pack_left_is_used_only_if_it_is_whole(tmp_path, damage):
    own = write_own(tmp_path / "own", *OWN)
    pack.pack(own, tmp_path / "whole", workers=1)
    broken = own / "feats_CLIP/segment_feats/f.npy"
    good, date = broken.read_bytes(), broken.stat().st_mtime_ns
    broken.write_bytes(bytes(len(good)))  # of the same size and date, so that the next pack continues
    os.utime(broken, ns=(date, date))
    with pytest.raises(ValueError, match="f.npy: not a complete"):
        pack.pack(own, tmp_path / "out", workers=1)
    broken.write_bytes(good)
    os.utime(broken, ns=(date, date))
    left = tmp_path / "out/.packing"
    np.save(left / "llp/train/clap.npy", np.zeros(3)) if damage != "an array half written" else None  # not to be used then
    {"an array half written": lambda: (left / "llp/train/.clip.part.npy").write_bytes(b"\x93NUMPY" + bytes(99)),
     "no plan": (left / "plan.json").unlink, "plan of another pack": lambda: files.write_json(left / "plan.json", dict(format=1))}[damage]()
    pack.pack(own, tmp_path / "out", workers=1)
    for path in (tmp_path / "whole").rglob("*.npy"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_labels_of_other_data_are_refused_with_a_sentence_not_in_the_middle_of_training(finished, tmp_path):
    labels = files.read_arrays(finished / "seed0/labels_teacher.npz")
    settings = json.loads(str(labels.pop("settings"))) | dict(data="0" * 64)
    files.write_arrays(tmp_path / "labels.npz", settings=np.array(json.dumps(settings)), **labels)
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", str(finished / "data"), str(tmp_path / "out"), "--labels", str(tmp_path / "labels.npz"), "--features", "clip_clap",
                     "--preset", "demo", "--device", "cpu"])
    assert "labels.npz: made from other data than" in stop.value.code and "uwav.py label" in stop.value.code


@pytest.mark.parametrize("name", [n for n in READERS if n != "run"])
@pytest.mark.parametrize("thing", ["pipe", "device", "folder"])
def test_what_is_no_file_is_one_sentence_and_never_waited_for(name, thing, tmp_path):
    (tmp_path / "folder").mkdir()
    reader = READERS[name](tmp_path / "folder")
    whole = {n: (tmp_path / "folder" / n).read_bytes() for n in reader.only or (str(p.relative_to(tmp_path / "folder")) for p in (tmp_path / "folder").rglob("*") if p.is_file())}
    for file in whole:
        path = tmp_path / "folder" / file
        path.unlink()
        {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": Path.mkdir}[thing](path)
        signal.signal(signal.SIGALRM, lambda *arguments: pytest.fail(f"{file}: waited for"))
        signal.alarm(10)
        with pytest.raises((ValueError, OSError)) as error:
            reader.read(tmp_path / "folder")
        signal.alarm(0)
        assert Path(file).name in str(error.value) and "\n" not in str(error.value)
        path.rmdir() if thing == "folder" else path.unlink()
        path.write_bytes(whole[file])


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run_with_little_memory(Path(folder))
