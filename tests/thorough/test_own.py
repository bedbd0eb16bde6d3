"""Data of one's own: the two csv files, packing, thresholds without annotated seconds, and the whole path on made clips."""

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import features
import report
import uwav
from common import files
from conftest import SMALL, need
from data import annotations, pack, splits
from sources import write_own
from train import checkpoints, cli, stages

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("dog", "door bell")
LENGTHS = dict.fromkeys("abcdef", 4)
LABELS = "video,labels\na,dog\nb,dog; door bell\nc,\nd,door bell\n"
EVENTS = "video,modality,onset,offset,label\n"


def read(folder: Path, labels: str | bytes, events: str | None = None, lengths: dict = LENGTHS, **options) -> tuple[annotations.LLP, list[str]]:
    (folder / "labels.csv").write_bytes(labels if isinstance(labels, bytes) else labels.encode())
    (folder / "events.csv").unlink(missing_ok=True)
    if events is not None:
        (folder / "events.csv").write_bytes(events.encode())
    reported = []
    return annotations.read_own(folder, CLASSES, lengths, report=reported.append, **options), reported


# ---- the csv files ----


def test_labels_and_events_by_hand(tmp_path):
    own, reported = read(tmp_path, LABELS, EVENTS + "d,audible,1,2.5,door bell\nd,visible,0,1,door bell\nb,both,3,4,dog\n")
    assert own.classes == CLASSES and own.segments == 4 and own.test is None and list(own.splits) == ["train", "val"]
    assert own.train.ids == ["a", "c"] and own.train.weak.tolist() == [[1, 0], [0, 0]] and own.train.audio is None
    assert own.val.ids == ["b", "d"] and own.val.weak.tolist() == [[1, 1], [0, 1]]
    assert own.val.audio[0].T.tolist() == own.val.visual[0].T.tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]
    assert own.val.audio[1].T.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0]]  # a second that is touched counts
    assert own.val.visual[1].T.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0]]
    assert reported == ["own data: 2 videos with features are not in labels.csv (left out): e; f",
                        "own data: 1 training videos have no label: none of the classes occurs in them",
                        "own data: 1 labels of annotated videos have no row in events.csv (kept as labels)",
                        "own data: 1 classes occur in no training video, so the parser will not learn them: door bell",
                        "own data: 2 videos in train, 2 videos in val; 4 segments each, 2 classes"]


@pytest.mark.parametrize("labels", [
    "\ufeffVideo,Labels\r\na.mp4,dog\r\nb.MOV,dog;door bell\r\n\r\n",  # byte order mark, CRLF, file names, an empty last line
    'video;labels\na;dog\nb;"dog;door bell"\n;\n',  # as spreadsheets save it where the comma is for decimals
    "labels\tplace\tvideo\n dog \there\ta\ndoor bell; dog;\tthere\tb\n",  # other columns, other order
    'video,labels\n"a","dog"\n"b","door bell ;dog; dog"\n',
])
def test_csv_is_read_as_spreadsheets_write_it(tmp_path, labels):
    own, _ = read(tmp_path, labels)
    assert own.train.ids == ["a", "b"] and own.train.weak.tolist() == [[1, 0], [1, 1]] and own.val is None


def test_split_column_decides_where_it_is_filled(tmp_path):
    labels = "video,labels,split\na,dog,train\nb,dog,\nc,dog,Test\nd,dog,\ne,,val\n"
    own, reported = read(tmp_path, labels, EVENTS + "".join(f"{v},audible,0,1,dog\n" for v in "abc"))
    assert (own.train.ids, own.val.ids, own.test.ids) == (["a", "d"], ["b", "e"], ["c"])
    assert own.val.audio.sum(1).tolist() == [[1, 0], [0, 0]] and own.train.audio is None
    assert "own data: 1 training videos are annotated (not used)" in reported


def test_decimal_commas_long_events_and_unlabelled_classes_are_understood_and_counted(tmp_path):
    own, reported = read(tmp_path, LABELS, 'video;modality;onset;offset;label\nc;audio;0,5;1;dog\nc;visual;3,5;9;dog\nc;audible;3,5;8;dog\n')
    assert own.val.audio[0, :, 0].tolist() == [1, 0, 0, 1] and own.val.visual[0, :, 0].tolist() == [0, 0, 0, 1]
    assert own.val.weak.tolist() == [[1, 0]]
    assert "own data: 2 rows of events.csv reach beyond the last segment of their video (cut there)" in reported
    assert "own data: 1 times events.csv finds a class that is not among the labels of its video (added)" in reported


