"""Completion answers what shells ask, by the protocol of Typer's scripts and in real shells, without loading the library."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
import typing
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from mergekit3d.architectures import ARCHITECTURES
from mergekit3d.checkpoints.formats import FORMATS
from mergekit3d.datasets.labels import OUTPUT_SETS
from mergekit3d.datasets.layouts import LAYOUTS
from mergekit3d.merging.methods import METHODS
from mergekit3d.recipe.models import Recipe
from mergekit3d_cli import known
from mergekit3d_cli.app import app
from mergekit3d_cli.completion import completions

GROUP = typer.main.get_command(app)
PROGRAM = """
import sys
from mergekit3d_cli.app import app
try:
    app(prog_name="mergekit3d")
finally:
    print(len({"torch", "monai", "numpy", "pydantic", "rich", "yaml"} & set(sys.modules)), file=sys.stderr)
"""


def offered(*words):
    """The values for the last of the words."""
    return [value for value, _ in completions(GROUP, words[:-1], words[-1])]


def answer(shell, **environment):
    """What a shell's script is answered in a process of its own."""
    environment = {**os.environ, "_MERGEKIT3D_COMPLETE": f"complete_{shell}", **environment}
    return subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        (["fisher", "finetune"], ["fi"]),
        (["fuse"], ["help", "fu"]),
        (["--version"], ["--v"]),
        (["--recipe", "--resume"], ["fuse", "--re"]),
        (["--recipe", "--resume"], ["fuse", "--set", "seed=1", "--re"]),
        (["--resume"], ["fuse", "--recipe", "r.yaml", "--re"]),
        (["--set", "--seed"], ["fuse", "--set", "seed=1", "--se"]),
        (["--no-n4"], ["preprocess", "in", "out", "--no-n"]),
        (["brats2018", "brats2023", "brats2024"], ["inspect", "--layout", "br"]),
        (["hcp-1-14", "hcp-1-7", "hcp-8-14"], ["evaluate", "--regions", "hcp"]),
        (["auto", "fp32", "bf16"], ["fuse", "--precision", ""]),
        (["--precision=bf16"], ["fuse", "--precision=b"]),
        (["cuda", "cuda:0", "cuda:1"], ["fuse", "--device", "cu"]),
        (["nnunet"], ["convert", "a.pt", "b", "--to", "nn"]),
        (["zscore"], ["preprocess", "--intensity", "z"]),
        (["isensee2017"], ["fisher", "--architecture", "i"]),
        (["t1,t2"], ["fisher", "--modalities", "t1,t2"]),
        (["target.", "train."], ["run", "--set", "t"]),
        (["adapt.objective.entropy=", "adapt.objective.supervised="], ["adapt", "--set", "adapt.ob"]),
        (["merge.method=task-arithmetic", "merge.method=ties", "merge.method=timm"], ["fuse", "--set", "merge.method=t"]),
        (["adapt.epochs=", "adapt.epochs=20"], ["adapt", "--set", "adapt.ep"]),
        ([], ["verify", ""]),
        ([], ["fuse", "--recipe", ""]),
        ([], ["fuse", "--seed", ""]),
        ([], ["nothing", ""]),
    ],
)
def test_what_is_offered(expected, words):
    """Commands, flags that are not given yet, and values; nothing where files are meant, which shells know themselves."""
    assert expected == offered(*words)


def test_commands_without_arguments_offer_their_flags():
    """There is nothing else to say."""
    assert {"--recipe", "--set", "--help"} <= set(offered("fuse", ""))


def keys_of(model, before=""):
    """Every key that --set takes, with the words that it is one of."""
    found = {}
    for name, field in model.model_fields.items():
        inner, words = _parts(field.annotation)
        for part in inner:
            found |= keys_of(part, f"{before}{name}.")
        if not inner or words or str in typing.get_args(field.annotation):
            found[before + name] = words
    return found


def _parts(annotation):
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation], []
    if origin is typing.Literal:
        return [], [str(word).lower() if isinstance(word, bool) else str(word) for word in arguments]
    if annotation is bool:
        return [], ["false", "true"]
    if origin in (dict, tuple, list):
        return [], []
    parts = [_parts(argument) for argument in arguments]
    return [model for models, _ in parts for model in models], [word for _, words in parts for word in words]


def test_known_names_are_those_of_the_library():
    """Completion loads none of it: names and keys stand in a file of their own, which must not fall behind."""
    keys = keys_of(Recipe)

    assert set(keys) == set(known.KEYS)
    for key, words in keys.items():
        assert tuple(words) in {(), known.KEYS[key]}, key
    assert tuple(sorted(METHODS)) == known.METHODS
    assert tuple(sorted(LAYOUTS)) == known.LAYOUTS
    assert tuple(sorted(OUTPUT_SETS)) == known.REGIONS
    assert set(ARCHITECTURES) == {name for name in known.ARCHITECTURES if "." not in name}
    assert set(known.FORMATS) <= set(FORMATS)


