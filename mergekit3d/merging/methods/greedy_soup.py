"""Greedy model soup: the average of the sources that raise the Dice on the target's validation subjects."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mergekit3d.merging.methods import MergeMethod, register
from mergekit3d.merging.methods.mean_imm import average


def greedy_soup(count: int, score: Callable[[Sequence[int]], float]) -> list[int]:
    """Choose the ingredients of a soup.

    Args:
        count: number of sources.
        score: validation score of the average of the sources of these numbers; higher is better.

    Returns:
        Numbers of the sources to average: the best one, then each of the others, in the order of their own scores, that does not
        make the average worse.

    Source: Wortsman et al., ICML 2022, recipe 1.
    """
    alone = [score([index]) for index in range(count)]
    order = sorted(range(count), key=lambda index: -alone[index])
    chosen, best = [order[0]], alone[order[0]]
    for index in order[1:]:
        reached = score([*chosen, index])
        if reached >= best:
            chosen, best = [*chosen, index], reached
    return sorted(chosen)


GREEDY_SOUP = register(
    MergeMethod(
        name="greedy-soup",
        summary="average of the sources that raise the Dice on the target's validation subjects",
        reference="Wortsman et al., Model soups, ICML 2022, recipe 1",
        combine=average,
        evaluates=True,
    )
)
