"""`python features.py` with a small CLIP in place of ViT-L/14, so that a test can run the real command often.

    python tests/helpers/tiny_extract.py extract VIDEOS OUT [options]
"""

import json
import sys
import tempfile
from pathlib import Path

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


if __name__ == "__main__":
    import features
    from video import encoders

    encoders.CLIP_MODEL = register()
    features.main([*sys.argv[1:], "--clip-weights", "random", "--clap-weights", "random", "--device", "cpu"])
