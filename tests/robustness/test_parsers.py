"""Three parsers, one list of cases: what Python refuses, Node and the page refuse too, in the same words."""

import base64
import csv
import functools
import hashlib
import html
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import need, unavailable

need("onnx", "onnxruntime")

import parse
from common.files import to_cell
from data import annotations
from test_broken_files import toy_parser, write_bundle
from train import score

WEB = Path(__file__).resolve().parents[2] / "web"
NO_BUNDLE, CHECKSUM, NO_NPZ = "not the description of a bundle", "not the file that bundle.json describes (its checksum differs)", "not an .npz file"
RANGE = "holds NaN or infinite values, or values beyond half precision"


def described(**changed: object) -> Callable[[bytes], bytes]:
    """bundle.json with other fields; None: without it."""
    return lambda whole: json.dumps({k: v for k, v in (json.loads(whole) | changed).items() if v is not None}).encode()


def parser_described(**changed: object) -> Callable[[bytes], bytes]:
    return lambda whole: described(files=dict(parser=json.loads(whole)["files"]["parser"] | changed))(whole)


def arrays(**changed: np.ndarray | None) -> Callable[[bytes], bytes]:
    def change(whole: bytes) -> bytes:
        with np.load(io.BytesIO(whole)) as file:
            content = {name: file[name] for name in file.files} | changed
        buffer = io.BytesIO()
        np.savez(buffer, **{name: x for name, x in content.items() if x is not None})
        return buffer.getvalue()

    return change


def at(place: int, value: float, dtype: type = np.float32) -> np.ndarray:
    x = np.ones((5, 3), dtype)
    x.flat[place] = value
    return x


def flipped(share: float) -> Callable[[bytes], bytes]:
    def flip(whole: bytes) -> bytes:
        content = bytearray(whole)
        content[int(share * len(whole))] ^= 4
        return bytes(content)

    return flip


