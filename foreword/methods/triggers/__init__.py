"""Gradient-guided search for trigger tokens: one idea a file; `methods/triggers/autoprompt.py` puts them together."""
