"""The Fisher diagonal: one subject's squared gradient, and its expectation."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.nn import functional

from mergekit3d.architectures import architecture, build_network, network_shapes
from mergekit3d.errors import InputError
from mergekit3d.fisher_estimation import (
    WHOLE,
    Example,
    add_subject,
    add_subjects,
    batches_of_one_size,
    empty_sums,
    score_functions,
    silence_uninformed,
    uninformed_biases,
)
from mergekit3d.per_sample import per_sample_gradients
from tests.builders import spec_of


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Of torch, in all of these tests."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(outputs=2, dtype=torch.float64):
    """Two convolutions, no norm: padding reaches no other voxel but its neighbours."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv3d(2, outputs, 1)).to(dtype).eval()


def example(number=1, size=(4, 3, 5), *, outputs=2, exclusive=False, labelled=True, padded=None):
    """A random subject, padded with zeros."""
    padded = size if padded is None else padded
    image = torch.zeros((1, 1, *padded), dtype=torch.float64)
    inside = tuple(slice(0, length) for length in size)
    image[(0, 0, *inside)] = torch.randn(size, generator=generator(number), dtype=torch.float64)
    if exclusive:
        labels = torch.randint(outputs, (1, *padded), generator=generator(number + 100))
    else:
        labels = torch.randint(2, (1, outputs, *padded), generator=generator(number + 100)).to(torch.uint8)
    return Example(number, image, labels if labelled else None, size)


def estimate(network, examples, *, exclusive=False, draws=1, seed=0):
    sums = empty_sums(network)
    for item in examples:
        add_subject(
            sums, network, item, exclusive=exclusive, draws=draws, generator=generator(seed + item.number), autocast=contextlib.nullcontext
        )
    return sums


def log_likelihood(network, item, *, exclusive):
    """Sum over voxels and channels of log p(y | x), inside the subject, as a function of the parameters."""
    inside = tuple(slice(0, length) for length in item.size)

    def of(parameters):
        logits = functional_call(network, parameters, (item.image,))
        if exclusive:
            log_p = functional.log_softmax(logits, 1).gather(1, item.labels[:, None])
        else:
            signs = item.labels.to(logits) * 2 - 1
            log_p = functional.logsigmoid(signs * logits)
        return log_p[(slice(None), slice(None), *inside)].sum()

    return of


@pytest.mark.parametrize("exclusive", [False, True])
def test_true_labels_give_the_squared_gradient_of_each_subject(exclusive):
    """The mean over subjects of the square, by an independent likelihood and torch.func, in float64."""
    network = tiny(3 if exclusive else 2)
    examples = [example(number, outputs=3 if exclusive else 2, exclusive=exclusive) for number in (1, 2, 3)]
    sums = estimate(network, examples, exclusive=exclusive)
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    each = [grad(log_likelihood(network, item, exclusive=exclusive))(parameters) for item in examples]

    assert (3, 3 * 60) == (sums.subjects, sums.voxels)
    for name in parameters:
        torch.testing.assert_close(sum(gradient[name].square() for gradient in each), sums.squares[name], rtol=1e-10, atol=1e-12)
        expected = sum(gradient[name].square() for gradient in each) / 3
        torch.testing.assert_close(expected.float(), sums.diagonal()[name], rtol=1e-6, atol=0)
        of_the_batch = (sum(gradient[name] for gradient in each) / 3).square()
        assert not torch.allclose(of_the_batch.float(), sums.diagonal()[name], rtol=0.1)


def test_sampled_labels_converge_to_the_fisher_information():
    """Of a logistic layer: sum over voxels of p (1 - p) x^2, in closed form."""
    torch.manual_seed(1)
    network = nn.Conv3d(1, 1, 1).double().eval()
    item = example(labelled=False, outputs=1)
    sums = estimate(network, [item], draws=4000)
    with torch.no_grad():
        p = network(item.image).sigmoid()
    variance = p * (1 - p)

    assert float((variance * item.image.square()).sum()) == pytest.approx(float(sums.squares["weight"].sum()), rel=0.1)
    assert float(variance.sum()) == pytest.approx(float(sums.squares["bias"].sum()), rel=0.1)


def test_sampled_classes_converge_to_the_fisher_information():
    """Of a softmax layer: sum over voxels of p_c (1 - p_c) for the bias of class c."""
    torch.manual_seed(1)
    network = nn.Conv3d(1, 3, 1).double().eval()
    item = example(labelled=False, outputs=3)
    sums = estimate(network, [item], exclusive=True, draws=4000)
    with torch.no_grad():
        p = network(item.image).softmax(1)

    torch.testing.assert_close((p * (1 - p)).sum((0, 2, 3, 4)), sums.squares["bias"], rtol=0.15, atol=0)


