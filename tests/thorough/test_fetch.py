"""`features.py fetch` against a local server that behaves badly in every way a server can."""

import http.server
import io
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT, TINY
from data import annotations, fetch, pack
from sources import checklist, write_llp, write_unav


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `faults[name]` is a list of what goes wrong with the next requests for that file, then nothing does."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.requests: list[tuple[str, str | None]] = []  # name, Range

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        name, wanted = self.path.lstrip("/"), self.headers.get("Range")
        self.server.requests.append((name, wanted))
        fault = (self.server.faults.get(name) or [""]).pop(0)
        content = self.server.files.get(name)
        if content is None or fault.isdecimal():
            self.send_error(int(fault) if fault else 404)
            return
        first = 0
        if wanted and fault != "no ranges":
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            if first >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first if fault != 'elsewhere' else 0}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        rest = content[first:]
        if fault != "no length":
            self.send_header("Content-Length", str(len(rest) + 100 * (fault == "promises more")))
        self.end_headers()
        self.wfile.write(rest[: len(rest) // 3] if fault == "drops" else rest)
        self.close_connection = True


@pytest.fixture()
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)


CONTENT = np.random.default_rng(0).bytes(100_000)


# ---- one file ----


def test_download_is_byte_for_byte_and_leaves_nothing_else(server, tmp_path):
    server.files["a.bin"] = CONTENT
    fetch.download(f"{server.url}/a.bin", tmp_path / "sub/a.bin")
    assert (tmp_path / "sub/a.bin").read_bytes() == CONTENT and [p.name for p in (tmp_path / "sub").iterdir()] == ["a.bin"]


def test_dropped_connections_are_continued_where_they_broke(server, tmp_path):
    server.files["a.bin"], server.faults["a.bin"] = CONTENT, ["drops"] * 5
    fetch.download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    starts = [int(r.removeprefix("bytes=").rstrip("-")) if r else 0 for _, r in server.requests]
    assert len(starts) == 6 and starts == sorted(set(starts)) and starts[1] == len(CONTENT) // 3


def test_a_killed_download_is_continued_by_the_next_run(server, tmp_path):
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:70_000])
    fetch.download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and server.requests == [("a.bin", "bytes=70000-")]


@pytest.mark.parametrize("have", [len(CONTENT), len(CONTENT) + 5])
def test_a_part_that_is_as_long_as_the_file_or_longer_is_thrown_away(server, tmp_path, have):
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(bytes(have))
    fetch.download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("fault", ["no ranges", "elsewhere", "503", "429", "promises more"])
def test_a_fault_that_passes_is_survived(server, tmp_path, fault):
    server.files["a.bin"], server.faults["a.bin"] = CONTENT, ["drops", fault, fault]
    fetch.download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("fault, message", [
    ("promises more", "cannot be downloaded"), ("no length", "does not say how large"), ("503", "the server says 503"),
    ("404", "the server says 404"), ("403", "the server says 403")])
def test_a_fault_that_stays_ends_in_one_sentence_and_no_file(server, tmp_path, fault, message):
    server.files["a.bin"], server.faults["a.bin"] = CONTENT, [fault] * 99
    with pytest.raises(ValueError, match=message) as error:
        fetch.download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert "a.bin" in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "a.bin").exists()


def test_a_server_that_is_not_there_ends_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="http://127.0.0.1:9/a: cannot be downloaded .*refused"):
        fetch.download("http://127.0.0.1:9/a", tmp_path / "a")


# ---- zip files ----


