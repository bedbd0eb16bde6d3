"""Own clips without a trap: everything is said before any encoder runs, and what became of each clip is told by name."""

import csv
import json
import os
import re
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import SMALL, need

need("av")

import clips
import features
import report
import uwav
from data import annotations, layout, pack
from sources import write_own
from train import cli, lacking, stages
from video import check, decode, extract

ROOT = Path(__file__).resolve().parents[2]
EVENTS = "video,modality,onset,offset,label\n"


class Encoder:
    """Cheap, different for every input, of unit length."""

    def __init__(self, size: int):
        self.matrix = np.random.default_rng(0).standard_normal((800, size)).astype(np.float32)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        flat = inputs.reshape(len(inputs), -1)[:, :: inputs[0].size // 700].astype(np.float32)
        y = flat @ self.matrix[: flat.shape[1]] + 1
        return y / np.linalg.norm(y, axis=1, keepdims=True)


def texts(size: int):
    return lambda names: np.eye(len(names), size, dtype=np.float32)


def table(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


# ---- twelve clips with every mistake, to a report ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """CLIPS: of one name in two folders, longer, silent, dark, a moment, broken, with no row; and what is no clip."""
    folder = tmp_path_factory.mktemp("walk")
    for name, seconds in {"day1/clip.mp4": 2, "day2/clip.mp4": 2, "kitchen01.mp4": 2, "Garden.mp4": 2, "a.mp4": 2, "b.mp4": 2, "long.mp4": 5.2, "blip.mp4": 0.4,
                          "extra.mp4": 2, "silent.mp4": 2, "dark.m4a": 2}.items():
        path = folder / "CLIPS" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sound = None if name == "silent.mp4" else clips.tone(seconds, frequency=300 + 97 * len(name))[None]
        clips.make(path, seconds, 5, sound=sound, pictures=name != "dark.m4a")
    (folder / "CLIPS/broken.mp4").write_bytes(b"no video " * 99)
    (folder / "CLIPS/Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(999))
    (folder / "CLIPS/notes.txt").write_text("the second one is loud")
    return folder


def test_twelve_clips_with_every_mistake_are_led_to_a_report_by_what_is_printed(folder, tmp_path, capsys, monkeypatch):
    own, run, asked = tmp_path / "own", tmp_path / "run", ["--videos", str(folder / "CLIPS"), "--segments", "2"]
    monkeypatch.chdir(tmp_path)

    def refused(*options: str) -> tuple[str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            features.main(["check", str(own), *asked, *options])
        assert str(stopped.value).count("\n") == 0
        return capsys.readouterr().out, str(stopped.value)

    features.main(["template", str(folder / "CLIPS")])  # into own/, as no other folder is named
    assert "2 files do not look like videos (left out): Thumbs.db; notes.txt" in capsys.readouterr().out
    names = [row["video"] for _, row in annotations.read_table(own / "labels.csv", ("video",))]
    assert names == ["Garden.mp4", "a.mp4", "b.mp4", "blip.mp4", "broken.mp4", "dark.m4a", "day1/clip.mp4", "day2/clip.mp4", "extra.mp4", "kitchen01.mp4", "long.mp4", "silent.mp4"]
    rows = {"day1/clip.mp4": "kettle", "day2/clip.mp4": "speech", "kitchen1.mp4": "kettle", "garden.mp4": "speech", "a.mp4": "spech", "b.mp4": "none", "long.mp4": "kettle",
            "blip.mp4": "speech", "broken.mp4": "kettle", "silent.mp4": "beep, moving ball", "dark.m4a": "speech", "clip": "kettle"}

    def write(events: str = "") -> None:
        with open(own / "labels.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("video", "labels"), *rows.items()])
        table(own / "events.csv", EVENTS + "day1/clip,both,0,2,kettle\n" + events)

    write("a.mp4,audible,7,9,spech\n")
    assert "events.csv, line 3: the event begins at 7 s, but a ends at 2 s" in refused()[1]
    write("a.mp4,audible,0:01,0:02,spech\n")
    assert "events.csv, line 3: '0:01' is not a time from 0 to 999999 s; write seconds, 65.5 for 1:05.5" in refused()[1]
    write()
    said, stopped = refused()
    for line in ("kitchen1: in labels.csv, but no file of .*; did you mean kitchen01\\?", "garden: in labels.csv, .*; did you mean Garden\\?",
                 "clip: in labels.csv, .*; did you mean day1/clip or day2/clip\\?", "extra: a file of .*, but not in labels.csv\n", " +1  spech   <- did you mean speech\\?",
                 " +1  none   <- leave the cell empty", "beep, moving ball   <- one class, as ',' separates nothing; several labels are separated by semicolons", " +5  kettle\n",
                 r"long +6 +sound, picture +kettle +0 +train: 2 s of 6\n", "long: of longer clips only the beginning is used; --windows would cut",
                 r"silent +2 +picture .* left out: no sound: .* \(--missing zeros would accept it\)", r"blip +1 .* left out: too short: 0.4 s are less than 2 segments",
                 r"broken +0 .* left out: cannot be read", r"day1/clip +2 +sound, picture +kettle +1 +val: 2 s of 2\n", r"2 files do not look like videos \(ignored\): Thumbs.db; notes.txt"):
        assert re.search(line, said), (line, said)
    assert "under names and classes and clips and long, or go on as it is with --accept names,classes,clips,long" in stopped

    mended = {"kitchen1.mp4": "kitchen01.mp4", "garden.mp4": "Garden.mp4"}
    rows = {mended.get(v, v): {"spech": "speech", "none": "", "beep, moving ball": "kettle"}.get(x, x) for v, x in rows.items() if v != "clip"}
    write()
    stopped = refused("--windows", "--missing", "zeros")[1]
    options = ["--windows", "--missing", "zeros", *re.search("--accept [a-z,]+", stopped)[0].split()]  # as printed
    assert options[-1] == "names,clips"
    features.main(["check", str(own), *asked, *options])
    forecast = {row["clip"]: row["becomes"] for _, row in annotations.read_table(own / "clips.csv", annotations.CLIPS)}

    extract.write_texts(["kettle", "speech"], own, texts(768), texts(512), {})
    for _ in range(2):  # interrupted and begun again, nothing of it is lost
        extract.extract(folder / "CLIPS", own, Encoder(768), Encoder(512), {}, missing="zeros", workers=1)
    assert "3 files are not in labels.csv, and not embedded: Thumbs; extra; notes" in capsys.readouterr().out
    features.main(["pack", str(own), str(run / "data"), "--missing", "skip", "--windows", "2", "--workers", "1"])
    index = layout.read_index(run / "data")["llp"]
    assert index["videos"] == {"val": ["day1/clip"], "train": [
        "day2/clip", "kitchen01", "Garden", "a", "b", "long 0-2 s", "long 2-4 s", "long 4-6 s", "silent", "dark"]}
    assert index["clips"].keys() == forecast.keys() and {v for v, x in index["clips"].items() if x != forecast[v]} <= {"blip"}  # said in other words
    assert not np.load(run / "data/llp/train/clap.npy")[8].any() and np.load(run / "data/llp/train/clip.npy")[8].any()
    cli.main(["own", str(run / "data"), str(run / "seed0"), *SMALL, "--set", "epochs=2"])
    report.main([str(run)])
    page = (run / "report.html").read_text()
    for clip, what in index["clips"].items():
        assert f"<tr><th>{clip}</th><td>{what}</td></tr>" in page
    assert index["clips"]["long"] == "train: 6 s of 6, 3 examples" and index["clips"]["silent"] == "train: 2 s of 2, no sound"
    assert "Of 11 clips in labels.csv: 1 val, 8 train, 2 left out." in page and 'id="method"' not in page, "there was no teacher"


# ---- names, labels, tables: the kinds, in other examples ----


@pytest.mark.parametrize("listed, there, said", [
    ("Clip", ["clip", "other"], "clip"), ("clip7", ["clip07"], "clip07"), ("clip 007", ["clip 7"], "clip 7"), (unicodedata.normalize("NFD", "käse"), ["käse"], "käse"),
    ("kitchem_2", ["kitchen_2", "z"], "kitchen_2"), ("IMG_1", ["b/img_1", "a/IMG_01"], "b/img_1 or a/IMG_01"), ("morning/x", ["evening/X"], "evening/X"), ("dog", ["cat", "rain"], ""),
])
def test_a_name_without_a_file_is_answered_by_the_one_that_is_meant(listed, there, said):
    assert check.meant(listed, there) == (f"; did you mean {said}?" if said else "")


@pytest.mark.parametrize("label, others, said", [
    ("barkin", {"barking": 4}, "did you mean barking?"), ("Dog", {"dog": 2}, "did you mean dog?"), ("door_bell", {"door bell": 1}, "did you mean door bell?"),
    ("kettel", {"kettle": 2, "keetle": 1}, "did you mean kettle?"), ("None", {}, "leave the cell empty"), ("N/A", {}, "leave the cell empty"), ("nothing", {}, "leave the cell empty"),
    ("rain, wind", {}, "one class, as ',' separates nothing"), ("dog/cat", {}, "one class, as '/'"), ("dog|cat", {}, "one class, as '|'"),
    ("cat", {"car": 9}, ""), ("barking", {"barkin": 0}, ""), ("speech", {"dog": 3, "rain": 1}, ""),
])
def test_a_label_that_looks_misspelt_is_named_and_no_other(label, others, said):
    found = check.misspelt(label, Counter({label: 1} | others))
    assert found.startswith(said) if said else found == ""


@pytest.mark.parametrize("content, said", [
    ("video,labels\na,dog\n".encode("utf-16"), "choose Save as, CSV UTF-8"), ("video,labels\na,dog\n".encode("utf-16-le"), "choose Save as, CSV UTF-8"),
    ("video,labels\nk\u00e4se,dog\n".encode("latin-1"), "choose Save as, CSV UTF-8"), ("video,labels\n\u043a\u043e\u0442,dog\n".encode("cp1251"), "choose Save as, CSV UTF-8"),
    (b"sep=;\nvideo;labels\na;dog\n", "its first line, sep=, is for one spreadsheet only; delete that line"), (b"\xef\xbb\xbfSEP=,\r\nvideo,labels\r\na,dog\r\n", "delete that line"),
    (b'"sep=\t"\nvideo\tlabels\na\tdog\n', "delete that line"),
])
def test_a_table_that_cannot_be_read_says_what_to_do(tmp_path, content, said):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"labels.csv: .*{said}") as error:
        annotations.listed(tmp_path / "labels.csv")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["0:05", "1:05.5", "00:01:30"])
def test_a_time_that_is_no_number_of_seconds_says_how_to_write_it(tmp_path, text):
    table(tmp_path / "labels.csv", "video,labels\na,dog\nb,dog\n")
    table(tmp_path / "events.csv", f"{EVENTS}a,audible,0,{text},dog\n")
    with pytest.raises(ValueError, match=f"events.csv, line 2: '{text}' is not a time .*; write seconds"):
        annotations.read_own(tmp_path, ("dog",), dict(a=4, b=4))


@pytest.mark.parametrize("row, length, said", [
    ("a,both,4,6,dog", 4, "line 2: the event begins at 4 s, but a ends at 4 s"), ("a,visible,99,100.5,dog", 4, "begins at 99 s"), ("a,audible,12.5,13,dog", 12, "begins at 12.5 s, but a ends at 12 s")])
def test_an_event_wholly_beyond_its_clip_is_refused_by_name_and_one_that_reaches_beyond_is_cut(tmp_path, row, length, said):
    table(tmp_path / "labels.csv", "video,labels\na,dog\nb,dog\n")
    table(tmp_path / "events.csv", f"{EVENTS}{row}\n")
    known = dict(a=annotations.Known(length))
    with pytest.raises(ValueError, match=said):
        annotations.read_own(tmp_path, ("dog",), dict(a=4, b=4), known=known)
    table(tmp_path / "events.csv", f"{EVENTS}a,both,{length - 0.5},{length + 9},dog\n")
    assert annotations.read_own(tmp_path, ("dog",), dict(a=4, b=4), known=known).val.audio.any() == (length == 4)


def test_the_template_lists_what_is_a_clip_by_its_name_with_its_folder_and_never_lies_among_them(tmp_path, capsys):
    for name in ("x/one.MP4", "x/y/one.mkv", "one.wav", "sound.flac", "b.ts", "b.ts.txt", "cover.jpg", "list.m3u8", "labels.csv", ".hidden/z.mp4", "x/.z.mp4", "desktop.ini", "e\x1b[2J.mp4"):
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / name).touch()
    for inside in ("clips", "clips/x/own"):
        with pytest.raises(SystemExit, match="lies inside .*clips: its files would be taken for videos"):
            features.main(["template", str(tmp_path / "clips"), str(tmp_path / inside)])
    features.main(["template", str(tmp_path / "clips"), str(tmp_path / "own")])
    assert sorted(annotations.listed(tmp_path / "own/labels.csv")) == ["b", "one", "sound", "x/one", "x/y/one"]
    said = capsys.readouterr().out
    assert "5 files do not look like videos (left out): " in said and "e\\x1b[2J.mp4: left out, its name cannot be a video's id" in said and "\x1b" not in said
    with pytest.raises(SystemExit, match="none: no file with a video's extension"):
        (tmp_path / "none").mkdir()
        (tmp_path / "none/a.docx").touch()
        features.main(["template", str(tmp_path / "none"), str(tmp_path / "other")])


@pytest.mark.parametrize("name", ["../x", "day1/../../x", "/etc/x", "a//b", "a/./b", "a\\b/c", "day1/\x1b[2J"])
def test_no_id_leads_out_of_its_folder(tmp_path, name):
    table(tmp_path / "labels.csv", f"video,labels\n{name},dog\n")
    with pytest.raises(ValueError, match="labels.csv"):
        annotations.listed(tmp_path / "labels.csv")


def test_predictions_of_a_clip_in_a_folder_are_scored_and_of_two_of_one_name_the_folder_is_asked_for(tmp_path, capsys):
    """parse.py writes the name of a file without its folder."""
    table(tmp_path / "labels.csv", "video,labels\nday1/clip.mp4,dog\nday2/clip.mp4,dog\nday1/other.mp4,dog\nx/y/third.mkv,\n")
    table(tmp_path / "events.csv", EVENTS + "".join(f"{v},both,0,3,dog\n" for v in ("day1/clip", "day2/clip.mp4", "day1/other")))
    score = ["score", str(tmp_path / "p.csv"), str(tmp_path), "--split", "val"]
    table(tmp_path / "p.csv", EVENTS + "other.mp4,both,0,3,dog\nday1/clip.mp4,both,0,3,dog\nday2/clip,both,0,3,dog\n")
    cli.main(score)
    assert capsys.readouterr().out.count(" 100.0") == 10
    table(tmp_path / "p.csv", EVENTS + "clip.mp4,both,0,3,dog\n")
    with pytest.raises(SystemExit, match="'clip.mp4' is no video of split val; did you mean day1/clip or day2/clip"):
        cli.main(score)


@pytest.mark.parametrize("seconds, segments, missing, longest, known", [
    (3.2, 3, "skip", 600, annotations.Known(4)), (2.05, 3, "skip", 600, annotations.Known(2)), (1.9, 3, "skip", 600, annotations.Known(2, "", "too short: 1.9 s are less than 3 segments")),
    (3.0, 3, "skip", 2, annotations.Known(3, "", "too long: 3 s, the limit is 2 s (--longest)")), (0.4, 1, "skip", 600, annotations.Known(1))])
def test_a_header_tells_what_extract_will_make_of_a_clip(tmp_path, seconds, segments, missing, longest, known):
    path = clips.make(tmp_path / "x.mkv", seconds, 20, sound=clips.tone(seconds)[None])
    assert check.read_header(path, segments, missing, longest) == known
    try:
        clip = decode.read_clip(path, segments, longest)
        assert not known.cause and clip.segments == segments
    except ValueError as error:
        assert str(error) == known.cause


def test_a_file_with_neither_sound_nor_picture_and_tables_without_a_label_are_said_by_the_check(tmp_path, capsys):
    (tmp_path / "CLIPS").mkdir()
    (tmp_path / "CLIPS/words.mkv").write_bytes(b"1\n00:00:00,000 --> 00:00:02,000\nhello\n\n")  # subtitles
    clips.make(tmp_path / "CLIPS/a.mkv", 2, 5, sound=clips.tone(2)[None])
    table(tmp_path / "labels.csv", "video,labels\nwords.mkv,\na.mkv,\n")
    with pytest.raises(ValueError, match="lies inside|labels.csv: no class in it yet"):
        check.check(tmp_path, tmp_path / "CLIPS", 2)
    table(tmp_path / "labels.csv", "video,labels\nwords.mkv,dog\na.mkv,dog\n")
    check.check(tmp_path, tmp_path / "CLIPS", 2, accept=["clips"])
    assert "words: left out: no stream: neither pictures nor sound in it" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--accept clipz: one of names, classes, clips, long"):
        check.check(tmp_path, tmp_path / "CLIPS", 2, accept=["clipz"])


def test_thousands_of_rows_for_another_folder_are_told_in_seconds(tmp_path, capsys):
    (tmp_path / "CLIPS/x").mkdir(parents=True)
    for n in range(2000):
        (tmp_path / f"CLIPS/x/garden {n:05d} evening.mp4").touch()
    (tmp_path / "own").mkdir()
    table(tmp_path / "own/labels.csv", "video,labels\n" + "".join(f"kitchen {n:05d} morning.mp4,dog\n" for n in range(2000)))
    started = time.monotonic()
    with pytest.raises(ValueError, match="mend what is listed above under names"):
        check.check(tmp_path / "own", tmp_path / "CLIPS")
    assert time.monotonic() - started < 20 and capsys.readouterr().out.count("in labels.csv, but no file of") == 2000


# ---- windows ----


def test_windows_have_the_seconds_and_the_labels_that_are_theirs(tmp_path):
    """A train clip of 7 s, an annotated one of 6: three windows of 2 s each, by hand."""
    own = write_own(tmp_path / "own", "video,labels\na,dog;bell\nday/b,bell;dog;hum\nc,dog\n", EVENTS + "day/b,audible,1,3,dog\nday/b,both,5,6,bell\n",
                    ("dog", "bell", "hum"), segments=6, videos=[])
    rng, x = np.random.default_rng(1), {}
    for v, n in (("a", 7), ("day/b", 6), ("c", 2), ("d", 1)):
        for name, size in (("CLAP", 512), ("CLIP", 768)):
            x[v, name] = rng.standard_normal((n, size), np.float32)
            (own / f"feats_{name}/segment_feats/{v}.npy").parent.mkdir(exist_ok=True)
            np.save(own / f"feats_{name}/segment_feats/{v}.npy", x[v, name])
    with pytest.raises(ValueError, match="differ in length, .* or cut them with `features.py pack --windows N`"):
        pack.pack(own, tmp_path / "data", workers=1)
    index = pack.pack(own, tmp_path / "data", workers=1, window=2)
    load = {name: np.load(tmp_path / f"data/llp/{name}.npy") for name in ("train/weak", "val/weak", "val/audio", "val/visual", "train/clap", "val/clip")}
    assert index["llp"]["videos"] == {"train": ["a 0-2 s", "a 2-4 s", "a 4-6 s", "c"], "val": ["day/b 0-2 s", "day/b 2-4 s", "day/b 4-6 s"]} and index["llp"]["segments"] == 2
    assert load["train/weak"].tolist() == [[1, 1, 0]] * 3 + [[1, 0, 0]]  # a window of a clip without events has all its labels
    assert load["val/weak"].tolist() == [[1, 0, 1], [1, 0, 1], [0, 1, 1]]  # hum is nowhere, so it may be anywhere
    assert load["val/audio"][..., 0].tolist() == [[0, 1], [1, 0], [0, 0]] and load["val/visual"][..., 1].tolist() == [[0, 0], [0, 0], [0, 1]]
    np.testing.assert_allclose(load["train/clap"][2], x["a", "CLAP"][4:6], atol=4e-3)
    np.testing.assert_allclose(load["val/clip"][1], x["day/b", "CLIP"][2:4], atol=4e-3)
    assert index["llp"]["clips"] == {"a": "train: 6 s of 7, 3 examples", "day/b": "val: 6 s of 6, 3 examples", "c": "train: 2 s of 2"}


# ---- clips without sound or picture ----


@pytest.fixture
def gaps(tmp_path) -> Path:
    """Packed: a to f whole, g without sound, h without picture, s silent: its sound has an embedding."""
    rows = "".join(f"{v},{'dog' if v in 'aceg' else 'bell'}\n" for v in "abcdefghs")
    own = write_own(tmp_path / "own", "video,labels\n" + rows, EVENTS + "e,both,0,2,dog\nf,audible,1,3,bell\n", videos="abcdefghs")
    for v, name, size in (("g", "CLAP", 512), ("h", "CLIP", 768)):
        np.save(own / f"feats_{name}/segment_feats/{v}.npy", np.zeros((4, size), np.float32))
    pack.pack(own, tmp_path / "data", workers=1)
    return tmp_path / "data"


def test_what_a_clip_lacks_has_no_label_no_loss_and_no_part_in_thresholds(gaps, tmp_path):
    context = stages.Context(gaps)
    data = context.target("train", "clip_clap")
    there = lacking.present(data)
    assert (~there).nonzero().tolist() == [[0, 4], [1, 5]]  # g's sound, h's picture; s lacks nothing
    cli.main(["label", str(gaps), str(tmp_path), "--per-segment", "--device", "cpu", "--thresholds", "weak"])
    labels, rows = stages.read_labels(tmp_path / "labels_segment.npz", "cpu"), there[0]
    assert torch.equal(labels.thresholds[0], stages.weak_thresholds(labels.logits["train"][0][rows], data.weak[rows])[0])
    config = uwav.TrainConfig()
    made = lacking.pseudo_labels(labels.logits["train"], labels.thresholds, data, config)
    alone = uwav.pseudo_labels(tuple(z[rows] for z in labels.logits["train"]), labels.thresholds, data.weak[rows], config)
    assert torch.equal(made.audio[rows], alone.audio) and made.audio_weights == alone.audio_weights and made.audio[4].isnan().all() and made.visual[5].isnan().all()
    assert not made.visual[4].isnan().any() and not made.audio[6].isnan().any()

    torch.manual_seed(0)
    model = uwav.HAN(uwav.HANConfig(classes=2, audio_dim=512, visual_2d_dim=768, visual_3d_dim=0, hidden=16, heads=2, feedforward=16, layers=1, dropout=0.0))
    output = uwav.HANOutput(*(x.detach().requires_grad_() for x in model(*data.inputs(slice(None)))))
    terms = lacking.losses(model, output, data.weak, made, uwav.draw_mixup(len(data.weak) * 4, 1.7, np.random.default_rng(0), "cpu"))
    terms.sum().backward()
    assert (terms > 0).all() and terms.isfinite().all()
    for m, n in ((0, 4), (1, 5)):
        for grad in (output[1 + m].grad, output[3 + m].grad):
            assert not grad[n].any() and grad[[k for k in range(7) if k not in (4, 5)]].flatten(1).any(1).all()
        assert output[2 - m].grad[n].any(), "what it has is learned from"
    assert not output.video_prob.grad[[4, 5]].any()
    whole = there.all(0)
    expected = uwav.han_losses(model, uwav.HANOutput(*(x[whole] for x in output)), data.weak[whole], made.of(whole), None)
    of_whole = lacking.losses(model, uwav.HANOutput(*(x[whole] for x in output)), data.weak[whole], made.of(whole), None)
    torch.testing.assert_close(of_whole, expected)


def test_training_on_clips_that_lack_a_stream_runs_and_differs_from_zeros_that_pass_for_silence(gaps, tmp_path, monkeypatch, capsys):
    cli.main(["own", str(gaps), str(tmp_path), *SMALL, "--set", "epochs=2"])
    with monkeypatch.context() as patch:
        patch.setattr(lacking, "present", lambda data: torch.ones(2, len(data.weak), dtype=torch.bool))
        cli.main(["own", str(gaps), str(tmp_path / "as silence"), *SMALL, "--set", "epochs=2"])
    histories = [(tmp_path / f"{x}clip_clap/valor/han.jsonl").read_text() for x in ("", "as silence/")]
    assert histories[0] != histories[1]
    with pytest.raises(SystemExit, match="setting video_only: some clips lack sound or picture"):
        cli.main(["train", str(gaps), str(tmp_path / "x"), "--setting", "video_only", *SMALL])


def test_of_annotated_clips_those_that_lack_a_stream_are_trained_on_or_left_out_and_said(tmp_path):
    table(tmp_path / "labels.csv", "video,labels,split\ng,dog,\nh,dog,val\nd,dog,test\ne,dog,\n")
    table(tmp_path / "events.csv", EVENTS + "g,visible,0,1,dog\nh,audible,0,1,dog\nd,both,0,2,dog\n")
    known = dict(g=annotations.Known(4, "sound"), h=annotations.Known(4, "picture"))
    own = annotations.read_own(tmp_path, ("dog",), dict.fromkeys("dghe", 4), known=known)
    assert (own.train.ids, own.val, own.test.ids) == (["g", "e"], None, ["d"])
    assert own.clips == {"g": "train: 4 s of 4, no sound", "h": "left out: no picture, so it cannot be of split val", "d": "test: 4 s of 4", "e": "train: 4 s of 4"}


def test_clips_none_of_which_has_sound_train_a_parser_of_pictures(tmp_path):
    own = write_own(tmp_path / "own", "video,labels\na,dog\nb,bell\nc,dog\n", videos="abc")
    for v in "abc":
        np.save(own / f"feats_CLAP/segment_feats/{v}.npy", np.zeros((4, 512), np.float32))
    pack.pack(own, tmp_path / "data", workers=1)
    cli.main(["own", str(tmp_path / "data"), str(tmp_path), *SMALL, "--set", "epochs=2"])
    history = [json.loads(line) for line in (tmp_path / "clip_clap/valor/han.jsonl").read_text().splitlines()]
    assert all(x["loss_audio"] == x["loss_video"] == 0 < x["loss_visual"] for x in history)


# ---- the report, and run_all.sh ----


@pytest.mark.parametrize("empty, best, warned", [(1, 50.0, "50.0"), (0, 0.0, "0.0"), (1, 49.9, "50.0"), (1, 50.1, ""), (2, 100.0, "100.0")])
def test_an_epoch_that_scores_what_silence_scores_is_not_praised(empty, best, warned):
    """Of two annotated clips, `empty` have no event."""
    truth = torch.zeros(2, 4, 2)
    truth[empty:, 1, 0] = 1
    said = stages.no_better_than_silence(best, truth.amax(1), truth, truth)
    assert said == (f"no epoch scored more than predicting nothing does, {warned}" if warned else "")


def test_the_report_praises_no_epoch_of_a_silent_parser(tmp_path, capsys):
    own = write_own(tmp_path / "own", "video,labels,split\na,dog,\nb,bell,\nc,dog,val\nd,,val\n", EVENTS + "c,both,0,2,dog\n")
    pack.pack(own, tmp_path / "run/data", workers=1)
    cli.main(["own", str(tmp_path / "run/data"), str(tmp_path / "run/seed0"), *SMALL, "--set", "epochs=1", "--set", "peak_lr=0"])
    assert "no epoch scored more than predicting nothing does, 50.0" in capsys.readouterr().out
    report.main([str(tmp_path / "run")])
    page = (tmp_path / "run/report.html").read_text()
    assert "Warning: no epoch scored more than predicting nothing does, 50.0, so the epoch that was kept (1) is not a good one." in page and "was kept (50.0 %)" not in page


@pytest.mark.skipif(os.name != "posix", reason="run_all.sh needs a POSIX shell")
@pytest.mark.parametrize("options, passed", [
    (["--accept", "names,long", "--missing", "zeros", "--longest", "900", "--retry"], {
        "check": "--segments 10 --accept names,long --missing zeros --longest 900", "extract": "--segments 10 --missing zeros --longest 900 --retry", "pack": "--missing skip"}),
    (["--windows", "--segments", "5", "--accept", "clips"], {"check": "--segments 5 --windows --accept clips", "extract": "", "pack": "--missing skip --windows 5"}),
    ([], {"check": "--segments 10", "extract": "--segments 10", "pack": "--missing skip"}),
])
def test_run_all_checks_first_and_passes_on_what_a_failure_recommends(tmp_path, options, passed):
    own, log = tmp_path / "own dir", tmp_path / "log"
    own.mkdir()
    (own / "labels.csv").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").write_text(f'#!/bin/sh\ncase $1 in *.py) echo "$@" >>"{log}";; *) exec {sys.executable} "$@";; esac\n')
    (tmp_path / "bin/python3").chmod(0o755)
    done = subprocess.run(["bash", ROOT / "run_all.sh", "--own", own, "--videos", tmp_path, "--out", tmp_path / "out", *options], capture_output=True, text=True,
                          env=os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}, timeout=120)
    assert done.returncode == 0, done.stderr
    ran = {line.split()[1]: line for line in log.read_text().splitlines()}
    assert list(ran)[:5] == ["check", "text", "extract", "pack", "own"]
    assert ran["check"] == f"features.py check {own} --videos {tmp_path} {passed['check']}"
    assert ran["extract"].startswith(f"features.py extract {tmp_path} {own} {passed['extract']}".strip()) and ("--segments" in ran["extract"]) == ("--segments" in passed["extract"])
    assert ran["pack"] == f"features.py pack {own} {tmp_path / 'out/data'} {passed['pack']}"
