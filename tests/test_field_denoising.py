"""The systems that train with denoised or self-made labels: prototypes, JoMoLD, CoLeaF."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import uwav
from field import prototypes

C, T = 4, 10


def world(videos: int, seed: int, seconds: int = T, visual_3d: int = 3) -> uwav.TargetSplit:
    """A small split whose features show its classes: dense truth, the weak label that follows, features of truth + noise."""
    rng = torch.Generator().manual_seed(seed)
    audio, visual = ((torch.rand(videos, 1, C, generator=rng) < 0.5) & (torch.rand(videos, seconds, C, generator=rng) < 0.6) for _ in range(2))
    weak = (audio | visual).any(1).float()

    def features(truth, size: int):
        basis = torch.randn(C, size, generator=torch.Generator().manual_seed(size))
        return (truth.float() @ basis + 0.1 * torch.randn(videos, seconds, size, generator=rng)).half()

    return uwav.TargetSplit(features(audio, 6), features(visual, 8), features(visual, visual_3d) if visual_3d else None, weak, audio.byte(), visual.byte())


TINY = dict(classes=C, audio_dim=6, visual_2d_dim=8, visual_3d_dim=3, hidden=16, heads=1, feedforward=16, layers=1)


# ---- prototype labels: no recorded case, so cases by hand ----


def test_k_means_finds_clusters_made_by_hand_and_drops_empty_ones():
    axes = torch.eye(3, 5)
    x = F.normalize(axes.repeat_interleave(20, 0) + 0.05 * torch.randn(60, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    found = 0
    for seed in range(8):
        centres = prototypes.k_means(x, 3, 10, torch.Generator().manual_seed(seed))
        assert torch.allclose(centres.norm(dim=-1), torch.ones(len(centres)))
        found += bool(((centres @ axes.T).amax(0) > 0.99).all())
        mine = F.one_hot((x @ centres.T).argmax(1), len(centres)).float()
        assert torch.allclose(centres, F.normalize(mine.T @ x, dim=-1), atol=1e-6), "each centre is the mean of its own"
    assert found >= 1
    same = torch.ones(4, 5) / 5**0.5
    assert prototypes.k_means(same, 3, 10, torch.Generator().manual_seed(0)).shape == (1, 5)
    assert prototypes.k_means(same[:0], 3, 10, torch.Generator().manual_seed(0)).shape == (0, 5)


def test_prototypes_come_from_the_highest_seconds_of_the_videos_that_have_the_class():
    feat = torch.eye(6).reshape(2, 3, 6)  # six seconds, each its own direction
    logit = torch.tensor([[5.0, 1.0, 4.0], [9.0, 9.0, 9.0]])[..., None].expand(2, 3, 3)
    weak = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    config = prototypes.PrototypeConfig(share=0.67, clusters=2)
    first, none, both = prototypes.prototypes(feat, logit, weak, config, torch.Generator().manual_seed(0))
    assert sorted(first.argmax(1).tolist()) == [0, 2] and none.shape == (0, 6)
    assert set(both.nonzero()[:, 1].tolist()) == {0, 3, 4, 5}, "4 of 6 seconds: those of 9, and 5"
    z = prototypes.similarity(feat, [first, none, both])
    assert z[0, :, 0].tolist() == [1, 0, 1] and (z[..., 1] == -1).all() and z.shape == (2, 3, 3)
    few = prototypes.prototypes(feat, logit, weak, prototypes.PrototypeConfig(share=0.01, clusters=3), torch.Generator().manual_seed(0))
    assert len(few[0]) == 3 and sorted(few[2].argmax(1).tolist()) == [3, 4, 5], "at least as many seconds as clusters"


@pytest.mark.parametrize("visual_3d", (3, 0))
def test_prototype_labels_train_a_parser_better_than_the_one_that_made_them(visual_3d):
    splits = dict(train=world(96, 0, visual_3d=visual_3d), validation=world(48, 1, visual_3d=visual_3d))
    model_config = uwav.HANConfig(**TINY | dict(visual_3d_dim=visual_3d))
    config = uwav.TrainConfig(epochs=12, batch=16, peak_lr=0.005, pseudo_label="none", reweight=False, mixup=False)
    han = uwav.train_han(*splits.values(), None, model_config, config)
    z = prototypes.logits(han, splits)
    again = prototypes.logits(han, splits)
    for name, data in splits.items():
        assert all(torch.equal(a, b) and a.shape == data.audio_truth.shape and a.abs().max() <= 1 + 1e-6 for a, b in zip(z[name], again[name]))
    validation = splits["validation"]
    thresholds = [uwav.fit_thresholds(x, truth, validation.weak)[0] for x, truth in zip(z["validation"], (validation.audio_truth, validation.visual_truth))]
    hard = uwav.TrainConfig(epochs=12, batch=16, peak_lr=0.005, pseudo_label="hard", reweight=False, mixup=False)
    labels = uwav.pseudo_labels(z["train"], thresholds, splits["train"].weak, hard)
    parser = uwav.train_han(*splits.values(), labels, model_config, hard)
    assert uwav.han_scores(parser, validation)["seg_type"] > uwav.han_scores(han, validation)["seg_type"] + 3
