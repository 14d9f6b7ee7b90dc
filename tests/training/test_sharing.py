"""One training shared out among processes, as far as one process can tell; see tests/verbs/test_training_processes.py."""

from __future__ import annotations

import pytest

from mergekit3d.errors import InputError
from mergekit3d.training.interruption import Interruption
from mergekit3d.training.processes import ALONE
from mergekit3d.training.sharing import Sharing, in_turn, step_seed


def test_alone_nothing_changes():
    """The loss, the items and the signal are the process's own, at once."""
    signals = Interruption()
    sharing = Sharing(ALONE, signals)
    assert 0.1 == sharing.add_up(0.1, 1.0)
    assert [1, 2] == list(sharing.each([1, 2])) == list(sharing.rounds([1, 2]))
    assert sharing.signal_number is None
    signals.signal_number = 15
    assert 15 == sharing.signal_number
    with pytest.raises(InputError, match="bad"), sharing.own_work():
        raise InputError("bad")


def test_items_dealt_out_in_turn_come_back_in_order():
    """However many processes there are, also with fewer items."""
    items = [(number,) for number in range(5)]
    for size in (1, 2, 3, 7):
        assert items == in_turn([items[rank::size] for rank in range(size)])


def test_the_first_process_draws_the_masks_of_one_and_the_others_draw_their_own():
    """A training in one process has the bits that it had before it could be shared."""
    assert step_seed(5, 2, 3) == step_seed(5, 2, 3, 0)
    assert 4 == len({step_seed(5, 2, 3, rank) for rank in range(4)})
