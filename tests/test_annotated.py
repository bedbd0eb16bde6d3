"""The annotated page is the code: made again it is the same, every definition has a note, and every link leads somewhere."""

import ast
import importlib.util
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT))

import annotate
import book
import picture
from conftest import unavailable

PAGE = (DOCS / "annotated.html").read_text(encoding="utf-8")
BOOK = {name: (DOCS / f"{name}.html").read_text(encoding="utf-8") for name in book.PAGES}
SOURCE = (ROOT / "uwav.py").read_text(encoding="utf-8")
LINES = SOURCE.splitlines()


def piece(name: str) -> str:
    """The row of the page with one definition: its note and its code."""
    return PAGE.split(f'<div class="row" id="{name}">')[1].split('<div class="row"')[0]


def test_page_and_picture_are_those_of_the_code():
    say = "the code and docs/annotated.html have parted: run `python tests/helpers/annotate.py` and commit what it writes"
    assert annotate.build() == PAGE, say
    assert picture.picture() == (DOCS / "pictures/method.svg").read_text(encoding="utf-8"), say


def test_the_pages_of_the_book_are_those_of_their_sources():
    if not importlib.util.find_spec("markdown_it"):
        unavailable("markdown-it-py, with which the pages are made: pip install -e '.[thorough]'")
    for name in book.PAGES.keys() - {"annotated"}:
        assert book.page(name, PAGE) == BOOK[name], f"docs/{name}.md and its page have parted: run `python tests/helpers/annotate.py` and commit what it writes"


def test_the_page_shows_every_line_of_the_code_once():
    shown = dict(re.findall(r'<span id="L(\d+)"><a class="n" href="#L\d+">\d+</a>(.*)', PAGE))
    text = {int(n): "".join(ElementTree.fromstring(f"<p>{line}</p>").itertext()) for n, line in shown.items()}
    missing = {n for n, line in enumerate(LINES, 1) if line.strip() and n not in text}
    assert all(annotate.BANNER.match(LINES[n - 1]) for n in missing)
    assert all(text[n] == LINES[n - 1] for n in text) and len(re.findall(r'id="L\d+"', PAGE)) == len(shown) > 600


def test_every_definition_has_a_note_and_every_note_a_definition():
    defined = set()
    for node in ast.parse(SOURCE).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
            defined |= {f"{node.name}.{x.name}" for x in node.body if isinstance(x, ast.FunctionDef) and x.name != "__init__"
                        } if isinstance(node, ast.ClassDef) else set()
    notes = annotate.notes_of((DOCS / "annotated/notes.html").read_text(encoding="utf-8"))
    assert defined - {name for name, note in notes.items() if len(note) > 20} == set(), "write their notes in docs/annotated/notes.html"
    assert notes.keys() - {"top"} == annotate.pieces(SOURCE).keys()


def test_every_equation_leads_to_its_code_and_back():
    for n in range(1, 10):
        (equation,) = re.findall(rf'<div class="eq" id="eq{n}">(<math.*?)</div>', PAGE)
        line = int(re.search(r'href="#L(\d+)"', equation)[1])
        assert LINES[line - 1].strip() and "</math>" in equation and f">({n}) " in equation
        assert f'<a href="#eq{n}">{n}</a>' in PAGE, "the index leads to it"
        codes = re.findall(r"<pre>.*?</pre>", PAGE, re.S)
        spans = [range(int(a), int(b or a) + 1) for code in codes for a, b in re.findall(r'<a href="#eq\d">Eq\. (\d)(?:-(\d))?</a>', code)]
        assert any(n in span for span in spans), f"no comment or docstring names Eq. {n}"


def test_every_departure_leads_to_its_lines_and_every_tag_to_its_departure():
    for n in range(1, 14):
        departure = re.search(rf'<p class="departure" id="departure{n}">(.*?)</p>', PAGE)[1]
        assert re.search(r'href="#L\d+"', departure) and f"Departure {n}</b>" in departure
    for n, line in enumerate(LINES, 1):
        if "released code:" in line.replace("`", "").replace("; released code", "released code:") and not line.startswith("`released code:`"):
            assert re.search(rf'id="L{n}">.*href="#departure\d+">released code</a>', PAGE), f"line {n} departs, no note says why"


@pytest.mark.parametrize("name", book.PAGES)
def test_a_page_is_well_formed_all_its_links_resolve_and_it_loads_nothing_but_pictures_and_its_style(name):
    tree = ElementTree.fromstring(BOOK[name])
    ids = [x.get("id") for x in tree.iter() if x.get("id")]
    assert len(ids) == len(set(ids))
    for link in [x.get("href") for x in tree.iter("a")] + [x.get("src") for x in tree.iter("img")]:
        if not link.startswith("https://"):
            assert leads_somewhere(DOCS / f"{name}.html", link), link
    assert not re.search(r"<script|<iframe|@import|url\(|srcset=", BOOK[name]) and (name != "annotated" or "<img" not in BOOK[name])
    assert [x.get("href") for x in tree.iter("link")] == ["data:,", *["annotated/style.css"] * (name != "annotated")]
    assert (DOCS / "annotated/style.css").is_file()


@pytest.mark.parametrize("path", [*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tests/golden/README.md"], ids=lambda x: x.name)
def test_every_link_of_a_source_leads_somewhere(path):
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("https://"):
            assert leads_somewhere(path, link), link


def leads_somewhere(page: Path, link: str) -> bool:
    """Whether a relative link of a page names a file that is there, and in it an anchor that is."""
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    if not anchor or not target.exists():
        return target.exists()
    text = target.read_text(encoding="utf-8")
    return f'id="{anchor}"' in text if target.suffix == ".html" else anchor in anchors(text)


def anchors(text: str) -> set[str]:
    """The headings of a Markdown file, as links name them."""
    seen = set()
    for title in re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M):
        book.anchor(title, seen)
    return seen


def test_every_page_of_the_book_leads_to_all_others_and_to_the_next_and_equations_are_set():
    for (name, text), following in zip(BOOK.items(), [*list(BOOK)[1:], None]):
        assert {f'href="{other}.html"' for other in BOOK if other != name} <= set(re.findall(r'href="\w+\.html"', text))
        assert f'rel="next" href="{following}.html"' in text if following else 'rel="next"' not in text
        assert not re.search(rf'href="({"|".join(BOOK)})\.md[#]', text), "to the page, not to its source"
    assert all(f">({n}) " in BOOK["method"] for n in (1, 2, 3, 4, 6, 7, 8, 9)) and BOOK["questions"].count("<math") == 2


def page_of(source: str, notes: str | None = None) -> str:
    notes = notes or (DOCS / "annotated/notes.html").read_text(encoding="utf-8")
    numbers = annotate.read_json(annotate.NUMBERS)
    return annotate.Page(source, notes, numbers, (DOCS / "method.md").read_text(encoding="utf-8")).html("$rows")


def test_a_function_without_a_note_is_shown_without_one():
    assert '<div class="row" id="fresh">' in page_of(SOURCE.replace("def mix(", "def fresh():\n    pass\n\n\ndef mix("))


@pytest.mark.parametrize("wrong, said", [("[[line: no such code]]", "0 lines of uwav.py hold `no such code`"), ("[[nothing]]", "no 'nothing'")])
def test_a_note_that_names_what_is_not_there_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        page_of(SOURCE, f"== mix\n{wrong}\n")
