"""The live numbers of docs/annotated.html, from a run of the demo world: name -> text, or a list of numbers.

Scores are of all seeds. Training, and one class of one test video on its way through the method, are of the first."""

from pathlib import Path

import torch

import uwav
from common.files import read_sealed
from data.splits import load_target, load_weak
from train.ablation import cell
from train.checkpoints import load_file, load_model
from train.stages import read_labels

VIDEO, SPEECH = 1056, 0  # of the test split: a voice is heard all the time and seen in the last three seconds


def numbers_of(run: Path) -> dict[str, str | list[float]]:
    saved, numbers = read_sealed(run / "ablation.json", "bash run_all.sh"), {}
    for row, seeds in (saved["labels"] | saved["scores"]["clip_clap"]).items():
        numbers |= {f"{row} {score}": cell([x[score] for x in seeds]) for score in uwav.SCORES if score in seeds[0]}
    for points in saved["differences"]["clip_clap"]:
        x = points["scores"]["seg_type"]
        interval = "[{:+.1f}, {:+.1f}]".format(*x["interval"])
        numbers[f"{points['first']} to {points['second']}"] = f"{x['mean']:+.1f} {interval}"
    seed, test = run / f"seed{saved['seeds'][0]}", load_target(run / "data", "test", "clip_clap", "cpu")
    for name, path in (("teacher", seed / "teacher.pt"), ("parser", seed / "clip_clap/full/han.pt")):
        model, history = load_model(path), [x | x.pop("val") for x in load_file(path)["history"]]
        numbers[f"{name} parameters"] = f"{sum(x.numel() for x in model.parameters()):,}"
        numbers |= {f"{name}: {k}, by epoch": [float(f"{x[k]:.2g}") for x in history] for k in history[0]}

    y, output = test.weak[[VIDEO]], model(*test.inputs([VIDEO]))
    x = torch.stack([output.audio_feat, output.visual_feat], 2)  # (1, T, 2, h)
    weight = model.time_pool(x).softmax(1) * model.modal_pool(x).softmax(2)  # (1, T, 2, C), as in HAN.pool
    p = torch.stack([output.audio_logit, output.visual_logit]).sigmoid()  # (2, 1, T, C)
    predicted = uwav.gated_predictions(output.video_prob, *p)
    numbers["video probability"] = f"{output.video_prob[0, SPEECH]:.2f}"
    teacher, alone = read_labels(seed / "labels_teacher.npz", "cpu"), read_labels(run / "labels_segment.npz", "cpu")
    for m, (sense, truth) in enumerate((("audible", test.audio_truth), ("visible", test.visual_truth))):
        theta, z = teacher.thresholds[m], teacher.logits["test"][m][[VIDEO]]  # (C,), (1, T, C)
        hard = uwav.hard_labels(teacher.logits["train"][m], theta, load_weak(run / "data", "train"))  # (N, T, C)
        values = (*uwav.class_balance(hard), 100 * hard.mean(), theta[SPEECH])
        numbers |= {f"{sense}: {k}": f"{x:.1f}" for k, x in zip(("w_pos", "w_neg", "rate in %", "theta"), values)}
        single = uwav.hard_labels(alone.logits["test"][m][[VIDEO]], alone.thresholds[m], y)
        rows = {"truth": truth[[VIDEO]], "hard label of each second alone": single, "z": z, "p": p[m],
                "hard label": uwav.hard_labels(z, theta, y), "soft label": uwav.soft_labels(z, theta, y),
                "soft label at temperature 1": uwav.soft_labels(z, theta, y, 1), "weight": weight[:, :, m],
                "prediction": predicted[m]}  # (1, T, C) each
        numbers |= {f"{sense}: {k}": [round(v, 2) for v in x[0, :, SPEECH].float().tolist()] for k, x in rows.items()}
    return numbers
