"""One parser.onnx in every runtime: the same probabilities and events; and the page in a browser."""

import functools
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import need, unavailable

need("av", "open_clip", "laion_clap", "onnx", "onnxscript", "onnxruntime")

import export_onnx
import parse
from train import checkpoints
from video import decode

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "web"
SHAPES = [(1, 10), (2, 7), (3, 1), (7, 60), (5, 13)]  # (B, T)
PICTURES = os.environ.get("UWAV_SCREENSHOTS")  # a folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    for n, (B, T) in enumerate(SHAPES):
        arrays = {k: rng.standard_normal((B, T, D)).astype(np.float32) for k, D in (("audio", 512), ("visual_2d", 768))}
        np.savez_compressed(folder / f"{n}.npz", **arrays)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def server(bundle, inputs):
    """Serves the page at /, a bundle at /bundle/, inputs at /inputs/."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
            ".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm"}

        def translate_path(self, path: str) -> str:
            path = path.split("?")[0]
            for prefix, folder in (("/bundle/", bundle), ("/inputs/", inputs[0].parent)):
                if path.startswith(prefix):
                    return str(folder / path.removeprefix(prefix))
            return super().translate_path(path)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=WEB))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(browser):
    if not (WEB / "node_modules/onnxruntime-web").is_dir():
        unavailable("onnxruntime-web: npm ci in web/")
    return browser


# ---- the same file, the same answer ----


def by_torch(bundle, finished, inputs, server, request) -> list[dict]:
    module = export_onnx.exports_of(checkpoints.load_model(finished / "seed0/clip_clap/full/han.pt"), None)["parser"]
    results = []
    for path in inputs:
        arrays = np.load(path)
        with torch.inference_mode():
            outputs = module(torch.from_numpy(arrays["audio"]), torch.from_numpy(arrays["visual_2d"]))
        results.append({k: x.numpy().ravel() for k, x in zip(module.outputs, outputs)})
    return results


def by_onnxruntime(bundle, finished, inputs, server, request) -> list[dict]:
    session = export_onnx.session(bundle / "onnx/parser.onnx")
    names = [o.name for o in session.get_outputs()]
    return [dict(zip(names, session.run(None, dict(np.load(path))))) for path in inputs]


def by_node(bundle, finished, inputs, server, request) -> list[dict]:
    if not shutil.which("node") or not (WEB / "node_modules/onnxruntime-node").is_dir():
        unavailable("Node and onnxruntime-node: npm ci in web/")
    shutil.copy(ROOT / "tests/helpers/parity.mjs", WEB / ".parity.mjs")  # Node looks for packages beside the script
    try:
        script = (WEB / ".parity.mjs").read_text().replace("../../web/parser.js", "./parser.js")
        (WEB / ".parity.mjs").write_text(script)
        result = subprocess.run(["node", ".parity.mjs", bundle / "onnx/parser.onnx", *inputs], cwd=WEB, capture_output=True, text=True, timeout=300)
    finally:
        (WEB / ".parity.mjs").unlink()
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def by_browser(bundle, finished, inputs, server, request) -> list[dict]:
    page = request.getfixturevalue("browser").new_page()
    page.goto(f"{server}/index.html")
    return page.evaluate("""async (count) => {
        const ort = await import("onnxruntime-web"), {readNpz} = await import("./parser.js"), results = [];
        ort.env.wasm.numThreads = 1;
        const read = async (url) => new Uint8Array(await (await fetch(url)).arrayBuffer());
        const session = await ort.InferenceSession.create(await read("/bundle/onnx/parser.onnx"));
        for (let n = 0; n < count; n++) {
            const arrays = await readNpz(await read(`/inputs/${n}.npz`));
            const feeds = Object.fromEntries(Object.entries(arrays).map(([k, x]) => [k, new ort.Tensor("float32", x.data, x.shape)]));
            const outputs = await session.run(feeds);
            results.push(Object.fromEntries(Object.entries(outputs).map(([k, x]) => [k, [...x.data].map(Number)])));
        }
        return results;
    }""", len(SHAPES))


def by_openvino(bundle, finished, inputs, server, request) -> list[dict]:
    if not importlib.util.find_spec("openvino"):
        unavailable("OpenVINO: pip install openvino")
    import openvino

    compiled = openvino.Core().compile_model(bundle / "onnx/parser.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # bf16 by default
    results = []
    for path in inputs:
        outputs = compiled(dict(np.load(path)))
        results.append({o.get_any_name(): outputs[o] for o in compiled.outputs})
    return results


def by_tract(bundle, finished, inputs, server, request) -> list[dict]:
    if not importlib.util.find_spec("tract"):
        unavailable("tract: pip install tract")
    import tract

    model = tract.onnx().load(bundle / "onnx/parser.onnx").into_model().into_runnable()
    return [dict(zip(export_onnx.EVENTS + export_onnx.PROBABILITIES, (x.to_numpy() for x in model.run(list(dict(np.load(path)).values()))))) for path in inputs]


RUNTIMES = {"onnxruntime": by_onnxruntime, "onnxruntime-node": by_node, "onnxruntime-web in Chromium": by_browser,
            "OpenVINO": by_openvino, "tract": by_tract}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_runtime_agrees_with_torch_at_five_shapes(runtime, bundle, finished, inputs, server, request):
    expected = by_torch(bundle, finished, inputs, server, request)
    got = RUNTIMES[runtime](bundle, finished, inputs, server, request)
    assert len(got) == len(expected) == len(SHAPES)
    worst = 0.0
    for a, b in zip(expected, got):
        for name in ("audio_prob", "visual_prob", "video_prob"):
            worst = max(worst, float(np.abs(a[name] - np.ravel(b[name])).max()))
        for name in ("audio_event", "visual_event", "av_event"):
            assert np.array_equal(a[name], np.ravel(b[name]).astype(bool)), f"{runtime}: {name}"
    print(f"{runtime}: probabilities within {worst:.1e}")
    assert worst < 1e-4
    assert any(a["audio_event"].any() for a in expected) and not all(a["audio_event"].all() for a in expected)


@pytest.mark.parametrize("segments", [10, 3])
def test_node_script_parses_a_features_file_like_parse_py(bundle, tmp_path, segments):
    """Also with a parser that was trained on clips of another length, whose windows are as long."""
    if not shutil.which("node") or not (WEB / "node_modules/onnxruntime-node").is_dir():
        unavailable("Node and onnxruntime-node: npm ci in web/")
    rng = np.random.default_rng(1)
    arrays = dict(audio=rng.standard_normal((23, 512)).astype(np.float32), visual_2d=rng.standard_normal((23, 768)).astype(np.float32))
    np.savez(tmp_path / "x.npz", **arrays)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/parser.onnx").symlink_to(bundle / "onnx/parser.onnx")
    (tmp_path / "bundle/bundle.json").write_text(json.dumps(json.loads((bundle / "bundle.json").read_text()) | dict(segments=segments)))
    result = subprocess.run(["node", WEB / "parse.mjs", tmp_path / "bundle", tmp_path / "x.npz"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    theirs, ours = json.loads(result.stdout), parse.parse(arrays, parse.Bundle(tmp_path / "bundle"))
    assert parse.Bundle(tmp_path / "bundle").window == segments
    np.testing.assert_allclose(theirs["audio_prob"], ours.audio_prob, atol=1e-5)
    without = [{k: e[k] for k in ("label", "modality", "onset", "offset")} for e in theirs["events"]]
    assert without == [{k: e[k] for k in ("label", "modality", "onset", "offset")} for e in ours.events()] and without
    result = subprocess.run(["node", WEB / "parse.mjs", tmp_path, tmp_path / "x.npz"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 1 and "bundle.json: no such file" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8"])
def test_python_and_node_write_the_same_json_of_the_sample_that_a_bundle_brings(bundle, tmp_path, variant):
    if not shutil.which("node") or not (WEB / "node_modules/onnxruntime-node").is_dir():
        unavailable("Node and onnxruntime-node: npm ci in web/")
    options = [] if variant == "fp32" else [variant]
    node = subprocess.run(["node", WEB / "parse.mjs", bundle, bundle / "sample.npz", *options], capture_output=True, text=True, timeout=300)
    assert node.returncode == 0, node.stderr
    command = [sys.executable, "parse.py", bundle / "sample.npz", "--bundle", bundle, "--json", tmp_path / "x.json"]
    subprocess.run([*command, *(["--variant", variant] if options else [])], cwd=WEB.parent, check=True, capture_output=True)
    theirs, ours = json.loads(node.stdout), json.loads((tmp_path / "x.json").read_text())
    assert theirs.keys() == ours.keys() and ours["format"] == 1 and ours["events"] and ours["warnings"]
    for name in ("source", "bundle", "warnings", "seconds", "classes", "providers"):
        assert theirs[name] == ours[name], name
    tolerance = 1e-5 if variant == "fp32" else 0.02  # the smaller ones round by the runtime's own arithmetic
    for name in ("audio_prob", "visual_prob", "video_prob"):
        np.testing.assert_allclose(theirs[name], ours[name], atol=tolerance)
    if variant == "fp32":
        for a, b in zip(theirs["events"], ours["events"], strict=True):
            assert a | {"probability": 0} == b | {"probability": 0} and a["probability"] == pytest.approx(b["probability"], abs=1e-5)


def test_node_reads_features_of_any_float_type_and_order(bundle, tmp_path):
    if not shutil.which("node") or not (WEB / "node_modules/onnxruntime-node").is_dir():
        unavailable("Node and onnxruntime-node: npm ci in web/")
    rng, found = np.random.default_rng(1), []
    x = {k: rng.standard_normal((7, n)).astype(np.float16) for k, n in (("audio", 512), ("visual_2d", 768))}
    x["audio"][0, :3] = [0, 6e-8, -65504]  # zero, the smallest and the largest number
    for name, change in (("f4", lambda a: a.astype(np.float32)), ("f2", lambda a: a), ("f8", lambda a: a.astype(np.float64)),
                         ("fortran", np.asfortranarray)):
        np.savez(tmp_path / f"{name}.npz", **{k: change(a) for k, a in x.items()})
        node = subprocess.run(["node", WEB / "parse.mjs", bundle, tmp_path / f"{name}.npz"], capture_output=True, text=True, timeout=300)
        assert node.returncode == 0, node.stderr
        found.append(json.loads(node.stdout) | {"source": ""})
    assert all(f == found[0] for f in found)


@pytest.mark.parametrize("gone", ["audio", "visual_2d"])
def test_node_says_nothing_of_a_stream_that_is_not_there_like_parse_py(bundle, tmp_path, gone):
    if not shutil.which("node") or not (WEB / "node_modules/onnxruntime-node").is_dir():
        unavailable("Node and onnxruntime-node: npm ci in web/")
    rng = np.random.default_rng(1)
    arrays = {k: rng.standard_normal((12, n)).astype(np.float32) for k, n in (("audio", 512), ("visual_2d", 768)) if k != gone}
    np.savez(tmp_path / "x.npz", **arrays)
    result = subprocess.run(["node", WEB / "parse.mjs", bundle, tmp_path / "x.npz"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    theirs, ours = json.loads(result.stdout), parse.parse(arrays, parse.Bundle(bundle))
    assert theirs["audio_prob" if gone == "audio" else "visual_prob"] is None
    assert [(e["label"], e["modality"], e["onset"], e["offset"]) for e in theirs["events"]] == [
        (e["label"], e["modality"], e["onset"], e["offset"]) for e in ours.events()] != []


# ---- the page ----


def picture(page, name: str) -> None:
    """Screenshots for people to look at, where UWAV_SCREENSHOTS names a folder."""
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


def test_picture_of_a_frame_is_pillows_to_the_last_bit(browser, server):
    page, rng = browser.new_page(), np.random.default_rng(0)
    page.goto(f"{server}/index.html")
    for h, w in ((240, 320), (320, 240), (224, 224), (101, 373), (225, 224), (361, 640), (30, 40)):
        pixels = rng.integers(0, 256, (h, w, 3), np.uint8)
        rgba = np.concatenate([pixels, np.full((h, w, 1), 255, np.uint8)], 2)
        got = page.evaluate("""async ([data, width, height]) => {
            const {squareImage} = await import("./parser.js");
            return [...squareImage({data: Uint8ClampedArray.from(data), width, height})];
        }""", [rgba.ravel().tolist(), w, h])
        assert np.array_equal(np.reshape(got, (224, 224, 3)), decode.square_image(pixels)), (h, w)


def test_page_parses_the_real_clip_like_python_and_shows_it(browser, server, bundle, shared, tmp_path):
    """A person's way: open the page, choose the folder, choose the video, look, move, hover."""
    page = browser.new_page(viewport=dict(width=1000, height=900))
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"{server}/index.html")
    picture(page, "empty")
    page.set_input_files("#bundle", bundle)
    page.wait_for_function("document.getElementById('status').textContent.startsWith('Bundle of 25 classes')")
    page.set_input_files("#source", shared / "data/media/BjCEufrlXm4.mp4")
    page.wait_for_function("window.parsed || document.getElementById('status').className == 'alarm'", timeout=240_000)
    assert page.locator("#status").get_attribute("class") != "alarm", page.locator("#status").text_content()
    shown = page.evaluate("({T: parsed.T, events: parsed.events, audio: [...parsed.probability.audio], visual: [...parsed.probability.visual]})")
    python = parse.Bundle(bundle)
    expected = parse.parse(parse.features_of_video(shared / "data/media/BjCEufrlXm4.mp4", python), python)
    assert shown["T"] == 10
    # The browser decodes colours and resamples sound in its own way, so embeddings differ a little.
    np.testing.assert_allclose(np.reshape(shown["audio"], (10, 25)), expected.audio_prob, atol=0.02)
    np.testing.assert_allclose(np.reshape(shown["visual"], (10, 25)), expected.visual_prob, atol=0.02)
    spans = [(e["label"], e["modality"], e["onset"], e["offset"]) for e in shown["events"]]
    assert spans == [(e["label"], e["modality"], e["onset"], e["offset"]) for e in expected.events()]
    assert "RANDOM WEIGHTS" in page.locator("#notes").text_content()
    picture(page, "result")
    if spans:
        page.locator("#strips").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.getElementById('video').currentTime") == pytest.approx(2.0, abs=0.1)
        page.locator(".strip i").nth(3).hover()
        assert "probability" in page.locator("#tip").text_content() and page.locator("#tip").is_visible()
    assert problems == []
    page.close()