def zip_of(members: dict[str, bytes], link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def npy(length: int, size: int, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(seed).standard_normal((length, size), np.float32))
    return buffer.getvalue()


@pytest.mark.parametrize("prefix", ["", "LLP_CLIP/", "data/feats_CLIP/"])
def test_archive_is_extracted_into_the_source_layout_whatever_folders_it_has(tmp_path, prefix):
    members = {f"{prefix}segment_feats/a-_x.npy": npy(10, 768), f"{prefix}event_feats/all_event_feats.npy": npy(25, 768),
               f"{prefix}README.txt": b"hello", "__MACOSX/._a-_x.npy": b"rubbish"}
    (tmp_path / "x.zip").write_bytes(zip_of(members))
    assert fetch.extract_features(tmp_path / "x.zip", tmp_path / "out") == 2
    files = {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert files == {"segment_feats/a-_x.npy": npy(10, 768), "event_feats/all_event_feats.npy": npy(25, 768)}


def test_of_two_folders_with_the_same_names_the_one_with_features_is_taken(tmp_path):
    members = {"CLIP/segment_pseudo_labels/a.npy": npy(10, 25), "CLIP/segment_pseudo_labels/b.npy": npy(10, 25),
               "CLIP/features/a.npy": npy(10, 768), "CLIP/texts/all_event_feats.npy": npy(25, 768)}
    for order in (members, dict(reversed(members.items()))):
        (tmp_path / "x.zip").write_bytes(zip_of(order))
        assert fetch.extract_features(tmp_path / "x.zip", tmp_path / "out") == 2
        files = {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
        assert files == {"segment_feats/a.npy": npy(10, 768), "event_feats/all_event_feats.npy": npy(25, 768)}
        shutil.rmtree(tmp_path / "out")


def test_of_two_folders_that_both_may_be_meant_none_is_guessed(tmp_path):
    (tmp_path / "x.zip").write_bytes(zip_of({"one/a.npy": npy(10, 768), "two/a.npy": npy(10, 768)}))
    with pytest.raises(ValueError, match="x.zip: not a whole zip file of features .it has files of the same name in several folders"):
        fetch.extract_features(tmp_path / "x.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../evil.npy", "a/../../evil.npy", "/evil.npy", "..\\evil.npy", "C:\\evil.npy", "C:evil.npy", "a/C:\\evil.npy",
                                  "\\\\host\\share\\evil.npy", "a\\..\\..\\evil.npy", "//host/evil.npy", "../README.txt"])
def test_archive_with_a_name_that_leads_out_is_refused_as_a_whole(tmp_path, name):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/x.zip").write_bytes(zip_of({"segment_feats/a.npy": npy(1, 1), name: npy(1, 1)}))
    with pytest.raises(ValueError, match="x.zip: .*it holds the name .* which leads out of its folder"):
        fetch.extract_features(tmp_path / "sub/x.zip", tmp_path / "sub/out")
    assert [p.name for p in tmp_path.rglob("*")] == ["sub", "x.zip"]


def test_archive_with_a_link_is_refused(tmp_path):
    (tmp_path / "x.zip").write_bytes(zip_of({"a.npy": npy(1, 1)}, link="b.npy"))
    with pytest.raises(ValueError, match="x.zip: .*it holds a link, 'b.npy'"):
        fetch.extract_features(tmp_path / "x.zip", tmp_path / "out")


def test_damaged_archives_are_refused_and_leave_no_damaged_feature(tmp_path):
    whole = zip_of({f"segment_feats/{i}.npy": npy(3, 50, i) for i in range(20)})
    rng = np.random.default_rng(0)
    refused = 0
    for n in range(60):
        content = bytearray(whole)
        if n % 3 == 0:
            content = content[: rng.integers(0, len(content))]
        else:
            for place in rng.integers(0, len(content), 1 + n % 7):
                content[place] ^= 1 << rng.integers(8)
        (tmp_path / "x.zip").write_bytes(content)
        out = tmp_path / f"out{n}"
        try:
            fetch.extract_features(tmp_path / "x.zip", out)
        except ValueError as error:
            assert "x.zip" in str(error) and "\n" not in str(error)
            refused += 1
        for path in out.rglob("*"):
            if path.is_file() and path.stem.isdecimal() and int(path.stem) < 20:
                assert path.read_bytes() == npy(3, 50, int(path.stem)), "a half or damaged file under its final name"
    assert refused > 40


# ---- the command ----


@pytest.fixture()
def mirror(server, tmp_path):
    """A server with all files, small."""
    write_llp(tmp_path / "source")
    write_unav(tmp_path / "source/unav100_annotations.json")
    server.files |= {p.name: p.read_bytes() for p in (tmp_path / "source").iterdir()}
    ids = {"LLP": ("a-_b_c_d_e1", "val00000001", "test0000001"), "UnAV": ("u1", "u2", "u3")}
    for dataset, classes in (("LLP", 25), ("UnAV", 2)):
        for encoder, size in (("CLIP", 768), ("CLAP", 512)):
            members = {f"feats_{encoder}/segment_feats/{i}.npy": npy(10, size) for i in ids[dataset]}
            members[f"feats_{encoder}/event_feats/all_event_feats.npy"] = npy(classes, size)
            server.files[f"{dataset}_{encoder}.zip"] = zip_of(members)
    return server


def test_fetched_files_are_what_pack_reads(mirror, tmp_path, capsys):
    for name in mirror.files:
        mirror.faults[name] = ["drops", "503"]
    fetch.fetch(tmp_path / "data", mirror=mirror.url)
    printed = capsys.readouterr().out
    assert "vggish: not fetched, it is in one file on Google Drive" in printed and "licences: " in printed and str(tmp_path / "data/LLP/feats/vggish") in printed
    assert not list((tmp_path / "data").glob("*.zip*")) and not list((tmp_path / "data").rglob("*.part*"))
    index = pack.pack(tmp_path / "data", tmp_path / "packed", workers=1)
    assert index["llp"]["features"] == ["clap", "clip"] and np.load(tmp_path / "packed/llp/train/clip.npy").shape == (1, 10, 768)


def test_fetch_again_asks_for_nothing_and_one_dataset_can_be_chosen(mirror, tmp_path, capsys):
    fetch.fetch(tmp_path / "data", ("UnAV",), mirror.url)
    assert {n for n, _ in mirror.requests} == {"unav100_annotations.json", "UnAV_CLIP.zip", "UnAV_CLAP.zip"}
    mirror.requests.clear()
    fetch.fetch(tmp_path / "data", ("UnAV",), mirror.url)
    assert mirror.requests == [] and "feats_CLIP: is there, and kept" in capsys.readouterr().out


def test_published_annotations_are_fetched_from_pinned_commits_and_the_users_own_are_kept(mirror, tmp_path, monkeypatch):
    assert all(f"/{commit}/data" in base for (base, _), commit in zip(fetch.ANNOTATIONS.values(), ("fde5611", annotations.UNAV_COMMIT)))
    monkeypatch.setattr(fetch, "ANNOTATIONS", {d: (f"{mirror.url}/{base.split('githubusercontent.com/')[1]}", files)
                                               for d, (base, files) in fetch.ANNOTATIONS.items()})
    monkeypatch.setattr(fetch, "FEATURES", mirror.url)
    mirror.files |= {f"YapengTian/AVVP-ECCV20/fde5611/data/{name}": x for name, x in mirror.files.items() if name.endswith(".csv")}
    own = write_unav(tmp_path / "data/UnAV/unav100_annotations.json").read_bytes()
    fetch.fetch(tmp_path / "data")
    asked = [name for name, _ in mirror.requests if not name.endswith(".zip")]
    assert len(asked) == 5 and all("fde5611" in name for name in asked)
    assert (tmp_path / "data/UnAV/unav100_annotations.json").read_bytes() == own


def command(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / "features.py"), "fetch", *map(str, arguments)], capture_output=True,
                          text=True, timeout=300)


