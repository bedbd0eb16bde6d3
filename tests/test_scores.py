"""Scores: cases a reader can check with a pencil, which are those of docs/scoring.md, and an independent slow version."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import uwav
from common import files
from data import annotations
from slow import plain_scores
from train import ablation, cli, stages
from uwav import parsing_scores

PAGE, RESULTS = ((Path(__file__).resolve().parents[1] / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("scoring", "results"))


def one_video(*rows: str) -> torch.Tensor:
    """One string of 0 / 1 a class -> (1, T, C)."""
    return torch.tensor([[int(x) for x in row] for row in rows]).T[None]


def test_segment_and_event_scores_of_one_class_by_hand():
    # audible:  truth 0-3, predicted 0-1 and 6       TP 2, FP 1, FN 2: F = 4/7
    #           event 0-1 has IoU 2/4 = 0.5: found;  event 6: false     TP 1, FP 1, FN 0: F = 2/3
    # visible:  truth 0-3, predicted 0-3             F = 1, event F = 1
    # both:     truth 0-3, predicted 0-1             TP 2, FN 2: F = 2/3; IoU 0.5: event F = 1
    # Event:    TP 2 + 4, FP 1, FN 2: F = 12/15; events TP 1 + 1, FP 1: F = 4/5
    truth = one_video("11110000")
    s = parsing_scores(one_video("11000010"), truth, truth, truth)
    expected = dict(seg_a=4 / 7, seg_v=1, seg_av=2 / 3, seg_type=(4 / 7 + 1 + 2 / 3) / 3, seg_event=12 / 15,
                    event_a=2 / 3, event_v=1, event_av=1, event_type=(2 / 3 + 1 + 1) / 3, event_event=4 / 5)
    assert s == pytest.approx({k: 100 * v for k, v in expected.items()})


def test_classes_neither_predicted_nor_true_do_not_count():
    truth, pred, none = one_video("1100", "0000", "0011"), one_video("1100", "0000", "0000"), one_video("0000", "0000", "0000")
    assert parsing_scores(pred, none, truth, none)["seg_a"] == pytest.approx(100 * (1 + 0) / 2)


def test_a_video_without_any_event_and_any_prediction_scores_100():
    none = torch.zeros(2, 5, 3)
    assert set(parsing_scores(none, none, none, none).values()) == {100.0}


def test_one_true_event_can_be_found_by_one_long_prediction_only_at_half_overlap():
    truth = one_video("1111110000")
    assert parsing_scores(one_video("1110000000"), truth, truth, truth)["event_a"] == 100  # IoU 3/6
    assert parsing_scores(one_video("1100000000"), truth, truth, truth)["event_a"] == 0  # IoU 2/6


def test_a_class_that_is_predicted_but_not_true_counts_as_0():
    truth, none = one_video("1111", "0000"), one_video("0000", "0000")
    pred = one_video("1111", "0010")
    assert parsing_scores(pred, none, truth, none)["seg_a"] == pytest.approx(100 * (1 + 0) / 2)
    assert parsing_scores(truth, none, truth, none)["seg_a"] == 100


def test_two_runs_of_a_class_are_two_events():
    truth, pred = one_video("1110111000"), one_video("1111111000")  # IoU with each 3/7: none is found
    s = parsing_scores(pred, truth, truth, truth)
    assert s["event_a"] == 0 and s["seg_a"] == pytest.approx(100 * 12 / 13)
    assert parsing_scores(truth, truth, truth, truth)["event_a"] == 100


def test_both_is_where_the_prediction_says_audible_and_visible_at_once():
    audible, visible = one_video("1100"), one_video("0011")
    whole = one_video("1111")
    s = parsing_scores(audible, visible, whole, whole)  # never both at once, though the truth is
    assert (s["seg_a"], s["seg_v"], s["seg_av"]) == (pytest.approx(100 * 4 / 6), pytest.approx(100 * 4 / 6), 0)


def test_event_pools_the_counts_of_audible_and_visible_and_knows_nothing_of_both():
    # audible TP 1, FN 3; visible TP 8: F = 18/21, where the mean of the two F-scores is (2/5 + 1)/2
    s = parsing_scores(one_video("10000000"), one_video("11111111"), one_video("11110000"), one_video("11111111"))
    assert s["seg_event"] == pytest.approx(100 * 18 / 21) and s["seg_a"] == pytest.approx(40)


def test_videos_weigh_the_same_however_much_is_in_them():
    short, long = one_video("1000000000"), one_video("1111111111")
    truth, none = torch.cat([long, long]), torch.zeros(2, 10, 1)
    s = parsing_scores(torch.cat([short, long]), none, truth, none)
    assert s["seg_a"] == pytest.approx(100 * (2 / 11 + 1) / 2)  # 59.1; counted over both videos at once: 22/31, 71.0


def test_predicting_nothing_scores_the_share_of_videos_in_which_nothing_is():
    audible, visible = torch.zeros(10, 8, 3), torch.zeros(10, 8, 3)
    audible[:, 2:5, 0] = 1  # in all ten videos something is audible, in nine visible, in eight both at once
    visible[1:, 0, 0], visible[2:, 3, 0] = 1, 1
    none = torch.zeros(10, 8, 3)
    s = parsing_scores(none, none, audible, visible)
    for level in ("seg", "event"):
        expected = dict(a=0, v=10, av=20, type=10, event=0)
        assert {kind: s[f"{level}_{kind}"] for kind in expected} == pytest.approx(expected)


def test_prediction_and_truth_may_change_places_so_the_order_of_fp_and_fn_is_harmless():
    arrays = [torch.rand(30, 10, 5, generator=torch.Generator().manual_seed(n)) < 0.4 for n in range(4)]
    assert parsing_scores(*arrays) == pytest.approx(parsing_scores(*arrays[2:], *arrays[:2]))


def test_no_prediction_finds_two_events_and_no_event_is_found_twice():
    """All pairs of rows of 8 seconds: as many predicted events find one as true events are found."""
    rows = torch.arange(256)[:, None] >> torch.arange(8) & 1 > 0  # (256, 8)
    pred, truth = rows.repeat_interleave(256, 0), rows.repeat(256, 1)
    (found, _, _), (finding, _, _) = uwav.event_counts(pred, truth), uwav.event_counts(truth, pred)
    assert torch.equal(found, finding) and int(found.max()) == 4


def test_type_is_the_mean_of_audible_visible_and_both():
    s = parsing_scores(*(torch.rand(20, 10, 5, generator=torch.Generator().manual_seed(n)) < 0.4 for n in range(4)))
    for level in ("seg", "event"):
        assert s[f"{level}_type"] == pytest.approx((s[f"{level}_a"] + s[f"{level}_v"] + s[f"{level}_av"]) / 3)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_scores_of_random_videos_equal_the_definitions_written_out_video_by_video(density):
    rng = np.random.default_rng(int(10 * density))
    for N, T, C in [(1, 1, 1), (3, 12, 3), (40, 10, 25), (5, 60, 4)]:
        arrays = [rng.random((N, T, C)) < density for _ in range(4)]
        assert parsing_scores(*map(torch.from_numpy, arrays)) == pytest.approx(plain_scores(*arrays), abs=1e-6)


def test_scores_do_not_depend_on_the_order_of_videos_classes_or_the_direction_of_time():
    arrays = [torch.rand(20, 10, 5, generator=torch.Generator().manual_seed(n)) < 0.4 for n in range(4)]
    assert parsing_scores(*(x.flip((0, 1, 2)) for x in arrays)) == pytest.approx(parsing_scores(*arrays))


def test_predicting_the_truth_scores_100():
    truth = [torch.rand(20, 10, 5, generator=torch.Generator().manual_seed(n)) < 0.4 for n in range(2)]
    assert set(parsing_scores(*truth, *truth).values()) == {100.0}


# ---- two predictions that need no learning ----


def test_the_page_says_what_trivial_predictions_score_on_the_real_annotations(shared):
    test = annotations.read_llp(shared / "data/llp", report=lambda line: None).test
    weak, audio, visual = (torch.from_numpy(x) for x in (test.weak, test.audio, test.visual))
    for title, scores in stages.trivial_scores(weak, audio, visual).items():
        row = "| " + " | ".join([title, *(f"{x:.1f}" for x in scores.values())]) + " |"
        assert row in PAGE
    shares = [100 * float((x.sum((1, 2)) == 0).float().mean()) for x in (audio, visual, audio & visual)]
    assert "{:.1f} %, {:.1f} % and {:.1f} %".format(*shares) in " ".join(PAGE.split())


def test_published_numbers_are_the_same_in_the_tables_of_a_run_and_on_the_page_of_results():
    uwav_rows = [f"| UWAV, 2025 | {name} | " + " | ".join(map(str, ablation.PAPER_FULL[key])) for name, key in (("base", "base"), ("CLIP, CLAP", "clip_clap"))]
    labels = [f"{title} | " + " | ".join(map(str, ablation.PAPER_LABELS[key].values())) for title, key in (("VALOR: per segment", "segment"), ("UWAV: teacher", "teacher"))]
    assert all(row in RESULTS for row in (*uwav_rows, *labels))
    lines = [line.split("|") for line in RESULTS.split("## The field")[1].split("**Labels**")[0].splitlines() if re.match(r"\| [\w -]+, 20", line)]
    rows = {cells[1].strip(): [float(x) for x in cells[3:13]] for cells in lines if all(x.strip() for x in cells[3:13])}
    assert len(lines) == 17 and len(rows) == 14, "VALOR and UWAV have two lines; of LEAP on MM-Pyramid four scores are known"
    odd = {method for method, x in rows.items() for k in (0, 5) if abs(sum(x[k : k + 3]) / 3 - x[k + 3]) > 0.11}
    assert odd == {"PPL, 2024", "CoLeaF, 2024", "MM-Pyramid, 2022"} and "of PPL and of CoLeaF, 59.9 and 57.9, is not the mean" in " ".join(RESULTS.split())


# ---- gates ----


def random_parser(C: int = 4) -> tuple[uwav.HAN, uwav.TargetSplit]:
    torch.manual_seed(0)
    model = uwav.HAN(uwav.HANConfig(classes=C, audio_dim=6, visual_2d_dim=8, visual_3d_dim=0, hidden=8, heads=2, feedforward=16, layers=1)).eval()
    for linear in (model.classifier, model.time_pool, model.modal_pool):
        torch.nn.init.normal_(linear.weight, std=2.0)
    truth = [(torch.rand(70, 5, C) < 0.4).byte() for _ in range(2)]  # 70 videos: more than one batch
    return model, uwav.TargetSplit(torch.randn(70, 5, 6), torch.randn(70, 5, 8), None, (truth[0] | truth[1]).amax(1).float(), *truth)


def slow_gates(model: uwav.HAN, data: uwav.TargetSplit, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Of video n, number by number: segment probabilities (2, T, C), and for each gate the probability (3, 2, C)."""
    with torch.no_grad():
        out = model(data.audio[n : n + 1], data.visual_2d[n : n + 1])
        feat = torch.cat([out.audio_feat, out.visual_feat]).numpy()  # (2, T, h)
        time, modal, logit = (linear.weight.numpy() @ feat.swapaxes(1, 2) + linear.bias.numpy()[:, None]
                              for linear in (model.time_pool, model.modal_pool, model.classifier))  # (2, C, T) each
    p, (_, C, T) = 1 / (1 + np.exp(-logit)), time.shape
    gates = np.zeros((3, 2, C))
    for m in range(2):
        for c in range(C):
            for t in range(T):
                over_time = np.exp(time[m, c, t]) / sum(np.exp(time[m, c, u]) for u in range(T))
                over_modalities = np.exp(modal[m, c, t]) / sum(np.exp(modal[k, c, t]) for k in range(2))
                gates[0, :, c] += over_time * over_modalities * p[m, c, t]
                gates[1, m, c] += over_time * p[m, c, t]
    gates[2] = 1
    return p.swapaxes(1, 2), gates


