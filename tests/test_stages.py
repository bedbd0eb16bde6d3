"""The stage commands, run for real on a tiny demo world: results, resuming, refusing."""

import importlib
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import uwav
from conftest import SMALL, TRAINED
from common import devices, files
from data import layout, pack, splits
from sources import write_source
from train import ablation, checkpoints, cli, presets, stages

ROOT = Path(__file__).resolve().parents[1]
@pytest.fixture(scope="module")
def world(finished) -> Path:
    return finished / "data"


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "uwav.py"), *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300)


def weights_of(path: Path) -> dict:
    return checkpoints.load_file(path)["weights"]


def assert_same_weights(a: Path, b: Path) -> None:
    a, b = weights_of(a), weights_of(b)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- results ----


def test_ablation_has_every_row_every_seed_and_both_tables(finished):
    content = json.loads((finished / "ablation.json").read_text())
    rows = content["scores"]["clip_clap"]
    assert list(rows) == list(ablation.ROWS) and content["seeds"] == [0, 1]
    for values in rows.values():
        assert len(values) == 2 and all(set(v) == set(uwav.SCORES) for v in values)
    text = (finished / "tables.txt").read_text()
    assert "Label quality" in text and "Parsing scores" in text and "ANOTHER DATASET" in text and "±" in text
    for row in ablation.ROWS.values():
        assert row.title in text


def test_rows_trained_side_by_side_are_those_trained_one_after_the_other_on_one_core(world, finished, tmp_path, capsys):
    context = stages.Context(world, "demo", overrides=tuple(x for x in SMALL if "=" in x) + ("epochs=2",))

    def jobs(folder: str) -> list[partial]:
        return [partial(ablation.train_row, context, tmp_path / folder / row, finished / "labels_segment.npz", ablation.ROWS[row].setting, "clip_clap") for row in ("soft", "full")]

    together = ablation.train_rows(jobs("together"), tmp_path)
    said, threads = capsys.readouterr().out, torch.get_num_threads()
    torch.set_num_threads(1)
    assert [job() for job in jobs("alone")] == list(together.values()) and [x.name for x in together] == ["soft", "full"]
    torch.set_num_threads(threads)
    assert said == capsys.readouterr().out.replace("/alone/", "/together/"), "each row tells its own, in order"
    for row in ("soft", "full"):
        assert (tmp_path / "together" / row / "han.pt").read_bytes() == (tmp_path / "alone" / row / "han.pt").read_bytes()


def test_scores_in_the_tables_are_those_of_the_saved_predictions(world, finished):
    folder = finished / "seed1/clip_clap/full"
    with np.load(folder / "predictions_test.npz") as file:
        probabilities = [torch.from_numpy(file[k]) for k in ("video", "audio", "visual")]
    truth = [torch.from_numpy(np.load(world / "llp/test" / f"{m}.npy")) for m in ("audio", "visual")]
    scores = uwav.parsing_scores(*uwav.gated_predictions(*probabilities), *truth)
    assert scores == pytest.approx({name: files.read_sealed(folder / "scores_test.json", "")[name] for name in scores})
    assert scores == pytest.approx(json.loads((finished / "ablation.json").read_text())["scores"]["clip_clap"]["full"][1])


def test_predictions_are_read_gated_and_only_as_they_were_written(world, tmp_path):
    N, T, C = np.load(world / "llp/test/audio.npy").shape
    video, audio, visual = np.zeros((N, C), np.float32), np.zeros((N, T, C), np.float32), np.zeros((N, T, C), np.float32)
    video[0, :2], audio[0, 0, :2], visual[0, 0, :2] = (1.66, 0.4), (0.6, 0.9), (0.4, 1.0)
    path, data = tmp_path / "p.npz", layout.read_index(world)["sha256"]
    files.write_arrays(path, made_from=np.array(json.dumps(dict(data=data))), video=video, audio=audio, visual=visual)
    predictions = stages.read_predictions(path, world)
    assert [x[0, 0, :2].tolist() for x in predictions] == [[True, False], [False, False]] and sum(int(x.sum()) for x in predictions) == 1
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | dict(audio=1.66 * audio))
    with pytest.raises(ValueError, match="p.npz: .*its checksum differs.*uwav.py evaluate"):
        stages.read_predictions(path, world)
    files.write_arrays(path, made_from=np.array(json.dumps(dict(data="0" * 64))), video=video, audio=audio, visual=visual)
    with pytest.raises(ValueError, match="p.npz: .*made from other data"):
        stages.read_predictions(path, world)


