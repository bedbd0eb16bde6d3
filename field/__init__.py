"""The systems that the paper compares itself with, one flat file each. HAN and shapes: uwav.py, sections 1 and 3."""
