"""The stages of a run, their files, and the ablation. Imports common, uwav and data."""
