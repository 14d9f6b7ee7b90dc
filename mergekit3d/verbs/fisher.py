"""``mergekit3d fisher``: the Fisher diagonal of a checkpoint, as a file beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.architectures import NetworkSpec, architecture, build_network
from mergekit3d.checkpoints import FISHER, Checkpoint, Metadata, TaskSpec, ancestry_of, format_for, load_tensors, open_checkpoint
from mergekit3d.checkpoints.metadata import tool
from mergekit3d.errors import RecipeError, UsageError
from mergekit3d.fisher_file import FLOAT32, SQRT_FP16, FisherResult, read_result, write_fisher
from mergekit3d.fisher_source import Regions, check_network, network_of_source, task_of_source
from mergekit3d.options import DEFAULT_OPTIONS, Options
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.recipe.load import LoadedRecipe, architecture_of, fisher_beside, load_recipe
from mergekit3d.recipe.models import FisherModel, SourceModel
from mergekit3d.storage.atomic import refuse_existing
from mergekit3d.storage.lock import output_lock
from mergekit3d.storage.seal import json_digest

if TYPE_CHECKING:
    from mergekit3d.datasets import Dataset, Subject
    from mergekit3d.datasets.cache import SubjectStore
    from mergekit3d.fisher_run import Snapshots
    from mergekit3d.training.processes import ProcessGroup


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
    regions: Regions = None,
    architecture: str | Mapping[str, Any] | None = None,
    max_subjects: int | None = None,
    subjects_file: Path | str | None = None,
    patch_size: Sequence[int] | None = None,
    batch_size: int = 1,
    dtype: str = "float32",
    snapshot_minutes: float = 10.0,
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> FisherResult:
    """Estimate the Fisher diagonal of a checkpoint on the subjects of a folder or list.

    Started by torchrun, the processes share the subjects, and the first of them reports and writes.

    Args:
        checkpoint: the weights.
        data: folder or list of subjects of the task that they were trained on.
        estimator: sampled (labels drawn from the model's own prediction) or true (the labels in the data).
        draws: draws of the labels a subject, for sampled.
        layout: of the data.
        modalities: input channels by name; needed only where the checkpoint does not say.
        regions: shipped set of regions, for true labels where the checkpoint does not say.
        architecture: the network of a checkpoint that does not say it: a name, or ``{"name": "monai.UNet", ...}`` with its arguments.
        max_subjects: subjects at most, drawn by the seed.
        subjects_file: file of names, one a line: only these subjects.
        patch_size: one patch a subject of this size, its place drawn by the seed, in place of whole volumes.
        batch_size: subjects at once, as far as they follow one another and have one padded size; it changes the result by rounding.
        dtype: of the file: float32, or sqrt-fp16 (scaled square roots in float16, half the size; every command reads both).
        snapshot_minutes: time between snapshots, from which ``resume`` goes on.
        options: device, precision, seed; ``out`` is the file to write.
        reporter: where progress goes.

    Returns:
        Where the diagonal is, and its figures.

    Raises:
        MergeKit3DError: the checkpoint or the data cannot be used.
        Interrupted: by a signal; the state is saved.
    """
    from mergekit3d.datasets import find_dataset
    from mergekit3d.datasets.split import read_names
    from mergekit3d.training.processes import process_group

    if estimator not in ("sampled", "true"):
        raise UsageError("unknown estimator", where="--estimator", wanted="sampled or true", found=estimator)
    if dtype not in (FLOAT32, SQRT_FP16):
        raise UsageError("unknown dtype", where="--dtype", wanted=f"{FLOAT32} or {SQRT_FP16}", found=dtype)
    opened = open_checkpoint(checkpoint)
    out = options.out or fisher_beside(Path(checkpoint))
    format_for(out)
    _refuse(out, options)
    opened.check_finite()
    dataset = find_dataset(data, layout)
    spec = network_of_source(opened, None if architecture is None else architecture_of(architecture))
    task = task_of_source(opened, spec, dataset, modalities, regions, estimator)
    names = None if subjects_file is None else read_names(Path(subjects_file))
    given = {"estimator": estimator, "draws": draws, "max_subjects": max_subjects, "patch_size": patch_size, "batch_size": batch_size}
    settings = FisherModel.model_validate({**given, "dtype": dtype, "snapshot_minutes": snapshot_minutes})
    with process_group() as group:
        return estimate(opened, spec, dataset, task, names, settings, out=out, group=group, options=options, reporter=reporter)


def fisher_sources(
    recipe: Path | str,
    *,
    overrides: Sequence[str] = (),
    allow_outside: Sequence[Path | str] = (),
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> FisherResults:
    """Estimate the Fisher diagonal of every source of a recipe that tells its target, on the subjects that trained it.

    Args:
        recipe: YAML file with sources.
        overrides: ``key.path=value`` each.
        allow_outside: folders beside the recipe's own, and the output folder, that the recipe may write to.
        options: device, precision, seed, output folder.
        reporter: where progress goes.

    Raises:
        MergeKit3DError: the recipe has no such source, or a checkpoint or data set cannot be used.
    """
    from mergekit3d.training.processes import process_group

    loaded = load_recipe(recipe, overrides=overrides, allow_outside=allow_outside, out=options.out)
    sources = [source for source in loaded.recipe.sources if source.target is not None]
    if not sources:
        raise RecipeError(
            "no source tells its data", where=loaded.path, wanted="sources with a target", todo="or run: mergekit3d fisher CKPT --data DIR"
        )
    with process_group() as group:
        return FisherResults(tuple(fisher_of_source(loaded, source, group=group, options=options, reporter=reporter) for source in sources))


def fisher_of_source(
    loaded: LoadedRecipe, source: SourceModel, *, group: ProcessGroup | None = None, options: Options, reporter: Reporter = SILENT
) -> FisherResult:
    """Estimate the Fisher diagonal of one source of a recipe, on the subjects that trained it."""
    from mergekit3d.plan.target import open_cohort

    out = loaded.fisher_output(source)
    _refuse(out, options)
    cohort = open_cohort(loaded, source.target, key=f"sources.{source.name}.target")
    opened = open_checkpoint(loaded.checkpoint_path(source))
    return estimate(
        opened,
        network_of_source(opened, loaded.architecture),
        cohort.dataset,
        cohort.task,
        cohort.split.train,
        loaded.recipe.fisher,
        out=out,
        group=group,
        options=options,
        reporter=reporter,
    )


def estimate(
    checkpoint: Checkpoint,
    spec: NetworkSpec,
    dataset: Dataset,
    task: TaskSpec,
    names: Sequence[str] | None,
    settings: FisherModel,
    *,
    out: Path,
    group: ProcessGroup | None = None,
    options: Options,
    reporter: Reporter,
) -> FisherResult:
    """Estimate a Fisher diagonal and write it.

    Args:
        checkpoint: the weights.
        spec: their network.
        dataset: where the subjects are.
        task: modalities and outputs of the network.
        names: only these subjects; None for all.
        settings: estimator, draws, subjects, patch, subjects at once.
        out: the file to write.
        group: the processes that share the subjects; None: this one alone.
        options: device, precision, seed, resume.
        reporter: where progress goes.

    Raises:
        MergeKit3DError: the network is another one, or the subjects cannot be used.
        Interrupted: by a signal; the state is saved.
    """
    from mergekit3d.fisher_estimation import uninformed_biases
    from mergekit3d.fisher_run import Estimation, Snapshots, accumulate
    from mergekit3d.training.devices import resolve_runtime, slow_precision
    from mergekit3d.training.processes import ALONE

    group = ALONE if group is None else group
    reporter = reporter if group.is_first else SILENT
    check_network(spec, checkpoint, task)
    runtime = resolve_runtime(group.device(options.device), options.precision)
    if (slow := slow_precision(runtime)) is not None:
        reporter.warn(slow)
    store, seed = _store(dataset, task, names, settings, options, reporter), options.seed or 0
    store.note_files()
    digests = group.share(lambda: _digests(store))
    decisive = settings.decisive(without=frozenset({"dtype"}))
    identity = json_digest([decisive, seed, checkpoint.digest, spec.as_json(), task.as_json(), list(digests.items()), runtime.precision])
    snapshots = Snapshots(out, identity, group)
    with output_lock(out.parent) if group.is_first else nullcontext():
        if group.share(lambda: _is_done(snapshots, settings.dtype, options)):
            reporter.info(f"{out.name}: done before")
            return group.share(lambda: read_result(out))
        network = build_network(spec)
        network.load_state_dict(load_tensors(checkpoint))
        network.to(runtime.device).eval()
        multiple_of = architecture(spec.name).multiple_of(spec)
        estimation = Estimation(network, store, task.exclusive, settings, multiple_of, seed, runtime)
        sums = accumulate(estimation, snapshots, resume=options.resume, force=options.force, reporter=reporter)
        if group.is_first:
            found = {"identity": identity, "checkpoint": checkpoint.digest, "data": json_digest(sorted(digests.values())), "seed": seed}
            small = (1, spec.in_channels, 2 * multiple_of, multiple_of, multiple_of)
            shapes = chain([small], estimation.image_shapes())
            zero = uninformed_biases(network.cpu(), architecture(spec.name).zero_information, shapes)
            write_fisher(out, sums, zero, _metadata(checkpoint, spec, task, settings, found), dtype=settings.dtype)
            snapshots.remove()
        group.wait()
    return group.share(lambda: read_result(out))


def _metadata(checkpoint: Checkpoint, spec: NetworkSpec, task: TaskSpec, settings: FisherModel, found: Mapping[str, Any]) -> Metadata:
    """What the file says of what it was made from."""
    how = {
        "draws": settings.draws if settings.estimator == "sampled" else None,
        "patch_size": None if settings.patch_size is None else list(settings.patch_size),
    }
    method = f"fisher-{settings.estimator}"
    return Metadata(
        kind=FISHER,
        architecture=spec.as_json(),
        task=task,
        method=method,
        provenance={**found, **how},
        tool=tool(),
        ancestry=ancestry_of([checkpoint]),
    )


def _refuse(out: Path, options: Options) -> None:
    """Refuse to write over an output that is there, unless that is asked for or it may be this run's own."""
    refuse_existing(out, force=options.force or options.resume)


def _is_done(snapshots: Snapshots, dtype: str, options: Options) -> bool:
    """Whether ``--resume`` finds the work complete: a queue may start a job once more that was done already.

    Raises:
        UsageError: the output comes from other settings, weights or subjects.
    """
    if not options.resume or snapshots.found() or not snapshots.out.exists():
        return False
    metadata = open_checkpoint(snapshots.out).metadata
    same_run = metadata is not None and metadata.provenance.get("identity") == snapshots.identity
    if metadata is not None and same_run and bool(metadata.root_scales) == (dtype == SQRT_FP16):
        return True
    if options.force:
        return False
    found, todo = "a file of other settings, weights or subjects", "pass --force to replace it, or another --out"
    raise UsageError("nothing to resume", where=snapshots.out, found=found, todo=todo)


def _store(
    dataset: Dataset, task: TaskSpec, names: Sequence[str] | None, settings: FisherModel, options: Options, reporter: Reporter
) -> SubjectStore:
    from mergekit3d.datasets import select
    from mergekit3d.datasets.cache import SubjectStore
    from mergekit3d.datasets.split import refuse_unknown, shuffled

    with_target = settings.estimator == "true" or settings.patch_size is not None
    subjects = select(dataset, task.modalities, need_labels=with_target)
    refuse_unknown(names or (), [subject.name for subject in subjects])
    wanted = [subject.name for subject in subjects] if names is None else list(names)
    if settings.max_subjects is not None:
        wanted = shuffled(wanted, options.seed or 0)[: settings.max_subjects]
    numbered: dict[int, Subject] = {subject.number: subject for subject in subjects if subject.name in wanted}
    # Each subject is seen once: nothing is worth keeping.
    return SubjectStore(numbered, task, vocabulary=dataset.vocabulary, with_target=with_target, capacity_bytes=0, reporter=reporter)


def _digests(store: SubjectStore) -> dict[int, list[str]]:
    """Digests of every subject's files, without their names."""
    from mergekit3d.datasets.reading import image_identities
    from mergekit3d.storage.seal import file_digest

    def of(subject: Subject) -> list[str]:
        labels = [file_digest(subject.label)] if store.with_target and subject.label is not None else []
        return [*image_identities(subject, list(subject.images), file_digest), *labels]

    return {number: of(store.subjects[number]) for number in store.numbers}
