"""Several processes, and more data than memory: they give what one process and one memory give."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import uwav
from conftest import ROOT, need
from data import demo_world, splits
from train import checkpoints, cli

OPTIONS = ["--preset", "demo", "--device", "cpu"]
for field in ("hidden=32", "feedforward=32", "layers=2", "dropout=0", "epochs=3", "peak_lr=1e-4", "min_lr=1e-5"):  # the published rates
    OPTIONS += ["--set", field]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "data"
    sizes = dict(train=60, val=30, test=5, source_train=40, source_validation=20, source_test=5)
    demo_world.make(folder, replace(demo_world.WorldConfig(), **sizes))
    cli.main(["label", str(folder), str(folder.parent), "--per-segment", "--device", "cpu"])
    return folder


def by_ranks(folder: Path, *jobs: dict) -> list[list[int]]:
    """What tests/helpers/ranks.py says of these jobs: the exit status of each process."""
    jobs = [dict(folder=str(folder), name=str(n), **job) | dict(command=[str(x) for x in job["command"]]) for n, job in enumerate(jobs)]
    done = subprocess.run([sys.executable, str(ROOT / "tests/helpers/ranks.py"), json.dumps(jobs)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def said(folder: Path, end: str = "out") -> dict[str, str]:
    """JOB.RANK -> what that process printed."""
    return {path.name.removesuffix(f".{end}"): path.read_text() for path in folder.glob(f"*.{end}")}


# ---- Extraction ----------------------------------------------------------------------------------

def features_of(out: Path) -> dict[str, bytes]:
    """Everything that is there: features, failures.csv, clips.json, extract.json; also what nobody should find."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_processes_that_share_the_videos_write_the_very_files_of_one(tmp_path):
    """Groups of two of nine clips, two of them no video: what is encoded together decides about the bytes. Two and three processes,
    one of them late; more processes than groups; one video; shards, in any order; a process killed, and the same command again."""
    need("av", "open_clip", "laion_clap")
    import clips

    videos, single = tmp_path / "videos", tmp_path / "just one"
    for n in (0, 1, 2, 4, 5, 7, 8):
        clips.make(mkdir(videos) / f"v{n}.mp4", 1 + n % 3, sound=clips.tone(1 + n % 3, frequency=200 + 100 * n)[None])
    for n in (3, 6):
        (videos / f"v{n}.mp4").write_text("no video")
    (videos / "v1.txt").write_text("the same id")
    (mkdir(single) / "v0.mp4").write_bytes((videos / "v0.mp4").read_bytes())

    def job(out: str, ranks: int, *more: str, of: Path = videos, **named) -> dict:
        weights = ["--clip-weights", "random", "--clap-weights", "random", "--device", "cpu", "--workers", "1", "--group", "2"]
        return dict(ranks=ranks, command=["extract", of, tmp_path / out, *weights, *more], **named)

    jobs = [job("one", 0), job("two", 2, late=0), job("three", 3), job("many", 6), job("killed", 2, dies=1), job("killed", 3),
            job("shards", 0, "--shard", "3/3"), job("shards", 0, "--shard", "1/3"), job("shards", 2, "--shard", "2/3"), job("shards", 0),
            job("single", 0, of=single), job("single2", 3, of=single), job("shards", 0, "--shard", "4/3"),
            job("two", 3, "--retry")]
    ended = by_ranks(tmp_path, *jobs)
    print(ended, {k: v[-600:] for k, v in said(tmp_path, "err").items()}, said(tmp_path))
    one, out = features_of(tmp_path / "one"), said(tmp_path)
    assert len(one) == 2 * 7 + 3 and out["0.0"].startswith("10 videos: 7 have features")
    assert ended[4][1] == -9 and ended[12] == [1] and {x for k, job in enumerate(ended) for x in job if k not in (4, 12)} == {0}
    for other in ("two", "three", "many", "killed", "shards"):
        assert features_of(tmp_path / other) == one, other
    assert features_of(tmp_path / "single2") == features_of(tmp_path / "single")
    for n in (1, 2, 3):  # one summary, one line of progress
        assert out[f"{n}.0"].replace(str(jobs[n]["command"][2]), "") == out["0.0"].replace(str(tmp_path / "one"), "") and out[f"{n}.1"] == ""
        assert "extract, share 1 of" in said(tmp_path, "err")[f"{n}.0"] and said(tmp_path, "err")[f"{n}.1"] == ""
    assert [out[f"{n}.0"].split(" videos: ")[0] for n in (6, 7, 8, 9)] == ["2", "5", "3", "10"] and "(0 new)" in out["9.0"]
    assert "error: --shard 4/3: expected K/N, K from 1 to N" in said(tmp_path, "err")["12.0"]


