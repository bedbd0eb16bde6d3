"""docs/annotated.html: uwav.py with notes beside it, in one file that loads nothing; and the pages read with it: book.py.

    python tests/helpers/annotate.py                        # after a change of uwav.py, of the notes or of a page of the book
    python tests/helpers/annotate.py --numbers runs/demo    # first takes the live numbers from a run of the demo world

The prose is annotated/notes.html: `== NAME`, then the note of that piece of code. In it, [[line: CODE]] is a link to
the line that holds CODE, [[departure N: CODE | CODE]] row N of the table in method.md, [[row: NAME | NAME]] strips of
numbers, [[NAME]] one number. `Eq. N` and the names of functions become links by themselves."""

import argparse
import ast
import keyword
import re
import string
import sys
from html import escape, unescape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT))

from common.command import one_sentence_errors
from common.files import atomic, read_json, write_json
from book import PAGES, around, here, page
from picture import picture

NUMBERS = DOCS / "annotated/numbers.json"
TOKEN = re.compile(r'(?P<string>f?""".*?"""|f?"[^"\n]*")|(?P<comment>#[^\n]*)'
                   rf"|(?P<keyword>\b(?:{'|'.join(keyword.kwlist)})\b)|(?P<name>\b[A-Za-z_][\w.]*)", re.DOTALL)
SHAPE = re.compile(r"\((?:\d|[A-Z])[\w /]*,(?: \w[\w /]*,?)*\)")  # (B, T, C), (N,), (B, H, T, D/H)
BANNER = re.compile(r"# ---- (\d)  (.*?) -+$")


def pieces(source: str) -> dict[str, int]:
    """Name -> first line of every section, function, class, method and run of constants; __init__ goes with its class,
    a comment with what it stands above."""
    lines = source.splitlines()
    starts = {f"section{match[1]}": n for n, line in enumerate(lines, 1) if (match := BANNER.match(line))}
    for node in ast.parse(source).body:
        first = min(x.lineno for x in (node, *getattr(node, "decorator_list", ())))
        while lines[first - 2].startswith("#") and not BANNER.match(lines[first - 2]):
            first -= 1
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            starts[node.name] = first
            starts |= {f"{node.name}.{x.name}": x.lineno for x in node.body
                       if isinstance(node, ast.ClassDef) and isinstance(x, ast.FunctionDef) and x.name != "__init__"}
        elif isinstance(node, (ast.Assign, ast.If)) and not lines[first - 2].strip():
            starts[ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else "__main__"] = first
    return {"uwav.py": 1} | dict(sorted(starts.items(), key=lambda item: item[1]))


