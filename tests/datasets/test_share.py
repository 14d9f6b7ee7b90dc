"""Samples of a step, dealt out to processes."""

from __future__ import annotations

from itertools import chain

import pytest

from mergekit3d.datasets.share import Share


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(("batch_size", "accumulate", "samples"), [(1, 1, 3), (2, 1, 5), (2, 2, 7), (4, 2, 20), (3, 4, 3)])
def test_every_sample_goes_to_one_process(size, batch_size, accumulate, samples):
    """Of each batch, the shares of all processes are its samples, in order; of a step they differ by one sample at most."""
    shares = [Share(rank, size, accumulate) for rank in range(size)]
    per_step = {}
    for batch in range(-(-samples // batch_size)):
        own = [list(share.of_batch(batch, batch_size, samples)) for share in shares]
        assert list(range(batch * batch_size, min((batch + 1) * batch_size, samples))) == list(chain(*own))
        counts = per_step.setdefault(batch // accumulate, [0] * size)
        per_step[batch // accumulate] = [have + len(more) for have, more in zip(counts, own, strict=True)]
    for counts in per_step.values():
        assert max(counts) - min(counts) <= 1


def test_one_sample_goes_to_the_first_process():
    """The others have nothing to do in such a step."""
    assert [[0], [], []] == [list(Share(rank, 3).of_batch(0, 1, 1)) for rank in range(3)]


def test_whole_batches_stay_together():
    """Two batches of four for two processes: one each."""
    shares = [Share(rank, 2, accumulate=2) for rank in range(2)]
    assert [[0, 1, 2, 3], []] == [list(share.of_batch(0, 4, 8)) for share in shares]
    assert [[], [4, 5, 6, 7]] == [list(share.of_batch(1, 4, 8)) for share in shares]
