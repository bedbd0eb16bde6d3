"""Killed, stopped, out of disk space, refused, two at a time: nothing is lost and nothing is silently wrong.

UWAV_SOAK=N tries N points of every fault instead of a few; UWAV_SEED=N repeats what a soak did.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import SMALL, need, unavailable

need("av", "open_clip", "laion_clap", "onnx", "onnxscript", "onnxruntime")
if sys.platform != "linux":
    unavailable("Linux, to inject faults", module=True)

import clips
import test_fetch
from common import command
from data import demo_world
from faults import Ended, Faults
from sources import write_source

ROOT = Path(__file__).resolve().parents[2]
SOAK = int(os.environ.get("UWAV_SOAK", 0))
SEED = int(os.environ.get("UWAV_SEED", time.time_ns() % 1_000_000 if SOAK else 0))


@dataclass(frozen=True)
class Case:
    """A command; `folder` is a run's, of which `before` says what the command finds there."""

    main: str
    arguments: Callable[[Path, Path], list]  # inputs, folder
    before: tuple[str, ...] = ()  # cases run before it, in this folder
    stand_ins: tuple[str, ...] = ()
    points: int = 5  # kills tried


TRAIN = ("pretrain", "label", "train")
CASES = {
    "demo": Case("features.main", lambda given, run: ["demo", run / "out"], (), ("tiny_world",)),
    "pack": Case("features.main", lambda given, run: ["pack", given / "source", run / "out", "--workers", 1], points=6),
    "extract": Case("features.main", lambda given, run: [
        "extract", given / "videos", run / "out", "--clip-weights", "random", "--clap-weights", "random", "--device", "cpu",
        "--group", "2"], (), ("toy_encoders",)),
    "pretrain": Case("train.cli.main", lambda given, run: ["pretrain", given / "data", run / "seed0", *SMALL, "--set", "epochs=2"],
                     points=6),
    "label": Case("train.cli.main", lambda given, run: [
        "label", given / "data", run / "seed0", "--teacher", run / "seed0/teacher.pt", "--device", "cpu"], ("pretrain",)),
    "train": Case("train.cli.main", lambda given, run: [
        "train", given / "data", run / "seed0/clip_clap/full", "--labels", run / "seed0/labels_teacher.npz", "--features",
        "clip_clap", *SMALL, "--set", "epochs=3"], ("pretrain", "label"), points=5),
    "evaluate": Case("train.cli.main", lambda given, run: [
        "evaluate", given / "data", run / "seed0/clip_clap/full/han.pt", "--device", "cpu"], TRAIN),
    "ablate": Case("train.cli.main", lambda given, run: ["ablate", given / "data", run, *SMALL, "--set", "epochs=1"], (), points=3),
    "export": Case("export_onnx.main", lambda given, run: [run, run / "bundle", "--data", given / "data"], TRAIN,
                   ("traced_before",), points=4),
    "report": Case("report.main", lambda given, run: [run], ("link", *TRAIN, "evaluate"), points=2),
}


class Bench:
    """Inputs, what every command finds (`found`) and what it makes of it when nothing disturbs it (`made`)."""

    def __init__(self, folder: Path, faults: Faults):
        self.folder, self.faults, self.given = folder, faults, folder / "given"
        self.changes: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        write_source(self.given / "source", videos=3)
        (self.given / "videos").mkdir()
        for n in range(5):
            clips.make(self.given / f"videos/v{n}.mp4", 1.5, sound=clips.tone(1.5, frequency=200 + 100 * n)[None])
        for name in ("silent", "mute"):
            clips.make(self.given / f"videos/{name}.mp4", 1)
        config = demo_world.WorldConfig(train=60, val=30, test=40, source_train=40, source_validation=20, source_test=20)
        demo_world.make(self.given / "data", config)

    def found(self, name: str) -> Path:
        folder = self.folder / "found" / name
        if not folder.exists():
            before = CASES[name].before
            if not before:
                folder.mkdir(parents=True)
            elif before[0] == "link":
                folder.mkdir(parents=True)
                shutil.copytree(self.made(before[-1]), folder, dirs_exist_ok=True)
                (folder / "data").symlink_to(self.given / "data")
            else:
                shutil.copytree(self.made(before[-1]), folder)
        return folder

    def made(self, name: str) -> Path:
        folder = self.folder / "made" / name
        if not folder.exists():
            work = self.fresh(name)
            result = self.run(name, work)
            assert result.status == 0, result.err
            self.changes[name], self.seconds[name] = result.changes, result.seconds
            shutil.copytree(work, folder, symlinks=True)
            shutil.rmtree(work)
        return folder

    def fresh(self, name: str, at: Path | None = None) -> Path:
        work = at or self.folder / "work" / name  # always the same path: messages and checkpoints hold it
        if at is None:
            shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(self.found(name), work, symlinks=True, dirs_exist_ok=True)
        return work

    def start(self, name: str, work: Path, stand_ins: tuple[str, ...] = (), **faults) -> int:
        case = CASES[name]
        return self.faults.start(case.main, case.arguments(self.given, work), stand_ins=["save_every_epoch", *case.stand_ins, *stand_ins],
                                 root=str(work), **faults)

    def run(self, name: str, work: Path, **faults) -> Ended:
        return self.faults.wait(self.start(name, work, **faults))