@pytest.mark.parametrize("labels, events, message", [
    ("video,labels\na,dog\nb,cat\n", None, r"labels.csv, line 3: unknown class 'cat'; there are dog; door bell"),
    ("video,labels\na,dog\na.mp4,dog\n", None, "labels.csv, line 3: the video a is listed twice"),
    ("video,labels\na,dog,door bell\n", None, "labels.csv, line 2: 3 cells, but the header line has 2"),
    ("video,labels\na\n", None, "labels.csv, line 2: 1 cells"),
    ("video;labels\na;dog;door bell\n", None, "3 cells, .*holds the separator stands in quotation marks"),
    ("video|labels\na|dog\n", None, "column video and the column labels, once, separated by commas, semicolons or tabs"),
    ('video,labels\na,"dog,door bell"\n', None, "unknown class 'dog,door bell'; there are dog; door bell"),
    ("video,labels\na,door bel\n", None, "unknown class 'door bel'; .*; did you mean door bell"),
    ("video,labels\n,dog\n", None, "labels.csv, line 2: '' cannot be a video's id"),
    ("video,label\na,dog\n", None, "labels.csv: the header line must have the column labels, once"),
    ("video,labels,labels\na,dog,dog\n", None, "labels.csv: the header line must have the column labels, once"),
    ("", None, "labels.csv: the header line must have the column video and the column labels"),
    ("video,labels\n\n", None, "labels.csv: no video in it"),
    ("video,labels,split\na,dog,dev\n", None, "labels.csv, line 2: split is 'dev', not train, val, test or empty"),
    ("video,labels,split\na,dog,val\nb,dog,\n", None, "video 'a' is of split val, but events.csv does not say when"),
    ('video,labels\n"a,dog\nb,dog\n', None, "labels.csv: not a csv file in UTF-8"),
    ("video,labels\nk\u00e4se,dog\n".encode("latin-1"), None, "labels.csv: not a csv file in UTF-8"),
    ("video,labels\na,dog\n".encode("utf-16"), None, "labels.csv: not a csv file in UTF-8"),
    ("video,labels\na,dog\nx,dog\ny,dog\n", None, "labels.csv: 2 of its videos have no features in .*: x; y .failures.csv"),
    (LABELS, EVENTS + "z,audible,0,1,dog\n", "events.csv, line 2: the video z is not in labels.csv"),
    (LABELS, EVENTS + "a,audible,0,1,cat\n", "events.csv, line 2: unknown class 'cat'"),
    (LABELS, EVENTS + "a,heard,0,1,dog\n", "events.csv, line 2: modality is 'heard', not audible, visible or both"),
    (LABELS, EVENTS + "a,audible,-1,1,dog\n", "events.csv, line 2: '-1' is not a time from 0 to 999999 s"),
    (LABELS, EVENTS + "a,audible,0:01,0:03,dog\n", "events.csv, line 2: '0:01' is not a time from 0 to 999999 s"),
    (LABELS, EVENTS + "a,audible,nan,1,dog\n", "events.csv, line 2: 'nan' is not a time from 0 to 999999 s"),
    (LABELS, EVENTS + "a,audible,3,1,dog\n", "events.csv, line 2: the event ends at 1 s, not after 3 s"),
    (LABELS, EVENTS + "a,audible,1,1,dog\n", "events.csv, line 2: the event ends at 1 s, not after 1 s"),
    (LABELS, EVENTS + "".join(f"{v},audible,0,1,dog\n" for v in "abcd"), "labels.csv: no video to train on"),
])
def test_bad_csv_is_one_sentence_with_file_and_line(tmp_path, labels, events, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        read(tmp_path, labels, events)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path))