def test_page_parses_features_of_a_long_video_and_reads_well_in_the_dark_and_on_a_phone(browser, server, bundle, tmp_path):
    rng = np.random.default_rng(1)
    arrays = dict(audio=rng.standard_normal((23, 512)).astype(np.float32), visual_2d=rng.standard_normal((23, 768)).astype(np.float32))
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    expected = parse.parse(arrays, parse.Bundle(bundle)).events()
    for name, options in {"features": dict(viewport=dict(width=1000, height=800)),
                          "dark": dict(viewport=dict(width=1000, height=800), color_scheme="dark"),
                          "phone": dict(viewport=dict(width=390, height=800))}.items():
        page = browser.new_page(**options)
        page.goto(f"{server}/index.html?bundle=/bundle")
        page.wait_for_function("document.getElementById('status').textContent.startsWith('Bundle of')")
        page.set_input_files("#source", tmp_path / "x.npz")
        page.wait_for_function("window.parsed")
        events = page.evaluate("parsed.events.map(({label, modality, onset, offset}) => [label, modality, onset, offset])")
        assert events == [[e["label"], e["modality"], e["onset"], e["offset"]] for e in expected] and events
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
        picture(page, name)
        page.close()


def test_page_says_that_a_stream_is_not_there(browser, server, bundle, tmp_path):
    np.savez(tmp_path / "deaf.npz", visual_2d=np.random.default_rng(1).standard_normal((10, 768)).astype(np.float32))
    page = browser.new_page(viewport=dict(width=1000, height=700))
    page.goto(f"{server}/index.html?bundle=/bundle")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('Bundle of')")
    page.set_input_files("#source", tmp_path / "deaf.npz")
    page.wait_for_function("window.parsed")
    assert "no sound in it" in page.locator("#status").text_content() and page.evaluate("parsed.probability.audio") is None
    shown = page.locator(".strip.absent")
    assert shown.count() == 2 * page.locator(".event").count() > 0 and shown.first.text_content() == "no sound"
    picture(page, "no-sound")
    page.close()


