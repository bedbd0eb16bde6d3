"""The same events on other processors, which qemu-user imitates: x86 without VNNI, and without AVX; ARM64 without and with
8-bit dot products. UWAV_ARM64 is the Python that tests/helpers/arm64.sh makes."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import need, unavailable

need("av", "open_clip", "laion_clap", "onnx", "onnxscript", "onnxruntime")

ROOT = Path(__file__).resolve().parents[2]
PROCESSORS = {"Haswell": "x86-64, AVX2", "Nehalem": "x86-64, SSE", "cortex-a72": "ARM64", "neoverse-n1": "ARM64, dot product"}
LIMIT = {"parser": 1e-5, "parser_fp16": 1e-5, "parser_int8": 5e-3}  # of a probability, between processors; measured 2e-7
RUN = """
import sys, numpy as np, onnxruntime
onnxruntime.set_default_logger_severity(4)
folder, inputs, out = sys.argv[1:]
with np.load(inputs) as file:
    inputs, found = {k: file[k] for k in file.files}, {}
for name in ("parser", "parser_fp16", "parser_int8"):
    session = onnxruntime.InferenceSession(f"{folder}/onnx/{name}.onnx", providers=["CPUExecutionProvider"])
    found |= {f"{name}/{o.name}": x for o, x in zip(session.get_outputs(), session.run(None, inputs))}
np.savez(out, **found)
"""


def on(processor: str) -> list[str]:
    """The beginning of a command of Python that this processor runs."""
    if not shutil.which("qemu-x86_64") or platform.machine() != "x86_64":
        unavailable("qemu on x86-64: apt-get install qemu-user")
    if "ARM64" not in PROCESSORS[processor]:
        return ["qemu-x86_64", "-cpu", processor, sys.executable]
    if not (arm64 := os.environ.get("UWAV_ARM64")):
        unavailable("UWAV_ARM64, a Python for ARM64: bash tests/helpers/arm64.sh DIR makes DIR/python")
    return [arm64, processor]


@pytest.mark.parametrize("processor", PROCESSORS)
def test_another_processor_finds_the_same_events(processor, bundle, tmp_path):
    with np.load(bundle / "sample.npz") as file:
        sample, rng = {k: file[k] for k in file.files}, np.random.default_rng(0)
    np.savez(tmp_path / "in.npz", **{k: np.concatenate([x[None], rng.standard_normal((19, *x.shape))]).astype(np.float32) for k, x in sample.items()})
    for command, out in (([sys.executable], "here"), (on(processor), "there")):
        subprocess.run([*command, "-c", RUN, bundle, tmp_path / "in.npz", tmp_path / f"{out}.npz"], check=True, capture_output=True, timeout=900)
    with np.load(tmp_path / "here.npz") as here, np.load(tmp_path / "there.npz") as there:
        for name, limit in LIMIT.items():
            probabilities = [f"{name}/{m}_prob" for m in ("audio", "visual", "video")]
            apart = max(np.abs(here[k] - there[k]).max() for k in probabilities)
            flips = [int((here[f"{name}/{m}_event"] != there[f"{name}/{m}_event"]).sum()) for m in ("audio", "visual")]
            print(f"{processor} ({PROCESSORS[processor]}), {name}: within {apart:.1e}, {sum(flips)} of {2 * here[f'{name}/audio_event'].size} events flip")
            assert apart < limit and (sum(flips) == 0 or name == "parser_int8")


@pytest.mark.parametrize("processor", PROCESSORS)
def test_parse_py_runs_whole_on_another_processor(processor, bundle, tmp_path):
    found = []
    for command, name in (([sys.executable], "here"), (on(processor), "there")):
        done = subprocess.run([*command, ROOT / "parse.py", bundle / "sample.npz", "--bundle", bundle, "--json", tmp_path / name], capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / name).read_text()))
    here, there = found
    assert [e | dict(probability=0) for e in here["events"]] == [e | dict(probability=0) for e in there["events"]] != []
    np.testing.assert_allclose(here["audio_prob"], there["audio_prob"], atol=1e-5)


def test_an_old_onnxruntime_reads_parser_teacher_and_labels(bundle, tmp_path):
    """UWAV_OLD_ONNXRUNTIME is the Python of an environment with an old onnxruntime, and numpy below 2."""
    old = os.environ.get("UWAV_OLD_ONNXRUNTIME")
    if not old:
        unavailable("UWAV_OLD_ONNXRUNTIME, a Python with onnxruntime 1.15")
    code = """
import sys, numpy as np, onnxruntime
for name in ("parser", "parser_fp16", "parser_int8", "teacher", "labels"):
    session, rng, feeds = onnxruntime.InferenceSession(f"{sys.argv[1]}/onnx/{name}.onnx", providers=["CPUExecutionProvider"]), np.random.default_rng(0), {}
    for x in session.get_inputs():
        shape = [dict(B=2, T=7, C=4).get(d, d) for d in x.shape]
        feeds[x.name] = np.ones(shape, bool) if "bool" in x.type else rng.standard_normal(shape).astype(np.float32)
    np.savez(f"{sys.argv[2]}_{name}.npz", *session.run(None, feeds))
"""
    for python, out in ((sys.executable, "new"), (old, "old")):
        subprocess.run([python, "-c", code, bundle, tmp_path / out], check=True, cwd=tmp_path, timeout=300)
    for name in ("parser", "parser_fp16", "parser_int8", "teacher", "labels"):
        with np.load(tmp_path / f"new_{name}.npz") as new, np.load(tmp_path / f"old_{name}.npz") as old_one:
            assert new.files == old_one.files and max(np.abs(new[k].astype(float) - old_one[k]).max() for k in new.files) < 1e-4, name
