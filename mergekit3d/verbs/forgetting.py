"""``mergekit3d forgetting``: what merged and trained networks still know of the sources' tasks (Table 4 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.architectures import NetworkSpec, architecture
from mergekit3d.checkpoints import Checkpoint, check_weights, open_checkpoint
from mergekit3d.errors import InputError, MergeKit3DError, ProblemCollector, UsageError
from mergekit3d.forgetting_matrix import (
    CSV,
    JSON,
    PICTURE,
    Builder,
    Forgetting,
    measured_forgetting,
    write_forgetting,
)
from mergekit3d.merging.partitions import SHARED, Partitions, assign, check_patterns
from mergekit3d.options import DEFAULT_OPTIONS, Options
from mergekit3d.plan.fusion import partitions_of
from mergekit3d.plan.outcomes import modalities_of
from mergekit3d.plan.own_tasks import OwnTask, own_tasks, sources_of, tasks_on, with_tasks
from mergekit3d.plan.sources import Source, open_sources
from mergekit3d.plan.transplant import transplanted
from mergekit3d.prediction import inference, inference_of
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.recipe import LoadedRecipe, load_recipe
from mergekit3d.storage.atomic import refuse_existing
from mergekit3d.storage.lock import output_lock

if TYPE_CHECKING:
    from torch import nn

FOLDER = "forgetting"


@dataclass(frozen=True)
class ForgettingResult:
    """What the networks know.

    Args:
        out: folder of forgetting.json, forgetting.csv and forgetting.png.
        matrix: mean Dice of every network on every source's task.
    """

    out: Path
    matrix: Forgetting

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``; what is undefined is None."""
        return {
            "out": str(self.out),
            **{key: str(self.out / name) for key, name in (("table", JSON), ("rows", CSV), ("picture", PICTURE))},
            **self.matrix.as_json(),
        }

    def __rich__(self) -> Any:
        """A row a network, a column a task, then where the files are."""
        from rich.console import Group
        from rich.text import Text

        from mergekit3d.reporting.tables import matrix_table, on_screen

        return Group(on_screen(matrix_table(self.matrix)), Text(f"{self.out}: {JSON}, {CSV}, {PICTURE}"))