def test_bash_is_answered_without_the_library():
    """Words that it split at "=" are put together, and what is before the last "=" is left out; nothing heavy is loaded."""
    words = ["mergekit3d", "fuse", "--set", "merge.method", "=", "t"]
    outcome = answer("bash", COMP_WORDS="\n".join(words), COMP_CWORD="5")

    assert ["task-arithmetic", "ties", "timm"] == outcome.stdout.split()
    assert (0, "0\n") == (outcome.returncode, outcome.stderr)


def test_zsh_is_answered_with_what_values_are():
    """As the call that its script evaluates; with files where nothing is offered."""
    said = answer("zsh", _TYPER_COMPLETE_ARGS="mergekit3d fuse --plot --pl").stdout
    assert "_files\n" == said
    said = answer("zsh", _TYPER_COMPLETE_ARGS="mergekit3d fuse --pl").stdout
    assert '_arguments \'*: :(("--plot":"Draw the report too\\\\: <stem>.report.png."))\'\n' == said


def test_fish_is_answered_in_two_calls():
    """Whether there is anything to offer, and what."""
    asked = {"_TYPER_COMPLETE_ARGS": "mergekit3d fu", "_TYPER_COMPLETE_FISH_ACTION": "is-args"}
    assert 0 == answer("fish", **asked).returncode
    assert (
        "fuse\tFuse the sources of a recipe into one checkpoint.\n"
        == answer("fish", **asked | {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}).stdout
    )
    assert 1 == answer("fish", **asked | {"_TYPER_COMPLETE_ARGS": "mergekit3d verify "}).returncode


@pytest.fixture
def shell_environment(tmp_path):
    """A PATH on which `mergekit3d` is this one, and a folder with a recipe."""
    script = tmp_path / "bin" / "mergekit3d"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom mergekit3d_cli.app import app\napp(prog_name='mergekit3d')\n")
    script.chmod(0o755)
    (tmp_path / "recipe one.yaml").touch()
    return {**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "xterm", "INPUTRC": "/dev/null"}


def typed(command, steps, environment, folder, patience_s=30.0):
    """What a shell on a terminal shows, step by step: what is typed, and what must then appear."""
    main, side = pty.openpty()
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=environment, cwd=folder, start_new_session=True)
    os.close(side)
    said = b""
    try:
        for text, awaited in steps:
            os.write(main, text.encode())
            end = time.monotonic() + patience_s
            while awaited.encode() not in said and time.monotonic() < end:
                if select.select([main], [], [], 0.1)[0]:
                    said += os.read(main, 65536)
            assert awaited.encode() in said, said.decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        os.close(main)


@pytest.mark.parametrize(("shell", "flags"), [("bash", ("--norc", "--noprofile", "-i")), ("zsh", ("-f", "-i"))])
def test_tab_completes_in_a_real_shell(shell, flags, shell_environment, tmp_path):
    """The script of --show-completion, sourced by a shell at whose prompt the Tab is pressed: a command, a key's value, a file."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    begin = "autoload -Uz compinit; compinit -u; " if shell == "zsh" else ""
    source = f"{begin}source <(_MERGEKIT3D_COMPLETE=source_{shell} mergekit3d); echo rea''dy\n"
    steps = [
        (source, "ready"),
        ("mergekit3d fus\t", "mergekit3d fuse"),
        ("--set merge.method=ta\t", "merge.method=task-arithmetic"),
        (" --recipe reci\t", "recipe\\ one.yaml"),
    ]
    typed([shell, *flags], steps, shell_environment, tmp_path)


def test_fish_completes(shell_environment):
    """As it asks for itself."""
    if shutil.which("fish") is None:
        pytest.skip("no fish here")
    ask = "_MERGEKIT3D_COMPLETE=source_fish mergekit3d | source; complete -C 'mergekit3d fuse --set merge.method=ta'"
    outcome = subprocess.run(["fish", "--no-config", "-c", ask], capture_output=True, text=True, check=True, env=shell_environment)

    assert "merge.method=task-arithmetic" == outcome.stdout.strip()


def test_scripts_are_handed_out_and_installed(shell_environment):
    """For the shell that the command is called from; bash reads it from its .bashrc."""
    run = ["bash", "--norc", "-c", "mergekit3d --show-completion; mergekit3d --install-completion; true"]
    outcome = subprocess.run(run, capture_output=True, text=True, check=True, env=shell_environment)
    home = Path(shell_environment["HOME"])

    assert "complete -o default -F _mergekit3d_completion mergekit3d" in outcome.stdout
    assert (home / ".bash_completions" / "mergekit3d.sh").is_file()
    assert re.search(r"source '.*/mergekit3d\.sh'", (home / ".bashrc").read_text())
