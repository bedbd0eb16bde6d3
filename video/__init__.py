"""From videos to CLIP and CLAP embeddings: what both encoders expect is here. Imports common and data."""

IMAGE_SIZE = 224  # pixels, both sides, of CLIP's pictures
SAMPLE_RATE = 48_000  # Hz, of CLAP's sounds
PROMPTS = {"clip": "A photo of {}", "clap": "This is the sound of {}"}  # paper, 4.1
