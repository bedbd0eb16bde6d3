"""docs/tutorial.ipynb runs from top to bottom, answers included, and prints what is stored in it."""

import ast
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import notebook
from conftest import need

need("onnx", "onnxscript", "onnxruntime")

ROOT = Path(__file__).resolve().parents[2]
CELLS = notebook.read()["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


@pytest.fixture
def as_it_was():
    """The notebook changes the folder and the number of threads."""
    folder, threads = Path.cwd(), torch.get_num_threads()
    yield
    os.chdir(folder)
    torch.set_num_threads(threads)


def test_every_cell_and_every_answer_prints_what_is_stored(monkeypatch, as_it_was):
    monkeypatch.chdir(ROOT / "docs")  # as Jupyter opens it
    ran, pictures, wrong = 0, 0, []
    for cell, printed, figures, _ in notebook.run({"cells": CELLS}):
        ran, pictures = ran + 1, pictures + len(figures)
        wrong += notebook.differences(notebook.stored(cell), printed, *notebook.elsewhere(cell))
        if cell["cell_type"] == "code":
            assert len(figures) == sum(x["output_type"] == "display_data" for x in cell["outputs"])
    assert not wrong, "\n".join(wrong)
    assert ran == 29 and pictures == 8


def test_comparison_sees_a_wrong_number_a_wrong_word_and_a_missing_line():
    assert not notebook.differences("A 76.6  loss 0.052\n", "A 77.1  loss 0.053\n")
    for got in ("A 70.6  loss 0.052\n", "A 76.6  loss 0.060\n", "V 76.6  loss 0.052\n", "A 76.6\n", ""):
        assert notebook.differences("A 76.6  loss 0.052\n", got), got
    assert notebook.differences("(4, 25)", "(4, 24)") and notebook.differences("True", "False")


@pytest.mark.parametrize("stored, elsewhere, right, wrong", [
    ("A 26.0  V 19.7", "A 28.0  V 19.7", ["A 28.0  V 19.7", "A 31.2  V 20.0", "A 22.1  V 19.0"], ["A 28.0  V 23.7", "A 33.9  V 19.7"]),
    ("12 missed", "14 missed", ["12 missed", "14 missed", "16 missed", "9 missed"], ["17 missed", "7 missed", "12 found"]),
    ("cat ##..", "cat ####", ["cat ##..", "cat ####"], ["cat #...", "dog ####"]),
    ("video 3: dog\nA 9.0", "video 5: cat\nA 9.1", ["video 5: cat\nA 9.0", "video 3: dog\nA 9.1"], ["video 5: dog\nA 9.0", "video 4: dog\nA 9.0"]),
    ("(4, 25)", "(4, 25)", ["(4, 25)"], ["(4, 24)"]),
])
def test_what_depends_on_the_processor_may_differ_by_a_spread_that_was_measured(stored, elsewhere, right, wrong):
    for got in right:
        assert not notebook.differences(stored, got, elsewhere), got
    for got in wrong:
        assert notebook.differences(stored, got, elsewhere), got


def test_in_a_table_the_row_that_differs_most_counts_for_its_column():
    stored, other = "1 soft A 26.0 V 18.0\n2 mixup A 27.0 V 19.0", "1 soft A 26.0 V 18.0\n2 mixup A 29.0 V 19.0"
    assert not notebook.differences(stored, "1 soft A 29.5 V 18.0\n2 mixup A 27.0 V 19.0", other)
    for got in ("1 soft A 26.0 V 20.5\n2 mixup A 27.0 V 19.0", "1 soft A 32.0 V 18.0\n2 mixup A 27.0 V 19.0", "3 soft A 26.0 V 18.0\n2 mixup A 27.0 V 19.0"):
        assert notebook.differences(stored, got, other), got


def test_of_several_kinds_of_processors_the_one_that_differs_most_counts():
    assert notebook.differences("A 26.0", "A 30.5", "A 26.2")
    assert not notebook.differences("A 26.0", "A 30.5", "A 26.2", "A 28.0", "A 25.9")
    assert not notebook.differences("3 cats", "3 dogs", "3 cats", "3 dogs") and notebook.differences("3 cats", "3 dogs", "3 cats", "3 birds")


def test_both_kinds_of_processors_are_stored_where_they_differ():
    trained = [cell for cell in CELLS if notebook.elsewhere(cell)]
    assert trained, "python tests/helpers/notebook.py --store"
    assert all(text != notebook.stored(cell) and text.count("\n") == notebook.stored(cell).count("\n")
               for cell in trained for text in notebook.elsewhere(cell))


def test_it_is_stored_whole_and_small_and_asks_in_every_section():
    assert notebook.TUTORIAL.stat().st_size < 1_000_000
    numbers = [cell["execution_count"] for cell in CELLS if cell["cell_type"] == "code"]
    assert numbers == list(range(1, len(numbers) + 1))
    text = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    sections = re.split(r"^## (?=\d)", text, flags=re.MULTILINE)[1:]
    assert len(sections) == 11
    for section in sections:
        questions = section.count("> **Change this.**")
        assert questions == section.count("<details><summary>Answer</summary>") == len(notebook.ANSWER.findall(section)) >= 1, section[:40]


def test_it_defines_nothing_that_the_project_defines():
    def defined(text: str) -> set[str]:
        return {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.ClassDef)}

    modules = [path for path in (*ROOT.glob("*.py"), *ROOT.glob("[!.]*/*.py")) if path.parent.name != "tests"]
    ours = set.union(*(defined(path.read_text(encoding="utf-8")) for path in modules))
    assert not ours & set.union(*map(defined, CODE))


def test_first_cell_clones_the_project_where_it_is_not_or_says_what_it_needs(tmp_path, monkeypatch, as_it_was):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UWAV_REPOSITORY", raising=False)
    with pytest.raises(RuntimeError, match="set REPOSITORY to where it can be cloned from"):
        exec(CODE[0], {})
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    subprocess.run(["git", "clone", "--quiet", "--bare", ROOT, tmp_path / "away.git"], check=True)
    monkeypatch.setenv("UWAV_REPOSITORY", str(tmp_path / "away.git"))
    monkeypatch.setattr("sys.path", [])
    exec(CODE[0], {})
    assert Path.cwd() == tmp_path / "uwav" and Path("uwav.py").exists()


def test_what_another_processor_prints_stands_where_the_reader_sees_it():
    for cell in CELLS:
        other, shown = "".join(cell["metadata"].get("without_avx512", ())), "".join(cell["source"]) if cell["cell_type"] == "markdown" else "".join(
            "".join(x["text"]) for x in cell["outputs"] if x.get("name") == "stderr")
        assert (notebook.SHOWN in shown) == (other != "")
        if other:
            lines = [b for a, b in zip(notebook.stored(cell).splitlines(), other.splitlines()) if a != b]
            assert all(line in shown for line in lines)
            again = json.loads(json.dumps(cell))
            notebook.show_elsewhere(again)
            assert again == cell, "shown twice, or made otherwise"
    (before,) = ("".join(cell["source"]) for cell in CELLS if "".join(cell["source"]).startswith("## 10."))
    assert "Do not read the order of the first four rows" in before, "the caveat stands above the numbers"