@pytest.mark.parametrize("content, message", [
    (b"this is no zip file", "LLP_CLAP.zip: not a whole zip file"),
    (zip_of({"../../evil.npy": npy(1, 1)}), "which leads out of its folder"),
    (zip_of({"readme.txt": b"x"}), "holds no .npy file"),
])
def test_a_bad_archive_ends_the_command_with_one_sentence(mirror, tmp_path, content, message):
    mirror.files["LLP_CLAP.zip"] = content
    result = command(tmp_path / "data", "--llp", "--mirror", mirror.url)
    assert result.returncode == 1 and result.stderr.startswith("error: ") and message in result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "data/LLP/feats_CLAP").exists() and not (tmp_path / "evil.npy").exists()


def test_a_broken_archive_is_fetched_anew_by_the_next_run(mirror, tmp_path):
    good = mirror.files["LLP_CLIP.zip"]
    mirror.files["LLP_CLIP.zip"] = good[:-1000]
    assert command(tmp_path / "data", "--llp", "--mirror", mirror.url).returncode == 1
    mirror.files["LLP_CLIP.zip"] = good
    result = command(tmp_path / "data", "--llp", "--mirror", mirror.url)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "data/LLP/feats_CLIP").rglob("*.npy"))) == 4


def test_a_damaged_archive_that_somebody_brought_is_named_and_stays(mirror, tmp_path):
    archive = tmp_path / "data/LLP_CLIP.zip"
    archive.parent.mkdir()
    archive.write_bytes(mirror.files["LLP_CLIP.zip"][:-1000])
    result = command(tmp_path / "data", "--llp", "--mirror", mirror.url)
    assert result.returncode == 1 and "LLP_CLIP.zip: not a whole zip file of features" in result.stderr and archive.exists()


@pytest.mark.skipif(os.name != "posix", reason="run_all.sh needs a POSIX shell")
def test_run_all_fetches_packs_trains_and_scores_in_one_command(mirror, tmp_path):
    """The full reproduction, with a toy server and the smallest models."""
    pytest.importorskip("onnxscript", reason="run_all.sh would install it")
    tiny = [x for pair in (*TINY, "epochs=1", "teacher.heads=2", "han.heads=2", "project_visual=true")
            for x in ("--set", pair)]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "UWAV_MIRROR": mirror.url}
    result = subprocess.run(
        ["bash", ROOT / "run_all.sh", "--data", tmp_path / "data", "--fetch", "--features", "clip_clap", "--out", tmp_path / "run",
         "--device", "cpu", "--", *tiny], env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "== 1. Fetch" in result.stdout and "LLP_CLIP.zip: 4 files" in result.stdout and "features clip_clap" in result.stdout
    promised = checklist(str(tmp_path / "run"))
    found = [line.split()[0] for line, pattern in promised.items() if re.search(f"^{pattern}$", result.stdout, re.MULTILINE)]
    assert found == ["LLP_CLAP.zip:", "runs/paper/data:", "runs/paper/seed0/teacher.pt:", "Everything", "Paper's"]


def test_an_annotation_file_that_is_an_error_page_is_refused(mirror, tmp_path):
    mirror.files["AVVP_train.csv"] = b"<html>sign in</html>"
    result = command(tmp_path / "data", "--llp", "--mirror", mirror.url)
    assert result.returncode == 1 and "AVVP_train.csv: the header line must have the column filename" in result.stderr and "fetch again" in result.stderr
