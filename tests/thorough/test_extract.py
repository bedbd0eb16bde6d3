"""`features.py extract` and `text`: layout, failures, resuming."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT, need

need("av", "open_clip", "laion_clap")

import clips
import features
from data import annotations, layout, pack
from video import RECIPES, decode, encoders, extract, weights

TINY = ROOT / "tests/helpers/tiny_extract.py"


class Encoder:
    """Cheap and different for every input, of unit length; remembers the sizes of its batches."""

    def __init__(self, size: int):
        self.size, self.batches = size, []

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        self.batches.append(len(inputs))
        flat = inputs.reshape(len(inputs), -1)[:, :: inputs[0].size // 700].astype(np.float32)
        y = np.random.default_rng(0).standard_normal((flat.shape[1], self.size)).astype(np.float32)
        y = flat @ y + 1
        return y / np.linalg.norm(y, axis=1, keepdims=True)


def run(folder: Path, out: Path, made_with: dict | None = None, **options) -> dict[str, int]:
    return extract.extract(folder, out, Encoder(768), Encoder(512), made_with or {"weights": "test"}, workers=2, **options)


def failures(out: Path) -> dict[str, str]:
    with open(out / "failures.csv", newline="") as file:
        return {row["file"]: row["cause"] for row in csv.DictReader(file)}


def vectors(out: Path, name: str) -> dict[str, np.ndarray]:
    return {p.stem: np.load(p, allow_pickle=False) for p in (out / f"feats_{name}/segment_feats").glob("*.npy")}


def content(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Twelve clips of two to three seconds; one without sound, one without picture, one cut short, one no video."""
    folder = tmp_path_factory.mktemp("videos")
    for n in range(12):
        seconds = 2 + 0.3 * (n % 4)
        clips.make(folder / f"v{n:02d}.mp4", seconds, sound=clips.tone(seconds, frequency=200 + 100 * n)[None])
    clips.make(folder / "silent.mp4", 2)
    clips.make(folder / "dark.m4a", sound=clips.tone(2)[None], pictures=False)
    short = clips.make(folder / "short.mp4", 6, sound=clips.tone(6)[None], options={"movflags": "faststart"})
    short.write_bytes(short.read_bytes()[:-9000])
    (folder / "notes.txt").write_text("not a video")
    return folder


# ---- what comes out ----


def test_real_clip_by_the_real_command_with_vit_l(shared, tmp_path):
    """The command of the README, full-size CLIP and CLAP with random weights."""
    result = subprocess.run([sys.executable, ROOT / "features.py", "extract", shared / "data/media", tmp_path,
                             "--clip-weights", "random", "--clap-weights", "random"], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stderr.count("RANDOM WEIGHTS") == 2 and "1 have features" in result.stdout
    for name, size in (("CLIP", 768), ("CLAP", 512)):
        x = vectors(tmp_path, name)["BjCEufrlXm4"]
        assert x.shape == (10, size) and x.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)


def test_features_are_those_of_the_clips_whatever_the_batches(videos, tmp_path):
    result = run(videos, tmp_path, group=5, threads=2)
    assert result == dict(videos=16, finished=12, failed=4, new=12)
    for name, kind, size in (("CLIP", "images", 768), ("CLAP", "sounds", 512)):
        found = vectors(tmp_path, name)
        assert sorted(found) == [f"v{n:02d}" for n in range(12)]
        for id, x in found.items():
            clip = decode.read_clip(videos / f"{id}.mp4")
            assert x.shape == (3 if int(id[1:]) % 4 else 2, size) and x.dtype == np.float32
            np.testing.assert_allclose(x, Encoder(size)(getattr(clip, kind)), atol=1e-5)


def test_every_video_without_features_has_its_cause_and_is_counted(videos, tmp_path, capsys):
    run(videos, tmp_path)
    causes = failures(tmp_path)
    assert {name: cause.split(":")[0] for name, cause in causes.items()} == {
        "silent.mp4": "no sound", "dark.m4a": "no picture", "short.mp4": "cut short", "notes.txt": "cannot be read"}
    printed = capsys.readouterr().out
    assert "16 videos: 12 have features" in printed and "4 have none" in printed and "1  no sound" in printed


def test_missing_streams_become_zeros_only_if_the_user_says_so(videos, tmp_path, capsys):
    result = run(videos, tmp_path, missing="zeros")
    assert result == dict(videos=16, finished=14, failed=2, new=14) | {
        f"have zeros for lack of a {kind} stream": 1 for kind in ("sound", "picture")}
    clip, clap = vectors(tmp_path, "CLIP"), vectors(tmp_path, "CLAP")
    assert clap["silent"].shape == (2, 512) and not clap["silent"].any() and clip["silent"].any()
    assert clip["dark"].shape == (2, 768) and not clip["dark"].any() and clap["dark"].any()
    assert sorted(failures(tmp_path)) == ["notes.txt", "short.mp4"]
    assert "1  have zeros for lack of a sound stream" in capsys.readouterr().out


