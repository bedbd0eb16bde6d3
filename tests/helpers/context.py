"""What the teacher's context brings in the demo world: its labels with ten seconds in view, and with each alone.

    python tests/helpers/context.py runs/demo

Segment-level scores of the hard labels on the test split, a line a seed; thresholds are fitted anew for either."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import uwav
from data.splits import load_target, load_text
from train.checkpoints import load_model
from train.stages import one_line


@torch.inference_mode()
def logits(model: uwav.Teacher, data: uwav.TargetSplit, text: tuple[torch.Tensor, torch.Tensor], seconds: int) -> list[torch.Tensor]:
    """Audio and visual, (N, T, C), of pieces of so many seconds."""
    audio, visual, _ = data.inputs(slice(None))  # (N, T, D) each
    N, T, _ = audio.shape
    pieces = zip(*(x.reshape(N * T // seconds, seconds, -1).split(1000) for x in (audio, visual)))
    return [torch.cat(z).view(N, T, -1) for z in zip(*(model(a, v, *text) for a, v in pieces))]


def main(run: Path) -> None:
    val, test = (load_target(run / "data", split, "clip_clap", "cpu") for split in ("val", "test"))
    text = load_text(run / "data", "llp", "cpu")
    for path in sorted(run.glob("seed*/teacher.pt")):
        model = load_model(path)
        for seconds in (10, 1):
            truths = val.audio_truth, val.visual_truth
            thresholds = [uwav.fit_thresholds(z, y, val.weak)[0] for z, y in zip(logits(model, val, text, seconds), truths)]
            hard = [uwav.hard_labels(z, theta, test.weak) for z, theta in zip(logits(model, test, text, seconds), thresholds)]
            scores = uwav.parsing_scores(*hard, test.audio_truth, test.visual_truth)
            print(f"{path.parent.name}, {seconds:2d} s in view: {one_line({k: x for k, x in scores.items() if k.startswith('seg')})}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
