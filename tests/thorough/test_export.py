"""Exported files: right at every size, self-contained, refused when they are wrong; and parse.py on top of them."""

import csv
import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import need

need("av", "open_clip", "laion_clap", "onnx", "onnxscript", "onnxruntime")

import clips
import export_onnx
import parse
import tiny_extract
import uwav
from common import files
from field import leap, mgn, mm_pyramid
from train import checkpoints, stages

ROOT = Path(__file__).resolve().parents[2]


def run_onnx(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = export_onnx.session(path)
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, inputs)))


@pytest.fixture(scope="module")
def han(finished) -> uwav.HAN:
    return checkpoints.load_model(finished / "seed0/clip_clap/full/han.pt")


# ---- the files ----


def test_bundle_is_complete_and_describes_itself(bundle, finished):
    info = json.loads((bundle / "bundle.json").read_text())
    graphs = {"parser", "teacher", "labels", "clip_image", "clap_audio"}
    smaller = {f"{name}_{kind}" for name in ("parser", "clip_image", "clap_audio") for kind in ("fp16", "int8")}
    assert set(info["files"]) == graphs | smaller
    assert {str(p.relative_to(bundle)) for p in bundle.rglob("*.*")} == {
        "bundle.json", "texts.json", "sample.npz", "README.md", "config.json", "preprocessor_config.json", *(f"onnx/{name}.onnx" for name in info["files"])}
    assert len(info["classes"]) == 25 and info["features"]["inputs"]["audio"] == dict(feature="clap", size=512, per_second=1)
    assert info["files"]["parser"]["outputs"]["audio_event"] == dict(type="bool", shape=["B", "T", 25])
    for file in (info["files"][name] for name in graphs):
        timed = any("T" in x["shape"] for x in file["inputs"].values())
        assert file["verified"]["lengths"] == ([1, 10, 60] if timed else [1])
        assert file["verified"]["batches"] == [1, 2, 7] + [64] * timed and file["verified"]["largest_difference"] < 1e-4
        assert file["bytes"] == (bundle / file["file"]).stat().st_size
    labels = stages.read_labels(finished / "seed0/labels_teacher.npz", "cpu")
    for name, theta in zip(("audio", "visual"), labels.thresholds):
        m = ("audio", "visual").index(name)
        lowest = labels.logits["train"][m].numpy().min((0, 1)) - 1  # what -inf meant in the training
        assert info["label_thresholds"][name] == np.where(theta.numpy() == -np.inf, lowest, theta.numpy()).tolist() and np.isfinite(info["label_thresholds"][name]).all()
    texts = json.loads((bundle / "texts.json").read_text())
    np.testing.assert_allclose(texts["clip"], np.load(finished / "data/llp/text_clip.npy"))


def sample_of(audio: list[str], visual: list[str], truth: list[list[str]] | None = None) -> int:
    """The video that is chosen of these, of one class, when this is predicted: "..##" is an event of its last two seconds."""
    def strips(rows: list[str]) -> torch.Tensor:
        return torch.tensor([[[x == "#"] for x in row] for row in rows])  # (N, T, 1)

    logits = [torch.where(strips(rows), 3.0, -3.0) for rows in (audio, visual)]
    return export_onnx.telling(lambda x: (torch.ones(len(x), 1), *logits), {"audio": np.zeros((len(audio), 4, 1))}, truth and list(map(strips, truth)))


def test_the_sample_of_a_bundle_is_a_video_whose_sound_and_picture_begin_or_end_apart():
    full, left, late, none = "####", "##..", "..##", "...."
    assert sample_of([full, left, full, left], [full, left, left, late]) == 3  # not: alike, or one that never ends
    assert sample_of([full, left, none], [left, left, late]) == 0  # none of that kind: any
    audio, visual = [full, left, ".#..", left], [full, left, "..##", "###."]
    assert sample_of(audio, visual, [audio, visual]) == 2  # both kinds right: the first
    assert sample_of(audio, visual, [[full, left, late, left], [full, left, left, "###."]]) == 3  # the one that is predicted better
    assert sample_of(audio[:2], visual[:2], [[none, left], [none, left]]) == 1  # none of that kind: predicted best


def test_the_recipe_that_features_were_extracted_by_reaches_the_bundle(finished, monkeypatch):
    def recipe_in_bundle() -> str:
        return export_onnx.source_of_run(finished, 0, None, None, None).describe()["preprocessing"]["recipe_of_training"]

    assert recipe_in_bundle() == ""  # the demo world's has none
    index = export_onnx.read_index(finished / "data") | dict(made_with={"LLP/extract.json": '{"recipe": "valor"}'})
    monkeypatch.setattr(export_onnx, "read_index", lambda folder: index)
    assert recipe_in_bundle() == "valor"


