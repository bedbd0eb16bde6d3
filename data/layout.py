"""The packed folder, which every stage reads: names, sizes, encoders, and its index.

LLP is the target; made from your own data, a folder has these in the place of LLP, no `unav`, and of `val` and `test`
only what you annotated. N videos in a split, T segments, C classes, D size of a feature.

    index.json                                        written last: its presence means "complete"
    llp/text_{clap,clip}.npy                          (C, 512) (C, 768) float32, unit length
    llp/{train,val,test}/weak.npy                     (N, C) uint8
    llp/{val,test}/{audio,visual}.npy                 (N, T, C) uint8, the dense truth
    llp/{train,val,test}/{clap,clip,...}.npy          (N, T, D) float16
    unav/text_{clap,clip}.npy                         (C, D) float32
    unav/{train,validation,test}/{clap,clip}.npy      (all segments of the split, D) float16
    unav/{train,validation,test}/{label,length}.npy   (all segments, C) uint8; (N,) int64
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.command import progress
from common.files import (file_hash, hash_of, is_id, json_text, read_json, read_sealed, reading, temporary_of,
                          write_array, write_json, write_sealed)
from data.annotations import LLP, LLP_WEAK_FILES, UNAV_SPLITS, UnAV, some

@dataclass(frozen=True)
class Encoder:
    """A frozen network: each second of a video -> `per_second` vectors of `size`."""

    size: int
    folder: str  # of <id>.npy, in LLP/ and UnAV/ of the authors and in a folder of your own
    per_second: int = 1
    # Of those that embed class names as well: `extract`, `text` and export_onnx.py run them, the teacher reads them.
    texts: str = ""  # file of the class embeddings, (C, size)
    module: str = ""
    package: str = ""  # that has the module
    model: str = ""  # its name there; empty: the weights tell
    weights: tuple[str, ...] = ()  # that can be had by name; which is the default, RECIPES in video/ say
    repository: str = ""  # of the hub
    files: tuple[str, ...] = ()  # in it, {}: the name


ENCODERS = {  # by the names of packed arrays
    "clap": Encoder(
        512, "feats_CLAP/segment_feats", texts="feats_CLAP/event_feats/all_event_feats.npy", module="laion_clap",
        package="laion-clap", repository="lukewys/laion_clap", files=("{}.pt",),
        weights=("630k-audioset-best", "630k-best", "630k-audioset-fusion-best", "630k-fusion-best",
                 "music_audioset_epoch_15_esc_90.14", "music_speech_audioset_epoch_15_esc_89.98",
                 "music_speech_epoch_15_esc_89.25")),
    "clip": Encoder(
        768, "feats_CLIP/segment_feats", texts="feats_CLIP/event_feats/all_event_feats.npy", module="open_clip",
        package="open_clip_torch", weights=("openai",),
        model="ViT-L-14-quickgelu",  # OpenAI's weights need QuickGELU; "ViT-L-14" would build GELU without a word
        repository="timm/vit_large_patch14_clip_224.openai",  # where open_clip takes them from
        files=("open_clip_model.safetensors", "open_clip_pytorch_model.bin")),
    "vggish": Encoder(128, "feats/vggish"),
    "res152": Encoder(2048, "feats/res152", 8),
    "r2plus1d_18": Encoder(512, "feats/r2plus1d_18"),
}
TEXTED = {name: encoder for name, encoder in ENCODERS.items() if encoder.texts}
FORMAT = 2  # of the packed folder; raised when its layout changes
RANDOM_SOURCE, RANDOM_WEIGHTS = "pack, encoders with random weights", {"weights": "random"}
ARRAYS = {  # every file that a pack may name
    *(f"{dataset}/text_{name}.npy" for dataset in ("llp", "unav") for name in TEXTED),
    *(f"llp/{split}/{name}.npy" for split in LLP_WEAK_FILES for name in ("weak", "audio", "visual", *ENCODERS)),
    *(f"unav/{split}/{name}.npy" for split in UNAV_SPLITS for name in ("label", "length", *TEXTED))}
# Feature set -> names of (audio, visual 2D, visual 3D) arrays.
FEATURE_SETS = {"base": ("vggish", "res152", "r2plus1d_18"), "clip_clap": ("clap", "clip", None)}


def packed_feature_sets(index: dict) -> list[str]:
    """The feature sets all of whose arrays were packed, base first."""
    packed = {*index["llp"]["features"], None}
    return [name for name, arrays in FEATURE_SETS.items() if packed.issuperset(arrays)]


def feature_set_of(config: object, path: Path) -> str:
    """The feature set whose sizes a uwav.HANConfig has, that of the HAN in `path`."""
    sizes = config.audio_dim, config.visual_2d_dim, config.visual_3d_dim
    for name, arrays in FEATURE_SETS.items():
        if sizes == tuple(ENCODERS[x].size if x else 0 for x in arrays):
            return name
    raise ValueError(f"{path}: reads vectors of {sizes}, which no feature set of {', '.join(FEATURE_SETS)} has")


# What `extract` and `text` note of themselves and must have been alike in what is used together.
MADE_ALIKE = ("recipe", *(f"{name}_weights" for name in TEXTED))


def made_alike(notes: dict[str, dict]) -> dict[str, object]:
    """What notes say of MADE_ALIKE, by where each stands; ValueError if two differ. Weights are the same if their
    content is, whatever the file is called; what a note leaves out, as all of the authors' do, is not compared."""
    said: dict[str, tuple[str, object]] = {}
    for where, note in notes.items():
        for key in note.keys() & set(MADE_ALIKE):
            first, other = said.setdefault(key, (where, note[key]))
            if content(other) != content(note[key]):
                raise ValueError(f"{where}: {key} is {note[key]!r:.200}, but {other!r:.200} in {first}; what is used "
                                 "together must have been made alike")
    return {key: x for key, (_, x) in said.items()}


