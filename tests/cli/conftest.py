"""The command line in this process, with fakes in place of the library's functions."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import mergekit3d
from mergekit3d_cli.app import app


class Result:
    """What a verb returns."""

    def as_json(self):
        return {"dice": 0.5}

    def lines(self):
        return ["Dice 0.5"]


@pytest.fixture
def mergekit():
    """Runs the command line; the outcome has exit_code, stdout and stderr."""
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments], prog_name="mergekit3d")


@pytest.fixture
def fake(monkeypatch):
    """Puts a function in the place of one of the library's; the dictionary it returns holds what that was called with."""

    def install(name, function=None, *, returns=None):
        seen = {}

        def call(*arguments, **keywords):
            seen.update(keywords)
            seen["arguments"] = arguments
            if function is not None:
                return function()
            return Result() if returns is None else returns

        # In the module's dictionary, without looking for what stands there: that would import it.
        monkeypatch.setitem(vars(mergekit3d), name, call)
        return seen

    return install
