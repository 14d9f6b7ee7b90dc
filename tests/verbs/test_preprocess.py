"""`preprocess` as a user runs it: real files, real processes, real signals."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mergekit3d import preprocess
from mergekit3d.datasets import find_dataset
from mergekit3d.errors import InputError, Interrupted, OutputError, Problems, UsageError
from mergekit3d.preprocessing import pool, subject
from mergekit3d.progress import SILENT
from mergekit3d.volumes.nifti import Grid, read_image, read_labels, write_volume

QUICK = {"n4": False, "workers": 1}


@pytest.fixture(scope="session")
def source(make_data, tmp_path_factory) -> Path:
    """Folders hcp/ (7 subjects) and brats/ (5 subjects)."""
    return make_data(tmp_path_factory.mktemp("source"))


@pytest.fixture
def brats(source, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(source / "brats", tmp_path / "brats"))


def files(out):
    """Path below the folder -> digest of every file that is not hidden."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(out).parts)
    }


def record(out):
    return json.loads((out / "preprocess.json").read_text())


def images(root):
    return {subject.name: {name: read_image(path).data for name, path in subject.images.items()} for subject in find_dataset(root).subjects}


def test_description_of_the_data_set_comes_along(source, tmp_path):
    """nnU-Net's data cannot be read without dataset.json; the output can."""
    raw = tmp_path / "raw"
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for found in find_dataset(source / "brats").subjects[:2]:
        for number, modality in enumerate(("t1", "flair")):
            shutil.copy(found.images[modality], raw / "imagesTr" / f"{found.name}_000{number}.nii.gz")
        shutil.copy(found.label, raw / "labelsTr" / f"{found.name}.nii.gz")
    labels = {"background": 0, "whole": [1, 2, 4], "core": [1, 4], "enhancing": [4]}
    (raw / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": labels}))
    preprocess(raw, tmp_path / "out", n4=False, workers=1)
    before, after = find_dataset(raw), find_dataset(tmp_path / "out")

    assert ("nnunet", before.vocabulary) == (after.layout, after.vocabulary)
    assert [one.name for one in before.subjects] == [one.name for one in after.subjects]
    assert all(one.label is not None and {"t1", "flair"} == set(one.images) for one in after.subjects)
    assert (raw / "dataset.json").read_bytes() == (tmp_path / "out/dataset.json").read_bytes()


def test_4d_files_stay_4d(source, tmp_path):
    """The Decathlon's: volumes in the order of dataset.json, cropped together."""
    raw = tmp_path / "raw"
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "labelsTr").mkdir()
    for found in find_dataset(source / "brats").subjects[:2]:
        volumes = [read_image(found.images[modality]) for modality in ("t2", "flair", "t1")]
        data = np.stack([volume.data for volume in volumes], axis=-1)
        write_volume(raw / "imagesTr" / f"{found.name}.nii.gz", data, native=volumes[0].native)
        shutil.copy(found.label, raw / "labelsTr" / f"{found.name}.nii.gz")
    (raw / "dataset.json").write_text(json.dumps({"modality": {"0": "T2w", "1": "FLAIR", "2": "T1w"}}))
    preprocess(raw, tmp_path / "out", intensity="none", **QUICK)
    before, after = find_dataset(raw), find_dataset(tmp_path / "out")

    assert set(files(raw)) | {"preprocess.json"} == set(files(tmp_path / "out"))
    for old, new, done in zip(before.subjects, after.subjects, record(tmp_path / "out")["subjects"], strict=True):
        start, stop = done["crop"]["start"], done["crop"]["stop"]
        inside = tuple(slice(first, last) for first, last in zip(start, stop, strict=True))
        for modality in ("t1", "t2", "flair"):
            whole = read_image(old.images[modality], channel=old.channels[modality]).data
            assert np.array_equal(whole[inside], read_image(new.images[modality], channel=new.channels[modality]).data)
    assert 2 == preprocess(raw, tmp_path / "out", intensity="none", resume=True, **QUICK).done_before
    (raw / "dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR", "1": "T2w", "2": "T1w"}}))
    with pytest.raises(UsageError, match=r"the dataset.json of the output differs from that of the data: .*; remove it, pass --force,"):
        preprocess(raw, tmp_path / "out", intensity="none", resume=True, **QUICK)
    (tmp_path / "out/dataset.json").unlink()
    assert 0 == preprocess(raw, tmp_path / "out", intensity="none", resume=True, **QUICK).done_before