def test_page_tries_the_sample_shows_a_table_and_saves_what_parse_py_writes(browser, server, bundle, tmp_path):
    page = browser.new_page(viewport=dict(width=1000, height=900))
    page.goto(f"{server}/index.html?bundle=/bundle")
    page.click("#sample")
    page.wait_for_function("window.parsed")
    assert page.locator("#table tr").count() == 1 + page.evaluate("parsed.events.length") > 1
    saved = {}
    for name in ("json", "csv"):
        with page.expect_download() as download:
            page.click(f"#{name}")
        download.value.save_as(tmp_path / f"page.{name}")
        saved[name] = (tmp_path / f"page.{name}").read_text()
    subprocess.run([sys.executable, "parse.py", bundle / "sample.npz", "--bundle", bundle, "--json", tmp_path / "x.json", "--csv", tmp_path / "x.csv"],
                   cwd=WEB.parent, check=True, capture_output=True)
    theirs, ours = json.loads(saved["json"]), json.loads((tmp_path / "x.json").read_text())
    assert theirs.keys() == ours.keys() and all(theirs[k] == ours[k] for k in ("format", "source", "bundle", "warnings", "seconds", "classes"))
    np.testing.assert_allclose(theirs["audio_prob"], ours["audio_prob"], atol=1e-5)
    rows = [[line.split(",")[:4] for line in text.splitlines()] for text in (saved["csv"], (tmp_path / "x.csv").read_text())]
    assert rows[0] == rows[1] and len(rows[0]) == 1 + len(ours["events"])
    page.close()