def test_every_file_carries_its_description_and_no_trace_of_the_machine(bundle):
    import onnx

    info = json.loads((bundle / "bundle.json").read_text())
    for path in (bundle / "onnx").iterdir():
        model = onnx.load(path)
        properties = {p.key: p.value for p in model.metadata_props}
        assert json.loads(properties["classes"]) == info["classes"], path.name
        for key in ("features", "preprocessing", "label_thresholds", "versions"):
            assert json.loads(properties[key]) == info[key]
        assert properties["licence"] == info["licence"]
        assert max(o.version for o in model.opset_import if o.domain == "") == (17 if path.stem.split("_")[0] in ("parser", "teacher", "labels") else 20)
        content = path.read_bytes()
        for trace in (b"site-packages", b"uwav.py", b"encoders.py", b"htsat.py", b"Traceback", b"pkg.torch", str(ROOT).encode()):
            assert trace not in content, (path.name, trace)
        assert not any(t.HasField("data_location") and t.data_location for t in model.graph.initializer), "one file each"


@pytest.mark.parametrize("B, T", [(1, 1), (2, 10), (5, 33)])
def test_parser_is_the_model_and_the_gate(bundle, han, B, T):
    torch.manual_seed(B)
    inputs = torch.randn(B, T, 512), torch.randn(B, T, 768)
    with torch.no_grad():
        out = han(*inputs)
    audio, visual = out.audio_logit.sigmoid(), out.visual_logit.sigmoid()
    events = uwav.gated_predictions(out.video_prob, audio, visual)
    got = run_onnx(bundle / "onnx/parser.onnx", dict(audio=inputs[0].numpy(), visual_2d=inputs[1].numpy()))
    for name, x in dict(audio_prob=audio, visual_prob=visual, video_prob=out.video_prob).items():
        np.testing.assert_allclose(got[name], x.numpy(), atol=1e-5)
    for name, x in dict(audio_event=events[0], visual_event=events[1], av_event=events[0] & events[1]).items():
        assert got[name].dtype == bool and np.array_equal(got[name], x.numpy())


