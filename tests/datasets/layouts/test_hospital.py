"""The template of a layout's tests, on the example of the folder's README: copy it, and put your layout's files in place of these."""

import re
from pathlib import Path

import pytest

import mergekit3d.datasets.layouts
from mergekit3d.datasets import find_dataset
from mergekit3d.datasets.layouts import LAYOUTS
from mergekit3d.errors import InputError


@pytest.fixture
def hospital(monkeypatch):
    """The example, registered for one test; a layout of one's own is registered already, and needs no such fixture."""
    monkeypatch.setattr(LAYOUTS, "_items", dict(LAYOUTS._items))
    readme = Path(mergekit3d.datasets.layouts.__file__).with_name("README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    exec(re.sub(r"^   ", "", example, flags=re.MULTILINE), {})  # noqa: S102  our own README


@pytest.mark.usefixtures("hospital")
def test_files_of_a_subject(tmp_path, touch):
    """Told by what is there: modalities under their canonical names, the label map apart, a subject without one too."""
    touch(tmp_path, "a/a+T1w.nii.gz", "a/a+flair.nii", "a/a+seg.nii.gz", "b/b+t1.nii.gz", "b/notes.txt", "a/._a+t2.nii.gz")

    dataset = find_dataset(tmp_path)

    assert ("hospital", ["a", "b"]) == (dataset.layout, [subject.name for subject in dataset.subjects])
    assert {"t1": tmp_path / "a/a+T1w.nii.gz", "flair": tmp_path / "a/a+flair.nii"} == dataset.subjects[0].images
    assert [tmp_path / "a/a+seg.nii.gz", None] == [subject.label for subject in dataset.subjects]
    assert {0, 1, 2, 3} == dataset.vocabulary.ids


@pytest.mark.usefixtures("hospital")
def test_folder_of_another_layout(tmp_path, touch):
    """Holds no subjects, so that other layouts may have it."""
    touch(tmp_path, "a/t1.nii.gz")

    assert [] == LAYOUTS.get("hospital").find(tmp_path)
    assert "plain" == find_dataset(tmp_path).layout
    with pytest.raises(InputError, match=r"no subjects in the data folder: .*\(hospital\)"):
        find_dataset(tmp_path, "hospital")