def test_page_stops_on_demand_and_zooms_into_a_long_file(browser, server, bundle, shared, tmp_path):
    np.savez(tmp_path / "long.npz", **{k: np.random.default_rng(1).standard_normal((150, n)).astype(np.float32) for k, n in (("audio", 512), ("visual_2d", 768))})
    page = browser.new_page(viewport=dict(width=1000, height=900))
    page.goto(f"{server}/index.html?bundle=/bundle")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('Bundle of')")
    page.set_input_files("#source", shared / "data/media/BjCEufrlXm4.mp4")
    page.wait_for_function("document.getElementById('status').textContent.includes('second 1 of 10')")
    page.click("#stop")
    page.wait_for_timeout(2000)
    assert page.locator("#status").text_content().startswith("Stopped") and page.locator("#result").is_hidden()
    page.set_input_files("#source", tmp_path / "long.npz")
    page.wait_for_function("window.parsed")
    assert "2:30" in page.locator(".ruler").text_content()
    before = page.locator("#strips").bounding_box()["width"]
    page.click("[aria-label=Wider]")
    assert page.locator("#strips").bounding_box()["width"] == pytest.approx(2 * before, rel=0.01)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls inside"
    page.close()


def test_page_shows_the_file_chosen_last_even_if_another_is_still_being_parsed(browser, server, bundle, shared, tmp_path):
    arrays = dict(audio=np.ones((7, 512), np.float32), visual_2d=np.ones((7, 768), np.float32))
    np.savez(tmp_path / "second.npz", **arrays)
    page, problems = browser.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"{server}/index.html?bundle=/bundle")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('Bundle of')")
    page.set_input_files("#source", shared / "data/media/BjCEufrlXm4.mp4")
    page.wait_for_function("document.getElementById('status').textContent.includes('second 1 of 10')")
    page.set_input_files("#source", tmp_path / "second.npz")
    page.wait_for_function("window.parsed", timeout=120_000)
    page.wait_for_timeout(3000)  # the first one would have gone on
    assert page.evaluate("parsed.T") == 7 and page.locator("#status").text_content().startswith("second.npz: 7 s")
    assert page.locator("#progress").is_hidden() and problems == []
    page.close()


