"""Which Pythons and packages this project was tried with: resolve, install, run, and write down what was there.

    python tests/helpers/versions.py        # writes docs/versions.md; 5 GB of downloads, minutes

The oldest Python that pyproject.toml admits gets the oldest packages that it admits, the newest Python that this machine
has gets the newest. On both, the tests of decoding and every command run (smoke.py).
"""

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/versions.md"
EXTRAS = ("--extra", "onnx-cpu", "--extra", "features", "--extra", "test")
TESTS = ("-k", "not crashes_or_hangs and not damaged_copies", "tests/thorough/test_video.py")  # those take a minute
OLDEST, NEWEST = "lowest-direct", "highest"  # uv's names
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def admitted() -> list[str]:
    """The Pythons that pyproject.toml admits: ["3.10", ...]."""
    low, high = re.search(r'^requires-python = ">=3\.(\d+),<3\.(\d+)"', PROJECT, re.MULTILINE).groups()
    return [f"3.{minor}" for minor in range(int(low), int(high))]


def bounds() -> dict[str, tuple[str, str]]:
    """Package -> (lowest that pyproject.toml admits, first that it does not)."""
    found = re.findall(r'"([\w-]+)>=([\d.]+),<([\d.]+)"', PROJECT[PROJECT.index("dependencies = "):PROJECT.index("[tool.setuptools]")])
    return {name.lower().replace("_", "-"): (low, high) for name, low, high in found}


@functools.cache
def interpreter(version: str) -> str | None:
    """A Python of this version on this machine: on PATH, or one of pyenv's, which answers under its full name only."""
    for path in (shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")):
        if path and subprocess.run([path, "-c", "import venv"], capture_output=True).returncode == 0:
            return str(path)
    return None


def uv(*arguments: object, cache: Path) -> str:
    program = [sys.executable, "-m", "uv"] if importlib.util.find_spec("uv") else ["uv"]
    done = subprocess.run([*program, "--cache-dir", str(cache), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"uv {' '.join(map(str, arguments))}\n{done.stderr[-3000:]}")
    return done.stdout


def resolve(version: str, cache: Path) -> dict[str, str]:
    """What an installation with all extras would bring on this Python today: package -> version. Downloads no package."""
    lines = uv("pip", "compile", "--quiet", "--no-annotate", "--no-header", "--all-extras", "--python-version", version, "pyproject.toml",
               cache=cache)
    return dict(re.findall(r"^([\w.-]+)==(\S+)", lines, re.MULTILINE))


def tried(version: str, which: str, folder: Path) -> dict[str, str]:
    """Install the `which` packages for this Python below `folder`, and run the tests of decoding and every command with
    them: package -> version. Raises RuntimeError with what was printed."""
    try:
        uv("venv", "--python", interpreter(version), folder / "venv", cache=folder)
        python = folder / "venv/bin/python"
        uv("pip", "install", "--quiet", "--python", python, "--resolution", which, "-r", "pyproject.toml", *EXTRAS, cache=folder / "cache")
        for command in (["-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS], ["tests/helpers/smoke.py", *["--short"] * (which == OLDEST)]):
            done = subprocess.run([python, *command], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            if done.returncode:
                raise RuntimeError(f"Python {version}, {which} packages: {' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}")
        installed = json.loads(uv("pip", "list", "--python", python, "--format", "json", cache=folder / "cache"))
        full = subprocess.run([python, "-c", "import platform; print(platform.python_version())"], capture_output=True, text=True).stdout
        return {"python": full.strip()} | {package["name"].lower().replace("_", "-"): package["version"] for package in installed}
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # 6 GB: PyTorch comes for GPUs


def row(name: str, old: dict[str, str], new: dict[str, str]) -> str:
    return f"| {name} | {old.get(name, '')} | {new.get(name, '')} |"


def page(old: dict[str, str], new: dict[str, str], resolved: dict[str, dict[str, str]]) -> str:
    named = bounds().keys() & (old.keys() | new.keys())
    brought = (old.keys() | new.keys()) - named - {"python", "pip", "setuptools", "uwav"}
    brought = [name for name in sorted(brought) if not name.startswith(("nvidia-", "cuda-", "triton"))]
    return "\n".join([
        "# Tested versions", "",
        "After this page you know which Pythons and packages this project was tried with, and how to have the same.", "",
        f"Tried on {time.strftime('%Y-%m-%d')} by `python tests/helpers/versions.py`, on {os.uname().sysname} {os.uname().machine}: "
        "all tests of decoding, but", "three that take long, and every command (with the oldest, no encoders are exported).", "",
        "The oldest packages that `pyproject.toml` admits ran on the oldest Python, the newest on the newest",
        "Python that was there. The bounds in `pyproject.toml` are these versions; above them the next release of the kind that",
        "may break something is shut out until it has been tried. All other tests run with what `run_all.sh` installs where",
        "there is no GPU, PyTorch 2.13.0 among it.", "",
        "| | oldest | newest |", "|---|---|---|", row("python", old, new), *(row(name, old, new) for name in sorted(named)), "",
        "## What is only resolved", "",
        "For every Python that is admitted, an installer finds packages (nothing was run on those without a column above):", "",
        "| Python | " + " | ".join(SHOWN) + " |", "|---|" + "---|" * len(SHOWN),
        *(f"| {version} | " + " | ".join(found.get(name, "") for name in SHOWN) + " |" for version, found in resolved.items()), "",
        "## What they bring with them", "",
        "| | oldest | newest |", "|---|---|---|", *(row(name, old, new) for name in brought), ""])


SHOWN = ("torch", "numpy", "av", "onnx", "onnxruntime", "matplotlib", "transformers")


def main() -> None:
    oldest, newest = admitted()[0], [version for version in admitted() if interpreter(version)][-1]
    with tempfile.TemporaryDirectory(prefix="uwav-versions-") as made:
        resolved = {version: resolve(version, Path(made) / "cache") for version in admitted()}
        old, new = (tried(version, which, Path(made) / which) for version, which in ((oldest, OLDEST), (newest, NEWEST)))
    PAGE.write_text(page(old, new, resolved), encoding="utf-8")
    print(f"{PAGE}: Python {old['python']} and {new['python']}")


if __name__ == "__main__":
    main()
