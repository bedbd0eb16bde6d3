"""Extreme data and numbers: each has a defined result."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import uwav
from conftest import SMALL
from data import splits
from train import checkpoints, cli
from uwav import SourceSplit, TargetSplit, parsing_scores

ROOT = Path(__file__).resolve().parents[2]
HAN = uwav.HANConfig(audio_dim=6, visual_2d_dim=8, visual_3d_dim=0, hidden=8, heads=2, feedforward=16, layers=1)
TEACHER = uwav.TeacherConfig(audio_dim=6, visual_dim=8, hidden=8, heads=2, feedforward=16, layers=1)


def target(N: int, T: int, C: int) -> TargetSplit:
    generator = torch.Generator().manual_seed(N + T + C)
    truth = [(torch.rand(N, T, C, generator=generator) < 0.5).byte() for _ in range(2)]
    features = [torch.randn(N, T, d, generator=generator).half() for d in (6, 8)]
    return TargetSplit(*features, None, (truth[0] | truth[1]).amax(1).float(), *truth)


def labels_of(data: TargetSplit, config: uwav.TrainConfig, threshold: float = 0.0) -> uwav.PseudoLabels:
    torch.manual_seed(0)
    N, T, C = data.audio_truth.shape
    return uwav.pseudo_labels([torch.randn(N, T, C) for _ in range(2)], [torch.full((C,), threshold)] * 2, data.weak, config)


# ---- small: one video, one second, one class ----


@pytest.mark.parametrize("N, T, C, batch", [(1, 1, 1, 1), (3, 1, 4, 2), (5, 7, 1, 2), (4, 3, 2, 1), (3, 10, 25, 64)])
def test_training_and_scores_work_for_one_video_one_second_one_class_or_a_batch_of_one(N, T, C, batch):
    data, config = target(N, T, C), uwav.TrainConfig(epochs=2, batch=batch, warmup=1)
    model = uwav.train_han(data, data, labels_of(data, config), replace(HAN, classes=C), config)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(0 <= score <= 100 for score in uwav.han_scores(model, data).values())


@pytest.mark.parametrize("length, classes, batch", [([1], 1, 1), ([1, 1, 5], 1, 2), ([3, 60], 4, 64)])
def test_pre_training_works_for_one_video_one_second_one_class(length, classes, batch):
    torch.manual_seed(0)
    S = sum(length)
    label = (torch.rand(S, classes) < 0.5).byte()
    data = SourceSplit(torch.randn(S, 6).half(), torch.randn(S, 8).half(), label, np.array(length))
    config, text = uwav.PretrainConfig(epochs=2, batch=batch, warmup=1), (torch.randn(classes, 6), torch.randn(classes, 8))
    model = uwav.train_teacher(data, data, text, TEACHER, config)
    assert all(torch.isfinite(p).all() for p in model.parameters()) and 0 <= uwav.teacher_scores(model, data, text)["av"] <= 100


# ---- empty: classes and labels that never occur ----


def test_a_class_without_positives_in_validation_gets_every_second_of_its_videos_as_a_hard_label():
    """Threshold -inf, as published: without evidence the weak label is all there is."""
    logit, weak = torch.randn(4, 5, 2), torch.tensor([[1.0, 1], [1, 0], [0, 1], [1, 1]])
    truth = torch.zeros(4, 5, 2)
    truth[0, 1, 0] = 1
    threshold, f1 = uwav.fit_thresholds(logit, truth, weak)
    assert threshold[1] == -torch.inf and f1[1] == 0
    assert torch.equal(uwav.hard_labels(logit, threshold, weak)[..., 1], weak[:, None, 1].expand(4, 5))
    soft = uwav.soft_labels(logit, threshold, weak)
    assert torch.isfinite(soft).all() and (soft[0, :, 1] > 0.5).all()


def test_hard_labels_that_are_all_negative_leave_a_finite_loss_in_which_negatives_weigh_nothing():
    data, config = target(3, 4, 2), uwav.TrainConfig()
    labels = labels_of(data, config, threshold=1e6)
    assert labels.audio.max() == 0  # sigmoid(-500000)
    w_pos, w_neg = labels.audio_weights
    assert (float(w_pos), float(w_neg)) == (config.W * 2, 0.0)
    model = uwav.HAN(replace(HAN, classes=2))
    mixup = [(torch.tensor(0.3), torch.randperm(12)) for _ in range(2)]
    losses = uwav.han_losses(model, model(*data.inputs(slice(None))), data.weak, labels, mixup)
    losses.sum().backward()
    assert losses.isfinite().all() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_pre_training_on_videos_without_any_event_has_a_finite_loss():
    logits = [torch.randn(2, 3, 4, requires_grad=True) for _ in range(2)]
    loss = uwav.teacher_loss(*logits, torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.isfinite() and all(z.grad.isfinite().all() for z in logits)


def test_without_truth_and_predictions_every_score_is_100():
    nothing = torch.zeros(3, 10, 25)
    assert set(parsing_scores(nothing, nothing, nothing, nothing).values()) == {100.0}


# ---- large: logits and gradients at the ends of single precision ----


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_losses_and_their_gradients_are_finite_for_logits_of_any_size(size):
    torch.manual_seed(0)
    for sign in (-1, 1):
        logit = torch.full((2, 3, 4), sign * size, requires_grad=True)
        label, weak = torch.rand(2, 3, 4), torch.ones(2, 4)
        probability = torch.full((2, 4), float(sign > 0), requires_grad=True)
        losses = (uwav.segment_loss(logit, label, weak, 2.0, 3.0), uwav.video_loss(probability, weak),
                  uwav.teacher_loss(logit, logit, label.round(), torch.ones(2, 3, dtype=torch.bool)))
        for loss in losses:
            loss.backward()
            assert loss.isfinite()
        assert logit.grad.isfinite().all() and probability.grad.isfinite().all()


def test_gradients_that_explode_are_clipped_before_the_step():
    data, config = target(4, 3, 2), uwav.TrainConfig(batch=4)
    labels = labels_of(data, config)._replace(audio_weights=(1e12, 1e12))
    model = uwav.HAN(replace(HAN, classes=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    (losses,) = uwav.han_epoch(model, model, uwav.han_losses, optimizer, data, labels, config, 1)
    step = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    assert losses.sum() > 1e10 and float(step.norm()) == pytest.approx(config.clip, rel=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_with_a_sentence_and_keeps_what_it_had(value, tmp_path):
    data, config = target(4, 3, 2), uwav.TrainConfig(epochs=3, batch=2, warmup=1)
    labels, run = labels_of(data, config), checkpoints.Run(tmp_path / "han.pt", "han", {})
    labels.audio[0] = value
    with pytest.raises(ValueError, match=r"han.pt: the loss became (nan|inf) in epoch 1; lower the learning rate"):
        uwav.train_han(data, data, labels, replace(HAN, classes=2), config, run)
    assert not (tmp_path / "han.pt").exists()


# ---- the same numbers again ----


def test_one_thread_and_two_give_the_same_training_to_1e_5(finished, tmp_path):
    """The whole `train` command in two processes: losses, validation scores and outputs."""
    data, labels = str(finished / "data"), str(finished / "seed0/labels_teacher.npz")
    results = []
    for threads in ("1", "2"):
        out = tmp_path / threads
        command = ["train", data, str(out), "--labels", labels, "--features", "clip_clap", *SMALL, "--set", "epochs=3",
                   "--set", "peak_lr=0.0001"]
        subprocess.run([sys.executable, "uwav.py", *command], cwd=ROOT, check=True, capture_output=True,
                       env=os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads})
        history = [json.loads(line) for line in (out / "han.jsonl").read_text().splitlines()]
        model = checkpoints.load_model(out / "han.pt")
        test = splits.load_target(data, "test", "clip_clap", "cpu")
        results.append(([r["loss"] for r in history], uwav.han_probabilities(model, test)))
    (losses, outputs), (losses_2, outputs_2) = results
    assert losses == pytest.approx(losses_2, rel=1e-5)
    for one, two in zip(outputs, outputs_2):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


# ---- the wrong machine ----


def test_a_gpu_that_is_not_there_is_one_sentence(finished, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit, match="--device cuda: this PyTorch sees no GPU"):
        cli.main(["pretrain", str(finished / "data"), str(tmp_path), "--device", "cuda"])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")])
def test_out_of_memory_names_the_option_that_helps(error, finished, tmp_path, monkeypatch):
    def fails(*_):
        raise error

    monkeypatch.setattr(uwav, "teacher_loss", fails)
    with pytest.raises(SystemExit, match="error: out of memory .*--set batch=N"):
        cli.main(["pretrain", str(finished / "data"), str(tmp_path), *SMALL])


def test_other_errors_of_pytorch_are_not_taken_for_a_lack_of_memory(finished, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(uwav, "teacher_loss", fails)
    with pytest.raises(RuntimeError, match="shapes"):
        cli.main(["pretrain", str(finished / "data"), str(tmp_path), *SMALL])


def test_run_all_refuses_an_older_python_in_one_sentence(tmp_path):
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")  # as an older one answers the question for its version
    (tmp_path / "python3").chmod(0o755)
    done = subprocess.run(["bash", ROOT / "run_all.sh", "--out", tmp_path / "out"], capture_output=True, text=True,
                          env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == 1 and "needs Python 3.10 to 3.14" in done.stderr and not (tmp_path / "out").exists()
