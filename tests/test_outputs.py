"""What is made of a finished run: the exported parser, the events it finds in a video, the report."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

import parse
import uwav
from conftest import need
from data import splits
from train import checkpoints

need("onnx", "onnxscript", "onnxruntime")


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    import export_onnx

    folder = tmp_path_factory.mktemp("exported") / "bundle"
    export_onnx.main([str(finished), str(folder)])
    return folder


def test_parse_finds_in_features_the_events_that_the_trained_model_predicts(finished, exported, tmp_path, capsys):
    test, names = splits.load_target(finished / "data", "test", "clip_clap", "cpu"), ("audible", "visible")
    model = checkpoints.load_model(finished / "seed0/clip_clap/full/han.pt")
    predictions = uwav.gated_predictions(*uwav.han_probabilities(model, test))  # (N, T, C) each
    n = int(torch.stack(predictions).sum((0, 2, 3)).argmax())
    audio, visual, _ = (x if x is None else x[0].numpy() for x in test.inputs(slice(n, n + 1)))
    np.savez(tmp_path / "video.npz", audio=audio, visual_2d=visual)
    parse.main([str(tmp_path / "video.npz"), "--bundle", str(exported), "--json", str(tmp_path / "e.json"), "--csv", str(tmp_path / "e.csv")])
    with open(tmp_path / "e.csv", newline="") as file:
        events = list(csv.DictReader(file))
    assert {event["video"] for event in events} == {"video.npz"}
    found = {name: np.zeros(predictions[0][n].shape, bool) for name in names}
    classes = json.loads((exported / "bundle.json").read_text())["classes"]
    for event in events:
        if event["modality"] in names:
            found[event["modality"]][int(event["onset"]) : int(event["offset"]), classes.index(event["label"])] = True
    assert events and all(np.array_equal(found[name], p[n].numpy()) for name, p in zip(names, predictions))
    assert len(json.loads((tmp_path / "e.json").read_text())["events"]) == len(events) and events[0]["label"] in capsys.readouterr().out


def test_a_bundle_describes_itself_and_every_file_was_compared_with_pytorch(exported):
    info = json.loads((exported / "bundle.json").read_text())
    assert set(info["files"]) == {"parser", "teacher", "labels"} and len(info["classes"]) == 25
    assert all(file["verified"]["largest_difference"] < 1e-4 for file in info["files"].values())


def test_the_report_shows_tables_and_pictures_of_the_run(finished, tmp_path):
    import report

    run = shutil.copytree(finished, tmp_path / "run")
    report.main([str(run)])
    page = (run / "report.html").read_text()
    assert page.rstrip().endswith("</html>") and page.count("<figure") > 6 and page.count("<table") > 2 and "<script src" not in page
