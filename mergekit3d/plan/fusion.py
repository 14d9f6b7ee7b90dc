"""What will become of every tensor of a fusion, decided from names and shapes before any value is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mergekit3d.architectures import NetworkSpec, architecture, channels_of, check_arguments, network_shapes, norms_and_last_layer
from mergekit3d.checkpoints import Checkpoint, TaskSpec, TensorEntry, open_checkpoint
from mergekit3d.errors import InputError, MergeKit3DError, ProblemCollector, RecipeError
from mergekit3d.merging.methods import METHODS, MergeMethod
from mergekit3d.merging.partitions import BUFFERS, SHARED, Partitions, assign, check_patterns, ratio_groups
from mergekit3d.plan.ratios import Ratios, ratios_path, resolve_ratios
from mergekit3d.plan.sources import Source, open_sources
from mergekit3d.plan.target import task_of_target
from mergekit3d.recipe.load import LoadedRecipe
from mergekit3d.recipe.models import ArchitectureModel
from mergekit3d.registry import did_you_mean

FUSED, COPIED, EXPANDED, RANDOM, ZERO = "fused", "copied", "expanded", "random", "zero"
ADAPTED = "adapted"


@dataclass(frozen=True)
class TensorPlan:
    """What becomes of one tensor.

    Args:
        entry: name, dtype and shape in the output.
        partition: shared or private.
        outcome: fused, copied, expanded (input channels matched by modality), random or zero.
        group: whose ratios it uses; None where it is not fused.
        origin: where a copied tensor comes from: a source's name or ``adapted``.
        detail: one line for the report where there is something to explain.
    """

    entry: TensorEntry
    partition: str
    outcome: str
    group: str | None = None
    origin: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class FusionPlan:
    """A fusion, ready to be carried out.

    Args:
        method: how tensors are combined.
        sources: the opened sources.
        tensors: what becomes of every tensor, in the order of the first source.
        ratios: mixing ratios by group.
        network: architecture of the output, where known.
        task: task of the output, where known.
        adapted: the checkpoint that ``adapt`` wrote, whose private tensors are carried over.
        seed: of random tensors.
    """

    method: MergeMethod
    sources: tuple[Source, ...]
    tensors: tuple[TensorPlan, ...]
    ratios: Ratios
    network: NetworkSpec | None
    task: TaskSpec | None
    adapted: Checkpoint | None
    seed: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every output tensor."""
        return {tensor.entry.name: tensor.entry.shape for tensor in self.tensors}


def plan_fusion(loaded: LoadedRecipe, *, seed: int | None = None, uniform: bool = False) -> FusionPlan:
    """Plan a fusion.

    Args:
        loaded: a recipe with sources.
        seed: replaces the recipe's.
        uniform: plan with uniform ratios whatever the recipe says, as the start of an adaptation.

    Raises:
        MergeKit3DError: every problem of the recipe and its checkpoints at once.
    """
    recipe = loaded.recipe
    problems = ProblemCollector()
    method = METHODS.get(recipe.merge.method)
    task, sources = None, []
    try:
        task = None if recipe.target is None else task_of_target(loaded, recipe.target)
    except MergeKit3DError as error:
        problems.add(error)
    try:
        sources = open_sources(loaded, with_fisher=method.uses_fisher)
    except MergeKit3DError as error:
        problems.add(error)
    problems.raise_if_any()
    reference = next((source for source in sources if task is None and source.name == recipe.merge.private), sources[-1])
    network = _target_network(loaded, reference, task)
    shapes = _target_shapes(sources[0], reference, network)
    partitions = partitions_of(loaded, network, shapes)
    for problem in check_patterns(partitions, shapes):
        problems.add(problem)
    adapted = None if uniform else _open_adapted(loaded)
    output_task = task if task is not None else reference.task
    tensors = _Outcomes(loaded, sources, shapes, assign(partitions, shapes), network, output_task, adapted).all(problems)
    problems.raise_if_any()
    if not any(tensor.outcome == FUSED for tensor in tensors):
        raise RecipeError("nothing would be fused", where="partitions", todo="let shared name at least one tensor that private does not")
    groups = list(dict.fromkeys(tensor.group for tensor in tensors if tensor.group is not None))
    if uniform:
        ratios = Ratios(
            tuple(source.name for source in sources),
            recipe.merge.granularity,
            {group: [1 / len(sources)] * len(sources) for group in groups},
        )
    else:
        ratios = resolve_ratios(loaded, groups)
    tensors = tuple(_checked(tensor, ratios, sources, output_task) for tensor in tensors)
    chosen = recipe.seed if seed is None else seed
    return FusionPlan(method, tuple(sources), tensors, ratios, network, output_task, adapted, chosen)


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
    active = [modality for source, ratio in zip(sources, row, strict=True) if ratio != 0 for modality in _modalities(source)]
    lost = [modality for source in sources for modality in _modalities(source) if modality in task.modalities and modality not in active]
    detail = f"{tensor.detail}; also random for {', '.join(dict.fromkeys(lost))}, whose sources have a ratio of 0"
    return replace(tensor, detail=detail) if lost else tensor


