"""Commands in processes forked from one that has imported everything: real processes to kill, without their 5 s of imports each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from .soak import Ended, Stop

SERVER = """
from tests.reliability.forking import serve
serve()
"""


def serve() -> None:
    """Read a request a line from stdin, fork for each, and tell how it ended."""
    import monai.losses
    import monai.networks.nets
    import scipy.ndimage
    import torch

    from mergekit3d_cli.app import app

    del monai, scipy, torch
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            os.chdir(request["folder"])
            with open(request["log"], "w") as log, open(os.devnull) as nothing:
                os.dup2(nothing.fileno(), 0)
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            code = 1
            try:
                app(request["words"])
            except SystemExit as error:
                code = error.code
            finally:
                os._exit(code)
        stop = None if request["stop"] is None else Stop(**request["stop"])
        print(_ended(child, Path(request["folder"]), stop), flush=True)


def _ended(child: int, folder: Path, stop: Stop | None) -> int:
    statuses: list[int] = []

    def has_ended() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        statuses.extend([status] if pid else [])
        return bool(pid)

    if stop is not None and stop.wait(folder, has_ended):
        return os.waitstatus_to_exitcode(statuses[0])
    if stop is not None:
        os.kill(child, stop.number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Forks:
    """What forks; the processes that it makes run commands one after the other."""

    def __init__(self, log: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.log = log
        self.server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, folder: Path, words: tuple[str, ...], stop: Stop | None = None) -> Ended:
        """As `in_a_process` of soak.py."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        request = {"folder": str(folder), "words": words, "stop": None if stop is None else asdict(stop), "log": str(self.log)}
        print(json.dumps(request), file=self.server.stdin, flush=True)
        code = int(self.server.stdout.readline())
        return Ended(code, self.log.read_text(encoding="utf-8", errors="replace"))

    def close(self) -> None:
        """End it."""
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait()
