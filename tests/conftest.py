"""What tests share: the reference cases and real annotations if this machine has them, a finished run, the two tiers.

The quick tier is what lies in this folder, and needs pytest alone; `--thorough` adds the folders thorough/ and robustness/.
"""

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny: threads that wait for each other cost more than they do

import numpy as np
import pytest
import torch

# Tests are offline, and nothing of this machine's Hugging Face cache takes part. Set before anything imports the library.
HUB = Path(tempfile.mkdtemp(prefix="uwav-hub-"))
atexit.register(shutil.rmtree, HUB, ignore_errors=True)
os.environ |= {"HF_HOME": str(HUB), "HF_HUB_OFFLINE": "1"}

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / folder) for folder in ("helpers", "thorough", "robustness"))]
SHARED = Path(os.environ.get("UWAV_SHARED", ROOT.parent / "shared"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="also the tests of thorough/ and robustness/")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Folders of the thorough tier, unless it is asked for or something in them is named."""
    if collection_path.name not in ("thorough", "robustness") or config.option.thorough:
        return None
    named = (Path(argument.split("::")[0]).resolve() for argument in config.args)
    return None if any(collection_path in (path, *path.parents) for path in named) else True


LONG = ("test_versions", "test_faults", "test_runtimes", "test_own", "test_notebook", "test_exercises", "test_video", "test_commands", "test_extract", "test_export")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes first: for what is begun last, everything waits."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


GOLDEN = ROOT / "tests/golden"  # the small recorded cases, which every clone has


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with `golden/` and `data/`; tests that need it are skipped where it is absent (never in CI)."""
    return shared_folder()


def shared_folder() -> Path:
    if not (SHARED / "golden").is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"CI must have the reference cases, but {SHARED} is not there")
        pytest.skip(f"no reference cases at {SHARED}; set UWAV_SHARED to the folder that holds golden/ and data/")
    return SHARED


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict]:
    """golden("han") -> dict of tensors and other values of golden/han.npz: of this clone, or of the shared folder."""

    def load(name: str) -> dict:
        path = GOLDEN / f"{name}.npz"
        with np.load(path if path.exists() else shared_folder() / "golden" / path.name, allow_pickle=False) as file:
            return {k: torch.from_numpy(v) if v.dtype.kind in "fiu" else v for k, v in file.items()}

    return load


TINY = tuple(f"{whose}.{size}" for whose in ("teacher", "han") for size in ("hidden=16", "feedforward=16", "layers=1"))
SMALL = ("--preset", "demo", "--device", "cpu", *(x for field in TINY for x in ("--set", field)))
TRAINED = (*SMALL, "--set", "epochs=6", "--set", "peak_lr=0.01")  # enough for a HAN that predicts some events
SIZES = dict(train=60, val=30, test=40, source_train=40, source_validation=20, source_test=20)  # of the world, in videos


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A run as run_all.sh leaves it, small: its data, and the ablation of two seeds. Tests that write work on a copy."""
    from data import demo_world
    from train import cli

    def make(folder: Path) -> None:
        demo_world.make(folder / "data", demo_world.WorldConfig(**SIZES))
        cli.main(["ablate", str(folder / "data"), str(folder), "--seeds", "2", *TRAINED])

    return once("run", make, tmp_path_factory)


@pytest.fixture(scope="session")
def bundle(finished, tmp_path_factory) -> Path:
    """The exported bundle of that run, with a small CLIP and a shallow CLAP of random weights, and both variants."""
    import export_onnx
    import tiny_extract

    def make(folder: Path) -> None:
        with tiny_extract.small_encoders():
            export_onnx.main([str(finished), str(folder), "--clip-weights", "random", "--clap-weights", "random", "--fp16", "--int8"])

    return once("bundle", make, tmp_path_factory)


def once(name: str, make: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is made once for all processes of pytest-xdist: by the first that needs it; others wait."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with one_at_a_time(folder.with_suffix(".lock")):
        if not folder.with_suffix(".whole").exists():
            make(folder)
            folder.with_suffix(".whole").touch()
    return folder


@contextmanager
def one_at_a_time(path: Path):
    import fcntl

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, as Playwright shows it."""
    if not importlib.util.find_spec("playwright"):
        unavailable("playwright: pip install playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        unavailable("Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=[
            "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"])
        yield chromium
        chromium.close()


def unavailable(what: str, module: bool = False) -> None:
    """Skip a test, or a whole module of them, for lack of something that a user may not have; CI must have it."""
    if os.environ.get("CI"):
        raise RuntimeError(f"CI must have {what}")
    pytest.skip(f"needs {what}", allow_module_level=module)


PACKAGES = {"av": "av", "pebble": "pebble", "open_clip": "open_clip_torch", "laion_clap": "laion-clap", "onnx": "onnx", "onnxscript": "onnxscript",
            "onnxruntime": "onnxruntime-gpu"}  # module -> package


def need(*modules: str) -> None:
    """At the head of a test module: what it cannot do without."""
    missing = [PACKAGES[m] for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        unavailable(f"pip install {' '.join(missing)}", module=True)