def _modalities(source: Source) -> tuple[str, ...]:
    return () if source.task is None else source.task.modalities


def partitions_of(loaded: LoadedRecipe, network: NetworkSpec | None, shapes: Mapping[str, Sequence[int]]) -> Partitions:
    """The patterns of a recipe, or the defaults of its architecture."""
    given = loaded.recipe.partitions
    if given.private is not None:
        return Partitions(private=given.private, shared=given.shared)
    default = norms_and_last_layer(shapes) if network is None else architecture(network.name).partitions(shapes)
    return Partitions(private=default.private, shared=given.shared)


def _target_network(loaded: LoadedRecipe, reference: Source, task: TaskSpec | None) -> NetworkSpec | None:
    """The network of the output: the reference source's, with inputs and outputs of the target."""
    known, given = reference.network, loaded.architecture
    if given is not None and known is not None and known.name != given.name:
        todo = "correct architecture in the recipe"
        raise InputError(
            "the checkpoint is of another network", where=reference.checkpoint.path, wanted=given.name, found=known.name, todo=todo
        )
    if given is not None:
        check_arguments(given.name, given.arguments)
        _check_told(reference, given)
        inputs, outputs = (known.in_channels, known.out_channels) if known is not None else channels_of(reference.checkpoint.shapes)
        arguments = {**({} if known is None else known.arguments), **given.arguments}
        known = NetworkSpec(given.name, inputs, outputs, arguments)
    if known is None or task is None:
        return known
    return NetworkSpec(known.name, len(task.modalities), task.channels, known.arguments)


def _check_told(reference: Source, given: ArchitectureModel) -> None:
    """Refuse an architecture whose arguments are not those that the tensors tell."""
    described = architecture(given.name)
    if not described.decisive:
        return
    told = described.infer(reference.checkpoint.shapes)
    if told is None:
        raise InputError("the checkpoint is of another network", where=reference.checkpoint.path, wanted=given.name, found="other tensors")
    for key in described.decisive:
        wanted, found = given.arguments.get(key, told.arguments[key]), told.arguments[key]
        if wanted != found:
            todo = "correct architecture in the recipe, or leave it out"
            raise InputError(
                "the checkpoint does not fit the network", where=reference.checkpoint.path, wanted=f"{key} {wanted}", found=found, todo=todo
            )


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


def _open_adapted(loaded: LoadedRecipe) -> Checkpoint | None:
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
    return open_checkpoint(checkpoint)