def test_each_gate_scores_what_a_slow_version_predicts_through_it():
    model, data = random_parser()
    with torch.no_grad():
        scores = stages.gate_scores(model, data, *uwav.han_probabilities(model, data))
    predicted = np.zeros((3, 2, *data.audio_truth.shape), bool)  # (gates, modalities, N, T, C)
    for n in range(70):
        p, gates = slow_gates(model, data, n)
        predicted[:, :, n] = (p > 0.5) & (gates[:, :, None] > 0.5)
    for name, (audio, visual) in zip(stages.GATES, predicted):
        assert scores[name] == pytest.approx(plain_scores(audio, visual, data.audio_truth.numpy() > 0, data.visual_truth.numpy() > 0), abs=1e-6)
    assert len({s["seg_type"] for s in scores.values()}) == 3, "else this shows nothing"
    assert scores["joint"] == uwav.han_scores(model, data)


def test_a_modality_s_own_probability_forgets_the_other_by_hand():
    """Two seconds, one class; even attention: audio 0.9 and 0.3, visual 0.1 and 0.1; joint (0.6 + 0.1)/2 = 0.35."""
    model, _ = random_parser(C=1)
    for linear in (model.time_pool, model.modal_pool):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    audio, visual, feat = torch.tensor([[[0.9], [0.3]]]).logit(), torch.tensor([[[0.1], [0.1]]]).logit(), torch.zeros(1, 2, 8)
    with torch.no_grad():
        joint = model.pool(torch.stack([feat, feat], 2), torch.stack([audio, visual], 2))
        own = stages.modality_prob(model, uwav.HANOutput(joint, audio, visual, feat, feat))
    assert float(joint) == pytest.approx(0.35) and own.flatten().tolist() == pytest.approx([0.6, 0.1])


