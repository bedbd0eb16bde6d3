"""The data command: from annotations, feature files and videos to the arrays that `uwav.py` trains on.

    python features.py demo OUT            # an invented LLP and UnAV-100                      (data/demo_world.py)
    python features.py fetch DIR           # the published annotations and features            (data/fetch.py)
    python features.py extract VIDEOS OUT  # videos -> CLIP and CLAP embeddings                (video/)
    python features.py text CLASSES OUT    # class names -> text embeddings                    (video/encoders.py)
    python features.py compare MINE THEIRS # are these features the same, or what differs      (video/compare.py)
    python features.py template VIDEOS OUT # tables for labels of your own, to be filled in    (data/annotations.py)
    python features.py check OWN           # your tables beside your clips, before any encoder (video/check.py)
    python features.py pack SOURCE OUT     # thousands of small .npy files -> a packed folder  (data/pack.py)
"""

from __future__ import annotations

import argparse
import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from common.command import Parser, one_sentence_errors, working_in
from common.devices import ranks
from data.annotations import LLP_SEGMENTS, read_classes, read_llp, read_unav, write_template
from data.layout import packed_feature_sets
from data.pack import pack
from video import RECIPES


def _encoders(options: argparse.Namespace) -> tuple[dict[str, Path | None], dict[str, object], str]:
    """The files of weights that were asked for, what a folder of features remembers of them, and the device."""
    from video import weights

    usual = RECIPES[options.recipe].weights
    files, noted = weights.chosen({x: getattr(options, f"{x}_weights") or w for x, w in usual.items()})
    from common.devices import choose_device  # with PyTorch, but first a missing file is said

    return files, dict(recipe=options.recipe, **noted), choose_device(options.device)


def run_demo(options: argparse.Namespace) -> None:
    from data import demo_world

    llp, unav = options.llp and read_llp(options.llp), options.unav and read_unav(options.unav)
    with working_in(options.out):
        demo_world.make(options.out, demo_world.WorldConfig(seed=options.seed), llp, unav, options.replace)


def run_pack(options: argparse.Namespace) -> None:
    with working_in(options.out):
        index = pack(options.source, options.out, options.workers, options.missing, options.replace,
                     options.windows or 0)
    counts = [f"{sum(map(len, index[x]['videos'].values())):,} videos of {x}" for x in ("llp", "unav") if x in index]
    print(f"{options.out}: whole, {' and '.join(counts)}; feature sets: {', '.join(packed_feature_sets(index))}")


def run_check(options: argparse.Namespace) -> None:
    from video import check

    check.check(options.own, options.videos, options.segments, options.windows, options.missing, options.longest,
                list(filter(None, options.accept.split(","))))


def run_extract(options: argparse.Namespace) -> None:
    """`extract`: everything that can be refused is refused before the encoders are built."""
    files, made_with, device = _encoders(options)
    from video import encoders, extract

    part = extract.part_of(options.out, options.shard)
    segments, on_gpu = LLP_SEGMENTS if options.llp else options.segments, device.startswith("cuda")
    made_with |= dict(segments=segments, precision="half" if on_gpu else "single")
    extract.check(options.videos, options.out, made_with)
    gelu = made_with["clip_weights"].get("activation", "quickgelu")
    built = functools.cache(lambda: (encoders.ClipEncoder(files["clip"], device, activation=gelu).images,
                                     encoders.ClapEncoder(files["clap"], device).sounds))
    lock = threading.Lock()  # one thread builds them, for the first video that needs them

    def encode(kind: int, x: np.ndarray) -> np.ndarray:
        with lock:
            encoder = built()[kind]
        return encoder(x)

    with working_in(options.out), working_in(part):
        extract.check(options.videos, options.out, made_with)  # again, now that nobody else writes there
        extract.extract(options.videos, options.out, functools.partial(encode, 0), functools.partial(encode, 1),
                        made_with, options.llp, segments, options.missing, options.longest, options.recipe,
                        options.workers, group=options.group or (16 if on_gpu else 1), shard=options.shard,
                        threads=1 if on_gpu else encoders.cpu_threads(), retry=options.retry)


def run_text(options: argparse.Namespace) -> None:
    """`text`: class embeddings. CLAP's tokenizer comes from the hub even where the weights come from a file."""
    from video import weights

    if options.clap_weights != weights.RANDOM:
        weights.online()
    files, made_with, device = _encoders(options)
    from video import encoders, extract

    gelu, classes = made_with["clip_weights"].get("activation", "quickgelu"), read_classes(options.classes)
    with working_in(options.out):
        extract.write_texts(classes, options.out,
                            lambda texts: encoders.ClipEncoder(files["clip"], device, activation=gelu).texts(texts),
                            lambda texts: encoders.clap_texts(texts, files["clap"], device), made_with,
                            RECIPES[options.recipe])
    for name, file in files.items():
        if file:
            print(encoders.told_by_scale(name, file))


def run_compare(options: argparse.Namespace) -> None:
    import uwav
    from train.checkpoints import load_model
    from video import compare

    teacher = options.teacher and load_model(options.teacher, kind=uwav.Teacher)
    compare.compare(options.mine, options.theirs, teacher)


