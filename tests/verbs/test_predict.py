"""Segmentations on the grid of each subject: ensembles, probabilities, submissions, and what resume keeps."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mergekit3d import predict
from mergekit3d.checkpoints import TaskSpec
from mergekit3d.datasets import find_dataset
from mergekit3d.errors import InputError, Interrupted, MergeKit3DError, UsageError
from mergekit3d.options import Options
from mergekit3d.storage.atomic import TEMPORARY_PREFIX, TEMPORARY_SUFFIX
from mergekit3d.verbs.predict import RECORD
from tests.builders import save_source, task_of, torchrun

REGIONS = {"ET": (3,), "TC": (1, 3), "WT": (1, 2, 3)}


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_data) -> Path:
    """A few small HCP subjects."""
    return make_data(tmp_path_factory.mktemp("data")) / "hcp"


def source(path, seed, **outputs):
    """A network, of random weights."""
    save_source(path, seed, task=task_of() if not outputs else TaskSpec(("t1", "t2"), outputs))
    return path


def run(checkpoint, data, out, *, resume=False, force=False, **how):
    return predict(checkpoint, data, out, options=Options(device="cpu", precision="fp32", resume=resume, force=force), **how)


def values(path):
    return np.asarray(nibabel.load(path).dataobj)


def test_ensemble_is_the_mean_of_the_probabilities(data, tmp_path):
    """On the native grid of each subject, one file a subject; the label map is that of the mean."""
    checkpoints = [source(tmp_path / f"{seed}.safetensors", seed, **REGIONS) for seed in (0, 1)]
    single = [run(path, data, tmp_path / path.stem, probabilities=True) for path in checkpoints]
    both = run(checkpoints, data, tmp_path / "both", probabilities=True)

    assert single[0].files != both.files
    for one, other, file in zip(*(result.files for result in single), both.files, strict=True):
        found = values(file.parent / "probabilities" / file.name)
        wanted = (values(one.parent / "probabilities" / one.name) + values(other.parent / "probabilities" / other.name)) / 2
        np.testing.assert_allclose(wanted, found, atol=1e-6)
        assert (*nibabel.load(file).shape, 3) == found.shape
        assert np.array_equal(nibabel.load(file).affine, nibabel.load(file.parent / "probabilities" / file.name).affine)
        assert np.array_equal((found > 0.5).any(-1), values(file) > 0)


def test_members_of_an_ensemble_have_one_task(data, tmp_path):
    """Both tasks are named."""
    first = source(tmp_path / "a.safetensors", 0, **REGIONS)
    second = source(tmp_path / "b.safetensors", 1, ET=(4,), TC=(1, 4), WT=(1, 2, 4))
    with pytest.raises(InputError, match=r"the checkpoints of an ensemble are of different tasks: .*b.safetensors"):
        run([first, second], data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_submission_has_the_labels_of_the_challenge(data, tmp_path):
    """Of networks that learned enhancing tumour as 3, as of BraTS 2023: 4, 1 and 2 where theirs are 3, 1 and 2."""
    checkpoint = source(tmp_path / "a.safetensors", 0, **REGIONS)
    own = run(checkpoint, data, tmp_path / "own")
    sent = run(checkpoint, data, tmp_path / "sent", submission="brats")

    for one, other in zip(own.files, sent.files, strict=True):
        assert np.array_equal(np.where(values(one) == 3, 4, values(one)), values(other))
    assert any((values(file) == 4).any() for file in sent.files)


def test_submission_of_another_task_is_refused(data, tmp_path):
    """The regions that it takes, and those found."""
    checkpoint = source(tmp_path / "a.safetensors", 0)
    with pytest.raises(
        UsageError, match="no labels for a submission to brats: --submission: wanted a checkpoint of the regions ET, TC, WT"
    ):
        run(checkpoint, data, tmp_path / "out", submission="brats")
    with pytest.raises(UsageError, match="unknown submission: --submission: wanted brats, found kits"):
        run(checkpoint, data, tmp_path / "out", submission="kits")


def test_resume_makes_what_is_missing(data, tmp_path):
    """Files of the same checkpoint, settings and images stay as they are; the record holds no names."""
    checkpoint = source(tmp_path / "a.safetensors", 0)
    first = run(checkpoint, data, tmp_path / "out")
    first.files[1].unlink()
    leftover = tmp_path / "out" / "probabilities" / f"{TEMPORARY_PREFIX}{2**22 + 1}-1{TEMPORARY_SUFFIX}"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half a volume")
    times = {file: file.stat().st_mtime_ns for file in first.files if file.exists()}
    again = run(checkpoint, data, tmp_path / "out", resume=True)

    assert (len(first.files) - 1, first.files) == (again.kept, again.files)
    assert all(file.exists() for file in again.files)
    assert not leftover.exists()
    assert times == {file: file.stat().st_mtime_ns for file in times}
    record = (tmp_path / "out" / RECORD).read_text()
    assert not any(file.name.removesuffix(".nii.gz") in record for file in first.files)


@pytest.mark.parametrize("probabilities", [False, True])
def test_resume_makes_anew_what_was_replaced(data, tmp_path, probabilities):
    """A file of another checkpoint that was put in the place of a finished one, segmentation or probabilities, is not kept."""
    checkpoint = source(tmp_path / "a.safetensors", 0)
    first = run(checkpoint, data, tmp_path / "out", probabilities=probabilities)
    name = first.files[0].name
    replaced = tmp_path / "out" / "probabilities" / name if probabilities else first.files[0]
    content = replaced.read_bytes()
    replaced.write_bytes(b"of another checkpoint")

    assert len(first.files) - 1 == run(checkpoint, data, tmp_path / "out", probabilities=probabilities, resume=True).kept
    assert content == replaced.read_bytes()


@pytest.mark.parametrize("change", [{"overlap": 0.25}, {"mirror": True}, {"probabilities": True}, {"other": True}])
def test_resume_of_something_else_is_refused(data, tmp_path, change):
    """Other weights or settings would mix two predictions in one folder; --force makes them anew."""
    checkpoint = source(tmp_path / "a.safetensors", 0)
    run(checkpoint, data, tmp_path / "out")
    before = {file: file.read_bytes() for file in (tmp_path / "out").glob("*.nii.gz")}
    if change.pop("other", False):
        checkpoint = source(tmp_path / "b.safetensors", 1)
    with pytest.raises(UsageError, match="nothing to resume: .*found segmentations of other checkpoints or settings"):
        run(checkpoint, data, tmp_path / "out", resume=True, **change)

    assert before == {file: file.read_bytes() for file in before}
    assert 0 == run(checkpoint, data, tmp_path / "out", resume=True, force=True, **change).kept


def test_segmentations_without_a_record_are_not_replaced(data, tmp_path):
    """They may be somebody's own work; --force says that they are not."""
    checkpoint = source(tmp_path / "a.safetensors", 0)
    name = run(checkpoint, data, tmp_path / "first").files[0].name
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"not ours")
    with pytest.raises(UsageError, match="the output exists already"):
        run(checkpoint, data, tmp_path / "out", resume=True)

    assert b"not ours" == (tmp_path / "out" / name).read_bytes()
    assert 0 == run(checkpoint, data, tmp_path / "out", resume=True, force=True).kept
    assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_data_are_never_replaced(data, tmp_path):
    """Not by --force either: a label map of nnU-Net's layout has the name of a segmentation."""
    root = tmp_path / "Dataset001_Heads"
    for file, name in (
        ("T1w_acpc_dc_restore", "imagesTr/a_0000"),
        ("T2w_acpc_dc_restore", "imagesTr/a_0001"),
        ("aparc+aseg", "labelsTr/a"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(next(data.rglob(f"{file}.nii.gz")), root / f"{name}.nii.gz")
    description = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "head": 1}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(description))
    before = (root / "labelsTr/a.nii.gz").read_bytes()

    with pytest.raises(UsageError, match="segmentations would replace files of the data: .*labelsTr; pass another --out"):
        run(source(tmp_path / "a.safetensors", 0), root, root / "labelsTr", force=True)
    assert before == (root / "labelsTr/a.nii.gz").read_bytes()