def test_differences_between_rows_are_those_of_the_saved_scores_by_seed(finished):
    content = json.loads((finished / "ablation.json").read_text())
    rows, differences = content["scores"]["clip_clap"], content["differences"]["clip_clap"]
    assert [(d["first"], d["second"]) for d in differences] == list(ablation.COMPARISONS)
    for d in differences:
        assert list(d["scores"]) == list(uwav.SCORES)
        for score, x in d["scores"].items():
            assert x["by_seed"] == pytest.approx([b[score] - a[score] for a, b in zip(rows[d["first"]], rows[d["second"]])], abs=1e-9)
            assert x["interval"][0] <= x["mean"] <= x["interval"][1]
    full = differences[-1]["scores"]["seg_type"]
    text = (finished / "tables.txt").read_text()
    assert "L_video only (HAN) -> all (UWAV)" in text and f"{full['mean']:+.1f} [{full['interval'][0]:+.1f}, {full['interval'][1]:+.1f}]" in text


def test_sweep_trains_one_setting_at_a_time_and_keeps_the_row_itself(world, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "SWEEP", {name: ablation.SWEEP[name] for name in ("full_alpha_0.5", "full_W_0.25")})
    shutil.copytree(finished, tmp_path / "run")
    before = (tmp_path / "run/seed0/clip_clap/full/han.pt").stat().st_mtime_ns
    cli.main(["ablate", str(world), str(tmp_path / "run"), *TRAINED, "--sweep"])
    content = json.loads((tmp_path / "run/ablation.json").read_text())
    assert list(content["scores"]["clip_clap"]) == [*ablation.ROWS, *ablation.SWEEP]
    assert (tmp_path / "run/seed0/clip_clap/full/han.pt").stat().st_mtime_ns == before
    configs = {name: checkpoints.load_file(tmp_path / f"run/seed0/clip_clap/{name}/han.pt")["settings"]["training"]
               for name in ("full", "full_alpha_0.5", "full_W_0.25")}
    assert configs["full_alpha_0.5"] == configs["full"] | {"alpha": 0.5}
    assert configs["full_W_0.25"] == configs["full"] | {"W": 0.25}
    assert "alpha = 0.5" in (tmp_path / "run/tables.txt").read_text()


