"""From videos to CLIP and CLAP embeddings. Imports common and data."""