def test_template_lists_the_videos_and_filled_in_is_what_is_read(tmp_path, capsys):
    (tmp_path / "clips/more").mkdir(parents=True)
    for file in ("a.mp4", "b.MKV", "more/c.mp4", ".hidden.mp4"):
        (tmp_path / "clips" / file).touch()
    features.main(["template", str(tmp_path / "clips"), str(tmp_path)])
    tables = {name: (tmp_path / name).read_text(encoding="utf-8-sig") for name in ("labels.csv", "events.csv")}
    assert tables["labels.csv"].splitlines() == ["video,labels", "a.mp4,", "b.MKV,", "more/c.mp4,"]
    assert tables["events.csv"].splitlines() == ["video,modality,onset,offset,label", "a.mp4,,,,", "b.MKV,,,,", "more/c.mp4,,,,"]
    with pytest.raises(ValueError, match="labels.csv: no class in it yet"):
        annotations.read_classes(str(tmp_path))
    labels = tables["labels.csv"].replace("a.mp4,", "a.mp4,dog").replace("c.mp4,", "c.mp4,door bell; dog")
    own, _ = read(tmp_path, labels, tables["events.csv"].replace("c.mp4,,,,", "c.mp4,audible,1,2,dog"), LENGTHS | {"more/c": 4})
    assert own.train.ids == ["a", "b"] and own.val.ids == ["more/c"] and own.val.audio[0, :, 0].tolist() == [0, 1, 0, 0]
    assert annotations.read_classes(str(tmp_path)) == ["dog", "door bell"]
    (tmp_path / "classes.txt").write_text("door bell\ndog\n")  # goes before it
    assert annotations.read_classes(str(tmp_path)) == ["door bell", "dog"]
    with pytest.raises(SystemExit, match="labels.csv: is there already, and would be lost"):
        features.main(["template", str(tmp_path / "clips"), str(tmp_path)])


def test_videos_without_features_are_left_out_on_demand_with_their_events(tmp_path):
    events = EVENTS + "a,audible,0,1,dog\nx,audible,8,9,dog\n"
    own, reported = read(tmp_path, LABELS + "x,dog\n", events, missing="skip")
    assert own.val.ids == ["a"] and own.train.ids == ["b", "c", "d"] and "own data: 1 videos have no features (left out): x" in reported
    with pytest.raises(FileNotFoundError, match="1 of its videos have no features"):
        read(tmp_path, "video,labels\nx,dog\n", missing="skip")


def test_clips_of_different_lengths_are_refused_with_a_way_out(tmp_path):
    with pytest.raises(ValueError, match="its videos differ in length, c has 3 segments and a 4; .*--segments N"):
        read(tmp_path, LABELS, lengths=LENGTHS | {"c": 3})
    assert read(tmp_path, LABELS, lengths=LENGTHS | {"f": 3})[0].segments == 4  # f is not in labels.csv


# Control characters are refused, and an apostrophe before what a spreadsheet would compute is taken away (test_strangers.py).
cell = st.text(st.characters(codec="utf-8", exclude_characters=";", exclude_categories=["Cs"]), max_size=8).filter(
    lambda x: not files.CONTROL.search(x) and files.from_cell(x) == x)
name = cell.map(str.strip).filter(lambda x: x and not Path(x).suffix)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_table_that_makes_sense_is_read_as_it_was_meant(tmp_path_factory, data):
    """Against a slow reading of the same rows, second by second."""
    folder, T = tmp_path_factory.mktemp("own"), data.draw(st.integers(1, 6))
    classes = tuple(data.draw(st.lists(name, min_size=1, max_size=4, unique=True)))
    videos = data.draw(st.lists(name.filter(files.is_plain_name), min_size=2, max_size=6, unique=True))
    labels = {v: data.draw(st.lists(st.sampled_from(classes), max_size=3)) for v in videos}
    event = st.tuples(st.sampled_from(videos[1:]), st.sampled_from(list(annotations.MODALITIES)), st.integers(0, T - 1), st.integers(1, 3),
                      st.sampled_from(classes))
    events = [(v, m, a, a + n, c) for v, m, a, n, c in data.draw(st.lists(event, max_size=5, unique=True))]
    style = dict(delimiter=data.draw(st.sampled_from(",;\t")), lineterminator=data.draw(st.sampled_from(["\n", "\r\n"])),
                 quoting=data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])))
    tables = {"labels": [("video", "labels"), *((v, ";".join(x)) for v, x in labels.items())],
              "events": [("video", "modality", "onset", "offset", "label"), *events]}
    for file, rows in tables.items():
        with open(folder / f"{file}.csv", "w", newline="", encoding=data.draw(st.sampled_from(["utf-8", "utf-8-sig"]))) as f:
            csv.writer(f, **style).writerows(rows)
    own = annotations.read_own(folder, classes, dict.fromkeys(videos, T), report=lambda line: None)
    dated = [v for v in videos if any(e[0] == v for e in events)]
    assert own.train.ids == [v for v in videos if v not in dated] and (own.val.ids if own.val else []) == dated
    for split in own.splits.values():
        for n, v in enumerate(split.ids):
            for c, label in enumerate(classes):
                for m, (names, truth) in enumerate(((("audible", "audio", "both"), split.audio), (("visible", "visual", "both"), split.visual))):
                    for t in range(T) if truth is not None else ():
                        expected = any(e[0] == v and e[1] in names and e[2] <= t < e[3] and e[4] == label for e in events)
                        assert truth[n, t, c] == expected, (v, label, m, t)
                inside = any(e[0] == v and e[4] == label and e[2] < T for e in events)
                assert split.weak[n, c] == (label in labels[v] or inside)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=80), st.text("ab,;\t\n\" dog1.-", max_size=60).map(str.encode)), st.booleans())
