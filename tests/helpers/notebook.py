"""The tutorial without Jupyter: run its cells and the answers folded in it, and store or compare what they print.

    python tests/helpers/notebook.py            # run docs/tutorial.ipynb and print what differs from what is stored
    python tests/helpers/notebook.py --store    # run it, four times more as on other kinds of processors, and store all

A training magnifies how a processor rounds. What a cell prints on processors without AVX-512, where that is something
else, is kept in its metadata as `without_avx512`, and the lines that differ are shown below the others. What it prints
where one library alone does without AVX-512 is kept as `rounded_otherwise`. All tell how much of a number depends on the
processor.

An answer is a markdown cell with a ```python block and below it what that prints, in a ```text block. It runs after the
cells above it, in a copy of their names, so that it changes nothing for the cells below.
"""

import base64
import collections
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs/tutorial.ipynb"
ANSWER = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)
RELATIVE = 0.05  # of a printed number may be another on a third kind of processor
WITHOUT_AVX512 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}  # imitates it
KINDS = (WITHOUT_AVX512, *({name: value} for name, value in WITHOUT_AVX512.items()))
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?: %)?")


def read() -> dict:
    return json.loads(TUTORIAL.read_text(encoding="utf-8"))


def run(notebook: dict) -> Iterator[tuple[dict, str, list[bytes], float]]:
    """Cell, what it or its answer prints, its figures as PNG, seconds; of code cells and answers in their order."""
    names = {"__name__": "tutorial"}
    for n, cell in enumerate(notebook["cells"]):
        source, started = "".join(cell["source"]), time.monotonic()
        if cell["cell_type"] == "code":
            printed = execute(source, names, f"<cell {n}>")
            figures = [png(number) for number in plt.get_fignums()]
            plt.close("all")
            yield cell, printed, figures, time.monotonic() - started
        for code, _ in ANSWER.findall(source) if cell["cell_type"] == "markdown" else ():
            with torch.random.fork_rng():
                printed = execute(code, dict(names), f"<answer {n}>")
            plt.close("all")
            yield cell, printed, [], time.monotonic() - started


def execute(source: str, names: dict, title: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(source, title, "exec"), names)
    return printed.getvalue()


def png(number: int) -> bytes:
    file = io.BytesIO()
    plt.figure(number).savefig(file, format="png", bbox_inches="tight", metadata={"Software": None})
    return file.getvalue()


def stored(cell: dict) -> str:
    """What the cell, or its answer, is said to print."""
    if cell["cell_type"] == "markdown":
        return ANSWER.search("".join(cell["source"]))[2]
    return "".join("".join(x["text"]) for x in cell["outputs"] if x["output_type"] == "stream" and x["name"] == "stdout")


def differences(expected: str, got: str, *elsewhere: str) -> list[str]:
    """Lines that differ in their words, or in a number by more than 5 %, two of its last digit, and twice what other kinds
    of processors (`elsewhere`) make of it, or of its column: which row of a table rounding moves most is chance. Whole
    numbers below 100 must be equal where they are there, unless they are percentages. A line in which another kind prints
    other words may be either."""
    lines = [text.rstrip().splitlines() for text in (expected, got, *elsewhere)]
    if len(lines[0]) != len(lines[1]):
        return [f"{len(lines[0])} lines are stored, {len(lines[1])} were printed"]
    spread = collections.Counter()  # by how many numbers a line has, and which of them it is
    for a, _, *others in zip(*lines):
        for other in (other for other in others if words(other) == words(a)):
            pairs = list(zip(NUMBER.findall(a), NUMBER.findall(other)))
            for n, (x, z) in enumerate(pairs):
                spread[len(pairs), n] = max(spread[len(pairs), n], abs(value(x) - value(z)))
    return [f"stored: {a}\nprinted: {b}" for a, b, *others in zip(*lines) if not alike(a, b, others, spread)]


def alike(a: str, b: str, others: list[str], spread: dict[tuple[int, int], float]) -> bool:
    if words(b) != words(a):
        return any(words(b) == words(other) and alike(other, b, others, spread) for other in others)
    pairs = list(zip(NUMBER.findall(a), NUMBER.findall(b)))
    return all(x == y or abs(value(x) - value(y)) <= allowed(x) + 2 * spread[len(pairs), n] for n, (x, y) in enumerate(pairs))


