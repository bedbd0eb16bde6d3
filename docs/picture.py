"""docs/pictures/method.svg: the method as boxes, drawn from the list of boxes and arrows in annotated/picture.txt.

`band ROWS | title | data` begins a stage; `box COLUMN ROW WIDTH KIND | name | shape` and `arrow COLUMN ROW COLUMN ROW`
are places in it. The picture is as wide as a phone can show, and follows light and dark."""

from __future__ import annotations

from html import escape
from pathlib import Path

WIDTH, STEP, ROW, HEAD = 520, 126, 64, 52  # of the picture, of a column, of a row, of a band's title
BOX_WIDTH, BOX_HEIGHT = 110, 40
STYLE = """
.method { --ink: #1c1c1e; --band: #f1eee9; --data: #ffffff; --label: #fbe3c0; --value: #dcebf7; --loss: #f7d9cc;
  --trained: #bfe5d6; --frozen: #e2e0dc; --line: #77757a; background: #fbfaf8; }
@media (prefers-color-scheme: dark) { .method { --ink: #ececee; --band: #242427; --data: #36363b; --label: #5a4420;
  --value: #24435c; --loss: #5e3526; --trained: #1d5443; --frozen: #47474c; --line: #a0a0a8; background: #161618; } }
.method text { font: 12px system-ui, sans-serif; fill: var(--ink); } .method .name { font-weight: 600; }
.method .title { font-weight: 700; font-size: 15px; } .method path { stroke: var(--line); fill: none; }
.method .tip { fill: var(--line); }"""


def picture() -> str:
    top = bottom = 0
    parts = []
    for line in Path(__file__).with_name("annotated").joinpath("picture.txt").read_text(encoding="utf-8").splitlines():
        head, *texts = (escape(x) for x in line.split(" | ", 2))
        word, *place = head.split()
        if word == "band":
            top, bottom = bottom, bottom + HEAD + ROW * int(place[0])
            parts.append(f'<rect x="4" y="{top + 4}" width="{WIDTH - 8}" height="{bottom - top - 8}" rx="8" '
                         f'fill="var(--band)"/><text class="title" x="16" y="{top + 25}">{texts[0]}</text>'
                         f'<text x="16" y="{top + 42}">{texts[1]}</text>')
            continue
        x, y = 16 + STEP * int(place[0]), top + HEAD + ROW * int(place[1])
        if word == "box":
            width = STEP * (int(place[2]) - 1) + BOX_WIDTH
            middle = x + width / 2
            parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{BOX_HEIGHT}" rx="5" '
                         f'fill="var(--{place[3]})" stroke="var(--line)"/><text text-anchor="middle" class="name" '
                         f'x="{middle:g}" y="{y + 17}">{texts[0]}</text><text text-anchor="middle" x="{middle:g}" '
                         f'y="{y + 33}">{texts[1]}</text>')
        else:
            right, down = (int(place[k + 2]) - int(place[k]) for k in (0, 1))
            x += BOX_WIDTH / 2 * (1 + right)
            y += BOX_HEIGHT / 2 * (1 + down)
            length = (STEP - BOX_WIDTH if right else ROW - BOX_HEIGHT) - 1
            turn = {(1, 0): 0, (0, 1): 90, (-1, 0): 180, (0, -1): 270}[right, down]
            parts.append(f'<g transform="translate({x:g} {y:g}) rotate({turn})"><path d="M0 0H{length - 6}"/>'
                         f'<path class="tip" d="M{length} 0l-7 -4v8z"/></g>')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" class="method" viewBox="0 0 {WIDTH} {bottom}" width="{WIDTH}" '
            f'role="img" aria-label="The method in four stages">\n<style>{STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n")