def test_any_bytes_give_a_sentence_or_a_dataset(tmp_path_factory, content, is_events):
    folder = tmp_path_factory.mktemp("own")
    head = EVENTS.encode() if is_events else b"video,labels\n"
    (folder / "labels.csv").write_bytes(b"video,labels\na,dog\nb,dog\n" if is_events else head + content)
    if is_events:
        (folder / "events.csv").write_bytes(head + content)
    try:
        own = annotations.read_own(folder, CLASSES, LENGTHS, report=lambda line: None)
    except (ValueError, FileNotFoundError) as error:
        assert str(error).startswith(str(folder)) and "\n" not in str(error)
    else:
        assert own.train.ids and {v for s in own.splits.values() for v in s.ids} <= LENGTHS.keys()


# ---- pack ----

HAND = ("video,labels\n" + "".join(f"{v},{x}\n" for v, x in zip("abcdef", ("dog", "bell", "dog;bell", "", "dog", "bell"))),
        EVENTS + "e,audible,0,2,dog\ne,visible,1,3,dog\nf,audible,2,4,bell\n")


def test_pack_makes_a_target_without_a_source(tmp_path, capsys):
    own = write_own(tmp_path / "own", *HAND)
    index = pack.pack(own, tmp_path / "data", workers=1)
    assert index["source"] == "own data" and "unav" not in index and index["llp"]["segments"] == 4
    assert index["llp"]["videos"] == {"train": list("abcd"), "val": list("ef")} and index["llp"]["classes"] == ["dog", "bell"]
    assert "own data: 4 videos in train, 2 videos in val; 4 segments each, 2 classes" in capsys.readouterr().out
    for name, file in (("clap", "CLAP"), ("clip", "CLIP")):
        original = np.load(own / f"feats_{file}/segment_feats/f.npy")
        np.testing.assert_allclose(np.load(tmp_path / f"data/llp/val/{name}.npy")[1], original, atol=2e-3)
    assert np.load(tmp_path / "data/llp/val/visual.npy")[0, :, 0].tolist() == [0, 1, 1, 0]
    assert not (tmp_path / "data/unav").exists() and not (tmp_path / "data/llp/test").exists()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*")}
    pack.pack(own, tmp_path / "data", workers=1)
    assert "already complete" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*")}


def test_features_of_other_weights_are_packed_anew_on_demand_and_random_ones_are_marked(tmp_path, capsys):
    own = write_own(tmp_path / "own", *HAND)
    pack.pack(own, tmp_path / "data", workers=1)
    write = np.zeros((4, 512), np.float32)
    np.save(own / "feats_CLAP/segment_feats/a.npy", write)
    files.write_json(own / "extract.json", {"clap_weights": {"weights": "random"}})
    with pytest.raises(ValueError, match="--replace"):
        pack.pack(own, tmp_path / "data", workers=1)
    index = pack.pack(own, tmp_path / "data", workers=1, replace=True)
    assert index["source"] == "own data, encoders with random weights" and "RANDOM WEIGHTS" in capsys.readouterr().err
    assert not np.load(tmp_path / "data/llp/train/clap.npy")[0].any()


