"""From a recipe's augment and workers to batches."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mergekit3d.datasets.intensity import CHANGES
from mergekit3d.datasets.prepare import Box, Prepared
from mergekit3d.datasets.presets import PRESETS
from mergekit3d.datasets.sampling import epoch_jobs
from mergekit3d.datasets.spatial import Chance
from mergekit3d.recipe.models import AugmentModel
from mergekit3d.training.batches import SPATIAL, augmentation_of, workers_of
from mergekit3d.training.devices import Runtime
from mergekit3d.volumes.nifti import Grid

SHAPE = (16, 18, 20)


def prepared(number):
    rng = np.random.default_rng(number)
    image = rng.standard_normal((2, *SHAPE)).astype(np.float32)
    target = (image > 0.5).astype(np.uint8)
    for array in (image, target):
        array.setflags(write=False)
    return Prepared(number, image, target, np.eye(4), Box((0, 0, 0), SHAPE), Grid(SHAPE, np.eye(4)))


def jobs(model, *, patch_size, **how):
    spatial, augment = augmentation_of(model)
    store = SimpleNamespace(get=prepared)
    how = {"batch_size": 2, "multiple_of": 4, "seed": 3, "epoch": 1, "steps": 6, **how}
    return list(epoch_jobs(store, [1, 2, 3], patch_size=patch_size, spatial=spatial, augment=augment, **how))


def test_by_default_volumes_are_mirrored_alone():
    """As before there were presets."""
    spatial, transforms = augmentation_of(AugmentModel())
    assert spatial is None
    assert 1 == len(transforms)
    assert (None, []) == augmentation_of(AugmentModel(flip=()))


def test_the_preset_of_nnunet_has_all_of_its_changes():
    """Each with a chance of its own."""
    assert {*SPATIAL, *CHANGES} == set(PRESETS["nnunet"])
    spatial, transforms = augmentation_of(AugmentModel(preset="nnunet"))
    assert PRESETS["nnunet"]["rotate"] == spatial.rotate
    assert 2 == len(transforms)


def test_single_keys_change_a_preset_and_add_to_none():
    """What a key leaves out is the preset's, else nnU-Net's; a probability of 0 takes a change out."""
    model = AugmentModel.model_validate(
        {"preset": "nnunet", "rotate": {"range": [-10, 10]}, "scale": {"probability": 0}, "elastic": {"probability": 1}}
    )
    spatial, _ = augmentation_of(model)
    assert (Chance(0.2, -10, 10), 0, Chance(1, 0.0, 2.0)) == (spatial.rotate, spatial.scale.probability, spatial.elastic)
    spatial, transforms = augmentation_of(AugmentModel.model_validate({"flip": [], "noise": {}}))
    assert spatial is None
    assert 1 == len(transforms)
    spatial, transforms = augmentation_of(AugmentModel.model_validate({"flip": [], "scale": {}}))
    assert (0, Chance(0.2, 0.7, 1.4), 0) == (spatial.rotate.probability, spatial.scale, spatial.elastic.probability)
    assert [] == transforms


@pytest.mark.parametrize("bad", [{"gamma": {"range": [1.5, 0.7]}}, {"low_resolution": {"range": [0.5, 2]}}, {"noise": {"probability": 2}}])
def test_ranges_that_cannot_be_are_refused(bad):
    """With the limits in the message."""
    with pytest.raises(ValueError, match=r"goes from low to high, within|less than or equal to 1"):
        AugmentModel.model_validate(bad)


@pytest.mark.parametrize("patch_size", [None, (8, 12, 16)])
def test_a_sample_is_a_pure_function_of_seed_epoch_and_index(patch_size):
    """Whichever thread makes it, in whatever order, from wherever the epoch is taken up; another epoch or seed gives others."""
    model = AugmentModel(preset="nnunet", flip=("left-right", "posterior-anterior", "inferior-superior"))
    wanted = [job() for job in jobs(model, patch_size=patch_size)]
    backwards = [job() for job in reversed(jobs(model, patch_size=patch_size))][::-1]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda job: job(), jobs(model, patch_size=patch_size)))
    later = [job() for job in jobs(model, patch_size=patch_size)[2:]]
    for found, expected in ((backwards, wanted), (threaded, wanted), (later, wanted[2:])):
        assert len(expected) == len(found)
        for one, other in zip(found, expected, strict=True):
            assert one.numbers == other.numbers
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.targets, other.targets)
    assert not torch.equal(wanted[0].images, jobs(model, patch_size=patch_size, epoch=2)[0]().images)
    assert not torch.equal(wanted[0].images, jobs(model, patch_size=patch_size, seed=4)[0]().images)


def test_the_processor_makes_batches_in_one_thread_unless_told():
    """It trains at the same time; results are the same."""
    assert (1, 5) == (workers_of(None, Runtime(torch.device("cpu"))), workers_of(5, Runtime(torch.device("cpu"))))
    assert 1 <= workers_of(None, Runtime(torch.device("cuda", 0))) <= 8