def mkdir(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


# ---- Training ------------------------------------------------------------------------------------

def history(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_and_three_processes_train_as_one(world, tmp_path):
    """Without dropout: losses and scores to the printed digit, weights to 1e-4. Of 60 videos in batches of 13, two processes share
    7 and 6; of batches of 29, the last has 2, so of three processes one has none. One that is late is waited for; one that is
    killed ends the rest, and the same command goes on."""
    def pretrain(out: str, batch: int) -> list:
        return ["pretrain", world, tmp_path / out, *OPTIONS, "--set", f"batch={batch}", "--stream", "0.3"]

    def train(out: str, batch: int, *more: str) -> list:
        labels = world.parent / "labels_segment.npz"
        return ["train", world, tmp_path / out, "--labels", labels, "--features", "clip_clap", *OPTIONS, "--set", f"batch={batch}", *more]

    mgn = ["--backbone", "mgn", "--set", "epochs=1"]
    jobs = [dict(ranks=0, command=pretrain("one", 13)), dict(ranks=2, command=pretrain("two", 13), late=1),
            dict(ranks=0, command=train("one", 29)), dict(ranks=3, command=train("three", 29), dies=1),
            dict(ranks=3, command=train("three", 29)), dict(ranks=0, command=train("mgn", 29, *mgn)),
            dict(ranks=2, command=train("mgn2", 29, *mgn)), dict(ranks=2, command=["evaluate", world, tmp_path / "one/han.pt"])]
    ended = by_ranks(tmp_path, *jobs)
    print(ended, {k: v[-600:] for k, v in said(tmp_path, "err").items()})
    assert [set(x) for k, x in enumerate(ended) if k not in (3, 7)] == [{0}] * 6 and ended[3][1] == -9 and 0 not in ended[3]
    for one, more, name in (("one", "two", "teacher"), ("one", "three", "han"), ("mgn", "mgn2", "han")):
        a, b = (history(tmp_path / folder / f"{name}.jsonl") for folder in (one, more))
        assert len(a) == len(b) == (1 if one == "mgn" else 3)
        for x, y in zip(a, b):
            assert x["loss"] == pytest.approx(y["loss"], rel=1e-5) and x["val"] == pytest.approx(y["val"], rel=1e-4, abs=1e-4)
        models = [checkpoints.load_file(tmp_path / folder / f"{name}.pt")["weights"] for folder in (one, more)]
        # Biases of MGN's that its softmax does not see have no gradient but rounding, which Adam makes steps of.
        assert all((models[0][k] - models[1][k]).abs().max() < (1e-3 if one == "mgn" else 1e-4) for k in models[0])
        assert any((models[0][k] != models[1][k]).any() for k in models[0]), "nothing was shared"
    out, err = said(tmp_path), said(tmp_path, "err")
    assert "teacher.pt: AV F-score" in out["1.0"] and out["1.1"] == "" == err["1.1"], "one speaks for all"
    assert "another process that torchrun started has ended" in err["3.0"] + err["3.2"] or "stopped by SIGTERM" in err["3.0"] + err["3.2"]
    assert ended[7][0] == 1 and ended[7][1] != 0 and err["7.1"] == "" and err["7.0"].count("\n") == 1
    assert "error: torchrun started 2 processes, which extract, pretrain, train can share; start evaluate without it" in err["7.0"]


def test_torchrun_starts_them_and_a_killed_one_ends_the_rest(world, tmp_path):
    """The real thing; the other tests of this file fork."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "uwav.py", "train", world, tmp_path, *OPTIONS,
               "--features", "clip_clap", "--setting", "video_only", "--set", "epochs=2000"]
    torchrun = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    give_up = time.monotonic() + 300
    while not (tmp_path / "han.jsonl").exists() and torchrun.poll() is None and time.monotonic() < give_up:
        time.sleep(0.1)
    ranks = subprocess.run(["pgrep", "-P", str(torchrun.pid), "-f", "uwav.py"], capture_output=True, text=True).stdout.split()
    assert len(ranks) == 2, torchrun.communicate(timeout=10)
    os.kill(int(ranks[1]), signal.SIGKILL)
    out, _ = torchrun.communicate(timeout=60)
    assert torchrun.returncode != 0 and out.count("M parameters") == 1 and not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    assert history(tmp_path / "han.jsonl") and (tmp_path / "han.state.pt").exists() and not (tmp_path / "han.pt").exists()


# ---- More data than memory -----------------------------------------------------------------------

def test_blocks_that_hold_everything_train_as_memory_does_bit_for_bit(world, tmp_path):
    def run(*command: object) -> None:
        cli.main([*map(str, command), "--device", "cpu"])

    weights = {}
    for out, more in (("memory", ()), ("disk", ("--stream", "1000")), ("blocks", ("--stream", "0.05"))):
        options = [*OPTIONS[:2], *OPTIONS[4:], "--set", "dropout=0.1", "--set", "batch=4"]
        run("pretrain", world, tmp_path / out, *options, *more)
        run("label", world, tmp_path / out, "--teacher", tmp_path / "memory/teacher.pt", "--dry-run", *more[:2])
        run("train", world, tmp_path / out, "--labels", tmp_path / "memory/labels_teacher.npz", *options, *more)
        weights[out] = {f"{name} {k}": x for name in ("teacher", "han") for k, x in checkpoints.load_file(tmp_path / out / f"{name}.pt")["weights"].items()}
    for name in weights["memory"]:
        assert torch.equal(weights["memory"][name], weights["disk"][name]) and weights["blocks"][name].isfinite().all()
    assert history(tmp_path / "memory/han.jsonl") == history(tmp_path / "disk/han.jsonl") != history(tmp_path / "blocks/han.jsonl")
    assert (tmp_path / "memory/labels_teacher.npz").read_bytes() == (tmp_path / "disk/labels_teacher.npz").read_bytes()
    with pytest.raises(SystemExit, match="made with other settings"):
        run("train", world, tmp_path / "blocks", "--labels", tmp_path / "memory/labels_teacher.npz", *options, "--stream", "0.4")


@pytest.mark.parametrize("kind", ["source", "target"])
@pytest.mark.parametrize("stream, batch", [(0.03, 1), (0.2, 4), (0.5, 7), (2, 16)])
def test_an_epoch_takes_every_video_once_block_by_block_with_its_labels(world, kind, stream, batch):
    load = (lambda *more: splits.load_source(world, "train", "cpu", *more)) if kind == "source" else (
        lambda *more: splits.load_target(world, "train", "clip_clap", "cpu", *more))
    memory, disk, alive = load(), load(stream), []
    N = len(memory.length) if kind == "source" else len(memory.weak)
    first = np.append(0, np.cumsum(memory.length)) if kind == "source" else np.arange(N + 1)
    numbers = torch.arange(N)[:, None, None]  # of the videos, in the place of labels
    config = uwav.PretrainConfig(batch=batch)

    def steps(data, labels, config, epoch):
        alive.append(weakref.ref(data.audio))
        assert sum(x() is not None for x in alive) <= 1, "a window that is done with is forgotten"
        videos = labels.audio.flatten().tolist()
        rows = np.concatenate([np.arange(first[v], first[v + 1]) for v in videos])
        for name, x in vars(data).items():
            whole = getattr(memory, name)
            by_row = name in ("audio", "visual", "visual_2d", "label")
            assert whole is None or np.array_equal(x, whole[rows if by_row else videos])
        yield epoch, videos

    epochs = [list(splits.by_windows(steps, disk, uwav.PseudoLabels(numbers, numbers), config, e)) for e in (1, 1, 2)]
    orders = [[v for _, videos in windows for v in videos] for windows in epochs]
    assert orders[0] == orders[1] and all(sorted(order) == list(range(N)) for order in orders)
    seeds = [epoch for windows in epochs[1:] for epoch, _ in windows]
    assert len(set(seeds)) == len(seeds) and epochs[0][0][0] == 1
    lengths = [len(videos) for _, videos in epochs[0]]
    assert sum(-(-n // batch) for n in lengths) == -(-N // batch), "no batch more than in memory"
    if len(lengths) == 1:
        assert orders[0] == list(range(N))
    else:
        assert orders[0] != orders[2] and all(videos == sorted(videos) for _, videos in epochs[0])
        sizes = [sum(Path(x.path).stat().st_size for x in vars(disk).values() if isinstance(x, splits.Stored)) * n / N for n in lengths]
        assert max(sizes) <= 8 * max(stream * 1.5e6, sizes[0] / lengths[0] * batch), "of the memory that was asked for"


def test_a_file_that_is_not_what_was_packed_is_refused_on_disk_as_in_memory(world, tmp_path):
    shutil.copytree(world, tmp_path / "data")
    path = tmp_path / "data/llp/train/clip.npy"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        for stream in (0, 1):
            with pytest.raises(ValueError, match="clip.npy: damaged, or made by another version .*not the file that index.json records"):
                splits.load_target(tmp_path / "data", "train", "clip_clap", "cpu", stream)
    path.write_bytes(whole)
    data = splits.load_target(tmp_path / "data", "train", "clip_clap", "cpu", 1)
    path.write_bytes(whole[:-1000])
    with pytest.raises(ValueError, match="clip.npy: not a complete .npy file"):
        data.visual_2d[0:60]