def test_teacher_serves_a_class_list_it_has_never_seen(bundle, finished):
    teacher = checkpoints.load_model(finished / "seed0/teacher.pt")
    torch.manual_seed(0)
    inputs = dict(audio=torch.randn(2, 9, 512), visual=torch.randn(2, 9, 768), mask=torch.arange(9) < torch.tensor([[9], [4]]),
                  audio_text=torch.randn(3, 512), visual_text=torch.randn(3, 768))
    with torch.no_grad():
        expected = teacher(inputs["audio"], inputs["visual"], inputs["audio_text"], inputs["visual_text"], inputs["mask"])
    got = run_onnx(bundle / "onnx/teacher.onnx", {k: v.numpy() for k, v in inputs.items()})
    for x, name in zip(expected, ("audio_logit", "visual_logit")):
        np.testing.assert_allclose(got[name], x.numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("B", [2, 5, 40])
def test_a_label_does_not_depend_on_what_else_is_labelled(bundle, B):
    """Also with a threshold of -inf, which is "always"."""
    rng = np.random.default_rng(B)
    x = {k: rng.standard_normal((B, 6, 3)).astype(np.float32) for k in ("audio_logit", "visual_logit")} | dict(weak=np.ones((B, 3), np.float32))
    thresholds = dict(audio_threshold=np.array([-np.inf, 0.3, -2], np.float32), visual_threshold=np.array([0, -np.inf, -np.inf], np.float32))
    together = run_onnx(bundle / "onnx/labels.onnx", x | thresholds)
    for n in range(B):
        alone = run_onnx(bundle / "onnx/labels.onnx", {k: v[n : n + 1] for k, v in x.items()} | thresholds)
        assert all(np.array_equal(together[k][n], alone[k][0]) for k in together)
    assert (together["audio_hard"][..., 0] == 1).all() and (together["audio_soft"][..., 0] == 1).all()


def test_a_parser_of_opset_23_has_an_int8_variant(finished, tmp_path):
    export_onnx.main([str(finished), str(tmp_path), "--opset", "23", "--int8"])
    x = dict(audio=np.ones((2, 3, 512), np.float32), visual_2d=np.ones((2, 3, 768), np.float32))
    got = [run_onnx(tmp_path / f"onnx/{name}.onnx", x)["audio_prob"] for name in ("parser", "parser_int8")]
    assert np.abs(got[0] - got[1]).max() < 0.1


def test_released_checkpoints_export_and_give_the_recorded_outputs(golden, tmp_path):
    """Weights recorded from the authors' code, as files of that code, through the real command."""
    cases = {name: golden(name) for name in ("han", "teacher")}
    for name, case in cases.items():
        torch.save({k[3:]: v for k, v in case.items() if k.startswith("sd.")}, tmp_path / f"{name}.pt")
    export_onnx.main(["--released-han", str(tmp_path / "han.pt"), "--released-teacher", str(tmp_path / "teacher.pt"),
                      "--heads", "4", "--visual-3d-dim", "8", str(tmp_path / "out")])
    case = cases["han"]
    inputs = {k: case[k].numpy() for k in ("audio", "visual_3d")}
    inputs["visual_2d"] = case["visual_2d"].reshape(4, 10, 8, 24).mean(2).numpy()  # 8 vectors a second, averaged
    got = run_onnx(tmp_path / "out/onnx/parser.onnx", inputs)
    for name, recorded in dict(video_prob=case["out.video_probs"], audio_prob=case["out.audio_logits"].sigmoid(),
                               visual_prob=case["out.visual_logits"].sigmoid()).items():
        np.testing.assert_allclose(got[name], recorded.numpy(), atol=1e-5)
    case = cases["teacher"]
    mask = torch.arange(14) < case["durations"][:, None]
    got = run_onnx(tmp_path / "out/onnx/teacher.onnx", dict(
        audio=case["audio"].numpy(), visual=case["visual"].numpy(), mask=mask.numpy(),
        audio_text=case["audio_event_feats"].numpy(), visual_text=case["visual_event_feats"].numpy()))
    for name in ("audio", "visual"):
        np.testing.assert_allclose(got[f"{name}_logit"][mask], case[f"out.{name}_logits"][mask].numpy(), atol=1e-4)
    case = cases["han"]
    got = run_onnx(tmp_path / "out/onnx/labels.onnx", dict(
        audio_logit=case["audio_teacher_logits"].numpy(), visual_logit=case["visual_teacher_logits"].numpy(),
        weak=case["weak_label"].float().numpy(), audio_threshold=case["audio_thresholds"].float().numpy(),
        visual_threshold=case["visual_thresholds"].float().numpy()))
    for name in ("audio", "visual"):
        np.testing.assert_array_equal(got[f"{name}_hard"], case[f"{name}_hard"].numpy())


def test_the_public_han_of_2020_exports_and_gives_the_recorded_outputs(golden, tmp_path):
    """Which is symmetric; VALOR's is not, as UWAV's."""
    case = {k.removeprefix("han."): v for k, v in golden("public_hans").items() if k.startswith("han.")}
    torch.save({k[3:]: v for k, v in case.items() if k.startswith("sd.")}, tmp_path / "net.pt")
    export_onnx.main(["--released-han", str(tmp_path / "net.pt"), "--heads", str(int(case["heads"])), str(tmp_path / "out")])
    assert json.loads((tmp_path / "out/bundle.json").read_text())["features"]["set"] == "base"
    inputs = {k: case[f"in.{k}"].numpy() for k in ("audio", "visual_3d")} | dict(visual_2d=case["in.visual_2d"].reshape(3, 10, 8, 8).mean(2).numpy())
    got = run_onnx(tmp_path / "out/onnx/parser.onnx", inputs)
    np.testing.assert_allclose(got["video_prob"], case["out.video_prob"].numpy(), atol=1e-5)
    np.testing.assert_allclose(np.stack([got["audio_prob"], got["visual_prob"]], 2), case["out.segment_prob"].numpy(), atol=1e-5)


@pytest.mark.parametrize("network, config", [
    (leap.LEAP, leap.LEAPConfig(text_dim=7, decoder_heads=2, decoder_feedforward=12, decoder_layers=1)), (mm_pyramid.MMPyramid, mm_pyramid.MMPyramidConfig()),
    (mgn.MGN, mgn.MGNConfig(cross_layers=1))], ids=("LEAP", "MMPyramid", "MGN"))
@pytest.mark.parametrize("T", [1, 23])
def test_other_networks_export_and_are_right_at_sizes_never_traced_nor_tried(networks, network, config, T):
    """Batches and lengths beside those that `keep` tries itself."""
    path, model = networks(network, config)
    torch.manual_seed(T)
    inputs = dict(audio=torch.randn(5, T, 6), visual_2d=torch.randn(5, T, 8), visual_3d=torch.randn(5, T, 3))
    with torch.no_grad():
        expected = export_onnx.probabilities(model(*inputs.values()))
    got = run_onnx(path, {k: x.numpy() for k, x in inputs.items()})
    for name, x in zip(export_onnx.PROBABILITIES, expected, strict=True):
        np.testing.assert_allclose(got[name], x.numpy(), atol=1e-5)
    gate = got["video_prob"][:, None] > uwav.GATE
    for m in ("audio", "visual"):
        np.testing.assert_array_equal(got[f"{m}_event"], (got[f"{m}_prob"] > uwav.GATE) & gate)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A network of random weights, small, and its parser.onnx: each is traced once."""
    @functools.cache
    def make(network: type, config: uwav.HANConfig) -> tuple[Path, uwav.HAN]:
        small = dict(classes=4, audio_dim=6, visual_2d_dim=8, visual_3d_dim=3, hidden=16, heads=2, feedforward=24, layers=1)
        torch.manual_seed(0)
        model = network(dataclasses.replace(config, **small)).eval()
        for x in model.state_dict().values():
            x.normal_(std=0.3)
        out = tmp_path_factory.mktemp(network.__name__)
        (out / "onnx").mkdir()
        export_onnx.keep(export_onnx.exports_of(model, None)["parser"], out, {})
        return out / "onnx/parser.onnx", model

    return make


def test_a_teacher_alone_is_exported_and_heads_that_are_guessed_are_said(golden, tmp_path, capsys):
    torch.save({k[3:]: v for k, v in golden("teacher").items() if k.startswith("sd.")}, tmp_path / "teacher.pt")
    export_onnx.main(["--released-teacher", str(tmp_path / "teacher.pt"), "--teacher-heads", "4", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert {p.name for p in (tmp_path / "out/onnx").iterdir()} == {"teacher.onnx", "labels.onnx"} and "a teacher alone" in said
    assert "heads" not in said
    checkpoints.load_model(tmp_path / "teacher.pt")
    assert "does not say how many attention heads it has; 16 are assumed" in capsys.readouterr().out


def test_the_model_card_tells_scores_of_all_seeds_and_its_python_runs_as_printed(bundle, finished, tmp_path):
    yaml = pytest.importorskip("yaml")
    _, metadata, text = (bundle / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    metadata, info = yaml.safe_load(metadata), json.loads((bundle / "bundle.json").read_text())
    told = {m["name"]: m["value"] for m in metadata["model-index"][0]["results"][0]["metrics"]}
    seeds = [json.loads((finished / f"seed{k}/clip_clap/full/scores_test.json").read_text()) for k in (0, 1)]
    assert told == {name: pytest.approx(np.mean([x[name] for x in seeds]), abs=0.006) for name in uwav.SCORES}
    assert f"seg_type {np.mean([x['seg_type'] for x in seeds]):.1f}±{np.std([x['seg_type'] for x in seeds], ddof=1):.1f}" in text
    assert "A DRY RUN (invented features" in text and "$" not in text and all(f"`{x['file']}`" in text for x in info["files"].values())
    config = json.loads((bundle / "config.json").read_text())
    assert list(config["id2label"].values()) == info["classes"] and config["label2id"]["Clapping"] == 24
    code = text.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=bundle, capture_output=True, text=True)
    assert done.returncode == 0 and "'audio_event': (1, 10, 25)" in done.stdout, done.stderr


def test_variants_are_measured_against_fp32_on_the_test_split(bundle):
    files = json.loads((bundle / "bundle.json").read_text())["files"]
    rows = dict(fp32=files["parser"], fp16=files["parser_fp16"], int8=files["parser_int8"])
    lines = dict(line.split(":", 1) for line in subprocess.run(["lscpu"], capture_output=True, text=True, env=os.environ | dict(LC_ALL="C")).stdout.splitlines())
    cpu, flags = lines["Model name"].strip(), lines["Flags"]
    assert rows["int8"]["weight_bits"] == 7 and rows["fp16"]["weight_bits"] == 16
    assert rows["fp16"]["bytes"] < 0.6 * rows["fp32"]["bytes"] and rows["int8"]["bytes"] < 0.6 * rows["fp32"]["bytes"]
    for kind, limit in dict(fp32=1e-30, fp16=0.01, int8=0.5).items():
        measured = rows[kind]["measured"]
        assert measured["processor"].removesuffix(", with VNNI") == f"{cpu}, {os.cpu_count()} cores" and ("VNNI" in measured["processor"]) == ("_vnni" in flags)
        assert measured["on"].startswith("the test split of demo world") and measured["predictions"] == 2 * 40 * 10 * 25
        assert 0 <= measured["largest_difference"] < limit and set(measured["scores"]) == set(uwav.SCORES)
    got = {kind: run_onnx(bundle / rows[kind]["file"], dict(audio=np.ones((2, 3, 512), np.float32), visual_2d=np.ones((2, 3, 768), np.float32)))
           for kind in rows}
    assert np.abs(got["fp16"]["audio_prob"] - got["fp32"]["audio_prob"]).max() < 0.01


def test_the_same_export_is_not_done_again_but_another_is(finished, bundle, tmp_path, capsys):
    export_onnx.main([str(finished), str(tmp_path)])
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.rglob("*.*")}
    capsys.readouterr()
    export_onnx.main([str(finished), str(tmp_path)])
    assert "exported before, kept" in capsys.readouterr().out
    assert before == {p.name: p.stat().st_mtime_ns for p in tmp_path.rglob("*.*")}
    (tmp_path / "onnx/labels.onnx").write_bytes(b"cut short")
    export_onnx.main([str(finished), str(tmp_path), "--int8"])
    assert (tmp_path / "onnx/parser_int8.onnx").exists() and (tmp_path / "onnx/labels.onnx").stat().st_size > 1_000


def test_fusion_clap_exports_as_well(tmp_path, monkeypatch):
    from video import encoders

    monkeypatch.setattr(encoders, "clap_architecture", lambda state, weights: (True, "tiny", 768))
    monkeypatch.setattr(export_onnx, "TRIED", ((1, 1), (2, 1), (7, 1)))
    export = export_onnx.export_of_encoder("clap_audio", None)
    with export_onnx.free_batch_size_of_htsat():
        assert export_onnx.keep(export, tmp_path, {})["verified"]["largest_difference"] < 1e-4


# ---- wrong exports are not kept ----


@pytest.mark.parametrize("largest, kept", [(3.0, True), (3e4, False)])
def test_a_variant_of_an_encoder_whose_embeddings_are_far_off_is_not_kept(tmp_path, capsys, largest, kept):
    """One large weight, of an input that is always 0, leaves 8 bits nothing for the others."""
    torch.manual_seed(0)
    weight, x = torch.randn(64, 32), torch.randn(9, 64)
    weight[0], x[:, 0] = largest, 0.0
    export = export_onnx.Export("clip_image", lambda x: torch.nn.functional.normalize(x @ weight, dim=-1), dict(x=("B", 64)), ("embedding",))
    entry = export_onnx.keep(export, tmp_path, {})
    entries = export_onnx.keep_variants("clip_image", ["int8"], tmp_path, entry, dict(x=x.numpy()), None, "nine inputs")
    assert entries["clip_image"]["measured"]["smallest_cosine"] == pytest.approx(1, abs=1e-5)
    assert ("clip_image_int8" in entries) is (tmp_path / "onnx/clip_image_int8.onnx").exists() is kept
    assert ("not kept" in capsys.readouterr().out) is not kept


def bakes_its_batch(x: torch.Tensor) -> torch.Tensor:
    """As HTSAT does: right at the batch size it was traced with."""
    return x.reshape(-1, x.shape[1]) * float(int(torch.tensor(x.shape[0]))) if not torch.compiler.is_exporting() else x * 3.0


def test_a_file_that_is_right_only_at_the_traced_size_is_not_kept(tmp_path):
    export = export_onnx.Export("bad", bakes_its_batch, dict(x=("B", 5)), ("y",))
    with pytest.raises(ValueError, match="bad.onnx: not written, onnxruntime and PyTorch differ by"):
        export_onnx.keep(export, tmp_path, {})
    assert not list(tmp_path.rglob("*.*"))


def test_out_of_tolerance_is_exit_status_1_and_no_bundle(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(export_onnx, "TOLERANCE", -1.0)
    with pytest.raises(SystemExit) as stop:
        export_onnx.main([str(finished), str(tmp_path / "out")])
    assert stop.value.code.startswith("error: ") and "parser.onnx: not written" in stop.value.code
    assert not list((tmp_path / "out").iterdir())


def test_an_export_that_fails_leaves_the_earlier_bundle_as_it_was(finished, bundle, tmp_path, monkeypatch):
    shutil.copytree(bundle, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").rglob("*.*")}
    monkeypatch.setattr(export_onnx, "TOLERANCE", -1.0)
    with pytest.raises(SystemExit, match="parser.onnx: not written"):
        export_onnx.main([str(finished), str(tmp_path / "out")])
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "out").rglob("*.*")}


@pytest.mark.parametrize("arguments, message", [
    (["nowhere", "OUT"], "nowhere/data/index.json: no such file"),
    (["OUT"], "name RUN and OUT"),
    (["RUN", "OUT", "--features", "base"], "base/full/han.pt: no such file"),
    (["RUN", "OUT", "--texts", "--clip-weights", "random"], "--texts needs --clip-weights and --clap-weights"),
    (["RUN", "OUT", "--row", "nothing"], "so .* holds no trained HAN"),
    (["--released-han", "nothing.pt", "OUT"], "nothing.pt: no such file"),
])
def test_bad_input_is_one_sentence(finished, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message) as stop:
        export_onnx.main([str(finished) if a == "RUN" else a for a in arguments])
    assert stop.value.code.startswith("error: ") and "\n" not in stop.value.code


@pytest.mark.parametrize("changed, said", [(dict(data="0" * 64), "labels_teacher.npz: made from other data than .*data"),
                                           (dict(teacher="0" * 64), "labels_teacher.npz: made by another teacher than .*seed0/teacher.pt")])
def test_files_of_another_run_are_refused_before_anything_is_written(finished, tmp_path, changed, said):
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(finished, run)
    labels = files.read_arrays(run / "seed0/labels_teacher.npz")
    settings = np.array(json.dumps(json.loads(str(labels.pop("settings"))) | changed))
    files.write_arrays(run / "seed0/labels_teacher.npz", settings=settings, **labels)
    with pytest.raises(SystemExit, match=said):
        export_onnx.main([str(run), str(out)])
    assert not list(out.rglob("*"))


def test_a_parser_of_other_data_or_another_model_in_its_place_is_refused(finished, tmp_path):
    run, out, han = tmp_path / "run", tmp_path / "out", tmp_path / "run/seed0/clip_clap/full/han.pt"
    shutil.copytree(finished, run)
    content = checkpoints.load_file(han)
    for settings in (content["settings"] | dict(data="0" * 64), None):
        torch.save(content | dict(settings=settings), han)
        with pytest.raises(SystemExit, match="full/han.pt: made from other data than .*data"):
            export_onnx.main([str(run), str(out)])
    shutil.copy(run / "seed0/teacher.pt", han)
    with pytest.raises(SystemExit, match="han.pt: holds a Teacher, expected a HAN"):
        export_onnx.main([str(run), str(out)])
    assert not list(out.rglob("*"))


# ---- parse.py ----


def features(T: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return dict(audio=rng.standard_normal((T, 512)).astype(np.float32), visual_2d=rng.standard_normal((T, 768)).astype(np.float32))


@pytest.mark.parametrize("T", [1, 7, 10])
def test_short_features_are_parsed_in_one_piece_like_the_model(bundle, han, T):
    x = features(T)
    with torch.no_grad():
        out = han(torch.from_numpy(x["audio"])[None], torch.from_numpy(x["visual_2d"])[None])
    result = parse.parse(x, parse.Bundle(bundle))
    np.testing.assert_allclose(result.audio_prob, out.audio_logit[0].sigmoid().numpy(), atol=1e-5)
    np.testing.assert_allclose(result.video_prob, out.video_prob[0].numpy(), atol=1e-5)
    expected = uwav.gated_predictions(out.video_prob, out.audio_logit.sigmoid(), out.visual_logit.sigmoid())
    assert np.array_equal(result.audio_event, expected[0][0].numpy())


@pytest.mark.parametrize("T", [11, 20, 23, 60])
def test_long_features_are_parsed_in_windows_from_every_second_on(bundle, han, T):
    """Against a slow version: every window by itself through PyTorch, every segment averaged over its windows."""
    x, outs = features(T), {}
    result = parse.parse(x, parse.Bundle(bundle))
    for s in range(T - 9):
        with torch.no_grad():
            outs[s] = han(torch.from_numpy(x["audio"][s : s + 10])[None], torch.from_numpy(x["visual_2d"][s : s + 10])[None])
    for t in range(T):
        covering = [s for s in outs if s <= t < s + 10]
        weights = [min(t - s, 9 - (t - s)) + 1 for s in covering]
        p = np.average([outs[s].visual_logit[0, t - s].sigmoid().numpy() for s in covering], axis=0, weights=weights)
        admitted = np.any([outs[s].video_prob[0].numpy() > 0.5 for s in covering], axis=0)
        np.testing.assert_allclose(result.visual_prob[t], p, atol=1e-5)
        clear = np.abs(p - 0.5) > 1e-4
        assert np.array_equal(result.visual_event[t][clear], ((p > 0.5) & admitted)[clear])
    assert np.array_equal(result.av_event, result.audio_event & result.visual_event)


def test_what_is_found_does_not_depend_on_where_a_long_file_begins(bundle):
    """But within a window of its beginning."""
    x, b = features(60), parse.Bundle(bundle)
    whole, later = parse.parse(x, b), parse.parse({k: v[7:] for k, v in x.items()}, b)
    for name in ("audio_prob", "visual_prob"):
        np.testing.assert_allclose(getattr(whole, name)[17:], getattr(later, name)[10:], atol=1e-5)
    assert np.array_equal(whole.audio_event[17:], later.audio_event[10:]) and whole.audio_event[17:].any()


def test_an_hour_of_features_takes_no_more_memory_than_its_arrays(bundle):
    code = """
import resource, sys, numpy as np, parse
x = dict(audio=np.ones((int(sys.argv[2]), 512), np.float32), visual_2d=np.ones((int(sys.argv[2]), 768), np.float32))
parse.parse(x, parse.Bundle(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)"""
    mb = [float(subprocess.run([sys.executable, "-c", code, str(bundle), str(T)], cwd=ROOT, capture_output=True, text=True, check=True).stdout)
          for T in (60, 3600)]
    assert mb[1] - mb[0] < 60, mb  # MB; the arrays take 18


def test_events_are_the_runs_of_positive_segments():
    event = np.zeros((6, 2), bool)
    event[[0, 1, 4], 1] = True
    prob = np.full((6, 2), 0.25, np.float32)
    result = parse.Parse(["dog", "cat"], prob, prob, prob[0], event, np.zeros_like(event), np.zeros_like(event))
    assert result.events() == [dict(label="cat", modality="audible", onset=0, offset=2, probability=0.25),
                               dict(label="cat", modality="audible", onset=4, offset=5, probability=0.25)]
    assert parse.timeline(result).splitlines()[1:] == ["cat audible   ##..#.", "    visible   ......", "    both      ......"]


def command(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / "parse.py"), *map(str, arguments)], capture_output=True, text=True, timeout=300)


def test_video_by_the_command_equals_extract_and_the_model(bundle, han, tmp_path, shared):
    """The real clip: features.py extract with the same random encoders, then PyTorch, against parse.py alone."""
    subprocess.run([sys.executable, tiny_extract.__file__, "extract", shared / "data/media", tmp_path], check=True, capture_output=True, timeout=300)
    clip, clap = (torch.from_numpy(np.load(tmp_path / f"feats_{n}/segment_feats/BjCEufrlXm4.npy"))[None] for n in ("CLIP", "CLAP"))
    with torch.no_grad():
        out = han(clap, clip)
    result = command(shared / "data/media/BjCEufrlXm4.mp4", "--bundle", bundle, "--json", tmp_path / "x.json", "--csv", tmp_path / "x.csv",
                     "--plot", tmp_path / "x.png")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("RANDOM WEIGHTS") == 2 and "clip_image CPU" in result.stdout
    content = json.loads((tmp_path / "x.json").read_text())
    for name, expected in dict(audio_prob=out.audio_logit[0].sigmoid(), visual_prob=out.visual_logit[0].sigmoid(),
                               video_prob=out.video_prob[0]).items():
        np.testing.assert_allclose(content[name], expected.numpy(), atol=1e-3)
    with open(tmp_path / "x.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["label"], r["modality"], int(r["onset"]), int(r["offset"])) for r in rows] == [
        (e["label"], e["modality"], e["onset"], e["offset"]) for e in content["events"]]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("gone, kept, modality, reason", [("visual_2d", "audio", "visible", "no picture"),
                                                          ("audio", "visual_2d", "audible", "no sound")])
def test_a_stream_that_is_not_there_has_no_events_and_no_probabilities(bundle, han, tmp_path, gone, kept, modality, reason):
    """The other one is parsed as it would be beside zeros."""
    rng, sizes = np.random.default_rng(2), parse.Bundle(bundle).sizes
    x = {kept: rng.standard_normal((10, sizes[kept])).astype(np.float32)}
    np.savez(tmp_path / "x.NPZ", **x)
    (tmp_path / "x.NPZ.npz").rename(tmp_path / "x.NPZ")  # an ending in capitals is one
    run = [sys.executable, "parse.py", tmp_path / "x.NPZ", "--bundle", bundle, "--json", tmp_path / "x.json", "--plot", tmp_path / "x.png"]
    done = subprocess.run([str(a) for a in run], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and f"({reason})" in done.stdout, done.stderr
    content, names = json.loads((tmp_path / "x.json").read_text()), dict(audible="audio_prob", visible="visual_prob")
    assert content[names.pop(modality)] is None and {e["modality"] for e in content["events"]} <= set(names)
    whole = parse.parse(x | {gone: np.zeros((10, sizes[gone]), np.float32)}, parse.Bundle(bundle))
    (other,) = names.values()
    np.testing.assert_allclose(content[other], getattr(whole, other), atol=1e-6)
    expected = [e for e in whole.events() if e["modality"] in names]
    assert content["events"] == expected and expected and (tmp_path / "x.png").stat().st_size > 1000


def test_features_of_a_video_can_be_kept_and_parsed_again(bundle, tmp_path):
    path = clips.make(tmp_path / "a.mp4", 2, sound=clips.tone(2)[None])
    first = command(path, "--bundle", bundle, "--save-features", tmp_path / "a.npz", "--json", tmp_path / "a.json")
    again = command(tmp_path / "a.npz", "--bundle", bundle, "--json", tmp_path / "b.json")
    assert first.returncode == again.returncode == 0
    a, b = (json.loads((tmp_path / f"{x}.json").read_text()) for x in "ab")
    assert all(a[k] == b[k] for k in a.keys() - {"source", "providers"})


def test_a_variant_that_the_bundle_does_not_have_is_one_sentence(finished, tmp_path):
    export_onnx.main([str(finished), str(tmp_path)])
    done = command(tmp_path / "sample.npz", "--bundle", tmp_path, "--variant", "int8")
    assert done.returncode == 1 and done.stderr.strip().endswith("the bundle has no int8 parser; export it with --int8")


@pytest.mark.parametrize("options, said", [
    (["--plot", "x.xyz"], "x.xyz: not a kind of picture; known are "), (["--plot", "x.mp3"], "x.mp3: not a kind of picture"), (["--plot", "a/x.docx"], "docx: not a kind of picture"),
    (["--json", "file/x.json"], "file/x.json: cannot be written, .*file is not a folder"), (["--csv", "file/a/x.csv"], "file is not a folder"),
    (["--save-features", "file/x.npz"], "file is not a folder"), (["--plot", "file/x.png"], "file is not a folder"),
    (["--vtt", "file/x.vtt"], "file is not a folder"), (["--labels", "a.mp4"], "an output is named twice, or is the source itself"), (["--vtt", "x", "--labels", "x"], "an output is named twice"),
    (["--threshold", "0"], "--threshold takes a number between 0 and 1"), (["--threshold", "nan"], "--threshold takes"), (["--top", "-1"], "--top one from 0 on"),
    (["--csv", "."], "not a file"), (["--json", "/dev/full"], "not a file"),
    (["--json", "x", "--csv", "./x"], "an output is named twice, or is the source itself"), (["--json", "a.mp4"], "an output is named twice, or is the source itself"),
    (["--classes", "dog"], "the bundle has no clap_text.onnx; export it with --clap-weights and --texts"), (["--classes", "dog,dog"], "names of classes, each once"),
    (["--variant", "int4"], None)])
def test_what_would_fail_after_the_work_fails_before_it(bundle, tmp_path, monkeypatch, capsys, options, said):
    clips.make(tmp_path / "a.mp4", 1, sound=clips.tone(1)[None])
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("video.decode.read_clip", lambda *a, **k: pytest.fail("the video was decoded first"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match=said) as stop:
        parse.main(["a.mp4", "--bundle", str(bundle), *options])
    assert said is None or stop.value.code.startswith("error: ") and "\n" not in stop.value.code
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("package, options", [("matplotlib", ["--plot", "x.png"]), ("tokenizers", ["--classes", "dog"]), ("ftfy", ["--classes", "Hündchen"])])
def test_a_package_that_is_missing_is_said_before_the_work(bundle, tmp_path, monkeypatch, package, options):
    clips.make(tmp_path / "a.mp4", 1, sound=clips.tone(1)[None])
    monkeypatch.setattr("video.decode.read_clip", lambda *a, **k: pytest.fail("the video was decoded first"))
    for name in [package, *(m for m in sys.modules if m.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not there
    if package == "ftfy":
        monkeypatch.setattr(parse.Bundle, "session", lambda self, name: None)
        monkeypatch.setattr(parse, "texts_of", lambda classes, bundle: [parse.cleaned(c) for c in classes])
    with pytest.raises(SystemExit, match=f"error: this needs {package}"):
        parse.main([str(tmp_path / "a.mp4"), "--bundle", str(bundle), *options])


def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(bundle, tmp_path):
    np.savez(tmp_path / "x.npz", audio=np.ones((3, 512), np.float32), visual_2d=np.ones((3, 768), np.float32))
    run = [sys.executable, "parse.py", str(tmp_path / "x.npz"), "--bundle", str(bundle), "--device", "cuda"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 1 and done.stderr.strip().startswith("error: --device cuda: onnxruntime finds no GPU")


def test_parse_imports_no_torch_not_even_for_a_video(bundle, tmp_path):
    path = clips.make(tmp_path / "a.mp4", 1, sound=clips.tone(1)[None])
    result = subprocess.run([sys.executable, "-X", "importtime", str(ROOT / "parse.py"), str(path), "--bundle", str(bundle)],
                            capture_output=True, text=True, timeout=300)
    imported = {line.split("|")[-1].strip().split(".")[0] for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert result.returncode == 0 and {"numpy", "onnxruntime", "av", "PIL"} <= imported
    assert not imported & {"torch", "open_clip", "laion_clap", "transformers", "matplotlib", "uwav", "features", "tqdm"}


def test_bad_sources_and_bundles_are_one_sentence_each(bundle, tmp_path):
    np.savez(tmp_path / "good.npz", **features(3))
    np.savez(tmp_path / "narrow.npz", audio=np.ones((3, 5), np.float32), visual_2d=np.ones((3, 768), np.float32))
    np.savez(tmp_path / "uneven.npz", audio=np.ones((3, 512), np.float32), visual_2d=np.ones((2, 768), np.float32))
    np.savez(tmp_path / "nan.npz", audio=np.full((3, 512), np.nan, np.float32), visual_2d=np.ones((3, 768), np.float32))
    np.savez(tmp_path / "pickled.npz", audio=np.array([{}], object))
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "text.mp4").write_text("hello")
    for name, message in {"narrow.npz": "the parser needs audio of shape (T, 512), but audio is float32 (3, 5)", "nan.npz": "audio holds NaN",
                          "uneven.npz": "visual_2d has another length than audio", "pickled.npz": "pickled.npz: not an .npz file",
                          "text.npz": "text.npz: not an .npz file", "no.npz": "no.npz: no such file",
                          "text.mp4": "text.mp4: cannot be read: "}.items():
        result = command(tmp_path / name, "--bundle", bundle)
        assert result.returncode == 1 and result.stderr.startswith("error: ") and message in result.stderr, result.stderr
        assert result.stderr.count("\n") == 1
    info = json.loads((bundle / "bundle.json").read_text())
    bundles = {"empty": None, "text": "hello", "list": "[]", "old": json.dumps(info | dict(format=0)), "lost": json.dumps(info),
               "other": json.dumps(info)}
    for name, content in bundles.items():
        (tmp_path / name).mkdir()
        if content is not None:
            (tmp_path / name / "bundle.json").write_text(content)
    (tmp_path / "other/onnx").mkdir()
    (tmp_path / "other/onnx/parser.onnx").write_bytes(b"x" * 1000)
    for name, message in {"empty": "no such file; make a bundle", "text": "not the description of a bundle", "list": "not the description",
                          "old": "a bundle of format 0", "lost": "parser.onnx: no such file, though", "other": "its checksum differs"}.items():
        result = command(tmp_path / "good.npz", "--bundle", tmp_path / name)
        assert result.returncode == 1 and result.stderr.startswith("error: ") and message in result.stderr, result.stderr


def test_a_bundle_without_encoders_says_so_when_given_a_video(bundle, tmp_path):
    info = json.loads((bundle / "bundle.json").read_text())
    del info["files"]["clip_image"], info["files"]["clap_audio"]
    (tmp_path / "bundle.json").write_text(json.dumps(info))
    path = clips.make(tmp_path / "a.mp4", 1, sound=clips.tone(1)[None])
    result = command(path, "--bundle", tmp_path)
    assert result.returncode == 1 and "the bundle has no clap_audio.onnx; export it with --clap-weights" in result.stderr
