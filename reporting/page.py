"""The HTML of a report: one file that loads nothing, reads on a phone, and follows light and dark.

A page is made of parts, functions page -> HTML. A part that raises FileNotFoundError leaves that sentence in its place.
"""

from __future__ import annotations

import base64
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from reporting.figures import DARK, FAINT, INK, LINE, PAPER, Panel, Picture


@dataclass(frozen=True)
class Page:
    """Collects the parts; pictures go to `pictures` as well."""

    run: Path  # cut off from the paths in messages
    pictures: Path
    saved: object  # what the parts read
    sections: list[tuple[str, list[str]]] = field(default_factory=list)

    def section(self, title: str, *parts: Callable[[Page], str]) -> None:
        self.sections.append((title, [self.attempt(part) for part in parts]))

    def attempt(self, part: Callable[[Page], str]) -> str:
        """The part, or in its place what is missing for it."""
        try:
            return part(self)
        except FileNotFoundError as error:
            return f'<p class="missing"><strong>Missing in this run:</strong> {self.said(error)}.</p>'

    def said(self, error: Exception) -> str:
        """What it says, paths being those inside the run."""
        text = escape(str(error).replace(f"{self.run}/", ""))
        return re.sub("`([^`]*)`", r"<code>\1</code>", text)

    def figure(self, name: str, panels: list[Panel], title: str, caption: str) -> str:
        """`title` and `caption` (HTML) say what to see."""
        images = []
        for k, svg in enumerate(Picture(name, panels).write(self.pictures), 1):
            source = base64.b64encode(svg.encode()).decode()
            alt = escape(f"{title}, panel {k} of {len(panels)}; described in the caption below")
            images.append(f'<img alt="{alt}" src="data:image/svg+xml;base64,{source}">')
        stop = "" if title.endswith("?") else "."
        return (f'<figure id="{name}"><div class="panels">{"".join(images)}</div>'
                f"<figcaption><strong>{escape(title)}{stop}</strong> {caption}</figcaption></figure>")

    def html(self, notice: str) -> str:
        """The whole page; `notice` (HTML) stands above the sections."""
        sections = [*self.sections, ("Terms", [glossary()])]
        links, body = [], []
        for n, (title, parts) in enumerate(sections, 1):
            links.append(f'<li><a href="#section{n}">{escape(title)}</a></li>')
            body.append(f'<section id="section{n}"><h2>{n}. {escape(title)}</h2>{"".join(parts)}</section>')
        variables = {"ink": INK, "panel": PAPER, "line": LINE, "faint": FAINT}
        light = "".join(f"--{name}:{colour};" for name, colour in variables.items())
        dark = "".join(f"--{name}:{DARK[colour]};" for name, colour in variables.items())
        return "".join([HEAD.replace("LIGHT", light).replace("DARK", dark), INTRODUCTION, notice,
                        f"<nav><ol>{''.join(links)}</ol></nav>", *body, "</main></body></html>\n"])


def paragraph(text: str) -> str:
    return f"<p>{text}</p>"


def table(header: list[str], rows: list[list[str]], above: list[tuple[str, int]] | None = None) -> str:
    """Cells are HTML; the first of a row names it. above: (text, columns) of a line over the header."""
    line = "".join(f'<th colspan="{n}">{x}</th>' for x, n in above or ())
    head = f"<tr>{line}</tr>" * bool(above) + "<tr>" + "".join(f"<th>{x}</th>" for x in header) + "</tr>"
    body = "".join(f"<tr><th>{r[0]}</th>" + "".join(f"<td>{x}</td>" for x in r[1:]) + "</tr>" for r in rows)
    return f'<div class="scroll" tabindex="0"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def facts(title: str, rows: dict[str, str]) -> str:
    """A table of two columns whose lines may break."""
    body = "".join(f"<tr><th>{escape(name)}</th><td>{value}</td></tr>" for name, value in rows.items())
    return f'<table class="facts"><caption>{escape(title)}</caption>{body}</table>'


def mean_and_spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean}<small>±{statistics.stdev(values):.1f}</small>"


def glossary() -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in TERMS.items()) + "</dl>"


