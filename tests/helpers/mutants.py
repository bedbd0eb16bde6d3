"""Would the method's tests notice? Small faults are put into a copy of uwav.py, one at a time; the quick tests run on each.

    python tests/helpers/mutants.py --seed 1 --faults 100 [--first 40]     # minutes on a CPU; survivors are printed

A fault is a number that is another one, a comparison or an arithmetic operator turned, True for False, max for min, one
reduction or axis for another. Exits with status 1 if any survives: it is a hole in the tests, or changes nothing."""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = "tests/test_golden.py", "tests/test_uwav.py", "tests/test_scores.py", "-k", "not another_gate"  # which wants a finished run
TURNED = {ast.Gt: ">=", ast.GtE: ">", ast.Lt: "<=", ast.Eq: "!=", ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.BitAnd: "|"}
NAMES = {"amax": "amin", "amin": "amax", "sum": "mean", "mean": "sum", "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum",
         "cummax": "cummin", "argmax": "argmin", "any": "all", "sigmoid": "tanh", "exp": "log1p", "relu": "sigmoid", "ones_like": "zeros_like"}


def faults(source: str) -> list[tuple[int, int, int, str]]:
    """Line, columns from and to, and what stands there instead."""
    found, lines = [], source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
            other = str(not node.value) if isinstance(node.value, bool) else f"{node.value * 1.5}" if isinstance(node.value, float) else f"{node.value + 1}"
            found.append((node.lineno, node.col_offset, node.end_col_offset, other))
        elif isinstance(node, ast.Attribute) and node.attr in NAMES and node.end_lineno == node.value.end_lineno:
            found.append((node.end_lineno, node.end_col_offset - len(node.attr), node.end_col_offset, NAMES[node.attr]))
        elif isinstance(node, (ast.BinOp, ast.Compare)):
            left, right, kind = (node.left, node.right, node.op) if isinstance(node, ast.BinOp) else (node.left, node.comparators[0], node.ops[0])
            between = lines[left.end_lineno - 1][left.end_col_offset : right.col_offset]
            if type(kind) in TURNED and left.end_lineno == right.lineno and between.strip(" ()") and not set("()") & set(between):
                found.append((left.end_lineno, left.end_col_offset, right.col_offset, f" {TURNED[type(kind)]} "))
    return found


def survives(copy: Path, changed: str) -> bool:
    (copy / "uwav.py").write_text(changed, encoding="utf-8")
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS]
    return subprocess.run(command, cwd=copy, capture_output=True).returncode == 0


parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--faults", type=int, default=100)
parser.add_argument("--first", type=int, default=0, help="of them, so that a long run can be cut into pieces")
options = parser.parse_args()
source = (ROOT / "uwav.py").read_text(encoding="utf-8")
os.environ.setdefault("UWAV_SHARED", str(ROOT.parent / "shared"))
chosen = random.Random(options.seed).sample(faults(source), options.faults)[options.first :]
survivors = 0
with tempfile.TemporaryDirectory(prefix="uwav-mutants-") as folder:
    copy = Path(folder) / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "runs", "node_modules", "web", "robustness", "thorough", "*.png"), symlinks=True)
    print(f"seed {options.seed}; unchanged: {'passes' if survives(copy, source) else 'FAILS'}", flush=True)
    for number, (line, start, end, other) in enumerate(chosen, options.first):
        lines = source.splitlines(keepends=True)
        was, lines[line - 1] = lines[line - 1], lines[line - 1][:start] + other + lines[line - 1][end:]
        alive = survives(copy, "".join(lines))
        survivors += alive
        print(f"{number} {'SURVIVES' if alive else 'found'} line {line}: {was.strip()}  ->  {lines[line - 1].strip()}", flush=True)
print(f"{survivors} of {len(chosen)} survive")
sys.exit(survivors > 0)
