"""The HTML of a report: one file that loads nothing, reads on a phone, and follows light and dark.

A section is made of parts, functions of a run -> HTML. A part that raises FileNotFoundError leaves that sentence in its
place.
"""

from __future__ import annotations

import base64
import re
import string
from collections.abc import Callable
from html import escape
from pathlib import Path

from reporting import figures
from reporting.figures import DARK, GREY, INK, LINE, PAPER, Panel


def section(saved: object, *parts: Callable) -> str:
    """The parts, and in one line what is missing for those that cannot be; paths in it begin in the run."""
    written, missing = [], []
    for part in parts:
        try:
            written.append(part(saved))
        except FileNotFoundError as error:
            said = escape(str(error).replace(f"{saved.run}/", ""))
            missing.append(re.sub("`([^`]*)`", r"<code>\1</code>", said))
    if missing:
        written.append('<p class="missing"><strong>Missing in this run:</strong> '
                       f"{'; '.join(dict.fromkeys(missing))}.</p>")
    return "".join(written)


def html(notice: str, sections: dict[str, str]) -> str:
    """The whole page (page.html); `notice` (HTML) stands above the sections, title -> HTML."""
    links, texts = [], []
    for n, (title, text) in enumerate(sections.items(), 1):
        links.append(f'<li><a href="#section{n}">{escape(title)}</a></li>')
        texts.append(f'<section id="section{n}"><h2>{n}. {escape(title)}</h2>{text}</section>')
    variables = {"ink": INK, "panel": PAPER, "line": LINE, "faint": GREY}
    return string.Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).substitute(
        notice=notice, links="".join(links), sections="".join(texts),
        light="".join(f"--{name}:{colour};" for name, colour in variables.items()),
        dark="".join(f"--{name}:{DARK[colour]};" for name, colour in variables.items()))


def figure(run: Path, name: str, panels: list[Panel], title: str, caption: str) -> str:
    """The panels, which go to RUN/pictures as well; `title`, a sentence, and `caption` (HTML) say what to see."""
    return picture(name, figures.write(panels, run / "pictures", name), title, caption)


def picture(name: str, panels: list[str], title: str, caption: str) -> str:
    """The same of finished SVG."""
    images = []
    for k, svg in enumerate(panels, 1):
        source = base64.b64encode(svg.encode()).decode()
        alt = escape(f"{title.rstrip('.')}, panel {k} of {len(panels)}; described in the caption below")
        images.append(f'<img alt="{alt}" src="data:image/svg+xml;base64,{source}">')
    return (f'<figure id="{escape(name)}"><div class="panels">{"".join(images)}</div>'
            f"<figcaption><strong>{escape(title)}</strong> {caption}</figcaption></figure>")


def paragraph(text: str) -> str:
    return f"<p>{text}</p>"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Cells are HTML; the first of a row names it."""
    head = "<tr>" + "".join(f"<th>{x}</th>" for x in header) + "</tr>"
    body = "".join(f"<tr><th>{r[0]}</th>" + "".join(f"<td>{x}</td>" for x in r[1:]) + "</tr>" for r in rows)
    return f'<div class="scroll" tabindex="0"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def facts(title: str, rows: dict[str, object]) -> str:
    """A table of two columns whose lines may break."""
    body = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(x))}</td></tr>" for name, x in rows.items())
    return f'<table class="facts"><caption>{escape(title)}</caption>{body}</table>'
