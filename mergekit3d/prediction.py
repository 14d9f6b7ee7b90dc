"""From a network and a subject to a segmentation on the subject's own grid."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekit3d.architectures import NetworkSpec, architecture, build_network, check_shapes, network_of
from mergekit3d.checkpoints import TaskSpec, allowed_mirroring, load_tensors, open_checkpoint, unsaid
from mergekit3d.datasets.cache import SubjectStore
from mergekit3d.datasets.labels import encode
from mergekit3d.datasets.prepare import Prepared, native_crop, pasted, subject_labels
from mergekit3d.datasets.subject import Dataset, Subject
from mergekit3d.errors import InputError, UsageError
from mergekit3d.metrics import TOLERANCE_MM, SubjectMeasures, measure_subject
from mergekit3d.options import Options
from mergekit3d.progress import Reporter
from mergekit3d.storage.seal import json_digest
from mergekit3d.volumes.orientation import spacing_of

if TYPE_CHECKING:
    from torch import nn

    from mergekit3d.recipe.models import PredictModel
    from mergekit3d.training.devices import Runtime

Array = np.ndarray[Any, Any]
MIRROR_AXES = (0,)
"""Left and right: what trainings mirror along unless they are told otherwise."""
SHOWN_IDS = 6
"""Label ids that an error tells of a region."""


def inference_of(model: PredictModel) -> dict[str, Any]:
    """What a recipe says of inference, as keywords of `Predictor`."""
    axes = MIRROR_AXES if model.mirror else ()
    return {"patch_size": model.patch_size, "overlap": model.overlap, "mirror_axes": axes, "batch_size": model.batch_size}


def inference(
    *,
    patch_size: tuple[int, int, int] | None = None,
    overlap: float | None = None,
    mirror: bool | None = None,
    mirror_axes: Sequence[int] | None = None,
    batch_size: int | None = None,
    otherwise: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What flags say of inference, as keywords of `Predictor`.

    Args:
        patch_size: sliding window of this size; None: as `otherwise`.
        overlap: of neighbouring windows, 0 to 1.
        mirror: average over mirrored copies.
        mirror_axes: along which, of 0, 1, 2, which means to mirror; None: along those that the checkpoint allows.
        batch_size: windows at once.
        otherwise: what a recipe says; None: the defaults of `Predictor`.

    Raises:
        UsageError: axes that there are not, an overlap or a number of windows that cannot be.
    """
    mirror = True if mirror_axes is not None else mirror
    axes = None if mirror_axes is None else tuple(sorted(mirror_axes))
    if axes is not None and (not axes or any(axis not in (0, 1, 2) for axis in axes) or len(set(axes)) != len(axes)):
        raise UsageError("no such axes", where="--mirror-axes", wanted="some of x, y, z", found=list(axes))
    if overlap is not None and not 0 <= overlap < 1:
        raise UsageError("no such overlap", where="--overlap", wanted="0 or more, less than 1", found=overlap)
    if batch_size is not None and batch_size < 1:
        raise UsageError("no such number of windows", where="--batch-size", wanted="1 or more", found=batch_size)
    said = {"patch_size": patch_size, "overlap": overlap, "batch_size": batch_size}
    how = {**(otherwise or {}), **{key: value for key, value in said.items() if value is not None}}
    return how if mirror is None else {**how, "mirror_axes": axes if mirror else ()}


