"""Optimizers and their parameter groups."""

from __future__ import annotations

import pytest
import torch

from mergekit3d.errors import UsageError
from mergekit3d.training.optimizers import make_optimizer, set_rate
from mergekit3d.training.settings import TrainingSettings


@pytest.mark.parametrize(("name", "moved"), [("adam", 0.1), ("adamw", 0.1 + 0.1 * 0.01), ("sgd", 0.1 * (1 + 3e-5) * 1.99)])
def test_the_first_step_is_the_optimizers(name, moved):
    """From 1 with gradient 1 at rate 0.1: Adam moves by the rate, AdamW decays too, Nesterov's SGD adds its momentum."""
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = make_optimizer([{"params": [weight]}], TrainingSettings(optimizer=name, learning_rate=0.1))
    weight.grad = torch.ones(())
    optimizer.step()
    assert 1 - moved == pytest.approx(weight.item(), rel=1e-5)


def test_a_group_may_bring_its_own_rate_and_all_fall_together():
    """delta learns faster than the weights; the schedule scales both."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))]}, {"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.05}]
    optimizer = make_optimizer(groups, TrainingSettings(learning_rate=1e-3))
    set_rate(optimizer, 0.5)
    set_rate(optimizer, 0.1)
    assert [1e-4, 5e-3] == pytest.approx([group["lr"] for group in optimizer.param_groups])


def test_an_empty_group_is_left_out():
    """Every tensor may be shared."""
    groups = [{"params": []}, {"params": [torch.nn.Parameter(torch.ones(1))]}]
    assert 1 == len(make_optimizer(groups, TrainingSettings()).param_groups)


def test_an_unknown_optimizer_is_refused():
    """With the nearest name."""
    with pytest.raises(UsageError, match="did you mean 'adam'"):
        make_optimizer([{"params": [torch.nn.Parameter(torch.ones(1))]}], TrainingSettings(optimizer="adamm"))
