"""A moving average of the weights."""

from __future__ import annotations

import pytest
import torch

from mergekit3d.training.average import Average


def test_the_average_is_the_closed_form():
    """a_n = d_n a_(n-1) + (1 - d_n) theta_n, with d_n = min(decay, (1 + n) / (10 + n)), from the values at the start."""
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    average, wanted = Average([parameter], 0.5), parameter.detach().double()
    for number in range(1, 30):
        parameter.data = torch.tensor([number**0.5, -1.0 / number])
        average.update()
        decay = min(0.5, (1 + number) / (10 + number))
        wanted = decay * wanted + (1 - decay) * parameter.detach().double()
    with average.in_place():
        assert wanted.tolist() == pytest.approx(parameter.tolist(), rel=1e-5)
    assert [29**0.5, -1 / 29] == pytest.approx(parameter.tolist())


def test_the_parameters_come_back_bit_for_bit():
    """After the block, after an error in it, and early where a snapshot is taken in between."""
    parameter = torch.nn.Parameter(torch.randn(50))
    average = Average([parameter], 0.9)
    average.update()
    parameter.data += 0.1
    own = parameter.detach().clone()
    with pytest.raises(KeyError), average.in_place():
        assert not torch.equal(own, parameter)
        raise KeyError
    assert torch.equal(own, parameter)
    with average.in_place():
        average.put_back()
        assert torch.equal(own, parameter)
    assert torch.equal(own, parameter)


def test_without_a_decay_nothing_happens():
    """And nothing is kept."""
    parameter = torch.nn.Parameter(torch.ones(2))
    average = Average([parameter], None)
    average.update()
    with average.in_place():
        assert [1.0, 1.0] == parameter.tolist()
    assert {"steps": 0, "tensors": []} == average.state()


def test_a_state_is_gone_on_from():
    """Another average that loads it goes the same way; one of other parameters is refused."""
    parameters = [torch.nn.Parameter(torch.randn(3))], [torch.nn.Parameter(torch.zeros(3))]
    first, second = (Average(each, 0.9) for each in parameters)
    first.update()
    second.load(first.state())
    for each in (*parameters[0], *parameters[1]):
        each.data.fill_(0.5)
    for average in (first, second):
        average.update()
    assert first.state()["steps"] == second.state()["steps"] == 2
    assert torch.equal(first.state()["tensors"][0], second.state()["tensors"][0])
    with pytest.raises(ValueError, match="zip"):
        Average([], 0.9).load(first.state())
