from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mergekit3d.checkpoints.metadata import TaskSpec
from mergekit3d.datasets import cache, find_dataset
from mergekit3d.datasets.cache import SubjectStore
from mergekit3d.errors import InputError

TASK = TaskSpec(modalities=("t1",), outputs={"a": (1,)})


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
