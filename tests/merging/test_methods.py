"""The registered merge methods."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mergekit3d.errors import RecipeError, UsageError
from mergekit3d.merging.fusion import relative_fisher
from mergekit3d.merging.methods import METHODS, MergeMethod, parameters_of, register
from mergekit3d.merging.methods.greedy_soup import greedy_soup
from mergekit3d.merging.methods.imm import IMM
from mergekit3d.merging.methods.ties import smallest_kept
from mergekit3d.merging.piece import Piece

THETAS = [np.array([1.0, 2.0]), np.array([5.0, 6.0])]
PHIS = relative_fisher([np.array([3.0, 1.0]), np.array([1.0, 3.0])])
BASE = np.array([1.0, -2.0, 0.5, 4.0, 0.0])
CHANGED = [BASE + np.array([3.0, -1.0, 0.2, 2.0, 0.0]), BASE + np.array([1.0, 4.0, -0.1, -6.0, 0.0])]


def combined(name, piece, **parameters):
    """What a method makes of a piece, with its surveys."""
    method = METHODS.get(name)
    chosen = parameters_of(method, parameters)
    if method.survey is not None:
        reference = piece.thetas[0] if piece.base is None else piece.base
        piece = replace(piece, surveys=[method.survey(theta, reference, chosen) for theta in piece.thetas])
    return method.combine(piece, chosen)


def test_names_of_the_methods():
    """Every file of the folder is loaded."""
    expected = {"imm", "timm", "mean-imm", "linear", "task-arithmetic", "ties", "dare", "slerp", "greedy-soup"}

    assert expected == set(METHODS)


@pytest.mark.parametrize("name", ["imm", "timm"])
def test_fisher_weighted_methods(name):
    """Both are eq. 2; they differ in where the ratios come from."""
    method = METHODS.get(name)

    assert method.uses_fisher
    assert (name == "timm") == method.learned_ratios
    assert [2.0, 5.0] == combined(name, Piece(THETAS, [0.5, 0.5], PHIS)).tolist()


@pytest.mark.parametrize("name", ["mean-imm", "linear", "greedy-soup"])
def test_plain_averages(name):
    """They ask for no Fisher diagonal and look at none."""
    assert not METHODS.get(name).uses_fisher
    assert [2.0, 3.0] == combined(name, Piece(THETAS, [0.75, 0.25])).tolist()
    assert [2.0, 3.0] == combined(name, Piece(THETAS, [0.75, 0.25], PHIS)).tolist()


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.uses_base])
def test_identical_sources_return_themselves(name):
    """Bit for bit, whichever method."""
    sources = METHODS.get(name).sources or 3
    theta = np.random.default_rng(0).normal(size=9).astype(np.float32)
    phis = relative_fisher(list(np.random.default_rng(1).chisquare(1, (sources, 9)).astype(np.float32)))
    ratios = [np.float32(ratio) for ratio in (0.2, 0.3, 0.5)[:sources]]

    assert theta.tobytes() == combined(name, Piece([theta] * sources, ratios, phis)).tobytes()


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.uses_base])
def test_unchanged_sources_return_the_base(name):
    """Bit for bit: there is nothing to add."""
    theta = np.random.default_rng(0).normal(size=9).astype(np.float32)
    piece = Piece([theta, theta], [np.float32(1), np.float32(1)], base=theta, uniform=lambda index: np.linspace(0, 1, 9, endpoint=False))

    assert theta.tobytes() == combined(name, piece).tobytes()


def test_task_arithmetic_by_hand():
    """Base + 0.5 (1 * tau^1 - 2 * tau^2)."""
    merged = combined("task-arithmetic", Piece(CHANGED, [1.0, -2.0], base=BASE), scale=0.5)

    np.testing.assert_allclose(BASE + 0.5 * np.array([1.0, -9.0, 0.4, 14.0, 0.0]), merged, rtol=1e-12)


def test_ties_by_hand():
    """The two largest changes of five are kept; where signs differ the heavier one wins; the average is of those that agree."""
    merged = combined("ties", Piece(CHANGED, [0.5, 0.5], base=BASE), density=0.4)

    # trimmed: [3, 0, 0, 2, 0] and [0, 4, 0, -6, 0]; elected: + + + - +
    np.testing.assert_allclose(BASE + np.array([3.0, 4.0, 0.0, -6.0, 0.0]), merged, rtol=1e-12)


def test_ties_averages_what_agrees_by_the_ratios():
    """With nothing trimmed: (0.25 * 3 + 0.75 * 1) / 1 in the first entry; signs by the weighted sum."""
    merged = combined("ties", Piece(CHANGED, [0.25, 0.75], base=BASE), density=1.0, scale=2.0)

    np.testing.assert_allclose(BASE + 2 * np.array([1.5, 4.0, -0.1, -6.0, 0.0]), merged, rtol=1e-12)


@pytest.mark.parametrize(("expected", "density"), [(0.0, 1.0), (1.0, 0.8), (2.0, 0.5), (5.0, 0.01)])
def test_ties_keeps_at_least_its_share(expected, density):
    """The ceil(density * n)-th largest change, and never none."""
    theta = np.array([3.0, -1.0, 0.5, 2.0, -5.0])

    assert expected == smallest_kept(theta, np.zeros(5), parameters_of(METHODS.get("ties"), {"density": density}))


def test_dare_drops_and_rescales():
    """Entries whose draw is below p lose their change, the others' is divided by 1 - p."""
    draws = {0: np.array([0.0, 0.74, 0.75, 0.9, 0.1]), 1: np.array([0.8, 0.0, 0.0, 0.0, 0.99])}
    merged = combined("dare", Piece(CHANGED, [1.0, 1.0], base=BASE, uniform=draws.get), drop=0.75, scale=1.0)

    np.testing.assert_allclose(BASE + 4 * np.array([1.0, 0.0, 0.2, 2.0, 0.0]), merged, rtol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_slerp_follows_the_arc(share):
    """Between two orthogonal unit vectors it stays on the unit circle, at the angle asked for."""
    merged = combined("slerp", Piece([np.array([1.0, 0.0]), np.array([0.0, 1.0])], [1 - share, share]))

    np.testing.assert_allclose([np.cos(share * np.pi / 2), np.sin(share * np.pi / 2)], merged, atol=1e-15)


def test_slerp_of_one_source_is_that_source():
    """Where the other has a ratio of 0, it is not read, and there is no arc."""
    theta = np.array([1.0, np.pi])

    assert combined("slerp", Piece([theta], [1.0])) is theta


@pytest.mark.parametrize("second", [[1.0, 2.0], [-1.0, -2.0], [0.0, 0.0]])
def test_slerp_of_parallel_tensors_is_the_straight_line(second):
    """There is no arc, or no shortest one."""
    merged = combined("slerp", Piece([np.array([1.0, 2.0]), np.array(second)], [0.75, 0.25]))

    np.testing.assert_allclose(0.75 * np.array([1.0, 2.0]) + 0.25 * np.array(second), merged, rtol=1e-12)


def test_greedy_soup_takes_what_does_not_hurt():
    """Best first, then by their own scores; what makes the average worse stays out."""
    values, tried = {0: 0.5, 1: 0.9, 2: 0.7, 3: 0.6}, []

    def score(chosen):
        tried.append(tuple(chosen))
        return values[chosen[0]] if len(chosen) == 1 else {(1, 2): 0.85, (1, 3): 0.9, (1, 3, 0): 0.95}[tuple(chosen)]

    assert [0, 1, 3] == greedy_soup(4, score)
    assert [(0,), (1,), (2,), (3,), (1, 2), (1, 3), (1, 3, 0)] == tried


@pytest.mark.parametrize(
    ("told", "name", "given"),
    [
        ("unknown parameter of ties: merge.parameters.densty; did you mean 'density'?", "ties", {"densty": 0.5}),
        ("unknown parameter of imm: merge.parameters.density; imm takes none", "imm", {"density": 0.5}),
        ("wrong parameter of ties: merge.parameters.density: found input should be less than or equal to 1", "ties", {"density": 2}),
        ("wrong parameter of dare: merge.parameters.drop: found input should be less than 1", "dare", {"drop": 1.0}),
    ],
)
def test_wrong_parameters(told, name, given):
    """Are told with their key."""
    with pytest.raises(RecipeError) as caught:
        parameters_of(METHODS.get(name), given)
    assert told == str(caught.value)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_parameter_is_explained(name):
    """For the list of methods."""
    assert all(field.description for field in METHODS.get(name).parameters.model_fields.values())


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_says_what_it_is(name):
    """One line and a reference, for the list of methods."""
    method = METHODS.get(name)

    assert name == method.name
    assert method.summary
    assert method.summary == " ".join(method.summary.split())
    assert method.reference.rstrip("0123456789").endswith(" ")


def test_misspelt_method_gets_the_nearest():
    """As every name does."""
    with pytest.raises(UsageError) as caught:
        METHODS.get("tim")
    assert "unknown merge method 'tim'; did you mean 'timm'?" == str(caught.value)


def test_a_name_is_registered_once():
    """Two methods cannot share a name."""
    with pytest.raises(ValueError, match="'imm' is registered twice"):
        register(MergeMethod(IMM.name, "other", "none 2000", IMM.combine))
