import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from mergekit3d.checkpoints.metadata import TaskSpec
from mergekit3d.datasets import cache, find_dataset
from mergekit3d.datasets.cache import SubjectStore
from mergekit3d.datasets.prepare import PREPARATION, Box
from mergekit3d.errors import InputError

TASK = TaskSpec(modalities=("t1",), outputs={"a": (1,)})
FIGURES_OF_VERSION_1 = [(1, 6, 8, 7), 108, Box((0, 0, 0), (9, 8, 7)), 177.52]


@pytest.fixture
def dataset(tmp_path, write):
    for index in range(3):
        write(tmp_path / f"s{index}/t1.nii", np.random.default_rng(index).uniform(1, 2, (4, 4, 4)))
        write(tmp_path / f"s{index}/seg.nii", np.eye(4, dtype=int)[:, :, None] * np.ones(4, dtype=int))
    return find_dataset(tmp_path)


@pytest.fixture
def calls(monkeypatch):
    numbers, original = [], cache.prepare
    monkeypatch.setattr(
        cache, "prepare", lambda subject, number, *args, **kwargs: (numbers.append(number), original(subject, number, *args, **kwargs))[1]
    )
    return numbers


def store(dataset, **kwargs):
    return SubjectStore(dict(enumerate(dataset.subjects, 1)), TASK, vocabulary=dataset.vocabulary, **kwargs)


def test_subjects_are_prepared_once(dataset, calls):
    """Preparation happens when a subject is first asked for, and never again; what comes back is read-only."""
    subjects = store(dataset)

    assert [] == calls
    assert subjects.get(2) is subjects.get(2)
    assert [1, 2, 3] == [prepared.number for prepared in subjects]
    assert [2, 1, 3] == calls
    with pytest.raises(ValueError, match="read-only"):
        subjects.get(1).image[...] = 0


def test_what_does_not_fit_is_prepared_again(dataset, calls):
    """The first subjects that fit stay, sweep after sweep; the others come fresh, with the same content."""
    size = store(dataset).get(1).size_bytes
    calls.clear()
    small = store(dataset, capacity_bytes=2 * size)

    sweeps = [[prepared.image.tolist() for prepared in small] for _ in range(2)]

    assert [1, 2, 3, 3] == calls
    assert sweeps[0] == sweeps[1]
    assert 2 * size == small.used_bytes


def test_threads_share_the_work(dataset, calls):
    """Several threads that ask for one subject wait for one preparation."""
    subjects = store(dataset)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(subjects.get, [1, 2, 3] * 8))

    assert [1, 2, 3] == sorted(calls)
    assert all(prepared is subjects.get(prepared.number) for prepared in found)


def test_labels_are_left_alone_where_not_needed(dataset):
    """Without targets, subjects need no label map."""
    dataset.subjects[0].label.unlink()

    assert store(dataset, with_target=False).get(1).target is None
    with pytest.raises(InputError, match="no such file"):
        store(dataset).get(1)


def test_a_folder_keeps_prepared_subjects_for_later_runs(dataset, calls, tmp_path):
    """A second store prepares nothing, gives the same subjects, mapped and read-only, and its files name nobody."""
    folder = tmp_path / "prepared"
    first, plain = list(store(dataset, folder=folder)), list(store(dataset))
    calls.clear()
    again = store(dataset, folder=folder)

    for one, other in zip(again, plain, strict=True):
        assert np.array_equal(one.image, other.image)
        assert one.image.dtype == other.image.dtype
        assert np.array_equal(one.target, other.target)
        assert one.target.dtype == other.target.dtype
        assert np.array_equal(one.affine, other.affine)
        assert (one.number, one.box, one.native.shape) == (other.number, other.box, other.native.shape)
        assert np.array_equal(one.native.affine, other.native.affine)
        assert not one.image.flags.writeable
        assert not one.image.flags.owndata
    assert [] == calls
    assert 0 == again.used_bytes
    assert again.get(1) is again.get(1)
    assert 3 == len(first) == len(list(folder.rglob("*.safetensors")))
    assert not any(subject.name in path.name for path in folder.rglob("*.safetensors") for subject in dataset.subjects)


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": {"a": (1,), "b": (1,)}},
        {"exclusive": True},
        {"normalisation": "rank"},
        {"spacing_mm": (2.0, 1.0, 1.0)},
    ],
)
def test_another_preparation_is_another_file(dataset, calls, tmp_path, change):
    """Whatever of the task decides the arrays is in the key."""
    list(store(dataset, folder=tmp_path / "prepared"))
    calls.clear()

    list(SubjectStore({1: dataset.subjects[0]}, replace(TASK, **change), vocabulary=dataset.vocabulary, folder=tmp_path / "prepared"))
    list(store(dataset, folder=tmp_path / "prepared", with_target=False))

    assert [1, 1, 2, 3] == calls


