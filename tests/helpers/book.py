"""The pages of docs/ that are read in turn, as HTML that loads nothing but pictures and one style sheet; the .md
files are their source.

Made by annotate.py. A paragraph that is nothing but a link to an equation of the annotated page becomes that equation."""

import re
import string
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = dict(method="The method", annotated="The code, annotated", questions="Questions", scoring="How LLP is scored", exercises="Exercises")
ALONE = re.compile(r'<p><a href="annotated\.html#(\w+)">[^<]*</a></p>')


def around(name: str) -> dict[str, str]:
    """What stands before and after the text of a page: all pages; back and next."""
    links = {x: f'<a href="{x}.html">{title}</a>' for x, title in PAGES.items()} | {name: f"<b>{PAGES[name]}</b>"}
    names = list(PAGES)
    n = names.index(name)
    back = f'<a rel="prev" href="{names[n - 1]}.html">← {PAGES[names[n - 1]]}</a>' if n else "<span></span>"
    following = f'<a rel="next" href="{names[n + 1]}.html">{PAGES[names[n + 1]]} →</a>' if n + 1 < len(names) else ""
    return dict(before=f'<nav class="book"><a href="../README.md">UWAV</a>{"".join(links.values())}</nav>',
                after=f'<nav class="turn">{back}{following}</nav>', style=(DOCS / "annotated/style.css").read_text(encoding="utf-8"))


def here(html: str) -> str:
    """Links to a source of these pages lead to the page."""
    return re.sub(rf'href="({"|".join(PAGES)})\.md(["#])', r'href="\1.html\2', html)


def page(name: str, equations: str) -> str:
    """docs/NAME.md as a page; equations: the annotated page, where they are set."""
    from markdown_it import MarkdownIt  # only who makes the pages needs it

    markdown = MarkdownIt("commonmark", dict(html=True, xhtmlOut=True)).enable("table")
    tokens, seen = markdown.parse((DOCS / f"{name}.md").read_text(encoding="utf-8")), set()
    for token, inside in zip(tokens, tokens[1:]):
        if token.type == "heading_open":
            token.attrSet("id", anchor(inside.content, seen))
    html = markdown.renderer.render(tokens, markdown.options, {})
    html = html.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    html = ALONE.sub(lambda match: equation(match[1], equations), here(html))
    template = string.Template((DOCS / "annotated/text.html").read_text(encoding="utf-8"))
    return template.substitute(around(name), name=name, title=escape(PAGES[name]), text=html.strip())


def anchor(title: str, seen: set[str]) -> str:
    """The name by which links reach a heading: that of the sites that show Markdown."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
    name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
    if name in seen:
        raise ValueError(f"two headings of one name: {title}")
    seen.add(name)
    return name


def equation(name: str, equations: str) -> str:
    (found,) = re.findall(rf'<div class="eq" id="{name}">.*?</div>', equations)
    return found.replace(f' id="{name}"', "").replace('href="#', 'href="annotated.html#')