@dataclass(frozen=True)
class _Outcomes:
    """Decides the outcome of every tensor."""

    loaded: LoadedRecipe
    sources: Sequence[Source]
    shapes: Mapping[str, tuple[int, ...]]
    partition_of: Mapping[str, str]
    network: NetworkSpec | None
    task: TaskSpec | None
    adapted: Checkpoint | None

    def all(self, problems: ProblemCollector) -> tuple[TensorPlan, ...]:
        """The plan of every tensor, in the order of the first source."""
        private = self.loaded.recipe.merge.private
        names = [source.name for source in self.sources]
        if private is not None and private not in (*names, ADAPTED, RANDOM, ZERO):
            todo = did_you_mean(private, [*names, ADAPTED, RANDOM, ZERO])
            problems.add(RecipeError("unknown origin of the private tensors", where="merge.private", found=private, todo=todo))
        groups = ratio_groups(self.shapes, self.loaded.recipe.merge.granularity)
        input_weight = None if self.network is None else architecture(self.network.name).input_weight(self.shapes)
        return tuple(self._one(name, groups[name], name == input_weight) for name in self.shapes)

    def _one(self, name: str, group: str, is_input: bool) -> TensorPlan:
        entry = TensorEntry(name, self._dtype(name), self.shapes[name])
        if self.partition_of[name] != SHARED:
            return self._private(entry)
        found = [source.checkpoint.entries[name] for source in self.sources]
        fits = all(other.shape == entry.shape for other in found)
        if not entry.is_float or (fits and name.rpartition(".")[2] in BUFFERS):
            kind = "running statistics have no Fisher information" if entry.is_float else "an integer buffer is never averaged"
            return TensorPlan(entry, SHARED, COPIED, origin=self.sources[-1].name, detail=f"{kind}; taken from the last source")
        if fits and not (is_input and self._modalities_differ()):
            return TensorPlan(entry, SHARED, FUSED, group=group)
        shapes = f"{' / '.join(str(list(other.shape)) for other in found)} in the sources, {list(entry.shape)} in the target"
        if is_input and self.task is not None and self.loaded.recipe.merge.input_channels == "match" and self._channels_known(entry):
            missing = [modality for modality in self.task.modalities if not any(modality in _modalities(source) for source in self.sources)]
            detail = f"{shapes}; input channels matched by modality" + (f", random for {', '.join(missing)}" if missing else "")
            return self._adapted(TensorPlan(entry, SHARED, EXPANDED, group=group, detail=detail))
        return self._adapted(TensorPlan(entry, SHARED, RANDOM, detail=f"{shapes}; other modalities" if fits else shapes))

    def _modalities_differ(self) -> bool:
        """Whether a channel of the first convolution is another modality in a source than in the target: names count, not positions."""
        wanted = None if self.task is None else self.task.modalities
        return wanted is not None and any(source.task is not None and source.task.modalities != wanted for source in self.sources)

    def _channels_known(self, entry: TensorEntry) -> bool:
        """Whether every source says which modality each of its channels is, and differs from the target in their number alone."""

        def known(source: Source) -> bool:
            shape, wanted = source.checkpoint.shapes[entry.name], entry.shape
            fits = len(shape) == len(wanted) and (shape[0], *shape[2:]) == (wanted[0], *wanted[2:])
            return fits and source.task is not None and shape[1] == len(source.task.modalities)

        return all(map(known, self.sources))

    def _private(self, entry: TensorEntry) -> TensorPlan:
        wanted = self.loaded.recipe.merge.private
        if wanted is None and self.loaded.recipe.target is None:
            wanted = self.sources[-1].name
        if wanted == ZERO:
            return TensorPlan(entry, "private", ZERO)
        for source in self.sources:
            if source.name == wanted:
                shape = source.checkpoint.shapes[entry.name]
                if shape == entry.shape:
                    return TensorPlan(entry, "private", COPIED, origin=source.name)
                return TensorPlan(entry, "private", RANDOM, detail=f"{list(shape)} in {source.name}, {list(entry.shape)} in the target")
        return self._adapted(TensorPlan(entry, "private", RANDOM))

    def _adapted(self, otherwise: TensorPlan) -> TensorPlan:
        """What is trained beside the ratios is carried over from the adaptation, where there was one."""
        entry = otherwise.entry
        if self.adapted is not None and self.adapted.shapes.get(entry.name) == entry.shape:
            return TensorPlan(entry, otherwise.partition, COPIED, origin=ADAPTED, detail=otherwise.detail)
        return otherwise

    def _dtype(self, name: str) -> str:
        dtypes = {source.checkpoint.entries[name].dtype for source in self.sources}
        return dtypes.pop() if len(dtypes) == 1 else "F32"
