import numpy as np
import pytest

from mergekit3d.datasets import reading
from mergekit3d.datasets.reading import image_identities, read_subject
from mergekit3d.datasets.subject import Channel, Subject
from mergekit3d.volumes import nifti
from mergekit3d.volumes.nifti import Grid, write_volume


@pytest.fixture
def subject(tmp_path):
    """Three modalities in a 4D file, one in a file of its own."""
    grid = Grid((3, 4, 5), np.eye(4))
    data = np.stack([np.full((3, 4, 5), value, np.float32) for value in (1, 2, 3)], axis=-1)
    write_volume(tmp_path / "four.nii.gz", data, native=grid)
    write_volume(tmp_path / "pd.nii.gz", data[..., 0] * 9, native=grid)
    images = {**dict.fromkeys(("t1", "t2", "flair"), tmp_path / "four.nii.gz"), "pd": tmp_path / "pd.nii.gz"}
    return Subject("a", images, None, {"t1": Channel(0, 3), "t2": Channel(1, 3), "flair": Channel(2, 3)})


def test_modalities_come_as_asked(subject):
    """In the order asked for, from whichever file."""
    found = read_subject(subject, ["flair", "pd", "t1"], str)
    assert {"flair": 3.0, "pd": 9.0, "t1": 1.0} == {modality: float(volume.data.max()) for modality, volume in found.items()}


def test_file_of_several_modalities_is_read_once(subject, monkeypatch):
    """Unpacking it is what takes the time."""
    opened = []
    unwatched = nifti._open
    monkeypatch.setattr(nifti, "_open", lambda path: opened.append(path) or unwatched(path))
    read_subject(subject, ["t1", "t2", "flair", "pd"], str)
    assert [subject.images["t1"], subject.images["pd"]] == opened


def test_volumes_of_one_file_have_identities_of_their_own(subject):
    """Their order matters; the file is hashed once, and a file of one image is what it was."""
    hashed = []
    digest = lambda path: hashed.append(path) or path.name  # noqa: E731  a spy
    assert ["four.nii.gz[2]", "pd.nii.gz", "four.nii.gz[0]"] == image_identities(subject, ["flair", "pd", "t1"], digest)
    assert 2 == len(hashed)
    assert reading.image_identities(subject, ["t1"], str) != reading.image_identities(subject, ["t2"], str)