@pytest.mark.parametrize("files, message", [
    (["x.npz"], "the parser needs audio of shape (T, 512), but audio is (3, 5)"),
    (["text.npz"], "not an .npz file"),
    (["text.mp4"], "text.mp4: the browser cannot read this video"),
])
def test_page_shows_a_sentence_when_something_is_wrong(browser, server, tmp_path, files, message):
    np.savez(tmp_path / "x.npz", audio=np.ones((3, 5), np.float32))
    for name in ("text.npz", "text.mp4"):
        (tmp_path / name).write_text("hello")
    page = browser.new_page(viewport=dict(width=1000, height=500))
    page.goto(f"{server}/index.html?bundle=/bundle")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('Bundle of')")
    page.set_input_files("#source", [tmp_path / f for f in files])
    page.wait_for_selector("#status.alarm")
    assert message in page.locator("#status").text_content()
    picture(page, "error")
    page.close()


def test_page_without_a_bundle_says_what_is_missing(browser, server, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.txt").write_text("hello")
    page = browser.new_page()
    page.goto(f"{server}/index.html")
    page.set_input_files("#bundle", tmp_path / "folder")
    page.wait_for_selector("#status.alarm")
    assert "bundle.json is not in that folder" in page.locator("#status").text_content()
    page.goto(f"{server}/index.html?bundle=/nowhere")
    page.wait_for_selector("#status.alarm")
    assert "the server says 404" in page.locator("#status").text_content()
    page.close()