@pytest.mark.parametrize("damage, message", [
    (lambda own: (own / "text.json").unlink(), "text.json: no such file; make it with `python features.py text CLASSES"),
    (lambda own: (own / "text.json").write_text("{}"), "text.json: damaged"),
    (lambda own: (own / "labels.csv").unlink(), "has neither labels.csv .* nor LLP/"),
    (lambda own: (own / "feats_CLIP/segment_feats/b.npy").unlink(), "1 of its videos have no features in .*: b"),
    (lambda own: np.save(own / "feats_CLIP/segment_feats/b.npy", np.ones((3, 768), np.float32)), r"b.npy: has shape \(3, 768\)"),
    (lambda own: (own / "feats_CLAP/segment_feats/b.npy").write_bytes(b"\x93NUMPY"), "b.npy: not a complete .npy file"),
    (lambda own: (own / "text.json").write_text('{"classes": ["dog", "bell", "cat"]}'), r"all_event_feats.npy: has shape \(2, 512\)"),
])
def test_incomplete_folder_is_one_sentence(tmp_path, damage, message):
    own = write_own(tmp_path / "own", *HAND)
    damage(own)
    with pytest.raises(SystemExit) as stop:
        features.main(["pack", str(own), str(tmp_path / "data"), "--workers", "1"])
    assert stop.value.code.startswith("error: ") and "\n" not in stop.value.code
    assert re.search(message, stop.value.code), stop.value.code
    assert not (tmp_path / "data/index.json").exists()


# ---- thresholds ----


def test_thresholds_from_weak_labels_by_hand():
    """Four videos of two seconds. Highest logits of class 0: 3 and 1 where it is, 2 and 0 where it is not."""
    logit = torch.tensor([[[3, 0], [-9, 1]], [[0, -5], [1, -5]], [[2, 4], [2, 0]], [[-7, 0], [0, 2]]], dtype=torch.float32)
    weak = torch.tensor([[1, 1], [1, 1], [0, 1], [0, 1]], dtype=torch.float32)
    threshold, f1 = stages.weak_thresholds(logit, weak)
    # Class 0: above 2.5 one of two found, F1 2/3; above 1.5 one right of two, 1/2; above 0.5 both and one too many, 4/5; all 2/3.
    assert threshold[0] == 0.5 and f1[0] == pytest.approx(0.8)
    assert threshold[1] == -torch.inf and f1[1] == 1  # every video has class 1: nothing to tell it from


@pytest.fixture
def packed(tmp_path) -> Path:
    """Class 0 is annotated as audible and visible, class 1 as audible only, class 2 not at all."""
    labels = "video,labels\na,dog\nb,bell\nc,dog;bell;drill\nd,\ne,dog;bell\nf,drill\n"
    events = EVENTS + "e,both,0,2,dog\ne,audible,2,4,bell\n"
    pack.pack(write_own(tmp_path / "own", labels, events, ("dog", "bell", "drill")), tmp_path / "data", workers=1)
    return tmp_path / "data"


def test_each_class_and_modality_has_its_threshold_from_where_it_can(packed, tmp_path, capsys):
    cli.main(["label", str(packed), str(tmp_path / "run"), "--per-segment", "--device", "cpu"])
    path = tmp_path / "run/labels_segment.npz"
    labels = stages.read_labels(path, "cpu")
    assert labels.weakly == {"audio": ["drill"], "visual": ["bell", "drill"]} and set(stages.label_scores(path, packed, "val")) == set(uwav.SCORES)
    printed = capsys.readouterr().out
    assert "thresholds from weak labels alone: audio of drill, visual of bell; drill" in printed and "hard labels on val: seg_a" in printed
    train, val = (splits.load_target(packed, s, "clip_clap", "cpu") for s in ("train", "val"))
    for m, (truth, from_val) in enumerate(((val.audio_truth, [0, 1]), (val.visual_truth, [0]))):
        fitted = uwav.fit_thresholds(labels.logits["val"][m], truth, val.weak)[0]
        fallback = stages.weak_thresholds(labels.logits["train"][m], train.weak)[0]
        expected = [fitted[c] if c in from_val else fallback[c] for c in range(3)]
        assert labels.thresholds[m].tolist() == [float(x) for x in expected]
        assert fitted[0] != fallback[0], "or this test could not fail"


