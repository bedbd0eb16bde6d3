"""The house stays small, and its parts import one way: what a person reads or runs is at the root."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"common": 0, "uwav": 1, "field": 2, "data": 2, "video": 3, "train": 3, "reporting": 4, "web": 4}  # the commands at the root: 5
TEXTS = {path.relative_to(ROOT).with_suffix(""): path.read_text(encoding="utf-8")
         for path in (*ROOT.glob("*.py"), *ROOT.glob("[!.]*/*.py")) if path.parent.name != "tests"}
MODULES = {".".join(path.parts).removesuffix(".__init__"): text for path, text in TEXTS.items()}


def imports(name: str, inside: bool = True) -> set[str]:
    """The modules of this project that one of them imports, also `inside` its functions."""
    tree, found = ast.parse(MODULES[name]), set()
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & MODULES.keys()


def test_the_method_loads_nothing_else_of_the_project():
    code = "import sys, uwav; print(*(name for name, module in sys.modules.items() if (getattr(module, '__file__', 0) or '').startswith(sys.argv[1])))"
    loaded = subprocess.run([sys.executable, "-c", code, f"{ROOT}/"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {name.split(".")[0] for name in loaded} & {name.split(".")[0] for name in MODULES} == {"uwav"}


def test_everything_imports_downwards_and_nothing_in_a_circle():
    folder = {name: name.split(".")[0] if name.split(".")[0] in FLOORS else "" for name in MODULES}  # "": the commands at the root
    assert all("." not in name for name in MODULES if not folder[name]), "a new folder needs a floor"
    for name in MODULES:
        for other in imports(name):
            assert folder[other] == folder[name] or FLOORS[folder[other]] < FLOORS.get(folder[name], 5), f"{name} imports {other}"
    TopologicalSorter({name: imports(name) for name in MODULES}).prepare()  # CycleError names the circle
    assert imports("parse", inside=False) == set(), "the deployed parser stands alone"


def test_a_constant_has_one_meaning_in_the_whole_house():
    """But for field/, whose systems stand beside each other, each with its own."""
    found = {}
    for name, text in MODULES.items():
        for node in ast.parse(text).body if not name.startswith("field") else ():
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            pairs = zip(target.elts, node.value.elts) if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple) else [(target, getattr(node, "value", None))]
            for one, value in pairs:
                if isinstance(one, ast.Name) and one.id.isupper() and len(one.id) > 1:  # T and C are axes
                    found.setdefault(one.id, {}).setdefault(ast.unparse(value), []).append(name)
    assert len(found) > 100 and not {constant: list(values.values()) for constant, values in found.items() if len(values) > 1}


def test_the_house_is_small():
    lines = {name: len(text.splitlines()) for name, text in MODULES.items()}
    assert len(list(ROOT.glob("*.py"))) <= 6 and lines["uwav"] <= 780
    field = sum(count for name, count in lines.items() if name.startswith("field"))
    assert field <= 1_150 and sum(lines.values()) - field <= 8_980  # to become 7,500 again
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_versions_of_the_paper_and_the_tags_of_its_departures_are_where_the_reader_is_sent():
    method = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    assert method.count("https://arxiv.org/abs/2505.09615") == 1 and all(x in method for x in ("*short text*", "*full paper*", "*supplement*"))
    rows = [line for line in method.splitlines() if line.startswith(tuple(f"| {n} |" for n in range(1, 99)))]
    assert [int(line.split("|")[1]) for line in rows] == list(range(1, len(rows) + 1)) and "`G_L` with a prime" in rows[9]


def test_the_parser_names_the_packages_that_uv_run_brings_it():
    block = MODULES["parse"].split("# /// script\n")[1].split("# ///\n")[0].replace("# ", "")
    asked = ast.literal_eval(block.split("dependencies = ")[1])
    named = {re.split("[<>=]", text)[0] for text in asked}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")  # whose bounds are those that were tried
    assert all(f'"{text}"' in project for text in asked if not text.isalpha())
    assert not [text for text in asked if text.isalpha() and re.search(f'"{text}[<>=]', project)]
    found = {node.module for text in (MODULES["parse"], MODULES["video.decode"]) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    found |= {a.name for text in (MODULES["parse"], MODULES["video.decode"]) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for a in node.names}
    own = {"PIL": "pillow"}
    needed = {own.get(x, x) for x in {name.split(".")[0] for name in found} - sys.stdlib_module_names - {n.split(".")[0] for n in MODULES}}
    assert needed - {"pebble"} == named  # pebble is for thousands of videos, not for one
