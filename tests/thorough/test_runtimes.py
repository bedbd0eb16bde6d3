"""One parser.onnx in every runtime: the same probabilities and events; and the page in a browser."""

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import need, unavailable

need("av", "open_clip", "laion_clap", "onnx", "onnxscript", "onnxruntime")

import clips
import export_onnx
import parse
from train import checkpoints
from video import decode

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "web"
SHAPES = [(1, 1), (1, 10), (2, 7), (3, 1), (7, 60), (5, 13)]  # (B, T); a runtime may keep what it chose for the first
PICTURES = os.environ.get("UWAV_SCREENSHOTS")  # a folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    for n, (B, T) in enumerate(SHAPES):
        arrays = {k: rng.standard_normal((B, T, D)).astype(np.float32) for k, D in (("audio", 512), ("visual_2d", 768))}
        np.savez_compressed(folder / f"{n}.npz", **arrays)
    return sorted(folder.iterdir())


@contextlib.contextmanager
def served(bundle: Path):
    """`parse.py --serve`, until Ctrl-C: its address."""
    command = [sys.executable, "parse.py", "--serve", bundle, "--port", "0"]
    heed = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        try:
            address = process.stdout.readline().split("/?")[0]
            assert address.startswith("http://localhost:"), process.stderr.read()
            yield address
        finally:
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=20)[1]
    assert process.returncode == 1 and said == "stopped; the same command begins again\n"


@pytest.fixture(scope="module")
def server(bundle):
    with served(bundle) as address:
        yield address


@pytest.fixture(scope="module")
def browser(browser):
    if not (WEB / "node_modules/onnxruntime-web").is_dir():
        unavailable("onnxruntime-web: npm ci in web/")
    new_page = browser.new_page  # Playwright waits by means that the page's policy forbids
    browser.new_page = lambda **options: new_page(**dict(bypass_csp=True) | options)
    yield browser
    browser.new_page = new_page


