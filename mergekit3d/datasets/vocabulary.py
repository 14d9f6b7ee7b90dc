"""Label ids that may occur in the files of a layout; any other id is an error, not background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mergekit3d.datasets.labels import OUTPUT_SETS
from mergekit3d.errors import InputError, RecipeError

SHOWN_IDS = 5
TUMOUR_REGIONS = set(OUTPUT_SETS["brats"])
OTHER_YEAR = (
    "correct the label map, or the regions: enhancing tumour is 4 until 2022 (brats), 3 since (brats-2023) and in the Decathlon (brats-msd)"
)


@dataclass(frozen=True)
class Vocabulary:
    """The ids that a label map may hold.

    Args:
        name: for error texts.
        ids: those ids, 0 among them.
        merged: id -> the id that it is read as.
        wider: the vocabulary that holds instead where a task asks for an id outside of `ids`; None: there is none.
        misread: name of an output -> ids that it may hold in other data and that mean something else here.
        untold: whether nothing tells which labels of BraTS these are: its regions say then which ids may occur.
    """

    name: str
    ids: range | frozenset[int]
    merged: Mapping[int, int] = field(default_factory=dict)
    wider: Vocabulary | None = None
    misread: Mapping[str, frozenset[int]] = field(default_factory=dict)
    untold: bool = False

    def for_outputs(self, outputs: Mapping[str, Sequence[int]]) -> Vocabulary:
        """This vocabulary, or the wider one where the outputs need it.

        Raises:
            RecipeError: an output asks for an id that cannot occur, or for one that means something else.
        """
        for name, ids in outputs.items():
            wrong = self.misread.get(name, frozenset()) & set(ids)
            if wrong:
                fitting = " or ".join(known for known, regions in OUTPUT_SETS.items() if name in regions and self._fits(regions))
                todo = f"use the regions {fitting}, or another name for this region" if fitting else "give this region another name"
                what = f"label {min(wrong)} is something else in the {self.name} labels"
                raise RecipeError(what, where=name, found=_listed(ids), todo=todo)
        foreign = {name: [label for label in ids if label not in self.ids] for name, ids in outputs.items()}
        foreign = {name: ids for name, ids in foreign.items() if ids}
        if not foreign:
            return self._as_asked(outputs)
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

    def _fits(self, outputs: Mapping[str, Sequence[int]]) -> bool:
        return all(set(ids) <= set(self.ids) and not self.misread.get(name, frozenset()) & set(ids) for name, ids in outputs.items())

    def _as_asked(self, outputs: Mapping[str, Sequence[int]]) -> Vocabulary:
        """Where the labels of BraTS cannot be told, another year's ids would be lost as background: only those asked for may occur."""
        if not self.untold or set(outputs) != TUMOUR_REGIONS:
            return self
        return Vocabulary(self.name, frozenset({0}.union(*map(set, outputs.values()))), untold=True)

    def check(self, labels: np.ndarray[Any, Any], called: str) -> None:
        """Refuse ids that cannot occur.

        Args:
            labels: non-negative integers, any shape.
            called: what an error calls the subject.

        Raises:
            InputError: some voxel holds another id.
        """
        counts = np.bincount(labels.ravel())
        foreign = [int(label) for label in np.flatnonzero(counts) if int(label) not in self.ids]
        if foreign:
            raise InputError(
                "a label map holds unknown labels",
                where=called,
                wanted=f"ids of the {self.name} labels ({self.described()})",
                found=f"{_listed(foreign)} in {int(counts[foreign].sum())} voxels",
                todo=OTHER_YEAR if self.untold else "correct the label map, or name another layout",
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
BRATS = Vocabulary("BraTS", frozenset({0, 1, 2, 4}), misread={"ET": frozenset({2}), "TC": frozenset({2})})
BRATS2023 = Vocabulary("BraTS 2023", frozenset({0, 1, 2, 3}), misread={"ET": frozenset({2}), "TC": frozenset({2})})
BRATS2024 = Vocabulary(
    "BraTS 2024",
    frozenset({0, 1, 2, 3, 4}),
    misread={"ET": frozenset({2, 4}), "TC": frozenset({2, 4}), "WT": frozenset({4})},
)
SMALL = Vocabulary("plain", range(5), wider=FREESURFER, untold=True)