@pytest.mark.parametrize("rule", ["weak", "all"])
def test_rules_that_ignore_the_annotations(packed, tmp_path, rule):
    cli.main(["label", str(packed), str(tmp_path), "--per-segment", "--thresholds", rule, "--device", "cpu"])
    labels, train = stages.read_labels(tmp_path / "labels_segment.npz", "cpu"), splits.load_target(packed, "train", "clip_clap", "cpu")
    for m in range(2):  # audio, visual
        expected = stages.weak_thresholds(labels.logits["train"][m], train.weak)[0]
        assert torch.equal(labels.thresholds[m], expected if rule == "weak" else torch.full((3,), -torch.inf))
    with pytest.raises(SystemExit, match="made with other settings"):
        cli.main(["label", str(packed), str(tmp_path), "--per-segment", "--device", "cpu"])


def test_llp_keeps_the_published_rule(finished):
    path = finished / "seed0/labels_teacher.npz"
    labels, val = stages.read_labels(path, "cpu"), splits.load_target(finished / "data", "val", "clip_clap", "cpu")
    unseen = ~val.visual_truth.bool().flatten(0, 1).any(0)
    assert unseen.any() and (labels.thresholds[1][unseen] == -torch.inf).all()
    assert labels.weakly == {"audio": [], "visual": []}


# ---- training without annotated videos ----


def test_without_annotated_videos_the_last_epoch_is_kept_and_nothing_is_scored(tmp_path, capsys):
    own = write_own(tmp_path / "own", "video,labels\n" + "".join(f"{v},{'dog' if v in 'abc' else 'bell'}\n" for v in "abcdef"))
    pack.pack(own, tmp_path / "data", workers=1)
    arguments = [str(tmp_path / "data"), str(tmp_path / "run")]
    cli.main(["label", *arguments, "--per-segment", "--device", "cpu"])
    original, kept = checkpoints.Run.end_epoch, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Run, "end_epoch", lambda self, record, score: (
            original(self, record, score), kept.append({k: v.clone() for k, v in self.model.state_dict().items()})))
        cli.main(["train", *arguments, "--labels", str(tmp_path / "run/labels_segment.npz"), *SMALL, "--set", "epochs=3"])
    assert checkpoints.load_file(tmp_path / "run/han.pt")["settings"]["features"] == "clip_clap"  # all there is
    weights = checkpoints.load_file(tmp_path / "run/han.pt")["weights"]
    assert len(kept) == 3 and all(torch.equal(weights[k], kept[2][k]) for k in weights)
    assert any(not torch.equal(weights[k], kept[1][k]) for k in weights)
    assert "no annotated video to choose an epoch by, the last one is kept" in capsys.readouterr().out
    for command, message in ((["evaluate", arguments[0], f"{arguments[1]}/han.pt"], "has no annotated split test to score, only training videos"),
                             (["pretrain", *arguments], "your own data have no UnAV part to pre-train on"),
                             (["ablate", *arguments], "your own data have no UnAV part to pre-train on")):
        with pytest.raises(SystemExit, match=message) as stop:
            cli.main(command)
        assert stop.value.code.startswith("error: ") and "\n" not in stop.value.code


def test_a_parser_that_predicts_nothing_is_warned_of_beside_the_scores_of_silence(tmp_path, capsys):
    """Two annotated videos of which one has no event: silence is right in half of them."""
    own = write_own(tmp_path / "own", "video,labels,split\na,dog,\nb,bell,\nc,dog,val\nd,,val\n", "video,modality,onset,offset,label\nc,both,0,2,dog\n")
    pack.pack(own, tmp_path / "data", workers=1)
    silent = uwav.HAN(uwav.HANConfig(classes=2, audio_dim=512, visual_2d_dim=768, visual_3d_dim=0, hidden=16, heads=2, feedforward=16, layers=1))
    torch.nn.init.constant_(silent.classifier.bias, -50.0)
    torch.save(dict(kind="HAN", config=asdict(silent.config), weights=silent.state_dict(), settings=None), tmp_path / "han.pt")
    cli.main(["evaluate", str(tmp_path / "data"), str(tmp_path / "han.pt"), "--split", "val", "--device", "cpu"])
    said = capsys.readouterr().out
    assert "predicts no event at all; these are the scores of silence" in said
    assert said.count("seg_a 50.0  seg_v 50.0  seg_av 50.0  seg_type 50.0") == 2, said  # its own, and those of nothing at all


