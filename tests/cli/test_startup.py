"""The command line starts without the heavy libraries."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from mergekit3d.architectures import NetworkSpec
from tests.builders import save_source

HEAVY = {"torch", "monai", "nibabel", "scipy", "matplotlib", "numpy", "pydantic", "yaml", "safetensors", "jinja2", "SimpleITK"}
RUN = """
import json, sys
from mergekit3d_cli.app import app
try:
    app(sys.argv[1:], prog_name="mergekit3d")
except SystemExit:
    pass
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["finetune", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments):
    """No torch, no imaging library, no numpy, not even rich."""
    outcome = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=True)
    loaded = set(json.loads(outcome.stderr.splitlines()[-1]))

    assert outcome.stdout
    assert set() == loaded & (HEAVY | {"rich"})


@pytest.mark.parametrize("flags", [[], ["--json"], ["--values"]], ids=["lines", "json", "values"])
@pytest.mark.parametrize("number", [1, 2])
def test_inspect_of_safetensors_imports_numpy_at_most(tmp_path, number, flags):
    """Ours, with metadata, and others' of networks that are known by an import path: nothing heavy is loaded to show or compare them."""
    paths = [tmp_path / f"m{index}.safetensors" for index in range(number)]
    state = {"conv.weight": np.ones((2, 1, 3, 3, 3), np.float32), "norm.weight": np.ones(2, np.float32), "n": np.array(1)}
    for index, spec in enumerate([None, NetworkSpec("monai.UNet", 1, 2, {"spatial_dims": 3})][:number]):
        save_source(paths[index], spec=spec, state=None if spec is None else state)
    outcome = subprocess.run([sys.executable, "-c", RUN, "inspect", *paths, *flags], capture_output=True, text=True, check=True)
    *said, names = outcome.stderr.splitlines()
    loaded = set(json.loads(names))

    assert [] == said
    assert outcome.stdout
    assert set() == loaded & (HEAVY - {"numpy"} | {"rich"})


def test_import_of_the_package_loads_nothing_heavy():
    """`import mergekit3d` costs milliseconds."""
    code = "import sys, mergekit3d; print(*{name.partition('.')[0] for name in sys.modules})"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert set() == set(outcome.stdout.split()) & HEAVY


def test_module_runs_as_the_script_does():
    """`python -m mergekit3d_cli`, for launchers such as torchrun."""
    outcome = subprocess.run([sys.executable, "-m", "mergekit3d_cli", "--version"], capture_output=True, text=True, check=True)

    assert outcome.stdout.startswith("mergekit3d ")
