"""``mergekit3d fisher``: the Fisher diagonal of a checkpoint, as a file beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.architectures import NetworkSpec, architecture, build_network, check_shapes, network_of
from mergekit3d.checkpoints import FISHER, Checkpoint, Metadata, TaskSpec, load_tensors, open_checkpoint, save_tensors
from mergekit3d.checkpoints.metadata import tool
from mergekit3d.errors import InputError, RecipeError, UsageError
from mergekit3d.options import DEFAULT_OPTIONS, Options
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.recipe.load import LoadedRecipe, fisher_beside, load_recipe
from mergekit3d.recipe.models import FisherModel, SourceModel
from mergekit3d.storage.atomic import refuse_existing
from mergekit3d.storage.lock import output_lock

if TYPE_CHECKING:
    from mergekit3d.datasets import Dataset, Subject
    from mergekit3d.datasets.cache import SubjectStore
    from mergekit3d.fisher_estimation import FisherSums

Regions = str | Mapping[str, tuple[int, ...]] | None
CHANNEL_MODALITIES = {1: ("t1",), 2: ("t1", "t2"), 4: ("t1", "t1ce", "t2", "flair")}
"""What a bare checkpoint of so many inputs was most likely trained on, if the data set has these modalities."""


@dataclass(frozen=True)
class FisherResult:
    """What an estimation wrote.

    Args:
        out: the Fisher diagonal.
        subjects: number of subjects.
        voxels: number of voxels in the likelihoods.
        trace: sum of the diagonal.
        trace_by_layer: sum over each layer.
        zero: parameters whose information is exactly 0.
        standard_error: of the trace, from its spread over subjects; None for one subject.
        standard_error_by_layer: of each layer's trace; empty for one subject.
    """

    out: Path
    subjects: int
    voxels: int
    trace: float
    trace_by_layer: Mapping[str, float]
    zero: Sequence[str]
    standard_error: float | None = None
    standard_error_by_layer: Mapping[str, float] = field(default_factory=dict)

    @property
    def relative_error(self) -> float | None:
        """The standard error of the trace beside the trace."""
        return None if self.standard_error is None else _relative(self.standard_error, self.trace)

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        relative = {layer: _relative(error, self.trace_by_layer[layer]) for layer, error in self.standard_error_by_layer.items()}
        return {
            **vars(self),
            "out": str(self.out),
            "trace_by_layer": dict(self.trace_by_layer),
            "zero": list(self.zero),
            "relative_error": self.relative_error,
            "standard_error_by_layer": dict(self.standard_error_by_layer),
            "relative_error_by_layer": relative,
        }

    def lines(self) -> list[str]:
        """Lines for people."""
        error = "" if self.relative_error is None else f" +- {100 * self.relative_error:.2g} %"
        subjects = f"{self.subjects} subject{'s' if self.subjects > 1 else ''}"
        zero = f", {len(self.zero)} biases before a norm have none" if self.zero else ""
        return [f"{self.out}: trace {self.trace:.4g}{error} over {subjects} and {self.voxels} voxels{zero}"]


def _relative(error: float, trace: float) -> float | None:
    return error / trace if trace > 0 else None


@dataclass(frozen=True)
class FisherResults:
    """What the estimations of several sources wrote."""

    sources: tuple[FisherResult, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"sources": [source.as_json() for source in self.sources]}

    def lines(self) -> list[str]:
        """Lines for people."""
        return [line for source in self.sources for line in source.lines()]


def fisher(
    checkpoint: Path | str,
    data: Path | str,
    *,
    estimator: str = "sampled",
    draws: int = 4,
    layout: str = "auto",
    modalities: Sequence[str] | None = None,
    regions: str | Mapping[str, tuple[int, ...]] | None = None,
    max_subjects: int | None = None,
    subjects_file: Path | None = None,
    patch_size: Sequence[int] | None = None,
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> FisherResult:
    """Estimate the Fisher diagonal of a checkpoint on a folder of subjects.

    Args:
        checkpoint: the weights.
        data: folder of subjects of the task that they were trained on.
        estimator: sampled (labels drawn from the model's own prediction) or true (the labels in the data).
        draws: draws of the labels a subject, for sampled.
        layout: of the data.
        modalities: input channels by name; needed only where the checkpoint does not say.
        regions: shipped set of regions, for true labels where the checkpoint does not say.
        max_subjects: subjects at most, drawn by the seed.
        subjects_file: file of names, one a line: only these subjects.
        patch_size: one patch a subject of this size, its place drawn by the seed, in place of whole volumes.
        options: device, precision, seed; ``out`` is the file to write.
        reporter: where progress goes.

    Returns:
        Where the diagonal is, and its figures.

    Raises:
        MergeKit3DError: the checkpoint or the data cannot be used.
    """
    from mergekit3d.datasets import find_dataset
    from mergekit3d.datasets.split import read_names

    if estimator not in ("sampled", "true"):
        raise UsageError("unknown estimator", where="--estimator", wanted="sampled or true", found=estimator)
    out = options.out or fisher_beside(Path(checkpoint))
    refuse_existing(out, force=options.force)
    opened = open_checkpoint(checkpoint)
    opened.check_finite()
    dataset = find_dataset(data, layout)
    task = _task(opened, dataset, modalities, regions, estimator)
    names = None if subjects_file is None else read_names(Path(subjects_file))
    settings = FisherModel.model_validate({"estimator": estimator, "draws": draws, "max_subjects": max_subjects, "patch_size": patch_size})
    return estimate(opened, dataset, task, names, settings, out=out, options=options, reporter=reporter)


def fisher_sources(
    recipe: Path | str,
    *,
    overrides: Sequence[str] = (),
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> FisherResults:
    """Estimate the Fisher diagonal of every source of a recipe that tells its target, on the subjects that trained it.

    Raises:
        MergeKit3DError: the recipe has no such source, or a checkpoint or data set cannot be used.
    """
    loaded = load_recipe(recipe, overrides=overrides, out=options.out)
    sources = [source for source in loaded.recipe.sources if source.target is not None]
    if not sources:
        raise RecipeError(
            "no source tells its data", where=loaded.path, wanted="sources with a target", todo="or run: mergekit3d fisher CKPT --data DIR"
        )
    return FisherResults(tuple(fisher_of_source(loaded, source, options=options, reporter=reporter) for source in sources))


def fisher_of_source(loaded: LoadedRecipe, source: SourceModel, *, options: Options, reporter: Reporter = SILENT) -> FisherResult:
    """Estimate the Fisher diagonal of one source of a recipe, on the subjects that trained it."""
    from mergekit3d.plan.target import open_cohort

    out = loaded.fisher_path(source)
    refuse_existing(out, force=options.force)
    cohort = open_cohort(loaded, source.target, key=f"sources.{source.name}.target")
    opened = open_checkpoint(loaded.checkpoint_path(source))
    return estimate(
        opened, cohort.dataset, cohort.task, cohort.split.train, loaded.recipe.fisher, out=out, options=options, reporter=reporter
    )


def estimate(
    checkpoint: Checkpoint,
    dataset: Dataset,
    task: TaskSpec,
    names: Sequence[str] | None,
    settings: FisherModel,
    *,
    out: Path,
    options: Options,
    reporter: Reporter,
) -> FisherResult:
    """Estimate a Fisher diagonal and write it.

    Args:
        checkpoint: the weights.
        dataset: where the subjects are.
        task: modalities and outputs of the network.
        names: only these subjects; None for all.
        settings: estimator, draws, subjects, patch.
        out: the file to write.
        options: device, precision, seed.
        reporter: where progress goes.

    Raises:
        MergeKit3DError: the network is not known, or the subjects cannot be used.
    """
    from mergekit3d.fisher_estimation import WHOLE, silence_uninformed, uninformed_biases

    spec = _network(checkpoint)
    check_shapes(spec, checkpoint.shapes, checkpoint.path)
    if spec.in_channels != len(task.modalities):
        found = f"{len(task.modalities)} modalities ({', '.join(task.modalities)})"
        raise InputError(
            "modalities and network do not agree",
            where=checkpoint.path,
            wanted=f"{spec.in_channels}",
            found=found,
            todo="pass --modalities",
        )
    network = build_network(spec)
    network.load_state_dict(load_tensors(checkpoint))
    network.eval()
    multiple_of = architecture(spec.name).multiple_of(spec)
    store = _store(dataset, task, names, settings, options, reporter)
    with output_lock(out.parent):
        sums = _sum(network, store, task, settings, multiple_of, options, reporter)
        probe = (1, spec.in_channels, 2 * multiple_of, multiple_of, multiple_of)
        zero = uninformed_biases(network.cpu(), architecture(spec.name).zero_information, probe)
        diagonal = silence_uninformed({name: values.cpu() for name, values in sums.diagonal().items()}, zero)
        by_layer = _traces(diagonal)
        metadata = Metadata(
            kind=FISHER,
            architecture=spec.as_json(),
            task=task,
            method=f"fisher-{settings.estimator}",
            provenance={
                "checkpoint": checkpoint.digest,
                "data": _data_digest(store),
                "subjects": sums.subjects,
                "voxels": sums.voxels,
                "draws": settings.draws if settings.estimator == "sampled" else None,
                "patch_size": None if settings.patch_size is None else list(settings.patch_size),
                "seed": options.seed or 0,
                "zero": zero,
                **_figures(sums, by_layer),
            },
            tool=tool(),
        )
        save_tensors(out, diagonal, metadata)
    errors = sums.standard_errors()
    whole = errors.pop(WHOLE, None)
    return FisherResult(out, sums.subjects, sums.voxels, math.fsum(by_layer.values()), by_layer, zero, whole, errors)


def _traces(diagonal: Mapping[str, Any]) -> dict[str, float]:
    """The trace of every layer."""
    from mergekit3d.merging.partitions import layer_of

    by_layer: dict[str, float] = {}
    for name, values in diagonal.items():
        by_layer[layer_of(name)] = by_layer.get(layer_of(name), 0.0) + float(values.double().sum())
    return by_layer


def _figures(sums: FisherSums, by_layer: Mapping[str, float]) -> dict[str, Any]:
    """Traces and their standard errors, rounded, for people who have the file alone."""
    from mergekit3d.fisher_estimation import WHOLE

    errors = sums.standard_errors()

    def rounded(layer: str, trace: float) -> list[float | None]:
        return [float(f"{trace:.4g}"), float(f"{errors[layer]:.3g}") if layer in errors else None]

    return {
        "trace": rounded(WHOLE, math.fsum(by_layer.values())),
        "trace_by_layer": {layer: rounded(layer, trace) for layer, trace in by_layer.items()},
    }


def _sum(
    network: Any, store: SubjectStore, task: TaskSpec, settings: FisherModel, multiple_of: int, options: Options, reporter: Reporter
) -> FisherSums:
    import torch

    from mergekit3d.architectures.slabs import fast_cpu_convolutions
    from mergekit3d.datasets.prefetch import prefetch
    from mergekit3d.datasets.sampling import Batch, epoch_batches, whole_volume_batches
    from mergekit3d.fisher_estimation import Example, add_subject, empty_sums
    from mergekit3d.training.devices import resolve_runtime

    runtime = resolve_runtime(options.device, options.precision)
    network.to(runtime.device)
    sums, seed, patch = empty_sums(network), options.seed or 0, settings.patch_size

    def batches() -> Any:
        if patch is None:
            return whole_volume_batches(store, store.numbers, multiple_of=multiple_of)
        return (
            batch
            for number in store.numbers
            for batch in epoch_batches(store, [number], batch_size=1, patch_size=patch, multiple_of=multiple_of, seed=seed, epoch=number)
        )

    with fast_cpu_convolutions(network), reporter.task("fisher", len(store.numbers)) as progress:
        for batch in prefetch(batches()):
            assert isinstance(batch, Batch)
            (number,), (size,) = batch.numbers, batch.shapes
            labels = batch.targets.to(runtime.device) if settings.estimator == "true" and batch.targets is not None else None
            example = Example(number, batch.images.to(runtime.device), labels, size)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            add_subject(
                sums, network, example, exclusive=task.exclusive, draws=settings.draws, generator=generator, autocast=runtime.autocast
            )
            progress.advance(1, message=f"subject {number}")
    return sums


def _store(
    dataset: Dataset, task: TaskSpec, names: Sequence[str] | None, settings: FisherModel, options: Options, reporter: Reporter
) -> SubjectStore:
    from mergekit3d.datasets import select
    from mergekit3d.datasets.cache import SubjectStore
    from mergekit3d.datasets.split import shuffled

    with_target = settings.estimator == "true" or settings.patch_size is not None
    subjects = select(dataset, task.modalities, need_labels=with_target)
    unknown = sorted(set(names or ()) - {subject.name for subject in subjects})
    if unknown:
        raise InputError("unknown subjects", found=", ".join(unknown[:4]), todo=f"the data set has {len(subjects)} others")
    wanted = [subject.name for subject in subjects] if names is None else list(names)
    if settings.max_subjects is not None:
        wanted = shuffled(wanted, options.seed or 0)[: settings.max_subjects]
    numbered: dict[int, Subject] = {number: subject for number, subject in enumerate(subjects, 1) if subject.name in wanted}
    # Each subject is seen once: nothing is worth keeping.
    return SubjectStore(numbered, task, vocabulary=dataset.vocabulary, with_target=with_target, capacity_bytes=0, reporter=reporter)


def _data_digest(store: SubjectStore) -> str:
    """Digest of the subjects' files, without their names."""
    from mergekit3d.storage.seal import file_digest, json_digest

    def of(subject: Subject) -> list[str]:
        files = [*subject.images.values(), *([subject.label] if store.with_target and subject.label is not None else [])]
        return [file_digest(path) for path in files]

    return json_digest(sorted(of(subject) for subject in store.subjects.values()))


def _task(checkpoint: Checkpoint, dataset: Dataset, modalities: Sequence[str] | None, regions: Regions, estimator: str) -> TaskSpec:
    """The task of a checkpoint: what it says, else what the flags and the data tell."""
    from mergekit3d.datasets.labels import output_set
    from mergekit3d.datasets.subject import canonical_modality

    if checkpoint.metadata is not None and checkpoint.metadata.task is not None and modalities is None and regions is None:
        return checkpoint.metadata.task
    spec = _network(checkpoint)
    known = sorted({modality for subject in dataset.subjects for modality in subject.images})
    chosen = (
        tuple(map(canonical_modality, modalities)) if modalities is not None else _guess_modalities(checkpoint, spec.in_channels, known)
    )
    if regions is None:
        if estimator == "true":
            raise UsageError("the checkpoint does not say its regions", where=checkpoint.path, todo="pass --regions, for example hcp-1-7")
        outputs: dict[str, tuple[int, ...]] = {f"output-{channel}": (channel,) for channel in range(1, spec.out_channels + 1)}
    else:
        outputs = output_set(regions) if isinstance(regions, str) else dict(regions)
    if len(outputs) != spec.out_channels:
        raise InputError(
            "regions and network do not agree",
            where=checkpoint.path,
            wanted=f"{spec.out_channels} outputs",
            found=f"{len(outputs)} regions",
        )
    return TaskSpec(chosen, outputs)


def _network(checkpoint: Checkpoint) -> NetworkSpec:
    spec = network_of(checkpoint)
    if spec is None:
        todo = "use a checkpoint of mergekit3d, which says its architecture"
        raise InputError("the network cannot be told from the tensors", where=checkpoint.path, todo=todo)
    return spec


def _guess_modalities(checkpoint: Checkpoint, inputs: int, known: Sequence[str]) -> tuple[str, ...]:
    """The modalities of a bare checkpoint, where data and number of inputs leave one answer."""
    guess = CHANNEL_MODALITIES.get(inputs, ())
    if len(known) == inputs and set(guess) == set(known):
        return guess
    raise UsageError(
        "the checkpoint does not say its modalities",
        where=checkpoint.path,
        wanted=f"{inputs} of {', '.join(known)}",
        todo="pass --modalities in the order of its input channels",
    )
