"""The model: one file for each published component, and `janus.py` for the whole."""
