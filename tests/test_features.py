"""Readers of the annotations, and `pack`: from many small files to a few arrays."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import features
import uwav
from common import files
from data import annotations, layout, pack, splits
from sources import WEAK, checklist, unav_database, write_llp, write_source, write_unav
from train import ablation, presets, stages

ROOT = Path(__file__).resolve().parents[1]

# ---- annotations ----

def test_llp_by_hand(tmp_path):
    reported = []
    llp = annotations.read_llp(write_llp(tmp_path), reported.append)
    assert llp.train.ids == ["a-_b_c_d_e1"] and llp.train.audio is None  # ids hold underscores and dashes
    names = np.array(llp.classes)
    assert names[llp.train.weak[0] > 0].tolist() == ["Speech", "Dog"]
    cat = llp.classes.index("Cat")
    assert llp.val.audio[0, :, cat].tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 0, 0] and llp.val.audio.sum() == 3
    assert llp.val.visual[0, :, cat].tolist() == [1] + [0] * 9
    assert llp.test.audio[0, :, 0].all() and not llp.test.visual.any()
    assert len(reported) == 1 and "differ from AVVP-ECCV20 at commit fde5611: do not compare scores" in reported[0]


def test_warts_of_llp_are_counted_and_reported_once_each(tmp_path):
    audio = "nobody_0_10\t0\t5\tCat\nval00000001_0_10\t4\t4\tCat\nval00000001_0_10\t0\t2\tDog\n"
    reported = []
    llp = annotations.read_llp(write_llp(tmp_path, AVVP_eval_audio=audio, AVVP_eval_visual=""), reported.append)
    assert [re.sub(r"[^0-9]*(\d+).*", r"\1", line) for line in reported[:-1]] == ["1", "1", "2", "1"]
    assert [w in line for w, line in zip(("outside", "empty", "no dense row", "not in the weak label"), reported)] == [True] * 4
    assert llp.val.audio[0, :2, llp.classes.index("Dog")].tolist() == [1, 1]


def test_real_llp_has_the_known_sizes_and_warts(shared):
    reported = []
    llp = annotations.read_llp(shared / "data/llp", reported.append)
    assert [len(s.ids) for s in (llp.train, llp.val, llp.test)] == [10_000, 649, 1_200]
    assert [[int(n) for n in re.findall(r"\d+", line)][0] for line in reported[:-1]] == [14, 6, 11, 38, 65]
    assert reported[-1] == "LLP: the five annotation files are those of AVVP-ECCV20 at commit fde5611 (2024-04-16)"
    assert np.concatenate([llp.val.audio, llp.test.audio]).mean() == pytest.approx(0.049, abs=5e-4)
    assert np.concatenate([llp.val.visual, llp.test.visual]).mean() == pytest.approx(0.039, abs=5e-4)


REPAIRED = {"JfZEqeLZqWk_30_40\t0\t4\tSpeech": "Baby_cry_infant_cry\t0\t4\tSpeech",  # today's row -> until 2024-04-16
            "JfZEqeLZqWk_30_40\t7\t10\tSpeech": "Baby_cry_infant_cry\t7\t10\tSpeech",
            "KvIjsmANkxI_10_20\t0\t1\tCat": "KvIjsmANkxI_10_20`\t0\t1\tCat"}


@pytest.mark.parametrize("change, said", [
    (lambda text: text, "the five annotation files are those of AVVP-ECCV20 at commit fde5611"),
    (lambda text: text.replace("\n", "\r\n"), "the five annotation files are those of"),  # git on Windows
    (lambda text: functools.reduce(lambda t, row: t.replace(row, REPAIRED[row]), REPAIRED, text),
     "AVVP_eval_audio.csv is older than commit fde5611 (2024-04-16) of AVVP-ECCV20, which repaired three rows"),
    (lambda text: text.replace("\t0\t2\t", "\t0\t3\t", 1), "AVVP_eval_audio.csv differs from AVVP-ECCV20 at commit fde5611: do not"),
])
def test_an_outdated_or_unknown_annotation_file_is_said_in_one_sentence_and_read(shared, tmp_path, change, said):
    for path in (shared / "data/llp").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    audio = tmp_path / "AVVP_eval_audio.csv"
    audio.write_bytes(change(audio.read_text()).encode())
    reported = []
    assert len(annotations.read_llp(tmp_path, reported.append).test.ids) == 1_200
    assert said in reported[-1] and sum("AVVP" in line for line in reported) == 1


def test_annotations_of_unav_are_compared_by_what_they_say_not_by_their_bytes(shared, tmp_path):
    path, reported = tmp_path / "u.json", []
    content = json.loads((shared / "data/unav/unav100_annotations.json").read_text())
    content["database"] = dict(reversed(content["database"].items()))
    path.write_text(json.dumps(content, indent=1))
    annotations.read_unav(path, reported.append)
    next(v for v in content["database"].values() if v["annotations"])["annotations"].pop()
    path.write_text(json.dumps(content))
    annotations.read_unav(path, reported.append)
    assert reported == ["UnAV-100: classes, videos and labels are those of commit 60144ed",
                        f"UnAV-100: {path} differs from commit 60144ed: do not compare scores with published ones"]


def test_real_unav_has_the_known_sizes(shared):
    reported = []
    unav = annotations.read_unav(shared / "data/unav/unav100_annotations.json", reported.append)
    assert reported == ["UnAV-100: classes, videos and labels are those of commit 60144ed"]
    assert [len(s.ids) for s in (unav.train, unav.validation, unav.test)] == [6_489, 2_134, 2_167]
    assert len(unav.classes) == 100 and {x.shape[1] for x in unav.train.labels} == {100}


def test_the_sentences_of_the_checklist_on_data_and_weights_are_those_that_are_printed(shared, tmp_path):
    """Those on the stages: tests/thorough/test_fetch.py."""
    from video import encoders

    said = ["VERDICT: the same features"]  # tests/thorough/test_compare.py
    annotations.read_llp(shared / "data/llp", said.append)
    annotations.read_unav(shared / "data/unav/unav100_annotations.json", said.append)
    torch.save(dict(logit_scale=torch.tensor(4.6052), logit_scale_a=torch.tensor(3.2912)), tmp_path / "x.pt")
    said += [encoders.told_by_scale(name, tmp_path / "x.pt") for name in ("clip", "clap")]
    promised = checklist()
    found = [line for line, pattern in promised.items() if any(re.fullmatch(pattern, x) for x in said)]
    assert len(promised) == 10 and [line.split()[0] for line in found] == ["LLP:", "UnAV-100:", "CLIP:", "CLAP:", "VERDICT:"]


def test_the_rows_without_learning_are_those_of_the_checklist(shared):
    test = annotations.read_llp(shared / "data/llp", lambda line: None).test
    table = (ROOT / "docs/real_data.md").read_text(encoding="utf-8")
    scores = stages.trivial_scores(*map(torch.from_numpy, (test.weak, test.audio, test.visual)))
    for title, row in scores.items():
        numbers = " | ".join(f"{row[name]:.1f}" for name in uwav.SCORES[:5])
        assert re.search(rf"\| {title} \| [a-z ]+ \| {re.escape(numbers)} \|", table), (title, numbers)


@pytest.mark.parametrize("file, rows, message", [
    ("AVVP_train", "x_0_10\tSpeech,Unicorn\n", r"line 2: unknown class 'Unicorn'"),
    ("AVVP_eval_audio", "val00000001_0_10\t-1\t5\tCat\n", r"line 2: '-1' is not a time from 0 to 10 s"),
    ("AVVP_eval_audio", "val00000001_0_10\t0\t11\tCat\n", r"line 2: '11' is not a time from 0 to 10 s"),
    ("AVVP_eval_audio", "val00000001_0_10\t0\n", r"line 2: 2 cells, but the header line has 4"),
    ("AVVP_eval_audio", "val00000001_0_10\t5\t2\tCat\n", "1 of 1 events end before they begin; are onset and offset exchanged"),
    ("AVVP_val_pd", WEAK["AVVP_train.csv"], r"line 2: the video a-_b_c_d_e1 is listed twice"),
])
def test_bad_llp_row_is_refused_with_file_and_line(tmp_path, file, rows, message):
    with pytest.raises(ValueError, match=message) as error:
        annotations.read_llp(write_llp(tmp_path, **{file: rows}), lambda line: None)
    assert f"{file}.csv" in str(error.value)


def test_missing_or_binary_annotation_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="AVVP_train.csv"):
        annotations.read_llp(tmp_path)
    write_llp(tmp_path)
    (tmp_path / "AVVP_train.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="AVVP_train.csv: not a csv file in UTF-8"):
        annotations.read_llp(tmp_path)


def test_unav_by_hand(tmp_path):
    unav = annotations.read_unav(write_unav(tmp_path / "u.json"))
    assert unav.classes == ("dog", "car")
    assert unav.train.labels[0].T.tolist() == [[1, 1, 1] + [0] * 8, [0] * 9 + [1, 1]]  # ceil(10.2) = 11; floor .. ceil


@pytest.mark.parametrize("event", [(0, 40, 41), (0, -1, 2), (0, 5, 5), (0, 6, 5), (0, 10, 11.5)])
def test_an_event_of_unav_outside_its_video_or_without_length_is_refused(tmp_path, event):
    database = unav_database()
    c, *segment = event
    database["u3"]["annotations"].append(dict(segment=segment, label="dog", label_id=c))
    with pytest.raises(ValueError, match="u.json: not in the format of .*an event from .* in video 'u3' of 11 s"):
        annotations.read_unav(write_unav(tmp_path / "u.json", database))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"database": {"a": {}}}', '{"database": {"a": {"annotations": 3}}}'])
def test_bad_unav_file_is_refused_with_one_sentence(tmp_path, content):
    (tmp_path / "u.json").write_text(content)
    with pytest.raises(ValueError, match="u.json: not "):
        annotations.read_unav(tmp_path / "u.json")


def test_pooling_averages_the_vectors_that_a_segment_touches():
    rng = np.random.default_rng(0)
    for length, segments in [(1, 1), (1, 10), (10, 10), (9, 11), (30, 11), (59, 60), (61, 60), (7, 3), (70, 1)]:
        x = rng.standard_normal((length, 3)).astype(np.float32)
        expected = [x[t * length // segments : -(-(t + 1) * length // segments)].mean(0) for t in range(segments)]
        np.testing.assert_allclose(pack.pool_to(x, segments), expected, rtol=1e-5, atol=1e-5)


# ---- pack ----


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, ROOT / "features.py", *map(str, arguments)], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"), videos=70)


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "out"
    pack.pack(source, out, workers=2)
    return out


def test_pack_holds_what_the_files_hold(source, packed):
    index = layout.read_index(packed)
    assert index["llp"]["features"] == list(layout.ENCODERS)
    n = index["llp"]["videos"]["train"].index("train000042")
    for name, encoder in layout.ENCODERS.items():
        original, size = np.load(source / "LLP" / encoder.folder / "train000042.npy"), encoder.size
        expected = original.reshape(10, encoder.per_second, size).mean(1)
        array = np.load(packed / "llp/train" / f"{name}.npy", mmap_mode="r")
        assert array.shape == (70, 10, size) and array.dtype == np.float16
        np.testing.assert_allclose(array[n], expected, atol=2e-3)
    pooled = np.load(packed / "unav/train/clap.npy")
    assert pooled.shape == (11, 512) and np.load(packed / "unav/train/length.npy").tolist() == [11]
    np.testing.assert_allclose(pooled, pack.pool_to(np.load(source / "UnAV/feats_CLAP/segment_feats/u1.npy"), 11), atol=2e-3)
    assert np.load(packed / "llp/val/audio.npy").sum() == 3 and not (packed / "llp/train/audio.npy").exists()


def test_pack_leaves_nothing_temporary_and_is_not_done_twice(source, packed, capsys):
    before = {p: p.stat().st_mtime_ns for p in packed.rglob("*")}
    assert not [p for p in before if "part" in p.name or p.suffix == ".done" or p.name == "plan.json"]
    pack.pack(source, packed)
    assert "already complete" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in packed.rglob("*")}


def test_packing_again_from_changed_annotations_is_refused_or_on_demand_starts_over(tmp_path):
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    pack.pack(source, out, workers=1)
    write_llp(source / "LLP", AVVP_train="train000000_0_10\tDog\n", AVVP_val_pd="test0000001_5_15\tCat\n",
              AVVP_test_pd="val00000001_0_10\tCat\n", AVVP_eval_audio="", AVVP_eval_visual="")
    before = tree(out)
    with pytest.raises(ValueError, match="holds another finished pack, or one of data that changed since; --replace"):
        pack.pack(source, out, workers=1)
    assert tree(out) == before
    pack.pack(source, out, workers=1, replace=True)
    np.testing.assert_allclose(np.load(out / "llp/val/clap.npy")[0],
                               np.load(source / "LLP/feats_CLAP/segment_feats/test0000001.npy"), atol=2e-3)


def test_a_folder_that_holds_files_of_somebody_else_is_not_packed_into(tmp_path):
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="holds files that no pack wrote .thesis.tex.; choose another folder"):
        pack.pack(source, out, workers=1, replace=True)
    assert tree(out) == {"thesis.tex": b"precious"}


def test_a_packed_array_that_is_not_the_one_that_was_packed_is_not_read(packed, tmp_path):
    out = shutil.copytree(packed, tmp_path / "out")
    x = np.load(out / "llp/val/clap.npy")
    x[0, 0, 0] += 1
    np.save(out / "llp/val/clap.npy", x)
    with pytest.raises(ValueError, match="clap.npy: .*it is not the file that index.json records.*features.py pack"):
        splits.load_target(out, "val", "clip_clap", "cpu")


def test_packing_again_notices_that_only_a_label_changed(tmp_path):
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    pack.pack(source, out, workers=1)
    write_llp(source / "LLP", AVVP_train="train000000_0_10\tSpeech\n", AVVP_eval_visual="val00000001_0_10\t0\t9\tCat\n")
    with pytest.raises(ValueError, match="--replace"):
        pack.pack(source, out, workers=1)
    pack.pack(source, out, workers=1, replace=True)
    assert np.load(out / "llp/val/visual.npy").sum() == 9


def test_pack_killed_in_the_middle_and_rerun_equals_an_undisturbed_pack(source, packed, tmp_path):
    out = tmp_path / "out"
    for finished in (3, 20):  # arrays: kill early, and later
        process = subprocess.Popen([sys.executable, ROOT / "features.py", "pack", source, out, "--workers", "1"],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and len(list(out.rglob("*.npy"))) < finished:
            time.sleep(0.002)
        assert process.poll() is None, "it finished before it could be killed: make the source larger"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert run("pack", source, tmp_path / "out").returncode == 0
    assert tree(tmp_path / "out") == tree(packed)


def break_truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def break_nan(path):
    x = np.load(path)
    x[3, 5] = np.nan
    np.save(path, x)


def break_shape(path):
    np.save(path, np.load(path)[:-1])


def break_pickled(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("damage, message", [
    (break_truncated, "not a complete .npy file"), (break_nan, "holds NaN or infinite values"),
    (break_shape, r"has shape \(79, 2048\), expected \(80, 2048\)"),
    (Path.unlink, "1 feature files are missing: .*train000000.npy"),
    (break_pickled, "not a complete .npy file"),
])
def test_damaged_feature_file_is_one_sentence_and_can_be_mended(tmp_path, damage, message):
    source = write_source(tmp_path / "source")
    path = source / "LLP/feats/res152/train000000.npy"
    intact = path.read_bytes()
    damage(path)
    with pytest.raises(SystemExit) as stop:
        features.main(["pack", str(source), str(tmp_path / "out"), "--workers", "1"])
    sentence = stop.value.code
    assert sentence.startswith("error: ") and re.search(message, sentence) and "res152" in sentence and "\n" not in sentence
    assert not (tmp_path / "out/index.json").exists()
    path.write_bytes(intact)
    features.main(["pack", str(source), str(tmp_path / "out"), "--workers", "1"])
    assert (tmp_path / "out/index.json").exists()


def test_all_missing_videos_are_listed_in_one_sentence(tmp_path):
    source = write_source(tmp_path / "source", videos=30)
    for n in range(12):
        (source / f"LLP/feats/vggish/train{n:06d}.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"12 feature files are missing: .*train000000.npy; .*train000009.npy; and 2 more"):
        pack.pack(source, tmp_path / "out", workers=1)


def test_all_unusable_files_are_listed_in_one_sentence_and_the_rest_is_packed(tmp_path):
    source = write_source(tmp_path / "source", videos=3)
    break_nan(source / "LLP/feats/vggish/train000001.npy")
    break_shape(source / "LLP/feats/r2plus1d_18/val00000001.npy")
    with pytest.raises(ValueError, match=r"2 feature files cannot be used: .*train000001.npy: holds NaN.*; .*val00000001.npy: has shape"):
        pack.pack(source, tmp_path / "out", workers=1)
    assert (tmp_path / "out/.packing/llp/train/res152.npy").exists() and not list((tmp_path / "out").rglob("train/vggish.npy"))


def test_half_precision_overflow_is_refused(tmp_path):
    source = write_source(tmp_path / "source")
    path = source / "LLP/feats/vggish/train000000.npy"
    np.save(path, np.full((10, 128), 1e6, np.float32))
    with pytest.raises(ValueError, match="beyond half precision"):
        pack.pack(source, tmp_path / "out", workers=1)


def test_unpacked_folder_is_refused_with_a_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match="features.py pack"):
        layout.read_index(tmp_path)
    files.write_sealed(tmp_path / "index.json", {"format": 99})
    with pytest.raises(ValueError, match="pack again"):
        layout.read_index(tmp_path)


def test_the_feature_set_of_a_parser_is_told_by_all_its_sizes():
    for name, config in presets.PRESETS["paper"].han.items():
        assert layout.feature_set_of(config, Path("han.pt")) == name
    with pytest.raises(ValueError, match=r"han.pt: reads vectors of \(128, 768, 512\), which no feature set of base, clip_clap has"):
        layout.feature_set_of(uwav.HANConfig(visual_2d_dim=768), Path("han.pt"))


# ---- files ----


def test_atomic_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), files.atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.json"]


# ---- features of one's own ----


def test_videos_without_features_stop_packing_or_are_left_out_and_counted(tmp_path, capsys):
    source = write_source(tmp_path / "source", videos=5)
    (source / "LLP/feats_CLIP/segment_feats/train000003.npy").unlink()
    (source / "LLP/feats/vggish/train000001.npy").unlink()
    (source / "UnAV/feats_CLAP/segment_feats/u1.npy").unlink()
    with pytest.raises(FileNotFoundError, match="3 feature files are missing"):
        pack.pack(source, tmp_path / "out", workers=1)
    with pytest.raises(FileNotFoundError, match="no features of any train video"):  # u1 was UnAV's only one
        pack.pack(source, tmp_path / "out", workers=1, missing="skip")
    np.save(source / "UnAV/feats_CLAP/segment_feats/u1.npy", np.ones((9, 512), np.float32))
    index = pack.pack(source, tmp_path / "out", workers=1, missing="skip")
    assert index["llp"]["videos"]["train"] == ["train000000", "train000002", "train000004"]
    assert "LLP train: 2 of 5 videos have no features (left out)" in capsys.readouterr().out
    for name in ("weak", "clip", "vggish"):
        assert len(np.load(tmp_path / f"out/llp/train/{name}.npy")) == 3
    clip = np.load(source / "LLP/feats_CLIP/segment_feats/train000002.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out/llp/train/clip.npy")[1], clip.astype(np.float16))


def test_features_of_random_encoders_never_pass_for_real_ones(tmp_path, capsys):
    source = write_source(tmp_path / "source")
    assert pack.pack(source, tmp_path / "out", workers=1)["source"] == "pack"
    assert layout.encoders_of(layout.read_index(tmp_path / "out")) == {}
    files.write_json(source / "UnAV/extract.json", {"recipe": "valor", "clip_weights": {"weights": "openai"}, "clap_weights": {"weights": "random"}})
    index = pack.pack(source, tmp_path / "out", workers=1, replace=True)
    assert index["source"] == layout.RANDOM_SOURCE and layout.encoders_of(index)["recipe"] == "valor"
    assert "RANDOM WEIGHTS" in capsys.readouterr().err
    assert "RANDOM WEIGHTS: a dry run. Do not compare" in ablation.note(layout.RANDOM_SOURCE)


@pytest.mark.parametrize("command, said, page", [
    ("compare", "never run on real ones", "On real weights nobody has tried it"),
    ("fetch", "tried on a local server only", "were never reached from here"),
    ("extract", "valor never ran with real weights", "`valor` was never run with real weights"),
    ("text", "valor never ran with real weights", "`valor` was never run with real weights"),
])
def test_what_never_met_the_real_world_says_so_where_it_is_offered(command, said, page, capsys):
    for arguments in ((command, "--help"), *([("--help",)] if command in ("compare", "fetch") else [])):
        with pytest.raises(SystemExit):
            features.main(list(arguments))
        assert said in " ".join(capsys.readouterr().out.split())
    assert page in " ".join((ROOT / "docs/real_data.md").read_text(encoding="utf-8").split())
    assert command != "fetch" or said in " ".join((ROOT / "run_all.sh").read_text(encoding="utf-8").split())