def test_batches_go_across_videos_and_stay_within_their_limit(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "SEGMENTS_AT_ONCE", 8)
    clip = Encoder(768)
    extract.extract(videos, tmp_path, clip, Encoder(512), {}, workers=2, group=16)
    assert max(clip.batches) <= 8 and len(clip.batches) == -(-sum(clip.batches) // 8) and sum(clip.batches) == 33


def test_llp_clips_have_ten_segments_and_are_called_by_their_id(tmp_path):
    for name, seconds in (("-_aB3dEfGhI_30_40.mp4", 10.3), ("abcdefghijk.mp4", 9.7), ("tooshortclp_0_10.mp4", 5)):
        (tmp_path / "llp").mkdir(exist_ok=True)
        clips.make(tmp_path / "llp" / name, seconds, 10, sound=clips.tone(seconds)[None])
    run(tmp_path / "llp", tmp_path / "out", llp=True, segments=10)
    assert {k: v.shape for k, v in vectors(tmp_path / "out", "CLIP").items()} == {"-_aB3dEfGhI": (10, 768), "abcdefghijk": (10, 768)}
    assert "5.0 s are less than 10 segments" in failures(tmp_path / "out")["tooshortclp_0_10.mp4"]


def test_two_files_of_one_id_are_told_apart_from_a_video_and_its_notes(tmp_path):
    (tmp_path / "in/sub").mkdir(parents=True)
    clips.make(tmp_path / "in/a.mp4", 1, sound=clips.tone(1)[None])
    clips.make(tmp_path / "in/sub/a.mkv", 2, sound=clips.tone(2)[None])
    (tmp_path / "in/a.json").write_text("{}")
    (tmp_path / "in/.hidden").write_text("")
    result = run(tmp_path / "in", tmp_path / "out")
    assert (result["videos"], result["finished"], result["failed"]) == (3, 2, 1)
    for id, seconds in (("a", 1), ("sub/a", 2)):  # which keeps its folder
        assert np.load(tmp_path / f"out/feats_CLIP/segment_feats/{id}.npy").shape == (seconds, 768)
    assert failures(tmp_path / "out") == {"a.json": "same id: a.mp4 was used"}


def test_links_between_folders_are_followed_once(tmp_path):
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/sub/a.mp4").write_text("")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.mp4").write_text("")
    (tmp_path / "in/sub/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/other").symlink_to(tmp_path / "elsewhere")
    videos, same = extract.find_videos(tmp_path / "in", llp=False)
    assert list(videos) == ["other/b", "sub/a"] and not same


# ---- damaged files ----


def test_two_hundred_damaged_copies_each_fail_with_a_cause_or_give_valid_features(tmp_path, shared):
    (tmp_path / "in").mkdir()
    made = clips.make(tmp_path / "made.mp4", 3, sound=clips.tone(3)[None])
    fast = clips.make(tmp_path / "fast.mp4", 3, sound=clips.tone(3)[None], options={"movflags": "faststart"})
    sources = [p.read_bytes() for p in (shared / "data/media/BjCEufrlXm4.mp4", made, fast)]
    for n in range(200):
        name, data = clips.damaged(sources[n % 3], n)
        (tmp_path / "in" / name).write_bytes(data)
    result = run(tmp_path / "in", tmp_path / "out")
    assert result["videos"] == 200 and result["finished"] + result["failed"] == 200
    causes, clip, clap = failures(tmp_path / "out"), vectors(tmp_path / "out", "CLIP"), vectors(tmp_path / "out", "CLAP")
    assert clip.keys() == clap.keys() and {Path(f).stem for f in causes} | clip.keys() == {p.stem for p in (tmp_path / "in").iterdir()}
    assert not {Path(f).stem for f in causes} & clip.keys() and all(causes.values())
    for id in clip:
        assert len(clip[id]) == len(clap[id]) >= 1
        for x in (clip[id], clap[id]):
            assert np.isfinite(x).all() and np.allclose(np.linalg.norm(x, axis=1), 1, atol=1e-4)
    assert 20 < len(clip) < 180, "the copies should be of both kinds"


# ---- resuming ----


def tiny(videos: Path, out: Path) -> list[str]:
    return [sys.executable, str(TINY), "extract", str(videos), str(out)]


