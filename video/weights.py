"""Where the weights of CLIP and CLAP are: a file, the hub's cache, the hub; or random ones, for dry runs."""

from __future__ import annotations

import importlib.util
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

from common.files import file_hash, read_json, reading, reason
from data.layout import ENCODERS, RANDOM_WEIGHTS, TEXTED

HUB = "https://huggingface.co"
RANDOM = "random"
NETWORK_WAIT = 2.0  # s


def chosen(choices: dict[str, str]) -> tuple[dict[str, Path | None], dict[str, dict[str, str]]]:
    """By encoder, what `find` finds; and what a folder of features remembers of it, "clip_weights" -> .... Random ones
    are warned of. ValueError if what reads videos and builds the encoders is not installed."""
    packages = {e.module: e.package for e in TEXTED.values()} | dict(av="av", pebble="pebble")
    if missing := [package for module, package in packages.items() if importlib.util.find_spec(module) is None]:
        raise ValueError(f"this command needs packages that are not installed: pip install {' '.join(missing)}")
    files, noted = {x: find(x, choice) for x, choice in choices.items()}, {}
    for x, file in files.items():
        noted[f"{x}_weights"] = dict(weights=Path(choices[x]).name, sha256=file_hash(file)) if file else RANDOM_WEIGHTS
        if x == "clip" and activation(choices[x], file) == "gelu":
            noted["clip_weights"]["activation"] = "gelu"
        if file is None:
            print(f"WARNING: {x.upper()} has RANDOM WEIGHTS. This is a dry run, its embeddings mean nothing.",
                  file=sys.stderr, flush=True)
    return files, noted


def find(encoder: str, choice: str) -> Path | None:
    """The file behind --clip-weights or --clap-weights: one that is named, or from the hub or its cache; None for
    `random`. FileNotFoundError tells the way out, ValueError what a file of CLIP does not say."""
    names, repository = ENCODERS[encoder].weights, ENCODERS[encoder].repository
    files = [file.format(choice) for file in ENCODERS[encoder].files]
    if choice == RANDOM:
        return None
    if choice not in names:
        told, _, named = choice.partition(":")
        file = Path(named if encoder == "clip" and told in ACTIVATIONS else choice)
        if not file.is_file():
            raise FileNotFoundError(f"--{encoder}-weights {choice}: no such file, and not one of "
                                    f"{', '.join(names)}, {RANDOM}")
        if encoder == "clip":
            activation(choice, file)  # which may ask
        return file
    network, cause = online(), "no network"
    import huggingface_hub

    for get in (huggingface_hub.try_to_load_from_cache, *[huggingface_hub.hf_hub_download] * network):
        for file in files:
            try:
                if isinstance(path := get(repository, file), str):
                    return Path(path)
            except Exception as error:  # the hub's own, those of its HTTP library, and OSError
                cause = reason(error)
    raise FileNotFoundError(
        f"the {encoder.upper()} weights {choice!r} are not on this machine and cannot be downloaded ({cause}): bring "
        f"{HUB}/{repository}/resolve/main/{files[-1]} and name that file with --{encoder}-weights FILE"
        + ", as quickgelu:FILE" * (encoder == "clip") + f" (or --{encoder}-weights {RANDOM} for a dry run)")


def online() -> bool:
    """Whether the hub answers; each of its addresses has 2 s. `HF_HUB_OFFLINE=1` says no without asking. Called before
    anything imports the hub's library: that would try for minutes, unless the variable is set, as it is here if the
    answer is no."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    try:
        request = urllib.request.Request(os.environ.get("HF_ENDPOINT", HUB), method="HEAD")
        urllib.request.urlopen(request, timeout=NETWORK_WAIT).close()
    except urllib.error.HTTPError:
        return True  # it answers, if only that it does not like the question
    except Exception:
        os.environ["HF_HUB_OFFLINE"] = "1"
        return False
    return True


ACTIVATIONS = ("quickgelu", "gelu")  # of CLIP


def activation(choice: str, file: Path | None) -> str:
    """That of a CLIP, which its weights do not hold: quickgelu:FILE and gelu:FILE say it, or open_clip_config.json of
    the hub beside the file. ValueError asks, or says that its pictures are normalised otherwise than OpenAI's."""
    told = choice.partition(":")[0]
    if file is None or told in (*ACTIVATIONS, *ENCODERS["clip"].weights):
        return told if told in ACTIVATIONS else "quickgelu"
    path = file.with_name("open_clip_config.json")
    if not path.is_file():
        raise ValueError(f"{file}: does not say whether its CLIP was trained with QuickGELU (as OpenAI's, MetaCLIP's, "
                         f"DFN's) or GELU (as LAION's, DataComp's): name it as quickgelu:{file} or gelu:{file}, or put "
                         f"the {path.name} of its hub beside it")
    with reading(path, "does not describe a CLIP that can be built here ({cause})"):
        content = read_json(path)
        if [round(x, 3) for x in content["preprocess_cfg"]["mean"]] != [0.481, 0.458, 0.408]:
            raise ValueError("its pictures are normalised otherwise than OpenAI's")
        return "quickgelu" if content["model_cfg"].get("quick_gelu") else "gelu"