def content(folder: Path) -> dict[str, object]:
    """All files, hidden ones too, byte for byte."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not (folder / "data").is_symlink() or path.is_file() and "data" not in path.parts:
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def assert_same(work: Path, made: Path, what: str) -> None:
    a, b = content(work), content(made)
    assert sorted(a) == sorted(b), what
    assert [k for k in a if a[k] != b[k]] == [], what


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with Faults() as faults:
        bench = Bench(tmp_path_factory.mktemp("faults"), faults)
        faults.ask(trace=bench.found("report"))
        yield bench


# ---- killed ----


@pytest.mark.parametrize("name", CASES)
def test_killed_before_a_change_to_a_file_and_run_again_equals_an_undisturbed_run(bench, name):
    made = bench.made(name)
    last = bench.changes[name]
    for n in random.Random(name).sample(range(1, last + 1), min(SOAK or CASES[name].points, last)):
        work = bench.fresh(name)
        assert bench.run(name, work, kill_at=n).status == -signal.SIGKILL
        again = bench.run(name, work)
        assert again.status == 0, (n, again.err)
        assert_same(work, made, f"killed before change {n} of {last}")


@pytest.mark.parametrize("name", [name for name in CASES if name != "pack"])
def test_killed_in_the_middle_of_a_write_and_run_again_equals_an_undisturbed_run(bench, name):
    made = bench.made(name)
    for n in some_bytes(bench, name, SOAK or (1 if name in ("ablate", "report") else 2)):
        work = bench.fresh(name)
        assert bench.run(name, work, torn=n).status == -signal.SIGXFSZ
        again = bench.run(name, work)
        assert again.status == 0, (n, again.err)
        assert_same(work, made, f"killed at byte {n}")


def some_bytes(bench: Bench, name: str, number: int) -> list[int]:
    """Places within the files that a command writes, small ones as likely as large ones."""
    before, made = content(bench.found(name)), bench.made(name)
    new = [made / path for path in content(made) if path not in before]
    largest = max(p.stat().st_size for p in new)
    dice = random.Random(name)
    return [int(largest ** dice.random()) - 1 for _ in range(number)]


def test_an_ablation_killed_again_and_again_ends_with_the_same_tables(bench):
    """Not once but until it is through; each time it comes a little further."""
    made, work, dice, kills = bench.made("ablate"), bench.fresh("ablate"), random.Random(1), 0
    step = bench.changes["ablate"] // 6
    while (status := bench.run("ablate", work, kill_at=step * kills + dice.randint(1, step)).status) == -signal.SIGKILL:
        kills += 1
    assert status == 0 and kills >= 3
    assert_same(work, made, f"killed {kills} times")


def test_soak_kills_and_pairs_at_random_moments_end_with_the_bytes_of_an_undisturbed_run(bench, capsys):
    """Any command, killed at any moment or begun twice; then the same command once more."""
    dice, kills, ended = random.Random(SEED), SOAK or 6, []
    for n in range(kills + (kills + 4) // 5):
        name = dice.choice(list(CASES))
        made, work = bench.made(name), bench.fresh(name)
        pids = [bench.start(name, work)]
        time.sleep(dice.uniform(0, bench.seconds[name]))
        if n < kills:
            os.killpg(pids[0], signal.SIGKILL)
        else:
            pids.append(bench.start(name, work))
        results = [bench.faults.wait(pid) for pid in pids]
        if n >= kills:
            assert min(r.status for r in results) == 0, (SEED, name, results)
            for result in results:
                if result.status:
                    assert_one_sentence(result, "another run is at work there")
        ended += [r.status for r in results]
        again = bench.run(name, work)
        assert again.status == 0, (SEED, name, again.err)
        assert_same(work, made, f"seed {SEED}, {n}: {name}")
    with capsys.disabled():
        print(f"\nsoak of seed {SEED}: {kills} kills ({ended.count(-signal.SIGKILL)} in time), {n + 1 - kills} pairs "
              f"({ended.count(1)} refused), all as undisturbed")


def command_line(name: str, bench: Bench, work: Path) -> list[str]:
    case = CASES[name]
    script = {"train.cli.main": "uwav"}.get(case.main, case.main.split(".")[0])
    return [sys.executable, str(ROOT / f"{script}.py"), *map(str, case.arguments(bench.given, work))]


@pytest.mark.parametrize("name", ["ablate"] if not SOAK else ["pack", "pretrain", "label", "train", "evaluate", "ablate", "report"])
def test_the_real_command_killed_at_any_moment_and_run_again_equals_an_undisturbed_run(bench, name):
    made, work, environment = bench.made(name), bench.fresh(name), os.environ | {"OMP_NUM_THREADS": "1"}
    dice, options = random.Random(name), dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    for _ in range(2 if not SOAK else 10):
        process = subprocess.Popen(command_line(name, bench, work), start_new_session=True, **options)
        time.sleep(dice.uniform(1, 5))
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it was quick enough
            work = bench.fresh(name)
        process.wait()
    assert subprocess.run(command_line(name, bench, work), **options).returncode == 0
    assert_same(work, made, "killed at random")


def test_a_worker_of_ablate_that_is_killed_ends_the_command_with_one_sentence(bench, tmp_path):
    main, arguments, _, begun = LONG["rows"]
    pid = bench.faults.start(main, arguments(bench.given, tmp_path / "run"))
    wait_for(lambda: (tmp_path / "run" / begun).exists())
    workers = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    ended = bench.faults.wait(pid)
    assert_one_sentence(ended, f"{tmp_path / 'run'}: a worker process was killed")
    assert not ended.orphans


def wait_for(happened: Callable[[], bool]) -> None:
    for _ in range(60_000):
        if happened():
            return
        time.sleep(0.001)
    raise AssertionError("it did not happen in a minute")


# ---- stopped ----

LONG = {  # name -> (main, arguments, stand-ins, a file that tells that work has begun)
    "demo": ("features.main", lambda given, run: ["demo", run], (), ".packing/llp/text_clap.npy"),
    "pack": ("features.main", lambda given, run: ["pack", given / "source", run], (), ".packing/llp/train/weak.npy"),
    "extract": ("features.main", lambda given, run: [
        "extract", given / "videos", run, "--clip-weights", "random", "--clap-weights", "random", "--device", "cpu",
        "--workers", "1"], ("toy_encoders_alone",), "extract.json"),
    "pretrain": ("train.cli.main", lambda given, run: ["pretrain", given / "data", run, *SMALL, "--set", "epochs=1000"], (),
                 "teacher.jsonl"),
    "ablate": ("train.cli.main", lambda given, run: ["ablate", given / "data", run, *SMALL, "--set", "epochs=1000"], (),
               "seed0/teacher.jsonl"),
    "rows": ("train.cli.main", lambda given, run: ["ablate", given / "data", run, *SMALL, "--set", "epochs=20", "--set", "batch=2"], (),
             "seed0/clip_clap/video_only/han.jsonl"),
    "export": ("export_onnx.main", lambda given, run: [given.parent / "found/report", run], (), ".part"),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("name", LONG)
def test_ctrl_c_and_sigterm_stop_at_once_with_one_sentence(bench, tmp_path, name, number):
    main, arguments, stand_ins, begun = LONG[name]
    bench.found("report")
    pid = bench.faults.start(main, arguments(bench.given, tmp_path / "run"), stand_ins=stand_ins)
    wait_for(lambda: (tmp_path / "run" / begun).exists())
    started = time.monotonic()
    (os.killpg if number == signal.SIGINT else os.kill)(pid, number)  # a terminal tells the workers, too
    ended = bench.faults.wait(pid)
    assert ended.status == 128 + number, (ended.status, ended.err)
    assert ended.err.splitlines()[-1] == f"stopped by {number.name}; nothing is lost, the same command {'begins again' if name == 'export' else 'goes on from here'}"
    assert "Traceback" not in ended.err and not ended.orphans
    assert time.monotonic() - started < 3


def test_ctrl_c_during_run_all_stops_all_of_it(tmp_path):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = subprocess.Popen(["bash", ROOT / "run_all.sh", "--out", tmp_path], env=environment, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (tmp_path / "data/.packing/plan.json").exists())
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGINT, err
    assert "the same command goes on from here" in err and "Traceback" not in err and "== 2." not in out
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


# ---- no space, no permission ----


def assert_one_sentence(ended: Ended, *words: str) -> None:
    last = ended.err.rstrip().splitlines()[-1]
    assert ended.status == 1 and last.startswith("error: ") and "Traceback" not in ended.err and not ended.orphans, ended
    assert all(word in last for word in words), last
    assert "Exception ignored" not in ended.err, ended.err


def assert_nothing_spoilt(before: dict, after: dict, made: dict) -> None:
    """Earlier files are as they were, and every new one is whole, or one of those from which the next run goes on."""
    for name, bytes in after.items():
        if not name.endswith(("plan.json", "made.json", ".part", ".state.pt", ".jsonl", "failures.csv")):
            assert bytes in (before.get(name), made.get(name.replace(".packing/", ""))), name
    assert before.keys() <= after.keys() and not [name for name in after if "/." in name and ".part" in name]


@pytest.mark.parametrize("name", CASES)
def test_a_full_disk_is_one_sentence_and_the_next_run_goes_on(bench, name):
    """Writes fail at any byte of a file (a limit on the size of files behaves as a full disk does)."""
    made = bench.made(name)
    for n in [0, *some_bytes(bench, name, SOAK or (1 if name in ("ablate", "report") else 2))]:
        work = bench.fresh(name)
        before = content(work)
        ended = bench.run(name, work, limit=n)
        assert_one_sentence(ended, str(work), "File too large" if "whole" not in ended.err else "disk full")
        assert_nothing_spoilt(before, content(work), content(made))
        again = bench.run(name, work)
        assert again.status == 0, (n, again.err)
        assert_same(work, made, f"full at byte {n}")


def test_a_checkpoint_fails_cleanly_at_any_byte(bench, tmp_path):
    """PyTorch's own writer raises neither the same error everywhere nor one that names the file."""
    made = bench.made("train") / "seed0/clip_clap/full/han.pt"
    size = made.stat().st_size
    for n in [*range(0, 200, 40), *range(200, size, size // 15), size - 1]:
        ended = bench.faults.run("faults.save_again", [made, tmp_path / "copy.pt"], limit=n)
        assert_one_sentence(ended, str(tmp_path / "copy.pt"))
        assert not list(tmp_path.iterdir())


@contextmanager
def small_disk(folder: Path, size: str):
    """A file system of its own, where mounting is allowed (for root, mostly); what it gives changes its options."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("name", [name for name in CASES if name != "report"])
def test_a_small_file_system_that_is_full_and_then_grows(bench, name):
    made = bench.made(name)
    sizes = [sum(4096 + p.stat().st_size for p in folder.rglob("*") if p.is_file()) for folder in (bench.found(name), made)]
    size = (sizes[0] + sizes[1]) // 2  # room for half of what the command writes
    work = bench.folder / "work" / name
    shutil.rmtree(work, ignore_errors=True)
    with small_disk(work, size) as remount:
        bench.fresh(name, work)
        before = content(work)
        ended = bench.run(name, work)
        assert_one_sentence(ended, str(work))
        assert_nothing_spoilt(before, content(work), content(made))
        remount("size=100m")
        again = bench.run(name, work)
        assert again.status == 0, again.err
        assert_same(work, made, "the disk grew")


@pytest.mark.parametrize("name", CASES)
def test_a_read_only_file_system_is_one_sentence(bench, name):
    bench.made(name)
    work = bench.folder / "work" / name
    shutil.rmtree(work, ignore_errors=True)
    with small_disk(work, "100m") as remount:
        bench.fresh(name, work)
        remount("ro")
        assert_one_sentence(bench.run(name, work), str(work), "Read-only file system")
        assert content(work) == content(bench.found(name))


@pytest.mark.parametrize("name", CASES)
def test_no_permission_and_a_file_in_the_place_of_the_folder_are_one_sentence(bench, name):
    bench.made(name)
    work = bench.fresh(name)
    folders = [p for p in (work, *work.rglob("*")) if p.is_dir() and not p.is_symlink()]
    for p in folders:
        p.chmod(0o500)
    try:
        assert_one_sentence(bench.run(name, work, powerless=True), str(work), "Permission denied")
    finally:
        for p in folders:
            p.chmod(0o700)
    assert content(work) == content(bench.found(name))
    if not CASES[name].before:
        shutil.rmtree(work)
        work.write_text("a file")
        try:
            assert_one_sentence(bench.run(name, work), str(work))
        finally:
            work.unlink()


@pytest.mark.parametrize("ending", ["json", "csv", "png"])
def test_parse_says_which_file_could_not_be_written(bench, tmp_path, ending):
    import numpy as np

    bundle, source, target = bench.made("export") / "bundle", tmp_path / "features.npz", tmp_path / f"out.{ending}"
    rng = np.random.default_rng(0)
    np.savez(source, audio=rng.standard_normal((10, 512), np.float32), visual_2d=rng.standard_normal((10, 768), np.float32))
    option = {"png": "--plot"}.get(ending, f"--{ending}")
    arguments = [source, "--bundle", bundle, option, target]
    target.write_text("earlier")
    assert_one_sentence(bench.faults.run("parse.main", arguments, limit=10), str(target), "File too large")
    assert target.read_text() == "earlier" and sorted(p.name for p in tmp_path.iterdir()) == sorted([source.name, target.name])
    assert_one_sentence(bench.faults.run("parse.main", [*arguments[:-1], target / "x"]), str(target))
    assert bench.faults.run("parse.main", arguments).status == 0 and target.read_bytes() != b"earlier"


# ---- two at a time ----


@pytest.mark.parametrize("name", CASES)
def test_a_second_run_in_the_same_folder_is_refused_and_spoils_nothing(bench, name):
    made, work = bench.made(name), bench.fresh(name)
    arguments = [Path(a) for a in map(str, CASES[name].arguments(bench.given, work)) if a.startswith(str(work))]
    place = {"label": arguments[0], "train": arguments[0], "evaluate": arguments[0].parent}.get(name, arguments[-1])
    with command.working_in(place):
        before = content(work)
        ended = bench.run(name, work)
        assert_one_sentence(ended, f"{place}: another run is at work there")
        assert content(work) == before
    again = bench.run(name, work)
    assert again.status == 0, again.err
    assert_same(work, made, "refused once")


@pytest.mark.parametrize("name", ["pack", "pretrain", "ablate"])
def test_of_two_runs_at_once_one_is_refused_and_the_other_ends_as_if_alone(bench, name):
    made, work = bench.made(name), bench.fresh(name)
    first = bench.start(name, work)
    second = bench.start(name, work)
    results = [bench.faults.wait(pid) for pid in (first, second)]
    assert min(r.status for r in results) == 0, results
    for result in results:
        if result.status:  # unless the other was so quick that it could wait
            assert_one_sentence(result, "another run is at work there")
    assert_same(work, made, "two runs")


def test_an_ablation_beside_a_training_of_one_of_its_rows_is_refused_there(bench):
    work = bench.fresh("ablate")
    with command.working_in(row := work / "seed0/clip_clap/valor"):
        assert_one_sentence(bench.run("ablate", work), f"{row}: another run is at work there")
    assert bench.run("ablate", work).status == 0
    assert_same(work, bench.made("ablate"), "refused once")


def test_a_second_fetch_is_refused(bench, tmp_path):
    server = test_fetch.Server()
    try:
        with command.working_in(tmp_path / "source"):
            ended = bench.faults.run("features.main", ["fetch", tmp_path / "source", "--mirror", server.url])
            assert_one_sentence(ended, "another run is at work there")
    finally:
        server.server_close()
    assert server.requests == []


@pytest.mark.parametrize("name", ["pack", "pretrain"])
def test_a_killed_run_leaves_no_lock(bench, name):
    work = bench.fresh(name)
    assert bench.run(name, work, kill_at=bench.changes[name] // 2).status == -signal.SIGKILL
    assert bench.run(name, work).status == 0
    assert_same(work, bench.made(name), "killed")