@dataclass(frozen=True)
class Predictor:
    """A network that is ready to segment.

    Args:
        network: in evaluation mode, on its device.
        spec: its architecture.
        task: what it puts out.
        runtime: device and precision.
        patch_size: sliding window of this size; None: whole volumes.
        overlap: of neighbouring windows.
        mirror_axes: average over copies mirrored along each subset of these axes of RAS+; empty: no copies.
        batch_size: windows at once.
        digest: of the checkpoint; empty: a network in memory.
    """

    network: nn.Module
    spec: NetworkSpec
    task: TaskSpec
    runtime: Runtime
    patch_size: tuple[int, int, int] | None = None
    overlap: float = 0.5
    mirror_axes: tuple[int, ...] = ()
    batch_size: int = 1
    digest: str = ""

    def probabilities(self, prepared: Prepared) -> Array:
        """Probabilities on the native grid within the foreground's box, (C, x, y, z) float32 in RAS+ axis order."""
        import torch

        from mergekit3d.training.inference import predict_volume

        with torch.no_grad(), warnings.catch_warnings():
            # Nobody writes into the image, so that it may be read-only, and needs no copy.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            image = torch.from_numpy(prepared.image)
            values = predict_volume(
                self.network,
                image,
                runtime=self.runtime,
                patch_size=self.patch_size,
                multiple_of=architecture(self.spec.name).multiple_of(self.spec),
                overlap=self.overlap,
                mirror_axes=self.mirror_axes,
                batch_size=self.batch_size,
                exclusive=self.task.exclusive,
            )
        return np.asarray(native_crop(values.float().cpu().numpy(), prepared))

    def masks(self, prepared: Prepared) -> dict[str, Array]:
        """The predicted mask of every output on the whole native grid, (X, Y, Z) in RAS+ axis order."""
        return {name: np.asarray(pasted(mask, prepared)) for name, mask in masks_of(self.probabilities(prepared), self.task).items()}


def load_predictor(checkpoint: Path | str, options: Options, **how: Any) -> Predictor:
    """A predictor from a checkpoint that says its architecture and task.

    Args:
        checkpoint: the file.
        options: device and precision.
        how: patch_size, overlap, mirror_axes and batch_size of `Predictor`; mirror_axes None: those that the network may be mirrored
            along, by its checkpoint (nnU-Net's say so), else left-right.

    Raises:
        InputError: the checkpoint is damaged, or does not say what it predicts.
    """
    opened = open_checkpoint(checkpoint)
    opened.check_finite()
    spec, task = network_of(opened), None if opened.metadata is None else opened.metadata.task
    if spec is None or task is None:
        missing, why = "its architecture" if spec is None else "its modalities and regions", unsaid(opened)
        todo = "use a checkpoint that mergekit3d wrote" if why is None else "predict with nnUNetv2_predict; merging needs no task"
        raise InputError("the checkpoint does not say what it predicts", where=opened.path, wanted=missing, found=why, todo=todo)
    check_shapes(spec, opened.shapes, opened.path)
    network = build_network(spec)
    network.load_state_dict(load_tensors(opened))
    if "mirror_axes" in how and how["mirror_axes"] is None:
        told = allowed_mirroring(opened)
        how["mirror_axes"] = MIRROR_AXES if told is None else told
    return predictor_from(network, spec, task, options, digest=opened.digest, **how)


def predictor_from(network: nn.Module, spec: NetworkSpec, task: TaskSpec, options: Options, **how: Any) -> Predictor:
    """A predictor from a network in memory.

    Args:
        network: with its weights.
        spec: its architecture.
        task: what it puts out.
        options: device and precision.
        how: patch_size, overlap, mirror_axes (None: left-right), batch_size and digest of `Predictor`.
    """
    from mergekit3d.architectures.slabs import use_fast_cpu_convolutions
    from mergekit3d.training.devices import resolve_runtime

    runtime = resolve_runtime(options.device, options.precision)
    network = network.to(runtime.device).eval()
    use_fast_cpu_convolutions(network)
    if "mirror_axes" in how and how["mirror_axes"] is None:
        how["mirror_axes"] = MIRROR_AXES
    return Predictor(network, spec, task, runtime, **how)


def ensemble_of(checkpoints: Sequence[Path | str], options: Options, **how: Any) -> tuple[Predictor, ...]:
    """Predictors from checkpoints that put out the same.

    Args:
        checkpoints: one or more.
        options: device and precision.
        how: patch_size, overlap, mirror_axes and batch_size of `Predictor`.

    Raises:
        InputError: a checkpoint cannot be used, or is of another task than the first.
    """
    members = tuple(load_predictor(checkpoint, options, **how) for checkpoint in checkpoints)
    first = members[0].task
    for checkpoint, member in zip(checkpoints, members, strict=True):
        task = member.task
        if json_digest(task.as_json()) != json_digest(first.as_json()):
            raise InputError(
                "the checkpoints of an ensemble are of different tasks",
                where=checkpoint,
                wanted=_described(first),
                found=_described(task),
            )
    return members


