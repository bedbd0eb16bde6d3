"""Where the recorded reference cases and the real annotations are, if this machine has them."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

# Tests are offline, and nothing of this machine's Hugging Face cache takes part. Set before anything imports the library.
HUB = Path(tempfile.mkdtemp(prefix="uwav-hub-"))
atexit.register(shutil.rmtree, HUB, ignore_errors=True)
os.environ |= {"HF_HOME": str(HUB), "HF_HUB_OFFLINE": "1"}

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SHARED = Path(os.environ.get("UWAV_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with `golden/` and `data/`; tests that need it are skipped where it is absent (never in CI)."""
    if not (SHARED / "golden").is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"CI must have the reference cases, but {SHARED} is not there")
        pytest.skip(f"no reference cases at {SHARED}; set UWAV_SHARED to the folder that holds golden/ and data/")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared):
    """golden("han") -> dict of tensors and other values of golden/han.npz."""

    def load(name: str) -> dict:
        with np.load(shared / "golden" / f"{name}.npz", allow_pickle=False) as file:
            return {k: torch.from_numpy(v) if v.dtype.kind in "fiu" else v for k, v in file.items()}

    return load