def processes_of(mark: str) -> list[int]:
    """All processes with UWAV_TEST=mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and f"UWAV_TEST={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def kill_after(command: list[str], out: Path, files: int) -> None:
    """Start it, and SIGKILL all its processes once so many feature files are there."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(command, env=os.environ | {"UWAV_TEST": mark}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and len(list(out.rglob("*.npy"))) < files:
            time.sleep(0.002)
        assert process.poll() is None, "it finished before it could be killed"
    finally:
        while pids := processes_of(mark):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def undisturbed(videos, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(tiny(videos, out), check=True, timeout=300, capture_output=True)
    assert len(list(out.rglob("*.npy"))) == 24
    return content(out)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes to kill in /proc")
def test_killed_and_run_again_equals_an_undisturbed_run_byte_for_byte(videos, undisturbed, tmp_path):
    for files in (1, 11):
        kill_after(tiny(videos, tmp_path), tmp_path, files)
    last = subprocess.run(tiny(videos, tmp_path), timeout=300, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr[-2000:]
    assert content(tmp_path) == undisturbed


def test_finished_videos_and_known_failures_are_not_decoded_again_unless_asked(videos, tmp_path, monkeypatch):
    run(videos, tmp_path)
    before, decoded = content(tmp_path), []
    original = decode.read_clips
    monkeypatch.setattr(decode, "read_clips", lambda paths, *a, **k: decoded.extend(paths) or original(paths, *a, **k))
    result = run(videos, tmp_path)
    assert decoded == [] and result["new"] == 0 and result["finished"] == 12 and result["failed"] == 4
    run(videos, tmp_path, retry=True, group=1)
    assert sorted(p.name for p in decoded) == ["dark.m4a", "notes.txt", "short.mp4", "silent.mp4"]
    assert content(tmp_path) == before


def test_a_replaced_video_is_tried_again_and_leaves_the_list_of_failures(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mp4").write_bytes(b"half a download")
    assert run(tmp_path / "in", tmp_path / "out")["failed"] == 1
    clips.make(tmp_path / "in/a.mp4", 1, sound=clips.tone(1)[None])
    result = run(tmp_path / "in", tmp_path / "out")
    assert (result["finished"], result["failed"], failures(tmp_path / "out")) == (1, 0, {})


def test_a_damaged_list_of_failures_is_refused_and_begun_anew_by_retry(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mp4").write_bytes(b"half a download")
    run(tmp_path / "in", tmp_path / "out")
    whole = (tmp_path / "out/failures.csv").read_bytes()
    for damaged in (b"", whole[:25], whole + b"\0\0\0\n", whole.replace(b"15", b"many")):
        (tmp_path / "out/failures.csv").write_bytes(damaged)
        with pytest.raises(ValueError, match="failures.csv: damaged, or made by another version .* make it again with `.* --retry`"):
            run(tmp_path / "in", tmp_path / "out")
    run(tmp_path / "in", tmp_path / "out", retry=True)
    assert (tmp_path / "out/failures.csv").read_bytes() == whole


# ---- refusing ----


def test_features_of_different_encoders_do_not_mix_in_one_folder(videos, tmp_path):
    (tmp_path / "extract.json").write_text('{"clip_weights": "a", "options": 1}')
    with pytest.raises(ValueError, match="extract.json: the features there were made with other clip_weights; choose another folder"):
        extract.check(videos, tmp_path, {"clip_weights": "b", "options": 1})
    extract.check(videos, tmp_path, {"clip_weights": "a", "options": 1})
    (tmp_path / "extract.json").write_text('{"clip')
    with pytest.raises(ValueError, match="extract.json: not what `extract` or `text` records .*; make it again, into another folder"):
        extract.check(videos, tmp_path, {})


@pytest.mark.parametrize("arguments, message", [
    (["extract", "nowhere", "out"], "nowhere: no such folder"),
    (["extract", "empty", "out"], "empty: no files in it"),
    (["extract", "full", "full/out"], "full/out lies inside full"),
    (["extract", "full", "out", "--device", "cuda:7"], "--device cuda:7: this PyTorch sees no GPU"),
    (["extract", "full", "out", "--segments", "0"], "--segments 0"),
    (["text", "nowhere", "out"], "nowhere: no such file, and not `llp`"),
    (["text", "empty.txt", "out"], "empty.txt: no class in it"),
    (["text", "twice.txt", "out"], "twice.txt: a class is there twice: 'dog'"),
])
def test_bad_input_is_one_sentence_and_nothing_is_written(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encoders, "ClipEncoder", None)  # it must not come to that
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.mp4").write_text("")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "twice.txt").write_text("dog\ncat\nDog\n")
    with pytest.raises(SystemExit) as stop:
        features.main([*arguments, "--clip-weights", "random", "--clap-weights", "random"])
    assert stop.value.code.startswith("error: ") and message in stop.value.code and "\n" not in stop.value.code
    assert not (tmp_path / "out").exists()


# ---- text ----


def test_class_names_become_readable():
    names = [extract.readable(n) for n in annotations.LLP_CLASSES]
    assert names[5] == "frying food" and names[22] == "baby cry infant cry" and names[0] == "speech"
    assert extract.readable("horse clip-clop") == "horse clip-clop"


def test_class_lists_of_llp_of_unav_and_ones_own(tmp_path, shared):
    assert annotations.read_classes("llp") == list(annotations.LLP_CLASSES)
    unav = annotations.read_classes(str(shared / "data/unav/unav100_annotations.json"))
    assert len(unav) == 100 and unav == list(annotations.read_unav(shared / "data/unav/unav100_annotations.json").classes)
    (tmp_path / "own.txt").write_bytes("\ufeffdoor bell\r\n\r\nKettle\r\n".encode())
    assert annotations.read_classes(str(tmp_path / "own.txt")) == ["door bell", "Kettle"]


def test_text_command_embeds_both_prompts_in_the_layout_of_the_authors(tmp_path, capsys):
    (tmp_path / "own.txt").write_text("Door_bell\nkettle\ndrill\n")
    subprocess.run([sys.executable, TINY, "text", tmp_path / "own.txt", tmp_path / "out"], check=True, capture_output=True, timeout=300)
    for name, encoder in layout.TEXTED.items():
        x = np.load(tmp_path / "out" / encoder.texts)
        assert x.shape == (3, encoder.size) and x.dtype == np.float32, name
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
        assert np.linalg.norm(x[0] - x[1]) > 1e-3
    prompts = {}
    extract.write_texts(["Door_bell"], tmp_path / "two", lambda t: prompts.setdefault("clip", t) and np.ones((1, 768)),
                        lambda t: prompts.setdefault("clap", t) and np.ones((1, 512)), {})
    assert prompts == {"clip": ["A photo of door bell"], "clap": ["This is the sound of door bell"]}


def test_features_by_the_recipe_of_valor_are_those_of_its_clips_and_the_recipe_is_remembered(videos, tmp_path, capsys):
    """Sounds of different lengths are encoded together with none but their own."""
    run(videos, tmp_path / "valor", recipe="valor", group=5)
    for name, kind, size in (("CLIP", "images", 768), ("CLAP", "sounds", 512)):
        for id, x in vectors(tmp_path / "valor", name).items():
            expected = Encoder(size)(getattr(decode.read_clip(videos / f"{id}.mp4", recipe=RECIPES["valor"]), kind))
            np.testing.assert_allclose(x, expected, atol=1e-5)
    one = tmp_path / "one"
    one.mkdir()
    clips.make(one / "a.mp4", 2, sound=clips.tone(2)[None])
    (tmp_path / "own.txt").write_text("kettle\n")
    for command in (["extract", one], ["text", tmp_path / "own.txt"]):
        result = subprocess.run([sys.executable, TINY, *command, tmp_path / "out", "--recipe", "valor"], capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
    assert "'A photo of kettle'" in result.stdout and "'This is a sound of kettle'" in result.stdout
    assert {json.loads((tmp_path / "out" / x).read_text())["recipe"] for x in pack.MADE_WITH} == {"valor"}
    (tmp_path / "out/labels.csv").write_text("video,labels\na,kettle\n")
    assert layout.encoders_of(pack.pack(tmp_path / "out", tmp_path / "packed", workers=1))["recipe"] == "valor"
    result = subprocess.run([sys.executable, TINY, "extract", one, tmp_path / "out"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 1 and "made with other recipe; choose another folder" in result.stderr


def test_identity_of_weights_is_the_content_not_the_place(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a").write_bytes(b"x")
    noted = [weights.chosen({"clap": str(tmp_path / x)})[1] for x in ("a", "sub/a")]
    assert noted[0] == noted[1] and noted[0]["clap_weights"]["weights"] == "a"
    (tmp_path / "sub/a").write_bytes(b"y")
    assert weights.chosen({"clap": str(tmp_path / "sub/a")})[1] != noted[0]
    assert weights.chosen({"clip": "random"}) == ({"clip": None}, {"clip_weights": {"weights": "random"}})


def test_on_a_cpu_every_video_moves_the_bar_and_only_a_video_that_needs_them_builds_the_encoders(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    clips.make(tmp_path / "in/a.mp4", 1)
    seen = {}
    monkeypatch.setattr(encoders, "ClipEncoder", None)  # to call it would fail
    monkeypatch.setattr(extract, "extract", lambda *arguments, **options: seen.update(options))
    features.main(["extract", str(tmp_path / "in"), str(tmp_path / "out"), "--clip-weights", "random", "--clap-weights", "random", "--device", "cpu"])
    assert seen["group"] == 1