@pytest.mark.parametrize("exclusive", [False, True])
def test_draws_follow_the_prediction(exclusive):
    """Labels are 0 or 1, one-hot for classes, and as frequent as their probabilities."""
    logits = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64).reshape(1, 3, 1, 1, 1).expand(1, 3, 20, 20, 20)
    item = Example(1, torch.zeros(1, 1, 20, 20, 20), None, (20, 20, 20))
    (score,) = score_functions(logits, item, exclusive=exclusive, draws=1, generator=generator())
    p = logits.softmax(1) if exclusive else logits.sigmoid()
    labels = score + p

    torch.testing.assert_close(labels, labels.round(), rtol=0, atol=1e-12)
    torch.testing.assert_close(p[0, :, 0, 0, 0], labels.mean((0, 2, 3, 4)), rtol=0, atol=0.02)
    if exclusive:
        torch.testing.assert_close(torch.ones(1, 20, 20, 20, dtype=torch.float64), labels.sum(1))


def test_padding_takes_no_part():
    """Its voxels are in no likelihood, whatever stands in their labels."""
    network = nn.Conv3d(1, 2, 1).double().eval()
    plain, padded = estimate(network, [example()]), example(padded=(8, 8, 8))
    padded.labels[:, :, :4, :3, :5] = example().labels
    whole = estimate(network, [padded])

    assert plain.voxels == whole.voxels
    for name, values in plain.squares.items():
        torch.testing.assert_close(values, whole.squares[name], rtol=1e-12, atol=0)


def test_same_generator_gives_the_same_diagonal():
    """And another one another."""
    network = tiny()
    item = [example(labelled=False)]
    first, again, other = (estimate(network, item, draws=2, seed=seed).squares["0.weight"] for seed in (0, 0, 1))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_draws_are_averaged():
    """Two draws are the mean of one draw each, from the same stream."""
    network, item = tiny(), example(labelled=False)
    scores = list(score_functions(network(item.image).detach(), item, exclusive=False, draws=2, generator=generator(1)))
    squares = []
    for score in scores:
        gradient = torch.autograd.grad(network(item.image), network[2].bias, grad_outputs=score)[0]
        squares.append(gradient.square())

    torch.testing.assert_close((squares[0] + squares[1]) / 2, estimate(network, [item], draws=2).squares["2.bias"], rtol=1e-10, atol=0)


def test_sums_are_float64_and_the_diagonal_float32():
    """Of a float32 network."""
    sums = estimate(tiny(dtype=torch.float32), [Example(1, torch.randn(1, 1, 4, 4, 4), None, (4, 4, 4))])

    assert {torch.float64} == {values.dtype for values in sums.squares.values()}
    assert {torch.float32} == {values.dtype for values in sums.diagonal().values()}


def test_standard_error_is_the_spread_over_subjects():
    """Of each layer's trace and of the whole, as numpy computes it from subjects estimated alone."""
    network, items = tiny(), [example(number) for number in (1, 2, 3, 4)]
    alone = [estimate(network, [item]) for item in items]
    by_layer = {
        layer: [sum(float(values.sum()) for name, values in one.squares.items() if name.startswith(layer)) for one in alone]
        for layer in ("0", "2", WHOLE)
    }
    sums = estimate(network, items)

    for layer, traces in by_layer.items():
        assert sum(traces) == pytest.approx(sums.traces[layer], rel=1e-12)
        assert np.std(traces, ddof=1) / 2 == pytest.approx(sums.standard_errors()[layer], rel=1e-9)


def test_draws_are_averaged_before_the_spread_is_taken():
    """The trace of a subject is the mean over its draws: one subject's draws are no spread over subjects."""
    sums = estimate(tiny(), [example(labelled=False)], draws=3)

    assert sum(float(values.sum()) for values in sums.squares.values()) == pytest.approx(sums.traces[WHOLE], rel=1e-12)
    assert {} == sums.standard_errors()


def test_equal_subjects_have_no_spread():
    """Rounding gives no root of a negative number."""
    sums = empty_sums(tiny())
    for _ in range(3):
        sums.add_traces({"0.weight": 0.1, "0.bias": 0.2, "2.weight": 0.0})
        sums.subjects += 1

    assert {"0", "2", WHOLE} == sums.standard_errors().keys()
    assert [0.0, 0.0, 0.0] == pytest.approx(list(sums.standard_errors().values()), abs=1e-8)


def test_no_subjects_give_zero():
    """Not NaN."""
    assert 0 == sum(float(values.sum()) for values in empty_sums(tiny()).diagonal().values())


def test_gradient_that_is_not_finite_names_the_subject():
    """By number, with the parameter."""
    item = example(number=7)
    item.image[0, 0, 1, 1, 1] = float("inf")
    with pytest.raises(InputError) as caught:
        estimate(nn.Conv3d(1, 2, 1).double().eval(), [item])
    assert str(caught.value).startswith("the Fisher diagonal is not finite: subject 7: ")
    assert str(caught.value).endswith("; look at this subject's images")


def test_parameter_that_takes_no_part_has_none():
    """Its gradient is absent, its information 0."""
    network = tiny()
    network.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))

    assert 0 == float(estimate(network, [example()]).squares["unused"].sum())