def forgetting(
    checkpoints: Path | str | Sequence[Path | str] = (),
    *,
    sources: Mapping[str, Path | str] | None = None,
    data: Path | str | Mapping[str, Path | str] | None = None,
    recipe: Path | str | None = None,
    overrides: Sequence[str] = (),
    allow_outside: Sequence[Path | str] = (),
    names: Sequence[str] | None = None,
    private: Sequence[str] | None = None,
    layout: str = "auto",
    subjects_file: Path | str | None = None,
    patch_size: tuple[int, int, int] | None = None,
    overlap: float | None = None,
    mirror: bool | None = None,
    mirror_axes: Sequence[int] | None = None,
    batch_size: int | None = None,
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> ForgettingResult:
    """Evaluate the sources, and any merged or trained checkpoints, on each source's task with that source's private tensors.

    Args:
        checkpoints: of the sources' architecture; with a recipe, left out: the merges and fine-tuned networks that its outputs hold.
        sources: checkpoints by name, that say their tasks; without a recipe.
        data: labelled subjects: one folder, or one by source; without a recipe, whose sources name theirs and their test subjects.
        recipe: YAML file with sources.
        overrides: ``key.path=value`` each, of the recipe.
        allow_outside: folders beside the recipe's own, and the output folder, that the recipe may write to.
        names: what to call the checkpoints; by default told from their paths.
        private: patterns of the private tensors, in place of the recipe's or the architecture's.
        layout: of the data.
        subjects_file: file of names, one a line: only these subjects.
        patch_size: sliding window of this size; None: the recipe's, else whole volumes.
        overlap: of neighbouring windows; None: the recipe's, else 0.5.
        mirror: average over mirrored copies; None: the recipe's.
        mirror_axes: 0 left-right, 1 posterior-anterior, 2 inferior-superior; where they are given, copies are mirrored.
        batch_size: windows at once.
        options: device, precision; ``out`` is the folder to write to.
        reporter: where progress goes.

    Returns:
        The matrix, and where its files are.

    Raises:
        MergeKit3DError: arguments that do not go together, or checkpoints or data that cannot be used; all problems at once.

    Source: MIDL 2019, Table 4, with a row a network in place of a column.
    """
    given = [Path(checkpoints)] if isinstance(checkpoints, str | Path) else [Path(path) for path in checkpoints]
    _check_arguments(given, names, recipe, {"--source": sources, "--data": data, "--subjects-file": subjects_file})
    loaded = None if recipe is None else load_recipe(recipe, overrides=overrides, allow_outside=allow_outside)
    if loaded is not None:
        opened, tasks = open_sources(loaded, with_fisher=False), own_tasks(loaded)
        opened = with_tasks(opened, tasks)
        known, how, default = _outputs(loaded) if not given else {}, inference_of(loaded.recipe.predict), loaded.out / FOLDER
    else:
        opened = sources_of(sources or {})
        tasks = tasks_on(opened, data, layout, subjects_file)
        known, how, default = {}, {}, given[0].parent / FOLDER
    if not tasks:
        raise UsageError("no source has test subjects", where=recipe, todo="give one a target with split.test")
    known = known or _called(given, names, [source.name for source in opened])
    out = options.out or default
    for name in (JSON, CSV, PICTURE):
        refuse_existing(out / name, force=options.force)
    how = inference(patch_size=patch_size, overlap=overlap, mirror=mirror, mirror_axes=mirror_axes, batch_size=batch_size, otherwise=how)
    networks = _builders(opened, known, _partition(opened[0], loaded, private), reporter)
    with output_lock(out):
        matrix = measured_forgetting(networks, tasks, how=how, options=options, reporter=reporter)
        write_forgetting(out, matrix)
    return ForgettingResult(out, matrix)


def _check_arguments(checkpoints: Sequence[Path], names: Sequence[str] | None, recipe: object, flags: Mapping[str, object]) -> None:
    """Refuse arguments that do not go together.

    Raises:
        UsageError: too few or too many.
    """
    beside = [flag for flag, value in flags.items() if value is not None]
    if recipe is not None and beside:
        raise UsageError(f"{beside[0]} and --recipe exclude each other", todo="the recipe says it; change it with --set")
    if recipe is None and not (checkpoints and flags["--source"] and flags["--data"]):
        lacking = [] if checkpoints else ["a checkpoint"]
        lacking += [flag for flag in ("--source", "--data") if not flags[flag]]
        given = checkpoints or flags["--source"] or flags["--data"]
        todo = "for example: mergekit3d forgetting fused.safetensors --source m1=m1.safetensors --source m2=m2.safetensors --data hcp/"
        needs = f"{' and '.join(lacking)} too" if given else "--recipe; or checkpoints, --source and --data"
        raise UsageError(f"forgetting needs {needs}", todo=todo)
    if names is not None and not checkpoints:
        raise UsageError("names of no checkpoints", where="--names", todo="name the checkpoints, or leave it out")


def _outputs(loaded: LoadedRecipe) -> dict[str, Path]:
    """The merges and fine-tuned networks that the outputs of a recipe hold, by name.

    Raises:
        InputError: there is none yet.
    """
    from mergekit3d.study import Study

    study = Study(loaded, DEFAULT_OPTIONS, SILENT)
    several = loaded.recipe.study is not None and len(loaded.recipe.study.seeds) > 1
    found = {loaded.recipe.merge.method: loaded.merge_path} if not study.arms else {}
    for arm in study.arms:
        place = f"{f' at {arm.size}' if arm.size else ''}{f', seed {arm.seed}' if several else ''}"
        found[f"{arm.loaded.recipe.merge.method}{place}"] = arm.loaded.merge_path
        found[f"{arm.initialisation}{place}, fine-tuned"] = arm.checkpoint
    there = {name: path for name, path in found.items() if path.exists()}
    if not there:
        raise InputError("nothing merged or trained yet", where=loaded.out, todo="run fuse first, or name checkpoints")
    return there


def _called(checkpoints: Sequence[Path], names: Sequence[str] | None, sources: Sequence[str]) -> dict[str, Path]:
    """The checkpoints by name.

    Raises:
        UsageError: names that do not fit, or that sources have.
    """
    from mergekit3d.verbs.compare import names_of

    called = names_of(checkpoints) if names is None else list(names)
    if len(called) != len(checkpoints) or len({*called, *sources}) < len(called) + len(sources):
        wanted = f"{len(checkpoints)} different names, none of them {' or '.join(sources)}"
        raise UsageError("the names do not fit the checkpoints", where="--names", wanted=wanted, found=", ".join(called))
    return dict(zip(called, checkpoints, strict=True))


def _partition(source: Source, loaded: LoadedRecipe | None, private: Sequence[str] | None) -> Mapping[str, str]:
    """Shared or private for every tensor of the sources.

    Raises:
        MergeKit3DError: patterns that name nothing, or nothing is shared.
    """
    shapes, network = source.checkpoint.shapes, source.network
    if private is not None:
        partitions = Partitions(private=tuple(private), shared=("*",))
    elif loaded is not None:
        partitions = partitions_of(loaded, network, shapes)
    else:
        partitions = Partitions() if network is None else architecture(network.name).partitions(shapes)
    problems = ProblemCollector()
    for problem in check_patterns(partitions, shapes):
        problems.add(problem)
    problems.raise_if_any()
    found = assign(partitions, shapes)
    if SHARED not in found.values():
        raise UsageError("nothing would be shared", where="--private", todo="let it name the tensors of one task alone")
    return found


def _builders(
    sources: Sequence[Source], checkpoints: Mapping[str, Path], partition_of: Mapping[str, str], reporter: Reporter
) -> dict[str, Builder]:
    """What makes every network with the private tensors of a source; every checkpoint is opened and tried first.

    Raises:
        MergeKit3DError: all checkpoints that cannot be used.
    """
    by_name = {source.name: source for source in sources}
    opened: dict[str, Checkpoint] = {source.name: source.checkpoint for source in sources}
    problems = ProblemCollector()
    for name, path in checkpoints.items():
        try:
            opened[name] = open_checkpoint(path)
            check_weights(opened[name])
            transplanted(opened[name], sources[0], partition_of)
            _tell_lacking(name, opened[name], sources, reporter)
        except MergeKit3DError as error:
            problems.add(error)
    problems.raise_if_any()

    def build(checkpoint: Checkpoint, own: OwnTask) -> tuple[nn.Module, NetworkSpec]:
        start = transplanted(checkpoint, by_name[own.source], partition_of)
        return start.build(), start.network

    return {name: partial(build, checkpoint) for name, checkpoint in opened.items()}


def _tell_lacking(name: str, checkpoint: Checkpoint, sources: Sequence[Source], reporter: Reporter) -> None:
    """Warn of input channels that a checkpoint does not have."""
    task = None if checkpoint.metadata is None else checkpoint.metadata.task
    if task is None:
        return
    for source in sources:
        lacking = ", ".join(modality for modality in modalities_of(source) if modality not in task.modalities)
        if lacking:
            reporter.warn(f"{name} has no input channel for {lacking}: on the task of {source.name}, that of {source.name} is used")
