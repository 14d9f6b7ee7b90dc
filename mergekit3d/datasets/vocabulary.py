"""Label ids that may occur in the files of a layout; any other id is an error, not background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mergekit3d.errors import InputError, RecipeError

SHOWN_IDS = 5


@dataclass(frozen=True)
class Vocabulary:
    """The ids that a label map may hold.

    Args:
        name: for error texts.
        ids: those ids, 0 among them.
        merged: id -> the id that it is read as.
        wider: the vocabulary that holds instead where a task asks for an id outside of `ids`; None: there is none.
        misread: name of an output -> an id that it held in other years and that means something else here.
    """

    name: str
    ids: range | frozenset[int]
    merged: Mapping[int, int] = field(default_factory=dict)
    wider: Vocabulary | None = None
    misread: Mapping[str, int] = field(default_factory=dict)

    def for_outputs(self, outputs: Mapping[str, Sequence[int]]) -> Vocabulary:
        """This vocabulary, or the wider one where the outputs need it.

        Raises:
            RecipeError: an output asks for an id that cannot occur, or for one that means something else.
        """
        for name, ids in outputs.items():
            if self.misread.get(name) in ids:
                raise RecipeError(
                    f"label {self.misread[name]} is something else in the {self.name} labels",
                    where=name,
                    found=_listed(ids),
                    todo="use the regions brats-2023, or another name for this region",
                )
        foreign = {name: [label for label in ids if label not in self.ids] for name, ids in outputs.items()}
        foreign = {name: ids for name, ids in foreign.items() if ids}
        if not foreign:
            return self
        if self.wider is not None:
            return self.wider.for_outputs(outputs)
        name, ids = next(iter(foreign.items()))
        raise RecipeError(
            "an output asks for a label that these data cannot hold",
            where=name,
            wanted=f"ids of the {self.name} labels ({self.described()})",
            found=_listed(ids),
            todo="correct the regions or labels of the target, or name another layout",
        )

    def check(self, labels: np.ndarray[Any, Any], subject: str) -> None:
        """Refuse ids that cannot occur.

        Args:
            labels: non-negative integers, any shape.
            subject: name, for the error text.

        Raises:
            InputError: some voxel holds another id.
        """
        counts = np.bincount(labels.ravel())
        foreign = [int(label) for label in np.flatnonzero(counts) if int(label) not in self.ids]
        if foreign:
            raise InputError(
                "a label map holds unknown labels",
                where=f"subject {subject}",
                wanted=f"ids of the {self.name} labels ({self.described()})",
                found=f"{_listed(foreign)} in {int(counts[foreign].sum())} voxels",
                todo="correct the label map, or name another layout",
            )

    def merge(self, labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Labels with every merged id replaced, the rest as they are."""
        present = int(labels.max(initial=0))
        if not any(label <= present for label in self.merged):
            return labels
        table = np.arange(max(present, *self.merged) + 1, dtype=labels.dtype)
        table[list(self.merged)] = list(self.merged.values())
        return np.asarray(table[labels])

    def described(self) -> str:
        """The ids as text."""
        return f"{self.ids.start} to {self.ids.stop - 1}" if isinstance(self.ids, range) else ", ".join(map(str, sorted(self.ids)))


def _listed(ids: Sequence[int]) -> str:
    text = ", ".join(map(str, sorted(ids)[:SHOWN_IDS]))
    return f"{text} and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else text


def _white_matter_parcels() -> dict[int, int]:
    return dict.fromkeys([*range(3000, 3036), 5001], 2) | dict.fromkeys([*range(4000, 4036), 5002], 41)


FREESURFER = Vocabulary("FreeSurfer", range(14176), merged=_white_matter_parcels())  # wmparc divides 2 and 41 into parcels
BRATS = Vocabulary("BraTS", frozenset({0, 1, 2, 4}))
BRATS2023 = Vocabulary("BraTS 2023", frozenset({0, 1, 2, 3}))
BRATS2024 = Vocabulary("BraTS 2024", frozenset({0, 1, 2, 3, 4}), misread={"ET": 4, "TC": 4, "WT": 4})
SMALL = Vocabulary("plain", range(5), wider=FREESURFER)