@pytest.mark.parametrize("name", ["list.csv", "list.json"])
def test_list_is_written_beside_its_images(source, tmp_path, name):
    """With the same subjects, parts and paths below its folder, whatever paths stood in it."""
    data = Path(shutil.copytree(source / "brats", tmp_path / "data"))
    subjects = find_dataset(data).subjects[:3]
    rows = [(one.name, one.images["t1"], one.label, "test" if one is subjects[1] else "train") for one in subjects]
    if name.endswith("csv"):
        text = "\n".join(["subject,t1,label,split", *(",".join(map(str, row)) for row in rows)])
    else:
        entries = {
            part: [{"image": str(image), "label": str(label)} for _, image, label, own in rows if own == part] for part in ("train", "test")
        }
        text = json.dumps({**entries, "labels": {"0": "background", "1": "necrosis", "2": "edema", "4": "enhancing"}})
    (data / name).write_text(text)
    result = preprocess(data / name, tmp_path / "out", **QUICK)
    before, after = find_dataset(data / name), find_dataset(tmp_path / "out" / name)

    assert (before.layout, before.vocabulary, 3) == (after.layout, after.vocabulary, result.subjects)
    assert [(one.name, one.part) for one in before.subjects] == [(one.name, one.part) for one in after.subjects]
    assert str(tmp_path) not in (tmp_path / "out" / name).read_text()
    assert all(one.images["t1"].is_relative_to(tmp_path / "out") for one in after.subjects)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / name).write_text(text)
    with pytest.raises(UsageError, match="a file lies outside of the data folder: subject 1, "):
        preprocess(tmp_path / "elsewhere" / name, tmp_path / "other", **QUICK)


@pytest.mark.parametrize("layout", ["hcp", "brats"])
def test_output_is_a_data_set_in_the_same_layout(source, tmp_path, layout):
    """Every file of the layout has its path, and nothing else; labels keep their ids, image and label map share a grid."""
    out = tmp_path / "out"

    result = preprocess(source / layout, out, spacing_mm=(2, 2, 2), **QUICK)

    before, after = find_dataset(source / layout), find_dataset(out)
    assert (before.layout, len(before.subjects)) == (after.layout, len(after.subjects)) == (result.layout, result.subjects)
    assert set(files(out)) - {"preprocess.json"} == set(files(source / layout))
    for old, new in zip(before.subjects, after.subjects, strict=True):
        labels = read_labels(new.label)
        assert set(np.unique(read_labels(old.label).data)) == set(np.unique(labels.data))
        for path in new.images.values():
            image = read_image(path)
            assert labels.data.shape == image.data.shape
            np.testing.assert_array_equal(labels.affine, image.affine)
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == [".mergekit3d.lock"]


def test_intensities_are_those_asked_for(source, tmp_path):
    """z-scores have mean 0 and deviation 1 over the foreground, ranks are uniform from 0 to 1, none are those of the input."""
    for intensity in ("zscore", "rank", "none"):
        preprocess(source / "brats", tmp_path / intensity, intensity=intensity, **QUICK)
    scored, ranked, plain = (images(tmp_path / intensity) for intensity in ("zscore", "rank", "none"))

    for name, modalities in plain.items():
        for modality, image in modalities.items():
            inside = image != 0
            assert pytest.approx(0, abs=1e-4) == scored[name][modality][inside].mean()
            assert pytest.approx(1, abs=1e-4) == scored[name][modality][inside].std()
            values = ranked[name][modality][inside]
            assert (0, 1) == (values.min(), values.max())
            assert pytest.approx(0.5, abs=1e-3) == np.median(values)
            assert not ranked[name][modality][~inside].any()


