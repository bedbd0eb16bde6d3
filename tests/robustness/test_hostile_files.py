"""Files made to do harm: nothing in them is executed, nothing outside the folders is read or written, as a canary shows."""

import json
import os
import pickle
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import need

need("onnx", "onnxscript", "onnxruntime")

import export_onnx
import parse
import uwav
from common import files
from data import annotations, fetch, layout, pack
from sources import unav_database, write_llp, write_own, write_unav
from test_broken_files import toy_parser, write_bundle
from train import checkpoints, stages
from video import encoders, extract

ROOT = Path(__file__).resolve().parents[2]


class Code:
    """Unpickled, it makes a file called canary in the current folder."""

    def __reduce__(self):
        return (open, ("canary", "w"))


@pytest.fixture(autouse=True)
def no_canary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob("canary"))


def test_the_canary_sings_where_files_are_not_read_with_care(tmp_path):
    """What the others prove rests on this."""
    pickle.loads(pickle.dumps(Code()))
    assert Path("canary").exists()
    Path("canary").unlink()


# ---- code ----


def refused(read, *arguments) -> str:
    with pytest.raises((ValueError, OSError)) as error:
        read(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("content", [np.array([Code()], object), np.array(Code(), object)])
def test_pickled_arrays_are_not_unpickled(tmp_path, content):
    np.save("x.npy", content, allow_pickle=True)
    np.savez("x.npz", settings=content, audio=content, threshold_audio=content)
    Path("naked.npy").write_bytes(pickle.dumps(Code()))
    for path in ("x.npy", "naked.npy"):
        assert path in refused(files.read_array, path) and path in refused(files.read_array, path, True)
    assert "x.npz" in refused(files.read_arrays, "x.npz") and "x.npz" in refused(stages.read_labels, tmp_path / "x.npz", "cpu")
    bundle = parse.Bundle(write_bundle(tmp_path / "bundle", toy_parser()))
    assert "x.npz" in refused(parse.features_of_file, tmp_path / "x.npz", bundle)
    source = write_own(tmp_path / "own", "video,labels\na,dog\nb,bell\n")
    shutil.copy("x.npy", source / "feats_CLIP/segment_feats/a.npy")
    assert "a.npy" in refused(pack.pack, source, tmp_path / "out", 1)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_checkpoints_and_states_is_not_executed(tmp_path, zipped):
    model = uwav.Teacher(uwav.TeacherConfig(audio_dim=6, visual_dim=8, hidden=8, heads=2, feedforward=8, layers=1))
    good = dict(kind="Teacher", config=asdict(model.config), settings={}, weights=model.state_dict())
    for n, content in enumerate((Code(), good | dict(weights=Code()), good | dict(settings=dict(a=Code())), {"fc_prob.weight": Code()})):
        torch.save(content, f"{n}.pt", _use_new_zipfile_serialization=zipped)
        assert f"{n}.pt" in refused(checkpoints.load_model, f"{n}.pt") and f"{n}.pt" in refused(encoders.read_state_dict, Path(f"{n}.pt"))
        torch.save(content, tmp_path / "teacher.state.pt", _use_new_zipfile_serialization=zipped)
        run = checkpoints.Run(tmp_path / "teacher.pt", "teacher", {})
        assert "teacher.state.pt" in refused(run.begin, model, uwav.PretrainConfig(), 1)
        assert f"{n}.pt" in refused(export_onnx.source_of_released, Path(f"{n}.pt"), None, 2, 2, None)


class WritesWhenRead(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(2))

    @torch.jit.export
    def __getstate__(self):
        return self.w, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        written = torch.from_file("canary", True, 4, dtype=torch.uint8)
        written.fill_(65)
        self.w, self.training = state[0] + written.sum(), state[1]  # what nobody needs, the compiler would leave out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.w


def test_torchscript_that_writes_a_file_when_it_is_read_is_refused():
    """OpenAI offers CLIP as TorchScript, too, which may hold code that runs on reading."""
    torch.jit.script(WritesWhenRead()).save("clip.pt")
    torch.jit.load("clip.pt")
    assert Path("canary").read_text() == "AAAA", "else this shows nothing"
    Path("canary").unlink()
    assert "clip.pt" in refused(encoders.read_state_dict, Path("clip.pt")) and "clip.pt" in refused(checkpoints.load_model, "clip.pt")


def test_a_header_of_npy_is_not_evaluated():
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os').system('touch canary'),), }"
    Path("x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header + "\n").to_bytes(2, "little") + header.encode() + b"\n")
    assert "x.npy" in refused(files.read_array, "x.npy")


# ---- names that lead elsewhere ----

ELSEWHERE = ("../outside", "/etc/hostname", "..", "a/../../outside", "a\0b", "a\nb", "..\\outside")


@pytest.mark.parametrize("name", ELSEWHERE)
def test_ids_that_lead_elsewhere_are_refused_in_every_annotation(tmp_path, name):
    """Of an absolute id, Path(folder) / id would be a file anywhere."""
    written = name.replace("\n", " ") if "\n" in name else name
    for file in ("AVVP_train", "AVVP_val_pd", "AVVP_test_pd"):
        if "\n" not in name and "\0" not in name:
            write_llp(tmp_path / "LLP", **{file: f"{written}_0_10\tSpeech\n"})
            assert "cannot be a video's id" in refused(annotations.read_llp, tmp_path / "LLP")
    database = unav_database()
    database[name] = database.pop("u1")
    write_unav(tmp_path / "unav.json", database)
    assert "unav.json" in refused(annotations.read_unav, tmp_path / "unav.json")
    (tmp_path / "labels.csv").write_text(f'video,labels\nb,dog\n"{name}",dog\n')
    assert "labels.csv" in refused(annotations.read_own, tmp_path, ("dog",), dict(b=4) | {name: 4})


@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_index_that_names_files_elsewhere_is_refused(tmp_path, name):
    pack.pack(write_own(tmp_path / "own", "video,labels\na,dog\nb,bell\n"), tmp_path / "out", workers=1)
    index = json.loads((tmp_path / "out/index.json").read_text())
    index["llp"]["videos"]["train"][0] = name
    files.write_json(tmp_path / "out/index.json", index)
    assert "index.json" in refused(layout.read_index, tmp_path / "out")


@pytest.mark.parametrize("id", ["a-_b", "_x", "-9", "ü ö", "日本　語", "12:30 clip", "a.b", "🦊", "..x"])
def test_ids_that_people_use_are_plain_names(id):
    assert files.is_plain_name(id)


# ---- links in the places where files are written ----


@pytest.fixture
def outside(tmp_path):
    """A file of somebody else's that must stay as it is."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/precious").write_text("precious")
    yield tmp_path / "elsewhere/precious"
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["precious"]
    assert (tmp_path / "elsewhere/precious").read_text() == "precious"


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("name", ["x.json", ".x.part.json"])
@pytest.mark.parametrize("writer", [files.atomic, parse._written])
def test_a_link_in_the_place_of_a_file_is_replaced_not_written_through(tmp_path, outside, writer, name, dangling):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).symlink_to(outside.with_name("new") if dangling else outside)
    with writer(tmp_path / "folder/x.json") as temporary:
        temporary.write_text("new")
    assert not (tmp_path / "folder/x.json").is_symlink() and (tmp_path / "folder/x.json").read_text() == "new"


def test_pack_does_not_continue_in_files_behind_a_link(tmp_path, outside):
    source = write_own(tmp_path / "own", "video,labels\na,dog\nb,bell\n")
    path = source / "feats_CLIP/segment_feats/b.npy"
    good = path.read_bytes()
    for content in (bytes(len(good)), good):  # of the same size and date, so that the second pack continues
        path.write_bytes(content)
        os.utime(path, ns=(0, 0))
        if content is not good:
            assert "b.npy" in refused(pack.pack, source, tmp_path / "out", 1)
    begun = tmp_path / "out/.packing/llp/train"
    (begun / ".clip.part.npy").symlink_to(outside)  # what an array is called while it is written
    untouched = (begun / "clap.npy").stat().st_ino
    pack.pack(source, tmp_path / "out", 1)
    assert np.load(tmp_path / "out/llp/train/clip.npy").any() and (tmp_path / "out/llp/train/clap.npy").stat().st_ino == untouched


def test_a_download_does_not_go_through_a_link(tmp_path, outside):
    (tmp_path / "a.bin.part").symlink_to(outside)
    with pytest.raises(ValueError, match="cannot be downloaded"):
        fetch.download("http://127.0.0.1:9/a.bin", tmp_path / "a.bin", pause=0)
    assert not (tmp_path / "a.bin.part").is_symlink()


def test_failures_are_not_written_through_a_link(tmp_path, outside):
    (tmp_path / "failures.csv").symlink_to(outside)
    failures = extract.Failures(tmp_path, tmp_path / "videos")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.mp4").touch()
    failures.add(tmp_path / "videos/a.mp4", "cause")
    assert not (tmp_path / "failures.csv").is_symlink() and extract.Failures(tmp_path, tmp_path / "videos").causes


def test_export_does_not_empty_a_folder_behind_a_link(tmp_path, outside):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/.part").symlink_to(outside.parent)
    han = uwav.HAN(uwav.HANConfig(classes=2, hidden=8, heads=2, feedforward=8, layers=1))
    assert ".part" in refused(export_onnx.export_bundle, export_onnx.Source(han, None, ["a", "b"], "test"), tmp_path / "bundle")


# ---- onnx ----


@pytest.mark.parametrize("location", ["numbers.bin", "../outside.bin", "ABSOLUTE", "link.bin", "sub/../../outside.bin"])
def test_onnx_that_takes_numbers_from_another_file_is_refused(tmp_path, location):
    """Also from beside it: a bundle's files are whole, so any such name is a sign of something else."""
    (tmp_path / "outside.bin").write_bytes(np.ones(2, np.float32).tobytes())
    location = str(tmp_path / "outside.bin") if location == "ABSOLUTE" else location
    folder = write_bundle(tmp_path / "bundle", toy_parser(location))
    folder = folder / "onnx"
    (folder / "numbers.bin").write_bytes(np.ones(2, np.float32).tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "sub").mkdir()
    folder = folder.parent
    bundle = parse.Bundle(folder, "cpu")
    message = refused(parse.parse, parse.features_of_file(folder / "x.npz", bundle), bundle)
    assert "parser.onnx: keeps weights in other files" in message and not bundle.sessions


def test_the_key_that_names_another_file_is_found_however_its_length_is_written(tmp_path):
    model = toy_parser("numbers.bin")
    assert model.count(b"\x08location") == 1
    for length in (b"\x88\x00", b"\x88\x80\x80\x00"):
        assert parse.EXTERNAL.search(model.replace(b"\x08location", length + b"location"))
    assert not parse.EXTERNAL.search(toy_parser()) and not parse.EXTERNAL.search(b'{"classes": ["location", "dislocation"]}')


@pytest.mark.parametrize("name", ["../../x", "http://other.host/x", "//other.host/x", "/etc/passwd"])
def test_the_page_reads_only_files_it_knows_whatever_bundle_json_names(tmp_path, name):
    """parser.js, with a runtime and a reader that only note what they are asked for."""
    if not shutil.which("node"):
        pytest.skip("needs Node")
    write_bundle(tmp_path, b"model")
    info = json.loads((tmp_path / "bundle.json").read_text())
    info["files"]["parser"]["file"] = name
    (tmp_path / "bundle.json").write_text(json.dumps(info))
    (tmp_path / "ask.mjs").write_text(f"""
        import {{readFile}} from "node:fs/promises";
        import {{Bundle, parse}} from {json.dumps((ROOT / "web/parser.js").as_uri())};
        const asked = [], read = async (name) => {{ asked.push(name); return new Uint8Array(await readFile(name)); }};
        const ort = {{InferenceSession: {{create: async () => {{ throw new Error("stop"); }}}}}};
        const bundle = await Bundle.open({{cpu: async () => ort}}, read), x = (d) => ({{data: new Float32Array(2 * d), shape: [2, d]}});
        await parse({{audio: x(4), visual_2d: x(3)}}, bundle).catch((error) => {{ if (error.message !== "stop") throw error; }});
        console.log(JSON.stringify(asked));""")
    result = subprocess.run(["node", "ask.mjs"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == ["bundle.json", "onnx/parser.onnx"]