def test_changed_files_are_prepared_anew_and_copied_ones_are_not(dataset, calls, tmp_path, write):
    """The content decides: neither the time of a file nor its place."""
    folder = tmp_path / "prepared"
    list(store(dataset, folder=folder))
    calls.clear()
    os.utime(dataset.subjects[0].images["t1"], (1, 1))
    moved = dataset.subjects[1].images["t1"].with_name("moved.nii")
    dataset.subjects[1].images["t1"].rename(moved)
    subjects = {1: dataset.subjects[0], 2: replace(dataset.subjects[1], images={"t1": moved}), 3: dataset.subjects[2]}
    write(dataset.subjects[2].images["t1"], np.random.default_rng(9).uniform(1, 2, (4, 4, 4)))

    found = list(SubjectStore(subjects, TASK, vocabulary=dataset.vocabulary, folder=folder))

    assert [3] == calls
    assert np.array_equal(found[2].image, store(dataset).get(3).image)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "header"])
def test_a_damaged_file_is_made_again(dataset, calls, tmp_path, damage):
    """Its seal does not fit: the subject is prepared once more, without a word."""
    folder = tmp_path / "prepared"
    wanted = store(dataset, folder=folder).get(1).image.copy()
    (path,) = folder.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-70] ^= 1
    path.write_bytes({"truncate": content[:-8], "empty": b"", "header": b"\xff" * 16}.get(damage, content))
    calls.clear()

    found = store(dataset, folder=folder).get(1)

    assert [1] == calls
    assert np.array_equal(wanted, found.image)
    assert np.array_equal(wanted, store(dataset, folder=folder).get(1).image)
    assert [1] == calls


def test_a_folder_that_cannot_be_written_is_told_once(dataset, tmp_path):
    """Training goes on from memory."""
    (tmp_path / "prepared").touch()
    messages = []
    subjects = store(dataset, folder=tmp_path / "prepared", reporter=Recording(messages))

    assert 3 == len(list(subjects))
    assert subjects.used_bytes > 0
    assert 1 == len([message for message in messages if message.startswith("prepared subjects are not stored: cannot write: ")])


def test_few_files_are_mapped_at_a_time(dataset, calls, tmp_path, monkeypatch):
    """A process may have some thousand files open; what is let go is mapped again, not made again."""
    monkeypatch.setattr(cache, "MOST_MAPPED", 2)
    subjects = store(dataset, folder=tmp_path / "prepared")

    sweeps = [[prepared.image.tolist() for prepared in subjects] for _ in range(2)]

    assert sweeps[0] == sweeps[1]
    assert [1, 2, 3] == calls
    assert 2 == len(subjects._mapped)


SCRIPT = """
import sys
from pathlib import Path
from mergekit3d.checkpoints.metadata import TaskSpec
from mergekit3d.datasets import cache, find_dataset
original = cache.prepare
cache.prepare = lambda subject, number, *args, **kwargs: (print(number, flush=True), original(subject, number, *args, **kwargs))[1]
dataset = find_dataset(Path(sys.argv[1]))
store = cache.SubjectStore(dict(enumerate(dataset.subjects, 1)), TaskSpec(modalities=("t1",), outputs={"a": (1,)}),
    vocabulary=dataset.vocabulary, folder=Path(sys.argv[2]))
sys.stdin.readline()
list(store)
"""


def test_processes_prepare_each_subject_once_between_them(dataset, tmp_path):
    """Four of them start at once on an empty folder."""
    command = [sys.executable, "-c", SCRIPT, str(dataset.root), str(tmp_path / "prepared")]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = "".join(process.communicate(timeout=120)[0] for process in processes)

    assert [0] * 4 == [process.returncode for process in processes]
    assert ["1", "2", "3"] == sorted(said.split())


def test_the_preparation_is_the_one_of_its_version(tmp_path, write):
    """Where these figures change, PREPARATION must be counted up: what is stored would be out of date."""
    rng = np.random.default_rng(0)
    image = rng.uniform(1, 2, (9, 8, 7)) * (np.indices((9, 8, 7)).min(0) > 0)
    write(tmp_path / "s/t1.nii", image)
    write(tmp_path / "s/seg.nii", (image > 1.5).astype(int))
    found = find_dataset(tmp_path)
    task = TaskSpec(modalities=("t1",), outputs={"a": (1,)}, spacing_mm=(1.5, 1.0, 1.0))

    prepared = SubjectStore({1: found.subjects[0]}, task, vocabulary=found.vocabulary).get(1)

    figures = [prepared.image.shape, int(prepared.target.sum()), prepared.box, round(float(np.abs(prepared.image).sum()), 2)]
    assert 1 == PREPARATION
    assert FIGURES_OF_VERSION_1 == figures


class Recording:
    """A reporter that notes what it is told."""

    def __init__(self, messages):
        self.info = self.warn = messages.append
