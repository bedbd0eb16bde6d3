"""The systems that the paper compares itself with, and two other backbones: one file each, to be read alone."""