def test_nyul_learns_a_scale_that_new_data_are_mapped_onto(source, tmp_path):
    """The record's landmarks bring the same subjects onto the same files, without the others."""
    preprocess(source / "brats", tmp_path / "all", intensity="nyul", **QUICK)
    names = tmp_path / "names.txt"
    names.write_text("Brats18_X_3_1\n")

    landmarks = tmp_path / "all" / "preprocess.json"
    preprocess(source / "brats", tmp_path / "one", intensity="nyul", landmarks=landmarks, subjects_file=names, **QUICK)

    one, everything = files(tmp_path / "one"), files(tmp_path / "all")
    assert 6 == len(one)
    assert {path: everything[path] for path in one if path != "preprocess.json"} == {
        path: digest for path, digest in one.items() if path != "preprocess.json"
    }
    assert [4] == [entry["subject"] for entry in record(tmp_path / "one")["subjects"]]
    assert {"t1", "t1ce", "t2", "flair"} == set(record(tmp_path / "one")["landmarks"]["values"])


def test_histogram_of_the_reference_is_everyones(source, tmp_path):
    """By name or by number the same; medians agree with the reference's, which stays itself."""
    preprocess(source / "brats", tmp_path / "name", intensity="histogram", reference="Brats18_X_1_1", **QUICK)
    preprocess(source / "brats", tmp_path / "number", intensity="histogram", reference="2", **QUICK)
    preprocess(source / "brats", tmp_path / "none", intensity="none", **QUICK)

    assert files(tmp_path / "name") == files(tmp_path / "number")
    matched, plain = images(tmp_path / "name"), images(tmp_path / "none")
    reference = plain["Brats18_X_1_1"]
    for modality, image in reference.items():
        np.testing.assert_allclose(image, matched["Brats18_X_1_1"][modality], rtol=1e-5)
        for name in plain:
            inside = matched[name][modality] != 0
            assert pytest.approx(np.median(image[image != 0]), rel=0.01) == np.median(matched[name][modality][inside])


