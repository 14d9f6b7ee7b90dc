"""What holds for every layout; a new one adds a line to TREES, and has a file of its own like those beside this one."""

import json

import pytest

from mergekit3d.datasets import find_dataset
from mergekit3d.datasets.layouts import LAYOUTS

DECATHLON = json.dumps({"modality": {"0": "FLAIR", "1": "T1w"}, "labels": {"0": "background"}, "training": [], "test": []})
NNUNET = json.dumps({"channel_names": {"0": "T1"}, "labels": {"background": 0}})
TREES = {
    "bids": ["sub-a/anat/sub-a_T1w.nii.gz"],
    "brats2018": ["HGG/Brats18_1/Brats18_1_t1.nii.gz"],
    "brats2023": ["BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz"],
    "brats2024": ["BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz"],
    "csv": ["list.csv", "a.nii"],
    "decathlon": ["imagesTr/BRATS_001.nii.gz", "dataset.json"],
    "hcp": ["100307/T1w/T1w_acpc_dc_restore.nii.gz"],
    "monai": ["list.json", "a_t1.nii"],
    "nnunet": ["imagesTr/a_0000.nii.gz", "dataset.json"],
    "plain": ["a/t1.nii.gz"],
}
"""A file or more of each layout, one subject; a list or description first or last."""
CONTENT = {"csv": "subject,t1\na,a.nii\n", "monai": '{"training": ["a_t1.nii"]}', "decathlon": DECATHLON, "nnunet": NNUNET}


@pytest.fixture
def tree(tmp_path, touch):
    """A function that makes the tree of a layout, and returns what to pass."""

    def make(name):
        touch(tmp_path / "data", *TREES[name])
        described = next((tmp_path / "data" / file for file in TREES[name] if file.endswith((".json", ".csv"))), None)
        if described is not None:
            described.write_text(CONTENT[name])
        return described if LAYOUTS.get(name).suffixes else tmp_path / "data"

    return make


def test_every_layout_has_a_tree():
    """So that none is left out of the tests below."""
    assert set(TREES) == set(LAYOUTS)


@pytest.mark.parametrize("name", sorted(TREES))
def test_layout_is_told_by_what_is_there(tree, name):
    """No other layout finds subjects in its tree, but those that share its files and have to be named."""
    root = tree(name)
    dataset = find_dataset(root, "auto" if LAYOUTS.get(name).automatic else name)

    assert (name, 1) == (dataset.layout, len(dataset.subjects))
    assert 0 in dataset.vocabulary.ids
    assert all(path.is_file() for path in dataset.subjects[0].images.values())


@pytest.mark.parametrize("name", sorted(name for name, layout in LAYOUTS.items() if not layout.suffixes))
def test_other_folders_hold_no_subjects(tree, tmp_path, name):
    """An empty folder, and trees of layouts with other files, are none of this one."""
    shared = {"brats2023", "brats2024"}
    (tmp_path / "empty").mkdir()

    assert [] == LAYOUTS.get(name).find(tmp_path / "empty")
    for other in sorted(TREES):
        if other != name and {name, other} != shared and not LAYOUTS.get(other).suffixes:
            assert [] == LAYOUTS.get(name).find(tree(other)), other
            for path in sorted((tmp_path / "data").rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
