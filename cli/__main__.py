"""``python -m mergekit3d_cli``: the command line where its script is not on the path, or under a launcher such as torchrun."""

from __future__ import annotations

import atexit
import os
import sys

from mergekit3d.training.processes import number_of_processes

from .app import app


def main() -> None:
    """Run the command line; one of several processes ends without taking Python's modules apart.

    A thread of torch's connections (torch 2.13) may outlive them, which aborts a process that has done all of its work; the launcher
    then takes the whole job for failed.
    """
    try:
        app(prog_name="mergekit3d")
    except SystemExit as end:
        if number_of_processes() == 1:
            raise
        atexit._run_exitfuncs()  # noqa: SLF001  what os._exit leaves out
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))


main()
