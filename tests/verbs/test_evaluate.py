from __future__ import annotations

import csv
import json
import math

import nibabel
import numpy as np
import pytest

from mergekit3d.errors import UsageError
from mergekit3d.options import Options
from mergekit3d.verbs.evaluate import evaluate

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


@pytest.fixture
def folders(tmp_path):
    """Segmentations of three subjects, and their truth one voxel of 3 mm further on."""
    for folder, shift in (("pred", 0), ("truth", 1)):
        (tmp_path / folder).mkdir()
        for index in range(3):
            labels = np.zeros((10, 10, 10), np.uint8)
            labels[2:6, 2:6, 2 + shift : 5 + shift + index] = 4
            nibabel.save(nibabel.Nifti1Image(labels, AFFINE), tmp_path / folder / f"s{index}.nii.gz")
    return tmp_path / "pred", tmp_path / "truth"


def test_evaluate_measures_in_mm_and_ml(tmp_path, folders):
    """A shift of one slice of 3 mm is an HD95 of 3 mm; 48 voxels of 6 mm3 are 0.288 ml; NSD is 1 from a tolerance of 3 mm on."""
    out = tmp_path / "out"
    evaluate(pred=folders[0], truth=folders[1], regions={"ET": (4,)}, tolerance_mm=3.0, options=Options(out=out))
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:4] == ["subject", "region", "dice", "hd95"]
    assert [row["subject"] for row in rows] == ["s0", "s1", "s2"]
    assert float(rows[0]["dice"]) == pytest.approx(2 * 32 / 96)
    assert (float(rows[0]["hd95"]), float(rows[0]["nsd"])) == (3.0, 1.0)
    assert (float(rows[0]["volume_pred_ml"]), float(rows[0]["volume_ref_ml"])) == (pytest.approx(0.288), pytest.approx(0.288))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["nsd"]["tolerance_mm"] == 3.0
    assert "seed 0" in summary["interval_95"]["meaning"]
    low, high = summary["interval_95"]["mean"]["ET"]
    assert low <= summary["mean"]["ET"]["Dice"] <= high


@pytest.mark.parametrize("tolerance_mm", [-1.0, math.nan, math.inf])
def test_evaluate_refuses_a_tolerance_that_is_no_length(folders, tolerance_mm):
    """Below 0, NaN and infinity are refused before anything is read."""
    with pytest.raises(UsageError, match="no such tolerance: --tolerance-mm: wanted 0 or more"):
        evaluate(pred=folders[0], truth=folders[1], regions={"ET": (4,)}, tolerance_mm=tolerance_mm)
    assert not (folders[0] / "metrics.csv").exists()


def test_truth_may_be_a_list(tmp_path, folders):
    """As it may be a folder in any layout."""
    rows = [f"s{index},{folders[1]}/s{index}.nii.gz,{folders[1]}/s{index}.nii.gz" for index in range(3)]
    (tmp_path / "list.csv").write_text("\n".join(["subject,t1,label", *rows]))
    found = evaluate(pred=folders[0], truth=tmp_path / "list.csv", regions={"ET": (4,)}, options=Options(out=tmp_path / "list"))
    assert found.dice == evaluate(pred=folders[0], truth=folders[1], regions={"ET": (4,)}, options=Options(out=tmp_path / "folder")).dice