def test_processes_change_nothing(source, tmp_path):
    """One process or two, which do not run the user's script once more: the same bytes, with N4 and a learned scale, and the record."""
    preprocess(source / "brats", tmp_path / "1", n4_shrink=2, intensity="nyul", workers=1)
    script, out = tmp_path / "script.py", str(tmp_path / "2")
    script.write_text(f"import mergekit3d\nmergekit3d.preprocess('brats', {out!r}, n4_shrink=2, intensity='nyul', workers=2)\n")
    subprocess.run([sys.executable, script], cwd=source, check=True)

    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_only_n4_needs_simpleitk(source, tmp_path, monkeypatch):
    """Where it is missing, N4 is refused before any work, and all else goes on without it."""
    monkeypatch.setitem(sys.modules, "SimpleITK", None)

    with pytest.raises(UsageError, match=r"N4 needs SimpleITK; pip install 'mergekit3d\[preprocess\]', or pass --no-n4"):
        preprocess(source / "brats", tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()

    assert 5 == preprocess(source / "brats", tmp_path / "out", spacing_mm=(2, 2, 2), **QUICK).subjects


def test_no_name_stands_in_the_record(source, tmp_path):
    """Numbers and digests alone; nor in the header of a file."""
    preprocess(source / "brats", tmp_path / "out", intensity="nyul", **QUICK)

    text = (tmp_path / "out" / "preprocess.json").read_text()
    assert "Brats18" not in text
    assert str(tmp_path) not in text
    content = record(tmp_path / "out")
    assert content["complete"]
    assert [1, 2, 3, 4, 5] == [entry["subject"] for entry in content["subjects"]]
    first = find_dataset(source / "brats").subjects[0]
    assert hashlib.sha256(first.images["t1"].read_bytes()).hexdigest() == content["subjects"][0]["inputs"]["t1"]


def test_resume_of_a_finished_run_does_nothing(source, tmp_path):
    """Nothing is written anew, also where a scale was learned."""
    for intensity in ("zscore", "nyul"):
        out = tmp_path / intensity
        preprocess(source / "brats", out, intensity=intensity, **QUICK)
        before, stamps = files(out), {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}

        result = preprocess(source / "brats", out, intensity=intensity, resume=True, **QUICK)

        assert (5, 5) == (result.subjects, result.done_before)
        assert before == files(out)
        assert stamps == {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}


def test_resume_does_what_is_missing_or_has_another_input(brats, tmp_path):
    """A subject that was deleted and one whose input changed are done, the others are kept."""
    out = tmp_path / "out"
    preprocess(brats, out, **QUICK)
    shutil.rmtree(out / "LGG" / "Brats18_X_0_1")
    changed = brats / "HGG" / "Brats18_X_1_1" / "Brats18_X_1_1_t1.nii.gz"
    image = read_image(changed)
    write_volume(changed, image.data * (1 + (image.data > 104)), native=image.native)

    result = preprocess(brats, out, resume=True, **QUICK)

    assert (5, 3) == (result.subjects, result.done_before)
    preprocess(brats, tmp_path / "anew", **QUICK)
    assert files(tmp_path / "anew") == files(out)


def test_file_that_the_input_no_longer_has_goes(brats, tmp_path):
    """It is ours: the subject is done again without it."""
    preprocess(brats, tmp_path / "out", **QUICK)
    (brats / "LGG" / "Brats18_X_0_1" / "Brats18_X_0_1_seg.nii.gz").unlink()

    assert 4 == preprocess(brats, tmp_path / "out", resume=True, **QUICK).done_before

    assert not (tmp_path / "out" / "LGG" / "Brats18_X_0_1" / "Brats18_X_0_1_seg.nii.gz").exists()


def test_resampling_onto_one_grid_is_told(brats, tmp_path):
    """By the subject's number; the record keeps it."""
    path = find_dataset(brats).subjects[1].images["t2"]
    image = read_image(path)
    affine = image.native.affine.copy()
    affine[:3, 3] += 3.3
    write_volume(path, image.data, native=Grid(image.native.shape, affine))
    said = []

    class Notes:
        info = staticmethod(said.append)
        warn = info
        task = staticmethod(SILENT.task)

    preprocess(brats, tmp_path / "out", reporter=Notes, **QUICK)

    assert ["subject 2: t2 resampled onto the grid of the subject"] == said
    assert ["t2"] == record(tmp_path / "out")["subjects"][1]["grid"]["resampled_to_it"]


def test_existing_output_is_refused(source, tmp_path):
    """Without --force or --resume; other settings need --force, which makes all anew."""
    out = tmp_path / "out"
    preprocess(source / "brats", out, **QUICK)
    before = files(out)
    with pytest.raises(UsageError, match="the output exists already: .*; pass --resume to go on with it, or --force to make it anew"):
        preprocess(source / "brats", out, **QUICK)
    with pytest.raises(UsageError, match="made with other settings: .*: wanted intensity zscore, found intensity rank; pass the same ones"):
        preprocess(source / "brats", out, intensity="rank", resume=True, **QUICK)
    with pytest.raises(UsageError, match="--force and --resume exclude each other"):
        preprocess(source / "brats", out, resume=True, force=True, **QUICK)
    assert before == files(out)

    preprocess(source / "brats", out, intensity="rank", force=True, **QUICK)

    preprocess(source / "brats", tmp_path / "anew", intensity="rank", **QUICK)
    assert files(tmp_path / "anew") == files(out)


@pytest.mark.parametrize("how", [{"force": True}, {"resume": True}])
def test_what_no_run_wrote_is_never_replaced(source, tmp_path, how):
    """A file that was changed or added since, and a data set from elsewhere: refused, by the subject's number, nothing touched."""
    out = tmp_path / "out"
    preprocess(source / "brats", out, **QUICK)
    folder = out / "LGG" / "Brats18_X_0_1"
    (folder / "notes.txt").write_text("mine")
    changed = out / "HGG" / "Brats18_X_1_1" / "Brats18_X_1_1_seg.nii.gz"
    write_volume(changed, np.zeros((3, 3, 3), np.uint8), native=Grid((3, 3, 3), np.eye(4)))
    before = files(out)

    with pytest.raises(Problems) as raised:
        preprocess(source / "brats", out, **how, **QUICK)

    assert 2 == raised.value.exit_code
    said = (
        "the output holds files that are not of an earlier run, or were changed since: subject {}: found 1 file; move them away, or write"
    )
    assert [said.format(1), said.format(2)] == [str(problem).removesuffix(" to another folder") for problem in raised.value.problems]
    assert before == files(out)
    shutil.copytree(source / "hcp", tmp_path / "foreign")
    before = files(tmp_path / "foreign")
    with pytest.raises(Problems):
        preprocess(source / "hcp", tmp_path / "foreign", **how, **QUICK)
    assert before == files(tmp_path / "foreign")


@pytest.mark.parametrize("out", ["brats", "brats/out", "."])
def test_output_within_the_data_or_around_them_is_refused(brats, out):
    """It would be found as a part of the data the next time."""
    with pytest.raises(UsageError, match="the output would mix with the data"):
        preprocess(brats, brats.parent / out, force=True, **QUICK)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"intensity": "zscor"}, "unknown intensity normalisation: found zscor; did you mean 'zscore'"),
        ({"intensity": "histogram"}, "--intensity histogram needs a reference; pass --reference with the name or number of a subject"),
        ({"reference": "1"}, "--reference is for --intensity histogram without --landmarks: found --intensity zscore"),
        ({"landmarks": Path("x")}, "--landmarks is for --intensity nyul or histogram: found zscore"),
        ({"intensity": "histogram", "reference": "9"}, "unknown reference: wanted name or number of one of the subjects, found 9"),
        ({"spacing_mm": (1, 1, 40)}, "cannot resample: wanted voxel edges of 0.1 to 20 mm, found"),
        ({"n4_shrink": 40}, "cannot shrink for N4: wanted a factor of 1 to 16, found 40"),
        ({"margin": -1}, "cannot crop: wanted a margin of at least 0 voxels, found -1"),
        ({"workers": 0}, "cannot share out the work: wanted at least 1 worker, found 0"),
    ],
)
def test_arguments_that_cannot_be_followed(source, tmp_path, flags, said):
    """One line, exit code 2, before any work."""
    with pytest.raises(UsageError) as raised:
        preprocess(source / "brats", tmp_path / "out", **{"n4": False, **flags})

    assert str(raised.value).startswith(said)
    assert [] == list(tmp_path.rglob("*.nii.gz"))


