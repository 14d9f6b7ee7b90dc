"""The network of a checkpoint or of a task, where the user, the checkpoint and the task each say a part of it."""

from __future__ import annotations

from mergekit3d.architectures import NetworkSpec, architecture, check_arguments
from mergekit3d.architectures.ends import channels_of
from mergekit3d.checkpoints import Checkpoint, TaskSpec
from mergekit3d.errors import InputError
from mergekit3d.recipe.models import ArchitectureModel


def resolve_network(
    given: ArchitectureModel | None,
    known: NetworkSpec | None,
    *,
    checkpoint: Checkpoint | None = None,
    task: TaskSpec | None = None,
) -> NetworkSpec | None:
    """One network: the user's arguments go over the checkpoint's, the task's channels over both.

    Args:
        given: the architecture that a recipe or a flag names.
        known: the network that the checkpoint says or its tensors tell.
        checkpoint: whose tensors tell the channels that nothing else does, and what no argument may deny.
        task: what the network is to take and put out; None: what the checkpoint's does.

    Returns:
        The network; None where nobody says it.

    Raises:
        RecipeError: unknown keyword arguments.
        InputError: the checkpoint is of another network than the one given.
    """
    where = None if checkpoint is None else checkpoint.path
    if given is not None:
        if known is not None and known.name != given.name:
            todo = "correct architecture in the recipe"
            raise InputError("the checkpoint is of another network", where=where, wanted=given.name, found=known.name, todo=todo)
        check_arguments(given.name, given.arguments)
        if checkpoint is not None:
            _check_told(checkpoint, given)
        arguments = {**({} if known is None else known.arguments), **given.arguments}
        told = channels_of({} if checkpoint is None else checkpoint.shapes)
        known = NetworkSpec(given.name, *(told if known is None else (known.in_channels, known.out_channels)), arguments)
    if known is None or task is None:
        return known
    return NetworkSpec(known.name, len(task.modalities), task.channels, known.arguments)


def _check_told(checkpoint: Checkpoint, given: ArchitectureModel) -> None:
    """Refuse an architecture whose arguments are not those that the tensors tell."""
    described = architecture(given.name)
    if not described.decisive:
        return
    told = described.infer(checkpoint.shapes)
    if told is None:
        raise InputError("the checkpoint is of another network", where=checkpoint.path, wanted=given.name, found="other tensors")
    for key in described.decisive:
        wanted, found = given.arguments.get(key, told.arguments[key]), told.arguments[key]
        if wanted != found:
            todo = "correct architecture in the recipe, or leave it out"
            raise InputError(
                "the checkpoint does not fit the network", where=checkpoint.path, wanted=f"{key} {wanted}", found=found, todo=todo
            )
