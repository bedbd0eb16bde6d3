"""What the method asks of a device, without one: no tensor of another device, no value, and how many operations."""

import re
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import uwav
from bench import Launches, on_cards
from train import presets
from uwav import SourceSplit, TargetSplit

HAN = uwav.HANConfig(classes=4, hidden=8, heads=2, feedforward=16, layers=2)
TEACHER = uwav.TeacherConfig(hidden=8, heads=2, feedforward=16, layers=2)


def random_target(videos: int) -> TargetSplit:
    arrays = [torch.randn(videos, 10, size).half() for size in (HAN.audio_dim, HAN.visual_2d_dim, HAN.visual_3d_dim)]
    truth = [(torch.rand(videos, 10, 4) > 0.5).byte() for _ in range(2)]
    return TargetSplit(*arrays, (torch.rand(videos, 4) > 0.5).float(), *truth)


def labels_of(data: TargetSplit, config: uwav.TrainConfig) -> uwav.PseudoLabels | None:
    return uwav.pseudo_labels([torch.randn(len(data.weak), 10, 4) for _ in range(2)], [torch.zeros(4)] * 2, data.weak, config)


@pytest.fixture
def meta(monkeypatch):
    """PyTorch's device without values: reading one, or mixing it with a tensor on the CPU, is an error. The fused
    optimiser has the operations for it, but looks for a known name of a device before."""
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *given, **options: None)
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("setting", presets.ABLATION)
def test_training_the_han_mixes_no_devices_and_never_waits(setting, meta):
    config, data = replace(uwav.TrainConfig(), batch=8, **presets.ABLATION[setting]), random_target(20)
    model, labels = uwav.HAN(HAN), labels_of(data, config)
    steps = list(uwav.han_epoch(model, model, uwav.han_losses, uwav.adamw(model, config), data, labels, config, 1))
    assert len(steps) == 3 and all(x.device.type == "meta" and x.shape == (5,) for x in steps)
    with pytest.raises(RuntimeError, match="meta"):
        float(steps[0].sum())  # this device does notice


def test_training_the_teacher_mixes_no_devices_and_never_waits(meta):
    config, length = replace(uwav.PretrainConfig(), batch=4), np.array([10, 20, 30] * 5)
    data = SourceSplit(torch.randn(300, 512).half(), torch.randn(300, 768).half(), torch.ones(300, 7, dtype=torch.uint8), length)
    model, text = uwav.Teacher(TEACHER), (torch.randn(7, 512), torch.randn(7, 768))
    steps = list(uwav.teacher_epoch(model, model, uwav.adamw(model, config), data, text, config, 1))
    assert len(steps) == 4 and all(x.device.type == "meta" for x in steps)


def test_labels_thresholds_and_the_gate_mix_no_devices_and_never_wait(meta):
    data, model, text = random_target(70), uwav.HAN(HAN), (torch.randn(4, 128), torch.randn(4, 2048))
    teacher = uwav.Teacher(replace(TEACHER, audio_dim=128, visual_dim=2048))
    logits = uwav.teacher_logits(teacher, data, text)
    fitted = [uwav.fit_thresholds(z, truth, data.weak) for z, truth in zip(logits, (data.audio_truth, data.visual_truth))]
    labels = uwav.pseudo_labels(logits, [threshold for threshold, _ in fitted], data.weak, uwav.TrainConfig())
    events = uwav.gated_predictions(*uwav.han_probabilities(model, data))
    for x in (*logits, *sum(fitted, ()), *labels[:2], *labels.audio_weights, *labels.visual_weights, *events):
        assert x.device.type == "meta"


class Kinds(Launches):
    """Also how many of each kind."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, *given):
        self.found[function._schema.name] += 1
        return super().__torch_dispatch__(function, *given)


def test_a_step_of_the_han_is_less_than_1100_launches():
    """At the published depth; width does not matter."""
    torch.manual_seed(0)
    config, data = uwav.TrainConfig(batch=2), random_target(4)
    model, labels = uwav.HAN(replace(HAN, layers=uwav.HANConfig().layers)), labels_of(data, config)
    steps = uwav.han_epoch(model, model, uwav.han_losses, uwav.adamw(model, config), data, labels, config, 1)
    next(steps)  # which also makes the optimiser's state
    with Kinds() as launches:
        next(steps)
    assert 500 < launches.count < 1100, launches.found
    assert launches.found["aten::bmm"] == 6 * 3 * uwav.HANConfig().layers  # three attentions a layer, there and back: of both to themselves, of each to the other


def test_what_an_epoch_asks_of_a_card_is_computed_from_its_launches_and_operations():
    h, T, B = 32, 10, 64
    said = on_cards(uwav.HANConfig(hidden=h, feedforward=4 * h))
    steps, launches, flops = (float(x.replace(",", "")) for x in re.search(r"(\d+) steps of ([\d,]+) launches and ([\d.]+) GFLOP", said).groups())
    # by hand: what reads the features; 5 layers, each for 2 modalities: 8 h^2 of projections, 8 h^2 of linear layers, two attentions over T seconds
    first, inner = 128 * 2 * h + 2560 * h, 2 * h * h + 5 * 2 * (16 * h * h + 2 * 2 * T * h)
    assert flops == pytest.approx(2 * B * T * (2 * first + 3 * inner) / 1e9, rel=0.05), "there once, back twice, to features once; the heads are less"
    assert steps == 157 and 500 < launches < 1100 and said.startswith("computed, not measured") and "published: 24 s on an RTX 3090" in said
    for card, speed in (("RTX 3090", 35e12), ("H100 in bf16", 400e12)):
        found = re.search(rf"{card}: ([\d.]+) s at 5 us a launch, ([\d.]+) s at", said).groups()
        assert [float(x) for x in found] == pytest.approx([steps * launches * 5e-6, steps * flops * 1e9 / speed], abs=0.006)