def test_training_writes_its_history_and_keeps_the_best_epoch(world, finished):
    folder = finished / "seed0/clip_clap/full"
    history = [json.loads(line) for line in (folder / "han.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in history] == [1, 2, 3, 4, 5, 6]
    assert all(r["loss"] == pytest.approx(sum(v for k, v in r.items() if k.startswith("loss_"))) for r in history)
    model = checkpoints.load_model(folder / "han.pt")  # from the checkpoint alone
    val = splits.load_target(world, "val", "clip_clap", "cpu")
    assert uwav.han_scores(model, val)["seg_type"] == pytest.approx(max(r["val"]["seg_type"] for r in history))
    assert not list(finished.rglob("*.state.pt")) and not list(finished.rglob(".*"))


def test_same_seed_gives_the_same_numbers_and_another_seed_others(world, finished, tmp_path):
    cli.main(["pretrain", str(world), str(tmp_path), *TRAINED])
    assert_same_weights(tmp_path / "teacher.pt", finished / "seed0/teacher.pt")
    a, b = weights_of(finished / "seed0/teacher.pt"), weights_of(finished / "seed1/teacher.pt")
    assert not all(torch.equal(a[k], b[k]) for k in a)


def test_a_finished_ablation_is_not_run_again(world, finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*.pt")}
    tables = (run / "tables.txt").read_text()
    cli.main(["ablate", str(world), str(run), "--seeds", "2", *TRAINED])
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*.pt")}
    assert tables == (run / "tables.txt").read_text() and "finished before, kept" in capsys.readouterr().out


def test_hard_labels_by_the_command_are_thresholded_logits_of_the_teacher(world, finished):
    labels = stages.read_labels(finished / "seed0/labels_teacher.npz", "cpu")
    model = checkpoints.load_model(finished / "seed0/teacher.pt")
    val = splits.load_target(world, "val", "clip_clap", "cpu")
    logits = uwav.teacher_logits(model, val, splits.load_text(world, "llp", "cpu"))
    for m, truth in enumerate((val.audio_truth, val.visual_truth)):
        torch.testing.assert_close(logits[m], labels.logits["val"][m])
        assert torch.equal(uwav.fit_thresholds(logits[m], truth, val.weak)[0], labels.thresholds[m])


def test_every_row_of_the_ablation_trains_on_what_its_title_says():
    for name, row in ablation.ROWS.items():
        config = uwav.TrainConfig(**presets.ABLATION[row.setting])
        assert (row.labels is None) == (config.pseudo_label == "none") == (name == "video_only")
        assert (row.labels == "segment") == (name == "valor")
        assert config.mixup == (name in ("soft_mixup", "full")) and config.reweight == (name in ("soft_reweight", "full"))


def test_switched_off_parts_take_no_part():
    generator = torch.Generator().manual_seed(0)
    logits = tuple(torch.randn(6, 5, 3, generator=generator) for _ in range(2))
    weak = torch.ones(6, 3)
    thresholds = torch.zeros(3), torch.zeros(3)
    assert uwav.pseudo_labels(logits, thresholds, weak, uwav.TrainConfig(pseudo_label="none")) is None
    plain = uwav.pseudo_labels(logits, thresholds, weak, uwav.TrainConfig(pseudo_label="hard", reweight=False))
    assert plain.audio_weights == (1.0, 1.0) and set(plain.audio.unique().tolist()) == {0.0, 1.0}


def test_both_feature_sets_run_from_packed_files(tmp_path):
    """The authors' layout -> pack -> every stage with `base` and `clip_clap` features at their real sizes."""
    pack.pack(write_source(tmp_path / "source", videos=4), tmp_path / "data", workers=1)
    cli.main(["ablate", str(tmp_path / "data"), str(tmp_path / "run"), *SMALL, "--set", "epochs=1"])
    content = json.loads((tmp_path / "run/ablation.json").read_text())
    assert list(content["scores"]) == ["base", "clip_clap"] and content["source"] == "pack"
    tables = (tmp_path / "run/tables.txt").read_text()
    assert "features base" in tables and "features clip_clap" in tables and "ANOTHER DATASET" not in tables
    model = checkpoints.load_model(tmp_path / "run/seed0/base/full/han.pt")
    assert (model.config.audio_dim, model.config.visual_2d_dim, model.config.visual_3d_dim) == (128, 2048, 512)


# ---- resuming ----


def test_training_stopped_after_any_epoch_resumes_to_the_same_weights_and_history(world, finished, tmp_path, monkeypatch):
    """Epochs this quick save their state each; the run stops after each of the first two, as a crash would."""
    options = ["train", str(world), None, "--labels", str(finished / "seed0/labels_teacher.npz"),
               "--features", "clip_clap", *SMALL, "--set", "epochs=3"]

    def train(folder: Path) -> None:
        options[2] = str(folder)
        cli.main(options)

    train(tmp_path / "whole")
    monkeypatch.setattr(checkpoints, "SAVING_SHARE", 1e9)
    original = checkpoints.Run.end_epoch
    for stop_after in (1, 2):
        def end_epoch(self, record, score, stop_after=stop_after):
            original(self, record, score)
            if record["epoch"] == stop_after:
                raise RuntimeError("power cut")

        monkeypatch.setattr(checkpoints.Run, "end_epoch", end_epoch)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tmp_path / "part")
    monkeypatch.setattr(checkpoints.Run, "end_epoch", original)
    train(tmp_path / "part")
    assert_same_weights(tmp_path / "part/han.pt", tmp_path / "whole/han.pt")
    assert (tmp_path / "part/han.jsonl").read_bytes() == (tmp_path / "whole/han.jsonl").read_bytes()


# ---- refusing ----


@pytest.mark.parametrize("field", ["hidden=16", "heads=2", "feedforward=16", "layers=1", "dropout=0.2"])
@pytest.mark.parametrize("stage", ["ablate", "field"])
def test_a_name_by_which_teacher_and_parsers_would_change_is_refused_before_any_work(world, tmp_path, stage, field):
    with pytest.raises(SystemExit) as stop:
        cli.main([stage, str(world), str(tmp_path / "out"), "--preset", "demo", "--device", "cpu", "--set", field])
    assert stop.value.code == f"error: --set {field}: both networks have {field.split('=')[0]}; say teacher.{field}, han.{field}, or both"
    assert not (tmp_path / "out").exists()


def test_a_field_is_set_for_the_teacher_for_the_parsers_or_where_it_has_one_name_for_whom_it_is():
    def made(*overrides: str) -> list:
        context, demo = stages.Context(Path("data"), "demo", overrides=overrides), presets.PRESETS["demo"]
        return [context.config(x) for x in (demo.teacher, demo.pretrain, demo.han["clip_clap"], demo.train, *(x for pair in demo.field.values() for x in pair))]

    before, names = made(), ("hidden", "heads", "feedforward", "layers", "dropout", "epochs", "peak_lr")
    for name in names:
        old = [getattr(x, name, None) for x in before]
        value = 12 if isinstance(old[0] or old[1], int) else 0.25
        for whose, parsers in (("teacher.", False), ("han.", True)):
            new = [getattr(x, name, None) for x in made(f"{whose}{name}={value}")]
            assert new == [value if x is not None and (k > 1) == parsers else x for k, x in enumerate(old)]
        assert made(f"{name}={value}") == made(f"teacher.{name}={value}", f"han.{name}={value}")
    assert made("alpha=3", "audio_scale=1", "pos_weight=2") == made("han.alpha=3", "teacher.audio_scale=1", "teacher.pos_weight=2") != before
    cli.parse_overrides(("alpha=3", "audio_scale=1", "epochs=2", "peak_lr=0.1", "teacher.hidden=8", "han.heads=2"), both=True)


@pytest.mark.parametrize("arguments, message", [
    (["ablate", "DATA", "out", "--set", "teacher.hiden=8"], "no such field; did you mean teacher.hidden?"),
    (["ablate", "DATA", "out", "--set", "teacher.alpha=1"], "--set teacher.alpha=1: no such field"),
    (["field", "DATA", "out", "--set", "han.heads=two"], "han.heads takes a value of type int"),
    (["pretrain", "nowhere", "out"], "nowhere is not a (complete) packed folder"),
    (["pretrain", "DATA", "out", "--set", "epoch=3"], "no such field; did you mean epochs?"),
    (["pretrain", "DATA", "out", "--set", "epochs=many"], "epochs takes a value of type int"),
    (["pretrain", "DATA", "out", "--set", "mixup=maybe"], "mixup takes a value of type bool"),
    (["pretrain", "DATA", "out", "--preset", "demo", "--set", "epochs=0"], "--set epochs = 0: must be above 0"),
    (["ablate", "DATA", "out", "--seeds", "0"], "at least one seed is needed"),
    (["train", "DATA", "out", "--features", "clip_clap"], "setting full learns from pseudo-labels: name the file with --labels"),
    (["train", "DATA", "out", "--labels", "none.npz"], "none.npz: no such file"),
    (["train", "DATA", "out", "--labels", "LABELS", "--features", "base"], "feature set 'base' needs vggish"),
    (["evaluate", "DATA", "TEACHER"], "holds a Teacher, expected a HAN"),
    (["label", "DATA", "out", "--teacher", "HAN"], "holds a HAN, expected a Teacher"),
    (["evaluate", "DATA", "none.pt"], "none.pt: no such file"),
    (["evaluate", "DATA", "LABELS"], "not a readable checkpoint"),
])
def test_bad_input_is_one_sentence_and_exit_status_1(world, finished, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    known = {"DATA": world, "LABELS": finished / "seed0/labels_teacher.npz", "TEACHER": finished / "seed0/teacher.pt",
             "HAN": finished / "seed0/clip_clap/full/han.pt"}
    with pytest.raises(SystemExit) as stop:
        cli.main([str(known.get(a, a)) for a in arguments])
    assert stop.value.code.startswith("error: ") and message in stop.value.code and "\n" not in stop.value.code


def test_the_command_line_exits_with_status_1_and_without_traceback(tmp_path):
    result = run("evaluate", tmp_path, tmp_path / "none.pt")
    assert result.returncode == 1 and result.stderr.startswith("error: ") and "Traceback" not in result.stderr


@pytest.mark.parametrize("name, arguments", [
    ("export_onnx.py", ["RUN", "OUT"]), ("report.py", ["RUN"]), ("bench.py", ["scores"]), ("parse.py", ["x.npz", "--bundle", "OUT"]),
    ("features.py", ["pack", "RUN", "OUT"]), ("uwav.py", ["label", "RUN", "OUT", "--per-segment"])])
def test_what_processes_of_torchrun_cannot_share_is_refused_in_one_sentence_that_one_of_them_says(finished, tmp_path, monkeypatch, capsys, name, arguments):
    main, out = importlib.import_module(name.removesuffix(".py").replace("uwav", "train.cli")).main, tmp_path / "out"
    arguments, before = [str({"RUN": finished, "OUT": out}.get(x, x)) for x in arguments], sorted(finished.rglob("*"))
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setattr(devices, "RANKS", 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setattr(devices, "RANK", rank)
        monkeypatch.setenv("RANK", str(rank))
        with pytest.raises(SystemExit) as stop:
            main()
        assert (stop.value.code == 1) if rank else (stop.value.code.startswith("error: torchrun started 2 processes, which ") and "\n" not in stop.value.code)
    assert capsys.readouterr() == ("", "") and not out.exists() and sorted(finished.rglob("*")) == before


def test_a_result_made_with_other_settings_is_not_overwritten(world, finished):
    before = (finished / "seed0/teacher.pt").read_bytes()
    with pytest.raises(SystemExit, match="made with other settings"):
        cli.main(["pretrain", str(world), str(finished / "seed0"), *SMALL, "--set", "epochs=3"])
    assert before == (finished / "seed0/teacher.pt").read_bytes()


def test_a_loss_that_is_not_finite_stops_the_run(world, finished, tmp_path):
    with pytest.raises(SystemExit, match="the loss became (nan|inf) in epoch 1"):
        cli.main(["train", str(world), str(tmp_path), "--labels", str(finished / "seed0/labels_teacher.npz"),
                     "--features", "clip_clap", *SMALL, "--set", "peak_lr=2e9"])
    assert not (tmp_path / "han.pt").exists()


@pytest.mark.parametrize("name", ["", "pretrain", "label", "train", "evaluate", "ablate"])
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*name.split(), "--help"])
    assert stop.value.code == 0 and "DATA" in capsys.readouterr().out


# ---- checkpoints of the released code ----


def test_released_checkpoints_label_and_evaluate_like_ours(world, golden, tmp_path):
    """Recorded weights saved as the released code saves them: a plain state dict."""
    case = golden("teacher")
    torch.save({k[3:]: v for k, v in case.items() if k.startswith("sd.")}, tmp_path / "teacher.pt")
    cli.main(["label", str(world), str(tmp_path), "--teacher", str(tmp_path / "teacher.pt")])
    assert stages.read_labels(tmp_path / "labels_teacher.npz", "cpu").logits["test"][0].shape == (40, 10, 25)
    case = golden("han")
    state = {k[3:]: v for k, v in case.items() if k.startswith("sd.")}
    state["fc_a.layers.0.weight"] = torch.randn(64, 512)  # the recorded HAN is small; give it this world's feature sizes
    state["fc_fusion.layers.0.weight"] = torch.randn(32, 768)
    torch.save(state, tmp_path / "han.pt")
    cli.main(["evaluate", str(world), str(tmp_path / "han.pt")])
    assert set(uwav.SCORES) <= files.read_sealed(tmp_path / "scores_test.json", "").keys()


def test_the_public_hans_of_2020_and_of_valor_evaluate(golden, tmp_path, capsys):
    """Recorded weights, their first layers widened to the features `base`."""
    pack.pack(write_source(tmp_path / "source", videos=4), tmp_path / "data", workers=1)
    case = golden("public_hans")
    for name, heads in (("han", 1), ("valor", 8)):
        state = {k.split(".sd.")[1]: v for k, v in case.items() if k.startswith(f"{name}.sd.")}
        state |= {f"{x}.weight": torch.randn(16, size) for x, size in (("fc_a", 128), ("fc_v", 2048), ("fc_st", 512))}
        (tmp_path / name).mkdir()
        torch.save(state, tmp_path / name / "net.pt", _use_new_zipfile_serialization=name == "valor")  # PyTorch of 2020 wrote no zip
        cli.main(["evaluate", str(tmp_path / "data"), str(tmp_path / name / "net.pt")])
        assert set(uwav.SCORES) <= files.read_sealed(tmp_path / name / "scores_test.json", "").keys()
        assert f"{heads} are assumed, as published" in capsys.readouterr().out


# ---- run_all.sh ----


def test_run_all_refuses_contradicting_and_unknown_options():
    for options, message in ((["--data", "x", "--llp", "y"], "--data brings its own annotations"), (["--speed"], "unknown option --speed"),
                             (["--out"], "--out needs a value"), (["--fetch"], "--fetch needs --data DIR")):
        result = subprocess.run(["bash", ROOT / "run_all.sh", *options], capture_output=True, text=True)
        assert result.returncode == 1 and message in result.stderr
