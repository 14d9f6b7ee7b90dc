"""Streams as they are in the field: terminals with and without colours, pipes that close, encodings that lack letters."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys

import pytest

from mergekit3d.errors import InputError, Problems, RecipeError
from mergekit3d_cli.terminal import accept_every_letter, colours

PLAIN = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "PYTHONIOENCODING")}
WORK = """
import sys, time
import mergekit3d
from mergekit3d_cli.app import app
from rich.table import Table

class Result:
    def as_json(self):
        return {"dice": 0.5}
    def __rich__(self):
        table = Table("target", "Dice")
        table.add_row("100 %", "0.5 \\u00b1 0.1")
        return table

def run(recipe, *, reporter, **_):
    reporter.info("reading")
    reporter.warn("no seal")
    with reporter.task("training", 2) as task:
        task.advance(message="loss 0.5")
        time.sleep(0.3)
        task.advance()
    return Result()

vars(mergekit3d)["run"] = run
app(sys.argv[1:], prog_name="mergekit3d")
"""
ARGUMENTS = [sys.executable, "-c", WORK, "run", "r.yaml"]


def on_a_terminal(*arguments, stdout=None, **environment):
    """What a command writes to a terminal of 80 columns, its stdout too unless that goes elsewhere."""
    main, side = pty.openpty()
    environment = {**PLAIN, "TERM": "xterm", "COLUMNS": "80", **environment}
    process = subprocess.Popen([*ARGUMENTS, *arguments], stdout=stdout or side, stderr=side, stdin=subprocess.DEVNULL, env=environment)
    os.close(side)
    said = b""
    while select.select([main], [], [], 60)[0]:
        try:
            part = os.read(main, 65536)
        except OSError:  # nothing holds the terminal any more
            break
        said += part
        if not part:
            break
    process.wait()
    os.close(main)
    return said.decode()


def in_pipes(*arguments, **environment):
    """The same command with pipes for stdout and stderr."""
    return subprocess.run([*ARGUMENTS, *arguments], capture_output=True, check=False, env={**PLAIN, **environment})


def test_terminal_gets_bars_and_colours():
    """A bar while the work goes on, a yellow warning, a table; stderr alone, where stdout goes elsewhere."""
    said = on_a_terminal()

    assert "\x1b[33mwarning: no seal" in said
    assert "loss 0.5" in said
    assert "1/2" in said
    assert "0.5 ± 0.1" in said
    assert "training: done in" in said


def test_terminal_without_colours_keeps_its_bars():
    """NO_COLOR: the cursor moves, nothing is coloured or bold."""
    said = on_a_terminal(NO_COLOR="1")

    assert "1/2" in said
    assert "\x1b[2K" in said
    assert not [code for code in said.split("\x1b[")[1:] if code.lstrip("0123456789;").startswith("m")]


def test_dumb_terminal_gets_plain_lines():
    """Without an escape sequence."""
    said = on_a_terminal(TERM="dumb")

    assert "\x1b" not in said
    assert "reading\r\nwarning: no seal\r\ntraining: done in" in said
    assert "1/2" not in said


def test_pipes_get_plain_lines():
    """One line for a short task on stderr; the table alone on stdout."""
    outcome = in_pipes()

    assert b"\x1b" not in outcome.stdout + outcome.stderr
    assert 3 == outcome.stderr.count(b"\n")
    assert outcome.stderr.startswith(b"reading\nwarning: no seal\ntraining: done in ")
    assert "0.5 ± 0.1".encode() in outcome.stdout


def test_forced_colours_go_into_a_pipe():
    """FORCE_COLOR colours labels and tables; bars stay on terminals."""
    outcome = in_pipes(FORCE_COLOR="1")

    assert b"\x1b[33mwarning:\x1b[0m no seal\n" in outcome.stderr
    assert b"1/2" not in outcome.stderr
    assert b"\x1b[1m" in outcome.stdout


def test_quiet_leaves_warnings_alone():
    """Nothing of the progress, on a pipe or a terminal."""
    assert b"warning: no seal\n" == in_pipes("--quiet").stderr
    assert '\x1b[33mwarning:\x1b[0m no seal\r\n{"dice": 0.5}\r\n' == on_a_terminal("--quiet", "--json")


def test_ascii_stdout_gets_ascii():
    """A table with letters that the encoding lacks is written in others, and its boxes of signs that every terminal has."""
    outcome = in_pipes(PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")

    assert 0 == outcome.returncode, outcome.stderr
    assert b"0.5 +- 0.1" in outcome.stdout
    assert outcome.stdout.isascii()
    assert json.loads(in_pipes("--json", PYTHONIOENCODING="ascii").stdout)


def test_streams_take_every_letter(monkeypatch):
    """What has no likeness is spelt out; file names may hold bytes that are no text."""
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    accept_every_letter()
    print("0.1 × 0.2 → … é \udcff 脑", flush=True)

    assert b"0.1 x 0.2 -> ... \\xe9 \\udcff \\u8111\n" == raw.getvalue()


@pytest.mark.parametrize(
    ("expected", "terminal", "environment"),
    [
        (True, True, {}),
        (False, False, {}),
        (False, True, {"NO_COLOR": "1"}),
        (False, True, {"NO_COLOR": "1", "FORCE_COLOR": "1"}),
        (True, True, {"NO_COLOR": ""}),
        (True, False, {"FORCE_COLOR": "1"}),
        (False, True, {"FORCE_COLOR": "0"}),
        (False, False, {"FORCE_COLOR": ""}),
        (False, True, {"TERM": "dumb"}),
        (True, True, {"TERM": "dumb", "FORCE_COLOR": "1"}),
    ],
)
def test_when_to_colour(monkeypatch, expected, terminal, environment):
    """NO_COLOR beats FORCE_COLOR, which beats what the stream is; empty ones are not set."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)

    assert expected == colours(stream)