@pytest.fixture(scope="module")
def gpu_browser(browser):
    """Chromium with WebGPU by software."""
    chromium = browser.browser_type.launch(executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"])
    yield chromium
    chromium.close()


# ---- the same file, the same answer ----


def by_torch(finished, inputs) -> list[dict]:
    module = export_onnx.exports_of(checkpoints.load_model(finished / "seed0/clip_clap/full/han.pt"), None)["parser"]
    results = []
    for path in inputs:
        arrays = np.load(path)
        with torch.inference_mode():
            outputs = module(torch.from_numpy(arrays["audio"]), torch.from_numpy(arrays["visual_2d"]))
        results.append({k: x.numpy().ravel() for k, x in zip(module.outputs, outputs)})
    return results


def by_onnxruntime(bundle, graph, cases, server, request) -> list[dict]:
    session = export_onnx.session(bundle / f"onnx/{graph}.onnx")
    names = [o.name for o in session.get_outputs()]
    return [dict(zip(names, session.run(None, case))) for case in cases]


def by_node(bundle, graph, cases, server, request) -> list[dict]:
    if not shutil.which("node") or not (WEB / "node_modules/onnxruntime-node").is_dir():
        unavailable("Node and onnxruntime-node: npm ci in web/")
    script = WEB / f".parity-{os.getpid()}.mjs"  # Node looks for packages beside the script
    shutil.copy(ROOT / "tests/helpers/parity.mjs", script)
    try:
        result = subprocess.run(["node", script, bundle / f"onnx/{graph}.onnx"], input=json.dumps(as_lists(cases)), cwd=WEB,
                                capture_output=True, text=True, timeout=300)
    finally:
        script.unlink()
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def as_lists(cases: list[dict[str, np.ndarray]]) -> list[dict]:
    return [{k: (x.dtype.name, x.ravel().tolist(), list(x.shape)) for k, x in case.items()} for case in cases]


IN_PAGE = """async ([device, graph, cases]) => {
    const {findRuntimes} = await import("./runtime.js"), ort = await (await findRuntimes(device)).runtimes[device](), results = [];
    const bytes = new Uint8Array(await (await fetch(`/bundle/onnx/${graph}.onnx`)).arrayBuffer());
    const session = await ort.InferenceSession.create(bytes, {executionProviders: [device], logSeverityLevel: 3});
    const kinds = {float32: Float32Array, uint8: Uint8Array, bool: Uint8Array};
    for (const feeds of cases) {
        const inputs = Object.entries(feeds).map(([k, [type, data, shape]]) => [k, new ort.Tensor(type, kinds[type].from(data), shape)]);
        const outputs = await session.run(Object.fromEntries(inputs));
        results.push(Object.fromEntries(Object.entries(outputs).map(([k, x]) => [k, [...x.data].map(Number)])));
    }
    return results;
}"""


def in_page(browser, server: str, device: str, graph: str, cases: list[dict[str, np.ndarray]]) -> list[dict]:
    page = browser.new_page(bypass_csp=True)
    page.goto(server)
    results = page.evaluate(IN_PAGE, [device, graph, as_lists(cases)])
    page.close()
    return results


def by_browser(bundle, graph, cases, server, request) -> list[dict]:
    return in_page(request.getfixturevalue("browser"), server, "wasm", graph, cases)


def by_webgpu(bundle, graph, cases, server, request) -> list[dict]:
    return in_page(request.getfixturevalue("gpu_browser"), server, "webgpu", graph, cases)


def by_openvino(bundle, graph, cases, server, request) -> list[dict]:
    if not importlib.util.find_spec("openvino"):
        unavailable("OpenVINO: pip install openvino")
    import openvino

    compiled = openvino.Core().compile_model(bundle / f"onnx/{graph}.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # bf16 by default
    results = [compiled(case) for case in cases]
    return [{o.get_any_name(): result[o] for o in compiled.outputs} for result in results]


def by_tract(bundle, graph, cases, server, request) -> list[dict]:
    if not importlib.util.find_spec("tract"):
        unavailable("tract: pip install tract")
    import tract

    model = tract.onnx().load(bundle / f"onnx/{graph}.onnx").into_model().into_runnable()
    names = json.loads((bundle / "bundle.json").read_text())["files"][graph]["outputs"]
    return [dict(zip(names, (x.to_numpy() for x in model.run(list(case.values()))))) for case in cases]


def by_reference(bundle, graph, cases, server, request) -> list[dict]:
    """The standard's own definition of every node, in NumPy."""
    from onnx.reference import ReferenceEvaluator

    reference = ReferenceEvaluator(str(bundle / f"onnx/{graph}.onnx"))
    return [dict(zip(reference.output_names, reference.run(None, case))) for case in cases]


RUNTIMES = {"onnxruntime": by_onnxruntime, "onnxruntime-node": by_node, "onnxruntime-web in Chromium": by_browser,
            "onnxruntime-web on WebGPU": by_webgpu, "OpenVINO": by_openvino, "tract": by_tract, "the ONNX reference": by_reference}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_runtime_agrees_with_torch_at_six_shapes(runtime, bundle, finished, inputs, server, request):
    assert_agrees(runtime, bundle, finished, inputs, server, request)


@pytest.fixture(scope="module")
def of_opset_23(finished, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("opset") / "bundle"
    export_onnx.main([str(finished), str(out), "--opset", "23"])
    return out


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_parser_of_opset_23_has_attention_as_one_node_and_agrees_as_well(runtime, of_opset_23, finished, inputs, request):
    import onnx

    model = onnx.load(of_opset_23 / "onnx/parser.onnx")
    assert sum(node.op_type == "Attention" for node in model.graph.node) > 0
    first = 1 if runtime == "OpenVINO" else 0  # begun with T = 1 it is wrong from then on: docs/deploy.md
    with served(of_opset_23) as server:
        assert_agrees(runtime, of_opset_23, finished, inputs[first:], server, request)


def assert_agrees(runtime, bundle, finished, inputs, server, request) -> None:
    """With PyTorch, of the parser at all shapes."""
    expected = by_torch(finished, inputs)
    got = RUNTIMES[runtime](bundle, "parser", [dict(np.load(path)) for path in inputs], server, request)
    assert len(got) == len(expected) >= 5
    worst = 0.0
    for a, b in zip(expected, got):
        for name in ("audio_prob", "visual_prob", "video_prob"):
            worst = max(worst, float(np.abs(a[name] - np.ravel(b[name])).max()))
        for name in ("audio_event", "visual_event", "av_event"):
            assert np.array_equal(a[name], np.ravel(b[name]).astype(bool)), f"{runtime}: {name}"
    print(f"{runtime}: probabilities within {worst:.1e}")
    assert worst < 1e-4
    assert any(a["audio_event"].any() for a in expected) and not all(a["audio_event"].all() for a in expected)


# What a runtime cannot take, and why. The page falls back to WASM for these.
CANNOT = {  # (runtime, graph as its name begins or ends) -> why
    ("onnxruntime-web on WebGPU", "int8"): "WebGPU has no kernels of 8-bit matrices: the page takes WASM",
    ("onnxruntime-web on WebGPU", "clap_audio_fp16"): "minutes in software, and its kernels are those of clap_audio",
    ("tract", "clap"): "tract knows no number of videos while it reads Resize and CumSum"}
APART = 1e-4  # of 8-bit probabilities, between runtimes; measured 5e-7, of weights of all 8 bits 6e-3
CLOSE = {"": 1e-4, "fp16": 1e-2, "int8": 0.1}  # relative to numbers above 1


@pytest.mark.parametrize("runtime", list(RUNTIMES)[1:])
def test_every_graph_and_variant_agrees_with_onnxruntime_which_agrees_with_torch(runtime, bundle, server, request):
    """keep() of the export compared each graph in single precision with PyTorch."""
    rng, tried = np.random.default_rng(0), set()
    for graph, file in json.loads((bundle / "bundle.json").read_text())["files"].items():
        kind = graph.rpartition("_")[2] if graph.endswith(("_fp16", "_int8")) else ""
        if any(runtime == name and (graph.startswith(part) or graph.endswith(part)) for name, part in CANNOT):
            continue
        B, feeds = 1 if "clap" in graph or "clip" in graph else 2, {}
        for name, x in file["inputs"].items():
            shape = [d if isinstance(d, int) else {"T": 7, "C": 4}.get(d, B) for d in x["shape"]]
            feeds[name] = (np.ones(shape, bool) if x["type"] == "bool" else rng.integers(0, 256, shape, np.uint8) if x["type"] == "uint8"
                           else np.clip(rng.standard_normal(shape), -3, 3).astype(np.float32) / (10 if name == "wave" else 1))
        (expected,) = by_onnxruntime(bundle, graph.removesuffix(f"_{kind}"), [feeds], server, request)
        (got,) = RUNTIMES[runtime](bundle, graph, [feeds], server, request)
        for name, x in expected.items():
            if x.dtype == bool and kind:  # few of these may flip
                continue
            apart = np.abs(x.ravel().astype(float) - np.ravel(got[name])) / np.maximum(1, np.abs(x.ravel()))
            assert apart.max() < CLOSE[kind], f"{graph} on {runtime}: {name} {apart.max():.1e}"
        tried.add(graph)
        print(f"{runtime}: {graph}")
    assert {"parser", "parser_fp16", "teacher", "labels", "clip_image", "clip_image_fp16"} <= tried


def test_8_bits_give_the_same_events_natively_in_node_and_in_webassembly(bundle, inputs, server, request):
    """Products of 8 bits overflow on some processors, and not in WebAssembly; of 7 bits they do nowhere."""
    import onnx

    weights = [onnx.numpy_helper.to_array(x) for x in onnx.load(bundle / "onnx/parser_int8.onnx").graph.initializer if x.data_type == onnx.TensorProto.INT8]
    assert weights and max(np.abs(x.astype(int)).max() for x in weights if x.ndim) <= 64, "7 bits"
    cases = [dict(np.load(path)) for path in inputs]
    single, native, *others = (run(bundle, graph, cases, server, request) for run, graph in
                               ((by_onnxruntime, "parser"), (by_onnxruntime, "parser_int8"), (by_node, "parser_int8"), (by_browser, "parser_int8")))
    for other in others:
        for a, b, exact in zip(native, other, single):
            for name in ("audio_prob", "visual_prob", "video_prob"):
                print(f"{np.abs(a[name].ravel() - np.ravel(b[name])).max():.1e} apart, {np.abs(a[name] - exact[name]).max():.1e} from single precision")
                assert np.abs(a[name].ravel() - np.ravel(b[name])).max() < APART
            for name in ("audio_event", "visual_event", "av_event"):
                assert np.array_equal(a[name].ravel(), np.ravel(b[name]).astype(bool))


@pytest.mark.parametrize("segments", [10, 3])
def test_node_script_parses_a_features_file_like_parse_py(bundle, tmp_path, segments):
    """Also with a parser that was trained on clips of another length, whose windows are as long."""
    if not shutil.which("node") or not (WEB / "node_modules/onnxruntime-node").is_dir():
        unavailable("Node and onnxruntime-node: npm ci in web/")
    rng = np.random.default_rng(1)
    arrays = dict(audio=rng.standard_normal((23, 512)).astype(np.float32), visual_2d=rng.standard_normal((23, 768)).astype(np.float32))
    np.savez(tmp_path / "x.npz", **arrays)
    (tmp_path / "bundle/onnx").mkdir(parents=True)
    (tmp_path / "bundle/onnx/parser.onnx").symlink_to(bundle / "onnx/parser.onnx")
    info = json.loads((bundle / "bundle.json").read_text()) | dict(segments=segments)
    info["preprocessing"]["recipe_of_training"] = "valor"
    (tmp_path / "bundle/bundle.json").write_text(json.dumps(info))
    result = subprocess.run(["node", WEB / "parse.mjs", tmp_path / "bundle", tmp_path / "x.npz"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    theirs, ours = json.loads(result.stdout), parse.parse(arrays, parse.Bundle(tmp_path / "bundle"))
    assert theirs["warnings"] == parse.warnings(parse.Bundle(tmp_path / "bundle"))
    assert theirs["warnings"][-1] == "trained on features of recipe valor, but videos are prepared by recipe uwav"
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
    page.goto(server)
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
    page.goto(server)
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
        page.locator("#cursor").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.getElementById('video').currentTime") == pytest.approx(2.0, abs=0.1)
        page.keyboard.press("ArrowDown")
        assert "visible, 2 to 3 s: probability" in page.locator("#told").text_content() and page.locator("#told").get_attribute("aria-live") == "polite"
        box = page.locator("canvas").nth(1).bounding_box()
        page.mouse.click(box["x"] + 0.55 * box["width"], box["y"] + 2)  # of ten seconds: into the sixth
        assert page.evaluate("document.getElementById('video').currentTime") == pytest.approx(5.5, abs=0.1)
        page.locator("canvas").nth(1).hover()
        assert "probability" in page.locator("#tip").text_content() and page.locator("#tip").is_visible()
    assert problems == []
    page.close()


READ_BY_PAGE = """async () => {
    const {featuresOfVideo, squareImage} = await import("./parser.js"), video = document.createElement("video"), seconds = [], pictures = [];
    const file = document.getElementById("source").files[0], size = {shape: [1, 1, 1]};
    video.muted = true;
    await new Promise((ready, no) => Object.assign(video, {onloadeddata: ready, onerror: no, src: URL.createObjectURL(file)}));
    const bundle = { // in place of encoders, what they are given
        info: {features: {set: "clip_clap"}, files: {parser: {inputs: {audio: size, visual_2d: size}}}},
        picture: (pixels) => { pictures.push([...squareImage(pixels)]); return {embedding: {data: [0]}}; },
        run: (name, {wave}) => { seconds.push(wave.data); return {embedding: {data: [0]}}; }};
    const features = await featuresOfVideo(video, file, bundle);
    const loud = (second) => Array.from({length: 20}, (_, n) => second.subarray(2400 * n, 2400 * (n + 1)).some((x) => Math.abs(x) > 0.2)); // in each 50 ms
    return {T: Object.values(features)[0].shape[0], pictures, loud: features.audio ? seconds.flatMap(loud) : null};
}"""
VP8 = dict(video_codec="libvpx", audio_codec="libopus")
LIVE = dict(options={"live": "1"})  # as a browser's recorder writes: no length, no index
FRAGMENTS = dict(options={"movflags": "frag_keyframe+empty_moov+delay_moov"})
TIMES = {  # name of the file: how it is made, when its sound is heard (of 6 s)
    "whole.mp4": ({}, (0, 6)), "late.mp4": (dict(sound_start=2.0), (2, 6)), "late.mov": (dict(sound_start=0.5), (0.5, 6)), "early end.mp4": (dict(), (0, 3)),
    "late in fragments.mp4": (dict(sound_start=2.0) | FRAGMENTS, (2, 6)), "late.webm": (dict(sound_start=1.3) | VP8, (1.3, 6)),
    "at 7.5 s.mkv": (dict(start=7.5), (0, 6)), "at 7.5 s, late.webm": (dict(start=7.5, sound_start=2.0) | VP8, (2, 6)), "at 3 s, silent.mkv": (dict(start=3.0), None),
    "recorded.webm": (dict(sound_start=2.0) | VP8 | LIVE, (2, 6)), "recorded, silent.webm": (VP8 | LIVE, None), "recorded, at 7.5 s.webm": (dict(start=7.5) | VP8 | LIVE, (0, 6)),
    "a hole.mp4": ({}, (0, 2, 4, 6)), "a hole.webm": (VP8, (0, 2, 4, 6)), "a hole in fragments.mp4": (FRAGMENTS, (0, 2, 4, 6))}


@pytest.mark.parametrize("name", TIMES)
def test_page_sees_and_hears_every_second_when_python_does(browser, server, tmp_path, name):
    """Late sound, gaps in it, stamps that begin anywhere, recordings whose length is open: by numbered frames and a tone."""
    (options, heard), path = TIMES[name], tmp_path / name
    sound = None if heard is None else clips.tone(heard[-1] - heard[0])[None]
    clips.make(path, 6, sound=sound, **options)
    if name.startswith("a hole"):
        without_sound_between(path, 2, 4, options.get("options"))
    python = decode.read_clip(path)
    page = browser.new_page(bypass_csp=True)
    page.goto(server)
    page.set_input_files("#source", path)
    got = page.evaluate(READ_BY_PAGE)
    page.close()
    numbers = [12, 37, 62, 87, 112, 137]  # of the frames at 0.5, 1.5, ... s, 25 a second
    seen = [clips.number(np.reshape(x, (224, 224, 3)).astype(np.uint8)) for x in got["pictures"]]
    assert got["T"] == python.segments == 6 and np.abs(np.subtract(seen, numbers)).max() <= 2
    assert [clips.number(x) for x in python.images] == seen
    if heard is None:
        assert got["loud"] is None and python.sounds is None
        return
    loud = np.abs(python.sounds.reshape(-1, 2400)).max(1) > 0.2  # (120,)
    middle = 0.05 * np.arange(120) + 0.025
    truth = np.any([(middle > a) & (middle < b) for a, b in zip(heard[::2], heard[1::2])], axis=0)
    near = np.min([np.abs(middle - edge) for edge in heard], axis=0) < 0.15  # encoders smear edges
    assert np.array_equal(np.array(got["loud"])[~near], truth[~near]) and np.array_equal(loud[~near], truth[~near])


def without_sound_between(path: Path, begin: float, end: float, options: dict | None) -> None:
    """The file copied, but the packets of its sound that begin in [begin, end) s."""
    import av

    with av.open(str(path)) as old, av.open(str(path.with_stem("copy")), "w", options=options or {}) as new:
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        for packet in old.demux():
            if packet.dts is not None and not (packet.stream.type == "audio" and begin <= packet.pts * packet.time_base < end):
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    path.with_stem("copy").replace(path)


def test_page_parses_features_of_a_long_video_and_reads_well_in_the_dark_and_on_a_phone(browser, server, bundle, tmp_path):
    rng = np.random.default_rng(1)
    arrays = dict(audio=rng.standard_normal((23, 512)).astype(np.float32), visual_2d=rng.standard_normal((23, 768)).astype(np.float32))
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    expected = parse.parse(arrays, parse.Bundle(bundle)).events()
    for name, options in {"features": dict(viewport=dict(width=1000, height=800)),
                          "dark": dict(viewport=dict(width=1000, height=800), color_scheme="dark"),
                          "forced": dict(viewport=dict(width=1000, height=800), forced_colors="active"),
                          "phone": dict(viewport=dict(width=390, height=800))}.items():
        page = browser.new_page(**options)
        page.goto(f"{server}/?bundle=bundle")
        page.wait_for_function("document.getElementById('status').textContent.startsWith('Bundle of')")
        page.set_input_files("#source", tmp_path / "x.npz")
        page.wait_for_function("window.parsed")
        events = page.evaluate("parsed.events.map(({label, modality, onset, offset}) => [label, modality, onset, offset])")
        assert events == [[e["label"], e["modality"], e["onset"], e["offset"]] for e in expected] and events
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
        colours = page.evaluate("['audible', 'visible', 'both'].map((m) => [getComputedStyle(document.querySelector(`canvas.${m}`)).color, getComputedStyle(document.querySelector(`.legend .${m}`), '::before').backgroundColor])")
        assert len({strip for strip, _ in colours}) == 3 and all(strip == key for strip, key in colours), "also where colours are forced"
        picture(page, name)
        page.close()


def test_page_says_that_a_stream_is_not_there(browser, server, bundle, tmp_path):
    np.savez(tmp_path / "deaf.npz", visual_2d=np.random.default_rng(1).standard_normal((10, 768)).astype(np.float32))
    page = browser.new_page(viewport=dict(width=1000, height=700))
    page.goto(f"{server}/?bundle=bundle")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('Bundle of')")
    page.set_input_files("#source", tmp_path / "deaf.npz")
    page.wait_for_function("window.parsed")
    assert "no sound in it" in page.locator("#status").text_content() and page.evaluate("parsed.probability.audio") is None
    shown = page.locator(".absent")
    assert shown.count() == 2 * page.locator(".event").count() > 0 and shown.first.text_content() == "no sound"
    picture(page, "no-sound")
    page.close()


def test_page_tries_the_sample_shows_a_table_and_saves_what_parse_py_writes(browser, server, bundle, tmp_path):
    page = browser.new_page(viewport=dict(width=1000, height=900))
    page.goto(f"{server}/?bundle=bundle")
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
    rows = [[line.split(",")[:5] for line in text.splitlines()] for text in (saved["csv"], (tmp_path / "x.csv").read_text())]
    assert rows[0] == rows[1] and len(rows[0]) == 1 + len(ours["events"]) and {row[0] for row in rows[0]} == {"video", "sample.npz"}
    page.close()


def test_page_stops_on_demand_and_zooms_into_a_long_file(browser, server, bundle, shared, tmp_path):
    np.savez(tmp_path / "long.npz", **{k: np.random.default_rng(1).standard_normal((150, n)).astype(np.float32) for k, n in (("audio", 512), ("visual_2d", 768))})
    page = browser.new_page(viewport=dict(width=1000, height=900))
    page.goto(f"{server}/?bundle=bundle")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('Bundle of')")
    page.set_input_files("#source", shared / "data/media/BjCEufrlXm4.mp4")
    page.wait_for_function("document.getElementById('done').textContent === '1 of 10 s'")
    picture(page, "computing")
    page.click("#stop")
    page.wait_for_timeout(2000)
    assert page.locator("#status").text_content().startswith("Stopped") and page.locator("#result").is_hidden()
    assert page.evaluate("document.activeElement.id") == "source", "the button that had the focus is gone"
    page.evaluate("window.said = []; new MutationObserver(() => said.push(document.getElementById('status').textContent)).observe(document.getElementById('status'), {childList: true})")
    page.evaluate("window.counted = []; new MutationObserver(() => counted.push(document.getElementById('done').textContent)).observe(document.getElementById('done'), {childList: true})")
    page.set_input_files("#source", tmp_path / "long.npz")
    page.wait_for_function("window.parsed")
    assert page.evaluate("counted").count("150 of 150 s") == 1 and all(words.endswith(" of 150 s") for words in page.evaluate("counted") if words)
    assert page.evaluate("said.length") <= 4, "a screen reader is told of steps, not of seconds"
    assert "2:30" in page.locator(".ruler").text_content()
    page.click("[aria-label=Wider]")
    shown = page.locator(".marks").text_content()
    assert "0:00" in shown and "1:15" in shown and "2:30" not in shown
    page.locator("#pan").fill("75")
    picture(page, "long")
    assert "2:30" in page.locator(".marks").text_content() and "0:00" not in page.locator(".marks").text_content()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    page.close()


def test_page_shows_the_file_chosen_last_even_if_another_is_still_being_parsed(browser, server, bundle, shared, tmp_path):
    arrays = dict(audio=np.ones((7, 512), np.float32), visual_2d=np.ones((7, 768), np.float32))
    np.savez(tmp_path / "second.npz", **arrays)
    page, problems = browser.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"{server}/?bundle=bundle")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('Bundle of')")
    page.set_input_files("#source", shared / "data/media/BjCEufrlXm4.mp4")
    page.wait_for_function("document.getElementById('done').textContent === '1 of 10 s'")
    page.set_input_files("#source", tmp_path / "second.npz")
    page.wait_for_function("window.parsed", timeout=120_000)
    page.wait_for_timeout(3000)  # the first one would have gone on
    assert page.evaluate("parsed.T") == 7 and page.locator("#status").text_content().startswith("second.npz: 7 s")
    assert page.locator("#progress").is_hidden() and problems == []
    page.close()


@pytest.mark.parametrize("files, message", [
    (["x.npz"], "the parser needs audio of shape (T, 512), but audio is float32 (3, 5)"),
    (["text.npz"], "not an .npz file"),
    (["text.mp4"], "text.mp4: the browser cannot read this video"),
    (["good.ts"], "good.ts: the browser cannot read this video"),
])
def test_page_shows_a_sentence_when_something_is_wrong(browser, server, tmp_path, files, message):
    np.savez(tmp_path / "x.npz", audio=np.ones((3, 5), np.float32))
    for name in ("text.npz", "text.mp4"):
        (tmp_path / name).write_text("hello")
    clips.make(tmp_path / "good.ts", 1)
    page = browser.new_page(viewport=dict(width=1000, height=500))
    page.goto(f"{server}/?bundle=bundle")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('Bundle of')")
    page.set_input_files("#source", [tmp_path / f for f in files])
    page.wait_for_selector("#status.alarm")
    assert message in page.locator("#status").text_content()
    picture(page, "error")
    page.close()


@pytest.mark.parametrize("name", ["large.mp4", "large.npz", "large.webm"])
def test_page_says_that_a_file_is_larger_than_a_browser_reads(browser, server, tmp_path, name):
    if name != "large.npz":
        clips.make(tmp_path / name, 1, **({} if name == "large.mp4" else dict(video_codec="libvpx")))
    with open(tmp_path / name, "ab") as file:
        file.truncate(3 << 30)  # of which the disk stores nothing
    page = browser.new_page()
    page.goto(f"{server}/?bundle=bundle")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('Bundle of')")
    page.set_input_files("#source", tmp_path / name)
    page.wait_for_selector("#status.alarm", timeout=60_000)
    assert f"{name}: 3.2 GB are more than a browser reads at once (2 GB)" in page.locator("#status").text_content()
    page.close()


@pytest.mark.parametrize("arguments, said", [
    (["--port", "99999"], "error: port 99999: a port is a number from 0 to 65535; --port N takes another\n"),
    (["--port", "-1"], "error: port -1: a port is a number from 0 to 65535; --port N takes another\n"),
    (["--port", "70000000000000000000"], "error: port 70000000000000000000: a port is a number from 0 to 65535; --port N takes another\n"),
    *((given, "error: --serve shows a page, on which a video is chosen: it takes --port and nothing else\n")
      for given in (["x.mp4"], ["--csv", "x.csv"], ["x.npz", "--port", "0"], ["--variant", "int8"], ["--classes", "dog"]))])
def test_server_says_what_it_does_not_take(bundle, arguments, said):
    done = subprocess.run([sys.executable, "parse.py", "--serve", bundle, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, said)


def test_page_without_a_bundle_says_what_is_missing(browser, server, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.txt").write_text("hello")
    page = browser.new_page()
    page.goto(server)
    page.set_input_files("#bundle", tmp_path / "folder")
    page.wait_for_selector("#status.alarm")
    assert "bundle.json is not in that folder" in page.locator("#status").text_content()
    page.goto(f"{server}/?bundle=nowhere")
    page.wait_for_selector("#status.alarm")
    assert "the server says 404" in page.locator("#status").text_content()
    page.close()


def test_page_stays_awake_while_it_computes_and_says_what_on(browser, server, shared):
    page = browser.new_page()
    page.add_init_script("window.blocked = 0; new PerformanceObserver((list) => { for (const x of list.getEntries()) blocked += x.duration; }).observe({type: 'longtask'})")
    page.goto(f"{server}/?bundle=bundle&device=wasm")
    page.wait_for_selector("#sample:visible")
    begun = page.evaluate("blocked = 0, performance.now()")
    page.set_input_files("#source", shared / "data/media/BjCEufrlXm4.mp4")
    page.wait_for_function("window.parsed", timeout=240_000)
    blocked, took = page.evaluate("blocked"), page.evaluate("performance.now()") - begun
    print(f"{blocked:.0f} of {took:.0f} ms in long tasks")
    assert blocked < 0.3 * took
    assert page.locator("#ran").text_content().startswith("Ran on: WASM, ") and "thread" in page.locator("#ran").text_content()
    page.close()


@pytest.mark.parametrize("variant, said", [("", "Ran on: WebGPU."), ("fp16", "Ran on: WebGPU."), ("int8", "Ran on: WASM, ")])
def test_page_uses_webgpu_and_wasm_where_that_cannot(gpu_browser, server, bundle, variant, said):
    page = gpu_browser.new_page(bypass_csp=True)
    page.goto(f"{server}/?bundle=bundle&device=webgpu&variant={variant}")
    page.click("#sample", timeout=60_000)
    page.wait_for_function("window.parsed", timeout=120_000)
    assert said in page.locator("#ran").text_content() and page.locator("#variant").input_value() == variant
    python = parse.Bundle(bundle, variant=variant or None)
    expected = parse.parse(parse.features_of_file(bundle / "sample.npz", python), python)
    np.testing.assert_allclose(page.evaluate("[...parsed.probability.audio]"), expected.audio_prob.ravel(), atol=0.02 if variant else 1e-4)
    page.close()


def test_page_works_under_its_own_policy_which_lets_nothing_out(browser, server):
    page = browser.new_page(bypass_csp=False)
    page.goto(f"{server}/?bundle=bundle")
    page.click("#sample", timeout=60_000)
    page.locator("#ran", has_text="Ran on").wait_for(timeout=60_000)
    assert page.evaluate("crossOriginIsolated") and page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'out', () => 'refused')") == "refused"
    page.goto((WEB / "index.html").as_uri())
    assert "python parse.py --serve BUNDLE" in page.locator("#status").text_content()
    page.close()


# ---- its server ----


def ask(server: str, path: str, method: str = "GET", host: str | None = None) -> tuple[int, str]:
    """(status, head and body) of a request that no library tidies up."""
    place = server.removeprefix("http://")
    with socket.create_connection(("127.0.0.1", int(place.split(":")[1])), timeout=10) as connection:
        connection.sendall(f"{method} {path} HTTP/1.0\r\nHost: {host or place}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode("latin-1")
    return int(answer.split()[1]), answer


@pytest.fixture(scope="module")
def guarded(bundle, tmp_path_factory):
    """A bundle beside a secret, with links to it."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "secret.txt").write_text("a secret")
    (folder / "bundle/onnx").mkdir(parents=True)
    for name in ("bundle.json", "onnx/parser.onnx"):
        shutil.copy(bundle / name, folder / "bundle" / name)
    (folder / "bundle/sample.npz").symlink_to(folder / "secret.txt")
    (folder / "bundle/onnx/han.onnx").symlink_to(folder / "secret.txt")
    (folder / "bundle/notes.txt").write_text("a secret")
    (folder / "linked").symlink_to(folder / "bundle")
    with served(folder / "linked") as address:
        yield address


@pytest.mark.parametrize("path", ["/../secret.txt", "/bundle/../secret.txt", "/bundle/../../secret.txt", "/bundle/%2e%2e/secret.txt", "/%2e%2e/parse.py",
                                  "/bundle/..%2fsecret.txt", "//etc/passwd", "/bundle//etc/passwd", "/bundle/sample.npz", "/bundle/onnx/han.onnx",
                                  "/bundle/notes.txt", "/bundle/", "/bundle/onnx/", "/serve.py", "/vendor.sh", "/vendor/../serve.py", "/vendor/",
                                  "/package.json", "/node_modules/", "/bundle/onnx/../bundle.json", "/bundle/bundle.json%00", "/bundle/bundle.json/"])
def test_server_gives_nothing_but_page_and_bundle(guarded, path):
    status, answer = ask(guarded, path)
    assert status == 404 and "a secret" not in answer and "root:" not in answer


def test_server_gives_page_and_bundle_to_this_machine_only(guarded):
    for path, kind in {"/": "text/html", "/worker.js": "text/javascript", "/vendor/ort.wasm.min.mjs": "text/javascript", "/bundle/bundle.json": "application/json",
                       "/vendor/ort-wasm-simd-threaded.wasm": "application/wasm", "/bundle/onnx/parser.onnx": "application/octet-stream"}.items():
        status, answer = ask(guarded, path)
        assert status == 200 and f"content-type: {kind}\r\n" in answer.lower()
        assert "Cross-Origin-Opener-Policy: same-origin" in answer and "Cross-Origin-Embedder-Policy: require-corp" in answer
    assert ask(guarded, "/", "HEAD")[0] == 200 and not ask(guarded, "/", "HEAD")[1].partition("\r\n\r\n")[2]
    assert all(ask(guarded, "/bundle/bundle.json", method)[0] == 501 for method in ("POST", "PUT", "DELETE", "OPTIONS"))
    assert ask(guarded, "/bundle/bundle.json", host="evil.example")[0] == 403
    assert ask(guarded, "/bundle/bundle.json", host=guarded.removeprefix("http://").replace("localhost", "127.0.0.1"))[0] == 200


def test_library_of_the_page_is_the_one_that_node_has():
    """vendor.sh fetches the version of package-lock.json; vendor.sha256 describes its files."""
    version = json.loads((WEB / "package-lock.json").read_text())["packages"]["node_modules/onnxruntime-web"]["version"]
    assert f"version={version} " in (WEB / "vendor.sh").read_text()
    folder = WEB / "node_modules/onnxruntime-web/dist"
    if not folder.is_dir():
        unavailable("onnxruntime-web: npm ci in web/")
    for line in (WEB / "vendor.sha256").read_text().splitlines():
        assert hashlib.sha256((folder / line.split()[1]).read_bytes()).hexdigest() == line.split()[0], line
