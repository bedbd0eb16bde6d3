"""docs/questions.md: what can be calculated in its answers. Its commands are run by thorough/test_exercises.py."""

import math
import re
from pathlib import Path

import pytest
import torch

import uwav

PAGE = re.sub(r"\s+", " ", (Path(__file__).resolve().parents[1] / "docs/questions.md").read_text(encoding="utf-8"))
A, V, M = torch.tensor([[.5, .3, .2], [.3, .5, .2], [.4, .4, .9]]).double()  # weights over time of both senses, sound's over the senses


def pooled_weights(a: torch.Tensor, v: torch.Tensor, m: torch.Tensor) -> float:
    """Sum of all weights of HAN.pool, by its own code: probabilities of 1 in a network whose softmaxes give a, v and m (T,)."""
    han = uwav.HAN(uwav.HANConfig(classes=1, audio_dim=2, visual_2d_dim=2, visual_3d_dim=0, hidden=2, heads=1, feedforward=2, layers=0))
    han.time_pool = torch.nn.Linear(2, 1, bias=False).double()
    han.modal_pool = torch.nn.Linear(2, 1, bias=False).double()
    han.time_pool.weight.data, han.modal_pool.weight.data = torch.eye(2).double()[:, None]
    sound = torch.stack([a.log(), m.log()], 1)[None]  # (1, T, 2): what the two layers will read
    vision = torch.stack([v.log(), (1 - m).log()], 1)[None]
    certain = torch.full((1, len(a), 2, 1), 1e4, dtype=torch.double)  # logits of probability 1
    return float(han.pool(torch.stack([sound, vision], 2), certain).detach())


def test_the_weights_of_the_pooling_sum_to_what_the_page_says():
    torch.manual_seed(0)
    for T in (1, 2, 3, 10):
        a, v = torch.randn(2, T).double().softmax(1)
        m = torch.rand(T).double()
        total = pooled_weights(a, v, m)
        assert total == pytest.approx(float(1 + ((a - v) * m).sum()), abs=1e-6) and 0 < total < 2
        assert pooled_weights(a, v, m[:1].expand(T)) == pytest.approx(1, abs=1e-6) == pooled_weights(a, a, m)
    assert pooled_weights(A, V, M) == pytest.approx(1, abs=1e-6) and A.tolist() != V.tolist() and len(set(M.tolist())) > 1, "by chance"
    assert "a = .5 .3 .2, v = .3 .5 .2, m = .4 .4 .9" in PAGE and "only if" not in PAGE.split("Why may the pooled")[-1].split("##")[0]


@pytest.mark.parametrize("y, loss", [(1, 0.0), (0, 15.9)])
def test_above_1_the_video_loss_has_no_gradient_whichever_the_label(y, loss):
    p = torch.tensor([[1.39]], requires_grad=True)
    said = uwav.video_loss(p, torch.tensor([[float(y)]]))
    said.backward()
    assert p.grad == 0 and float(said.detach()) == pytest.approx(loss, abs=0.06) and "L_video is at its largest, 15.9" in PAGE
    z = torch.tensor([[[3.0]]], requires_grad=True)
    uwav.segment_loss(z, torch.zeros(1, 1, 1), torch.zeros(1, 1)).backward()
    assert z.grad > 0, "the segments still push it down"


def test_a_branch_that_says_yes_has_no_gradient_from_the_product():
    for z_v in (-2.0, 0.5, 30.0):
        z = torch.tensor([1.0, z_v], dtype=torch.double, requires_grad=True)
        torch.nn.functional.logsigmoid(z).sum().backward()
        assert float(z.grad[1]) == pytest.approx(1 - 1 / (1 + math.exp(-z_v)), abs=1e-9)


def test_temperature_2_moves_labels_as_the_page_says():
    z, theta, weak = torch.tensor([1.0, 2.0, 4.0])[None, :, None], torch.zeros(1), torch.ones(1, 1)
    one, two = (uwav.soft_labels(z, theta, weak, t).flatten().tolist() for t in (1, 2))
    assert [f"{x:.2f}" for x in (*two, *one)] == ["0.62", "0.73", "0.88", "0.73", "0.88", "0.98"]
    assert "gets 0.62 in place of 0.73, one 2 above 0.73 in place of 0.88, one 4 above 0.88 in place of 0.98" in PAGE


def test_soft_labels_under_a_threshold_of_minus_infinity_are_at_least_062():
    z = torch.randn(20, 5, 3) * 10
    soft = uwav.soft_labels(z, torch.full((3,), -torch.inf), torch.ones(20, 3))
    assert float(soft.min()) == pytest.approx(0.6225, abs=1e-4) and "at least 0.62" in PAGE


def test_the_scale_of_the_teacher_is_a_factor_of_its_last_layer():
    config = dict(audio_dim=4, visual_dim=4, hidden=8, heads=2, feedforward=8, layers=1)
    scaled = uwav.Teacher(uwav.TeacherConfig(**config)).eval()
    plain = uwav.Teacher(uwav.TeacherConfig(**config, audio_scale=1, visual_scale=1)).eval()
    plain.load_state_dict(scaled.state_dict())
    for branch, factor in ((plain.audio, math.log(26.88)), (plain.visual, math.log(100))):
        branch.mlp_out[-1].weight.data *= factor
        branch.mlp_out[-1].bias.data *= factor
    x = torch.randn(4, 2, 7, 4)
    for ours, theirs in zip(scaled(*x[:2], *x[2:, 0]), plain(*x[:2], *x[2:, 0])):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_shuffled_video_gets_the_shuffled_answer():
    torch.manual_seed(0)
    han = uwav.HAN(uwav.HANConfig(3, 4, 4, 0, 8, 2, 8, 2)).eval()
    audio, visual, order = torch.randn(1, 6, 4), torch.randn(1, 6, 4), torch.randperm(6)
    plain, shuffled = han(audio, visual), han(audio[:, order], visual[:, order])
    torch.testing.assert_close(plain.video_prob, shuffled.video_prob)
    torch.testing.assert_close(plain.audio_logit[:, order], shuffled.audio_logit)


def test_the_mean_weight_of_the_balance_is_what_the_page_says():
    hard, weak = torch.zeros(1000, 10, 25), torch.zeros(1000, 25)
    weak.flatten()[torch.randperm(25_000)[:1_600]] = 1  # 1.6 classes a video
    hard[weak.nonzero(as_tuple=True)[0], :7, weak.nonzero(as_tuple=True)[1]] = 1  # 4.5 % positive
    for times_c, low, high in ((False, 0.05, 0.1), (True, 1.6, 2.0)):
        w_pos, w_neg = uwav.class_balance(hard, balance_sum=times_c)
        mean = float((weak * w_pos + (1 - weak) * w_neg).mean())
        assert low < mean < high and (times_c or (w_pos <= 0.5 and 0.03 < w_neg < 0.05))
    assert "the mean weight of an entry is below 0.1" in PAGE and "the mean weight is 1.6 to 2" in PAGE