def spoil(brats):
    """Subject 1 has NaN, 2 is truncated, 3 is a broken link; 4 and 5 are sound."""
    paths = [subject.images["t1"] for subject in find_dataset(brats).subjects]
    image = read_image(paths[0])
    image.data[5, 5, 5] = np.nan
    write_volume(paths[0], image.data, native=image.native)
    paths[1].write_bytes(paths[1].read_bytes()[:-20])
    paths[2].unlink()
    paths[2].symlink_to("nowhere.nii.gz")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("intensity", ["zscore", "nyul"])
def test_subjects_that_cannot_be_used_do_not_stop_the_others(source, brats, tmp_path, intensity, workers):
    """Each is told by its number, the code is 65, the others are done; once they are mended, --resume ends as if nothing had been."""
    spoil(brats)
    out = tmp_path / "out"

    with pytest.raises(Problems) as raised:
        preprocess(brats, out, intensity=intensity, n4=False, workers=workers)

    assert 65 == raised.value.exit_code
    lines = sorted(str(problem) for problem in raised.value.problems)
    assert [
        "cannot read the volume: subject 1, t1: wanted finite voxels, found 1 of 6120 are NaN, Inf or beyond float32",
        "cannot read the volume: subject 2, t1: wanted a whole file, found one that ends early; copy or download it again",
        "cannot read the volume: subject 3, t1: wanted a regular file, found none under its name",
    ] == lines
    assert ["Brats18_X_3_1", "Brats18_X_4_1"] == [subject.name for subject in find_dataset(out).subjects]
    content = record(out)
    assert not content["complete"]
    assert [(1, 2, 3), (4, 5)] == [tuple(entry["subject"] for entry in content[key]) for key in ("failed", "subjects")]
    assert "Brats18" not in json.dumps(content)

    shutil.rmtree(brats)
    shutil.copytree(source / "brats", brats)
    result = preprocess(brats, out, intensity=intensity, n4=False, workers=workers, resume=True)

    assert (5, 2 if intensity == "zscore" else 0) == (result.subjects, result.done_before)
    preprocess(brats, tmp_path / "anew", intensity=intensity, **QUICK)
    assert files(tmp_path / "anew") == files(out)


