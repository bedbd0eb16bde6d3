"""The set-up of run_all.sh: which program installs, and that no package brings another PyTorch."""

import importlib.metadata
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