def test_segmentation_of_other_images_is_made_anew(data, tmp_path):
    """Subjects whose images changed places keep no segmentation of one another."""
    from mergekit3d.datasets import find_dataset

    checkpoint = source(tmp_path / "a.safetensors", 0, **REGIONS)
    folder = Path(shutil.copytree(data, tmp_path / "hcp"))
    before = run(checkpoint, folder, tmp_path / "out")
    first, second = (subject.images["t1"].parents[1] for subject in find_dataset(folder).subjects[:2])
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)
    after = run(checkpoint, folder, tmp_path / "out", resume=True)

    assert len(before.files) - 2 == after.kept
    fresh = run(checkpoint, folder, tmp_path / "fresh")
    assert [file.read_bytes() for file in fresh.files] == [file.read_bytes() for file in after.files]


def test_record_that_is_damaged_is_one_line(data, tmp_path):
    """It is named."""
    checkpoint = source(tmp_path / "a.safetensors", 0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / RECORD).write_text("{")
    with pytest.raises(MergeKit3DError, match=RECORD):
        run(checkpoint, data, tmp_path / "out", resume=True)


def test_mirrored_copies_go_along_the_axes_asked_for(data, tmp_path):
    """Left-right unless told otherwise; axes that there are not are refused; who names axes wants copies."""
    checkpoint = source(tmp_path / "a.safetensors", 0, **REGIONS)
    for name, axes in (("x", (0,)), ("xz", (0, 2))):
        run(checkpoint, data, tmp_path / name, mirror_axes=axes, probabilities=True)
    default = run(checkpoint, data, tmp_path / "default", mirror=True, probabilities=True)

    name = default.files[0].name
    found = {folder: values(tmp_path / folder / "probabilities" / name) for folder in ("x", "xz", "default")}
    assert np.array_equal(found["x"], found["default"])
    assert not np.array_equal(found["x"], found["xz"])
    assert [0] == json.loads((tmp_path / "default" / RECORD).read_text())["settings"]["mirror_axes"]
    with pytest.raises(UsageError, match="no such axes: --mirror-axes: wanted some of x, y, z"):
        run(checkpoint, data, tmp_path / "out", mirror=True, mirror_axes=(3,))


