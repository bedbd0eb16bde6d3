"""`uwav.py field`, run for real on a tiny world: three tables, each system by its own rule, what is there is kept."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import report
import uwav
from conftest import TRAINED, need, unavailable
from data.splits import load_truth
from field import coleaf, jomold
from train import checkpoints, cli, field, stages

FIELD = "seed0/clip_clap/field"
WEB = Path(__file__).resolve().parents[2] / "web"


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("field") / "run"
    shutil.copytree(finished, folder)
    cli.main(["field", str(folder / "data"), str(folder), *TRAINED])
    return folder


def test_three_tables_hold_every_system_labels_and_networks_and_the_paper_s_numbers(run):
    made, text = json.loads((run / "field.json").read_text()), (run / "field.txt").read_text()
    assert list(x for x in field.SYSTEMS if x in made["scores"]) == list(field.SYSTEMS)
    assert made["scores"].keys() - field.SYSTEMS == {f"{net}_{row}" for net in ("mgn", "mm_pyramid") for row in field.LABELS}
    assert all(set(values[0]) == set(uwav.SCORES) for values in made["scores"].values())
    assert set(made["labels"]) == set(field.LABELLERS) and [d["second"] for d in made["differences"]] == ["full"] * 6
    for system in field.SYSTEMS.values():
        assert system.title in text and system.rule in text
        assert system.paper is None or "".join(f"{x:>10.1f}" for x in system.paper) in text
    assert not any(word in text for word in ("PPL", "nan"))


def test_rows_of_the_ablation_are_taken_as_they_are(run, finished):
    ablation = json.loads((finished / "ablation.json").read_text())["scores"]["clip_clap"]
    made = json.loads((run / "field.json").read_text())["scores"]
    for row in ("video_only", "valor", "full"):
        assert made[row][0] == ablation[row][0]
        assert (run / f"seed0/clip_clap/{row}/han.pt").read_bytes() == (finished / f"seed0/clip_clap/{row}/han.pt").read_bytes()


@pytest.mark.parametrize("name, module", [("jomold", jomold), ("coleaf", coleaf)])
def test_a_system_with_a_rule_of_its_own_is_scored_by_it_and_beside_it_by_the_joint_gate(run, name, module):
    made, truth = json.loads((run / "field.json").read_text()), load_truth(run / "data", "test")
    model = checkpoints.load_model(run / FIELD / name / "han.pt")
    data = stages.Context(run / "data", "demo").target("test", "clip_clap")
    own = uwav.parsing_scores(*module.predictions(model, data), *truth)
    video, audio, visual = module.joint(model, data)
    joint = uwav.parsing_scores((audio > 0.5) & (video > 0.5)[:, None], (visual > 0.5) & (video > 0.5)[:, None], *truth)
    assert own == pytest.approx(made["scores"][name][0]) and joint["seg_type"] == pytest.approx(made["joint"][name][0])
    saved = stages.read_predictions(run / FIELD / name / "predictions_test.npz", run / "data")
    assert all(torch.equal(a, b) for a, b in zip(saved, module.predictions(model, data)))


def test_the_noise_ratios_are_those_of_the_estimator_and_both_systems_say_from_which_they_learnt(run):
    estimator = checkpoints.load_model(run / FIELD / "noise/han.pt")
    data = stages.Context(run / "data", "demo").target("train", "clip_clap")
    ratios = [x.tolist() for x in jomold.noise_ratios(estimator, data)]
    with np.load(run / FIELD / "noise/ratios.npz") as file:
        assert [file["audio"].tolist(), file["visual"].tolist()] == ratios
    for name in ("jomold", "coleaf"):
        assert checkpoints.load_file(run / FIELD / name / "han.pt")["settings"]["made_from"] == dict(ratios=ratios)


def test_a_second_run_trains_nothing_and_says_the_same(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.pt")}
    text = (run / "field.txt").read_text()
    cli.main(["field", str(run / "data"), str(run), *TRAINED])
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.pt")} == before
    assert (run / "field.txt").read_text() == text and text in capsys.readouterr().out


def test_some_systems_alone_and_what_was_made_with_other_settings_is_refused(run, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    cli.main(["field", str(tmp_path / "run/data"), str(tmp_path / "run"), *TRAINED, "--systems", "leap"])
    made = json.loads((tmp_path / "run/field.json").read_text())
    assert set(made["scores"]) == {"video_only", "valor", "full", "leap"} and set(made["labels"]) == {"segment", "teacher"}
    assert made["scores"]["leap"] == json.loads((run / "field.json").read_text())["scores"]["leap"]
    with pytest.raises(SystemExit, match="made with other settings"):
        cli.main(["field", str(tmp_path / "run/data"), str(tmp_path / "run"), *TRAINED, "--systems", "leap", "--set", "han.dropout=0.2"])


def test_the_report_has_the_three_tables(run):
    report.main([str(run)])
    page = (run / "report.html").read_text()
    assert "The systems of the paper&#x27;s tables" in page and all(f"<th>{s.title}</th>" in page for s in field.SYSTEMS.values())


@pytest.mark.parametrize("name, kind", [("jomold", "JoMoLD"), ("coleaf", "CoLeaF")])
def test_a_rule_of_its_own_takes_no_other_gate_and_is_not_exported(run, tmp_path, name, kind):
    need("onnx", "onnxscript", "onnxruntime")
    import export_onnx

    with pytest.raises(SystemExit, match=f"a {kind} decides by a rule of its own"):
        cli.main(["evaluate", str(run / "data"), str(run / FIELD / name / "han.pt"), "--gate", "all", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"a {kind} decides by a rule of its own"):
        export_onnx.main([str(run), str(tmp_path / "bundle"), "--row", f"field/{name}"])
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("row", ["field/leap", "field/mgn_full", "field/mm_pyramid_full"])
def test_leap_and_both_networks_are_exported_and_parse_as_a_han_does_in_node_too(run, tmp_path, row):
    need("onnx", "onnxscript", "onnxruntime")
    import export_onnx
    import parse

    export_onnx.main([str(run), str(tmp_path / "bundle"), "--row", row])
    about = json.loads((tmp_path / "bundle/bundle.json").read_text())
    assert row in json.dumps(about)
    sample = tmp_path / "bundle/sample.npz"
    with np.load(sample) as file:  # longer than a window
        np.savez(sample, **{name: np.concatenate([file[name], file[name][::-1]])[:13] for name in file.files})
    parse.main([str(sample), "--bundle", str(tmp_path / "bundle"), "--json", str(tmp_path / "events.json"), "--threshold", "0.2"])
    ours = json.loads((tmp_path / "events.json").read_text())
    assert len(ours["audio_prob"]) == 13 and ours["events"]
    if not shutil.which("node") or not (WEB / "node_modules/onnxruntime-node").is_dir():
        unavailable("Node and onnxruntime-node: npm ci in web/")
    done = subprocess.run(["node", WEB / "parse.mjs", tmp_path / "bundle", sample, "--threshold=0.2"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)
    assert [e | dict(probability=0) for e in theirs["events"]] == [e | dict(probability=0) for e in ours["events"]]
    for name in ("audio_prob", "visual_prob", "video_prob"):
        np.testing.assert_allclose(theirs[name], ours[name], atol=1e-5)
