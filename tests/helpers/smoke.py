"""Every command once, on a small world and two clips of its own, with the Python and the packages that run this file.

    python tests/helpers/smoke.py           # prints what it ran on, and every command with its seconds
    python tests/helpers/smoke.py --short   # exports no encoders, so parses no video; times nothing

The encoders have random weights, and are small ones. One process runs all, as `python COMMAND` would: packages are
imported once.
"""

import contextlib
import io
import json
import platform
import runpy
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/helpers")]
PACKAGES = ("torch", "numpy", "av", "onnxruntime")
WEIGHTS = ("--clip-weights", "random", "--clap-weights", "random")


def run(*arguments: object, fails: str | None = None) -> None:
    """A command as it is typed. With `fails`, it must end in a sentence that says so."""
    program, started = str(arguments[0]), time.monotonic()
    before, sys.argv = sys.argv, [str(x) for x in arguments]
    out, error, status = io.StringIO(), io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            if program == "uwav.py":  # which hands over to this module, and would be loaded a second time
                runpy.run_module("train.cli", run_name="__main__")
            else:
                runpy.run_path(str(ROOT / program), run_name="__main__")
    except SystemExit as exit:
        status = exit.code or 0
    finally:
        sys.argv = before
    said = error.getvalue().strip()
    if (fails is None) != (status == 0) or fails and fails not in f"{status}":
        raise SystemExit(f"{' '.join(map(str, arguments))}: exit status {status}\n{out.getvalue()}\n{said}")
    print(f"{time.monotonic() - started:5.1f} s  {program} {arguments[1]}", flush=True)
    RAN.add((program, str(arguments[1])))


RAN: set[tuple[str, str]] = set()


def main(folder: Path, short: bool) -> None:
    import clips
    import conftest
    from data import demo_world, fetch
    from train import cli

    world = demo_world.WorldConfig
    demo_world.WorldConfig = lambda **options: world(**conftest.SIZES, **options)
    fetch.time = SimpleNamespace(sleep=lambda seconds: None)
    TINY = (*conftest.SMALL, "--set", "epochs=1")

    # the method, on the demo world
    data, out, seed = folder / "data", folder / "run", folder / "run/seed0"
    run("features.py", "demo", data)
    run("uwav.py", "pretrain", data, seed, *TINY)
    run("uwav.py", "label", data, seed, "--teacher", seed / "teacher.pt", "--device", "cpu")
    han = seed / "clip_clap/full"
    run("uwav.py", "train", data, han, "--labels", seed / "labels_teacher.npz", "--features", "clip_clap", *TINY)
    run("uwav.py", "evaluate", data, han / "han.pt", "--device", "cpu")
    run("uwav.py", "ablate", data, out, "--features", "clip_clap", *TINY)
    run("uwav.py", "field", data, out, "--features", "clip_clap", "--systems", "mgn", *TINY)
    run("report.py", out, "--data", data)

    # clips of one's own, and a parser of videos
    (folder / "clips").mkdir()
    for name, pitch in (("one", 440.0), ("two", 880.0)):
        clips.make(folder / f"clips/{name}.mp4", 2, 25, sound=clips.tone(2, frequency=pitch)[None])
    own = folder / "own"
    run("features.py", "template", folder / "clips", own)
    (own / "labels.csv").write_text("video,labels\none,dog\ntwo,bell\n", encoding="utf-8")
    run("features.py", "check", own, "--videos", folder / "clips", "--segments", "2")
    run("features.py", "text", own / "labels.csv", own, *WEIGHTS, "--device", "cpu")
    run("features.py", "extract", folder / "clips", own, "--segments", "2", "--workers", "1", *WEIGHTS, "--device", "cpu")
    run("features.py", "pack", own, folder / "packed")
    run("uwav.py", "own", folder / "packed", folder / "own run", *TINY)
    run("features.py", "compare", own, own)
    run("features.py", "fetch", folder / "fetched", "--llp", "--mirror", "file:///nowhere", fails="cannot be downloaded")
    bundle = folder / "bundle"
    run("export_onnx.py", out, bundle, "--data", data, "--features", "clip_clap", *([] if short else WEIGHTS))
    run("parse.py", bundle / "sample.npz", "--bundle", bundle, "--csv", folder / "sample.csv", "--plot", folder / "sample.png")
    parsed = bundle / "sample.npz" if short else folder / "clips/one.mp4"
    run("parse.py", parsed, "--bundle", bundle, "--json", folder / "one.json")
    scored = folder / "scored"
    scored.mkdir()
    (scored / "labels.csv").write_text("video,labels,split\none,dog,test\n", encoding="utf-8")
    (scored / "events.csv").write_text("video,label,modality,onset,offset\none,dog,audible,0,2\n", encoding="utf-8")
    run("uwav.py", "score", scored / "events.csv", scored)
    if not short:
        run("bench.py", "evaluate", "--device", "cpu")

    seconds = json.loads((folder / "one.json").read_text(encoding="utf-8"))["seconds"]
    assert seconds == (10 if short else 2) and (folder / "sample.csv").stat().st_size and (folder / "sample.png").stat().st_size
    assert (out / "report.html").stat().st_size and (folder / "packed/index.json").stat().st_size
    parsers = {"uwav.py": cli.build_parser(), "features.py": sys.modules["features"].build_parser()}
    commands = {(program, name) for program, parser in parsers.items()
                for action in parser._actions if isinstance(action.choices, dict) for name in action.choices}
    assert commands <= RAN, f"not run: {commands - RAN}"


if __name__ == "__main__":
    print(f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in PACKAGES), flush=True)
    with tempfile.TemporaryDirectory(prefix="uwav-smoke-") as made:
        import features  # noqa: F401  the module whose list of commands is looked at
        import tiny_extract

        with tiny_extract.small_encoders():
            main(Path(made), sys.argv[1:] == ["--short"])
