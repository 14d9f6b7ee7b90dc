"""Named items (methods, networks, layouts, formats) with a did-you-mean for names that are not there."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from mergekit3d.errors import UsageError

Item = TypeVar("Item")


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like `name`, or None where none is alike."""
    names = list(candidates)
    by_lower_case = {candidate.lower(): candidate for candidate in names}
    matches = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.6)
    return by_lower_case[matches[0]] if matches else None


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """What to do about an unknown name: the nearest one, or the list of all."""
    names = sorted(candidates)
    guess = nearest(name, names)
    return f"did you mean {guess!r}?" if guess is not None else f"known: {', '.join(names)}"


class Registry(Generic[Item]):
    """A mapping from name to item.

    Args:
        kind: what the items are, in the singular, for error texts ("merge method").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, Item] = {}

    def register(self, name: str) -> Callable[[Item], Item]:
        """A decorator that adds an item under `name`."""

        def add(item: Item) -> Item:
            if name in self._items:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._items[name] = item
            return item

        return add

    def get(self, name: str) -> Item:
        """The item called `name`.

        Raises:
            UsageError: no item has that name.
        """
        if name not in self._items:
            raise UsageError(f"unknown {self.kind} {name!r}", todo=did_you_mean(name, self._items))
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def items(self) -> Iterator[tuple[str, Item]]:
        """Names and items, in the order of registration."""
        return iter(self._items.items())
