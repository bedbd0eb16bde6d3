"""From videos to CLIP and CLAP embeddings: what both encoders expect is here. Imports common and data."""

from dataclasses import dataclass

IMAGE_SIZE = 224  # pixels, both sides, of CLIP's pictures
SAMPLE_RATE = 48_000  # Hz, of CLAP's sounds


@dataclass(frozen=True)
class Recipe:
    """How a video of T segments becomes what CLIP and CLAP read, and a class name a text; all by the encoder's name."""

    picture: str  # crop: short side 224, centre crop | squash: both sides 224, whatever the picture's shape
    frames: str  # middle: what is shown in the middle of each second | linspace: T of the frames at 8 a second
    sound: str  # seconds: each second of the video | slices: T equal slices of the whole sound
    weights: dict[str, str]  # unless others are named
    prompts: dict[str, str]


# Which of them the released features were made with is not known; `features.py compare` tells which are like yours.
RECIPES = {
    "uwav": Recipe("crop", "middle", "seconds", {"clip": "openai", "clap": "630k-audioset-best"},
                   {"clip": "A photo of {}", "clap": "This is the sound of {}"}),  # paper, 4.1
    # The same first author's VALOR, utils/cl{i,a}p_preprocess.py of its repository. The phrases it has for CLIP are
    # written by hand for LLP's classes ("A photo of people talking."); any class can have this prompt instead.
    "valor": Recipe("squash", "linspace", "slices", {"clip": "openai", "clap": "630k-fusion-best"},
                    {"clip": "A photo of {}", "clap": "This is a sound of {}"}),
}