def words(line: str) -> list[str]:
    return NUMBER.sub("", line).split()


def value(number: str) -> float:
    return float(number.removesuffix(" %"))


def allowed(number: str) -> float:
    decimals, percent = len(number.removesuffix(" %").partition(".")[2]), number.endswith(" %")
    if not decimals and not percent and abs(value(number)) < 100:
        return 0.0
    return RELATIVE * abs(value(number)) + 2.000001 * 10**-decimals * (decimals > 0 or percent)


def elsewhere(cell: dict) -> list[str]:
    """What it prints on a processor without AVX-512 and on other kinds, where that is something else."""
    texts = [cell["metadata"].get("without_avx512"), *cell["metadata"].get("rounded_otherwise", ())]
    return ["".join(text) for text in texts if text is not None]


SHOWN = "Another kind of processor, without AVX-512, prints:"
ANSWERED = re.compile(rf"\n\n{re.escape(SHOWN)}\n\n```text\n.*?```", re.DOTALL)


def show_elsewhere(cell: dict) -> None:
    """Let a cell or its answer show, below what it prints, the lines that the other kind of processor prints otherwise."""
    other = cell["metadata"].get("without_avx512", [])
    lines = [b for a, b in zip(stored(cell).splitlines(keepends=True), other) if a != b]
    if cell["cell_type"] == "code":
        cell["outputs"] = [x for x in cell["outputs"] if x.get("name") != "stderr"]
        if lines:
            place = next((n for n, x in enumerate(cell["outputs"]) if x["output_type"] != "stream"), len(cell["outputs"]))
            cell["outputs"].insert(place, dict(output_type="stream", name="stderr", text=[SHOWN + "\n", *lines]))
        return
    source = ANSWERED.sub("", "".join(cell["source"]))
    if lines and (answer := ANSWER.search(source)):
        source = f"{source[:answer.end()]}\n\n{SHOWN}\n\n```text\n{''.join(lines)}```{source[answer.end():]}"
    cell["source"] = source.splitlines(keepends=True)


def compare() -> None:
    """Run everything here, and print what differs from what is stored."""
    for cell, printed, _, took in run(read()):
        wrong = differences(stored(cell), printed, *elsewhere(cell))
        print(f"--- {took:.1f} s\n{printed}" + "".join(f"!!! {line}\n" for line in wrong), end="", flush=True)


def store() -> None:
    """Run everything here and as on other kinds of processors, and write what came out into the notebook."""
    if "avx512f" not in Path("/proc/cpuinfo").read_text():
        raise SystemExit("error: this processor has no AVX-512, so the kind that has it cannot be asked")
    command = [sys.executable, __file__, "--json"]
    asked = (subprocess.run(command, env=os.environ | kind, stdout=subprocess.PIPE, check=True).stdout for kind in KINDS)
    notebook, count = read(), 0
    for (cell, printed, figures, took), *others in zip(run(notebook), *map(json.loads, asked)):
        without, *rest = (text.splitlines(keepends=True) for text in others)
        cell["metadata"] = {"without_avx512": without} if "".join(without) != printed else {}
        if rest := [text for text in rest if "".join(text) != printed]:
            cell["metadata"]["rounded_otherwise"] = rest
        if cell["cell_type"] == "markdown":
            source = "".join(cell["source"])
            answer = ANSWER.search(source)
            cell["source"] = (source[:answer.start(2)] + printed + source[answer.end(2):]).splitlines(keepends=True)
        else:
            count += 1
            text = [dict(output_type="stream", name="stdout", text=printed.splitlines(keepends=True))] if printed else []
            pictures = [dict(output_type="display_data", metadata={}, data={
                "image/png": base64.b64encode(x).decode(), "text/plain": ["<Figure>"]}) for x in figures]
            cell |= dict(execution_count=count, outputs=text + pictures)
        show_elsewhere(cell)
        print(f"--- {took:.1f} s\n{printed}", end="", flush=True)
    TUTORIAL.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.chdir(ROOT / "docs")
    if "--json" in sys.argv:  # for `store`
        print(json.dumps([printed for _, printed, *_ in run(read())]))
    elif "--store" in sys.argv:
        store()
    else:
        compare()
