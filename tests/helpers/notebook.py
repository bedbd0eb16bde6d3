"""The tutorial without Jupyter: run its cells and the answers folded in it, and store or compare what they print.

    python tests/helpers/notebook.py        # run docs/tutorial.ipynb and store its outputs

An answer is a markdown cell with a ```python block and below it what that prints, in a ```text block. It runs after the
cells above it, in a copy of their names, so that it changes nothing for the cells below.
"""

import base64
import contextlib
import io
import json
import os
import re
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


def differences(expected: str, got: str, relative: float) -> list[str]:
    """Lines that differ in their words, or in a number by more than `relative` and two of its last digit. Whole numbers
    below 100 must be equal, unless they are percentages."""
    lines = [text.rstrip().splitlines() for text in (expected, got)]
    if len(lines[0]) != len(lines[1]):
        return [f"{len(lines[0])} lines are stored, {len(lines[1])} were printed"]
    return [f"stored: {a}\nprinted: {b}" for a, b in zip(*lines) if not alike(a, b, relative)]


def alike(a: str, b: str, relative: float) -> bool:
    if NUMBER.sub("", a).split() != NUMBER.sub("", b).split():
        return False
    return all(x == y or abs(value(x) - value(y)) <= allowed(x, relative) for x, y in zip(NUMBER.findall(a), NUMBER.findall(b)))


def value(number: str) -> float:
    return float(number.removesuffix(" %"))


def allowed(number: str, relative: float) -> float:
    decimals, percent = len(number.removesuffix(" %").partition(".")[2]), number.endswith(" %")
    if not decimals and not percent and abs(value(number)) < 100:
        return 0.0
    return relative * abs(value(number)) + 2.000001 * 10**-decimals * (decimals > 0 or percent)


def store() -> None:
    """Run everything, and write what came out into the notebook."""
    notebook, count, seconds = read(), 0, {"code": 0.0, "markdown": 0.0}
    for cell, printed, figures, took in run(notebook):
        seconds[cell["cell_type"]] += took
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
        print(f"--- {took:.1f} s\n{printed}", end="", flush=True)
    TUTORIAL.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"cells {seconds['code']:.0f} s, answers {seconds['markdown']:.0f} s, {TUTORIAL.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    os.chdir(ROOT / "docs")
    store()
