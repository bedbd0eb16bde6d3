"""common/: files whole or not at all, one run at a time, one sentence at the end."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common import command, files

ROOT = Path(__file__).resolve().parents[2]


# ---- written whole or not at all ----


def test_a_file_appears_only_when_it_is_whole_and_keeps_its_ending(tmp_path):
    path = tmp_path / "deep/er/x.npy"
    with files.atomic(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".npy" and not path.exists()
    assert path.read_text() == "new" and [p.name for p in path.parent.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("error", [ValueError("no"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_earlier_file_and_nothing_else(tmp_path, error):
    (tmp_path / "x.json").write_text("earlier")
    with pytest.raises(type(error)):
        with files.atomic(tmp_path / "x.json") as temporary:
            temporary.write_text("half")
            raise error
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.json", "earlier")]


@pytest.mark.parametrize("raised, expected", [
    (OSError(errno.ENOSPC, "whatever"), (errno.ENOSPC, os.strerror(errno.ENOSPC))),
    (OSError("5 requested and 0 written"), (errno.EIO, "could not be written whole; is the disk full?")),  # np.save
])
def test_a_failed_write_names_the_file_it_was_for(tmp_path, raised, expected):
    with pytest.raises(OSError) as caught:
        with files.atomic(tmp_path / "x.npy"):
            raise raised
    assert (caught.value.errno, caught.value.strerror) == expected and caught.value.filename == str(tmp_path / "x.npy")


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        with files.atomic(tmp_path / "x.npy"):
            open(tmp_path / "source.npy")
    assert caught.value.filename == str(tmp_path / "source.npy")


def test_arrays_and_json_come_back_as_they_were(tmp_path):
    x = np.arange(6, dtype=np.float16).reshape(2, 3)
    files.write_array(tmp_path / "x.npy", x)
    files.write_arrays(tmp_path / "x.npz", x=x, y=np.array("text"))
    files.write_json(tmp_path / "x.json", {"é": [1]})
    np.testing.assert_array_equal(files.read_array(tmp_path / "x.npy"), x)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["x"], x)
        assert str(file["y"]) == "text"
    arrays = files.read_arrays(tmp_path / "x.npz")
    assert list(arrays) == ["x", "y"] and arrays["x"].dtype == np.float16
    for changed in (dict(x=x + 1), dict(x=x.T), dict(x=x.astype(np.float32)), dict(y=np.array("test")), dict(z=x)):
        np.savez(tmp_path / "x.npz", **arrays | changed, sha256=np.array(files.hash_of_arrays(arrays)))
        with pytest.raises(ValueError, match="x.npz: .*its checksum differs"):
            files.read_arrays(tmp_path / "x.npz")
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == files.json_text({"é": [1]})


def test_a_pickled_array_is_refused_by_name(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="x.npy: not a complete .npy file"):
        files.read_array(tmp_path / "x.npy")


# ---- one at a time ----


def hold(folder: Path, held, release) -> None:
    with command.working_in(folder):
        held.set()
        release.wait(30)


@pytest.fixture()
def other(tmp_path):
    """Another process that works in tmp_path / "run", and the event that ends it."""
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "run", held, release))
    process.start()
    assert held.wait(30)
    yield process, release
    if process.is_alive():
        release.set()
    process.join()


def test_a_second_run_is_refused_at_once(tmp_path, other):
    started = time.monotonic()
    with pytest.raises(ValueError, match="run: another run is at work there; wait for it or choose another folder"):
        with command.working_in(tmp_path / "run"):
            raise AssertionError
    assert time.monotonic() - started < 1
    with command.working_in(tmp_path / "elsewhere"):
        pass


def test_a_run_that_has_ended_lets_the_next_one_in_and_leaves_no_file(tmp_path, other):
    other[1].set()
    other[0].join()
    with command.working_in(tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_a_killed_run_leaves_no_lock(tmp_path, other):
    other[0].kill()
    other[0].join()
    with command.working_in(tmp_path / "run"):
        pass


def test_stages_of_one_run_share_its_lock(tmp_path):
    import fcntl

    with command.working_in(tmp_path):
        with command.working_in(tmp_path / "../" / tmp_path.name):
            pass
        stranger = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):  # still ours
            fcntl.flock(stranger, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(stranger)


def test_many_that_want_the_same_folder_work_one_after_the_other(tmp_path):
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import pathlib, time\nfrom common import command\n"
            "here, done = pathlib.Path(sys.argv[2]), 0\n"
            "while done < 20:\n"
            "    try:\n"
            "        with command.working_in(here / 'run'):\n"
            "            (here / 'alone').mkdir(); time.sleep(0.002); (here / 'alone').rmdir(); done += 1\n"
            "    except ValueError:\n"
            "        time.sleep(0.003)\n")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(ROOT), str(tmp_path)]) for _ in range(3)]
    assert [p.wait(timeout=60) for p in processes] == [0, 0, 0]


# ---- one sentence ----


class OutOfMemoryError(RuntimeError):
    """Named as PyTorch's."""