def _listed(ids: Sequence[int]) -> str:
    """Label ids; of the many that some regions of FreeSurfer have, the first."""
    shown = ", ".join(map(str, ids[:SHOWN_IDS]))
    return f"[{shown}]" if len(ids) <= SHOWN_IDS else f"[{shown} and {len(ids) - SHOWN_IDS} more]"


def _described(task: TaskSpec) -> str:
    outputs = ", ".join(f"{name} {_listed(ids)}" for name, ids in task.outputs.items())
    return f"{', '.join(task.modalities)} ({task.normalisation}, spacing {task.spacing_mm or 'native'}) to {outputs}"


def mean_probabilities(members: Sequence[Predictor], prepared: Prepared) -> Array:
    """The mean of the members' probabilities, as `Predictor.probabilities` of one."""
    total = members[0].probabilities(prepared)
    if len(members) == 1:
        return total
    total = np.array(total)
    for member in members[1:]:
        total += member.probabilities(prepared)
    total /= len(members)
    return total


def masks_of(probabilities: Array, task: TaskSpec) -> dict[str, Array]:
    """Predicted mask (X, Y, Z) of every output: above 0.5, or the most probable class.

    Args:
        probabilities: (C, X, Y, Z).
        task: its outputs.
    """
    if task.exclusive:
        winner = probabilities.argmax(axis=0)
        return {name: winner == index for index, name in enumerate(task.outputs, 1)}
    return {name: channel > 0.5 for name, channel in zip(task.outputs, probabilities, strict=True)}


def truth_of(labels: Array, task: TaskSpec) -> dict[str, Array]:
    """True mask (X, Y, Z) of every output, from label ids (X, Y, Z)."""
    encoded = encode(labels, task)
    if task.exclusive:
        return {name: encoded == index for index, name in enumerate(task.outputs, 1)}
    return {name: channel.astype(bool) for name, channel in zip(task.outputs, encoded, strict=True)}


def measure_subjects(
    predictor: Predictor,
    dataset: Dataset,
    subjects: Sequence[Subject],
    *,
    convention: str,
    tolerance_mm: float | Mapping[str, float] = TOLERANCE_MM,
    reporter: Reporter,
    store: SubjectStore | None = None,
) -> Iterator[SubjectMeasures]:
    """Dice, HD95, surface Dice, volumes and counts of every subject, on its own grid.

    Args:
        predictor: the network.
        dataset: where the subjects come from; its vocabulary checks their labels.
        subjects: with label maps.
        convention: for empty regions.
        tolerance_mm: of the normalised surface Dice, for all regions or by region.
        reporter: where progress goes.
        store: the subjects, where several networks are measured on them; left out: each is prepared and forgotten.

    Yields:
        The measures of one subject at a time.
    """
    # With its target a subject is prepared on the label map's grid, or refused where no image shares it.
    store = store or open_subjects(dataset, subjects, predictor.task, reporter, with_target=True)
    with reporter.task("evaluate", len(subjects)) as progress:
        for number, subject in store.subjects.items():
            volume = subject_labels(subject, predictor.task.outputs, dataset.vocabulary)
            files = (f"{subject.name}.nii.gz", "" if subject.label is None else subject.label.name)
            measures = measure_subject(
                subject.name,
                predictor.masks(store.get(number)),
                truth_of(volume.data, predictor.task),
                spacing_of(volume.affine),
                convention=convention,
                tolerance_mm=tolerance_mm,
                files=files,
            )
            progress.advance(1, message=f"subject {number}")
            yield measures


def open_subjects(
    dataset: Dataset, subjects: Sequence[Subject], task: TaskSpec, reporter: Reporter, *, with_target: bool = False
) -> SubjectStore:
    """Images of subjects, each prepared once and not kept; numbered by their place in the data set."""
    wanted: Mapping[str, Subject] = {subject.name: subject for subject in subjects}
    numbered = {known.number: wanted[known.name] for known in dataset.subjects if known.name in wanted}
    return SubjectStore(numbered, task, vocabulary=dataset.vocabulary, with_target=with_target, capacity_bytes=0, reporter=reporter)
