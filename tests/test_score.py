"""`uwav.py score`: anybody's table of events gets the scores of the field, and what is odd or wrong with it is said."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import parse
import uwav
from data import annotations, layout, splits
from field import coleaf
from slow import plain_scores
from sources import write_llp
from train import ablation, cli, stages

ROOT = Path(__file__).resolve().parents[1]
HEADER = ("video", "label", "modality", "onset", "offset")
CLASSES = annotations.LLP_CLASSES
PAGE = (ROOT / "docs/scoring.md").read_text(encoding="utf-8")


def runs(x: np.ndarray) -> list[tuple[int, int]]:
    """Maximal runs of a row of 0 and 1, second by second."""
    found, before = [], 0
    for t, now in enumerate([*x, 0]):
        if now and not before:
            first = t
        if before and not now:
            found.append((first, t))
        before = now
    return found


def rows_of(names: list[str], audio: np.ndarray, visual: np.ndarray, classes: tuple[str, ...] = CLASSES) -> list[tuple]:
    return [(name, classes[c], modality, *run) for modality, x in (("audible", audio), ("visible", visual))
            for n, name in enumerate(names) for c in np.flatnonzero(x[n].any(0)) for run in runs(x[n, :, c])]


def write(path: Path, rows: list[tuple], header: tuple[str, ...] = HEADER) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def scored(table: Path, folder: Path, *options: str) -> dict:
    out = table.parent / "out" / "scores.json"
    cli.main(["score", str(table), str(folder), "--json", str(out), *options])
    return json.loads(out.read_text())


def refused(table: Path, folder: Path, *options: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["score", str(table), str(folder), *options])
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
    return stop.value.code


@pytest.fixture(scope="module")
def llp(shared) -> annotations.LLP:
    return annotations.read_llp(shared / "data/llp", report=lambda line: None)


# ---- right ----


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_truth_written_as_a_table_scores_100_everywhere(shared, llp, tmp_path, split):
    truth = llp.splits[split]
    table = write(tmp_path / "truth.csv", rows_of(truth.ids, truth.audio, truth.visual))
    result = scored(table, shared / "data/llp", "--only", "--split", split)
    for kind in ("usual", "audible only, visible only"):
        assert set(result[kind]["scores"]) == set(uwav.SCORES) and set(result[kind]["scores"].values()) == {100.0}
        assert all(set(x.values()) == {100.0} for x in result[kind]["videos"].values()) and list(result[kind]["videos"]) == truth.ids
        assert list(result[kind]["classes"]) == list(CLASSES)
        assert all({v for k, v in x.items() if k != "videos"} == {100.0} for x in result[kind]["classes"].values())
    assert result["read"] == dict(named=len({*truth.ids}) - result["read"]["silent"], silent=result["read"]["silent"], odd={})


def test_silence_and_every_weak_label_score_what_the_page_says(shared, llp, tmp_path, capsys):
    test, everywhere = llp.test, np.repeat(llp.test.weak[:, None], 10, 1)
    tables = {"nothing at all": write(tmp_path / "silence.csv", []),
              "every weak label, all the time": write(tmp_path / "weak.csv", rows_of(test.ids, everywhere, everywhere))}
    for title, table in tables.items():
        result = scored(table, shared / "data/llp", "--only")
        for kind, x in (("usual", result["usual"]), ("only", result["audible only, visible only"])):
            assert x["scores"] == pytest.approx(x["trivial"][title]), "the line beside it is the same prediction"
            name = title if kind == "usual" else f"{title}, audible only and visible only"
            assert "| " + " | ".join([name, *(f"{v:.1f}" for v in x["scores"].values())]) + " |" in PAGE
        assert re.search(r"^nothing at all +0\.5 +10\.1 +14\.5 .*^every weak label, all the time +76\.1 ", capsys.readouterr().out, re.M | re.S)
    only = scored(tables["nothing at all"], shared / "data/llp", "--only")["audible only, visible only"]["scores"]
    none = [100 * (x.sum((1, 2)) == 0).mean() for x in (test.audio & ~test.visual & 1, test.visual & ~test.audio & 1)]  # of what nothing is
    assert [only["seg_a"], only["seg_v"], only["event_a"], only["event_v"]] == pytest.approx(none * 2) and [round(x, 1) for x in none] == [38.1, 65.6]


def test_predictions_of_a_run_written_as_a_table_get_the_very_scores_of_evaluate(finished, tmp_path):
    index = layout.read_index(finished / "data")
    ids, classes = index["llp"]["videos"], tuple(index["llp"]["classes"])
    folder, weak = tmp_path / "llp", {s: splits.load_weak(finished / "data", s).numpy() for s in annotations.LLP_WEAK_FILES}
    files = {file.removesuffix(".csv"): "".join(f"{v}_0_10\t{','.join(classes[c] for c in np.flatnonzero(weak[s][n]))}\n" for n, v in enumerate(ids[s]))
             for s, file in annotations.LLP_WEAK_FILES.items()}
    truth = {s: [x.numpy() for x in splits.load_truth(finished / "data", s)] for s in ("val", "test")}
    for m, file in enumerate(annotations.LLP_DENSE_FILES.values()):
        rows = [(f"{v}_0_10", a, b, classes[c]) for s in truth for n, v in enumerate(ids[s]) for c in range(25) for a, b in runs(truth[s][m][n, :, c])]
        files[file.removesuffix(".csv")] = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    write_llp(folder, **files)
    place = finished / "seed0/clip_clap/full"
    predicted = [x.numpy() for x in stages.read_predictions(place / "predictions_test.npz", finished / "data")]
    result = scored(write(tmp_path / "run.csv", rows_of(ids["test"], *predicted)), folder)
    saved = json.loads((place / "scores_test.json").read_text())
    assert any(x.any() for x in predicted) and result["usual"]["scores"] == {name: saved[name] for name in uwav.SCORES}


@pytest.mark.parametrize("seed, T, C, density", [(0, 10, 3, 0.3), (1, 7, 2, 0.6), (2, 23, 4, 0.1), (3, 1, 1, 0.5), (4, 40, 5, 0.5)])
def test_random_tables_score_what_the_slow_version_finds(tmp_path, seed, T, C, density):
    """Rows overlap, repeat, say `both` and have fractions; the truth is a table, too. Drawn here second by second."""
    rng, classes = np.random.default_rng(seed), tuple(f"class {c}" for c in range(C))
    videos = [f"v{n}" for n in range(9)]

    def random_table() -> tuple[list[tuple], np.ndarray]:
        rows, drawn = [], np.zeros((2, len(videos), T, C), bool)
        for _ in range(int(density * len(videos) * C * 4) + 2):
            n, c, modality = rng.integers(len(videos)), rng.integers(C), rng.choice(list(annotations.MODALITIES))
            onset, length = rng.integers(0, 10 * T) / 10, rng.integers(1, 30) / 10
            offset = min(float(T), round(onset + length, 1))
            rows.append((videos[n], classes[c], modality, onset, offset))
            for t in range(T):
                if t + 1 > onset and t < offset:
                    drawn[[m for m, names in enumerate((("audible", "audio", "both"), ("visible", "visual", "both"))) if modality in names], n, t, c] = True
        return rows, drawn

    (true_rows, truth), (rows, predicted), (other_rows, other) = (random_table() for _ in range(3))
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "classes.txt").write_text("\n".join(classes))
    write(folder / "events.csv", true_rows)
    write(folder / "labels.csv", [(f"{v}.mp4", classes[0], "test") for v in videos], ("video", "labels", "split"))
    if T > 1:  # the last second of all: nothing else says how long the videos are
        (folder / "events.csv").open("a").write(f"v0,{classes[0]},both,{T - 1},{T}\n")
        truth[:, 0, T - 1, 0] = True
    result = scored(write(tmp_path / "p.csv", rows), folder, "--only", "--against", str(write(tmp_path / "q.csv", other_rows)))
    usual, only = result["usual"], result["audible only, visible only"]
    assert usual["scores"] == uwav.parsing_scores(*map(torch.from_numpy, (*predicted, *truth))) == pytest.approx(plain_scores(*predicted, *truth), abs=1e-6)
    assert usual["against"]["scores"] == pytest.approx(plain_scores(*other, *truth), abs=1e-6)
    alone = plain_scores(*(x & ~y for x, y in (predicted, predicted[::-1], truth, truth[::-1])))
    for level in ("seg", "event"):
        alone[f"{level}_av"] = usual["scores"][f"{level}_av"]
        alone[f"{level}_type"] = sum(alone[f"{level}_{kind}"] for kind in ("a", "v", "av")) / 3
    assert only["scores"] == pytest.approx(alone, abs=1e-6)
    for n, video in enumerate(videos):
        assert usual["videos"][video] == pytest.approx(plain_scores(*(x[n : n + 1] for x in (*predicted, *truth))), abs=1e-6)
    for c, name in enumerate(classes):
        x = [y[:, :, c : c + 1] for y in (*predicted, *truth)]
        there = [n for n in range(len(videos)) if any(y[n].any() for y in x)]
        wanted = plain_scores(*(y[there] for y in x)) if there else {}
        assert usual["classes"][name] == pytest.approx(dict(videos=len(there)) | wanted, abs=1e-6)


def test_scores_of_what_is_audible_only_and_visible_only_are_those_recorded(golden):
    recorded = golden("coleaf")
    for name in ("only", "eval"):  # 60 invented videos; 12 of a model
        arrays = (*recorded[f"{name}.pred"], *recorded[f"{name}.truth"])  # (N, T, C) each
        usual, only = recorded[f"{name}.scores"]  # the ten, and their mean, from 0 to 1 or in percent
        for scores, theirs in ((uwav.parsing_scores(*arrays), usual), (coleaf.only_scores(*arrays), only)):
            ours = [*scores.values()]
            assert [*ours, sum(ours) / 10] == pytest.approx((theirs * (1 if theirs.max() > 1 else 100)).tolist(), abs=1e-5)


# ---- odd, and understood ----

WEAK = "one00000001_0_10\tSpeech\ntwo00000002_20_30\tFrying_(food)\nsix-_6_7_8_3_13\tDog\n"
DENSE = "one00000001_0_10\t0\t6\tSpeech\ntwo00000002_20_30\t2\t9\tFrying_(food)\n"


@pytest.fixture
def small(tmp_path) -> Path:
    """LLP with three test videos: one, two and six."""
    return write_llp(tmp_path / "llp", AVVP_test_pd=WEAK, AVVP_eval_audio=DENSE, AVVP_eval_visual=DENSE)


PLAIN = "video,label,modality,onset,offset\none00000001,Speech,audible,0,4\ntwo00000002,Frying_(food),both,2,9\n"


@pytest.mark.parametrize("change", [
    lambda text: text.replace("one00000001", "one00000001_0_10").replace("two00000002", "two00000002_20_30"),
    lambda text: text.replace("one00000001", "one00000001_0_10.mp4").replace("two00000002", "two00000002.npz"),
    lambda text: text.replace("one00000001", "one00000001.WEBM"),
    lambda text: text.replace("Frying_(food)", "frying food"),
    lambda text: text.replace("Frying_(food)", "FRYING-FOOD").replace("Speech", "speech "),
    lambda text: text.replace("Frying_(food)", "Frying (Food)").replace("Speech", "SPEECH"),
    lambda text: text.replace("audible", "Audio"),
    lambda text: text.replace("both", "BOTH"),
    lambda text: text.replace(",", ";"),
    lambda text: text.replace(",", "\t"),
    lambda text: text.replace(",", ";").replace(";0;4", ";0,0;4,0"),
    lambda text: "\ufeff" + text.replace("\n", "\r\n"),
    lambda text: text.replace("\n", "\r"),
    lambda text: "\n\n" + text.replace("\n", "\n\n"),
    lambda text: text.replace("\n", ",,\n").replace("offset,,", "offset,probability,note").replace("9,,", '9,0.25,"a, b"'),
    lambda text: text.replace("video", "Video").replace("label", " LABEL "),
    lambda text: "\n".join(",".join(line.split(",")[::-1]) for line in text.splitlines()),
    lambda text: text + "six-_6_7_8,,,,\n",
])
def test_the_same_table_written_otherwise_scores_the_same(small, tmp_path, change):
    plain, other = tmp_path / "plain.csv", tmp_path / "other.csv"
    plain.write_text(PLAIN)
    other.write_bytes(change(PLAIN).encode())
    expected, result = scored(plain, small), scored(other, small)
    assert change(PLAIN) != PLAIN and result["usual"] == expected["usual"] and result["usual"]["scores"]["seg_a"] > 50
    assert result["read"]["odd"] == {} and result["read"]["named"] == (3 if "six" in change(PLAIN) else 2)


@pytest.mark.parametrize("more, told", [
    ("one00000001,Speech,audible,0,4\n", "1 rows of audible repeat, overlap or touch what rows before say of their class .joined., the first at FILE, line 4"),
    ("one00000001,Speech,audible,3,6\none00000001,speech,audio,2,3\n", "1 rows of audible repeat, .* line 4$"),
    ("one00000001,Speech,audible,4,6\n", "1 rows of audible repeat, .* line 4$"),
    ("one00000001,Speech,both,1,3\n", "1 rows of both repeat, .* line 4$"),
    ("two00000002,Frying_(food),visible,3,4\ntwo00000002,Frying_(food),visible,8,10\n", "2 rows of visible repeat, .* line 4$"),
    ("one00000001,Dog,visible,2.5,4\n", "1 rows have fractions of seconds .a second that is touched counts., the first at FILE, line 4"),
    ("one00000001,Dog,visible,0,0.001\none00000001,Cat,visible,2,2.75\n", "2 rows have fractions of seconds .* line 4$"),
    ("one00000001,Dog,visible,8,12\n", "1 rows reach beyond the last segment of their video .cut there., the first at FILE, line 4"),
    ("one00000001,Dog,visible,8,10\none00000001,Dog,audible,10,11\n", "1 rows reach beyond .* line 5$"),
    ("one00000001,Dog,visible,0,10.01\n", "1 rows reach beyond .* line 4$"),
    ("", "of 3 videos of test, 2 are named and 1 silent, without any event"),
    ("six-_6_7_8,,,,\n", "of 3 videos of test, 3 are named and 1 silent, without any event"),
    ("six-_6_7_8_3_13,Dog,visible,3,5\n", "of 3 videos of test, 3 are named and 0 silent, without any event"),
])
def test_what_is_odd_is_joined_or_cut_and_counted_aloud(small, tmp_path, capsys, more, told):
    table = tmp_path / "p.csv"
    table.write_text(PLAIN + more)
    result, said = scored(table, small), capsys.readouterr().out
    assert re.search(rf"^{re.escape(str(table))}: {told.replace('FILE', re.escape(str(table)))}", said, re.M), said
    drawn = np.zeros((2, 3, 10, 25), bool)  # second by second
    for video, label, modality, onset, offset in (line.split(",") for line in (PLAIN + more).splitlines()[1:] if ",," not in line):
        n, c = ("one", "two", "six").index(video[:3]), CLASSES.index(label.replace("speech", "Speech"))
        for t in (t for t in range(10) if t + 1 > float(onset) and t < float(offset)):
            drawn[[0, 1] if modality == "both" else int(modality == "visible"), n, t, c] = True
    truth = annotations.read_llp(small, report=lambda line: None).test
    assert result["usual"]["scores"] == pytest.approx(plain_scores(*drawn, truth.audio > 0, truth.visual > 0), abs=1e-6)


@pytest.mark.parametrize("rows, cause", [
    ("one00000009,Speech,audible,0,4\n", "line 2: 'one00000009' is no video of split test; did you mean one00000001"),
    ("ONE00000001,Speech,audible,0,4\n", "line 2: 'ONE00000001' is no video of split test; did you mean one00000001"),
    ("two00000002_21_31,Speech,audible,0,4\n", "line 2: 'two00000002_21_31' is no .*; did you mean two00000002_20_30"),
    ("two00000002_30_40.mp4,Speech,audible,0,4\n", "line 2: .*; did you mean two00000002_20_30"),
    ("val00000001,Cat,audible,0,4\n", "line 2: 'val00000001' is no video of split test, but of val"),
    ("a-_b_c_d_e1_20_30,Cat,audible,0,4\n", "line 2: 'a-_b_c_d_e1_20_30' is no video of split test, but of train"),
    ("../one00000001,Speech,audible,0,4\n", "line 2: '../one00000001' is no video"),
    (",Speech,audible,0,4\n", "line 2: '' is no video"),
    ("one00000001,Speach,audible,0,4\n", "line 2: unknown class 'Speach'; .*; did you mean speech"),
    ("one00000001,Violin,audible,0,4\n", "line 2: unknown class 'Violin'; .*; did you mean violin fiddle"),
    ("one00000001,guitar,audible,0,4\n", "line 2: unknown class 'guitar'; .*; did you mean acoustic guitar"),
    ("one00000001,Baby cry,audible,0,4\n", "line 2: unknown class 'Baby cry'; .*; did you mean baby cry infant cry"),
    ('one00000001,"Speech,Dog",audible,0,4\n', "line 2: unknown class 'Speech,Dog'"),
    ("one00000001,0,audible,0,4\n", "line 2: unknown class '0'"),
    ("one00000001,Speech,audible,0,4\none00000001,,audible,0,4\n", "line 3: nothing in the column label"),
    ("one00000001,Speech,,0,4\n", "line 2: nothing in the column modality"),
    ("one00000001,Speech,audible,,\n", "line 2: nothing in the column onset and the column offset"),
    ("one00000001,Speech,av,0,4\n", "line 2: modality is 'av', not audible, visible or both"),
    ("one00000001,Speech,audible,4,4\n", "line 2: the event ends at 4 s, not after 4 s"),
    ("one00000001,Speech,audible,9,2\n", "line 2: the event ends at 2 s, not after 9 s"),
    ("one00000001,Speech,audible,-1,2\n", "line 2: '-1' is not a time"),
    ("one00000001,Speech,audible,0,nan\n", "line 2: 'nan' is not a time"),
    ("one00000001,Speech,audible,0:00,0:04\n", "line 2: '0:00' is not a time"),
    ("one00000001,Speech,audible,0,1e9\n", "line 2: '1e9' is not a time"),
    ("one00000001,Speech,audible,0\n", "line 2: 4 cells, but the header line has 5"),
])
def test_what_cannot_be_meant_is_one_sentence_with_the_line_and_what_was_meant(small, tmp_path, rows, cause):
    table = tmp_path / "p.csv"
    table.write_text(",".join(HEADER) + "\n" + rows)
    assert re.match(rf"error: {re.escape(str(table))}, {cause}", refused(table, small))


@pytest.mark.parametrize("probability", ["1.5", "-0.1", "nan", "inf", "85", "85%", "high", "1e3", "1,01"])
def test_a_probability_that_is_none_is_refused_and_any_other_plays_no_part(small, tmp_path, probability):
    table = write(tmp_path / "p.csv", [("one00000001", "Speech", "audible", 0, 4, p) for p in ("0", "0.5", "1.0", "9.5e-05", "", ".25", "0,75", probability)],
                  (*HEADER, "probability"))
    assert f"{table}, line 9: probability is '{probability}', not a number from 0 to 1" in refused(table, small)
    header = (*HEADER, "confidence")
    other = write(tmp_path / "q.csv", [("one00000001", "Speech", "audible", 0, 4, probability)], header)
    assert scored(other, small)["usual"] == scored(write(tmp_path / "r.csv", [("one00000001", "Speech", "audible", 0, 4)]), small)["usual"]


@pytest.mark.parametrize("content, cause", [
    (PLAIN.encode("utf-16"), "not a csv file in UTF-8 .but in UTF-16 or an older encoding; in the spreadsheet choose Save as, CSV UTF-8"),
    (PLAIN.encode("utf-16-le"), "but in UTF-16 or an older encoding"),
    (PLAIN.encode("utf-32"), "but in UTF-16 or an older encoding"),
    (PLAIN.replace("Speech", "Ködel").encode("latin-1"), "not a csv file in UTF-8"),
    (b"", "the header line must have the column video and the column modality"),
    (PLAIN.replace("video,", "id,").encode(), "the header line must have the column video, once"),
    (PLAIN.replace("onset", "video").encode(), "the header line must have the column video and the column onset, once"),
    (PLAIN.replace(",", "|").encode(), "the header line must have the column video"),
    (b'{"format": 1}', "the header line must have the column video"),
    (PLAIN.encode() + b'"one00000001,Speech', "not a csv file in UTF-8"),
])
def test_a_file_that_is_no_such_table_is_one_sentence_that_names_it(small, tmp_path, content, cause):
    (tmp_path / "p.csv").write_bytes(content)
    assert re.match(rf"error: {re.escape(str(tmp_path / 'p.csv'))}: .*{cause}", refused(tmp_path / "p.csv", small))


def test_other_things_that_are_not_there_are_one_sentence(small, tmp_path):
    assert refused(tmp_path / "none.csv", small) == f"error: {tmp_path}/none.csv: no such file"
    table = write(tmp_path / "p.csv", [])
    assert "AVVP_train.csv: no such file" in refused(table, tmp_path)
    (tmp_path / "empty").mkdir()
    assert "empty: no .csv and no .json file in it" in refused(tmp_path / "empty", small)
    assert "p.csv: is among the predictions" in refused(table, small, "--json", str(table)) and table.read_text().startswith("video")
    (tmp_path / "own").mkdir()
    write(tmp_path / "own/labels.csv", [("a", "dog"), ("b", "bell")], ("video", "labels"))
    write(tmp_path / "own/events.csv", [("a", "dog", "both", 0, 14)])
    assert "own: has no annotated video of split test to score" in refused(table, tmp_path / "own")
    assert scored(write(tmp_path / "q.csv", [("a.mp4", "Dog", "both", 0, 14)]), tmp_path / "own", "--split", "val")["usual"]["scores"]["event_event"] == 100


# ---- files of parse.py, two tables, the command ----


def test_a_folder_of_what_parse_py_writes_is_scored_as_one_table(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(parse, "warnings", lambda bundle, own: [])

    class Bundle:
        info, files, providers, classes = dict(made_from="a test"), dict(parser=dict(sha256="0")), {}, list(CLASSES[::-1])
        parser = "parser"

    rng, shape = np.random.default_rng(0), (10, 25)
    (tmp_path / "files").mkdir()
    drawn = np.zeros((2, 3, *shape), bool)
    for n, name in enumerate(("one00000001_0_10.mp4", "two00000002.npz", "six-_6_7_8.mkv")):
        event = (rng.random((2, *shape)) < 0.1) & (n < 2)  # the last one is silent
        result = parse.Parse(Bundle.classes, *rng.random((2, *shape)), rng.random(25), *event, event.all(0))
        drawn[:, n] = event[:, :, ::-1]
        for write_file in {"csv": [parse.write_csv], "json": [parse.write_json]}[("csv", "json", "json")[n]]:
            options = (result, Path(name), *([Bundle] if write_file is parse.write_json else ()), tmp_path / f"files/{n}.{'json' if n else 'csv'}")
            write_file(*options)
    content = json.loads((tmp_path / "files/2.json").read_text()) | dict(warnings=["a dry run: nothing is real"])
    (tmp_path / "files/2.json").write_text(json.dumps(content))
    (tmp_path / "files/picture.png").touch()
    truth = annotations.read_llp(small, report=lambda line: None).test
    result, said = scored(tmp_path / "files", small), capsys.readouterr().out
    assert result["usual"]["scores"] == pytest.approx(plain_scores(*drawn, truth.audio > 0, truth.visual > 0), abs=1e-6)
    assert "3 are named and 1 silent" in said and "WARNING: a dry run: nothing is real" in said and "rows of both repeat" in said
    for changed, cause in ((dict(format=2), "format 2, this program reads 1"), (dict(events=[{"label": "Dog"}]), "not what `parse.py --json` writes"),
                           (dict(source="nobody.mp4"), "2.json: 'nobody.mp4' is no video of split test"),
                           (dict(events=[dict(label="Dog", modality="both", onset=3, offset=2, probability=1)]), "2.json, event 1: the event ends at 2 s"),
                           (dict(events=[dict(label="Dog", modality="both", onset=1, offset=2, probability=2)]), "2.json, event 1: probability is '2'")):
        (tmp_path / "files/2.json").write_text(json.dumps(content | changed))
        assert cause in refused(tmp_path / "files", small)
    (tmp_path / "files/2.json").write_text(json.dumps(content)[:-9])
    assert "2.json: not a JSON file" in refused(tmp_path / "files", small)


def test_two_tables_are_compared_as_the_rows_of_an_ablation_are(shared, llp, tmp_path, capsys):
    test, rng = llp.test, np.random.default_rng(0)
    predicted = [[x & (rng.random(x.shape) < keep) for x in (test.audio, test.visual)] for keep in (0.9, 0.6)]
    tables = [write(tmp_path / f"{n}.csv", rows_of(test.ids, *x)) for n, x in enumerate(predicted)]
    found = scored(tables[0], shared / "data/llp", "--against", str(tables[1]))["usual"]
    truth = tuple(torch.from_numpy(x) for x in (test.audio, test.visual))
    rows = {name: [uwav.video_scores(*(torch.from_numpy(y) for y in x), *truth)] for name, x in zip(("mine", "other"), predicted)}
    wanted = ablation.paired_differences(rows, (("other", "mine"),))[0]["scores"]
    assert found["against"]["differences"] == wanted and 0 < wanted["seg_type"]["interval"][0] < wanted["seg_type"]["mean"]
    assert wanted["seg_a"]["mean"] == pytest.approx(found["scores"]["seg_a"] - found["against"]["scores"]["seg_a"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [line[:34].strip() for line in lines if "seg_a" not in line] == ["PREDICTIONS over these", "95% interval, from", "95% interval, to"]
    assert lines[-3].split()[3] == f"{wanted['seg_a']['mean']:+.1f}" and lines[-2].split()[3] == f"{wanted['seg_a']['interval'][0]:+.1f}"


def test_a_score_loads_nothing_that_it_does_not_need(small, tmp_path):
    table = tmp_path / "p.csv"
    table.write_text(PLAIN)
    code = "import sys; from train import cli; cli.main(sys.argv[1:]); print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code, "score", table, small], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "torch" in loaded and not loaded & {"video", "reporting", "parse", "av", "onnx", "onnxruntime", "matplotlib", "PIL", "scipy", "pandas", "tokenizers"}
