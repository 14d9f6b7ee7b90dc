"""From label ids to the channels of a network and back; the shipped sets of outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekit3d.errors import RecipeError, UsageError
from mergekit3d.registry import did_you_mean

if TYPE_CHECKING:
    from mergekit3d.checkpoints.metadata import TaskSpec

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, tuple[int, ...]]

THRESHOLD = 0.5
MAX_REGIONS = 63
CORPUS_CALLOSUM = 4  # 1004 and 2004 lie in the range of the cortex, and are white matter

HCP_1_7: Outputs = {
    "cerebellum-gm": (8, 47),
    "cerebral-gm": (
        *(3, 42, 26, 58),
        *(hemisphere + parcel for hemisphere in (1000, 2000) for parcel in range(36) if parcel != CORPUS_CALLOSUM),
    ),
    "thalamus": (9, 10, 48, 49),
    "amygdala": (18, 54, 31, 63),
    "caudate": (11, 50),
    "pallidum": (13, 52),
    "csf": (24,),
}
HCP_8_14: Outputs = {
    "cerebellum-wm": (7, 46),
    "cerebral-wm": (2, 41, 77, 78, 79, 251, 252, 253, 254, 255, 1000 + CORPUS_CALLOSUM, 2000 + CORPUS_CALLOSUM),
    "hippocampus": (17, 53),
    "ventricles": (4, 5, 14, 15, 43, 44, 72),
    "putamen": (12, 51),
    "ventral-dc": (28, 60),
    "brainstem": (16,),
}
OUTPUT_SETS: Mapping[str, Outputs] = {
    "hcp-1-7": HCP_1_7,
    "hcp-8-14": HCP_8_14,
    "hcp-1-14": {**HCP_1_7, **HCP_8_14},
    "brats": {"ET": (4,), "TC": (1, 4), "WT": (1, 2, 4)},
    "brats-2023": {"ET": (3,), "TC": (1, 3), "WT": (1, 2, 3)},
    "brats-msd": {"ET": (3,), "TC": (2, 3), "WT": (1, 2, 3)},
}


def output_set(name: str) -> dict[str, tuple[int, ...]]:
    """A shipped set of outputs: region or class name -> label ids.

    Source: the 14 classes of the T-IMM paper in FreeSurfer's ids; the three regions of the BraTS challenges up to 2022, since 2023, and as
    the Medical Segmentation Decathlon numbers them.

    Raises:
        UsageError: no set has that name.
    """
    if name not in OUTPUT_SETS:
        raise UsageError(f"unknown set of outputs {name!r}", todo=did_you_mean(name, OUTPUT_SETS))
    return dict(OUTPUT_SETS[name])


def check_outputs(task: TaskSpec) -> None:
    """Refuse outputs that no label map can be turned into.

    Raises:
        RecipeError: background among the ids, two exclusive classes share an id, or too many regions.
    """
    owner: dict[int, str] = {}
    for name, ids in task.outputs.items():
        if not ids or min(ids) < 1:
            raise RecipeError("an output needs label ids of 1 or more", where=name, found=list(ids))
        for label in ids:
            if task.exclusive and owner.setdefault(label, name) != name:
                raise RecipeError(
                    "two exclusive classes share a label", where=label, found=f"{owner[label]} and {name}", todo="use regions"
                )
    limit = 255 if task.exclusive else MAX_REGIONS
    if len(task.outputs) > limit:
        raise RecipeError("too many outputs", wanted=f"at most {limit}", found=len(task.outputs))


def encode(labels: Array, task: TaskSpec) -> Array:
    """The target of a label map; ids that no output names are background.

    Args:
        labels: non-negative integers, (X, Y, Z).
        task: its outputs.

    Returns:
        uint8: (C, X, Y, Z), 0 or 1 for each region; or (X, Y, Z), the class index with 0 for background where classes are exclusive.
    """
    highest = max(int(labels.max(initial=0)), *(label for ids in task.outputs.values() for label in ids))
    if task.exclusive:
        classes = np.zeros(highest + 1, dtype=np.uint8)
        for index, ids in enumerate(task.outputs.values(), 1):
            classes[list(ids)] = index
        return np.asarray(classes[labels])
    members = np.zeros((len(task.outputs), highest + 1), dtype=np.uint8)
    for channel, ids in enumerate(task.outputs.values()):
        members[channel, list(ids)] = 1
    return np.stack([row[labels] for row in members])


def decode(probabilities: Array, task: TaskSpec) -> Array:
    """The label map of a prediction: the inverse of `encode`, up to ids that share all their outputs (the first stands for them).

    Exclusive classes: the first id of the most probable class. Regions: those above 0.5 are predicted. Where some id lies in
    exactly the predicted regions, it is that id (BraTS: ET, TC and WT give 4; TC and WT give 1; WT gives 2). Elsewhere a region
    gives way to a predicted one inside of it, the most probable of the rest wins, and its own id is written, which lies in no
    region inside of it (ET alone gives 4; of two overlapping tissues the more probable one).

    Args:
        probabilities: (C, X, Y, Z), one channel an output, with the background as channel 0 where classes are exclusive.
        task: its outputs.

    Returns:
        Label ids, (X, Y, Z) int32.
    """
    if task.exclusive:
        first = np.array([0, *(ids[0] for ids in task.outputs.values())], dtype=np.int32)
        return np.asarray(first[np.argmax(probabilities, axis=0)])
    outputs = list(task.outputs.values())
    bits = np.min_scalar_type(2 ** len(outputs) - 1).type
    codes = np.zeros(probabilities.shape[1:], dtype=bits)
    for channel in range(len(outputs)):
        codes |= (probabilities[channel] > THRESHOLD).astype(bits) << bits(channel)
    labels = np.zeros(codes.shape, dtype=np.int32)
    known = codes == 0
    for code, label in _label_of_code(outputs).items():
        here = codes == bits(code)
        labels[here] = label
        known |= here
    labels[~known] = _most_probable(probabilities[:, ~known], outputs)
    return labels


def _label_of_code(outputs: list[tuple[int, ...]]) -> dict[int, int]:
    """Regions that hold an id, as bits, -> the first such id."""
    table: dict[int, int] = {}
    for label in (label for ids in outputs for label in ids):
        table.setdefault(sum(1 << channel for channel, ids in enumerate(outputs) if label in ids), label)
    return table


def _most_probable(probabilities: Array, outputs: list[tuple[int, ...]]) -> Array:
    """Labels for voxels, (N), whose predicted regions, of probabilities (C, N), belong to no id."""
    predicted = probabilities > THRESHOLD
    candidates = predicted.copy()
    own = []
    for channel, ids in enumerate(outputs):
        inside = [other for other, others in enumerate(outputs) if set(others) < set(ids)]
        candidates[channel] &= ~predicted[inside].any(axis=0)
        own.append(next((label for label in ids if not any(label in outputs[other] for other in inside)), ids[0]))
    winner = np.argmax(np.where(candidates, probabilities, -1), axis=0)
    return np.asarray(np.array(own, dtype=np.int32)[winner])
