"""`python features.py` with a small CLIP in place of ViT-L/14 and a shallow CLAP, so that a test can run the real command often.

    python tests/helpers/tiny_extract.py extract VIDEOS OUT [options]
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
TINY_CLIP = {"embed_dim": 768, "quick_gelu": True,
             "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "patch_size": 32},
             "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}}


def register() -> str:
    """Make a small CLIP known to open_clip, with QuickGELU and, under the name `tiny`, with GELU; returns the first's name."""
    from video import encoders

    encoders.import_torchvision()
    import open_clip

    with tempfile.TemporaryDirectory() as folder:
        for name, quick in (("tiny-quickgelu", True), ("tiny", False)):
            path = Path(folder) / f"{name}.json"
            path.write_text(json.dumps(TINY_CLIP | {"quick_gelu": quick}))
            open_clip.add_model_config(path)
    return "tiny-quickgelu"


@contextlib.contextmanager
def small_encoders() -> Iterator[None]:
    """What is built here has a small CLIP and a CLAP of 5 blocks instead of 12: every kind of block is there, those with
    shifted windows, too."""
    from video import encoders

    encoders.clap_package()
    with encoders.quiet():
        from clap_module.htsat import HTSAT_Swin_Transformer as HTSAT
    build = HTSAT.__init__
    with (mock.patch.object(encoders, "CLIP_MODEL", register()),
          mock.patch.object(HTSAT, "__init__", lambda self, **options: build(self, **options | dict(depths=[1, 1, 2, 1])))):
        yield


if __name__ == "__main__":
    import features

    with small_encoders():
        features.main([*sys.argv[1:], "--clip-weights", "random", "--clap-weights", "random", "--device", "cpu"])
