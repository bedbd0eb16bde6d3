"""Small sources in the layout of the authors' download, for tests."""

import json
import re
from pathlib import Path

import numpy as np

from data import layout

WEAK = {"AVVP_train.csv": "a-_b_c_d_e1_20_30\tSpeech,Dog\n", "AVVP_val_pd.csv": "val00000001_0_10\tCat\n",
        "AVVP_test_pd.csv": "test0000001_5_15\tSpeech\n"}
DENSE = {"AVVP_eval_audio.csv": "val00000001_0_10\t2\t5\tCat\ntest0000001_5_15\t0\t10\tSpeech\n",
         "AVVP_eval_visual.csv": "val00000001_0_10\t0\t1\tCat\n"}


def write_llp(folder: Path, **changed: str) -> Path:
    """A three-video LLP; `changed` replaces the rows of a file (name without .csv)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (WEAK | DENSE).items():
        header = "filename\tevent_labels\n" if name in WEAK else "filename\tonset\toffset\tevent_labels\n"
        (folder / name).write_text(header + changed.get(name.removesuffix(".csv"), rows))
    return folder


def unav_database() -> dict:
    def video(subset, duration, *events):
        return dict(subset=subset, duration=duration,
                    annotations=[dict(segment=s, label=("dog", "car")[c], label_id=c) for c, *s in events])

    return {"u1": video("train", 10.2, (0, 0.5, 2.1), (1, 9.9, 10.2)), "u2": video("validation", 12, (0, 0, 12)),
            "u3": video("test", 11, (1, 3, 4))}


def write_unav(path: Path, database: dict | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": "unav100", "database": database or unav_database()}))
    return path


def write_source(folder: Path, videos: int = 1) -> Path:
    """The authors' layout with all features; `videos` training clips."""
    rng = np.random.default_rng(0)
    train = "".join(f"train{n:06d}_0_10\tSpeech\n" for n in range(videos))
    write_llp(folder / "LLP", AVVP_train=train)
    ids = [f"train{n:06d}" for n in range(videos)] + ["val00000001", "test0000001"]
    for encoder in layout.ENCODERS.values():
        place = folder / "LLP" / encoder.folder
        place.mkdir(parents=True)
        for video in ids:
            np.save(place / f"{video}.npy", rng.standard_normal((10 * encoder.per_second, encoder.size), np.float32))
    write_unav(folder / "UnAV/unav100_annotations.json")
    for encoder in layout.TEXTED.values():
        place, size = f"UnAV/{encoder.folder}", encoder.size
        (folder / place).mkdir(parents=True)
        for video, length in (("u1", 9), ("u2", 12), ("u3", 30)):
            np.save(folder / place / f"{video}.npy", rng.standard_normal((length, size), np.float32))
    for dataset, classes in (("LLP", 25), ("UnAV", 2)):
        for encoder in layout.TEXTED.values():
            (folder / dataset / encoder.texts).parent.mkdir(parents=True)
            np.save(folder / dataset / encoder.texts, rng.standard_normal((classes, encoder.size), np.float32))
    return folder


def write_own(folder: Path, labels: str, events: str | None = None, classes: tuple[str, ...] = ("dog", "bell"), segments: int = 4,
              videos: str = "abcdef") -> Path:
    """A folder of one's own: random features of the videos a, b, ..., their texts, and the csv files."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in (("CLAP", 512), ("CLIP", 768)):
        for place in ("segment_feats", "event_feats"):
            (folder / f"feats_{name}" / place).mkdir(parents=True, exist_ok=True)
        for video in videos:
            np.save(folder / f"feats_{name}/segment_feats/{video}.npy", rng.standard_normal((segments, size), np.float32))
        text = rng.standard_normal((len(classes), size), np.float32)
        np.save(folder / f"feats_{name}/event_feats/all_event_feats.npy", text / np.linalg.norm(text, axis=1, keepdims=True))
    (folder / "text.json").write_text(json.dumps(dict(classes=classes)))
    (folder / "labels.csv").write_text(labels, encoding="utf-8")
    if events is not None:
        (folder / "events.csv").write_text(events, encoding="utf-8")
    return folder


def checklist(out: str = "runs/paper") -> dict[str, str]:
    """The sentences that docs/real_data.md promises -> as regular expressions: `...` is anything, numbers are any."""
    text = (Path(__file__).resolve().parents[2] / "docs/real_data.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    masked = {line: re.escape(re.sub(r"(?<![\w.])\d[\d,]*(?![\w.])", "#", line).replace("...", "~")) for line in lines}
    return {line: x.replace(r"\#", r"[\d,]+").replace(r"\~", ".+").replace("~", ".+").replace("runs/paper", re.escape(out)) for line, x in masked.items()}