@pytest.mark.parametrize("arguments", [["--help"], ["fuse", "--help"]], ids=" ".join)
def test_pipe_that_closes_early_is_quiet(arguments):
    """As behind `| head -1`: no traceback, and the code of SIGPIPE."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mergekit3d_cli", *arguments]
    outcome = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, text=True)
    os.close(writer)

    assert (141, "") == (outcome.returncode, outcome.stderr)


def test_closed_stdout_is_told():
    """`>&-` loses the result, which is not taken for success."""
    outcome = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -m mergekit3d_cli methods >&-'], capture_output=True, text=True, check=False
    )

    assert (74, "error: cannot write the result: found stdout is closed\n") == (outcome.returncode, outcome.stderr)


def raiser(error):
    def function():
        raise error

    return function


def test_error_is_an_object_too_where_json_is_asked_for(mergekit, fake):
    """In its parts, beside the line on stderr; several problems are a list."""
    fake("fuse", raiser(InputError("cannot read", where="m1.pt", wanted="a file", found="a folder", todo="pass a file")))
    outcome = mergekit("fuse", "--recipe", "r.yaml", "--json")

    parts = {"failed": "cannot read", "where": "m1.pt", "wanted": "a file", "found": "a folder", "todo": "pass a file"}
    message = "cannot read: m1.pt: wanted a file, found a folder; pass a file"
    assert {"error": {"exit_code": 65, "problems": [{"message": message, **parts}]}} == json.loads(outcome.stdout)
    assert 1 == outcome.stdout.count("\n")
    assert (65, f"error: {message}\n") == (outcome.exit_code, outcome.stderr)
    fake("fuse", raiser(Problems([RecipeError("first"), RecipeError("second", found=2)])))
    told = json.loads(mergekit("fuse", "--recipe", "r.yaml", "--json").stdout)["error"]
    assert (2, ["first", "second: found 2"]) == (told["exit_code"], [problem["message"] for problem in told["problems"]])


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (70, ValueError("a bug")),
        (130, KeyboardInterrupt()),
        (71, MemoryError()),
        (71, RuntimeError("CUDA out of memory. Tried to allocate")),
    ],
)
def test_every_end_is_an_object_where_json_is_asked_for(mergekit, fake, code, error):
    """Bugs, interruption and exhausted memory as well."""
    fake("fuse", raiser(error))
    outcome = mergekit("fuse", "--recipe", "r.yaml", "--json")

    assert code == outcome.exit_code == json.loads(outcome.stdout)["error"]["exit_code"]


@pytest.mark.parametrize("arguments", [["fsue"], ["fuse", "--recepie", "r"], ["fuse", "--seed", "x"], ["fuse"]], ids=" ".join)
def test_wrong_arguments_are_an_object_where_json_is_asked_for(mergekit, arguments):
    """What the parser refuses, too."""
    outcome = mergekit(*arguments, "--json")

    assert 2 == outcome.exit_code == json.loads(outcome.stdout)["error"]["exit_code"]
    assert 1 == outcome.stderr.count("\n")


def test_exhausted_memory_says_what_to_make_smaller(mergekit, fake):
    """In one line, of numpy's, torch's and the system's errors."""
    fake("fuse", raiser(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes\nmore")))

    said = "out of memory: found DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
    todo = "make patch_size or batch_size smaller, or pass --device cpu where it is the GPU's"
    assert f"error: {said}; {todo}\n" == mergekit("fuse", "--recipe", "r.yaml").stderr