def packed(method: int) -> Callable[[bytes], bytes]:
    """The same archive, compressed otherwise."""
    def pack(whole: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(buffer, "w", method) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        return buffer.getvalue()

    return pack


def sound(dtype: object) -> Callable[[bytes], bytes]:
    return arrays(audio=np.arange(20).reshape(5, 4).astype(dtype))


NOT_NUMBERS = "the parser needs audio of shape (T, 4), but audio is "
CASES = {  # what is wrong -> file, change (None: it is gone), what is said; "": nothing is wrong
    "nothing": ("x.npz", bytes, ""),
    "no bundle.json": ("bundle.json", None, "bundle.json: no such file"),
    "bundle.json cut": ("bundle.json", lambda whole: whole[: len(whole) // 2], NO_BUNDLE),
    "bundle.json a list": ("bundle.json", lambda whole: b"[]", NO_BUNDLE),
    "bundle.json null": ("bundle.json", lambda whole: b"null", NO_BUNDLE),
    "another format": ("bundle.json", described(format=1), "bundle.json: a bundle of format 1, this program reads 2"),
    "no format": ("bundle.json", described(format=None), NO_BUNDLE),
    "classes a dict": ("bundle.json", described(classes={"dog": 1, "bell": 2}), NO_BUNDLE),
    "classes a text": ("bundle.json", described(classes="ab"), NO_BUNDLE),
    "a class twice": ("bundle.json", described(classes=["dog", "dog"]), NO_BUNDLE),
    "no class": ("bundle.json", described(classes=[]), NO_BUNDLE),
    "a class that is a number": ("bundle.json", described(classes=["dog", 3]), NO_BUNDLE),
    "a class that clears the screen": ("bundle.json", described(classes=["dog", "\x1b[2J"]), NO_BUNDLE),
    "a class written backwards": ("bundle.json", described(classes=["dog", "\u202ellet"]), NO_BUNDLE),
    "half a character": ("bundle.json", described(classes=["dog", "\ud800"]), NO_BUNDLE),
    "one class more than the parser has": ("bundle.json", described(classes=["dog", "bell", "cat"]), "parser.onnx: its outputs are not those of a parser"),
    "a gate that is text": ("bundle.json", described(gate="0.5"), NO_BUNDLE),
    "a gate of 2": ("bundle.json", described(gate=2), NO_BUNDLE),
    "no gate": ("bundle.json", described(gate=None), NO_BUNDLE),
    "no segment": ("bundle.json", described(segments=0), NO_BUNDLE),
    "half a segment": ("bundle.json", described(segments=2.5), NO_BUNDLE),
    "no features": ("bundle.json", described(features=None), NO_BUNDLE),
    "no parser": ("bundle.json", described(files={}), NO_BUNDLE),
    "no checksum": ("bundle.json", parser_described(sha256=None), NO_BUNDLE),
    "another checksum": ("bundle.json", parser_described(sha256="0" * 64), CHECKSUM),
    "an input gone": ("bundle.json", parser_described(inputs=dict(audio=dict(shape=["B", "T", 4]))), NO_BUNDLE),
    "an input without a size": ("bundle.json", parser_described(inputs=dict(audio=dict(shape=["B", "T", "D"]), visual_2d=dict(shape=["B", "T", 3]))), NO_BUNDLE),
    "no parser.onnx": ("onnx/parser.onnx", None, "parser.onnx: no such file"),
    "one bit of parser.onnx": ("onnx/parser.onnx", flipped(0.6), CHECKSUM),
    "parser.onnx cut": ("onnx/parser.onnx", lambda whole: whole[:-9], CHECKSUM),
    "weights in another file": ("onnx/parser.onnx", lambda whole: toy_parser("weights.bin"), "parser.onnx: keeps weights in other files, which are not read"),
    "no features file": ("x.npz", None, "x.npz: no such file"),
    "an empty file": ("x.npz", lambda whole: b"", NO_NPZ),
    "text": ("x.npz", lambda whole: b"hello", NO_NPZ),
    "cut": ("x.npz", lambda whole: whole[:-30], NO_NPZ),
    "one bit of a number": ("x.npz", flipped(0.2), NO_NPZ),
    "pickled": ("x.npz", arrays(audio=np.array([{}], object)), NO_NPZ),
    "NaN": ("x.npz", arrays(visual_2d=at(4, np.nan)), f"visual_2d {RANGE}"),
    "infinity": ("x.npz", arrays(visual_2d=at(4, -np.inf)), f"visual_2d {RANGE}"),
    "1e30": ("x.npz", arrays(visual_2d=at(14, 1e30)), f"visual_2d {RANGE}"),
    "1e300": ("x.npz", arrays(visual_2d=at(0, 1e300, np.float64)), f"visual_2d {RANGE}"),
    "another size": ("x.npz", arrays(audio=np.ones((5, 7), np.float32)), "the parser needs audio of shape (T, 4), but audio is "),
    "a number": ("x.npz", arrays(audio=np.float32(3)), "the parser needs audio of shape (T, 4), but audio is "),
    "no second": ("x.npz", arrays(audio=np.ones((0, 4), np.float32)), "the parser needs audio of shape (T, 4), but audio is "),
    "sound by another name": ("x.npz", arrays(audio=None, Audio=np.ones((5, 4), np.float32)), "the parser needs audio of shape (T, 4), but it has "),
    "neither sound nor picture": ("x.npz", arrays(audio=None, visual_2d=None, time=np.ones(5)), "the parser needs audio of shape (T, 4), but it has "),
    **{f"numbers of type {dtype}": ("x.npz", sound(dtype), "") for dtype in ("<f2", ">f2", ">f4", ">f8", "i1", "u1", "<i2", ">u2", "<i4", ">i4", "<u4", "<i8", ">i8", "<u8", ">u8")},
    **{f"{dtype} in place of numbers": ("x.npz", sound(dtype), NOT_NUMBERS + name) for dtype, name in (("?", "bool"), ("c8", ""), ("U3", ""), ("g", ""), ("M8[s]", ""))},
    "65504.001": ("x.npz", arrays(visual_2d=at(0, 65504.001, np.float64)), f"visual_2d {RANGE}"),
    "a large integer": ("x.npz", arrays(visual_2d=at(0, 1 << 40, np.int64)), f"visual_2d {RANGE}"),
    "the order of Fortran, big-endian": ("x.npz", arrays(visual_2d=np.asfortranarray(np.arange(15).reshape(5, 3).astype(">i2"))), ""),
    "one more array, a text": ("x.npz", arrays(id=np.array("abc")), ""),
    "one more array, names": ("x.npz", arrays(names=np.array(["a", "b"]), more=np.array([b"x"])), ""),
    "one more array, a table": ("x.npz", arrays(table=np.zeros(3, [("start", "<f4"), ("label", "U5")])), ""),
    "one more array, dates and truths": ("x.npz", arrays(when=np.array(["2026-01-01"], "M8[D]"), known=np.array([True])), ""),
    "one more array, of three dimensions, in the order of Fortran": ("x.npz", arrays(grid=np.asfortranarray(np.ones((2, 3, 4)))), ""),
    "one more array, pickled": ("x.npz", arrays(more=np.array([{}], object)), NO_NPZ),
    "one more array, pickled in a table": ("x.npz", arrays(more=np.zeros(2, [("a", "O")])), NO_NPZ),
    "deflated": ("x.npz", packed(zipfile.ZIP_DEFLATED), ""),
    "compressed by bzip2": ("x.npz", packed(zipfile.ZIP_BZIP2), NO_NPZ),
    "compressed by LZMA": ("x.npz", packed(zipfile.ZIP_LZMA), NO_NPZ),
    "another length": ("x.npz", arrays(visual_2d=np.ones((4, 3), np.float32)), "visual_2d has another length than audio"),
}


@pytest.fixture
def case(request, tmp_path) -> tuple[Path, str]:
    """A bundle and features, changed; what is to be said."""
    file, change, words = CASES[request.param]
    folder = write_bundle(tmp_path / "bundle", toy_parser())
    whole = (folder / file).read_bytes()
    (folder / file).unlink()
    if change:
        content = change(whole)
        (folder / file).write_bytes(content)
        if words.startswith("parser.onnx: keeps"):  # what its checksum must not excuse
            described_file = folder / "bundle.json"
            described_file.write_bytes(parser_described(sha256=hashlib.sha256(content).hexdigest())(described_file.read_bytes()))
    return folder, words


def assert_said(said: str | None, words: str, place: str) -> None:
    if words:
        assert said is not None, f"{place}: accepted"
        assert words.removeprefix("x.npz: ") in said and "\n" not in said.strip(), f"{place}: {said}"
    else:
        assert said is None, f"{place}: {said}"


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_python_refuses_what_cannot_be_meant(case):
    folder, words = case
    try:
        parse.main([str(folder / "x.npz"), "--bundle", str(folder), "--device", "cpu"])
        said = None
    except SystemExit as stop:
        said = stop.code
    assert_said(said, words, "parse.py")


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_node_refuses_the_same_in_the_same_words(case):
    if not shutil.which("node") or not (WEB / "node_modules/onnxruntime-node").is_dir():
        unavailable("Node and onnxruntime-node: npm ci in web/")
    folder, words = case
    done = subprocess.run(["node", WEB / "parse.mjs", folder, folder / "x.npz"], capture_output=True, text=True, timeout=60)
    assert_said(done.stderr if done.returncode else None, words, "parse.mjs")
    if not words:
        bundle = parse.Bundle(folder, "cpu")
        own, theirs = parse.parse(parse.features_of_file(folder / "x.npz", bundle), bundle), json.loads(done.stdout)
        assert [(e["label"], e["modality"], e["onset"], e["offset"]) for e in own.events()] == [
            (e["label"], e["modality"], e["onset"], e["offset"]) for e in theirs["events"]] != []


@pytest.mark.parametrize("name", ["x.npz", "x.mp4", "bundle.json", "onnx/parser.onnx"])
@pytest.mark.parametrize("thing", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, name, thing):
    folder = write_bundle(tmp_path / "bundle", toy_parser())
    (folder / name).unlink(missing_ok=True)
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": Path.mkdir}[thing](folder / name)
    source = folder / (name if name.startswith("x") else "x.npz")
    commands = [[sys.executable, WEB.parent / "parse.py", source, "--bundle", folder]]
    if shutil.which("node") and (WEB / "node_modules/onnxruntime-node").is_dir() and name != "x.mp4":
        commands.append(["node", WEB / "parse.mjs", folder, source])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 1 and name in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_a_terminal_that_knows_ascii_alone_shows_the_events(tmp_path):
    folder = write_bundle(tmp_path / "bundle", toy_parser())
    info = json.loads((folder / "bundle.json").read_text()) | dict(classes=["Hündchen", "鐘"])
    (folder / "bundle.json").write_text(json.dumps(info))
    done = subprocess.run([sys.executable, WEB.parent / "parse.py", folder / "x.npz", "--bundle", folder, "--csv", tmp_path / "x.csv"],
                          env=os.environ | dict(PYTHONIOENCODING="ascii"), capture_output=True, text=True)
    assert done.returncode == 0 and "H\\xfcndchen" in done.stdout and "Hündchen" in (tmp_path / "x.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["x.npz", "a, \"b\" c.npz", "Hündchen;鐘.npz", "two\nlines.npz", "-4f_0_10.NPZ"])
def test_the_tables_of_python_and_node_name_their_video_whatever_it_is_called(tmp_path, name):
    folder = write_bundle(tmp_path / "bundle", toy_parser())
    (folder / "x.npz").rename(folder / name)
    parse.main([str(folder / name), "--bundle", str(folder), "--device", "cpu", "--csv", str(tmp_path / "x.csv"), "--json", str(tmp_path / "x.json")])
    written = (tmp_path / "x.csv").read_bytes().decode()
    header, *rows = csv.reader(io.StringIO(written, newline=""))
    assert header == ["video", "label", "modality", "onset", "offset", "probability"] and {row[0] for row in rows} == {to_cell(name)}
    assert [row[1:5] for row in rows] == [[str(e[k]) for k in header[1:5]] for e in json.loads((tmp_path / "x.json").read_text())["events"]] != []
    if not shutil.which("node") or not (WEB / "node_modules/onnxruntime-node").is_dir():
        unavailable("Node and onnxruntime-node: npm ci in web/")
    done = subprocess.run(["node", WEB / "parse.mjs", folder, folder / name, "--csv"], capture_output=True, timeout=60)
    theirs = list(csv.reader(io.StringIO(done.stdout.decode(), newline="")))
    assert [row[:5] for row in theirs] == [row[:5] for row in (header, *rows)] and written.splitlines()[0] == done.stdout.decode().splitlines()[0]
    assert [float(row[5]) for row in theirs[1:]] == pytest.approx([float(row[5]) for row in rows], abs=2e-6)


def random_features(folder: Path, T: int, shift: float, name: str = "r.npz") -> Path:
    rng = np.random.default_rng(T)
    np.savez(folder / name, **{k: (rng.standard_normal((T, d)) + shift).astype(np.float32) for k, d in (("audio", 4), ("visual_2d", 3))})
    return folder / name


def slow_parse(path: Path, length: int = 3) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The toy parser by hand, a second at a time: probabilities (T, 2) by modality; of the video, of the best window around each second."""
    with np.load(path) as file:
        p = {m: 1 / (1 + np.exp(-file[name][:, :2].astype(float))) for m, name in (("audible", "audio"), ("visible", "visual_2d"))}
    T = len(p["audible"])
    length = min(length, T)
    windows = [range(s, s + length) for s in range(T - length + 1)]
    return p, np.array([np.max([p["audible"][list(w)].mean(0) for w in windows if t in w], axis=0) for t in range(T)])


def node(*words: object) -> str:
    if not shutil.which("node") or not (WEB / "node_modules/onnxruntime-node").is_dir():
        unavailable("Node and onnxruntime-node: npm ci in web/")
    return subprocess.run(["node", *words], cwd=WEB, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6180339, 0.8])
def test_a_threshold_decides_alike_in_python_and_node_and_is_written(tmp_path, threshold):
    folder = write_bundle(tmp_path / "bundle", toy_parser())
    path = random_features(folder, 12, 2.5 * threshold - 0.5)
    parse.main([str(path), "--bundle", str(folder), "--device", "cpu", "--threshold", str(threshold), "--json", str(tmp_path / "x.json")])
    p, around = slow_parse(path)
    positive = {m: (x > threshold) & (around > threshold) for m, x in p.items()}
    positive["both"] = positive["audible"] & positive["visible"]
    for found in (json.loads((tmp_path / "x.json").read_text()), json.loads(node("parse.mjs", folder, path, f"--threshold={threshold}"))):
        drawn = {m: np.zeros((12, 2), bool) for m in positive}
        for e in found["events"]:
            drawn[e["modality"]][e["onset"] : e["offset"], ["dog", "bell"].index(e["label"])] = True
        assert found["threshold"] == threshold and all(np.array_equal(drawn[m], positive[m]) for m in positive) and positive["audible"].any()
        assert found["video_prob"] == pytest.approx(around.max(0), abs=1e-6)


@pytest.mark.parametrize("T, shift", [(2, -1.0), (9, -1.5), (30, -3.0)])
def test_where_there_is_no_event_the_highest_probabilities_are_told_and_what_stopped_them(tmp_path, capsys, T, shift):
    folder = write_bundle(tmp_path / "bundle", toy_parser())
    path = random_features(folder, T, shift)
    with np.load(path) as file:  # one that its second would admit, and its video does not
        np.savez(path, audio=file["audio"], visual_2d=np.where(np.arange(3) == 1, 1.0 + file["visual_2d"] / 10 - shift / 10, file["visual_2d"]).astype(np.float32))
    p, around = slow_parse(path)
    expected = []
    for m, x in p.items():
        for c, name in enumerate(("dog", "bell")):
            t = int(x[:, c].argmax())
            gates = " and the ".join([gate for gate, value in (("second", x[t, c]), ("video", around[t, c])) if value <= 0.5])
            expected.append((-x[t, c], f"  {name} {m} in second {t}: {x[t, c]:.3f}, the video around it {around[t, c]:.3f}: stopped by the {gates}"))
    expected = [line for _, line in sorted(expected)]
    parse.main([str(path), "--bundle", str(folder), "--device", "cpu"])
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [f"no event in {T} s", "highest probabilities; an event needs more than 0.5 in a second and around it:"] and said[2:-1] == expected
    assert said[2].endswith("stopped by the video") and said[-2].endswith("stopped by the second and the video")
    parse.main([str(path), "--bundle", str(folder), "--device", "cpu", "--top", "1"])
    assert capsys.readouterr().out.splitlines()[2:-1] == expected[:1]
    theirs = json.loads(node("--input-type=module", "--eval", """
        import * as ort from "onnxruntime-node";
        import {readFileSync} from "node:fs";
        import {Bundle, highest, parse, readNpz} from "./parser.js";
        const [folder, file] = process.argv.slice(1), read = (path) => new Uint8Array(readFileSync(path));
        const bundle = await Bundle.open({cpu: () => ort}, (name) => read(`${folder}/${name}`));
        console.log(JSON.stringify(highest(await parse(await readNpz(read(file)), bundle), 4)));""", folder, path))
    lines = [f"  {x['label']} {x['modality']} in second {x['at']}: {x['second']:.3f}, the video around it {x['video']:.3f}: stopped by the {' and the '.join(x['stopped'])}" for x in theirs]
    assert lines == expected, "what the page shows"


def test_a_folder_is_parsed_by_one_model_and_what_was_made_alike_is_kept(tmp_path, capsys, monkeypatch):
    folder, videos, out = write_bundle(tmp_path / "bundle", toy_parser()), tmp_path / "videos", tmp_path / "out"
    for day in ("day1", "day2", ".hidden", "day2/deep"):
        (videos / day).mkdir(parents=True)
    names = ["day1/clip.npz", "day2/clip.npz", "day2/deep/a b.NPZ"]
    for n, name in enumerate(names):
        random_features(tmp_path, 5 + n, 0.5).rename(videos / name)
    for name in ("._clip.npz", "notes.txt", "Thumbs.db"):
        (videos / name).write_text("hello")
    assert parse.TAKEN == (".npz", *annotations.VIDEO_NAMES), "one list, in a file that stands alone, too"
    opened, before = [], parse.Bundle._open
    monkeypatch.setattr(parse.Bundle, "_open", lambda self, name: opened.append(name) or before(self, name))

    def run(*options: str) -> tuple[list[str], dict[str, int]]:
        """The names that were parsed, not kept; and when each output was written."""
        parse.main([str(videos), "--bundle", str(folder), "--device", "cpu", "--csv", str(out), "--json", str(out / "json"), *options])
        said = [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
        assert len(said) == 3
        return [name for name in said if not name.endswith(", kept")], {str(x.relative_to(out)): x.stat().st_mtime_ns for x in out.rglob("*.*") if x.suffix in (".csv", ".json")}

    parsed, first = run()
    assert len(score.predicted_rows(out / "day1")) == len(list(csv.reader(open(out / f"{names[0]}.csv")))) - 1, "the folder is scored as it is"
    assert parsed == names and set(first) == {x for name in names for x in (f"{name}.csv", f"json/{name}.json")} and opened == ["parser"]
    assert {name: [row["video"] for row in csv.DictReader(open(out / f"{name}.csv", newline=""))][0] for name in names} == {name: name for name in names}
    assert run() == ([], first) and opened == ["parser"], "nothing is even opened"
    (out / "json" / f"{names[1]}.json").unlink()
    parsed, second = run()
    assert parsed == [names[1]] and {x for x in first if first[x] != second[x]} == {f"{names[1]}.csv", f"json/{names[1]}.json"}
    random_features(tmp_path, 7, 0.5).rename(videos / names[0])  # another clip under its name
    assert run()[0] == [names[0]]
    assert run("--threshold", "0.4")[0] == names and run("--threshold", "0.4")[0] == [] and run()[0] == names
    (out / "day1/.parsed").write_text("{")
    assert run()[0] == [names[0]]
    info = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(info | dict(classes=["cat", "bell"])))
    assert run()[0] == names and "cat" in (out / f"{names[0]}.csv").read_text()


@pytest.mark.parametrize("sources, said, made", [
    (["good.npz", "text.npz", "also.npz"], "1 of 3 could not be parsed", ["also.npz.csv", "good.npz.csv"]), (["good.npz", "nan.npz", "wide.npz"], "2 of 3 could not be parsed", ["good.npz.csv"]),
    (["good.npz", "sub"], "sub/good.npz: has the name of .*good.npz; give the folder that holds both", []), (["good.npz", "none.npz"], "none.npz: No such file", ["good.npz.csv"]),
    (["empty"], "empty: no video and no .npz file in it", [])])
def test_of_several_one_that_cannot_be_read_stops_no_other(tmp_path, capsys, sources, said, made):
    folder = write_bundle(tmp_path / "bundle", toy_parser())
    (tmp_path / "sub").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("hello")
    for name in ("good.npz", "also.npz", "sub/good.npz"):
        random_features(tmp_path, 5, 0.5, name)
    np.savez(tmp_path / "nan.npz", audio=np.full((3, 4), np.nan, np.float32), visual_2d=np.ones((3, 3), np.float32))
    np.savez(tmp_path / "wide.npz", audio=np.ones((3, 9), np.float32), visual_2d=np.ones((3, 3), np.float32))
    with pytest.raises(SystemExit, match=said) as stop:
        parse.main([*(str(tmp_path / name) for name in sources), "--bundle", str(folder), "--device", "cpu", "--csv", str(tmp_path / "out")])
    assert "\n" not in stop.value.code and sorted(x.name for x in tmp_path.glob("out/*.csv")) == made
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (int(said[0]) if said[0].isdigit() else 0) and all(line.startswith(f"error: {tmp_path}") for line in lines)


def test_no_output_replaces_another_source(tmp_path, capsys):
    folder = write_bundle(tmp_path / "bundle", toy_parser())
    (tmp_path / "videos").mkdir()
    first, second = (random_features(tmp_path / "videos", 5, shift, name) for shift, name in ((0.5, "a.npz"), (0.7, "a.npz.npz")))
    before = second.read_bytes()
    with pytest.raises(SystemExit, match="1 of 2 could not be parsed"):
        parse.main([str(first.parent), "--bundle", str(folder), "--device", "cpu", "--save-features", str(first.parent)])
    assert "an output is named twice, or is the source itself" in capsys.readouterr().err and second.read_bytes() == before


@pytest.mark.parametrize("classes", [["dog", "bell"], ["a & b <i>", "--> x"], ["Hündchen", "鐘"]])
def test_subtitles_and_labels_are_the_events_as_ffmpeg_and_a_plain_reader_see_them(tmp_path, classes):
    av = pytest.importorskip("av")
    folder = write_bundle(tmp_path / "bundle", toy_parser())
    (folder / "bundle.json").write_text(json.dumps(json.loads((folder / "bundle.json").read_text()) | dict(classes=classes)))
    parse.main([str(random_features(folder, 3700, 0.3)), "--bundle", str(folder), "--device", "cpu", *(str(x) for kind in ("vtt", "labels", "json") for x in (f"--{kind}", tmp_path / f"x.{kind}"))])
    events = [(e["onset"], e["offset"], f"{e['label']}: {e['modality']}") for e in json.loads((tmp_path / "x.json").read_text())["events"]]
    with av.open(str(tmp_path / "x.vtt")) as file:
        cues = [(float(x.pts * x.time_base), float((x.pts + x.duration) * x.time_base), html.unescape(bytes(x).decode())) for x in file.demux() if x.size]
    labels = [line.split("\t") for line in (tmp_path / "x.labels").read_text(encoding="utf-8").splitlines()]
    assert sorted(cues) == sorted(events) and cues[-1][1] > 3600 and [x[0] for x in cues] == sorted(x[0] for x in cues)
    assert [(float(begin), float(end), text) for begin, end, text in labels] == events


def test_the_library_s_example_runs_as_the_page_says(tmp_path, monkeypatch, capsys):
    folder = write_bundle(tmp_path / "runs/demo/bundle", toy_parser())
    (folder / "x.npz").rename(folder / "sample.npz")
    monkeypatch.chdir(tmp_path)
    example = (WEB.parent / "docs/deploy.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names = {}
    exec(example, names)
    result = names["result"]
    assert len(example.splitlines()) <= 8 and isinstance(result, parse.Parse) and result.events() and result.threshold == 0.4
    assert all(str(e) in capsys.readouterr().out for e in result.events()[:1])


@pytest.fixture(scope="module")
def page(browser):
    """The page, from which its own parser.js is called."""
    if not (WEB / "node_modules/onnxruntime-web").is_dir():
        unavailable("onnxruntime-web: npm ci in web/")

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=WEB))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.server_address[1]}/index.html")
    yield page
    page.close()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_the_page_refuses_the_same_in_the_same_words(page, case):
    folder, words = case
    said = page.evaluate("""async (files) => {
        const {Bundle, parse, readNpz} = await import("./parser.js"), {findRuntimes} = await import("./runtime.js");
        const {runtimes} = await findRuntimes("wasm");
        const read = async (name) => {
            if (!(name in files)) throw new Error(`${name}: no such file`);
            return Uint8Array.from(atob(files[name]), (c) => c.charCodeAt(0));
        };
        try {
            await parse(await readNpz(await read("x.npz")), await Bundle.open(runtimes, read));
            return null;
        } catch (error) {
            return error.message;
        }
    }""", {str(path.relative_to(folder)): base64.b64encode(path.read_bytes()).decode() for path in folder.rglob("*.*")})
    assert_said(said, words, "the page")


def test_the_page_tells_what_came_closest_and_takes_another_threshold(page, tmp_path):
    folder = write_bundle(tmp_path / "bundle", toy_parser())
    path = random_features(folder, 9, -1.5)
    page.set_viewport_size(dict(width=360, height=800))
    page.set_input_files("#bundle", folder)
    page.wait_for_function("document.getElementById('status').textContent.startsWith('Bundle of 2 classes')")
    page.set_input_files("#source", path)
    page.wait_for_function("window.parsed")
    cells = page.locator("#highest tbody tr").evaluate_all("(rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent))")
    assert "0 events above 0.5" in page.locator("#status").text_content() and "above 0.5" in page.locator("#none").text_content()
    p, around = slow_parse(path)
    expected = sorted(((x[:, c].max(), m, c) for m, x in p.items() for c in (0, 1)), reverse=True)
    assert [row[:2] for row in cells] == [[("dog", "bell")[c], m] for _, m, c in expected] and page.locator("#highest").is_visible()
    assert [row[3] for row in cells] == [f"{x:.3f}" for x, *_ in expected] and {row[5] for row in cells} <= {"second", "video", "second and video"}
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    for threshold in (0.05, 0.2):
        page.fill("#threshold", str(threshold))
        page.press("#threshold", "Enter")
        bundle = parse.Bundle(folder, "cpu")
        expected = parse.parse(parse.features_of_file(path, bundle), bundle, threshold=threshold).events()
        assert page.evaluate("parsed.threshold") == threshold and f"events above {threshold}" in page.locator("#status").text_content()
        assert page.evaluate("parsed.events.map(({label, modality, onset, offset}) => [label, modality, onset, offset])") == [
            [e[k] for k in ("label", "modality", "onset", "offset")] for e in expected] != []
        assert page.locator("#none").is_hidden() and page.locator("#table tbody tr").count() == len(expected)
    page.fill("#threshold", "7")
    page.press("#threshold", "Enter")
    assert page.evaluate("parsed.threshold") == 0.2
