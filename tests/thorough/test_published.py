"""The published models, at their real size and batch."""

import torch
import torch.nn.functional as F

import uwav
from train import presets


def test_one_optimiser_step_of_the_paper_han_at_batch_64():
    preset = presets.PRESETS["paper"]
    torch.manual_seed(0)
    B, T, C, config = preset.train.batch, 10, 25, preset.han["base"]
    model = uwav.HAN(config)
    optimizer = uwav.adamw(model, preset.train)
    weak, label = (torch.rand(B, C) > 0.9).float(), torch.rand(B, T, C)
    labels = uwav.PseudoLabels(label, label, *[uwav.class_balance(label)] * 2)
    output = model(torch.randn(B, T, config.audio_dim), torch.randn(B, 8 * T, config.visual_2d_dim),
                   torch.randn(B, T, config.visual_3d_dim))
    losses = uwav.han_losses(model, output, weak, labels, [(0.4, torch.randperm(B * T))] * 2)
    before = model.classifier.weight.clone()
    losses.sum().backward()
    optimizer.step()
    assert losses.isfinite().all() and (losses > 0).all() and not torch.equal(before, model.classifier.weight)


def test_one_optimiser_step_of_the_paper_teacher_at_batch_64():
    preset = presets.PRESETS["paper"]
    torch.manual_seed(0)
    B, T, C = preset.pretrain.batch, 12, 100  # 12 s: the shape that matters here is the batch; UnAV's 60 s only takes longer
    model = uwav.Teacher(preset.teacher)
    optimizer = uwav.adamw(model, preset.pretrain)
    text = F.normalize(torch.randn(C, 512), dim=-1), F.normalize(torch.randn(C, 768), dim=-1)
    mask = torch.arange(T) < torch.randint(1, T + 1, (B, 1))
    logits = model(F.normalize(torch.randn(B, T, 512), dim=-1), F.normalize(torch.randn(B, T, 768), dim=-1), *text, mask)
    loss = uwav.teacher_loss(*logits, (torch.rand(B, T, C) > 0.95).float(), mask)
    before = model.audio.mlp_out[2].weight.clone()
    loss.backward()
    optimizer.step()
    assert loss.isfinite() and not torch.equal(before, model.audio.mlp_out[2].weight)