def test_report_of_a_parser_without_a_teacher_judged_on_a_test_split_of_ones_own(tmp_path):
    rows = "".join(f"{v},{'dog' if v in 'ace' else 'bell'},{'test' if v in 'ef' else ''}\n" for v in "abcdef")
    events = "".join(f"{v},both,0,2,{'dog' if v == 'e' else 'bell'}\n" for v in "def")
    own = write_own(tmp_path / "own", "video,labels,split\n" + rows, "video,modality,onset,offset,label\n" + events)
    run, han = tmp_path / "run", tmp_path / "run/seed0/clip_clap/valor"
    pack.pack(own, run / "data", workers=1)
    cli.main(["label", str(run / "data"), str(run / "seed0"), "--per-segment", "--device", "cpu"])
    cli.main(["train", str(run / "data"), str(han), "--labels", str(run / "seed0/labels_segment.npz"), "--setting", "binary", *SMALL, "--set", "epochs=3"])
    cli.main(["evaluate", str(run / "data"), str(han / "han.pt"), "--split", "test", "--device", "cpu"])
    report.main([str(run)])
    page = (run / "report.html").read_text()
    first = re.sub("<[^>]+>", " ", page[page.index('id="section1"'):page.index('id="section2"')])
    assert "6 clips of 4 s, 2 classes" in first and "annotated: 1 (val), 2 (test)" in first and "single seconds, without a teacher" in first
    assert "they flatter" not in first and 'id="timelines"' in page and 'id="reliability"' in page
    assert "w_pos" not in page  # of no use in this training


# ---- the parser's windows are as long as the clips it was trained on ----


# ---- the whole path, by the commands of the README ----

TINY = ROOT / "tests/helpers/tiny_extract.py"
TONES = {"whistle": 3000.0, "door bell": 700.0, "hum": 80.0}  # class -> Hz


def command(*arguments: object) -> str:
    result = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """OWN, made of 12 clips of 3 to 4.2 s by `extract` and `text`, a small CLIP and a real CLAP of random weights."""
    need("av", "open_clip", "laion_clap", "onnx", "onnxscript", "onnxruntime")
    import clips

    folder = tmp_path_factory.mktemp("own")
    (folder / "VIDEOS").mkdir()
    (folder / "OWN").mkdir()
    rows, annotated = [("video", "labels")], [("video", "modality", "onset", "offset", "label")]
    for n in range(12):
        label, seconds = list(TONES)[n % 3], 4.2 if n % 2 else 3.0
        clips.make(folder / f"VIDEOS/clip{n:02d}.mp4", seconds, 10, sound=clips.tone(seconds, frequency=TONES[label] * (1 + 0.01 * n))[None])
        rows.append((f"clip{n:02d}.mp4", label))
        if n >= 9:
            annotated += [(f"clip{n:02d}", "audible", 0, 3, label)] + [(f"clip{n:02d}", "visible", 0.5, 2, label)] * (label != "hum")
    clips.make(folder / "VIDEOS/brief.mp4", 1.5, 10, sound=clips.tone(1.5)[None])
    for file, table in (("labels", rows), ("events", annotated)):
        with open(folder / f"OWN/{file}.csv", "w", newline="", encoding="utf-8-sig") as f:
            csv.writer(f, delimiter=";").writerows(table)
    (folder / "classes.txt").write_text("\n".join(TONES))
    printed = command(TINY, "extract", folder / "VIDEOS", folder / "OWN", "--segments", 3)
    assert "12 videos: 12 have features" in printed and "6  of the new ones last longer than their segments" in printed
    assert "1 files are not in labels.csv, and not embedded: brief" in printed
    command(TINY, "text", folder / "classes.txt", folder / "OWN")
    return folder


