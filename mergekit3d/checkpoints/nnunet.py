"""nnU-Net v2's ``checkpoint_{final,best,latest}.pth``, and the folder of a trained model: plans, dataset.json, folds.

Reading needs no nnU-Net: plans and dataset.json stand in every checkpoint, tell network and task, and are kept in the metadata, so
that a merge of such models is written in their format again, for ``nnUNetv2_predict`` and ``nnUNetv2_train -pretrained_weights``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.checkpoints.archive import begins_as_zip, pickle_names
from mergekit3d.checkpoints.checkpoint import Checkpoint, TensorEntry
from mergekit3d.checkpoints.formats import Format, check_file, register, stamp_of
from mergekit3d.checkpoints.metadata import CHECKPOINT, KEY, Metadata, TaskSpec
from mergekit3d.checkpoints.nnunet_plans import DATASET_KEYS, network_of_plans, task_of_plans
from mergekit3d.checkpoints.pt import checkpoint_of, find_state_dict, metadata_in, save_torch, state_of, strip_prefixes
from mergekit3d.checkpoints.unpickling import load
from mergekit3d.errors import InputError, UsageError
from mergekit3d.storage.atomic import real_path, write_json
from mergekit3d.storage.seal import json_digest
from mergekit3d.textfiles import read_json_object

if TYPE_CHECKING:
    import numpy as np

NAME = "nnunet"
WORDS = ("network_weights", "init_args", "trainer_name")
CHECKPOINT_NAMES = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")
DATASET = "dataset.json"
PLANS_OF_ANOTHER_FORM = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError)
FOLD = re.compile(r"fold_(\d+|all)")


def recognises(path: Path, head: bytes) -> bool:
    """Whether a path is a checkpoint of nnU-Net, or the folder of a trained model."""
    if begins_as_zip(head):
        return pickle_names(path, WORDS)
    return not head and path.is_dir() and (path / "plans.json").is_file() and (path / "dataset.json").is_file()


def open_nnunet(path: Path) -> Checkpoint:
    """Open a checkpoint of nnU-Net, or that of the one fold in the folder of a trained model.

    Raises:
        InputError: damaged, a pickle of more than tensors and plain data, or a folder with several folds.
    """
    file = _checkpoint_in(path) if path.is_dir() else path
    before, content = stamp_of(file), load(file)
    state, metadata = find_state_dict(content, file), metadata_in(content, file)
    if metadata is not None:
        return checkpoint_of(path, state, before.size, metadata, mapped_from=(file, before))
    return checkpoint_of(path, strip_prefixes(state), before.size, _metadata(content), is_foreign=True, mapped_from=(file, before))


def _checkpoint_in(folder: Path) -> Path:
    folds = sorted(fold for fold in folder.iterdir() if FOLD.fullmatch(fold.name))
    found = [next((fold / name for name in CHECKPOINT_NAMES if (fold / name).is_file()), None) for fold in folds]
    files = [file for file in found if file is not None]
    if len(files) != 1:
        names = ", ".join(f"{file.parent.name}/{file.name}" for file in files) or "none"
        todo = "name one of them" if files else "name a checkpoint"
        raise InputError("cannot choose a checkpoint", where=folder, wanted="one fold with a checkpoint", found=names, todo=todo)
    return files[0]


def _metadata(content: Mapping[str, Any]) -> Metadata | None:
    """What plans and dataset.json tell; None where they are of a form that nnU-Net 2.8 does not know either."""
    try:
        origin = _origin(content)
        architecture, task = network_of_plans(origin), task_of_plans(origin)
    except PLANS_OF_ANOTHER_FORM:
        return None
    method = str(content["trainer_name"])
    return Metadata(kind=CHECKPOINT, architecture=architecture, task=task, method=method, tool={"name": "nnU-Net"}, origin=origin)


def _origin(content: Mapping[str, Any]) -> dict[str, Any]:
    given = content["init_args"]
    fold = given["fold"] if isinstance(given["fold"], int) else str(given["fold"])
    if not FOLD.fullmatch(f"fold_{fold}"):
        raise ValueError("no number of a fold")
    axes = content.get("inference_allowed_mirroring_axes")
    return {
        "format": NAME,
        "plans": _plain(given["plans"]),
        "configuration": str(given["configuration"]),
        "fold": fold,
        "dataset_json": _plain({key: value for key, value in given["dataset_json"].items() if key in DATASET_KEYS}),
        "trainer_name": str(content["trainer_name"]),
        "mirroring_axes": None if axes is None else [int(axis) for axis in axes],
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it.

    Raises:
        ValueError: JSON has it not.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("a number that JSON does not have")
    return number


def write_nnunet(path: Path, tensors: Iterable[tuple[TensorEntry, np.ndarray]], metadata: Metadata, like: Path | None = None) -> Metadata:
    """Write a checkpoint of nnU-Net, sealed; a name without an ending becomes the folder of a trained model.

    In a folder of that form (``fold_0/checkpoint_final.pth``) plans.json and dataset.json are written two levels up where they are
    missing. Optimizer and learning curves are no part of a merge: training starts from it, and does not go on.

    Raises:
        UsageError: neither the metadata nor `like` is of nnU-Net, or the tensors do not fit the plans.
        OutputError: the file system refused; the previous file stays.
    """
    metadata = metadata if like is None else _taken_over(metadata, like)
    origin = metadata.origin
    if origin.get("format") != NAME:
        todo = "pass --like with a checkpoint of nnU-Net of the same network, or the folder of the data set in nnUNet_preprocessed"
        raise UsageError("the checkpoint does not come from nnU-Net", where=path, wanted="plans and dataset.json", todo=todo)
    state, sealed = state_of(tensors, metadata)
    _check_fit(state, metadata, path)
    file = path if path.suffix else path / (f"fold_{origin['fold']}" if str(origin["fold"]).isalnum() else "fold_all") / CHECKPOINT_NAMES[0]
    axes = origin["mirroring_axes"]
    save_torch(
        file,
        {
            "network_weights": state,
            "init_args": {key: origin[key] for key in ("plans", "configuration", "fold", "dataset_json")},
            "trainer_name": origin["trainer_name"],
            "inference_allowed_mirroring_axes": None if axes is None else tuple(axes),
            KEY: sealed.as_text(),
        },
    )
    if FOLD.fullmatch(real_path(file).parent.name):
        for name, key in (("plans.json", "plans"), ("dataset.json", "dataset_json")):
            beside = real_path(file).parent.parent / name
            if not beside.exists():
                write_json(beside, origin[key])
    return sealed


def _taken_over(metadata: Metadata, like: Path) -> Metadata:
    """Metadata with plans and dataset.json of another checkpoint, or of a data set that nnU-Net has planned.

    Raises:
        UsageError: it is neither.
    """
    if like.suffix == ".json" and like.is_file() and like.with_name(DATASET).is_file():
        return replace(metadata, origin=_planned(metadata, like))
    if like.is_dir() and (like / DATASET).is_file() and not (like / "plans.json").is_file():
        return replace(metadata, origin=_planned(metadata, _plans_in(like)))
    template = open_nnunet(like) if recognises(like, _head(like)) else None
    if template is None or template.metadata is None or template.metadata.origin.get("format") != NAME:
        wanted = "a checkpoint_final.pth, or a folder of nnUNet_preprocessed, or plans in it"
        raise UsageError("the template is no checkpoint of nnU-Net", where=like, wanted=wanted)
    return replace(metadata, origin=template.metadata.origin)


def _plans_in(folder: Path) -> Path:
    """The one file of plans of a data set in nnUNet_preprocessed.

    Raises:
        UsageError: there are several, or none.
    """
    files = sorted(folder.glob("*[pP]lans*.json"))
    if len(files) != 1:
        names, todo = ", ".join(file.name for file in files) or "none", "pass --like with the file of plans itself" if files else None
        raise UsageError("cannot choose the plans", where=folder, wanted="one nnUNetPlans.json", found=names, todo=todo)
    return files[0]


def _planned(metadata: Metadata, plans: Path) -> dict[str, Any]:
    """The origin of a checkpoint that nnU-Net would train by plans of nnUNet_preprocessed and the dataset.json beside them.

    Configuration and trainer are those of the checkpoint's own origin, where it has one.

    Raises:
        UsageError: they are of another form.
    """
    given = {
        "plans": read_json_object(plans, "the plans"),
        "configuration": metadata.origin.get("configuration", "3d_fullres"),
        "fold": metadata.origin.get("fold", "all"),
        "dataset_json": read_json_object(plans.with_name(DATASET), "the description of the data set"),
    }
    trainer = metadata.origin.get("trainer_name", "nnUNetTrainer")
    try:
        origin = _origin({"init_args": given, "trainer_name": trainer, "inference_allowed_mirroring_axes": [0, 1, 2]})
        network_of_plans(origin)
    except PLANS_OF_ANOTHER_FORM as error:
        raise UsageError("cannot read the plans", where=plans, found=f"{type(error).__name__}: {error}"[:100]) from error
    return origin


def _head(path: Path) -> bytes:
    if path.is_dir():
        return b""
    check_file(path)
    with open(path, "rb") as file:
        return file.read(4)


def _check_fit(state: Mapping[str, Any], metadata: Metadata, path: Path) -> None:
    """Refuse tensors of another network or task than the plans tell: nnU-Net would not load them, or name their outputs wrongly.

    Raises:
        UsageError: what differs.
    """
    expected, known = network_of_plans(metadata.origin), metadata.architecture or {}
    heads = {tensor.shape[0] for name, tensor in state.items() if ".seg_layers." in f".{name}" and name.endswith("weight")}
    first = next((tensor.shape[1] for tensor in state.values() if tensor.ndim >= 4), None)
    if expected is None or not heads:
        return
    failed, wanted, found = "the network is of another task than its plans", "", ""
    if heads != {expected["out_channels"]} or first != expected["in_channels"]:
        wanted = f"{expected['in_channels']} inputs and {expected['out_channels']} outputs, as its plans tell"
        found = f"{first} inputs and {', '.join(map(str, sorted(heads)))} outputs"
    elif not fits_task(metadata):
        planned = task_of_plans(metadata.origin)
        wanted, found = (_described(task) for task in (planned, metadata.task))
    elif known.get("name") == NAME and (different := _differing(known["arguments"], expected["arguments"])):
        failed = "the network is another one than that of its plans"
        wanted, found = (f"{different} {of.get(different)}" for of in (expected["arguments"], known["arguments"]))
    if wanted:
        todo = "pass --like with a checkpoint of nnU-Net for this task, or with the folder of its data set in nnUNet_preprocessed"
        raise UsageError(failed, where=path, wanted=wanted, found=found, todo=todo)


def fits_task(metadata: Metadata) -> bool:
    """Whether modalities and outputs are those of the plans; True where one of the two does not say."""
    planned, task = task_of_plans(metadata.origin), metadata.task
    return planned is None or task is None or _compared(planned) == _compared(task)


def _compared(task: TaskSpec) -> tuple[object, ...]:
    return task.modalities, list(task.outputs.items()), task.exclusive


def _described(task: TaskSpec | None) -> str:
    return (
        "" if task is None else f"{' + '.join(task.modalities)} to {', '.join(f'{name} {list(ids)}' for name, ids in task.outputs.items())}"
    )


def _differing(known: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """The first argument of the network that is another one; deep supervision is no part of it."""
    return next((key for key in expected if json_digest(known.get(key)) != json_digest(expected[key])), None)


def _continues(metadata: Metadata) -> bool:
    return metadata.origin.get("format") == NAME and fits_task(metadata)


NNUNET = register(
    Format(
        NAME,
        recognises=recognises,
        open=open_nnunet,
        write=write_nnunet,
        continues=_continues,
        also=(".pth",),
    )
)