@pytest.mark.slow
def test_two_processes_write_what_one_does(data, tmp_path):
    """The subjects are shared out; one JSON object, one record, the same files; --resume finds all of them done."""
    checkpoint = source(tmp_path / "a.safetensors", 0, **REGIONS)
    one = run(checkpoint, data, tmp_path / "one")
    flags = ["--data", str(data), "--out", str(tmp_path / "two"), "--device", "cpu", "--precision", "fp32", "--json"]

    def begin(*more):
        return json.loads(torchrun(2, "predict", checkpoint, *flags, *more).stdout)

    told = begin()
    assert (len(one.files), 0) == (told["subjects"], told["kept"])
    for file in one.files:
        assert np.mean(values(file) != values(tmp_path / "two" / file.name)) < 1e-3
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert len(one.files) == begin("--resume")["kept"]


def test_records_of_several_processes_that_were_killed_are_one(data, tmp_path):
    """Each had noted what it wrote: a run that goes on, alone or with others, keeps all of it."""
    checkpoint = source(tmp_path / "a.safetensors", 0, **REGIONS)
    files = run(checkpoint, data, tmp_path / "out").files
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    done = list(record["done"].items())
    (tmp_path / "out" / RECORD).write_text(json.dumps({**record, "done": {}}))
    for number, part in enumerate((done[:2], done[2:3]), 1):
        (tmp_path / "out" / f".predictions-{number}.json").write_text(json.dumps({**record, "done": dict(part)}))
    again = run(checkpoint, data, tmp_path / "out", resume=True)

    assert (3, len(files)) == (again.kept, len(json.loads((tmp_path / "out" / RECORD).read_text())["done"]))
    assert [] == list((tmp_path / "out").glob(".predictions-*"))


