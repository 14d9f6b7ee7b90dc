"""A data folder on one screen, by subject numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mergekit3d import inspect
from mergekit3d.datasets import find_dataset
from mergekit3d.errors import InputError
from mergekit3d.verbs import inspect_data


@pytest.fixture
def brats(make_data, tmp_path) -> Path:
    """A few small subjects."""
    return make_data(tmp_path) / "brats"


def text(result):
    return "\n".join(result.lines())


def change(path, work):
    image = nibabel.load(path)
    values, affine = work(np.asarray(image.dataobj), image.affine.copy())
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


def test_counts_are_those_of_the_files(brats):
    """Subjects, modalities, grids, and voxels by label; the same as plain data."""
    subjects = find_dataset(brats).subjects
    maps = [np.asarray(nibabel.load(subject.label).dataobj) for subject in subjects]
    result = inspect([brats])
    content = result.as_json()

    assert ("brats2018", len(subjects), len(subjects)) == tuple(content[key] for key in ("layout", "subjects", "labelled"))
    assert dict.fromkeys(("flair", "t1", "t1ce", "t2"), len(subjects)) == content["modalities"]
    assert len(subjects) == sum(grid["subjects"] for grid in content["grids"])
    assert {
        str(label): {"subjects": sum((m == label).any() for m in maps), "voxels": sum(int((m == label).sum()) for m in maps)}
        for label in np.unique(np.concatenate([m.ravel() for m in maps]))
    } == content["labels"]
    assert [] == content["odd"]
    assert "nothing is missing or odd" in text(result)


def test_what_is_missing_or_odd_is_told_by_number(brats):
    """A modality, a label map, grids that differ, unknown labels, a damaged file; no name and no path of a subject."""
    first, second, third, fourth, *_ = find_dataset(brats).subjects
    first.images["t2"].unlink()
    first.label.unlink()
    change(second.images["flair"], lambda values, affine: (values[:-1], affine))
    change(third.label, lambda values, affine: (np.where(values == 4, 7, values).astype(np.uint8), affine))
    fourth.images["t1"].write_bytes(b"no volume")
    result = inspect([brats])
    odd = {row["subject"]: row["remarks"] for row in result.as_json()["odd"]}

    assert ["no t2", "no label map"] == odd[1]
    assert ["flair on another grid than t1"] == odd[2]
    assert ["labels that BraTS does not have: 7"] == odd[3]
    assert odd[4][0].startswith("t1: ")
    assert not any(subject.name in text(result) for subject in (first, second, third, fourth))


def test_names_are_told_where_they_are_asked_for(brats):
    """What the numbers in messages stand for."""
    names = [subject.name for subject in find_dataset(brats).subjects]
    result = inspect([brats], names=True)

    assert names == result.as_json()["names"]
    assert all(name in text(result) for name in names)
    assert "names" not in inspect([brats]).as_json()


def test_label_maps_of_a_large_data_set_are_read_in_part(brats, monkeypatch):
    """And all of them, if that is asked for."""
    monkeypatch.setattr(inspect_data, "LABEL_MAPS", 2)
    count = len(find_dataset(brats).subjects)

    assert f"(of 2 of {count} label maps; --values reads all)" in text(inspect([brats]))
    assert count == inspect([brats], values=True).as_json()["label_maps_read"]


def test_layout_can_be_named(brats):
    """A folder of another layout is an error of that layout alone."""
    with pytest.raises(InputError, match=r"no subjects in the data folder: .*: wanted <id>/T1w.*\(hcp\), found"):
        inspect([brats], layout="hcp")


@pytest.fixture
def decathlon(brats) -> Path:
    """The same subjects as 4D files, the last one without labels in imagesTs."""
    root = brats.parent / "Task01"
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir(parents=True)
    *subjects, last = find_dataset(brats).subjects
    for subject in [*subjects, last]:
        images = [nibabel.load(path) for path in subject.images.values()]
        stack = np.stack([np.asarray(image.dataobj) for image in images], axis=-1)
        folder = "imagesTs" if subject is last else "imagesTr"
        nibabel.save(nibabel.Nifti1Image(stack, images[0].affine), root / folder / f"{subject.name}.nii.gz")
        if subject is not last:
            shutil.copy(subject.label, root / "labelsTr" / f"{subject.name}.nii.gz")
    modality = dict(enumerate(last.images))
    training = [{"image": f"./imagesTr/{subject.name}.nii.gz"} for subject in subjects] + [{"image": "./imagesTr/gone.nii.gz"}]
    (root / "dataset.json").write_text(json.dumps({"modality": modality, "training": training}))
    return root


def test_4d_files_and_the_folder_beside_them(brats, decathlon):
    """Grids of every volume, what is missing as a whole, and where more subjects are."""
    result = inspect([decathlon])
    content, count = result.as_json(), len(find_dataset(brats).subjects) - 1

    assert ("decathlon", count, count) == tuple(content[key] for key in ("layout", "subjects", "labelled"))
    assert dict.fromkeys(("flair", "t1", "t1ce", "t2"), count) == content["modalities"]
    assert [{"folder": "imagesTs", "subjects": 1, "labelled": 0}] == content["further_folders"]
    assert [f"1 of the {count + 1} images that dataset.json lists under training are not there"] == content["remarks"]
    assert "beside it   imagesTs (1 subject, 0 with labels)" in text(result)
    assert content["remarks"][0] in text(result)
    assert "imagesTs: 1 subject in the layout decathlon, 0 with labels" in text(inspect([decathlon / "imagesTs"]))


def test_file_with_other_volumes_is_odd(decathlon):
    """By the subject's number."""
    change(next((decathlon / "imagesTr").iterdir()), lambda values, affine: (values[..., :3], affine))
    (odd,) = inspect([decathlon]).as_json()["odd"]
    assert all("wanted 4 volumes, one a modality" in remark for remark in odd["remarks"])


def test_list_is_shown_with_its_parts(brats):
    """As a folder is, and a part of it alone behind a colon."""
    rows = [
        f"s{number},{subject.images['t1']},{subject.label},{'train' if number else 'test'},{number}"
        for number, subject in enumerate(find_dataset(brats).subjects)
    ]
    (brats / "list.csv").write_text("\n".join(["subject,t1,label,split,fold", *rows]))
    result = inspect([brats / "list.csv"])

    assert ({"train": len(rows) - 1, "test": 1}, dict.fromkeys(map(str, range(len(rows))), 1)) == (
        result.as_json()["parts"],
        result.as_json()["folds"],
    )
    assert f"parts       train ({len(rows) - 1}), test (1)" in text(result)
    assert f"folds       {', '.join(f'{number} (1)' for number in range(len(rows)))}" in text(result)
    assert 1 == inspect([f"{brats / 'list.csv'}:test"]).as_json()["subjects"]


def test_folder_without_subjects(tmp_path):
    """Neither a checkpoint nor data."""
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match="no subjects in the data folder"):
        inspect([tmp_path / "x"])
