"""docs/pictures/method.svg: boxes and arrows from the list annotated/picture.txt, into the frame annotated/picture.svg.

`band ROWS | title | data` begins a stage; `box COLUMN ROW WIDTH KIND | name | shape` and `arrow COLUMN ROW COLUMN ROW`
are places in it. The picture is as wide as a phone can show, and follows light and dark."""

import string
from pathlib import Path

WIDTH, STEP, ROW, HEAD = 520, 126, 64, 52  # of the picture, of a column, of a row, of a band's title
BOX_WIDTH, BOX_HEIGHT = 110, 40
FOLDER = Path(__file__).resolve().parents[2] / "docs/annotated"


def picture() -> str:
    top, bottom, parts = 0, 0, []
    for line in (FOLDER / "picture.txt").read_text(encoding="utf-8").splitlines():
        head, *texts = line.split(" | ", 2)
        word, *place = head.split()
        if word == "band":
            top, bottom = bottom, bottom + HEAD + ROW * int(place[0])
            parts += [rectangle(4, top + 4, WIDTH - 8, bottom - top - 8, "band"),
                      f'<text class="title" x="16" y="{top + 25}">{texts[0]}</text>',
                      f'<text x="16" y="{top + 42}">{texts[1]}</text>']
            continue
        x, y = 16 + STEP * int(place[0]), top + HEAD + ROW * int(place[1])
        if word == "box":
            width = STEP * (int(place[2]) - 1) + BOX_WIDTH
            parts.append(rectangle(x, y, width, BOX_HEIGHT, place[3]))
            parts += [f'<text class="{kind}" text-anchor="middle" x="{x + width // 2}" y="{y + down}">{text}</text>'
                      for kind, text, down in zip(("name", "shape"), texts, (17, 33))]
        else:
            right, down = int(place[2]) - int(place[0]), int(place[3]) - int(place[1])
            x, y = x + BOX_WIDTH // 2 * (1 + right), y + BOX_HEIGHT // 2 * (1 + down)
            length, turn = STEP - BOX_WIDTH if right else ROW - BOX_HEIGHT, 90 * down + 90 * right * (right - 1)
            parts.append(f'<path transform="translate({x} {y}) rotate({turn})" d="M0 0H{length}l-7 -4v8l7 -4"/>')
    frame = string.Template((FOLDER / "picture.svg").read_text(encoding="utf-8"))
    return frame.substitute(width=WIDTH, height=bottom, parts="\n".join(parts))


def rectangle(x: int, y: int, width: int, height: int, kind: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" class="{kind}"/>'