def test_biases_before_a_norm_by_pattern_and_by_probe():
    """Those of all convolutions but the heads; both ways find the same."""
    network, spec = build_network(spec_of()).eval(), spec_of()
    expected = [name for name in network_shapes(spec) if name.endswith("conv.bias")]
    patterns = architecture("isensee2017").zero_information

    assert expected == uninformed_biases(network, patterns)
    assert expected == uninformed_biases(network, (), [(1, 2, 8, 4, 4)])


def test_bias_without_a_norm_is_informed():
    """The probe finds none in a plain network, and leaves it as it was."""
    network = tiny(dtype=torch.float32)
    before = {name: values.clone() for name, values in network.state_dict().items()}

    assert [] == uninformed_biases(network, (), [(1, 1, 4, 4, 4)])
    assert all(torch.equal(values, network.state_dict()[name]) for name, values in before.items())


def test_network_for_images_of_one_size_is_probed_with_that_size():
    """The first size that it takes is used; without any, the error says so."""

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv3d(1, 2, 1), nn.InstanceNorm3d(2)
            self.place = nn.Parameter(torch.ones(1, 2, 4, 4, 4))

        def forward(self, x):
            return self.norm(self.conv(x)) * self.place

    assert ["conv.bias"] == uninformed_biases(Fixed(), (), [(1, 1, 6, 3, 3), (1, 1, 4, 4, 4)])
    with pytest.raises(RuntimeError, match="takes no image of the sizes"):
        uninformed_biases(Fixed(), (), [(1, 1, 6, 3, 3)])


def test_uninformed_biases_compute_to_noise_and_are_silenced():
    """Their squares are rounding noise in float32, exact zeros afterwards; others stay."""
    network = build_network(spec_of()).eval()
    item = Example(1, torch.randn((1, 2, 8, 8, 8), generator=generator()), None, (8, 8, 8))
    diagonal = estimate(network, [item], draws=2).diagonal()
    zero = uninformed_biases(network, architecture("isensee2017").zero_information)
    silent = silence_uninformed(diagonal, zero)

    weights = max(float(values.max()) for name, values in diagonal.items() if name.endswith("conv.weight"))
    assert all(float(diagonal[name].max()) < 1e-8 * weights for name in zero)
    assert all(0 == int(silent[name].count_nonzero()) for name in zero)
    assert all(silent[name] is diagonal[name] for name in diagonal if name not in zero)


def together(network, batches, *, draws=2, exclusive=False, attached=False):
    """Sums over batches of subjects, by a recorder for all of them or one each."""
    sums = empty_sums(network)
    with per_sample_gradients(network) if attached else contextlib.nullcontext() as recorder:
        for batch in batches:
            add_subjects(
                sums,
                network,
                batch,
                exclusive=exclusive,
                draws=draws,
                generators=[generator(item.number) for item in batch],
                autocast=contextlib.nullcontext,
                recorder=recorder,
            )
    return sums


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("exclusive", [False, True])
def test_subjects_of_a_batch_are_as_if_alone(exclusive, labelled, attached):
    """Their draws, their sizes, their traces; whichever come together."""
    network = tiny(3 if exclusive else 2)
    sizes = [(4, 3, 5), (3, 4, 4), (4, 4, 4)]
    examples = [
        example(number, size, padded=(4, 4, 5), outputs=3 if exclusive else 2, exclusive=exclusive, labelled=labelled)
        for number, size in enumerate(sizes, 1)
    ]
    expected = estimate(network, examples, draws=2, exclusive=exclusive)
    for batches in ([examples], [examples[:1], examples[1:]], [examples[2:], examples[:2]]):
        actual = together(network, batches, exclusive=exclusive, attached=attached)

        assert (expected.subjects, expected.voxels) == (actual.subjects, actual.voxels)
        assert pytest.approx(expected.traces, rel=1e-10) == actual.traces
        assert pytest.approx(expected.squared_traces, rel=1e-10) == actual.squared_traces
        for name, values in expected.squares.items():
            torch.testing.assert_close(values, actual.squares[name], rtol=1e-10, atol=1e-12)


def test_subject_of_a_batch_that_is_not_finite_is_named():
    """By its number, whatever its place."""
    items = [example(number) for number in (3, 9, 4)]
    items[1].image[0, 0, 1, 1, 1] = float("inf")
    with pytest.raises(InputError, match="the Fisher diagonal is not finite: subject 9: "):
        together(tiny(), [items])


def test_batches_hold_subjects_of_one_padded_size():
    """That follow one another, up to the number that is asked for."""
    sizes = [(4, 4, 4)] * 3 + [(4, 4, 8)] + [(4, 4, 4)]
    batches = batches_of_one_size([example(number, (3, 3, 3), padded=size) for number, size in enumerate(sizes)], 2)

    assert [[0, 1], [2], [3], [4]] == [[item.number for item in batch] for batch in batches]
    assert [] == list(batches_of_one_size([], 2))
