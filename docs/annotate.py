"""docs/annotated.html: uwav.py with notes beside it, in one file that loads nothing.

    python docs/annotate.py                        # after a change of uwav.py, of the notes or of method.md
    python docs/annotate.py --numbers runs/demo    # first takes the live numbers from a run of the demo world

The prose is docs/annotated/notes.html: after a line `== NAME`, the note of that section, function, class, method or
constant. In it, [[line: CODE]] is a link to the line that holds CODE, [[departure N: CODE | CODE]] row N of the table
in method.md with links to its lines, [[row: NAME | NAME]] strips of numbers, and [[NAME]] a number; both are in
docs/annotated/numbers.json. `Eq. N` and the names of functions become links by themselves.
"""

from __future__ import annotations

import argparse
import ast
import keyword
import re
import string
import sys
from html import escape, unescape
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from common.command import one_sentence_errors
from common.files import atomic, read_json, write_json
from docs.picture import picture

TOKEN = re.compile(r'(?P<string>f?""".*?"""|f?"[^"\n]*")|(?P<comment>#[^\n]*)'
                   rf"|(?P<keyword>\b(?:{'|'.join(keyword.kwlist)})\b)|(?P<name>\b[A-Za-z_][\w.]*)", re.DOTALL)
NUMBERS = DOCS / "annotated/numbers.json"
SHAPE = re.compile(r"\((?:\d|[A-Z])[\w /]*,(?: \w[\w /]*,?)*\)")  # (B, T, C), (N,), (B, H, T, D/H)
BANNER = re.compile(r"# ---- (\d)  (.*?) -+$")


def pieces(source: str) -> dict[str, int]:
    """Name -> first line of every section, function, class, method and run of constants; __init__ goes with its class,
    a comment with what it stands above."""
    lines, starts = source.splitlines(), {"uwav.py": 1}
    starts |= {f"section{match[1]}": n for n, line in enumerate(lines, 1) if (match := BANNER.match(line))}
    for node in ast.parse(source).body:
        first = min([node.lineno, *(x.lineno for x in getattr(node, "decorator_list", ()))])
        while lines[first - 2].startswith("#") and not BANNER.match(lines[first - 2]):
            first -= 1
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            starts[node.name] = first
            methods = node.body if isinstance(node, ast.ClassDef) else ()
            starts |= {f"{node.name}.{x.name}": x.lineno for x in methods
                       if isinstance(x, ast.FunctionDef) and x.name != "__init__"}
        elif isinstance(node, (ast.Assign, ast.If)) and not lines[first - 2].strip():
            starts[ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else "__main__"] = first
    return dict(sorted(starts.items(), key=lambda item: item[1]))


