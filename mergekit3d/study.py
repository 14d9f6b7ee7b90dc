"""The steps of a recipe: source models, Fisher diagonals, adaptation, fusion, fine-tuning, evaluation, comparison, report.

A recipe without a target is a sequence of tasks: its study merges the sources, and asks what each network of it still knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mergekit3d.datasets.find import find_dataset
from mergekit3d.options import Options
from mergekit3d.plan.anchors import FISHER
from mergekit3d.plan.target import Cohort, has_test, open_cohort, with_split
from mergekit3d.progress import Reporter
from mergekit3d.recipe.load import LoadedRecipe
from mergekit3d.recipe.models import SizeModel, SourceModel, TargetModel, TrainModel
from mergekit3d.steps import Step, files_identity, subjects_identity

NONE, IMM, MEAN_IMM, TIMM = "none", "imm", "mean-imm", "timm"
MERGES = (IMM, MEAN_IMM, TIMM)


@dataclass(frozen=True)
class Arm:
    """One initialisation at one size of the target's training set, with one seed.

    Args:
        initialisation: none, a source or baseline, imm, mean-imm or timm.
        size: name of the split; empty for the target's own.
        seed: of adaptation and fine-tuning.
        loaded: the recipe as this arm sees it; its OUT is the arm's folder.
    """

    initialisation: str
    size: str
    seed: int
    loaded: LoadedRecipe

    @property
    def metrics(self) -> Path:
        """Test metrics of the fine-tuned network."""
        return self.loaded.out / "test" / "metrics.csv"

    @property
    def checkpoint(self) -> Path:
        """The fine-tuned network."""
        return self.loaded.out / "finetune" / "best.safetensors"

    @property
    def submission(self) -> Path:
        """Folder of the segmentations for a challenge."""
        return self.loaded.out / "submission"

    @property
    def log(self) -> Path:
        """Learning curve of the fine-tuning."""
        return self.loaded.out / "finetune" / "log.csv"


@dataclass(frozen=True)
class Study:
    """A recipe with all that its steps need.

    Args:
        loaded: the recipe.
        options: device, precision and the like.
        reporter: where progress goes.
    """

    loaded: LoadedRecipe
    options: Options
    reporter: Reporter

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """Every initialisation at every size with every seed; one arm where the recipe has a target and no study."""
        recipe, study = self.loaded.recipe, self.loaded.recipe.study
        if recipe.train is not None or (recipe.target is None and study is None):
            return ()
        if study is None:
            init = recipe.finetune.init or (recipe.merge.method if recipe.sources else NONE)
            return (Arm(init, "", self._seed(recipe.seed), self.loaded),)
        sizes: dict[str, SizeModel | None] = {**study.sizes} or {"": None}
        arms = []
        for size, model in sizes.items():
            compared = (model and model.initialisations) or study.initialisations
            for seed in study.seeds:
                folder = self.loaded.out / slug(size) / (f"seed-{seed}" if len(study.seeds) > 1 else "")
                target = recipe.target if model is None or recipe.target is None else with_split(recipe.target, model.split)
                arms += [self._arm(init, size, self._seed(seed), folder / init, target) for init in compared]
        return tuple(arms)

    def _arm(self, init: str, size: str, seed: int, out: Path, target: TargetModel | None) -> Arm:
        changes: dict[str, Any] = {"method": init if init in MERGES else self.loaded.recipe.merge.method}
        if init in (IMM, MEAN_IMM):
            changes |= {"ratios": "uniform"} if target is None else {"ratios": "uniform", "private": "random"}
        loaded = self.loaded.changed(
            out=out,
            seed=seed,
            target=target,
            sources=tuple(self._absolute(source) for source in self.loaded.recipe.sources),
            baselines=tuple(self._absolute(source) for source in self.loaded.recipe.baselines),
            merge=self.loaded.recipe.merge.model_copy(update=changes),
            finetune=self.loaded.recipe.finetune.model_copy(update={"init": init}),
        )
        return Arm(init, size, seed, loaded)

    def _absolute(self, source: SourceModel) -> SourceModel:
        """A source whose files do not depend on OUT, which differs from arm to arm."""
        checkpoint, fisher = self.loaded.checkpoint_path(source).absolute(), self.loaded.fisher_path(source).absolute()
        return source.model_copy(update={"checkpoint": checkpoint, "fisher": fisher})

    def _seed(self, seed: int) -> int:
        return seed if self.options.seed is None else self.options.seed

    def check(self) -> None:
        """Refuse what the recipe's study cannot be; see `check_study`."""
        from mergekit3d.study_checks import check_study

        check_study(self)
        for _ in self._sources():  # each step is planned: a Fisher diagonal may be asked for where the recipe must not write
            pass

    def steps(self) -> Iterator[Step]:
        """All steps, in the order of their inputs."""
        from mergekit3d.study_forgetting import forgetting_steps

        recipe = self.loaded.recipe
        if recipe.train is not None:
            yield self._train("train", recipe.target, recipe.train, self.loaded.out / "train", {}, "target")
        yield from self._sources()
        for arm in self.arms:
            yield from self._arm_steps(arm)
        for group in self.groups():
            yield from self._group_steps(group)
        yield from forgetting_steps(self)

    def groups(self) -> list[tuple[Arm, ...]]:
        """Arms that differ in nothing but the initialisation."""
        keys = dict.fromkeys((arm.size, arm.seed) for arm in self.arms)
        return [tuple(arm for arm in self.arms if (arm.size, arm.seed) == key) for key in keys]

    def folder_of(self, group: Sequence[Arm]) -> Path:
        """Where the results of a group of arms stand."""
        return group[0].loaded.out.parent if self.loaded.recipe.study is not None else self.loaded.out

    @cached_property
    def _quiet(self) -> Options:
        """Options of a step: outputs of earlier runs are out of date, so that they are written over."""
        return replace(self.options, out=None, seed=None, force=not self.options.resume)

    @cached_property
    def _seeded(self) -> Options:
        return replace(self._quiet, seed=self.options.seed)

    def _sources(self) -> Iterator[Step]:
        earlier: dict[str, Path] = {}
        holding = [self.loaded.recipe.finetune, *(source.train for source in self.loaded.recipe.sources if source.train is not None)]
        ewc = any(model.regularise is not None and model.regularise.by == FISHER for model in holding)
        wants_fisher = ewc or bool({IMM, TIMM} & {arm.initialisation for arm in self.arms})
        for source in self.loaded.recipe.sources:
            if source.checkpoint is None:
                yield self._train_source(source, dict(earlier))
            if wants_fisher and source.target is not None:
                yield self._fisher(source)
            earlier[source.name] = self.loaded.checkpoint_path(source)
        for source in self.loaded.recipe.baselines:
            if source.checkpoint is None:
                yield self._train_source(source, dict(earlier))
            if ewc and source.target is not None:
                yield self._fisher(source)

    def _train(self, name: str, target: TargetModel | None, model: TrainModel, folder: Path, earlier: dict[str, Path], key: str) -> Step:
        from mergekit3d.verbs.train import init_fisher, init_path, train_model

        loaded = self.loaded

        def identity() -> Any:
            cohort = open_cohort(loaded, target, key=key)
            init = [] if model.init == NONE else files_identity([init_path(loaded, model, earlier)])
            seed = self._seed(loaded.recipe.seed)
            decisive = [model.decisive(), self._architecture(), self._cohort_identity(cohort), init, seed]
            if model.is_held:
                fisher = init_fisher(loaded, model, earlier)
                decisive += [loaded.recipe.partitions.model_dump(mode="json"), files_identity([fisher] if fisher is not None else [])]
            return decisive

        def action() -> object:
            return train_model(loaded, target, model, out=folder, earlier=earlier, options=self._seeded, reporter=self.reporter)

        inputs: tuple[Path, ...] = ()
        if model.init != NONE:
            fisher = init_fisher(loaded, model, earlier) if model.is_held else None
            inputs = tuple(filter(None, (init_path(loaded, model, earlier), fisher)))
        return Step(name, (folder / "best.safetensors", folder / "log.csv"), identity, action, inputs)

    def _train_source(self, source: SourceModel, earlier: dict[str, Path]) -> Step:
        assert source.train is not None
        folder, key = self.loaded.checkpoint_path(source).parent, f"sources.{source.name}.target"
        return self._train(f"train {source.name}", source.target, source.train, folder, earlier, key)

    def _fisher(self, source: SourceModel) -> Step:
        from mergekit3d.verbs.fisher import fisher_of_source

        loaded = self.loaded

        def identity() -> Any:
            cohort = open_cohort(loaded, source.target, key=f"sources.{source.name}.target")
            checkpoint = files_identity([loaded.checkpoint_path(source)])
            return [loaded.recipe.fisher.decisive(), self._cohort_identity(cohort), checkpoint, self.options.seed]

        def action() -> object:
            return fisher_of_source(loaded, source, options=replace(self._seeded, force=True), reporter=self.reporter)

        return Step(f"fisher {source.name}", (loaded.fisher_output(source),), identity, action, (loaded.checkpoint_path(source),))

    def _arm_steps(self, arm: Arm) -> Iterator[Step]:
        from mergekit3d.verbs.adapt import adapt_loaded
        from mergekit3d.verbs.finetune import finetune_loaded
        from mergekit3d.verbs.fuse import fuse_loaded

        loaded, folder = arm.loaded, arm.loaded.out
        ratios = folder / "adapt" / "ratios.json"

        def cohort_identity() -> Any:
            target = loaded.recipe.target
            return None if target is None else self._cohort_identity(open_cohort(loaded, target))

        origins = self._origins(arm)

        def decided(*parts: Any) -> Any:
            return [arm.initialisation, arm.seed, self._architecture(), cohort_identity(), files_identity(origins), *parts]

        merge, partitions = loaded.recipe.merge.model_dump(mode="json"), loaded.recipe.partitions.model_dump(mode="json")
        fusing = arm.initialisation not in (NONE, *(source.name for source in all_sources(loaded)))
        if arm.initialisation == TIMM:
            yield Step(
                label("adapt", arm),
                (ratios, ratios.with_name("checkpoint.safetensors"), ratios.with_name("log.csv")),
                lambda: decided(merge, partitions, loaded.recipe.adapt.decisive()),
                lambda: adapt_loaded(loaded, options=self._quiet, reporter=self.reporter),
                origins,
            )
        if fusing:
            yield Step(
                label("fuse", arm),
                (loaded.merge_path, loaded.merge_path.with_name(f"{loaded.merge_path.stem}.report.json")),
                lambda: decided(merge, partitions, files_identity([ratios])),
                lambda: fuse_loaded(
                    loaded, out=loaded.merge_path, plot=True, options=replace(self._quiet, force=True), reporter=self.reporter
                ),
                (*origins, ratios),
            )
        if loaded.recipe.target is None:
            return
        best = arm.checkpoint
        yield Step(
            label("finetune", arm),
            (best, arm.log),
            lambda: decided(partitions, loaded.recipe.finetune.decisive(), files_identity([loaded.merge_path] if fusing else [])),
            lambda: finetune_loaded(loaded, options=self._quiet, reporter=self.reporter),
            (*origins, loaded.merge_path) if fusing else origins,
        )
        if self.has_test(loaded.recipe.target):
            yield Step(
                label("evaluate", arm),
                (arm.metrics, arm.metrics.with_name("summary.json")),
                lambda: [files_identity([best]), loaded.recipe.predict.model_dump(mode="json"), cohort_identity()],
                lambda: self._evaluate(arm, best),
                (best,),
            )
        yield from self._submission(arm)

    def _origins(self, arm: Arm) -> tuple[Path, ...]:
        """Files of the sources that decide an arm's result: an arm that starts from one source does not wait for the others."""
        loaded, init = arm.loaded, arm.initialisation
        sources = loaded.recipe.sources if init in MERGES else tuple(source for source in all_sources(loaded) if source.name == init)
        if loaded.recipe.architecture is None or loaded.recipe.finetune.init not in (NONE, *MERGES, *_names(loaded)):
            # Where nothing else tells the network, it is that of the sources; a file to start from may be any of theirs.
            sources = all_sources(loaded)
        with_fisher = init in (IMM, TIMM) or loaded.recipe.finetune.regularise is not None
        checkpoints = [loaded.checkpoint_path(source) for source in sources]
        return (*checkpoints, *(loaded.fisher_path(source) for source in sources if with_fisher))

    @property
    def submission_folder(self) -> Path | None:
        """Where the subjects stand that are segmented for a challenge; None where none are asked for, or they are not there."""
        study = self.loaded.recipe.study
        folder = None if study is None or study.submission is None else self.loaded.data_path(study.submission.data)
        return folder if folder is not None and folder.exists() else None

    def _submission(self, arm: Arm) -> Iterator[Step]:
        """Segmentations of the subjects whose truth a challenge keeps to itself."""
        study = self.loaded.recipe.study
        asked, data = None if study is None else study.submission, self.submission_folder
        if (
            asked is None
            or data is None
            or asked.size not in (None, arm.size)
            or arm.initialisation not in (asked.initialisations or (arm.initialisation,))
        ):
            return
        how = arm.loaded.recipe.predict

        def identity() -> Any:
            subjects = subjects_identity(find_dataset(data).subjects)
            return [files_identity([arm.checkpoint]), subjects, how.model_dump(mode="json"), asked.format]

        def action() -> object:
            from mergekit3d.verbs.predict import predict

            return predict(
                arm.checkpoint,
                data,
                arm.submission,
                patch_size=how.patch_size,
                overlap=how.overlap,
                mirror=how.mirror,
                submission=asked.format,
                options=replace(self._quiet, force=True),
                reporter=self.reporter,
            )

        yield Step(label("submit", arm), (arm.submission / "predictions.json",), identity, action, (arm.checkpoint,))

    def _evaluate(self, arm: Arm, checkpoint: Path) -> object:
        from mergekit3d.prediction import inference_of, load_predictor, measure_subjects
        from mergekit3d.verbs.evaluate import write_evaluation

        cohort = open_cohort(arm.loaded, arm.loaded.recipe.target)
        predictor = load_predictor(checkpoint, self.options, **inference_of(arm.loaded.recipe.predict))
        rows = measure_subjects(predictor, cohort.dataset, cohort.subjects("test"), convention="nnunet", reporter=self.reporter)
        return write_evaluation(arm.metrics.parent, rows, convention="nnunet", force=True)

    def _group_steps(self, group: Sequence[Arm]) -> Iterator[Step]:
        study = self.loaded.recipe.study
        if study is None or not group:
            return
        folder = self.folder_of(group)
        if len(group) > 1 and self.has_test(group[0].loaded.recipe.target):
            from mergekit3d.study_pictures import write_slices
            from mergekit3d.verbs.compare import compare

            best = [arm.checkpoint for arm in group]
            yield Step(
                label("slices", group[0], with_initialisation=False),
                (folder / "slices.png",),
                lambda: files_identity([*best, *(arm.metrics for arm in group)]),
                lambda: write_slices(group, folder / "slices.png", options=self.options, reporter=self.reporter),
                (*best, *(arm.metrics for arm in group)),
            )
            metrics = [arm.metrics for arm in _winner_first(group)]
            yield Step(
                label("compare", group[0], with_initialisation=False),
                (folder / "compare.json", folder / "compare.png"),
                lambda: files_identity(metrics),
                lambda: compare(
                    metrics, out=folder, names=[arm.initialisation for arm in _winner_first(group)], force=True, reporter=self.reporter
                ),
                tuple(metrics),
            )

    def _architecture(self) -> Any:
        given = self.loaded.recipe.architecture
        return given if given is None or isinstance(given, str) else given.model_dump(mode="json")

    def _cohort_identity(self, cohort: Cohort) -> Any:
        return [cohort.task.as_json(), vars(cohort.split), subjects_identity(cohort.dataset.subjects)]

    def has_test(self, target: TargetModel | None) -> bool:
        """Whether a task has subjects to test on."""
        return target is not None and has_test(self.loaded, target)


def all_sources(loaded: LoadedRecipe) -> tuple[SourceModel, ...]:
    """Sources, then baselines."""
    return (*loaded.recipe.sources, *loaded.recipe.baselines)


def _names(loaded: LoadedRecipe) -> tuple[str, ...]:
    return tuple(source.name for source in all_sources(loaded))


def label(verb: str, arm: Arm, *, with_initialisation: bool = True) -> str:
    """The name of a step of an arm."""
    parts = [verb, arm.initialisation if with_initialisation else "", f"at {arm.size}" if arm.size else "", f"seed {arm.seed}"]
    return " ".join(part for part in parts if part)


def slug(name: str) -> str:
    """A folder's name for the name of a size: ``4 %`` becomes ``4-percent``."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name.replace("%", " percent")).strip("-").lower()


def _winner_first(group: Sequence[Arm]) -> list[Arm]:
    """T-IMM first where it takes part: the paper's Figure 4 shows its difference to every other."""
    return sorted(group, key=lambda arm: arm.initialisation != TIMM)
