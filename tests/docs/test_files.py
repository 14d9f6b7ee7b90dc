"""The page on files names every key and column that commands write."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import mergekit3d
from mergekit3d.comparison import compare_rows
from mergekit3d.errors import (
    InputError,
    Interrupted,
    LockedError,
    MachineError,
    MergeKit3DError,
    OutputError,
    RecipeError,
    UsageError,
)
from mergekit3d.forgetting_matrix import COLUMNS
from mergekit3d.metrics import Counts, SubjectMeasures, SubjectMetrics
from mergekit3d.reporting.discover import SUMMARY
from mergekit3d.summaries import METRICS_COLUMNS, MORE_COLUMNS, summary
from mergekit3d_cli.telling import BROKEN_PIPE, EXIT_CODES
from tests.builders import metadata_of, save_fisher, save_source, spec_of, task_of

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PAGE = (REFERENCE / "files.md").read_text(encoding="utf-8")
ROW = SubjectMetrics("a", "ET", 0.5, 1.0, 0.5, 2.0, 3.0)


def section(heading):
    """The names in backticks of a section."""
    (text,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"`([^`]+)`", text))


def keys(content):
    """The keys of mappings and of lists of mappings, those of the first level."""
    rows = content if isinstance(content, list) else [content]
    return {key for row in rows for key in row}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a fusion by Fisher diagonals."""
    folder = tmp_path_factory.mktemp("fused")
    for seed in (1, 2):
        save_source(folder / f"m{seed}.safetensors", seed=seed)
        save_fisher(folder / f"m{seed}.safetensors", seed=seed)
    sources = ", ".join(f"{{name: m{seed}, checkpoint: m{seed}.safetensors}}" for seed in (1, 2))
    (folder / "imm.yaml").write_text(f"version: 1\nsources: [{sources}]\nmerge: {{method: imm, private: m1}}\n")
    return json.loads(mergekit3d.fuse(folder / "imm.yaml").report.read_text())


def test_report_of_a_fusion(report):
    """Its keys, those of its tensors, and the figures."""
    tensors, figures = keys(report["tensors"]), keys(list(report["per_layer"].values()))

    assert set() == (keys(report) | tensors | figures | keys(report["summary"])) - section("STEM.report.json")


def test_metadata():
    """Every key of it, and of the task."""
    metadata = metadata_of(spec_of(), task_of(), aliases={"a": "b"}, root_scales={"a": 1.0}, origin={"format": "x"}).sealed("0")

    assert set() == (keys(metadata.as_json()) | keys(metadata.task.as_json()) | keys(metadata.seal)) - section("Metadata")


def test_metrics_and_summary():
    """Columns of metrics.csv, keys of summary.json and of a case in it."""
    content = summary([SubjectMeasures("a", (ROW,), (Counts(1, 1, 1, 1),), "a.nii.gz", "b.nii.gz")], convention="nnunet")
    (case,) = content["metric_per_case"]

    assert {*METRICS_COLUMNS, *MORE_COLUMNS} <= {name for cell in section("metrics.csv") for name in cell.split(", ")}
    assert set() == (keys(content) | keys(case) | keys(case["metrics"]["ET"])) - section(SUMMARY)


def test_comparison_and_forgetting():
    """Keys of compare.json and of a comparison in it, columns of forgetting.csv."""
    content = compare_rows({"a": [ROW], "b": [ROW]}).as_json()

    assert set() == (keys(content) | keys(content["comparisons"])) - section("compare.json")
    assert set(COLUMNS) <= section("forgetting.json")


def test_exit_codes():
    """Each code of an error has a row, with what to do."""
    rows = re.findall(r"^\| (\S+)", (REFERENCE / "exit-codes.md").read_text(encoding="utf-8"), re.MULTILINE)
    codes = {error.exit_code for error in (MergeKit3DError, UsageError, RecipeError, InputError, MachineError, OutputError, LockedError)}

    assert set(EXIT_CODES) - {"128 + N"} == set(rows) - {"code", "128"} == {str(code) for code in {0, *codes}}
    assert 141 == BROKEN_PIPE
    assert 143 == Interrupted("stopped", signal_number=15).exit_code