def run_fetch(options: argparse.Namespace) -> None:
    from data.fetch import fetch

    datasets = [name for name, wanted in (("LLP", options.llp), ("UnAV", options.unav)) if wanted]
    with working_in(options.folder):
        fetch(options.folder, tuple(datasets or ("LLP", "UnAV")), options.mirror)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description="Videos, feature files and annotations -> arrays that uwav.py trains on.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, run: Callable) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        sub.set_defaults(run=run)
        return sub

    def replaceable(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("out", type=Path, help="packed folder to write (continued if a run was interrupted)")
        sub.add_argument("--replace", action="store_true",
                         help="replace another finished pack, once this one is whole")

    def encoded(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("out", type=Path, help="gets feats_CLIP/ and feats_CLAP/ (continued if interrupted)")
        sub.add_argument("--recipe", choices=RECIPES, default="uwav", help="how videos and names are prepared, and the "
                         "weights: video/__init__.py; valor never ran with real weights (default: %(default)s)")
        sub.add_argument("--clip-weights", metavar="openai|random|FILE", help="of CLIP ViT-L/14; a file as "
                         "quickgelu:FILE or gelu:FILE, as it was trained, unless open_clip_config.json is beside it")
        sub.add_argument("--clap-weights", metavar="NAME|random|FILE", help="a checkpoint of laion_clap")
        sub.add_argument("--device", help="cpu, cuda or cuda:1 (default: cuda where there is a GPU)")

    def lenient(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--missing", choices=("skip", "zeros"), default="skip",
                         help="a video without sound or picture; zeros: use it; what it lacks is not silence")
        sub.add_argument("--longest", type=float, default=600.0, metavar="S", help="refuse longer (default: 600 s)")

    sub = command("demo", "an invented LLP and UnAV-100, or the real annotations with invented features", run_demo)
    replaceable(sub)
    sub.add_argument("--llp", type=Path, metavar="DIR", help="take LLP's real annotations, AVVP_*.csv, from here")
    sub.add_argument("--unav", type=Path, metavar="FILE", help="and UnAV's, unav100_annotations.json")
    sub.add_argument("--seed", type=int, default=0)

    sub = command("pack", "thousands of small .npy files -> a few arrays", run_pack)
    sub.add_argument("source", type=Path, help="folder with LLP/ and UnAV/, or your own (docs/own_videos.md)")
    replaceable(sub)
    sub.add_argument("--workers", type=int, help="threads that read (default: a few more than cores)")
    sub.add_argument("--missing", choices=("stop", "skip"), default="stop", help="for a video without features")
    sub.add_argument("--windows", type=int, metavar="N", help="cut your own clips into pieces of N seconds")

    sub = command("extract", "videos -> CLIP and CLAP embeddings, one file a video", run_extract)
    sub.add_argument("videos", type=Path, help="folder of videos; a file's place in it, without its ending, is its id")
    encoded(sub)
    lenient(sub)
    length = sub.add_mutually_exclusive_group()
    length.add_argument("--llp", action="store_true", help="LLP's videos, <id> or <id>_<start>_<end>: 10 segments each")
    length.add_argument("--segments", type=int, help="of every video (default: its length in s, rounded up)")
    sub.add_argument("--workers", type=int, help="processes that decode (default: one per core)")
    sub.add_argument("--group", type=int, help="videos encoded together (default: 16 on a GPU, 1 on a CPU)")
    sub.add_argument("--retry", action="store_true", help="try the videos of failures.csv again")
    sub.add_argument("--shard", metavar="K/N", help="every N-th group of videos, from the K-th on (docs/scale.md)")

    sub = command("text", "class names -> CLIP and CLAP text embeddings", run_text)
    sub.add_argument("classes", help="llp, UnAV-100's annotation file, your labels.csv, or a text file, one a line")
    encoded(sub)

    sub = command("compare", "are features of the same videos alike? (never run on real ones)", run_compare)
    for name in ("mine", "theirs"):
        sub.add_argument(name, type=Path, help="folder with feats_CLAP/, feats_CLIP/, feats/, as LLP/ of the authors")
    sub.add_argument("--teacher", type=Path, metavar="FILE", help="also compare the labels of this teacher")

    sub = command("template", "labels.csv and events.csv with your videos filled in, for a spreadsheet",
                  lambda options: write_template(options.videos, options.out))
    sub.add_argument("videos", type=Path, help="folder of videos")
    sub.add_argument("out", type=Path, nargs="?", default=Path("own"), help="folder for them (default: %(default)s)")

    sub = command("check", "your tables beside your clips: what will become of each, and what is doubtful", run_check)
    sub.add_argument("own", type=Path, help="folder with labels.csv; gets clips.csv, the table that is printed")
    sub.add_argument("--videos", type=Path, metavar="CLIPS", required=True, help="their folder")
    sub.add_argument("--segments", type=int, default=10, help="seconds of every clip that are used (default: 10)")
    sub.add_argument("--windows", action="store_true", help="longer clips will be several examples")
    sub.add_argument("--accept", metavar="KIND,...", default="", help="go on in spite of what is doubtful")
    lenient(sub)

    sub = command("fetch", "download the published annotations and features (tried on a local server only)", run_fetch)
    sub.add_argument("folder", type=Path, help="gets LLP/ and UnAV/, as `pack` reads them")
    sub.add_argument("--llp", action="store_true", help="fetch LLP alone (default: both)")
    sub.add_argument("--unav", action="store_true", help="fetch UnAV-100 alone (default: both)")
    sub.add_argument("--mirror", metavar="URL", default=os.environ.get("UWAV_MIRROR"),
                     help="a server that has all these files in one place (default: $UWAV_MIRROR, if set)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with one_sentence_errors(less=""), ranks(options):
        for name in ("segments", "windows", "longest", "workers", "group"):
            value = getattr(options, name, None)
            if type(value) in (int, float) and not value > 0:
                raise ValueError(f"--{name} {value}: must be above 0")
        options.run(options)


if __name__ == "__main__":
    main()