@pytest.mark.parametrize("annotated", [True, False], ids=["some videos annotated", "none annotated"])
def test_from_ones_own_videos_to_events_of_a_new_one(own, finished, bundle, annotated, tmp_path, monkeypatch, capsys):
    import clips
    import onnx
    import export_onnx
    import tiny_extract

    shutil.copytree(own / "OWN", tmp_path / "OWN")
    if not annotated:
        (tmp_path / "OWN/events.csv").unlink()
    run, han = tmp_path / "run", tmp_path / "run/seed0/clip_clap/full"
    printed = command("features.py", "pack", tmp_path / "OWN", run / "data")
    assert f"own data: {'9 videos in train, 3 videos in val' if annotated else '12 videos in train'}; 3 segments each, 3 classes" in printed
    teacher = "uwav.py", "label", run / "data", run / "seed0", "--teacher", finished / "seed0/teacher.pt"
    refused = subprocess.run([sys.executable, *map(str, teacher)], capture_output=True, text=True, cwd=ROOT)
    assert refused.returncode == 1 and "this teacher has seen invented features only" in refused.stderr
    printed = command(*teacher, "--dry-run")
    assert ("visual of hum" in printed and "hard labels on val" in printed) if annotated else "audio of whistle; door bell; hum" in printed
    printed = command("uwav.py", "train", run / "data", han, "--labels", run / "seed0/labels_teacher.npz", "--features", "clip_clap", *SMALL,
                      "--set", "epochs=80", "--set", "peak_lr=0.01", "--set", "batch=4")
    assert ("best epoch" if annotated else "the last one is kept") in printed
    if annotated:
        scored = command("uwav.py", "evaluate", run / "data", han / "han.pt", "--split", "val")
        assert set(uwav.SCORES) <= files.read_sealed(han / "scores_val.json", "").keys()
        assert "for comparison, nothing at all" in scored and "for comparison, every weak label, all the time" in scored
        assert "A DRY RUN (a teacher of invented features; encoders with random weights)" in scored
    command("report.py", run)
    page = (run / "report.html").read_text()
    assert '<figure id="curves"' in page and "seen a teacher of invented features; encoders with random weights" in page
    assert ("last epoch was kept" in page) is not annotated and page.count("Missing in this run:") == (2 if annotated else 4)  # run_all.sh did not run
    first = re.sub("<[^>]+>", " ", page[page.index('id="section1"'):page.index('id="section2"')])
    assert "12 clips of 3 s, 3 classes" in first and "Labels come from a teacher" in first
    assert ("annotated: 3 (val)" in first and "nothing at all" in first) if annotated else "nothing can be scored" in first
    # The encoders take a minute to export: in one of the two cases. The other is given the features of a clip.
    weights = ["--int8"] if annotated else ["--clip-weights", "random", "--clap-weights", "random"]
    monkeypatch.setattr(export_onnx, "TRIED", ((1, 1), (2, 10)))  # that are compared with PyTorch; test_export.py has all
    trace = export_onnx.trace  # of encoders, the graphs that the same random weights gave before
    monkeypatch.setattr(export_onnx, "trace", lambda export, opset: onnx.load(export_onnx.file_of(bundle, export.name))
                        if export.name in export_onnx.ENCODER_GRAPHS else trace(export, opset))
    with tiny_extract.small_encoders():
        export_onnx.main([str(run), str(run / "bundle"), *weights])
    assert annotated or "clip_image: building, tracing and checking it takes minutes" in capsys.readouterr().out
    info = json.loads((run / "bundle/bundle.json").read_text())
    assert info["classes"] == list(TONES) and info["segments"] == 3 and "teacher" not in info["files"]
    assert info["dry_run"] == "a teacher of invented features; encoders with random weights"
    if annotated:
        assert info["files"]["parser_int8"]["measured"]["on"].startswith("the val split of own data, encoders with random weights")
        new, T = tmp_path / "new.npz", 3
        clap, clip = (np.load(own / f"OWN/feats_{name}/segment_feats/clip00.npy") for name in ("CLAP", "CLIP"))
        np.savez(new, audio=clap, visual_2d=clip)
    else:
        new, T = clips.make(tmp_path / "new.mp4", 5, 10, sound=clips.tone(5, frequency=3000)[None]), 5
    command("parse.py", new, "--bundle", run / "bundle", "--csv", tmp_path / "new.csv")
    with open(tmp_path / "new.csv", newline="") as file:
        events = list(csv.DictReader(file))
    assert {e["label"] for e in events} <= TONES.keys() and all(0 <= int(e["onset"]) < int(e["offset"]) <= T for e in events)
    assert events or annotated  # the epoch that is best on three videos, seen by random encoders, may predict nothing
