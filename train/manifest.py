"""What a run of run_all.sh writes into its folder, every name, and how it is begun: alone, and with --fresh anew."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from common.command import lock, one_sentence_errors, working_in
from data.annotations import some
from data.layout import ARRAYS, FEATURE_SETS, MADE, PART

GRAPHS = [f"{name}{variant}.onnx" for variant in ("", "_fp16", "_int8") for name in (
    "parser", "teacher", "labels", "clip_image", "clap_audio", "clip_text", "clap_text")]
PICTURES = ["classes", "curves", "curves_teacher", "reliability", "thresholds", "timelines",
            *(f"differences_{features}" for features in FEATURE_SETS)]
LABEL_FILES = [f"labels_{of}.{ending}" for of in ("segment", "teacher", "prototypes") for ending in ("npz", "json")]
FILES = {  # of a run, by folder
    "": [*"stages.tsv .started tables.txt ablation.json field.json field.txt report.html".split(), *LABEL_FILES],
    "data/": [*ARRAYS, "index.json", "plan.json", MADE],
    "seed0/": ["teacher.pt", "teacher.state.pt", "teacher.jsonl", *LABEL_FILES],
    "pictures/": [name + end for name in PICTURES for end in (".png", *(f"-{k}.svg" for k in range(1, 10)))],
    "bundle/": "bundle.json README.md config.json preprocessor_config.json texts.json sample.npz clip_tokenizer.json "
               "clap_tokenizer.json".split(),
    "bundle/onnx/": GRAPHS}
ROW = ["han.pt", "han.state.pt", "han.jsonl", "scores_val.json", "scores_test.json", "predictions_val.npz",
       "predictions_test.npz", "ratios.npz", *LABEL_FILES]
HALF_WRITTEN = ((r"\.([^/]+)\.part(\.\w+)$", r"\1\2"), (rf"^(data/){PART}/|^(bundle/)\.part/", r"\1\2"))


def is_ours(name: str) -> bool:
    """Whether a run writes a file of this name into its folder, whole or for a while."""
    from train.ablation import ROWS, SWEEP  # with PyTorch
    from train import field

    for pattern, whole in (*HALF_WRITTEN, ("^seed[0-9]+/", "seed0/")):
        name = re.sub(pattern, whole, name)
    others = ["noise", *field.CHOICES, *(f"{network}_{row}" for network in field.NETWORKS for row in field.LABELS)]
    trained = [*ROWS, *SWEEP, *(f"field/{x}" for x in others)]
    rows = {f"seed0/{features}/{row}/": ROW for features in FEATURE_SETS for row in trained}
    return any(name in (place + x for x in files) for place, files in (FILES | rows).items())


def begin(directory: int, out: str, fresh: bool = False) -> None:
    """Hold the folder of a run (`directory`: open in run_all.sh), so that no other run works there; fresh: delete what
    earlier runs wrote, or raise ValueError if anything else is there, or somebody at work in a folder below."""
    with one_sentence_errors(), contextlib.ExitStack() as end:
        lock(directory, out)
        found = sorted(Path(out).rglob("*")) if fresh else [Path(out, name) for name in ("stages.tsv", ".started")]
        if links := [str(path) for path in found if path.is_symlink()]:
            raise ValueError(f"{some(links, 3)}: a link, which is not followed; choose another folder, or delete it")
        folders = [path for path in found if path.is_dir()]
        names = [str(path.relative_to(out)) for path in found if fresh and path not in folders]
        if foreign := [name for name in names if not is_ours(name)]:
            raise ValueError(f"--fresh: {out} holds files that no run writes ({some(foreign, 3)}); choose another "
                             "folder")
        for folder in folders:
            end.enter_context(working_in(folder))
        for name in names:
            Path(out, name).unlink()
        for folder in reversed(folders):
            folder.rmdir()