def test_read_only_input_is_read(brats, tmp_path):
    """Nothing is written there."""
    for path in [brats, *brats.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)

    assert 5 == preprocess(brats, tmp_path / "out", **QUICK).subjects

    for path in brats.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_output_that_cannot_be_written_is_told_before_the_work(source, tmp_path):
    """Exit code 74."""
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(OutputError) as raised:
        preprocess(source / "brats", tmp_path / "file" / "out", **QUICK)
    assert 74 == raised.value.exit_code


def test_full_disk_stops_all(source, tmp_path, monkeypatch):
    """It concerns every subject: exit code 74, and no name in the line."""

    def full(path, *_, **__):
        raise OutputError("cannot write", where=path, found="no space left on the device")

    monkeypatch.setattr(subject, "write_volume", full)

    with pytest.raises(OutputError, match="^cannot write: subject 1: found no space left on the device$"):
        preprocess(source / "brats", tmp_path / "out", **QUICK)


def test_several_images_in_one_file_are_refused(source, tmp_path, monkeypatch):
    """A 4D file cannot be written back volume by volume."""
    dataset = find_dataset(source / "brats")
    first = dataset.subjects[0]
    twice = type(first)(first.name, dict.fromkeys(first.images, first.images["t1"]), first.label)
    monkeypatch.setattr(
        "mergekit3d.verbs.preprocess.find_dataset", lambda *_: type(dataset)(dataset.root, "x", (twice,), dataset.vocabulary)
    )

    with pytest.raises(UsageError, match="several images in one file cannot be preprocessed: subject 1; split it into one file a modality"):
        preprocess(source / "brats", tmp_path / "out", **QUICK)


def test_files_of_many_subjects_in_one_folder_keep_their_places(source, tmp_path, monkeypatch):
    """A layout without a folder for each subject: files are moved one by one, and the same rules hold."""
    flat = tmp_path / "flat"
    flat.mkdir()
    kind = type(find_dataset(source / "brats").subjects[0])
    subjects = []
    for old in find_dataset(source / "brats").subjects:
        new = {name: Path(shutil.copy(path, flat / path.name)) for name, path in old.images.items()}
        subjects.append(kind(old.name, new, Path(shutil.copy(old.label, flat / old.label.name))))
    dataset = find_dataset(source / "brats")
    monkeypatch.setattr(
        "mergekit3d.verbs.preprocess.find_dataset", lambda *_: type(dataset)(flat, "flat", tuple(subjects), dataset.vocabulary)
    )
    out = tmp_path / "out"

    preprocess(flat, out, **QUICK)

    assert set(files(flat)) == set(files(out)) - {"preprocess.json"}
    (out / "notes.txt").write_text("mine")
    (out / "Brats18_X_2_1_t1.nii.gz").unlink()
    assert 4 == preprocess(flat, out, resume=True, **QUICK).done_before
    assert "mine" == (out / "notes.txt").read_text()


