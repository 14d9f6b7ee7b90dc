from __future__ import annotations

import csv
import io
import json
import math

import nibabel
import numpy as np
import pytest

from mergekit3d.errors import InputError, UsageError
from mergekit3d.options import Options
from mergekit3d.verbs.evaluate import evaluate
from mergekit3d.verbs.predict import predict
from mergekit3d_cli.console import PlainReporter
from tests.builders import OUTPUTS, save_source

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


def test_tolerance_may_differ_from_region_to_region(tmp_path, folders):
    """The others take that of ``*``, or 1 mm; all of them are stated."""
    regions = {"ET": (4,), "TC": (1, 4), "WT": (1, 2, 4)}
    result = evaluate(
        pred=folders[0], truth=folders[1], regions=regions, tolerance_mm={"ET": 3.0, "*": 0.5}, options=Options(out=tmp_path / "out")
    )

    assert result.nsd["ET"] > result.nsd["TC"]
    assert result.nsd["TC"] == result.nsd["WT"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {"ET": 3.0, "TC": 0.5, "WT": 0.5} == summary["nsd"]["tolerance_mm"]
    assert "within 3 mm in ET, 0.5 mm in TC, 0.5 mm in WT" == result.definitions["NSD"]
    with pytest.raises(UsageError, match="a tolerance for an unknown region: --tolerance-mm: found XT; known: ET, TC, WT"):
        evaluate(pred=folders[0], truth=folders[1], regions=regions, tolerance_mm={"XT": 3.0}, options=Options(out=tmp_path / "other"))


def test_every_measure_has_its_interval_and_conventions_are_said(tmp_path, folders):
    """On screen, as JSON and in summary.json."""
    result = evaluate(pred=folders[0], truth=folders[1], regions={"ET": (4,)}, empty="brats", options=Options(out=tmp_path / "out"))
    content = result.as_json()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())

    for name, key in (("dice", "Dice"), ("hd95", "HD95"), ("nsd", "NSD")):
        low, high = content[f"{name}_interval_95"]["ET"]
        assert low <= content[name]["ET"] <= high
        assert [low, high] == summary["interval_95"][key]["mean"]["ET"]
    assert " mm (" in result.lines()[0]
    assert any(line.startswith("empty regions: brats: a region empty in prediction and truth: Dice and NSD 1") for line in result.lines())
    assert {"convention": "brats"}.items() <= summary["empty_regions"].items()


def test_flags_of_inference_go_with_a_checkpoint(folders):
    """Segmentations are there already."""
    with pytest.raises(UsageError, match="the flags of inference go with a checkpoint"):
        evaluate(pred=folders[0], truth=folders[1], regions={"ET": (4,)}, mirror=True)


def test_checkpoint_is_evaluated_as_it_predicts(tmp_path, make_data):
    """With the same window, overlap and mirrored copies, evaluate finds what evaluating predict's files finds."""
    root = make_data(tmp_path)
    save_source(tmp_path / "m1.safetensors", 1)
    how = {"patch_size": (16, 16, 16), "overlap": 0.25, "batch_size": 3, "mirror": True, "mirror_axes": (0, 2)}
    options = Options(device="cpu", precision="fp32", out=tmp_path / "by_checkpoint")
    names = tmp_path / "names.txt"
    names.write_text("100001\n")
    found = evaluate(tmp_path / "m1.safetensors", root / "hcp", subjects_file=names, options=options, **how)
    other = Options(device="cpu", precision="fp32", out=tmp_path / "plain")
    plain = evaluate(tmp_path / "m1.safetensors", root / "hcp", subjects_file=names, options=other)
    assert found.dice != plain.dice
    predicted = predict(tmp_path / "m1.safetensors", root / "hcp", tmp_path / "p", probabilities=True, options=options, **how)
    probabilities = nibabel.load(predicted.files[1].parent / "probabilities" / "100001.nii.gz").get_fdata()
    labels = nibabel.load(root / "hcp" / "100001" / "T1w" / "aparc+aseg.nii.gz").get_fdata()
    for index, (region, ids) in enumerate(OUTPUTS.items()):
        mask, truth = probabilities[..., index] > 0.5, np.isin(labels, ids)
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) == pytest.approx(found.dice[region], abs=1e-9)


def test_subjects_without_a_prediction_are_told(tmp_path, folders):
    """Left out with a warning where the folder decides; refused where a file names them."""
    (folders[0] / "s1.nii.gz").unlink()
    said = io.StringIO()
    result = evaluate(
        pred=folders[0], truth=folders[1], regions={"ET": (4,)}, options=Options(out=tmp_path / "out"), reporter=PlainReporter(said)
    )
    assert 2 == result.subjects
    assert "warning: 3 subjects have true labels, and 2 a prediction: the others are left out" in said.getvalue()
    (tmp_path / "names.txt").write_text("s0\ns1\n")
    with pytest.raises(InputError, match="subjects without a prediction: .*: found name 2 of 2"):
        evaluate(pred=folders[0], truth=folders[1], regions={"ET": (4,)}, subjects_file=tmp_path / "names.txt")
