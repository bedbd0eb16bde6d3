"""The set-up of run_all.sh: which program installs, and that no package brings another PyTorch."""

import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("fails, config, last", [
    ("", "", "-m uv pip install --quiet --compile-bytecode --python {python} numpy"),
    ("uv", "", "-m pip install --quiet numpy"),  # it cannot be installed, or does not find what pip finds
    ("", "global.index-url='https://example.org/simple'", "-m pip install --quiet numpy"),  # which uv does not read
    ("", "global.extra-index-url='https://example.org/simple'", "-m uv pip install --quiet --compile-bytecode --python {python} numpy"),
])
def test_uv_installs_and_pip_does_where_uv_cannot_or_should_not(tmp_path, fails, config, last):
    text = (ROOT / "run_all.sh").read_text()
    function = text[text.index("install() {"):text.index("setup() {")]
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(f'''#!/bin/sh
if [ "$3" = config ]; then echo "{config}"; exit; fi
echo "$@" >>{log}
case "$*" in *" {fails or 'nothing'}"*) exit 1;; esac
''')
    python.chmod(0o755)
    subprocess.run(["bash", "-euo", "pipefail", "-c", f"python={python} bytecode=--compile-bytecode\n{function}\ninstall numpy"], check=True)
    assert log.read_text().splitlines()[-1] == last.format(python=python)


def said_by_run_all(folder: Path, programs: dict[str, str], *options: str) -> str:
    """The one line with which a copy of run_all.sh ends, where these programs answer otherwise. It must write nothing."""
    copy, fake = folder / "copy", folder / "bin"
    copy.mkdir()
    fake.mkdir()
    for name in ("run_all.sh", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    for name, text in programs.items():
        (fake / name).write_text(f"#!/bin/sh\n{text}\n")
        (fake / name).chmod(0o755)
    done = subprocess.run(["bash", copy / "run_all.sh", *options], env=os.environ | {"PATH": f"{fake}:{os.environ['PATH']}"}, cwd=folder,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: "), done.stderr
    assert not (copy / "runs").exists()
    return done.stderr


@pytest.mark.parametrize("system", ["MINGW64_NT-10.0-19045", "MINGW32_NT-6.2", "MSYS_NT-10.0-22631", "CYGWIN_NT-10.0"])
@pytest.mark.parametrize("options", [(), ("test",), ("--own", "clips")])
def test_shells_of_windows_are_told_so_before_anything_is_made(tmp_path, system, options):
    assert "run it in WSL" in said_by_run_all(tmp_path, {"uname": f"echo {system}", "python3": "exit 127"}, *options)
    assert not (tmp_path / "copy/.venv").exists()


@pytest.mark.parametrize("made", ["mkdir -p .venv/Scripts; touch .venv/Scripts/python.exe", "mkdir .venv", "mkdir -p .venv/bin"])
def test_an_environment_without_bin_python_is_said(tmp_path, made):
    python3 = f'case "$*" in *version_info*) exit 0;; "-m venv .venv") {made}; exit 0;; esac; exit 1'  # it has no module
    assert ".venv has no bin/python" in said_by_run_all(tmp_path, {"python3": python3})


@pytest.mark.parametrize("version, admitted", [((3, 9, 18), False), ((3, 10, 0), True), ((3, 14, 9), True), ((3, 15, 0), False), ((4, 0, 0), False)])
def test_the_pythons_that_run_all_takes_are_those_of_pyproject(tmp_path, version, admitted):
    check = re.search(r"python3 -c 'import sys; (sys.exit\(.*\))'", (ROOT / "run_all.sh").read_text())[1]
    project = (ROOT / "pyproject.toml").read_text()
    low, high = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', project).groups()
    assert f"Python 3.{low} to 3.{int(high) - 1}" in (ROOT / "run_all.sh").read_text()
    with pytest.raises(SystemExit) as end:
        exec(check.replace("sys.version_info", str(version)), {"sys": __import__("sys")})
    assert bool(end.value.code) != admitted and admitted == ((3, int(low)) <= version < (3, int(high)))


def test_encoders_came_without_another_pytorch():
    constraints = ROOT / ".venv/constraints.txt"
    if not constraints.exists():
        pytest.skip("the packages of this Python were not installed by run_all.sh")
    version = importlib.metadata.version("torch")
    assert constraints.read_text().strip() == f"torch=={version}"
    names = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    assert "torchvision" in names and ("+cpu" not in version or not [n for n in names if n.startswith("nvidia-")])
    from video import encoders

    encoders.import_torchvision()