def command(data, out, *flags):
    arguments = ["preprocess", str(data), str(out), "--n4-shrink", "2", "--intensity", "nyul", "--workers", "2", *flags]
    return [sys.executable, "-m", "mergekit3d_cli", *arguments]


@pytest.fixture(scope="module")
def through(source, tmp_path_factory):
    """The files of a run that nothing stopped."""
    out = tmp_path_factory.mktemp("through") / "out"
    subprocess.run(command(source / "hcp", out), check=True, capture_output=True)
    return files(out)


def stop(data, out, number, ready):
    """Send a signal once `ready()`; exit code and what was said."""
    process = subprocess.Popen(command(data, out), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not ready() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    return process.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["learning", "writing"])
def test_stopped_run_goes_on_to_the_same_bytes(source, tmp_path, through, number, stage):
    """In the middle of either pass: whole subjects stand in the output, no process is left, and --resume ends with the same bytes."""
    out = tmp_path / "out"
    learned = out / ".preprocessing" / "measures"
    ready = {"learning": lambda: learned.is_dir() and len(list(learned.glob("*.json"))) >= 2, "writing": lambda: any(out.glob("1*"))}

    code, said = stop(source / "hcp", out, number, ready[stage])

    assert {signal.SIGKILL: -9, signal.SIGTERM: 143}[number] == code, said
    if number == signal.SIGTERM:
        assert "error: " in said.splitlines()[-1]
        assert said.splitlines()[-1].endswith("run it again with --resume")
    assert not (out / "preprocess.json").exists()
    standing = files(out)
    assert all(through[path] == digest for path, digest in standing.items())
    assert 0 == len(standing) % 3
    if stage == "writing":
        assert standing

    outcome = subprocess.run(command(source / "hcp", out, "--resume", "--json"), capture_output=True, text=True, check=True)

    assert len(standing) // 3 <= json.loads(outcome.stdout)["done_before"]
    assert through == files(out)
    assert not (out / ".preprocessing").exists()


def test_killed_process_is_one_line(source, tmp_path, monkeypatch):
    """A worker that the system kills, for want of memory say: one line with what to do, no hanging."""
    monkeypatch.setattr("mergekit3d.preprocessing.run.finish", die)

    with pytest.raises(Exception, match="a process of the work was killed; free some memory, or pass fewer --workers"):
        preprocess(source / "brats", tmp_path / "out", n4=False, workers=2)


def die(job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_signal_in_this_process_finishes_the_subject(source, tmp_path, monkeypatch):
    """As a library, with one worker: the subject under way is put in its place before the run ends."""

    def noted(job):
        os.kill(os.getpid(), signal.SIGTERM)
        return subject.finish(job)

    monkeypatch.setattr("mergekit3d.preprocessing.run.finish", noted)

    with pytest.raises(Interrupted) as raised:
        preprocess(source / "brats", tmp_path / "out", **QUICK)

    assert "preprocess: stopped by a signal after 1 of 5 subjects; run it again with --resume" == str(raised.value)
    assert 143 == raised.value.exit_code
    assert 1 == len(find_dataset(tmp_path / "out").subjects)


def test_workers_are_as_many_as_there_are_jobs():
    """Never more processes than subjects."""
    assert (1, 3, 2) == (pool.worker_count(8, 1), pool.worker_count(3, 9), pool.worker_count(2, 2))


def test_missing_subject_of_the_list_is_told_by_its_line(source, tmp_path):
    """The list may hold names: the error does not."""
    names = tmp_path / "names.txt"
    names.write_text("Brats18_X_1_1\nDoe_John\n")

    with pytest.raises(InputError, match=r"unknown subjects: .*names.txt: wanted names of subjects in the data, found 1 others, the first"):
        preprocess(source / "brats", tmp_path / "out", subjects_file=names, **QUICK)
