"""Figures, one file each; all of matplotlib's object-oriented side, so that nothing global changes."""
