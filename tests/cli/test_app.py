"""Every error is one line and an exit code; results go to stdout, all else to stderr."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mergekit3d import __version__
from mergekit3d.errors import InputError, Interrupted, LockedError, OutputError, Problems, RecipeError

FUSE = ("fuse", "--recipe", "timm.yaml")


def raiser(error):
    def function():
        raise error

    return function


def command_line(*arguments, **environment):
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "mergekit3d_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (2, RecipeError("bad recipe", where="timm.yaml", todo="mend it")),
        (65, InputError("cannot read", where="m1.pt", found="0 bytes")),
        (74, OutputError("cannot write", where="fused.safetensors")),
        (75, LockedError("another run is writing here")),
        (143, Interrupted("stopped after epoch 3", signal_number=15, todo="pass --resume to go on")),
    ],
)
def test_known_error_is_one_line_and_its_exit_code(mergekit, fake, code, error):
    """The text of the error, nothing on stdout, no traceback."""
    fake("fuse", raiser(error))

    outcome = mergekit(*FUSE)

    assert code == outcome.exit_code
    assert f"error: {error}\n" == outcome.stderr
    assert not outcome.stdout


def test_several_problems_are_a_line_each(mergekit, fake):
    """All problems of a recipe are seen at once."""
    fake("fuse", raiser(Problems([RecipeError("first"), RecipeError("second")])))

    outcome = mergekit(*FUSE)

    assert 2 == outcome.exit_code
    assert "error: first\nerror: second\n" == outcome.stderr


def test_unknown_error_is_one_line_that_names_debug(mergekit, fake):
    """A mistake of ours ends with 70, its first line, and the way to see more."""
    fake("fuse", raiser(ValueError("shapes differ\nlong story")))

    outcome = mergekit(*FUSE)

    assert 70 == outcome.exit_code
    assert "error: internal error: ValueError: shapes differ; run again with --debug to see where\n" == outcome.stderr


@pytest.mark.parametrize("error", [ValueError("shapes differ"), InputError("cannot read")])
def test_debug_shows_the_traceback(mergekit, fake, error):
    """Of known errors too, before the line."""
    fake("fuse", raiser(error))

    outcome = mergekit(*FUSE, "--debug")

    assert outcome.stderr.startswith("Traceback (most recent call last)")
    assert outcome.stderr.splitlines()[-1].startswith("error: ")
    assert "--debug" not in outcome.stderr.splitlines()[-1]


def test_keyboard_interrupt_ends_with_130(mergekit, fake):
    """One word, no traceback."""
    fake("fuse", raiser(KeyboardInterrupt()))

    outcome = mergekit(*FUSE)

    assert 130 == outcome.exit_code
    assert "error: interrupted\n" == outcome.stderr


def test_disk_full_outside_the_atomic_writer_ends_with_74(mergekit, fake):
    """A library that meets a full disk by itself is told in the same words."""
    fake("fuse", raiser(OSError(errno.ENOSPC, "No space left on device", "somewhere")))

    outcome = mergekit(*FUSE)

    assert 74 == outcome.exit_code
    assert "error: cannot write: somewhere: found no space left on device\n" == outcome.stderr


PRINT_METHODS = """
import sys
from mergekit3d_cli.app import app
app(["methods"])
"""


def test_closed_pipe_is_quiet():
    """As with other commands, `mergekit3d ... | head` says nothing."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        outcome = subprocess.run([sys.executable, "-c", PRINT_METHODS], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)

    assert 141 == outcome.returncode
    assert not outcome.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_result_that_cannot_be_printed_ends_with_74():
    """A full disk behind stdout is not taken for success."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        outcome = subprocess.run([sys.executable, "-c", PRINT_METHODS], stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert 74 == outcome.returncode
    assert "error: cannot write the result: found no space left on device\n" == outcome.stderr


def test_result_goes_to_stdout_for_people(mergekit, fake):
    """The lines of the result."""
    fake("fuse")

    outcome = mergekit(*FUSE)

    assert 0 == outcome.exit_code
    assert "Dice 0.5\n" == outcome.stdout


def test_json_is_one_object_whatever_the_library_prints(mergekit, fake):
    """What libraries print goes to stderr."""

    class Chatty:
        def as_json(self):
            return {"dice": float("nan"), "fused": (1, 2)}

    def chat():
        print("some library says hello")
        return Chatty()

    fake("fuse", chat)

    outcome = mergekit(*FUSE, "--json")

    assert {"dice": None, "fused": [1, 2]} == json.loads(outcome.stdout)
    assert 1 == outcome.stdout.count("\n")
    assert "some library says hello\n" == outcome.stderr


def test_matplotlib_does_not_tell_of_its_caches(mergekit, fake):
    """As it does at every figure where HOME cannot be written."""
    fake("fuse")
    logging.getLogger("matplotlib").setLevel(logging.NOTSET)
    mergekit(*FUSE)

    assert not logging.getLogger("matplotlib.font_manager").isEnabledFor(logging.WARNING)


def test_quiet_leaves_warnings_only(mergekit, fake):
    """Progress and messages vanish, warnings stay."""
    seen = fake("fuse")
    mergekit(*FUSE, "--quiet")

    assert seen["reporter"].quiet


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fusee",), "unknown command 'fusee'; did you mean 'fuse'?"),
        (("wibble",), "unknown command 'wibble'; see: mergekit3d --help"),
        (("version",), "unknown command 'version'; did you mean --version?"),
        (("help", "fsue"), "unknown command 'fsue'; did you mean 'fuse'?"),
        (("--verison",), "unknown flag --verison; did you mean --version?"),
        (("--device", "cpu"), "unknown flag --device; it goes behind a command: "),
        (("fuse", "--recepie", "x"), "unknown flag --recepie of fuse; did you mean --recipe?"),
        (("compare", "--data", "x"), "unknown flag --data of compare; fisher, predict, evaluate, forgetting have it"),
        (("finetune", "--epochs", "3"), "unknown flag --epochs of finetune; it is a key of the recipe: --set finetune.epochs=..."),
        (("methods", "--wibble"), "unknown flag --wibble of methods; see: mergekit3d methods --help"),
        (("fuse", "timm.yaml"), "too many arguments for fuse: wanted none, found timm.yaml; did you mean --recipe timm.yaml?"),
        (("verify", "a", "b"), "too many arguments for verify: wanted FILE, found b; see: mergekit3d verify --help"),
        (("fuse", "--recipe"), "--recipe needs a value: wanted RECIPE; see: mergekit3d fuse --help"),
        (("fuse", "--force=1"), "--force takes no value; see: mergekit3d fuse --help"),
        (("fuse", "--precision", "fp16"), "wrong value: --precision: wanted auto, fp32 or bf16, found fp16; did you mean bf16?"),
        (("predict", "--submission", "brast"), "wrong value: --submission: wanted brats, found brast; did you mean brats?"),
        (("fuse", "--seed", "x"), "wrong value: --seed: wanted a whole number of at least 0, found x"),
        (("run", "--jobs", "0"), "wrong value: --jobs: wanted a whole number of at least 1, found 0"),
        (("predict", "--overlap", "1"), "wrong value: --overlap: wanted a number of 0 to 0.99, found 1"),
        (("fuse", "--recipe", "x", "--device", "gpu"), "unknown device: --device: wanted auto, cpu, cuda, cuda:N or mps, found gpu"),
        (("fuse", "--recipe", "x", "--set", "adapt.epochs"), "wanted KEY.PATH=VALUE, such as finetune.epochs=100, found adapt.epochs"),
    ],
)
def test_usage_errors_are_one_line_and_end_with_2(mergekit, fake, arguments, said):
    """Typos get the nearest name, flags of others whose they are, bad values what is allowed; nothing stands on stdout."""
    fake("fuse")

    outcome = mergekit(*arguments)

    assert 2 == outcome.exit_code
    assert outcome.stderr.startswith("error: ")
    assert said in outcome.stderr
    assert 1 == outcome.stderr.count("\n")
    assert not outcome.stdout


def test_version(mergekit):
    """The name and the version."""
    assert f"mergekit3d {__version__}\n" == mergekit("--version").stdout


def test_help_of_a_command_is_had_in_two_ways(mergekit):
    """`help COMMAND` as well as `COMMAND --help`; `help` alone is that of all."""
    assert mergekit("fuse", "--help").stdout == mergekit("help", "fuse").stdout == mergekit("fuse", "-h").stdout
    assert mergekit("--help").stdout == mergekit("help").stdout


def test_help_shows_ways_flags_by_group_and_exit_codes(mergekit):
    """Usage as it is meant, not as it is parsed; arguments are explained; codes where they tell of the command."""
    said = mergekit("predict", "--help").stdout

    assert said.startswith("Usage: mergekit3d predict CKPT... --data DATA --out DIR [OPTIONS]\n")
    assert ["Arguments", "Input", "Options", "Inference", "Computing", "Output", "Messages", "Examples"] == [
        line[:-1] for line in said.splitlines() if line.endswith(":") and line[0].isupper()
    ]
    assert "  CKPT...  Trained networks.\n" in said
    assert said.endswith("Exit code 128 + N after signal N: the state is saved, and --resume goes on.\n")
    both = mergekit("fisher", "--help").stdout
    assert "Usage: mergekit3d fisher CKPT --data DATA [OPTIONS]\n       mergekit3d fisher --recipe RECIPE [OPTIONS]\n" in both


def test_no_command_shows_the_help(mergekit):
    """Exit code 2, as nothing was done; the commands are listed."""
    outcome = mergekit()

    assert 2 == outcome.exit_code
    assert not outcome.stdout
    assert "Usage: mergekit3d COMMAND" in outcome.stderr
    assert "  fuse " in outcome.stderr


def test_no_colour_where_stderr_is_no_terminal():
    """A log file holds no escape sequences."""
    outcome = command_line("finetune", FORCE_COLOR="", NO_COLOR="")

    assert 2 == outcome.returncode
    assert "\033" not in outcome.stderr


@pytest.mark.parametrize(("coloured", "no_colour"), [(True, ""), (False, "1")])
def test_colour_on_a_terminal_unless_no_color(coloured, no_colour):
    """NO_COLOR is respected; without it the label is red."""
    import pty

    main, terminal = pty.openpty()
    environment = {**os.environ, "NO_COLOR": no_colour, "TERM": "xterm"}
    command = [sys.executable, "-m", "mergekit3d_cli", "finetune"]
    subprocess.run(command, stderr=terminal, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=False, env=environment)
    said = os.read(main, 10_000).decode()
    os.close(main)
    os.close(terminal)

    assert coloured == ("\033[" in said)
    assert "finetune needs a recipe" in said


def test_shell_completion_lists_the_commands():
    """Completion works for bash by itself, without imports of the library."""
    outcome = command_line(
        _MERGEKIT3D_COMPLETE="complete_bash", COMP_WORDS="mergekit3d fi", COMP_CWORD="1", _TYPER_COMPLETE_ARGS="mergekit3d fi"
    )

    assert {"fisher", "finetune"} == set(outcome.stdout.split())