def test_subjects_of_a_list(data, tmp_path):
    """By their names in it, and those of one part alone."""
    subjects = find_dataset(data).subjects[:3]
    entries = [{"subject": f"s{number}", "image": [str(path) for path in one.images.values()]} for number, one in enumerate(subjects)]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries[:1], "testing": entries[1:]}))
    checkpoint = source(tmp_path / "a.safetensors", 0)
    whole = run(checkpoint, tmp_path / "list.json", tmp_path / "whole")

    assert ["s0.nii.gz", "s1.nii.gz", "s2.nii.gz"] == [path.name for path in whole.files]
    assert ["s1.nii.gz", "s2.nii.gz"] == [path.name for path in run(checkpoint, f"{tmp_path}/list.json:test", tmp_path / "part").files]
    assert np.array_equal(values(whole.files[0]), values(run(checkpoint, data, tmp_path / "folder").files[0]))


@pytest.fixture
def three(data, tmp_path) -> Path:
    """Three of the subjects, to be spoiled."""
    folder = tmp_path / "three"
    for name in ("100000", "100001", "100002"):
        shutil.copytree(data / name, folder / name)
    return folder


def spoil_by_modality(folder):
    (folder / "100001" / "T1w" / "T2w_acpc_dc_restore.nii.gz").unlink()
    return "a subject lacks a modality: subject 2: wanted t1, t2, found t1; add t2"


def spoil_by_damage(folder):
    path = folder / "100001" / "T1w" / "T2w_acpc_dc_restore.nii.gz"
    path.write_bytes(path.read_bytes()[:200])
    return "cannot read the volume: subject 2, t2: wanted"


def spoil_by_emptiness(folder):
    for modality in ("T1w", "T2w"):
        path = folder / "100001" / "T1w" / f"{modality}_acpc_dc_restore.nii.gz"
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.float32), image.affine), path)
    return "the images are empty: subject 2"


@pytest.mark.parametrize("spoil", [spoil_by_modality, spoil_by_damage, spoil_by_emptiness])
def test_subject_that_cannot_be_used_is_one_line_and_the_others_are_done(three, tmp_path, spoil):
    """Exit code 65; once it is mended, --resume makes what is missing alone."""
    checkpoint = source(tmp_path / "a.safetensors", 0)
    mended = Path(shutil.copytree(three, tmp_path / "mended"))
    with pytest.raises(InputError, match=spoil(three)) as caught:
        run(checkpoint, three, tmp_path / "out")

    assert (65, 1) == (caught.value.exit_code, len(str(caught.value).splitlines()))
    assert ["100000.nii.gz", "100002.nii.gz"] == sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz"))
    after = run(checkpoint, mended, tmp_path / "out", resume=True)
    assert (2, 3) == (after.kept, len(after.files))


def test_all_subjects_that_cannot_be_used_are_told(three, tmp_path):
    """A line each, of the same exit code; where there is no other, nothing is written."""
    checkpoint = source(tmp_path / "a.safetensors", 0)
    spoil_by_modality(three)
    path = three / "100002" / "T1w" / "T1w_acpc_dc_restore.nii.gz"
    path.write_bytes(b"")
    with pytest.raises(MergeKit3DError) as caught:
        run(checkpoint, three, tmp_path / "out")
    assert (65, 2) == (caught.value.exit_code, len(str(caught.value).splitlines()))

    shutil.rmtree(three / "100000")
    shutil.rmtree(three / "100002")
    with pytest.raises(InputError, match="no subject has the modality: t2"):
        run(checkpoint, three, tmp_path / "none")
    assert not (tmp_path / "none").exists()


class Stopping:
    """A reporter that sends a signal once the first subject is done."""

    def info(self, message):
        pass

    warn = info

    def task(self, *_):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def advance(self, *_, **__):
        os.kill(os.getpid(), signal.SIGTERM)