def content(x: object) -> object:
    """Of a note: of weights from a file, what does not change with its name."""
    return {k: y for k, y in x.items() if k != "weights"} if isinstance(x, dict) and "sha256" in x else x


def check_source(path: Path, recorded: str | None, source: Path, command: str) -> None:
    """FileNotFoundError if `path` was made by another `source` than is there now."""
    if recorded is not None and source.is_file() and recorded != file_hash(source):
        raise FileNotFoundError(f"{path}: made by another {source.stem} than {source}; delete it and make it again "
                                f"with `{command}`")


def read_note(path: Path) -> dict:
    """extract.json or text.json; empty if it is not there. Raises ValueError naming it."""
    if not path.exists():
        return {}
    with reading(path, "not what `extract` or `text` records ({cause}); make it again, into another folder"):
        note = dict(read_json(path))
        return note | dict(classes=list(note["classes"])) if "classes" in note else note


def ids_in(folders: Iterable[Path]) -> set[str]:
    """Of the videos that have a feature file in each of the folders, or in folders below: day1/clip.npy."""
    found = [{file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("[!.]*.npy")}
             for folder in folders]
    return set.intersection(*found)


def encoders_of(index: dict) -> dict[str, object]:
    """By which recipe (video/) and weights the features and texts of a pack were made; empty if nobody noted it."""
    return made_alike({f"{name} of the packed folder": json.loads(text)
                       for name, text in index.get("made_with", {}).items()})


def dry_run(index: dict) -> str:
    """Why numbers made from a packed folder say nothing of real videos; empty if they may."""
    invented = not isinstance(index["source"], str)  # the demo world's is a dict
    return "invented features" if invented else "encoders with random weights" * ("random weights" in index["source"])


def code_of(*patterns: str) -> str:
    """Changes with the code of these files of the repository."""
    root = Path(__file__).resolve().parents[1]
    return hash_of(b"".join(path.read_bytes() for pattern in patterns for path in sorted(root.glob(pattern))))


def make_plan(source: str | dict, llp: LLP, unav: UnAV | None, llp_features: list[str]) -> dict:
    """What index.json says of a pack before its files are there: where the data come from, and what they hold."""
    datasets = {"llp": (llp, llp_features)} | ({"unav": (unav, list(TEXTED))} if unav else {})
    labels = [x for data, _ in datasets.values() for split in data.splits.values() for x in split.labels]
    return {
        "format": FORMAT,
        "code": code_of("data/*.py"),
        "source": source,
        "labels": hash_of(b"".join(f"{x.shape}".encode() + x.tobytes() for x in labels)),
        **{name: {"classes": list(data.classes), "features": features,
                  "videos": {s: split.ids for s, split in data.splits.items()}}
           for name, (data, features) in datasets.items()},
    }


def read_index(folder: str | Path) -> dict:
    """`index.json` of a packed folder. Raises FileNotFoundError or ValueError."""
    path = Path(folder) / "index.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, so {folder} is not a (complete) packed folder; "
                                "make one with `python features.py pack` or `python features.py demo`")
    index = read_sealed(path, f"python features.py pack SOURCE {folder} --replace` or `python features.py demo "
                              f"{folder} --replace")
    with reading(path, "not the index of a pack ({cause})"):
        if index["format"] != FORMAT:
            raise ValueError(f"packed in format {index['format']!r:.20}, this code reads {FORMAT}; pack again, with "
                             "--replace")
        dry_run(index)  # it has a source
        wrong = index["files"].keys() - ARRAYS
        for part in (index["llp"], *[index[name] for name in ("unav",) if name in index]):
            wrong |= {*part["features"]} - ENCODERS.keys() | part["videos"].keys() - {*LLP_WEAK_FILES, *UNAV_SPLITS}
            wrong |= {x for ids in part["videos"].values() for x in ids if not is_id(x)}
            wrong |= {x for x in part["classes"] if "\n" in x}
        if wrong:
            raise ValueError(f"no pack names {some(sorted(map(repr, wrong)), 3)}")
    return index


