"""Carrying out a fusion plan: in memory for a training's start, or from files to a file in one pass."""
