"""The systems that the paper compares itself with, one flat file each; `uwav.py` imports none of them."""
