import numpy as np
import pytest

from mergekit3d.datasets.phantom.fields import View
from mergekit3d.datasets.phantom.writing import LAYOUTS, draw_grid, write_subject
from mergekit3d.errors import UsageError
from mergekit3d.volumes.nifti import read_image, read_labels

VIEW = View((4, 5, 6), 2.0, 1)


@pytest.mark.parametrize("layout", ["hcp", "brats"])
def test_orientations_vary_and_hold_the_same_array(tmp_path, layout):
    """Stored as LAS, RAS, LPS or LIA, an image reads back as the RAS+ array that was written, centred on the brain."""
    chosen = LAYOUTS.get(layout)
    image = np.arange(1, 121, dtype=np.int16).reshape(VIEW.shape)
    seen = set()
    for seed in range(12):
        grid, codes = draw_grid(np.random.default_rng(seed), chosen, VIEW)
        seen.add(codes)
        folder = tmp_path / f"s{seed}"
        write_subject(folder, chosen, grid, {"t1": image}, image % 5)
        volume = read_image(folder / chosen.images["t1"].format(name=folder.name))

        np.testing.assert_array_equal(image, volume.data)
        assert (2.0, 2.0, 2.0) == volume.spacing_mm
        np.testing.assert_allclose(volume.affine[:3, :3], 2 * np.eye(3))
        centre = volume.affine @ [1.5, 2, 2.5, 1]
        np.testing.assert_allclose(centre[:3], (0, -17, 5), atol=6.001)
        labels = read_labels(folder / chosen.label.format(name=folder.name))
        np.testing.assert_array_equal(image % 5, labels.data)
        np.testing.assert_array_equal(volume.affine, labels.affine)
    assert set(chosen.orientations) == seen


def test_stored_axes_follow_the_codes():
    """LIA, FreeSurfer's own: the first axis to the left, the second down, the third to the front."""
    for seed in range(20):
        grid, codes = draw_grid(np.random.default_rng(seed), LAYOUTS.get("hcp"), VIEW)
        if codes == "LIA":
            break

    assert (4, 6, 5) == grid.shape
    np.testing.assert_allclose(grid.affine[:3, :3], [[-2, 0, 0], [0, 0, 2], [0, -2, 0]])


def test_folders():
    """Six-digit ids; grades above, and the seed in the name, so that no name occurs in both grades."""
    assert "100005" == LAYOUTS.get("hcp").folder(3, 4, None)
    assert "LGG/Brats18_S3_0005_1" == LAYOUTS.get("brats").folder(3, 4, "LGG")
    with pytest.raises(UsageError, match="too many subjects for six-digit ids: wanted at most 899999, found 900000"):
        LAYOUTS.get("hcp").folder(0, 899999, None)
