"""`features.py compare`: what is wrong with features is named, each fault made by the code that makes features."""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import need

need("av", "open_clip", "laion_clap")

import clips
import features
import tiny_extract
import uwav
from data import annotations, layout
from sources import write_llp
from video import RECIPES, compare, encoders, extract

SECONDS, FPS = 4, 8
VIDEOS = [f"v{n:02d}" for n in range(8)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Clips whose picture and sound change every second, and differ from clip to clip."""
    folder, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        for video in VIDEOS:
            blocks = rng.integers(0, 256, (SECONDS, 6, 8, 3)).astype(np.uint8).repeat(40, 1).repeat(40, 2)  # (T, 240, 320, 3)
            patch.setattr(clips, "picture", lambda n: blocks[n // FPS])
            tones = [clips.tone(1, frequency=f, level=0.3) + clips.tone(1, frequency=3.1 * f, level=0.2) * (f > 900)
                     for f in rng.uniform(100, 4000, SECONDS)]
            clips.make(folder / f"{video}.mp4", SECONDS, FPS, sound=np.concatenate(tones)[None])
    return folder


def extracted(videos: Path, out: Path, clap: encoders.ClapEncoder | None = None, recipe: str = "uwav") -> Path:
    with tiny_extract.small_encoders():
        clip, clap = encoders.ClipEncoder(None), clap or encoders.ClapEncoder(None)
    extract.extract(videos, out, clip.images, clap.sounds, {}, recipe=recipe, workers=1, group=2)
    return out


@pytest.fixture(scope="module")
def right(videos, tmp_path_factory) -> Path:
    return extracted(videos, tmp_path_factory.mktemp("right"))


def verdicts(mine: Path, theirs: Path) -> dict[str, str]:
    return compare.compare(mine, theirs)


def test_the_same_features_are_the_same(right, tmp_path, capsys):
    mine = shutil.copytree(right, tmp_path / "mine")
    assert verdicts(mine, right) == {"clap": "the same", "clip": "the same"}
    assert capsys.readouterr().out.endswith("VERDICT: the same features\n")


def test_half_precision_is_harmless(videos, right, tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "half_precision", lambda device: torch.autocast("cpu", torch.float16))
    harmless = "the same but for rounding, as of half precision: harmless"
    assert verdicts(extracted(videos, tmp_path / "half"), right) == {"clap": harmless, "clip": harmless}


def test_features_shifted_by_a_second_are_named_with_the_direction(right, tmp_path, capsys):
    for name, change in (("later", lambda x: np.concatenate([x[:1], x[:-1]])), ("earlier", lambda x: np.concatenate([x[1:], x[-1:]]))):
        mine = shutil.copytree(right, tmp_path / name)
        for path in mine.rglob("*.npy"):
            np.save(path, change(np.load(path)))
        assert verdicts(mine, right) == dict.fromkeys(("clap", "clip"), f"SHIFTED: mine come 1 s {name}")
    assert "VERDICT: NOT the same features: clap, clip" in capsys.readouterr().out


def test_squashed_pictures_are_another_preparation_of_pictures(videos, right, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "squash", dataclasses.replace(RECIPES["uwav"], picture="squash"))
    found = verdicts(extracted(videos, tmp_path / "squash", recipe="squash"), right)
    assert found == {"clap": "the same", "clip": "PREPARED OTHERWISE: pictures cropped or squashed, another frame of each second"}


def test_another_checkpoint_of_clap_is_named(videos, right, tmp_path):
    with tiny_extract.small_encoders():
        clap = encoders.ClapEncoder(None)
    torch.manual_seed(1)
    for x in clap.parameters():
        if x.ndim > 1:
            torch.nn.init.normal_(x, std=float(x.detach().std()))
    found = verdicts(extracted(videos, tmp_path / "other", clap), right)
    assert found == {"clap": "ANOTHER CHECKPOINT of the encoder, or other videos", "clip": "the same"}


@pytest.mark.parametrize("count", [2, len(VIDEOS)])
def test_shuffled_videos_are_counted_and_one_is_named(right, tmp_path, count):
    mine, order = shutil.copytree(right, tmp_path / "mine"), np.roll(VIDEOS[:count], 1)
    for path in mine.glob("feats_*/segment_feats"):
        for a, b in zip(VIDEOS, order):
            shutil.copy(right / path.relative_to(mine) / f"{b}.npy", path / f"{a}.npy")
    said = f"SHUFFLED: {count} of {len(VIDEOS)} are another one there, v00 is their v{count - 1:02d}"
    assert verdicts(mine, right) == dict.fromkeys(("clap", "clip"), said)


def test_a_single_other_video_is_named_as_the_one_to_look_at(right, tmp_path):
    mine = shutil.copytree(right, tmp_path / "mine")
    for path in mine.rglob("v03.npy"):
        np.save(path, np.random.default_rng(0).standard_normal(np.load(path).shape).astype(np.float32))
    assert set(verdicts(mine, right).values()) == {"MOSTLY THE SAME: look at v03, which may be another upload or another cut"}


# ---- labels ----


@pytest.fixture()
def sides(tmp_path) -> tuple[Path, Path]:
    """Two folders like LLP/, with classes that embeddings tell apart, of 40 videos of val and 20 of test."""
    rng, C = np.random.default_rng(0), len(annotations.LLP_CLASSES)
    ids = [f"video{n:06d}" for n in range(60)]
    rows = {v: (annotations.LLP_CLASSES[n % 3], n % 4, 6 + n % 4) for n, v in enumerate(ids)}  # class, onset, offset
    weak = [f"{v}_0_10\t{rows[v][0]}\n" for v in ids]
    dense = "".join(f"{v}_0_10\t{a}\t{b}\t{name}\n" for v, (name, a, b) in rows.items())
    write_llp(tmp_path / "theirs", AVVP_val_pd="".join(weak[:40]), AVVP_test_pd="".join(weak[40:]), AVVP_eval_audio=dense,
              AVVP_eval_visual=dense)
    for e in layout.TEXTED.values():
        text = compare.unit(rng.standard_normal((C, e.size))).astype(np.float32)
        for place in (e.folder, str(Path(e.texts).parent)):
            (tmp_path / "theirs" / place).mkdir(parents=True)
        np.save(tmp_path / "theirs" / e.texts, text)
        for v, (name, a, b) in rows.items():
            x = 0.1 * rng.standard_normal((10, e.size))
            x[a:b] += text[annotations.LLP_CLASSES.index(name)]
            np.save(tmp_path / "theirs" / e.folder / f"{v}.npy", x.astype(np.float32))
    return shutil.copytree(tmp_path / "theirs", tmp_path / "mine"), tmp_path / "theirs"


def test_labels_agree_where_features_do_and_the_share_of_those_that_do_not_is_the_true_one(sides):
    mine, theirs = sides
    llp = annotations.read_llp(theirs, lambda line: None)
    ids = {*llp.val.ids}
    teacher = uwav.Teacher(uwav.TeacherConfig(hidden=16, heads=2, feedforward=16, layers=1)).eval()
    found = compare.agreement(sides, llp, ids, teacher)
    assert list(found) == [f"{m}, {rule}" for rule in ("single seconds", "teacher") for m in ("audible", "visible")]
    assert all((x[:3] == 100).all() and np.isnan(x[3:]).all() for x in found.values())
    e, changed = layout.ENCODERS["clap"], llp.val.ids[:10]
    for v in changed:  # what they sound like is the noise of an empty second
        np.save(mine / e.folder / f"{v}.npy", np.random.default_rng(1).standard_normal((10, e.size)).astype(np.float32))
    found = compare.agreement(sides, llp, ids, None)
    events = llp.val.audio[:10].sum((0, 1))  # (C,): s that mine miss
    seconds = 10 * llp.val.weak.sum(0)
    assert found["audible, single seconds"][:3].tolist() == pytest.approx((100 - 100 * events[:3] / seconds[:3]).tolist())
    assert (found["visible, single seconds"][:3] == 100).all()
    assert compare.agreement(sides, llp, {"another"}, None) == {}


def test_the_command_prints_tables_and_verdict(sides, tmp_path, capsys):
    mine, theirs = sides
    model = uwav.Teacher(uwav.TeacherConfig(hidden=16, heads=2, feedforward=16, layers=1))
    torch.save(dict(kind="Teacher", config=dataclasses.asdict(model.config), weights=model.state_dict()), tmp_path / "teacher.pt")
    for e in layout.TEXTED.values():
        np.save(mine / e.texts, np.roll(np.load(mine / e.texts), 1, 0))
    features.main(["compare", str(mine), str(theirs), "--teacher", str(tmp_path / "teacher.pt")])
    printed = capsys.readouterr().out
    assert re.search("\nclap +60 ", printed) and "The same hard label, in % of the seconds" in printed
    assert "audible, teacher" in printed and "\nCheering  " in printed and "nan" not in printed
    assert "clip texts: SHUFFLED: 25 of 25 are another one there, class 0 is their class 24" in printed
    assert printed.endswith("VERDICT: NOT the same features: clap texts, clip texts\n")


@pytest.mark.parametrize("damage, message", [
    (lambda folder: shutil.rmtree(folder), "no file of features in both"),
    (lambda folder: np.save(folder / "feats_CLIP/segment_feats/video000000.npy", np.ones((10, 512))), r"video000000.npy: has shape \(10, 512\)"),
    (lambda folder: np.save(folder / "feats_CLAP/segment_feats/video000000.npy", np.full((10, 512), np.nan)), "video000000.npy: holds NaN"),
])
def test_features_that_cannot_be_compared_are_one_sentence(sides, damage, message):
    damage(sides[0])
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        compare.compare(*sides)
