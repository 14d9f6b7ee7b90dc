"""Errors are one clear line each, with an exit code."""

from __future__ import annotations

import pickle

import pytest

from mergekit3d.errors import (
    InputError,
    Interrupted,
    LockedError,
    MachineError,
    MergeKit3DError,
    OutputError,
    ProblemCollector,
    Problems,
    RecipeError,
    UsageError,
)


@pytest.mark.parametrize(
    ("expected", "details"),
    [
        ("cannot read", {}),
        ("cannot read: m1.pt", {"where": "m1.pt"}),
        ("cannot read: found 0 bytes", {"found": "0 bytes"}),
        ("cannot read; run again", {"todo": "run again"}),
        ("cannot read: m1.pt: wanted 4, found 2; pass --x", {"where": "m1.pt", "wanted": 4, "found": 2, "todo": "pass --x"}),
    ],
)
def test_line_says_what_failed_where_wanted_found_and_what_to_do(expected, details):
    """The parts that are given stand in the order failed, where, wanted, found, todo."""
    assert expected == str(MergeKit3DError("cannot read", **details))


def test_line_is_one_printable_line():
    """Newlines become spaces; control characters and bytes that are no text are escaped, so that no name can steer a terminal."""
    error = InputError("cannot\nread", where="a\x1b[2Jb\udcff é 🧠")

    assert "cannot read: a\\x1b[2Jb\\udcff é 🧠" == str(error)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(70, MergeKit3DError), (2, UsageError), (2, RecipeError), (65, InputError), (71, MachineError), (74, OutputError), (75, LockedError)],
)
def test_exit_codes(code, kind):
    """Each kind of error has the exit code of the reliability table."""
    assert code == kind("x").exit_code


def test_interrupted_has_the_exit_code_of_its_signal():
    """128 plus the number of the signal, as shells count."""
    assert 143 == Interrupted("stopped", signal_number=15).exit_code


def test_problems_are_a_line_each_with_the_common_exit_code():
    """Several recipe errors are several lines and still 2."""
    problems = Problems([RecipeError("first"), RecipeError("second")])

    assert "first\nsecond" == str(problems)
    assert 2 == problems.exit_code


def test_problems_of_several_kinds_count_as_bad_input():
    """A damaged input beside a recipe error gives 65."""
    assert 65 == Problems([RecipeError("first"), OutputError("second")]).exit_code


def test_collector_without_problems_raises_nothing():
    """An empty collector lets the work begin."""
    ProblemCollector().raise_if_any()


def test_collector_raises_a_single_problem_as_it_is():
    """One problem is not wrapped."""
    collector = ProblemCollector()
    collector.add(UsageError("only"))

    with pytest.raises(UsageError, match=r"^only$"):
        collector.raise_if_any()


def test_collector_raises_all_problems_at_once_and_flattens_groups():
    """Problems found by a part, as a group, are listed beside the others."""
    collector = ProblemCollector()
    collector.add(Problems([InputError("a"), InputError("b")]))
    collector.add(InputError("c"))

    with pytest.raises(Problems) as caught:
        collector.raise_if_any()
    assert ["a", "b", "c"] == [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    "error",
    [
        InputError("cannot read", where="m1.pt", wanted=4, found=2, todo="pass --x"),
        Interrupted("stopped", signal_number=15, todo="pass --resume"),
        Problems([InputError("a"), RecipeError("b")]),
    ],
)
def test_errors_come_back_whole_from_worker_processes(error):
    """Pickling keeps the type, the text, the parts and the exit code."""
    copy = pickle.loads(pickle.dumps(error))

    assert type(error) is type(copy)
    assert str(error) == str(copy)
    assert error.exit_code == copy.exit_code
    assert error.failed == copy.failed
