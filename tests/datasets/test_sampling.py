from collections import Counter

import numpy as np
import pytest
import torch

from mergekit3d.datasets.augmentation import flips
from mergekit3d.datasets.prepare import Box, Prepared
from mergekit3d.datasets.sampling import epoch_jobs, patch_block, whole_volume_batches
from mergekit3d.datasets.share import Share
from mergekit3d.volumes.nifti import Grid

SHAPES = {1: (5, 6, 7), 2: (8, 6, 5), 3: (4, 4, 4), 5: (9, 3, 6)}


class Store:
    """Prepared subjects without files; the first channel of each image is its number."""

    def __init__(self, *, exclusive=False, with_target=True):
        self.exclusive, self.with_target = exclusive, with_target

    def get(self, number):
        shape = SHAPES[number]
        image = np.stack([np.full(shape, number), np.arange(np.prod(shape)).reshape(shape)]).astype(np.float32)
        target = np.ones(shape if self.exclusive else (3, *shape), dtype=np.uint8)
        return Prepared(number, image, target if self.with_target else None, np.eye(4), Box((0, 0, 0), shape), Grid(shape, np.eye(4)))


def batches(**kwargs):
    defaults = {"batch_size": 2, "patch_size": None, "multiple_of": 4, "seed": 0, "epoch": 0, "augment": [flips()]}
    jobs = epoch_jobs(kwargs.pop("store", Store()), kwargs.pop("numbers", list(SHAPES)), **(defaults | kwargs))
    return [job() for job in jobs]


def same(first, second):
    return first.numbers == second.numbers and torch.equal(first.images, second.images) and torch.equal(first.targets, second.targets)


def test_one_pass_takes_every_subject_once():
    """By default an epoch is one shuffled pass, whose last batch may be smaller."""
    found = [batch.numbers for batch in batches(numbers=[1, 2, 3])]

    assert [2, 1] == [len(numbers) for numbers in found]
    assert [1, 2, 3] == sorted(number for numbers in found for number in numbers)
    assert 1 < len({batches(numbers=[1, 2, 3], epoch=epoch)[1].numbers for epoch in range(9)})


