"""What commands answer with --json: the same keys for the same things."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergekit3d.training.cohort import TrainResult
from mergekit3d.verbs.adapt import AdaptResult
from mergekit3d.verbs.convert import ConvertResult
from mergekit3d.verbs.evaluate import EvaluateResult
from mergekit3d.verbs.verify import VerifyResult

OUT = Path("out/step")
RUN = (3, 2, 0.5, 0.6, "done")


@pytest.mark.parametrize(
    "result",
    [
        TrainResult(OUT / "best.safetensors", OUT / "last.safetensors", OUT / "log.csv", *RUN),
        AdaptResult(OUT / "ratios.json", OUT / "c.safetensors", OUT / "log.csv", OUT / "r.png", OUT / "p.png", *RUN, {}),
        EvaluateResult(OUT / "metrics.csv", OUT / "summary.json", 1, {}, {}, 0.5, {}, {}, {}, {}, (None, None), {}),
        ConvertResult(Path("m1.pth"), OUT, "pt", "safetensors", 1, "ab"),
    ],
    ids=lambda result: type(result).__name__,
)
def test_out_is_where_a_command_wrote(result):
    """The folder or file, whatever else it names."""
    assert str(OUT) == result.as_json()["out"]


@pytest.mark.parametrize(
    "result", [ConvertResult(Path("m1.pt"), OUT, "pt", "pt", 1, "ab"), VerifyResult(Path("m1.pt"), "c", "ab", 1, "imm")]
)
def test_file_is_what_a_command_read(result):
    """As inspect calls it; `path`, its earlier name, stays."""
    assert "m1.pt" == result.as_json()["file"] == result.as_json()["path"]
