"""The numbers of docs/scale.md.

    python tests/helpers/scale.py rates [VIDEO]     # what a second of video costs: decoding, CLIP, CLAP; one thread
    python tests/helpers/scale.py processes         # 1 and 2 processes, one core each: extraction and both trainings
    python tests/helpers/scale.py memory            # training on 1 GB of features with 0.75 GB of memory (RLIMIT_DATA), and with all
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/helpers")]

from data import demo_world

# What each process runs, on a core of its own: the command, its loop timed by the CPU, whatever else the machine does.
TIMED = """
import os, runpy, sys
rank = int(os.environ.get("LOCAL_RANK", 0))
os.sched_setaffinity(0, {rank})
os.cpu_count = lambda: 1
log, sys.argv = sys.argv[1], sys.argv[2:]
sys.path[:0] = [os.path.dirname(sys.argv[0]), os.getcwd()]
from common import command
progress = command.progress
def timed(*items, **options):
    bar, began = progress(*items, **options), sum(os.times()[:4])
    close = bar.close
    def closed():
        open(f"{log}.{rank}", "w").write(str(sum(os.times()[:4]) - began))
        close()
    bar.close = closed
    return bar
command.progress = timed
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def rates(video: str = str(ROOT.parent / "shared/data/media/BjCEufrlXm4.mp4")) -> None:
    import torch

    from video import decode, encoders

    import uwav
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(1)
    with torch.device("meta"), FlopCounterMode(display=False) as counted:  # of a step of 64 videos
        model, label = uwav.HAN(uwav.CLIP_CLAP), torch.zeros(64, 10, 25)
        labels, mixup = uwav.PseudoLabels(label, label), [(0.5, torch.zeros(640, dtype=torch.long))] * 2
        output = model(torch.zeros(64, 10, 512), torch.zeros(64, 10, 768))
        uwav.han_losses(model, output, label[:, 0], labels, mixup).sum().backward()
    print(f"HAN: {counted.get_total_flops() / 64e9:.2f} GFLOP a clip")
    for what, x in (("HAN, base", uwav.HAN()), ("HAN, clip_clap", model), ("teacher", uwav.Teacher())):
        print(f"{what}: gradients of {sum(w.numel() for w in x.parameters()) * 4 / 1e6:.0f} MB")

    def best(what: str, function, times: int) -> None:
        spent = []
        for _ in range(times):
            began = time.process_time()
            result = function()
            spent.append(time.process_time() - began)
        print(f"{what}: {min(spent) / 10:.3f} s of CPU a second of video", flush=True)
        return result

    clip = best("decoding", lambda: decode.read_clip(video, segments=10), 5)
    clap, image = encoders.ClapEncoder(None), encoders.ClipEncoder(None)
    best("CLAP", lambda: clap.sounds(clip.sounds), 3)
    best("CLIP ViT-L/14", lambda: image.images(clip.images), 2)


def run(folder: Path, processes: int, *command: object, limit: float = 0) -> tuple[float, float, str]:
    """CPU time of the loop in its busiest process, s; the highest memory of a process, GB; the last line of an error."""
    log = folder / "cpu"
    for path in folder.glob("cpu.*"):
        path.unlink()
    start = [sys.executable, "-c", TIMED] if processes == 1 else [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--no-python", sys.executable, "-c", TIMED]
    limited = (lambda: resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 1e9),) * 2)) if limit else None
    with open(folder / "said", "w+") as said:
        process = subprocess.Popen([*start, *map(str, (log, *command))], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said, preexec_fn=limited)
        _, status, usage = os.wait4(process.pid, 0)
        said.seek(0)
        error = said.read().strip().splitlines()[-1][-150:] if status else ""
    return max((float(path.read_text()) for path in folder.glob("cpu.*")), default=0.0), usage.ru_maxrss / 1e6, error


def processes() -> None:
    import clips

    options = ["--preset", "demo", "--device", "cpu", "--set", "dropout=0"]
    with tempfile.TemporaryDirectory(prefix="uwav-scale-") as folder:
        work = Path(folder)
        demo_world.make(work / "data", replace(demo_world.WorldConfig(), train=800, val=30, test=10, source_train=160, source_validation=20, source_test=10))
        (work / "videos").mkdir()
        for n in range(8):
            clips.make(work / f"videos/v{n:02d}.mp4", 3, sound=clips.tone(3, frequency=200 + 100 * n)[None])
        print(f"{'':12s}{'1 process':>12s}{'2 processes':>12s}{'ratio':>8s}   (s of CPU in the busiest)")
        for name, command in (
                ("extract", [ROOT / "tests/helpers/tiny_extract.py", "extract", work / "videos"]),
                ("pretrain", [ROOT / "uwav.py", "pretrain", work / "data"]),
                ("train", [ROOT / "uwav.py", "train", work / "data"])):
            more = ["--workers", "1"] if name == "extract" else [*options, "--set", f"epochs={dict(pretrain=3, train=4)[name]}"]
            more += ["--setting", "video_only"] if name == "train" else []
            taken = {}
            for count in (1, 2):
                taken[count], _, error = run(work, count, *command, work / f"{name}{count}", *more)
                assert not error, error
            print(f"{name:12s}{taken[1]:12.2f}{taken[2]:12.2f}{taken[1] / taken[2]:8.2f}", flush=True)


DRAWN = 2000  # videos of the big world; it repeats them


def memory(size: str = "1", limit: str = "0.75") -> None:
    """A model so small that what reading costs would show, and no labels, which stay in memory."""
    render = demo_world.World.embeddings

    def repeated(self, dataset: str, split: str, feature: str):
        rows = len(self.llp.train.ids) * 10 if (dataset, split) == ("llp", "train") else 0
        of = demo_world.World(replace(self.config, train=DRAWN)) if rows else self
        few = np.concatenate(list(render(of, dataset, split, feature)))
        for start in range(0, max(rows, 1), len(few)):
            yield few[: rows - start] if rows else few

    demo_world.World.embeddings = repeated
    options = ["--preset", "demo", "--device", "cpu", "--setting", "video_only"]
    for field in ("epochs=1", "batch=256", "hidden=16", "heads=2", "feedforward=16", "layers=1"):
        options += ["--set", field]
    with tempfile.TemporaryDirectory(prefix="uwav-scale-") as folder:
        work, videos = Path(folder), round(float(size) * 1e9 / (10 * (512 + 768) * 2))
        demo_world.make(work / "data", replace(demo_world.WorldConfig(), train=videos, val=100, test=10, source_train=60, source_validation=20, source_test=10))
        print(f"{videos} videos, {size} GB of features", flush=True)
        for n, (way, least, how) in enumerate((("on disk", limit, ["--stream"]), ("in memory", limit, []), ("in memory", 0, []))):
            seconds, peak, error = run(work, 1, ROOT / "uwav.py", "train", work / "data", work / f"run{n}", *how, *options, limit=float(least))
            print(f"{way}, limit {least} GB: {seconds:.1f} s of CPU an epoch, at most {peak:.2f} GB {error}", flush=True)


if __name__ == "__main__":
    dict(rates=rates, processes=processes, memory=memory)[sys.argv[1]](*sys.argv[2:])