@pytest.mark.parametrize("error, sentence", [
    (ValueError("x.npy: holds NaN"), "error: x.npy: holds NaN"),
    (FileNotFoundError("x.npy: no such file"), "error: x.npy: no such file"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.npy"), "error: x.npy: No such file or directory"),
    (FileExistsError(errno.EEXIST, "File exists", "out"), "error: out: File exists"),
    (PermissionError(errno.EACCES, "Permission denied", "out/x.json"), "error: out/x.json: Permission denied"),
    (OSError(errno.ENOSPC, "No space left on device", "out/x.npy"), "error: out/x.npy: No space left on device"),
    (OSError("a cause of its own"), "error: a cause of its own"),
    (MemoryError("Unable to allocate 9 GiB"), "error: out of memory (Unable to allocate 9 GiB); smaller batches"),
    (OutOfMemoryError("CUDA out of memory. Tried\nmore"), "error: out of memory (CUDA out of memory. Tried); smaller batches"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "error: out of memory (DefaultCPUAllocator"),
])
def test_what_a_user_can_bring_about_is_one_sentence(error, sentence):
    with pytest.raises(SystemExit) as stop:
        with command.one_sentence_errors():
            raise error
    assert stop.value.code.startswith(sentence) and "\n" not in stop.value.code


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), TypeError("a bug"), AssertionError()])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        with command.one_sentence_errors():
            raise error


def script(body: str, *signals: signal.Signals) -> subprocess.CompletedProcess:
    """Run lines of a command, and send it signals once it has printed something."""
    code = f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); from common import command\nwith command.one_sentence_errors():\n"
    code += "".join(f"    {line}\n" for line in body.splitlines())
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = process.stdout.readline()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.2)
    out, err = process.communicate(timeout=10)
    return subprocess.CompletedProcess(code, process.returncode, first + out, err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_signals_end_a_command_at_once_with_a_sentence_whatever_it_would_still_do_and_however_many_come(number):
    started = time.monotonic()
    ended = script("try:\n    print('on', flush=True); time.sleep(30)\nfinally:\n    print('still here', flush=True); time.sleep(30)", number, number)
    assert ended.returncode == 128 + number and ended.stdout == "on\n" and time.monotonic() - started < 5
    assert ended.stderr == f"\nstopped by {number.name}; nothing is lost, the same command goes on from here\n"


def test_a_signal_whose_exception_is_swallowed_ends_the_command_all_the_same():
    """As a destructor does in which it happens to arrive."""
    ended = script("print('on', flush=True)\nwhile True:\n    try:\n        time.sleep(30)\n    except KeyboardInterrupt:\n        pass", signal.SIGTERM)
    assert ended.returncode == 128 + signal.SIGTERM and ended.stderr.count("stopped by SIGTERM") == 1


def test_a_keyboard_interrupt_without_a_signal_is_passed_on_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        with command.one_sentence_errors():
            assert signal.getsignal(signal.SIGTERM) != before
            raise KeyboardInterrupt
    assert signal.getsignal(signal.SIGTERM) == before
