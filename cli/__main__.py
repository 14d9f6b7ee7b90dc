"""``python -m mergekit3d_cli``: the command line where its script is not on the path, or under a launcher such as torchrun."""

from __future__ import annotations

from .app import app

app(prog_name="mergekit3d")
