"""What will become of every tensor of a fusion, decided from names and shapes before any value is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergekit3d.architectures import NetworkSpec, architecture, default_partitions, network_shapes
from mergekit3d.checkpoints import Checkpoint, TaskSpec, open_checkpoint, origin_of
from mergekit3d.errors import InputError, ProblemCollector, RecipeError
from mergekit3d.merging.methods import METHODS, MergeMethod, Parameters, parameters_of
from mergekit3d.merging.partitions import Partitions, assign, check_patterns, unmatched
from mergekit3d.plan.architecture import resolve_network
from mergekit3d.plan.outcomes import ADAPTED, EXPANDED, FUSED, Outcomes, TensorPlan, modalities_of
from mergekit3d.plan.ratios import Ratios, ratios_path, resolve_ratios
from mergekit3d.plan.sources import Source, open_base, open_sources
from mergekit3d.plan.target import task_of_target
from mergekit3d.recipe.load import LoadedRecipe


@dataclass(frozen=True)
class FusionPlan:
    """A fusion, ready to be carried out.

    Args:
        method: how tensors are combined.
        parameters: what the method takes beside tensors and ratios.
        sources: the opened sources.
        base: what the sources' differences are taken from, where the method needs it.
        tensors: what becomes of every tensor, in the order of the first source.
        ratios: mixing ratios by group.
        network: architecture of the output, where known.
        task: task of the output, where known.
        adapted: the checkpoint that ``adapt`` wrote, whose private tensors are carried over.
        seed: of random tensors.
        origin: what the reference source's file held beside its tensors.
        remarks: what a person should know before it is carried out, one line each.
    """

    method: MergeMethod
    parameters: Parameters
    sources: tuple[Source, ...]
    base: Source | None
    tensors: tuple[TensorPlan, ...]
    ratios: Ratios
    network: NetworkSpec | None
    task: TaskSpec | None
    adapted: Checkpoint | None
    seed: int
    origin: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[Checkpoint, ...]:
        """The files whose values are read."""
        sources = self.sources if self.base is None else (*self.sources, self.base)
        files = [file for source in sources for file in (source.checkpoint, source.fisher)]
        return tuple(file for file in (*files, self.adapted) if file is not None)

    def check_steady(self) -> None:
        """Refuse the plan where a file changed since it was opened; see `Checkpoint`."""
        for file in self.inputs:
            file.check_steady()

    @property
    def owners(self) -> tuple[TensorPlan, ...]:
        """The tensors without the further names that some of them have."""
        return tuple(tensor for tensor in self.tensors if tensor.alias_of is None)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every output tensor."""
        return {tensor.entry.name: tensor.entry.shape for tensor in self.tensors}


def plan_fusion(loaded: LoadedRecipe, *, seed: int | None = None, uniform: bool = False, verify: bool = True) -> FusionPlan:
    """Plan a fusion.

    Args:
        loaded: a recipe with sources.
        seed: replaces the recipe's.
        uniform: plan with uniform ratios whatever the recipe says, as the start of an adaptation.
        verify: read every value of the files: seals, NaN and Inf, whether a Fisher diagonal is of these weights. Else names, shapes
            and metadata alone are looked at, and whoever reads the values checks them (`mergekit3d.engine.stream`).

    Raises:
        MergeKit3DError: every problem of the recipe and its checkpoints at once.
    """
    recipe = loaded.recipe
    problems = ProblemCollector()
    method = METHODS.get(recipe.merge.method)
    parameters = problems.attempt(lambda: parameters_of(method, recipe.merge.parameters))
    task = problems.attempt(lambda: None if recipe.target is None else task_of_target(loaded, recipe.target))
    sources = problems.attempt(lambda: open_sources(loaded, with_fisher=method.uses_fisher, verify=verify)) or []
    base = problems.attempt(lambda: open_base(loaded, sources, method, verify=verify))
    problems.raise_if_any()
    if method.sources not in (None, len(sources)):
        wanted = f"{method.sources} for {method.name}"
        raise RecipeError("another number of sources", where="sources", wanted=wanted, found=len(sources))
    reference = next((source for source in sources if task is None and source.name == recipe.merge.private), sources[-1])
    network = resolve_network(loaded.architecture, reference.network, checkpoint=reference.checkpoint, task=task)
    shapes = _target_shapes(sources[0], reference, network)
    partitions = partitions_of(loaded, network, shapes)
    for problem in check_patterns(partitions, shapes):
        problems.add(problem)
    adapted = None if uniform else _open_adapted(loaded, verify=verify)
    output_task = task if task is not None else reference.task
    assigned = assign(partitions, shapes)
    outcomes = Outcomes(recipe.merge, method, sources, base, shapes, assigned, network, output_task, recipe.target is not None, adapted)
    tensors = outcomes.all(problems)
    problems.raise_if_any()
    if not any(tensor.outcome == FUSED for tensor in tensors):
        raise RecipeError("nothing would be fused", where="partitions", todo="let shared name at least one tensor that private does not")
    if recipe.merge.granularity == "kernel":
        _check_kernels(tensors)
    groups = list(dict.fromkeys(tensor.group for tensor in tensors if tensor.group is not None))
    if uniform:
        uniform_row = [1 / len(sources)] * len(sources)
        ratios = Ratios(tuple(source.name for source in sources), recipe.merge.granularity, dict.fromkeys(groups, uniform_row))
    else:
        ratios = resolve_ratios(loaded, groups, normalised=method.normalised)
    assert parameters is not None
    return FusionPlan(
        method=method,
        parameters=parameters,
        sources=tuple(sources),
        base=base,
        tensors=tuple(_checked(tensor, ratios, sources, output_task) for tensor in tensors),
        ratios=ratios,
        network=network,
        task=output_task,
        adapted=adapted,
        seed=recipe.seed if seed is None else seed,
        origin=origin_of(reference.checkpoint),
        remarks=(*_on_unmatched(unmatched(partitions, shapes)), *_on_dtypes(tensors, sources)),
    )