class Page:
    def __init__(self, source: str, notes: str, numbers: dict, method: str):
        """The texts of uwav.py, notes.html and method.md; numbers: name -> text, or a list of numbers."""
        self.lines, self.starts, self.numbers = source.splitlines(), pieces(source), numbers
        self.notes = dict(x.split("\n", 1) for x in re.split(r"^== ", notes, flags=re.MULTILINE)[1:])
        self.table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in method.splitlines()]
        self.departed = {}  # line -> number of the departure

    def line(self, code: str) -> str:
        """A link to the line that holds this code."""
        found = [n for n, line in enumerate(self.lines, 1) if code in line]
        if len(found) != 1:
            raise ValueError(f"docs/annotated/notes.html: {len(found)} lines of uwav.py hold `{code}`, one should")
        return f'<a href="#L{found[0]}">line&#160;{found[0]}</a>'

    def fill(self, note: str) -> str:
        """A note with numbers, lines, departures and links in place."""
        note = re.sub(r"\[\[(?:(line|row|departure) ?(\d*): )?(.*?)\]\](?!\])", self.placeholder, note)
        note = re.sub(r"(?<!>)Eq\. (\d)", r'<a href="#eq\1">Eq.&#160;\1</a>', note)
        return re.sub(r"<code>([\w.]+)</code>", lambda match: f'<a href="#{match[1]}">{match[0]}</a>'
                      if match[1] in self.starts else match[0], note)

    def placeholder(self, match: re.Match) -> str:
        kind, number, argument = match[1], match[2], unescape(match[3])
        if kind == "line":
            return self.line(argument)
        if kind == "row":
            return f'<table class="strip">{"".join(map(self.strip, argument.split(" | ")))}</table>'
        if kind == "departure":
            return self.departure(number, argument.split(" | "))
        return f"<b>{escape(self.number(argument))}</b>"

    def number(self, name: str) -> str | list[float]:
        if name not in self.numbers:
            raise ValueError(f"docs/annotated/numbers.json: no {name!r}; python docs/annotate.py --numbers RUN")
        return self.numbers[name]

    def strip(self, name: str) -> str:
        """A row of numbers, the larger the darker."""
        values = self.number(name)
        low, high = min(0, *values), max(1, *values)
        cells = "".join(f'<td style="--v:{100 * (x - low) / (high - low):.0f}%">{x:g}</td>' for x in values)
        return f'<tr><th colspan="{len(values)}">{escape(name)}</th></tr><tr>{cells}</tr>'

    def departure(self, number: str, codes: list[str]) -> str:
        links = [self.line(code) for code in codes]
        self.departed |= {int(re.search(r"L(\d+)", link)[1]): number for link in links}
        (row,) = [row for row in self.table if row[0] == f"{number}" and len(row) == 5]
        subject, paper, here, way = (re.sub("`(.*?)`", r"<code>\1</code>", escape(x)) for x in row[1:])
        return (f'<p class="departure" id="departure{number}"><b>Departure {number}</b> ({", ".join(links)}): {subject}. '
                f"Paper: {paper}. Released code, and default here: {here}. The paper’s way: {way}.</p>")

    def code(self, first: int, last: int) -> str:
        """Lines first to last, numbered, coloured and linked."""
        text, parts, end = "\n".join(self.lines[first - 1 : last]).rstrip(), [], 0
        for match in TOKEN.finditer(text):
            parts += [escape(text[end : match.start()]), self.token(match.lastgroup, escape(match[0], quote=False))]
            end = match.end()
        coloured = "".join([*parts, escape(text[end:])]).split("\n")
        for n, line in enumerate(coloured, first):
            if n in self.departed:
                link = f'<a href="#departure{self.departed[n]}">released code</a>'
                coloured[n - first] = line = line.replace("released code", link)
            coloured[n - first] = f'<span id="L{n}"><a class="n" href="#L{n}">{n}</a>{line}\n</span>'
        return f"<pre>{''.join(coloured)}</pre>"

    def token(self, kind: str, text: str) -> str:
        if kind == "name":
            return f'<a href="#{text}">{text}</a>' if text in self.starts else text
        if kind != "keyword":
            text = SHAPE.sub(r"<i>\g<0></i>", re.sub(r"Eq\. (\d)(-\d)?", r'<a href="#eq\1">\g<0></a>', text))
        return "\n".join(f'<span class="{kind}">{part}</span>' for part in text.split("\n"))

    def html(self, template: str) -> str:
        notes = {name: self.fill(note) for name, note in self.notes.items()}  # first: these find the departed lines
        ends, rows, contents = [*list(self.starts.values())[1:], len(self.lines) + 1], [], []
        for (name, first), end in zip(self.starts.items(), ends):
            if match := BANNER.match(self.lines[first - 1]):
                rows.append(f'<h2 id="{name}">{match[1]}&#160; {escape(match[2])}</h2><div class="lead">{notes.get(name, "")}</div>')
                contents.append(f'<li><a href="#{name}">{escape(match[2])}</a></li>')
            else:
                rows.append(f'<div class="row" id="{name}"><div class="note"><h3>{name}</h3>{notes.get(name, "")}</div>'
                            f"{self.code(first, end - 1)}</div>")
        equations = re.findall(r'id="(eq\d)"', "".join(notes.values()))
        departures = re.findall(r'id="(departure\d+)"', "".join(notes.values()))
        return string.Template(template).substitute(
            contents="".join(contents), top=notes["top"], rows="\n".join(rows), picture=picture(),
            equations=" ".join(f'<a href="#{x}">{x[2:]}</a>' for x in equations),
            departures=" ".join(f'<a href="#{x}">{x[9:]}</a>' for x in sorted(departures, key=lambda x: int(x[9:]))))


def build() -> str:
    """The page, from the files that are there."""
    texts = [(DOCS / name).read_text(encoding="utf-8") for name in ("../uwav.py", "annotated/notes.html", "method.md")]
    page = Page(texts[0], texts[1], read_json(NUMBERS), texts[2])
    return page.html((DOCS / "annotated/page.html").read_text(encoding="utf-8"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="docs/annotated.html: uwav.py with notes beside it, in one page.")
    parser.add_argument("--numbers", type=Path, metavar="RUN", help="first take the live numbers from this run")
    options = parser.parse_args(arguments)
    with one_sentence_errors("begins again"):
        if options.numbers:
            from docs.live import numbers_of  # needs PyTorch, the page does not

            write_json(NUMBERS, numbers_of(options.numbers))
        for path, text in ((DOCS / "pictures/method.svg", picture()), (DOCS / "annotated.html", build())):
            with atomic(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            print(f"{path}: written")


if __name__ == "__main__":
    main()
