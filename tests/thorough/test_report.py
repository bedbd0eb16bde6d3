"""The report of a small real run: complete, honest about what is missing, and readable in a browser."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import conftest
import report
from common.files import file_hash, read_sealed, write_array, write_sealed
from data import demo_world, splits
from reporting import figures
from train import ablation, cli
from train.stages import read_labels

PICTURES = os.environ.get("UWAV_SCREENSHOTS")  # a folder
SMALL = (*conftest.SMALL, "--set", "epochs=2", "--set", "peak_lr=0.01")
STAGES = "\t".join(["2026-01-02 03:04", "{}", "{}", "Train the HAN", "abc1234", "Linux, 2 CPU cores, PyTorch 2", "bash run_all.sh"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """An ablation over two seeds, with the sweep, as run_all.sh leaves it."""
    run = tmp_path_factory.mktemp("run")
    config = replace(demo_world.WorldConfig(), train=60, val=30, test=40, source_train=40, source_validation=20, source_test=20)
    demo_world.make(run / "data", config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "SWEEP", {name: ablation.SWEEP[name] for name in ("full_alpha_0.5", "full_W_1")})
        cli.main(["ablate", str(run / "data"), str(run), "--seeds", "2", *SMALL, "--sweep"])
    (run / "stages.tsv").write_text("".join(f"{STAGES.format(*x)}\n" for x in ((70, "interrupted"), (40, "new"), (3, "kept"))))
    return run


@pytest.fixture(scope="module")
def page(finished) -> str:
    report.main([str(finished)])
    return (finished / "report.html").read_text()


def copied(finished: Path, tmp_path: Path, *without: str) -> Path:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for name in without:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return run


def text_of(run: Path, *options: str) -> str:
    report.main([str(run), *options])
    return (run / "report.html").read_text()


# ---- a complete run ----


def test_page_has_every_section_and_nothing_is_missing(page):
    titles = re.findall(r"<h2>\d+\. (.*?)</h2>", page)
    assert titles == ["Result", "What each step adds", "Labels", "Timelines", "Classes and modalities", "Uncertainty", "Training", "What ran"]
    assert "<h2>Terms</h2>" in page
    assert 'class="missing"' not in page
    assert page.count("<figure") == page.count("<figcaption>") == 8 and page.count("<img alt=") == page.count("<img ")


def test_page_loads_nothing_from_anywhere(page):
    addresses = re.findall(r'(?:src|href)="([^"]{0,12})', page)
    assert addresses and all(a.startswith(("data:", "#")) for a in addresses)
    assert "http" not in re.sub(r'data:image/svg\+xml;base64,[^"]*', "", page)


def test_scores_and_differences_on_the_page_are_those_of_the_ablation(finished, page):
    ablation = json.loads((finished / "ablation.json").read_text())
    for values in ablation["scores"]["clip_clap"].values():
        assert report.cell([v["seg_type"] for v in values]) in page
    changes = [d["scores"]["seg_type"] for d in ablation["differences"]["clip_clap"]]
    clear = [x for x in changes if len({v > 0 for v in (*x["interval"], *x["by_seed"])}) == 1]
    assert f"the interval excludes zero, and every seed has its sign, in {len(clear)} of 7 steps" in page
    assert "<th>  paper" not in page  # the features are invented
    assert "all, alpha = 0.5" in page and "all, W = 1" in page


def test_the_first_screen_has_three_sentences_and_the_table_of_scores(finished, page):
    first = page[page.index('id="section1"'):page.index('id="section2"')]
    scores = json.loads((finished / "ablation.json").read_text())["scores"]["clip_clap"]
    assert first.index("On the test split UWAV scores") < first.index("The labels themselves score") < first.index("paper's order") < first.index("<table>")
    assert f"UWAV scores {report.cell([v['seg_type'] for v in scores['full']])} % of Type" in first
    assert "nothing at all" in first and "<figure" not in first


def test_a_large_difference_has_a_panel_of_its_own_and_a_wide_table_a_shadow_where_it_goes_on(page):
    figure = page[page.index('<figure id="differences'):].split("</figure>")[0]
    assert figure.count("<img ") == 4  # both levels, without and with what comes from weak labels alone
    assert ".scroll { overflow-x: auto;" in page and page.count("100% no-repeat local") == 2


def test_calibration_leaves_out_classes_without_a_threshold_and_says_how_many_they_are(finished, page, monkeypatch):
    """Against the definitions, by loops: the error at temperature 2 of classes with a finite threshold."""
    curves, draw = [], figures.reliability
    monkeypatch.setattr(figures, "reliability", lambda title, by_name: curves.extend(by_name) or draw(title, by_name))
    report.reliability_figure(report.Saved(finished, 0, finished / "data"))
    truth, weak = splits.load_truth(finished / "data", "test"), splits.load_weak(finished / "data", "test")
    for m, modality in enumerate(("audible", "visible")):
        errors, left_out = [], []
        for seed in (0, 1):
            labels = read_labels(finished / f"seed{seed}/labels_teacher.npz", "cpu")
            soft = report.uwav.soft_labels(labels.logits["test"][m], labels.thresholds[m], weak, 2.0)
            finite = labels.thresholds[m].isfinite()
            entries = [(float(soft[n, t, c]), int(truth[m][n, t, c]))
                       for n, c in weak.nonzero().tolist() if finite[c] for t in range(10)]
            bins = [[e for e in entries if min(int(np.float32(e[0]) * 15), 14) == b] for b in range(15)]
            gaps = [abs(np.mean([e[0] for e in b]) - np.mean([e[1] for e in b])) * len(b) for b in bins if b]
            errors.append(100 * sum(gaps) / len(entries))
            left_out.append(int((~finite).sum()))
        assert curves[2 * m + 1] == f"temperature 2, the released code's: error {report.cell(errors, ' ± {}')} %"
        assert re.search(f"They are .*\\b{left_out[0]} {modality}", page)


def test_classes_that_are_never_predicted_are_named(finished, page):
    pred = report.read_predictions(finished / "seed0/clip_clap/full/predictions_test.npz", finished / "data")
    truth, classes = splits.load_truth(finished / "data", "test"), read_sealed(finished / "data/index.json", "")["llp"]["classes"]
    named = page[page.index("Never predicted: "):].split(".</figcaption>")[0]
    for m, modality in enumerate(("audible", "visible")):
        for c, name in enumerate(classes):
            never = bool(truth[m][:, :, c].any()) and not bool(pred[m][:, :, c].any())
            assert (f"{modality} {name.replace('_', ' ')}" in re.split(": |, ", named)) is never


def test_time_of_a_stage_is_that_of_the_runs_that_made_something(page):
    assert all(f"<td>{seconds} s</td>" in page for seconds in (70, 40, 110)) and "<td>3 s</td>" not in page and "abc1234" in page


def test_page_says_what_comes_out_the_same_again_and_what_on_a_gpu_does_not(page):
    assert "to the last bit; on a GPU not quite (docs/promises.md)" in page


def test_every_picture_is_written_as_svg_for_both_colour_schemes_and_as_png(finished, page):
    folder = finished / "pictures"
    names = set(re.findall(r'<figure id="(\w+)"', page))
    assert names == {path.stem for path in folder.glob("*.png")} | {"method"}  # which is not of this run
    for path in folder.glob("*.svg"):
        text = path.read_text()
        ElementTree.fromstring(text)
        assert "prefers-color-scheme:dark" in text and "href=\"http" not in text
        shapes = text[text.index("</style>"):]
        assert not set(figures.DARK) & set(re.findall(r"#[0-9a-f]{6}", shapes)), "every colour follows the scheme"


def test_the_same_run_gives_the_same_page(finished, page):
    assert text_of(finished) == page


def test_another_seed_can_be_shown(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "write", lambda *_: ["<svg/>"])
    run = copied(finished, tmp_path)
    curves, draw = [], figures.reliability
    monkeypatch.setattr(figures, "reliability", lambda title, by_name: curves.extend(by_name) or draw(title, by_name))
    first, other = text_of(run), text_of(run, "--seed", "1")
    assert len(curves) == 8 and all(re.search(r"error \d+\.\d ± \d", name) for name in curves)
    assert set(curves[:4]) == set(curves[4:])  # the error is of all seeds, whichever is shown
    assert other != first and "<th>seed in pictures</th><td>1</td>" in other and 'class="missing"' not in other


def with_index(monkeypatch, run: Path, change: Callable[[dict], object]) -> None:
    """The index of the data as if `change` had been made to it; results were made from it."""
    index = read_sealed(run / "data/index.json", "")
    change(index)
    for module in (report, splits):
        monkeypatch.setattr(module, "read_index", lambda folder: index)


def test_paper_rows_stand_beside_llp_only(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "write", lambda *_: ["<svg/>"])
    run = copied(finished, tmp_path)
    with_index(monkeypatch, run, lambda index: index.update(source="pack"))
    page = text_of(run)
    assert "  paper, all (UWAV), clip_clap</th><td>68.9</td>" in page and "  paper</th><td>78.4</td>" in page
    classes = ["Talking", *report.LLP_CLASSES[1:]]  # somebody's own
    with_index(monkeypatch, run, lambda index: index.update(source="pack", llp=index["llp"] | dict(classes=classes)))
    assert "<th>  paper" not in text_of(run)


def test_packed_data_may_lie_elsewhere(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "write", lambda *_: ["<svg/>"])
    run = copied(finished, tmp_path)
    (run / "data").rename(tmp_path / "elsewhere")
    assert 'class="missing"' not in text_of(run, "--data", str(tmp_path / "elsewhere"))


# ---- runs that lack something ----


@pytest.mark.parametrize("without, sentence, figures_left", [
    (["ablation.json"], "ablation.json: no such file; make it with <code>python uwav.py ablate</code>", 7),
    (["stages.tsv"], "stages.tsv: no such file", 8),
    (["seed0/teacher.pt"], "seed0/teacher.pt: no such file", 7),
    (["seed0/clip_clap/full/predictions_test.npz"], "predictions_test.npz: no such file; make it with <code>python uwav.py evaluate</code>", 6),
    (["seed0/clip_clap"], "no trained parser", 5),
    (["seed0", "seed1"], "seed0/labels_teacher.npz: no such file", 2),
    (["data"], "data/index.json: no such file", 2),  # what the ablation was of cannot be compared
])
def test_a_missing_stage_is_named_in_its_place_and_the_rest_is_written(finished, tmp_path, monkeypatch, without, sentence, figures_left):
    monkeypatch.setattr(figures, "write", lambda *_: ["<svg/>"])
    page = text_of(copied(finished, tmp_path, *without))
    assert sentence in page and str(tmp_path) not in page
    assert page.count("<h2>") == 9 and page.count("<figure") == figures_left


def test_a_run_without_test_truth_says_so_once_a_section(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "write", lambda panels, folder, name: ["<svg/>"] * len(panels))
    run = copied(finished, tmp_path)
    with_index(monkeypatch, run, lambda index: index["files"].pop("llp/test/audio.npy"))
    page = text_of(run)
    assert page.count("the test split has no dense truth") == 3
    assert '<figure id="thresholds"' in page and '<figure id="reliability"' not in page and '<figure id="timelines"' not in page


def test_a_run_with_one_seed_and_no_sweep_says_that_no_spread_is_known(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "write", lambda *_: ["<svg/>"])
    run = copied(finished, tmp_path, "seed1")
    cli.main(["ablate", str(run / "data"), str(run), *SMALL])
    page = text_of(run)
    assert "test split (one seed).</p>" in page and "--seeds 3 would show it" in page and "±" not in page
    assert "alpha = 0.5" not in page


def test_a_run_with_one_class(finished, tmp_path):
    """Speech alone, in half of the videos."""
    run = tmp_path / "run"
    shutil.copytree(finished / "data", run / "data")
    for path in (run / "data/llp").rglob("*.npy"):
        array = np.load(path)
        if path.stem in ("weak", "audio", "visual"):
            write_array(path, array[..., :1])
        elif path.stem.startswith("text_"):
            write_array(path, array[:1])
    index = read_sealed(run / "data/index.json", "")
    index["llp"]["classes"] = ["Speech"]
    index["files"] = {name: file_hash(run / "data" / name) for name in index["files"]}
    write_sealed(run / "data/index.json", {name: x for name, x in index.items() if name != "sha256"})
    cli.main(["ablate", str(run / "data"), str(run), *SMALL])
    page = text_of(run)
    assert page.count("<figure") >= 7 and "nan" not in re.sub(r"<img[^>]*>", "", page)


def test_an_empty_folder_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match="has no run; `bash run_all.sh` makes one"):
        report.main([str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_a_seed_that_the_run_does_not_have_is_refused_and_the_report_that_is_there_kept(tmp_path):
    (tmp_path / "seed0").mkdir()
    (tmp_path / "report.html").write_text("earlier")
    with pytest.raises(SystemExit, match="--seed 5: .* has seed0"):
        report.main([str(tmp_path), "--seed", "5"])
    assert (tmp_path / "report.html").read_text() == "earlier"


# ---- in a browser ----


@pytest.mark.parametrize("width", [390, 1100])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_reads_in_a_browser(browser, finished, page, width, scheme):
    """No error, no request, nothing sticks out, every picture is there, and colours follow the scheme."""
    tab = browser.new_page(viewport=dict(width=width, height=844), color_scheme=scheme)
    problems, requests = [], []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto((finished / "report.html").as_uri())
    assert problems == [] and [r for r in requests if not r.startswith("data:")] == [(finished / "report.html").as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 100)")
    scrolls = tab.evaluate("[...document.querySelectorAll('.scroll')].some((box) => box.scrollWidth > box.clientWidth)")
    assert scrolls == (width == 390), "a wide table scrolls in its own box, on a phone only"
    shade = tab.evaluate("""async () => {  // of a picture's corner
        const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
        context.drawImage(document.images[0], 0, 0);
        return context.getImageData(2, 2, 1, 1).data[0];
    }""")
    assert (shade < 60) == (scheme == "dark")
    if PICTURES:
        tab.screenshot(path=Path(PICTURES) / f"report-{scheme}-{width}.png", full_page=True)
    tab.close()