def test_another_gate_is_told_beside_the_published_one_and_changes_no_file(finished, tmp_path, capsys):
    shutil.copytree(finished / "seed0/clip_clap/full", tmp_path / "full")
    before = {p.name: p.read_bytes() for p in (tmp_path / "full").iterdir()}

    def told(gate: str) -> list[str]:
        cli.main(["evaluate", str(finished / "data"), str(tmp_path / "full/han.pt"), "--gate", gate])
        return capsys.readouterr().out.splitlines()[2:]  # after the published scores and the heads of the columns

    joint, modality, gained, none, _ = every = told("all")
    assert [line[:34].strip() for line in every] == ["joint (published)", "modality (as JoMoLD)", "over joint", "none", "over joint"]
    assert told("joint") == [joint] and told("modality") == [modality, gained] and told("none")[0] == none
    numbers = [[float(x) for x in re.findall(r"[-+]?\d+\.\d", line[34:])] for line in (joint, modality, gained)]
    assert numbers[2] == pytest.approx([m - j for j, m, _ in zip(*numbers)], abs=0.11) and len(numbers[2]) == 10
    saved = files.read_sealed(tmp_path / "full/scores_test.json", "")
    assert numbers[0] == [round(saved[name], 1) for name in uwav.SCORES]
    assert {p.name: p.read_bytes() for p in (tmp_path / "full").iterdir()} == before
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(finished / "data"), str(tmp_path / "full/han.pt"), "--gate", "jiont"])


def test_every_test_that_the_page_names_is_here():
    named = re.findall(r"`(test_\w+)`", PAGE)
    assert len(named) > 10 and not [name for name in named if name not in globals()]