def test_signal_ends_after_the_subject_and_resume_goes_on(three, tmp_path):
    """Exit code 143; the whole is, byte for byte, what an undisturbed run writes."""
    checkpoint = source(tmp_path / "a.safetensors", 0)
    whole = run(checkpoint, three, tmp_path / "whole")
    with pytest.raises(Interrupted, match="predict: stopped by a signal after 1 of 3 subjects; run it again with --resume") as caught:
        run(checkpoint, three, tmp_path / "out", reporter=Stopping())

    assert 128 + signal.SIGTERM == caught.value.exit_code
    assert ["100000.nii.gz"] == [path.name for path in (tmp_path / "out").glob("*.nii.gz")]
    assert 1 == run(checkpoint, three, tmp_path / "out", resume=True).kept
    assert [path.read_bytes() for path in whole.files] == [(tmp_path / "out" / path.name).read_bytes() for path in whole.files]


@pytest.mark.parametrize("codes", ["LAS", "PSR", "AIL"])
def test_segmentation_lies_where_its_images_do(three, tmp_path, codes):
    """Whatever the order and direction of the axes: the same voxels, the image's own grid and affine."""
    checkpoint = source(tmp_path / "a.safetensors", 0, **REGIONS)
    plain = run(checkpoint, three, tmp_path / "plain", probabilities=True)
    orientation = nibabel.orientations.axcodes2ornt(codes)
    for path in three.rglob("*.nii.gz"):
        image = nibabel.load(path)
        turned = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), orientation))
        nibabel.save(nibabel.Nifti1Image(np.asarray(turned.dataobj), turned.affine), path)
    found = run(checkpoint, three, tmp_path / "turned", probabilities=True)

    for one, other in zip(plain.files, found.files, strict=True):
        assert codes == "".join(nibabel.aff2axcodes(nibabel.load(other).affine))
        for wanted, turned in ((one, other), *[tuple(path.parent / "probabilities" / path.name for path in (one, other))]):
            first, second = (nibabel.as_closest_canonical(nibabel.load(path)) for path in (wanted, turned))
            assert np.array_equal(np.asarray(first.dataobj), np.asarray(second.dataobj))
            np.testing.assert_allclose(first.affine, second.affine, atol=1e-4)


def test_oblique_and_anisotropic_grids_are_kept(three, tmp_path):
    """Affine to the last digit that NIfTI holds, voxel sizes and all; headers hold nothing else."""
    checkpoint = source(tmp_path / "a.safetensors", 0)
    cosine, sine = np.cos(0.3), np.sin(0.3)
    affine = np.array([[0.8 * cosine, -0.9 * sine, 0, 5], [0.8 * sine, 0.9 * cosine, 0, -7], [0, 0, 4.5, 3], [0, 0, 0, 1]])
    for path in three.rglob("*.nii.gz"):
        image = nibabel.Nifti1Image(np.asarray(nibabel.load(path).dataobj), affine)
        image.header["descrip"] = b"CANARY"
        nibabel.save(image, path)
    for file in run(checkpoint, three, tmp_path / "out").files:
        written = nibabel.load(file)
        np.testing.assert_allclose(affine, written.affine, atol=1e-6)
        np.testing.assert_allclose((0.8, 0.9, 4.5), written.header.get_zooms(), atol=1e-6)
        assert b"CANARY" not in gzip.decompress(file.read_bytes())


def test_subjects_of_a_file_alone(three, tmp_path):
    """Numbered as in the whole data set; a name that no subject has is refused before any work."""
    checkpoint = source(tmp_path / "a.safetensors", 0)
    (tmp_path / "test.txt").write_text("100002\n")
    found = run(checkpoint, three, tmp_path / "out", subjects_file=tmp_path / "test.txt")
    assert ["100002.nii.gz"] == [path.name for path in found.files]
    assert ["100002.nii.gz"] == [path.name for path in (tmp_path / "out").glob("*.nii.gz")]
    (tmp_path / "test.txt").write_text("someone\n")
    with pytest.raises(InputError, match="unknown subjects: found name 1 of 1"):
        run(checkpoint, three, tmp_path / "other", subjects_file=tmp_path / "test.txt")
