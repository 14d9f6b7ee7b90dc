"""Batches of volumes and patches. What a batch holds is a pure function of seed, epoch and step, so that a run can resume anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekit3d.datasets.augmentation import Transform, augmented
from mergekit3d.datasets.cache import SubjectStore
from mergekit3d.datasets.prepare import Prepared
from mergekit3d.datasets.share import WHOLE, Share
from mergekit3d.datasets.spatial import Block, Spatial, cut
from mergekit3d.volumes.orientation import Shape

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]

FOREGROUND_SHARE = 1 / 3
ORDER_STREAM, SAMPLE_STREAM = 0, 1  # of the random numbers of an epoch


@dataclass(frozen=True, eq=False)
class Batch:
    """Several samples of one shape.

    Args:
        images: (B, M, X, Y, Z) float32; padding, at the end of the axes, is 0.
        targets: uint8, (B, C, X, Y, Z) for regions or (B, X, Y, Z) for exclusive classes; padding is 0. None: none were read.
        numbers: of the subjects.
        shapes: voxels of each sample along each axis, without the padding.
        whole: samples of the batch that this is a process's share of, which may be none; None: this is all of it.
    """

    images: torch.Tensor
    targets: torch.Tensor | None
    numbers: tuple[int, ...]
    shapes: tuple[Shape, ...]
    whole: int | None = None

    @property
    def part(self) -> float:
        """How much of its batch this is, from 0 to 1."""
        return 1.0 if self.whole is None else len(self.numbers) / self.whole

    def pinned(self) -> Batch:
        """The same in page-locked memory, from which a GPU copies in the background."""
        return replace(self, images=self.images.pin_memory(), targets=None if self.targets is None else self.targets.pin_memory())


Job = Callable[[], Batch]
"""Makes a batch, in whatever thread."""


def epoch_jobs(
    store: SubjectStore,
    numbers: Sequence[int],
    *,
    batch_size: int,
    patch_size: Shape | None,
    multiple_of: int,
    seed: int,
    epoch: int,
    steps: int | None = None,
    spatial: Spatial | None = None,
    augment: Sequence[Transform] = (),
    device: torch.device | str = "cpu",
    share: Share = WHOLE,
) -> Iterator[Job]:
    """What makes the training batches of one epoch, one after the other; each may be made in any thread, at any time.

    Subjects come in shuffled passes. With `steps` left out there is one pass, whose last batch may be smaller; else passes follow
    one another until there are as many full batches.

    Args:
        store: the subjects; batches have targets where it reads them.
        numbers: which of them.
        batch_size: samples a batch.
        patch_size: voxels of a patch; None: whole volumes.
        multiple_of: whole volumes are padded to a multiple of it along each axis, and to the largest of the batch.
        seed: of everything random, 0 or more.
        epoch: from 0.
        steps: batches; None: as many as one pass takes.
        spatial: random resampling; None: samples are cut out as they are.
        augment: further random changes, in order.
        device: where the tensors go.
        share: which samples of each batch to take; the others are not read.
    """
    subjects = sorted(numbers)
    total = len(subjects) if steps is None else steps * batch_size

    def make(step: int) -> Batch:
        indices = range(step * batch_size, min((step + 1) * batch_size, total))
        plan = {index: _subject_at(subjects, index, seed, epoch) for index in indices}
        own = share.of_batch(step, batch_size, total)
        samples = []
        for index in own:
            rng = np.random.default_rng([seed, epoch, SAMPLE_STREAM, index])
            samples.append((plan[index], *_sample(store.get(plan[index]), patch_size, spatial, augment, rng)))
        if own == indices:
            return _batch(samples, _common_shape([image.shape[1:] for _, image, _ in samples], patch_size, multiple_of), device)
        if not samples:
            return _empty_batch(len(indices), device)
        shapes = [] if patch_size is not None else [share.shapes[number] for number in plan.values()]
        return replace(_batch(samples, _common_shape(shapes, patch_size, multiple_of), device), whole=len(indices))

    return (partial(make, step) for step in range(-(-total // batch_size)))


def whole_volume_batches(
    store: SubjectStore, numbers: Sequence[int], *, multiple_of: int, device: torch.device | str = "cpu"
) -> Iterator[Batch]:
    """One batch a subject, whole and unchanged, padded to a multiple of `multiple_of`; targets where the store reads them."""
    for number in numbers:
        prepared = store.get(number)
        shape = _common_shape([prepared.image.shape[1:]], None, multiple_of)
        yield _batch([(number, prepared.image, prepared.target)], shape, device)


def _subject_at(subjects: Sequence[int], index: int, seed: int, epoch: int) -> int:
    passes, position = divmod(index, len(subjects))
    order = np.random.default_rng([seed, epoch, ORDER_STREAM, passes]).permutation(len(subjects))
    return subjects[int(order[position])]


def _sample(
    prepared: Prepared, patch_size: Shape | None, spatial: Spatial | None, augment: Sequence[Transform], rng: np.random.Generator
) -> tuple[Array, Array | None]:
    nothing = np.zeros((0, *prepared.image.shape[1:]), np.uint8)
    block: Block = (slice(None),) * 3
    if patch_size is not None:
        block = patch_block(nothing if prepared.target is None else prepared.target, patch_size, rng)
    image, target = cut(prepared, block) if spatial is None else spatial.cut(prepared, block, rng)
    if target is None:
        return augmented(image, nothing[..., *block], augment, rng)[0], None
    return augmented(image, target, augment, rng)


def patch_block(target: Array, patch_size: Shape, rng: np.random.Generator) -> tuple[slice, slice, slice]:
    """Where to cut a patch: one time in three around a random voxel of a random class that is there, else anywhere.

    Args:
        target: (C, X, Y, Z) 0 or 1, or (X, Y, Z) class indices.
        patch_size: voxels; along an axis where the volume is smaller, the patch takes all of it.
        rng: the generator.
    """
    room = [max(0, have - want) for have, want in zip(target.shape[-3:], patch_size, strict=True)]
    start = [int(rng.integers(space + 1)) for space in room]
    if rng.random() < FOREGROUND_SHARE:
        masks = list(target) if target.ndim == 4 else [target == index for index in range(1, int(target.max(initial=0)) + 1)]
        present = [mask for mask in masks if mask.any()]
        if present:
            voxels = np.flatnonzero(present[int(rng.integers(len(present)))])
            centre = np.unravel_index(voxels[int(rng.integers(len(voxels)))], target.shape[-3:])
            start = [min(space, max(0, int(at) - want // 2)) for space, at, want in zip(room, centre, patch_size, strict=True)]
    x, y, z = (slice(begin, begin + want) for begin, want in zip(start, patch_size, strict=True))
    return x, y, z


def _common_shape(shapes: Sequence[tuple[int, ...]], patch_size: Shape | None, multiple_of: int) -> Shape:
    if patch_size is not None:
        return patch_size
    x, y, z = (-(-max(sizes) // multiple_of) * multiple_of for sizes in zip(*shapes, strict=True))
    return x, y, z


def _batch(samples: Sequence[tuple[int, Array, Array | None]], shape: Shape, device: torch.device | str) -> Batch:
    import torch

    images = torch.from_numpy(np.stack([_padded(image, shape) for _, image, _ in samples]))
    targets = [_padded(target, shape) for _, _, target in samples if target is not None]
    sizes = [image.shape[1:] for _, image, _ in samples]
    return Batch(
        images.to(device),
        torch.from_numpy(np.stack(targets)).to(device) if targets else None,
        tuple(number for number, _, _ in samples),
        tuple((x, y, z) for x, y, z in sizes),
    )


def _empty_batch(whole: int, device: torch.device | str) -> Batch:
    """What a process gets of a batch in which it has no sample."""
    import torch

    return Batch(torch.empty(0, device=device), None, (), (), whole)


def _padded(array: Array, shape: Shape) -> Array:
    lead = [(0, 0)] * (array.ndim - 3)
    return np.pad(array, [*lead, *((0, want - have) for have, want in zip(array.shape[-3:], shape, strict=True))])
