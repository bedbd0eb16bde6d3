"""The live numbers of docs/annotated.html, taken from a run of the demo world: name -> text, or a list of numbers.

Scores are of all seeds. Training, and one class of one test video on its way through the method, are of the first."""

from __future__ import annotations

from pathlib import Path

import torch

import uwav
from common.files import read_sealed
from data.splits import load_target, load_weak
from train.ablation import cell
from train.checkpoints import load_model, read_history
from train.stages import read_labels

VIDEO, SPEECH = 1056, 0  # of the test split: a voice is heard all the time and seen in the last three seconds
BY_EPOCH = ("lr", "loss", "av", "spread_audio", "spread_visual", "seg_type", *uwav.LOSSES)


def numbers_of(run: Path) -> dict[str, str | list[float]]:
    saved, numbers = read_sealed(run / "ablation.json", "bash run_all.sh"), {}
    for row, seeds in (saved["labels"] | saved["scores"]["clip_clap"]).items():
        numbers |= {f"{row} {score}": cell([x[score] for x in seeds]) for score in uwav.SCORES if score in seeds[0]}
    for x in saved["differences"]["clip_clap"]:
        points = x["scores"]["seg_type"]
        low, high = points["interval"]
        numbers[f"{x['first']} to {x['second']}"] = f"{points['mean']:+.1f} [{low:+.1f}, {high:+.1f}]"

    seed, test = run / f"seed{saved['seeds'][0]}", load_target(run / "data", "test", "clip_clap", "cpu")
    for name, path in (("teacher", seed / "teacher.pt"), ("parser", seed / "clip_clap/full/han.pt")):
        model, history = load_model(path), [x | x["val"] for x in read_history(path)]
        numbers[f"{name} parameters"] = f"{sum(x.numel() for x in model.parameters()):,}"
        numbers |= {f"{name}: {key}, by epoch": [float(f"{x[key]:.2g}") for x in history] for key in BY_EPOCH if key in history[0]}

    y, weak = test.weak[[VIDEO]], load_weak(run / "data", "train")
    output = model(*test.inputs([VIDEO]))
    x = torch.stack([output.audio_feat, output.visual_feat], 2)  # (1, T, 2, h)
    weights = model.time_pool(x).softmax(1) * model.modal_pool(x).softmax(2)  # (1, T, 2, C), as in HAN.pool
    p = [output.audio_logit.sigmoid(), output.visual_logit.sigmoid()]  # (1, T, C) each
    predicted, truth = uwav.gated_predictions(output.video_prob, *p), (test.audio_truth, test.visual_truth)
    numbers |= {"video probability": f"{output.video_prob[0, SPEECH]:.2f}"}
    teacher, alone = read_labels(seed / "labels_teacher.npz", "cpu"), read_labels(run / "labels_segment.npz", "cpu")
    for m, sense in enumerate(("audible", "visible")):
        theta, z, z_alone = teacher.thresholds[m], *(x.logits["test"][m][[VIDEO]] for x in (teacher, alone))  # (1, T, C)
        hard = uwav.hard_labels(teacher.logits["train"][m], theta, weak)  # (N, T, C)
        for name, value in zip(("w_pos", "w_neg", "rate in %"), (*uwav.class_balance(hard), 100 * hard.mean())):
            numbers[f"{sense}: {name}"] = f"{value:.1f}"
        numbers[f"{sense}: theta"] = f"{theta[SPEECH]:.2f}"
        rows = {"truth": truth[m][[VIDEO]], "hard label of each second alone": uwav.hard_labels(
                    z_alone, alone.thresholds[m], y), "z": z, "hard label": uwav.hard_labels(z, theta, y),
                "soft label": uwav.soft_labels(z, theta, y), "soft label at temperature 1": uwav.soft_labels(
                    z, theta, y, 1), "weight": weights[:, :, m], "p": p[m], "prediction": predicted[m]}  # (1, T, C) each
        numbers |= {f"{sense}: {name}": [round(v, 2) for v in row[0, :, SPEECH].tolist()] for name, row in rows.items()}
    return numbers