def _on_unmatched(names: Sequence[str]) -> list[str]:
    """A line on the tensors that no pattern names."""
    if not names:
        return []
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return [f"private, since no pattern of partitions names them: {', '.join(names[:4])}{more}"]


def _on_dtypes(tensors: Sequence[TensorPlan], sources: Sequence[Source]) -> list[str]:
    """A line on the fused tensors whose dtype is not the same in all sources."""
    fused = [tensor.entry for tensor in tensors if tensor.outcome in (FUSED, EXPANDED)]
    mixed = [entry for entry in fused if len({source.checkpoint.entries[entry.name].dtype for source in sources}) > 1]
    if not mixed:
        return []
    first = mixed[0]
    found = ", ".join(f"{source.name} {source.checkpoint.entries[first.name].dtype}" for source in sources)
    return [f"dtypes differ in {len(mixed)} tensors ({first.name}: {found}): written as {first.dtype}"]


def _check_kernels(tensors: Sequence[TensorPlan]) -> None:
    """Refuse layers whose weight and bias do not have the same first axis: those of transposed convolutions, where it is the inputs'.

    Raises:
        RecipeError: the first such layer.
    """
    first: dict[str, TensorPlan] = {}
    for tensor in tensors:
        if tensor.group is None:
            continue
        known = first.setdefault(tensor.group, tensor)
        if known.entry.shape[:1] != tensor.entry.shape[:1]:
            found = f"{known.entry.shape[0]} in {known.entry.name}, {tensor.entry.shape[0]} in {tensor.entry.name}"
            todo = "set merge.granularity: layer, or name the layer in partitions.private"
            raise RecipeError(
                "a layer has no ratio a kernel", where="merge.granularity", wanted="one output channel a row", found=found, todo=todo
            )


def _checked(tensor: TensorPlan, ratios: Ratios, sources: Sequence[Source], task: TaskSpec | None) -> TensorPlan:
    """The plan of a tensor with what its ratios add to it: which input channels no source is left for.

    Raises:
        InputError: ratios by kernel of another number than the tensor's output channels.
    """
    if tensor.group is None:
        return tensor
    row = ratios.layers[tensor.group]
    for ratio in row:
        if isinstance(ratio, Sequence) and len(ratio) != tensor.entry.shape[0]:
            wanted = f"{tensor.entry.shape[0]} a source for {tensor.entry.name}"
            raise InputError("the mixing ratios are of another number of kernels", where="merge.ratios", wanted=wanted, found=len(ratio))
    if tensor.outcome != EXPANDED or task is None:
        return tensor
    active = [modality for source, ratio in zip(sources, row, strict=True) if ratio != 0 for modality in modalities_of(source)]
    lost = [modality for source in sources for modality in modalities_of(source) if modality in task.modalities and modality not in active]
    detail = f"{tensor.detail}; also random for {', '.join(dict.fromkeys(lost))}, whose sources have a ratio of 0"
    return replace(tensor, detail=detail) if lost else tensor


def partitions_of(loaded: LoadedRecipe, network: NetworkSpec | None, shapes: Mapping[str, Sequence[int]]) -> Partitions:
    """The patterns of a recipe, or the defaults of its architecture."""
    given = loaded.recipe.partitions
    if given.private is not None:
        return Partitions(private=given.private, shared=given.shared)
    if METHODS.get(loaded.recipe.merge.method).evaluates:
        # What is evaluated as a whole is averaged as a whole: its sources were trained on one task.
        return Partitions(private=(), shared=given.shared)
    return Partitions(private=default_partitions(network, shapes).private, shared=given.shared)


def _target_shapes(first: Source, reference: Source, network: NetworkSpec | None) -> dict[str, tuple[int, ...]]:
    """Shapes of the output, in the order of the first source.

    Raises:
        InputError: the sources' tensors are not those of the network.
    """
    shapes = reference.checkpoint.shapes
    if network is not None:
        described = architecture(network.name)
        expected = network_shapes(network) if described.retarget is None else described.retarget(shapes, network)
        odd = sorted(set(expected) ^ set(shapes))
        if odd:
            found = f"{len(odd)} names differ: {odd[0]}"
            raise InputError("the checkpoint is of another network", where=reference.checkpoint.path, wanted=network.name, found=found)
        shapes = expected
    return {name: shapes[name] for name in first.checkpoint.entries}


def _open_adapted(loaded: LoadedRecipe, *, verify: bool) -> Checkpoint | None:
    """The checkpoint beside the ratios, where the recipe carries private tensors over from it.

    Raises:
        InputError: it is asked for and not there.
    """
    wanted, path = loaded.recipe.merge.private, ratios_path(loaded)
    if wanted not in (None, ADAPTED) or (path is None and wanted is None):
        return None
    checkpoint = (path or loaded.output_path(Path("adapt") / "ratios.json")).with_name("checkpoint.safetensors")
    if wanted is None and not checkpoint.exists():
        return None
    return open_checkpoint(checkpoint, verify=verify)
