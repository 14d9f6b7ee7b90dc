"""`mergekit3d` and `python` for a shell, in processes forked from one that has imported everything: without 3 s of imports each.

The program on the PATH hands its arguments, folder, environment and three open files to the server, passes signals on, and ends with the
exit code of the forked process, which dies with it. A shell cannot tell it from the real one: pipes, redirections, `&`, `kill` and `$?`
work, `kill -9` too. What is measured or tested in starting up needs a process of its own.
"""

from __future__ import annotations

import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLIENT = """
import json, os, signal, socket, sys
passed_on = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)  # until there is somebody to tell
server = socket.socket(socket.AF_UNIX)
server.connect(sys.argv[1])
request = json.dumps({"words": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
server.sendall(request)
said = server.makefile()
pid = int(said.readline())
came = []
def pass_on(number, frame):
    came.append(number)
    os.kill(pid, number)
for number in passed_on:
    signal.signal(number, pass_on)
signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
end = said.readline()
if not end and came:  # it ended by the signal
    signal.signal(came[-1], signal.SIG_DFL)
    os.kill(os.getpid(), came[-1])
if not end:
    sys.exit("the process died")
sys.exit(int(end))
"""
HEAVY = (
    "monai.losses",
    "monai.networks.nets",
    "monai.inferers",
    "scipy.ndimage",
    "torch._dynamo",
    "matplotlib.backends.backend_agg",
    "jinja2",
)
"""What commands import inside their functions; all of mergekit3d is imported besides."""


def serve(address: str) -> None:
    """Fork for every program that connects."""
    import mergekit3d
    import mergekit3d_cli.app

    del mergekit3d_cli
    own = [module.name for module in pkgutil.walk_packages(mergekit3d.__path__, "mergekit3d.")]
    for module in (*HEAVY, *own):
        import_module(module)
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    while True:
        connection, _ = server.accept()
        if os.fork() == 0:
            server.close()
            _become(connection)
        connection.close()


def _become(connection: socket.socket) -> None:
    """Turn this process into the program that was asked for; never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, files, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as stream:
        request = json.loads(stream.read(int.from_bytes(length, "big")))
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    connection.sendall(f"{os.getpid()}\n".encode())
    threading.Thread(target=_die_with, args=(connection,), daemon=True).start()
    code = 1
    try:
        _run(request["words"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001  as an interpreter ends
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(f"{code}\n".encode())
        os._exit(0)


def _die_with(connection: socket.socket) -> None:
    """End as suddenly as the program that was killed."""
    connection.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _run(words: list[str]) -> None:
    program, *arguments = words
    sys.path.insert(0, "")
    if program == "mergekit3d":
        from mergekit3d_cli.app import app

        sys.argv = words
        app(arguments, prog_name="mergekit3d")
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


class Warm:
    """The server, and a folder for the PATH with the programs that talk to it."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": ""}
        address = folder / "socket"
        code = f"from tests.warm import serve; serve({str(address)!r})"
        self.server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        assert self.server.stdout is not None
        assert self.server.stdout.readline() == "ready\n"
        self.programs = folder / "programs"
        self.programs.mkdir()
        (folder / "client.py").write_text(CLIENT)
        client = f"{sys.executable} -I -S {folder / 'client.py'} {address}"
        self._write("mergekit3d", f'exec {client} mergekit3d "$@"\n')
        # Code, standard input and what torch starts are for a Python of their own; scripts and modules are most of what pages hold.
        cold = f'case "$1 $2" in "-m torch"*) exec {sys.executable} "$@";; "-m "*) ;; -*) exec {sys.executable} "$@";; esac\n'
        self._write("python", f'{cold}exec {client} python "$@"\n')

    @property
    def command(self) -> str:
        """The path of `mergekit3d`."""
        return str(self.programs / "mergekit3d")

    def _write(self, name: str, text: str) -> None:
        program = self.programs / name
        program.write_text(f"#!/bin/sh\n{text}")
        program.chmod(0o755)

    def close(self) -> None:
        self.server.terminate()
        self.server.wait()