class Page:
    def __init__(self, source: str, notes: str, numbers: dict, method: str):
        """The texts of uwav.py, notes.html and method.md; numbers: name -> text, or a list of numbers."""
        self.lines, self.starts, self.numbers, self.departed = source.splitlines(), pieces(source), numbers, {}
        self.table = {row[0]: row[1:] for row in (line.strip("| ").split(" | ") for line in method.splitlines())}
        self.notes = {name: self.fill(note) for name, note in notes_of(notes).items()}

    def line(self, code: str) -> int:
        found = [n for n, line in enumerate(self.lines, 1) if code in line]
        if len(found) != 1:
            raise ValueError(f"docs/annotated/notes.html: {len(found)} lines of uwav.py hold `{code}`, one should")
        return found[0]

    def fill(self, note: str) -> str:
        """A note with numbers, lines, departures and links in place."""
        note = re.sub(r"\[\[(?:(line|row|departure) ?(\d*): )?(.*?)\]\](?!\])", self.placeholder, note)
        note = re.sub(r"(?<!>)Eq\. (\d)", r'<a href="#eq\1">Eq.&#160;\1</a>', note)
        return re.sub(r"<code>([\w.]+)</code>", lambda match: f'<a href="#{match[1]}">{match[0]}</a>'
                      if match[1] in self.starts else match[0], note)

    def placeholder(self, match: re.Match) -> str:
        kind, number, names = match[1], match[2], unescape(match[3]).split(" | ")
        if kind in ("line", "departure"):
            lines = [self.line(code) for code in names]
            links = ", ".join(f'<a href="#L{n}">line&#160;{n}</a>' for n in lines)
            if kind == "line":
                return links
            self.departed |= dict.fromkeys(lines, number)
            what, paper, here, way = (re.sub("`(.*?)`", r"<code>\1</code>", escape(x)) for x in self.table[number])
            return (f'<p class="departure" id="departure{number}"><b>Departure {number}</b> ({links}): {what}. Paper: '
                    f"{paper}. Released code, and default here: {here}. The paper’s way: {way}.</p>")
        if missing := [name for name in names if name not in self.numbers]:
            raise ValueError(f"docs/annotated/numbers.json: no {missing[0]!r}; python tests/helpers/annotate.py --numbers RUN")
        strips = "".join(map(self.strip, names)) if kind else ""
        return f'<table class="strip">{strips}</table>' if kind else f"<b>{self.numbers[names[0]]}</b>"

    def strip(self, name: str) -> str:
        """A row of numbers, the larger the darker."""
        values = self.numbers[name]
        low, high = min(0, *values), max(1, *values)
        cells = "".join(f'<td style="--v:{100 * (x - low) / (high - low):.0f}%">{x:g}</td>' for x in values)
        return f'<tr><th colspan="{len(values)}">{escape(name)}</th></tr><tr>{cells}</tr>'

    def token(self, match: re.Match) -> str:
        kind, text = match.lastgroup, match[0]
        if kind == "name":
            return f'<a href="#{text}">{text}</a>' if text in self.starts else text
        text = SHAPE.sub(r"<i>\g<0></i>", re.sub(r"Eq\. (\d)(-\d)?", r'<a href="#eq\1">\g<0></a>', text))
        return "\n".join(f'<span class="{kind}">{part}</span>' for part in text.split("\n"))

    def code(self, first: int, last: int) -> str:
        """Lines first to last, numbered, coloured and linked."""
        text, result = "\n".join(self.lines[first - 1 : last]).rstrip(), []
        for n, line in enumerate(TOKEN.sub(self.token, escape(text, quote=False)).split("\n"), first):
            if n in self.departed:
                line = line.replace("released code", f'<a href="#departure{self.departed[n]}">released code</a>')
            result.append(f'<span id="L{n}"><a class="n" href="#L{n}">{n}</a>{line}\n</span>')
        return f"<pre>{''.join(result)}</pre>"

    def html(self, template: str) -> str:
        rows, contents = [], ""
        for (name, first), end in zip(self.starts.items(), [*list(self.starts.values())[1:], len(self.lines) + 1]):
            note = self.notes.get(name, "")
            if match := BANNER.match(self.lines[first - 1]):
                rows.append(f'<h2 id="{name}">{match[1]}&#160; {match[2]}</h2><div class="lead">{note}</div>')
                contents += f'<li><a href="#{name}">{match[2]}</a></li>'
            else:
                rows.append(f'<div class="row" id="{name}"><div class="note"><h3>{name}</h3>{note}</div>'
                            f"{self.code(first, end - 1)}</div>")
        return here(string.Template(template).substitute(
            around("annotated"), contents=contents, top=self.notes.get("top", ""), picture=picture(), rows="\n".join(rows)))


def notes_of(text: str) -> dict[str, str]:
    return dict(x.split("\n", 1) for x in re.split(r"^== ", text, flags=re.MULTILINE)[1:])


def build() -> str:
    source, notes, method, template = ((DOCS / name).read_text(encoding="utf-8") for name in (
        "../uwav.py", "annotated/notes.html", "method.md", "annotated/page.html"))
    return Page(source, notes, read_json(NUMBERS), method).html(template)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="docs/annotated.html: uwav.py with notes beside it, in one page.")
    parser.add_argument("--numbers", type=Path, metavar="RUN", help="first take the live numbers from this run")
    with one_sentence_errors("begins again"):
        if run := parser.parse_args().numbers:
            from live import numbers_of  # needs PyTorch, the page does not

            write_json(NUMBERS, numbers_of(run))
        annotated = build()
        pages = {name: page(name, annotated) for name in PAGES if name != "annotated"} | {"annotated": annotated}
        texts = {DOCS / "pictures/method.svg": picture()} | {DOCS / f"{name}.html": text for name, text in pages.items()}
        for path, text in texts.items():
            with atomic(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            print(f"{path}: written")
