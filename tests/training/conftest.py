"""A task that a network of a few hundred weights learns in a few steps."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from mergekit3d.datasets.sampling import Batch
from mergekit3d.training.devices import Runtime
from mergekit3d.training.loop import fit
from mergekit3d.training.settings import TrainingSettings
from mergekit3d.training.trainable import Trainable, TrainingData

SIZE = 8


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Of torch, in all of these tests."""


def subject(number, *, exclusive=False):
    """A random image; where it is above 0.5, the truth is 1 (the second region: above 1)."""
    image = torch.randn((1, 2, SIZE, SIZE, SIZE), generator=torch.Generator().manual_seed(number))
    regions = torch.stack([image[:, 0] > 0.5, image[:, 0] > 1.0], 1).to(torch.uint8)
    return Batch(image, regions.sum(1).to(torch.uint8) if exclusive else regions, (number,), ((SIZE, SIZE, SIZE - 1),))


def small_network(out_channels=2):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1),
        nn.InstanceNorm3d(4, affine=True),
        nn.LeakyReLU(),
        nn.Dropout3d(0.3),
        nn.Conv3d(4, out_channels, 3, padding=1),
    )


def epoch_of(train=(1, 2, 3), *, exclusive=False):
    """The batches of an epoch: the subjects, rotated by its number."""

    def batches(epoch):
        for index in range(len(train)):
            yield subject(train[(index + epoch) % len(train)], exclusive=exclusive)

    return batches


@dataclass
class Run:
    """One training of the small network, with what it saved."""

    folder: Any
    train: Any = field(default_factory=epoch_of)
    validation: tuple[int, ...] = (11, 12)
    exclusive: bool = False
    seed: int = 5
    precision: str = "fp32"
    options: dict[str, Any] = field(default_factory=dict)
    trainable: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.network = small_network(3 if self.exclusive else 2)
        self.saved = {}

    def fit(self, **settings):
        self.folder.mkdir(exist_ok=True)
        how = {"network": self.network, "parameter_groups": [{"params": list(self.network.parameters())}], "state": self.state}
        return fit(
            Trainable(**{**how, **self.trainable}),
            TrainingData(self.batches, lambda: (subject(number, exclusive=self.exclusive) for number in self.validation), ("a", "b")),
            TrainingSettings(**{"epochs": 3, "learning_rate": 1e-2, **settings}),
            runtime=Runtime(torch.device("cpu"), self.precision),
            folder=self.folder,
            exclusive=self.exclusive,
            seed=self.seed,
            save=self.saved.__setitem__,
            **self.options,
        )

    def batches(self, epoch, done):
        return itertools.islice(self.train(epoch), done, None)

    def state(self):
        return {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}

    def log(self):
        header, *lines = (self.folder / "log.csv").read_text().splitlines()
        return [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]


@pytest.fixture
def run(tmp_path):
    """Make a training in a folder of its own."""
    return lambda name="run", **options: Run(tmp_path / name, **options)


def same(first, second):
    """Whether two states are equal, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
