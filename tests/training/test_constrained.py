"""What holds a training back, in the loop itself."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from mergekit3d.errors import Interrupted, RecipeError
from mergekit3d.plan.constraints import FREE, Constraints
from mergekit3d.training.constrained import constrained
from mergekit3d.training.penalty import Penalty

from .conftest import epoch_of, same, small_network

FIRST, LAST = ("0.weight", "0.bias"), ("4.weight", "4.bias")
FISHER = {"0.weight": np.full((4, 2, 3, 3, 3), 0.5, np.float32), "4.bias": None}
EACH = {
    "freeze": Constraints(frozen=frozenset(FIRST)),
    "rates": Constraints(rates=dict.fromkeys(LAST, 1e-3)),
    "penalty": Constraints(strength=0.1, anchors=FISHER),
    "drop-transfer": Constraints(drop_rate=0.5, dropped=FIRST),
    "all": Constraints(frozenset(LAST), dict.fromkeys(FIRST, 1e-3), 0.1, dict.fromkeys(FIRST), 0.5, FIRST),
}


def held(training, constraints):
    """The training with these constraints."""
    trainable = constrained(training.network, constraints, training.state)
    names = ("parameter_groups", "before_forward", "after_backward", "before_step", "before_validation", "columns")
    training.trainable.update({name: getattr(trainable, name) for name in names})
    return training


def interrupted(batches):
    """Batches with a signal in the second epoch, once."""
    sent = []

    def train(epoch):
        for position, batch in enumerate(batches(epoch)):
            if (epoch, position) == (1, 1) and not sent:
                sent.append(True)
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    return train


@pytest.mark.parametrize("name", EACH)
def test_interrupted_and_resumed_gives_the_same_bits(run, name):
    """With each constraint: masks and penalty are pure functions of start, seed, epoch and step."""
    whole = held(run("whole"), EACH[name])
    whole.fit()
    with pytest.raises(Interrupted):
        held(run("parts", train=interrupted(epoch_of())), EACH[name]).fit()
    parts = held(run("parts", options={"resume": True}), EACH[name])
    parts.fit()

    assert same(whole.saved["last"], parts.saved["last"])
    assert same(whole.saved["best"], parts.saved["best"])
    assert whole.log()[-1].get("penalty") == parts.log()[-1].get("penalty")


@pytest.mark.parametrize("name", EACH)
def test_constraints_change_the_result(run, name):
    """None of them is passed over."""
    free, other = held(run("free"), FREE), held(run("other"), EACH[name])
    free.fit(epochs=1)
    other.fit(epochs=1)

    assert not same(free.saved["last"], other.saved["last"])


def test_frozen_tensors_stay_bit_for_bit():
    """Their parameters are not the optimizer's, and running statistics of a frozen norm do not move in training mode."""
    network = nn.Sequential(nn.Conv3d(2, 4, 1), nn.BatchNorm3d(4), nn.Conv3d(4, 1, 1))
    names = frozenset(name for name in network.state_dict() if name.startswith("1."))
    before = {name: values.clone() for name, values in network.state_dict().items()}
    trainable = constrained(network, Constraints(frozen=names), dict)
    (group,) = trainable.parameter_groups
    network.train()
    trainable.before_forward()
    network(torch.randn(2, 2, 3, 3, 3)).sum().backward()
    torch.optim.SGD(group["params"], lr=1.0).step()

    assert 4 == len(group["params"])
    assert all(torch.equal(before[name], network.state_dict()[name]) for name in names)
    assert not torch.equal(before["0.weight"], network.state_dict()["0.weight"])


def test_rates_of_their_own_make_groups():
    """One group a rate; the others come first, at the rate of the settings."""
    network = small_network()
    groups = constrained(network, Constraints(rates={**dict.fromkeys(LAST, 1e-4), "0.bias": 1e-3}), dict).parameter_groups

    assert [None, 1e-4, 1e-3] == [group.get("lr") for group in groups]
    assert [3, 2, 1] == [len(group["params"]) for group in groups]
    assert network[4].weight is groups[1]["params"][0]


def test_everything_frozen_is_refused():
    """There is nothing to train."""
    network = small_network()
    with pytest.raises(RecipeError, match="nothing is left to train"):
        constrained(network, Constraints(frozen=frozenset(network.state_dict())), dict)


def test_penalty_has_a_column_and_the_losses_do_not_hold_it(run):
    """At an enormous strength weights stay near their start, and the training loss is still that of the task."""
    training = held(run(), Constraints(strength=1e6, anchors=dict.fromkeys(small_network().state_dict())))
    training.fit(epochs=2, optimizer="sgd", learning_rate=1e-9)
    start, rows = small_network(), training.log()
    penalty = Penalty(list(start.parameters()), [None] * 6, 1e6)
    start.load_state_dict(training.saved["last"])

    assert float(rows[-1]["penalty"]) == pytest.approx(penalty.value(), rel=1e-6)
    assert float(rows[-1]["train_loss"]) < 1


def test_validation_sees_the_weights_whole(run):
    """Drop-transfer holds in steps alone: at a rate of 1e-30 every epoch validates the start itself."""
    plain, dropped = held(run("plain"), FREE), held(run("dropped"), Constraints(drop_rate=0.5, dropped=FIRST))
    for training in (plain, dropped):
        training.fit(epochs=2, learning_rate=1e-30)

    assert [row["validation_loss"] for row in plain.log()] == [row["validation_loss"] for row in dropped.log()]
