"""Gradient-guided search for trigger tokens: one idea a file; `methods/autoprompt.py` puts them together."""
