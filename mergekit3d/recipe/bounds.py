"""Where a recipe may write: recipes come from strangers, and must not replace files elsewhere.

What a recipe's file names as a place to write stays within the recipe's own folder, or within the output folder that the user gave;
links are followed before that is judged. The user's own hand goes anywhere: ``--out``, ``--set`` and ``--allow-outside``.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergekit3d.errors import RecipeError
from mergekit3d.recipe.document import KeyPath

FLAG = "--allow-outside"


@dataclass(frozen=True)
class Bounds:
    """Folders that a recipe may write to.

    Args:
        where: the recipe, for error texts.
        roots: the folders, links resolved.
        lines: line of every key path of the recipe's file.
        by_hand: key paths that the user set on the command line.
    """

    where: str = ""
    roots: tuple[Path, ...] = ()
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    by_hand: frozenset[KeyPath] = frozenset()

    def check(self, key: KeyPath, path: Path, written: Path, *, is_file: bool = False) -> None:
        """Refuse a place to write that leads outside.

        Args:
            key: what names it.
            path: the place.
            written: the place as the recipe writes it.
            is_file: a file rather than a folder.

        Raises:
            RecipeError: it lies outside, and the user did not say so; key, line and the way to allow it are told.
        """
        if any(key[:end] in self.by_hand for end in range(1, len(key) + 1)):
            return
        place = _followed(path)
        if place is not None and any(place.is_relative_to(root) for root in self.roots):
            return
        line = next((self.lines[key[:end]] for end in range(len(key), 0, -1) if key[:end] in self.lines), None)
        dotted = ".".join(map(str, key))
        spelled_within = Path(os.path.normpath(path.absolute())).is_relative_to(os.path.normpath(Path(self.where).parent.absolute()))
        by_link = ", through a link" if spelled_within else ""
        folder = os.path.normpath(path.parent if is_file and not by_link else path)
        raise RecipeError(
            f"{dotted!r} leads out of where a recipe may write",
            where=self.where if line is None else f"{self.where}, line {line}",
            wanted="a place within the recipe's folder or --out",
            found=f"{written}{by_link}",
            todo=f"where that is meant, pass {FLAG} {shlex.quote(folder)}, or give the place by hand: "
            + ("--out" if key == ("out",) else f"--set {dotted}=PATH"),
        )


def _followed(path: Path) -> Path | None:
    """The place that a path leads to, whether it is there or not; None where that cannot be said: a loop of links, a name with NUL."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return None


def real_paths(paths: Iterable[Path | str]) -> tuple[Path, ...]:
    """The places that paths lead to, as far as that can be said."""
    return tuple(real for path in paths if (real := _followed(Path(path))) is not None)
