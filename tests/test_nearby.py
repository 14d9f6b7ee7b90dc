"""Did-you-mean for names of files."""

from __future__ import annotations

import pytest

from mergekit3d.nearby import did_you_mean_file


@pytest.mark.parametrize(
    ("expected", "missing"),
    [
        ("m1.safetensors", "m1.pt"),
        ("m1.safetensors", "m1.ft"),
        ("m1.safetensors", "m1.safetensor"),
        ("fused.pt", "fuse.pt"),
        ("timm.yaml", "tim.yaml"),
        ("timm.yaml", "timm.yml"),
        ("ratios.json", "ratio.json"),
        (None, "m4.pt"),
        (None, "other.yaml"),
        (None, "DOE_JOHN.nii.gz"),
        (None, "DOE_JON"),
    ],
)
def test_nearest_file_is_named(tmp_path, expected, missing):
    """Of another ending first, then by likeness, of the same kind; never an image or a folder, whose names may be patients'."""
    for name in ("m1.safetensors", "m1.yaml", "fused.pt", "timm.yaml", "ratios.json", "DOE_JOHN.nii", "DOE_JANE.nii.gz"):
        (tmp_path / name).touch()
    (tmp_path / "DOE_JOHN").mkdir()

    told = did_you_mean_file(tmp_path / missing)

    assert (None if expected is None else f"did you mean '{tmp_path / expected}'?") == told


def test_folder_that_is_not_there_has_no_neighbours(tmp_path):
    """Nothing is guessed, and nothing fails."""
    assert did_you_mean_file(tmp_path / "nowhere" / "m1.pt") is None