PART = ".packing"  # inside a packed folder: what is not complete yet
MADE = "made.json"  # in it: the hash of every array that is complete
IN_PART = {f"{PART}/{x}" for name in (*ARRAYS, "plan.json", "index.json", MADE)
           for x in (name, str(temporary_of(Path(name))))}


def files_of(folder: Path) -> set[str]:
    """The files of a pack there, by its index; any, if that is damaged. ValueError if it names others."""
    path = folder / "index.json"
    try:
        named = {*read_sealed(path, "")["files"]}
    except FileNotFoundError:
        return set()
    except (ValueError, LookupError, TypeError):
        named = ARRAYS
    if foreign := sorted(map(repr, named - ARRAYS)):
        raise ValueError(f"{path}: names files that no pack writes ({some(foreign, 3)}); choose another folder")
    return {"index.json", *named}


def begin_pack(out: Path, plan: dict, replace: bool) -> Path | None:
    """The folder to write a pack of `plan` into, with what an interrupted run of the same plan left there; None if
    `out` is that pack already, and whole. ValueError if `out` holds anything that no pack of ours says it wrote, or
    another finished pack and not `replace`."""
    part = out / PART
    ours = files_of(out) | files_of(part) | IN_PART  # the second of a swap that was interrupted
    found = {str(file.relative_to(out)): file for file in out.rglob("*") if file.is_symlink() or not file.is_dir()}
    if foreign := sorted(name for name, file in found.items()  # what is half written is replaced, link or not
                         if name not in ours or (file.is_symlink() and not file.name.startswith("."))):
        raise ValueError(f"{out}: holds files that no pack wrote ({some(foreign, 3)}); choose another folder")
    index: dict = {}
    with contextlib.suppress(FileNotFoundError, *[ValueError] * replace):  # what is damaged may be replaced
        index = read_index(out)
    if index and all(index.get(k) == plan[k] for k in plan if k != "code"):
        if other := index.get("code") != plan["code"]:
            print(f"{out}: made by another version of this code; --replace makes it again", flush=True)
        broken = [name for name, recorded in index["files"].items()  # a second a GB
                  if not (out / name).is_file() or file_hash(out / name) != recorded]
        if not broken and not (other and replace):
            print(f"{out}: already complete")
            shutil.rmtree(part, ignore_errors=True)  # of a run that was killed at its very end
            return None
        print(f"{out}: made again; damaged or gone: {some(broken, 3) or 'nothing'}", flush=True)
    elif index and not replace:
        raise ValueError(f"{out}: holds another finished pack, or one of data that changed since; --replace replaces "
                         "it when the new one is complete (of run_all.sh: --fresh)")
    if _noted(part / "plan.json") != json.loads(json_text(plan)):
        shutil.rmtree(part, ignore_errors=True)
        write_json(part / "plan.json", plan)
    return part


def _noted(path: Path) -> dict:
    """What an interrupted run noted; nothing if that is damaged."""
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        return dict(read_json(path))
    return {}


def write_pack(out: Path, plan: dict, llp: LLP, unav: UnAV | None, replace: bool,
               arrays: dict[str, np.ndarray | Callable[[], np.ndarray | None]]) -> dict:
    """A packed folder (shapes: top of this file) of labels and `arrays`, or what makes them; returns its index, or
    nothing if one could not be made. What an interrupted run of this plan completed stays; its hash was noted then and
    there, so that what changes before the pack is complete is noticed."""
    if (part := begin_pack(out, plan, replace)) is None:
        return read_index(out)
    for split, data in llp.splits.items():
        arrays = arrays | {f"llp/{split}/{name}.npy": x for name, x in zip(("weak", "audio", "visual"), data.labels)}
    for split, data in unav.splits.items() if unav else ():
        length = np.array([len(x) for x in data.labels], np.int64)
        arrays = arrays | {f"unav/{split}/length.npy": length, f"unav/{split}/label.npy": np.concatenate(data.labels)}
    made = {name: x for name, x in _noted(part / MADE).items() if name in arrays}
    for name, x in progress(arrays.items(), desc="pack", unit="array"):
        if (part / name).exists() and made.get(name) == file_hash(part / name):
            continue
        made.pop(name, None)
        if (x := x() if callable(x) else x) is not None:
            write_array(part / name, x)
            made[name] = file_hash(part / name)
            write_json(part / MADE, made)
    return finish_pack(out, plan, made) if made.keys() == arrays.keys() else {}


def finish_pack(out: Path, plan: dict, made: dict[str, str]) -> dict:
    """A pack whose files are all in OUT/.packing takes its place; returns its index. Killed, it is begun again."""
    part = out / PART
    write_sealed(part / "index.json", plan | dict(files=dict(sorted(made.items()))))
    # Of the pack that is replaced; its index goes last, so that what is left stays known.
    for name in sorted(files_of(out), key=lambda name: name == "index.json"):
        (out / name).unlink(missing_ok=True)
    for name in (*made, "index.json"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(part / name, out / name)
    shutil.rmtree(part)
    return read_index(out)