TERMS = {
    "UWAV": "Uncertainty-weighted Weakly-supervised Audio-Visual Video Parsing (CVPR 2025), the method; in tables, the "
            "row with all its parts.",
    "Segment, event": "A segment is one second of a video; an event is an unbroken run of seconds of one class.",
    "LLP": "Look, Listen and Parse: the dataset to be parsed, 10-second clips.",
    "UnAV-100": "The dataset on which the teacher is pre-trained; its events are audible and visible at once.",
    "CLIP, CLAP": "Encoders of pictures and of sounds whose vectors can be compared with those of texts.",
    "Teacher": "Two transformers, for sound and picture, that score every class in every second and write the labels.",
    "Weak label": "Which classes occur somewhere in a video, without saying when, audibly or visibly.",
    "Logit, threshold": "The teacher's score of a class in a second; above the class's threshold (fitted on the "
                        "validation split) it counts as there.",
    "Hard label, soft label": "0 or 1 by the threshold; or between 0 and 1, by the distance from it: sigmoid((logit - "
                              "threshold) / temperature). Both are 0 outside of the weak label.",
    "HAN, parser": "Hybrid Attention Network: the model that is trained with the labels and parses new videos.",
    "VALOR": "An earlier method: hard labels from the similarity of each single second with the class's text.",
    "Class balance, W": "Positive labels are rare, so they weigh more in the loss; W scales that weight.",
    "Mixup, lambda, alpha": "Training on mixtures of two segments; lambda is the share of the first, drawn from "
                            "Beta(alpha, alpha).",
    "Val, test": "Validation split (thresholds and the best epoch are chosen on it) and test split (nothing is).",
    "F-score": "2 TP / (2 TP + FP + FN) with TP found, FP falsely predicted, FN missed; in percent. At event level an "
               "event is found if a predicted one overlaps it by half (intersection over union at least 0.5).",
    "A, V, AV, Type, Event": "F-scores of what is audible, visible, both at once; the mean of these three; audible and "
                             "visible counted together.",
    "Bootstrap interval": "The test videos are drawn again many times, with replacement; 95 % of the means lie inside.",
    "Expected calibration error": "Mean distance between what labels say (a probability) and how often they are true.",
    "Seed": "Number from which all random choices of a training run follow; another seed, another run.",
}

INTRODUCTION = (
    "<h1>UWAV: report of a run</h1>"
    "<p>From videos and nothing but the list of classes that occur in each, a model learns to say what is "
    "<em>audible</em> and what is <em>visible</em> in every second. A teacher writes soft labels for each second; the "
    'parser learns from them. Terms are explained <a href="#section8">at the end</a>.</p>')

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>UWAV: report of a run</title>
<link rel="icon" href="data:,">
<style>
:root { LIGHT --back: #f7f5f2; --link: #0b57d0; --warn: #fdf0d8; }
@media (prefers-color-scheme: dark) { :root { DARK --back: #161618; --link: #8ab4f8; --warn: #3a2f17; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; border-top: 1px solid var(--line); padding-top: 1.5rem; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .25rem; }
p, dd, figcaption { max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--link); }
nav ol { display: flex; flex-wrap: wrap; gap: .25rem 2rem; padding-left: 1.25rem; margin: 1rem 0; }
figure { margin: 1.25rem 0 2rem; }
figcaption { font-size: .9rem; margin-top: .5rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: .75rem;
  align-items: start; background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; padding: .5rem; }
.panels img { width: 100%; max-width: 34rem; height: auto; display: block; }
.scroll { overflow-x: auto; margin: .75rem 0; background: var(--panel); border: 1px solid var(--line);
  border-radius: .5rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
thead tr:first-child th { border-top: 0; }
th[colspan] { text-align: center; }
th:first-child, td:first-child { text-align: left; }
tbody th { font-weight: 500; white-space: normal; min-width: 9rem; }
small { color: var(--faint); }
th small { display: block; }
.facts { margin: .75rem 0; }
.facts th, .facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.facts th { min-width: 7rem; }
caption { text-align: left; font-weight: 600; }
.missing, .notice { background: var(--warn); border-left: .25rem solid #e69f00; padding: .5rem .75rem; }
dt { font-weight: 600; margin-top: .5rem; }
dd { margin: 0; }
</style>
</head>
<body><main>"""