def test_whole_volumes_are_padded():
    """A batch has the shape of its largest volume, rounded up, with zeros at the ends; the own shapes are told."""
    for batch in batches(augment=[]):
        largest = np.max([SHAPES[number] for number in batch.numbers], axis=0)
        assert tuple(-(-largest // 4) * 4) == tuple(batch.images.shape[2:]) == tuple(batch.targets.shape[2:])
        assert (torch.float32, torch.uint8) == (batch.images.dtype, batch.targets.dtype)
        for sample, target, number, (x, y, z) in zip(batch.images, batch.targets, batch.numbers, batch.shapes, strict=True):
            assert SHAPES[number] == (x, y, z)
            assert number * x * y * z == sample[0].sum() == sample[0, :x, :y, :z].sum()
            assert 3 * x * y * z == target.sum() == target[:, :x, :y, :z].sum()


def test_steps_go_through_full_batches():
    """With a number of steps, passes follow one another and every batch is full; each pass takes every subject once."""
    found = [number for batch in batches(steps=6) for number in batch.numbers]

    assert 12 == len(found)
    assert [sorted(SHAPES)] * 3 == [sorted(found[start : start + 4]) for start in (0, 4, 8)]
    assert 1 == len(batches(steps=1, numbers=[3], batch_size=5))
    assert (3,) * 5 == batches(steps=1, numbers=[3], batch_size=5)[0].numbers


def test_batches_are_a_function_of_seed_epoch_and_step():
    """Repeating gives the same bits, in whatever order the numbers come; other seeds and epochs differ."""
    first = batches(steps=5, patch_size=(4, 4, 4))

    assert all(same(*pair) for pair in zip(first, batches(steps=5, patch_size=(4, 4, 4), numbers=[5, 3, 2, 1]), strict=True))
    for other in ({"seed": 1}, {"epoch": 1}):
        assert not all(same(*pair) for pair in zip(first, batches(steps=5, patch_size=(4, 4, 4), **other), strict=True))


def test_patches_have_their_size():
    """Patches are cut where the volume is larger, and padded with zeros at the end where it is smaller."""
    for batch in batches(patch_size=(6, 4, 7), batch_size=1, augment=[]):
        shape = SHAPES[batch.numbers[0]]
        inside = tuple(min(have, want) for have, want in zip(shape, (6, 4, 7), strict=True))
        assert (1, 2, 6, 4, 7) == tuple(batch.images.shape)
        assert inside == batch.shapes[0]
        assert batch.numbers[0] * np.prod(inside) == batch.images[0, 0].sum()
        assert 3 * np.prod(inside) == batch.targets.sum()


def test_exclusive_targets_have_no_channel():
    """Class indices come as (B, X, Y, Z)."""
    batch = batches(store=Store(exclusive=True), numbers=[3])[0]

    assert (1, 4, 4, 4) == tuple(batch.targets.shape)


@pytest.mark.parametrize("exclusive", [False, True])
def test_patches_are_balanced_over_classes(exclusive):
    """A third of the patches lies around a class chosen evenly among those there, so a rare one comes up as often as a large one."""
    target = np.zeros((3, 40, 40, 40), dtype=np.uint8)
    target[0, 20, 20, 20] = 1
    target[1, 30:, 30:, 30:] = 1
    target = target[0] + 2 * target[1] if exclusive else target
    rng = np.random.default_rng(0)

    starts = [tuple(block.start for block in patch_block(target, (3, 3, 3), rng)) for _ in range(3000)]

    counts = Counter("rare" if start == (19, 19, 19) else "large" if min(start) >= 29 else "elsewhere" for start in starts)
    np.testing.assert_allclose([1 / 6, 1 / 6, 2 / 3], [counts[key] / 3000 for key in ("rare", "large", "elsewhere")], atol=0.03)
    assert 37 == max(max(start) for start in starts)
    assert 0 == min(min(start) for start in starts)


def test_patches_without_foreground_lie_anywhere():
    """A volume without any class gives patches too."""
    assert (slice(0, 9), slice(0, 9), slice(0, 9)) == patch_block(np.zeros((1, 4, 4, 4)), (9, 9, 9), np.random.default_rng(0))


def test_validation_volumes_come_whole():
    """One subject a batch, in the order asked for, unchanged but for the padding; targets only where they were read."""
    found = list(whole_volume_batches(Store(), [5, 1], multiple_of=8))

    assert [(5,), (1,)] == [batch.numbers for batch in found]
    assert [(1, 2, 16, 8, 8), (1, 2, 8, 8, 8)] == [tuple(batch.images.shape) for batch in found]
    x, y, z = found[1].shapes[0]
    assert Store().get(1).image.tolist() == found[1].images[0, :, :x, :y, :z].tolist()
    assert next(whole_volume_batches(Store(with_target=False), [1], multiple_of=1)).targets is None


@pytest.mark.parametrize("patch_size", [None, (3, 4, 2)])
def test_subjects_without_targets_give_batches_without(patch_size):
    """The images are drawn and augmented all the same, and the same ones for the same seed."""
    first, again = (batches(store=Store(with_target=False), patch_size=patch_size, augment=[flips()]) for _ in range(2))

    assert all(batch.targets is None for batch in first)
    assert all(torch.equal(batch.images, other.images) for batch, other in zip(first, again, strict=True))
    if patch_size is not None:
        assert {patch_size} == {tuple(batch.images.shape[2:]) for batch in first}


@pytest.mark.parametrize("patch_size", [None, (4, 4, 4)])
@pytest.mark.parametrize("steps", [None, 3])
def test_shares_of_processes_are_the_batches_of_one(patch_size, steps):
    """Two processes and two batches a step: the same samples, padded alike, each in one process; the part of the batch is told."""
    how = {"patch_size": patch_size, "steps": steps, "batch_size": 3}
    shares = [batches(**how, share=Share(rank, 2, accumulate=2, shapes=SHAPES)) for rank in range(2)]

    for whole, *parts in zip(batches(**how), *shares, strict=True):
        there = [part for part in parts if part.numbers]
        assert whole.numbers == sum((part.numbers for part in there), ())
        assert torch.equal(whole.images, torch.cat([part.images for part in there]))
        assert torch.equal(whole.targets, torch.cat([part.targets for part in there]))
        assert 1 == pytest.approx(sum(part.part for part in parts))
