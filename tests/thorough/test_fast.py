"""`--fast` and what makes it fast on a GPU, as far as a CPU can tell."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

import uwav
from common import devices
from conftest import SMALL
from train import checkpoints, cli, stages
from uwav import SourceSplit, TargetSplit

CPU = torch.device("cpu")
SMALL_HAN = uwav.HANConfig(classes=4, hidden=8, heads=2, feedforward=16, layers=2, dropout=0.0)
SMALL_TEACHER = uwav.TeacherConfig(hidden=8, heads=2, feedforward=16, layers=2, dropout=0.0)


def random_target(videos: int) -> TargetSplit:
    sizes = SMALL_HAN.audio_dim, SMALL_HAN.visual_2d_dim, SMALL_HAN.visual_3d_dim
    arrays = [torch.randn(videos, 10, size).half() for size in sizes]
    return TargetSplit(*arrays, (torch.rand(videos, 4) > 0.5).float(), None, None)


def random_labels(data: TargetSplit, config: uwav.TrainConfig) -> uwav.PseudoLabels | None:
    logits = [torch.randn(len(data.weak), 10, 4) for _ in range(2)]
    return uwav.pseudo_labels(logits, [torch.zeros(4)] * 2, data.weak, config)


def random_source() -> tuple[SourceSplit, tuple[torch.Tensor, torch.Tensor]]:
    length = np.array([10, 20, 30] * 5)
    arrays = [torch.randn(300, size) for size in (512, 768, 7)]
    data = SourceSplit(arrays[0].half(), arrays[1].half(), (arrays[2] > 1).byte(), length)
    return data, (torch.randn(7, 512), torch.randn(7, 768))


def test_without_the_switch_nothing_is_wrapped():
    model = uwav.HAN(SMALL_HAN)
    assert devices.accelerate(model, False, CPU, one_shape=True) is model


def test_bf16_outputs_and_losses_are_those_of_single_precision_to_its_rounding():
    torch.manual_seed(0)
    config, model, data = replace(uwav.TrainConfig(), mixup=False), uwav.HAN(SMALL_HAN), random_target(16)
    labels, results = random_labels(data, config), []
    for on in (False, True):
        forward, losses_of = (devices.accelerate(f, on, CPU, one_shape=True) for f in (model, uwav.han_losses))
        output = forward(*data.inputs(slice(None)))
        losses = losses_of(model, output, data.weak, labels, None)
        model.zero_grad()
        losses.sum().backward()
        results.append((losses, model.classifier.weight.grad))
        assert (output.audio_logit.dtype == torch.bfloat16) is on
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
    for exact, rounded in zip(*results):
        torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.01)
        assert not torch.equal(rounded, exact)


@pytest.mark.parametrize("one_shape", [True, False])
def test_what_a_gpu_compiles_is_whole_graphs_that_all_seeds_share(one_shape, monkeypatch):
    """Traced for real, then run by a backend that needs no compiler; a part that cannot be traced is an error here."""
    torch._dynamo.reset()
    counters.clear()
    devices._compiled.cache_clear()
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, dynamic, mode: compile_(f, dynamic=dynamic, backend="eager", fullgraph=True))
    compiled, graphs = devices._compiled(one_shape), []
    for seed in range(2):
        torch.manual_seed(seed)
        if one_shape:
            model, data, config = uwav.HAN(SMALL_HAN), random_target(8), uwav.TrainConfig()
            labels, inputs = random_labels(data, config), data.inputs(slice(None))
            mixup = [(torch.rand(()), torch.randperm(80)) for _ in range(2)]
            batch = data.weak, labels, mixup
            expected = uwav.han_losses(model, model(*inputs), *batch)
            result = compiled(uwav.han_losses, model, compiled(model, *inputs), *batch)
        else:
            model, (data, text) = uwav.Teacher(SMALL_TEACHER), random_source()
            for videos in ([1, 2, 4], [0, 1, 3, 4]):  # one compiled version serves both shapes
                audio, visual, _, mask = data.batch(np.array(videos))
                inputs = audio, visual, *text, mask
                expected, result = (torch.stack(z) for z in (model(*inputs), compiled(model, *inputs)))
        torch.testing.assert_close(result, expected)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == ([2, 2] if one_shape else [1, 1])
    devices._compiled.cache_clear()


def test_fast_training_by_the_commands_is_repeatable_recorded_and_resumable(finished, tmp_path, monkeypatch):
    data, labels = str(finished / "data"), str(finished / "seed0/labels_teacher.npz")
    command = ["train", data, "OUT", "--labels", labels, "--features", "clip_clap", *SMALL, "--set", "epochs=2", "--fast"]

    def train(name: str) -> dict:
        cli.main([str(tmp_path / name) if x == "OUT" else x for x in command])
        return checkpoints.load_file(tmp_path / name / "han.pt")

    undisturbed = train("a")
    assert undisturbed["settings"]["training"]["fast"] is True
    monkeypatch.setattr(checkpoints.Run, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train("b")
    monkeypatch.undo()
    resumed = train("b")
    for name, weight in undisturbed["weights"].items():
        assert weight.dtype == torch.float32 and torch.equal(weight, resumed["weights"][name])
    with pytest.raises(SystemExit):  # not mixed up with a run in single precision
        cli.main([str(tmp_path / "a") if x == "OUT" else x for x in command if x != "--fast"])


def test_an_ablation_reads_each_split_once_for_all_rows_and_seeds(finished, tmp_path, monkeypatch):
    """In one process, which preset `demo` would not be."""
    read, small = [], ["paper" if x == "demo" else x for x in SMALL]
    load = stages.load_target
    stages._target.cache_clear()
    monkeypatch.setattr(stages, "load_target", lambda folder, split, *rest: (read.append(split), load(folder, split, *rest))[1])
    cli.main(["ablate", str(finished / "data"), str(tmp_path), "--seeds", "2", *small, "--set", "epochs=1", "--set", "project_visual=true"])
    assert sorted(read) == ["test", "train", "val"]
