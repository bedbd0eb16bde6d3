"""The demo world: honest structure, calibrated noise, and the layout of a packed folder."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data import splits
from data import demo_world
from data import layout
from data import annotations
from data.demo_world import WorldConfig

TINY = replace(WorldConfig(), train=12, val=6, test=6, source_train=6, source_validation=3, source_test=3)


@pytest.fixture(scope="module")
def invented() -> annotations.LLP:
    return demo_world.invented_llp(replace(WorldConfig(), train=2000, val=2000, test=2000))


def test_calibration_is_within_5_points_of_valor_on_the_demo_test_set():
    scores = demo_world.segment_label_scores(WorldConfig())
    for name, published in demo_world.VALOR.items():
        assert abs(scores[name] - published) < 5, (name, scores[name])


def test_invented_annotations_follow_what_was_measured_on_llp(invented):
    """Figures in brackets: measured on LLP val + test."""
    weak = np.concatenate([invented.val.weak, invented.test.weak])
    audio = np.concatenate([invented.val.audio, invented.test.audio])
    visual = np.concatenate([invented.val.visual, invented.test.visual])
    classes = weak.sum(1)
    assert [(classes == k).mean() for k in (1, 2, 3)] == pytest.approx([0.33, 0.55, 0.09], abs=0.03)
    heard, seen = audio.any(1), visual.any(1)
    perceived = (heard | seen).sum()
    pairs = [(heard & seen).sum() / perceived, (heard & ~seen).sum() / perceived, (~heard & seen).sum() / perceived]
    assert pairs == pytest.approx([0.60, 0.34, 0.04], abs=0.04)
    assert (audio.all(1).sum() / heard.sum(), visual.all(1).sum() / seen.sum()) == pytest.approx((0.41, 0.63), abs=0.04)
    assert (audio.mean(), visual.mean()) == pytest.approx((0.049, 0.039), abs=0.004)
    n, c = np.nonzero(heard & seen)
    a, v = audio[n, :, c], visual[n, :, c]
    iou = (a & v).sum(1) / (a | v).sum(1)
    assert ((iou == 1).mean(), (iou < 0.5).mean()) == pytest.approx((0.60, 0.14), abs=0.04)
    runs = {m: ((np.diff(x, axis=1, prepend=0) == 1).sum(1)) for m, x in (("a", audio.astype(int)), ("v", visual.astype(int)))}
    one = [(runs[m][runs[m] > 0] == 1).mean() for m in ("a", "v")]
    assert one == pytest.approx([0.79, 0.89], abs=0.04)
    assert weak[:, 0].mean() == pytest.approx(0.5, abs=0.05) and 0.003 < weak.mean(0).min() < 0.02


def test_invented_unav_has_lengths_and_events_like_the_real_one(shared):
    real = annotations.read_unav(shared / "data/unav/unav100_annotations.json").validation
    ours = demo_world.invented_unav(replace(WorldConfig(), source_validation=1500)).validation
    mean_length, positive_rate = ([f(s.labels) for s in (ours, real)] for f in (
        lambda labels: np.mean([len(x) for x in labels]), lambda labels: np.mean([x.mean() for x in labels])))
    assert mean_length[0] == pytest.approx(mean_length[1], rel=0.05)
    assert positive_rate[0] == pytest.approx(positive_rate[1], rel=0.2)
    assert min(len(x) for x in ours.labels) >= 10 and max(len(x) for x in ours.labels) <= 60


def test_truth_drawn_for_weak_labels_agrees_with_them(invented):
    audio, visual = demo_world.draw_truth(invented.train.weak, 10, np.random.default_rng(0))
    assert not ((audio | visual).any(1) & ~invented.train.weak.astype(bool)).any()
    assert (audio | visual).any(1).sum() > 0.97 * invented.train.weak.sum()


def test_most_real_target_classes_have_a_relative_among_the_source_classes(shared):
    unav = annotations.read_unav(shared / "data/unav/unav100_annotations.json")
    alone = [t for t in annotations.LLP_CLASSES if not any(demo_world.related(t, s) for s in unav.classes)]
    assert alone == ["Frying_(food)", "Chicken_rooster", "Blender"]


def test_related_classes_are_closer_than_others():
    config = WorldConfig()
    llp, unav = demo_world.invented_llp(TINY), demo_world.invented_unav(TINY)
    geometry = demo_world.build_geometry(llp, unav, config.seed)
    for feature in demo_world.SIZES:
        target, source = geometry["llp", feature].direction, geometry["unav", feature].direction
        cosine = target @ source.T  # (25, 100)
        relatives = np.arange(22)
        assert cosine[relatives, relatives].mean() > 0.6 and abs(np.median(cosine)) < 0.1


def test_embeddings_have_unit_length_and_remember_their_neighbours():
    geometry = demo_world.build_geometry(demo_world.invented_llp(TINY), demo_world.invented_unav(TINY), 0)["llp", "clip"]
    truth = np.zeros((50, 10, 25), np.uint8)
    x = demo_world.render(truth, truth.any(1), geometry, 1.0, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, atol=1e-5)
    z = x - x.mean((0, 1))
    near, far, other = (z[:, 0] * z[:, 1]).sum(-1).mean(), (z[:, 0] * z[:, 9]).sum(-1).mean(), (z[:-1, 0] * z[1:, 0]).sum(-1).mean()
    assert near > far > other + 0.05  # background drifts, the scene of the video stays


def test_lost_evidence_comes_back():
    lost = demo_world.lost_evidence((2000, 20, 1), np.random.default_rng(0)) < 1
    assert lost.mean() == pytest.approx(demo_world.LOSE / (demo_world.LOSE + demo_world.RECOVER), abs=0.02)
    assert lost[:, 1:][lost[:, :-1]].mean() == pytest.approx(1 - demo_world.RECOVER, abs=0.02)


def test_same_seed_makes_the_same_world_and_another_seed_another(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        demo_world.make(tmp_path / name, replace(TINY, seed=seed))
    a, b, c = (np.load(tmp_path / n / "llp/train/clip.npy") for n in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_world_is_a_packed_folder_that_the_method_reads(tmp_path):
    demo_world.make(tmp_path / "w", TINY)
    assert layout.read_index(tmp_path / "w")["source"]["real_annotations"] == []
    split = splits.load_target(tmp_path / "w", "val", "clip_clap", "cpu")
    assert split.audio.shape == (6, 10, 512) and split.visual_2d.shape == (6, 10, 768) and split.audio_truth.shape == (6, 10, 25)
    source = splits.load_source(tmp_path / "w", "train", "cpu")
    assert len(source.audio) == len(source.visual) == len(source.label) == source.length.sum()
    for dataset, classes in (("llp", 25), ("unav", 100)):
        for text in splits.load_text(tmp_path / "w", dataset, "cpu"):
            torch.testing.assert_close(text.norm(dim=-1), torch.ones(classes))
    assert not (tmp_path / "w/llp/train/audio.npy").exists()  # the truth of the training clips stays unknown
    with pytest.raises(FileNotFoundError, match="feature set 'base' needs vggish, res152, r2plus1d_18"):
        splits.load_target(tmp_path / "w", "val", "base", "cpu")


def test_an_interrupted_world_is_completed_to_the_same_world(tmp_path, monkeypatch):
    demo_world.make(tmp_path / "whole", TINY)
    calls = 0

    def render_a_little(*arguments):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return original(*arguments)

    original = demo_world.render_split
    monkeypatch.setattr(demo_world, "render_split", render_a_little)
    with pytest.raises(KeyboardInterrupt):
        demo_world.make(tmp_path / "part", TINY)
    assert not (tmp_path / "part/index.json").exists()
    demo_world.make(tmp_path / "part", TINY)
    files = {p.relative_to(tmp_path / "whole"): p.read_bytes() for p in (tmp_path / "whole").rglob("*") if p.is_file()}
    assert files == {p.relative_to(tmp_path / "part"): p.read_bytes() for p in (tmp_path / "part").rglob("*") if p.is_file()}


def test_real_annotations_keep_their_videos_splits_and_dense_truth(shared, tmp_path):
    """The first videos of every real split, dressed with invented features."""
    llp = annotations.read_llp(shared / "data/llp", lambda line: None)
    unav = annotations.read_unav(shared / "data/unav/unav100_annotations.json")
    first = lambda s: annotations.LLPSplit(s.ids[:20], s.weak[:20], *(() if s.audio is None else (s.audio[:20], s.visual[:20])))  # noqa: E731
    llp = annotations.LLP(llp.classes, first(llp.train), first(llp.val), first(llp.test))
    unav = annotations.UnAV(unav.classes, *(annotations.UnAVSplit(s.ids[:5], s.labels[:5]) for s in (unav.train, unav.validation, unav.test)))
    index = demo_world.make(tmp_path / "w", WorldConfig(), llp, unav)
    assert index["source"]["real_annotations"] == ["llp", "unav"] and index["llp"]["videos"]["test"] == llp.test.ids
    assert np.array_equal(np.load(tmp_path / "w/llp/test/visual.npy"), llp.test.visual)
    assert np.load(tmp_path / "w/unav/train/length.npy").tolist() == [len(x) for x in unav.train.labels]
