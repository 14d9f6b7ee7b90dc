"""``mergekit3d fuse``: N checkpoints of one architecture become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergekit3d.checkpoints import CHECKPOINT, Metadata, ancestry_of, format_for, open_checkpoint
from mergekit3d.checkpoints.formats import FORMATS
from mergekit3d.checkpoints.metadata import tool
from mergekit3d.checkpoints.safetensors import SAFETENSORS
from mergekit3d.engine.correspondence import exact_cosines, sampled_cosines, warnings_on
from mergekit3d.engine.figures import Figures, by_layer
from mergekit3d.engine.stream import PLACEHOLDER, DigestOf, write_fused
from mergekit3d.errors import InputError, OutputError
from mergekit3d.merging.partitions import SHARED, layer_of
from mergekit3d.options import DEFAULT_OPTIONS, Options
from mergekit3d.plan.fusion import FusionPlan, plan_fusion
from mergekit3d.plan.outcomes import COPIED, EXPANDED, FUSED, RANDOM, TensorPlan
from mergekit3d.plan.ratios import granularity_as_json, ratios_path
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.recipe import LoadedRecipe, load_recipe
from mergekit3d.storage.atomic import refuse_existing, temporary_file, write_json
from mergekit3d.storage.lock import output_lock
from mergekit3d.storage.seal import file_digest, json_digest
from mergekit3d.storage.steady import AFTER_A_CHANGE


@dataclass(frozen=True)
class FuseResult:
    """What a fusion wrote.

    Args:
        out: the fused checkpoint.
        report: what became of every tensor.
        picture: the report drawn, where that was asked for.
        outcomes: number of tensors by outcome.
        content: the report's content.
    """

    out: Path
    report: Path
    picture: Path | None
    outcomes: Mapping[str, int]
    content: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        picture = None if self.picture is None else str(self.picture)
        return {"out": str(self.out), "report": str(self.report), "picture": picture, "outcomes": dict(self.outcomes), **self.content}

    def lines(self) -> list[str]:
        """Lines for people."""
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.items())
        hint = f"{self.picture}: the same, drawn" if self.picture is not None else f"draw it: mergekit3d plot {self.report}"
        return [f"{self.out}: {counts}", f"{self.report}: what became of every tensor; {hint}", *self._judgement()]

    def _judgement(self) -> list[str]:
        """How much each source has a say, and how far the result is from it, over all fused weights."""
        summary = self.content["summary"]
        parts = []
        for source in self.content["sources"]:
            share, distance = summary.get("share", {}).get(source), summary["distance"][source]
            weight = "" if share is None else f" weighs {share:.0%}"
            parts.append(f"{source}{weight}{'' if distance is None else f', {distance:.1%} away'}")
        return [f"of the fused weights: {'; '.join(parts)}"]


def fuse(
    recipe: Path | str,
    *,
    overrides: Sequence[str] = (),
    allow_outside: Sequence[Path | str] = (),
    plot: bool = False,
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> FuseResult:
    """Fuse the sources of a recipe.

    Args:
        recipe: YAML file with sources and merge.
        overrides: ``key.path=value`` each.
        allow_outside: folders beside the recipe's own, and the output folder, that the recipe may write to.
        plot: draw the report too.
        options: ``out`` is the output folder, or the fused file where it ends like a checkpoint.
        reporter: where progress goes.

    Returns:
        Where the fused checkpoint and its report are, and what became of every tensor.

    Raises:
        MergeKit3DError: problems of the recipe or its checkpoints, all at once, before any work; or a failed write.

    Source: MIDL 2019, eq. 2.
    """
    is_file = options.out is not None and any(options.out.suffix.lower() in FORMATS.get(name).suffixes for name in FORMATS)
    folder, file = (None, options.out) if is_file else (options.out, None)
    loaded = load_recipe(
        recipe, overrides=overrides, allow_outside=allow_outside, out=folder, by_hand=[("merge", "out")] if is_file else []
    )
    return fuse_loaded(loaded, out=file or loaded.merge_path, plot=plot, options=options, reporter=reporter)


def fuse_loaded(
    loaded: LoadedRecipe, *, out: Path, plot: bool = False, options: Options = DEFAULT_OPTIONS, reporter: Reporter = SILENT
) -> FuseResult:
    """Fuse the sources of a recipe that is loaded already; see `fuse`."""
    format_for(out).writer()
    report_path = out.with_name(f"{out.stem}.report.json")
    picture = report_path.with_suffix(".png") if plot else None
    for path in (out, report_path, *([picture] if picture is not None else [])):
        refuse_existing(path, force=options.force)
    ratios = _file_of_ratios(loaded)
    plan = plan_fusion(loaded, seed=options.seed, verify=False)
    if ratios != _file_of_ratios(loaded):
        raise InputError("the file changed while it was read", where=ratios_path(loaded), todo=AFTER_A_CHANGE)
    for line in [*plan.remarks, *_remarks(plan)]:
        reporter.info(line)
    first = plan.sources[0].name
    for line in warnings_on(sampled_cosines(plan), first):
        reporter.warn(line)
    soup: dict[str, Any] = {}
    if plan.method.evaluates:
        from mergekit3d.soup import choose_ingredients

        plan, soup = choose_ingredients(loaded, plan, options=options, reporter=reporter)

    def describe(digest_of: DigestOf) -> Metadata:
        return Metadata(
            kind=CHECKPOINT,
            architecture=None if plan.network is None else plan.network.as_json(),
            task=plan.task,
            method=plan.method.name,
            provenance=_provenance(loaded, plan, ratios, digest_of),
            tool=tool(),
            aliases={tensor.entry.name: tensor.alias_of for tensor in plan.tensors if tensor.alias_of is not None},
            origin=plan.origin,
            ancestry=ancestry_of(plan.inputs),
        )

    file_format = format_for(out, describe(lambda _: PLACEHOLDER))
    with output_lock(out.parent):
        if file_format is SAFETENSORS:
            streamed = write_fused(plan, out, describe, reporter=reporter)
        else:
            with temporary_file(out.with_suffix(".safetensors")) as between:
                try:
                    streamed = write_fused(plan, between, describe, reporter=reporter)
                except OutputError as error:  # of a name that the user did not ask for
                    raise OutputError(error.failed, where=out, wanted=error.wanted, found=error.found, todo=error.todo) from error
                written = open_checkpoint(between, verify=False)
                tensors = ((entry, written.read(name)) for name, entry in written.entries.items())
                file_format.writer()(out, tensors, replace(streamed.metadata, seal=None))
        assert streamed.metadata.seal is not None
        content = {"digest": streamed.metadata.seal["tensors"], **_report(plan, streamed.figures), **soup}
        write_json(report_path, content)
        if picture is not None:
            from mergekit3d.plots.merge import plot_merge

            plot_merge(content, picture)
    return FuseResult(out, report_path, picture, Counter(tensor.outcome for tensor in plan.tensors), content)


def _report(plan: FusionPlan, figures: Mapping[str, Figures]) -> dict[str, Any]:
    names = plan.ratios.sources
    tensors = [_row(plan, tensor, figures.get(tensor.entry.name)) for tensor in plan.tensors]
    layers = {layer: of_layer.as_json(names) for layer, of_layer in by_layer(figures, {name: layer_of(name) for name in figures}).items()}
    total = Figures(len(names))
    for of_tensor in figures.values():
        total.add(of_tensor)
    return {
        "method": plan.method.name,
        "parameters": plan.parameters.model_dump(mode="json"),
        "granularity": granularity_as_json(plan.ratios.granularity),
        "sources": list(names),
        "seed": plan.seed,
        "outcomes": dict(Counter(tensor.outcome for tensor in plan.tensors)),
        "cosine": exact_cosines(plan, figures),
        "summary": {"fused_parameters": total.entries, **total.as_json(names)},
        "per_layer": layers,
        "tensors": tensors,
    }


def _row(plan: FusionPlan, tensor: TensorPlan, figures: Figures | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": tensor.entry.name,
        "outcome": tensor.outcome,
        "partition": tensor.partition,
        "shape": list(tensor.entry.shape),
        "dtype": tensor.entry.dtype,
        "source_shapes": {source.name: list(source.checkpoint.shapes[tensor.entry.name]) for source in plan.sources},
    }
    if tensor.alias_of is not None:
        row["alias_of"] = tensor.alias_of
    if tensor.group is not None:
        row["ratios"] = dict(zip(plan.ratios.sources, plan.ratios.layers[tensor.group], strict=True))
    if tensor.origin is not None:
        row["origin"] = tensor.origin
    if tensor.detail is not None:
        row["detail"] = tensor.detail
    if figures is not None:
        row.update(figures.as_json(plan.ratios.sources))
    return row


def _file_of_ratios(loaded: LoadedRecipe) -> str | None:
    """The digest of the file that the ratios come from; None where they come from none, or it is not there, which planning tells."""
    path = ratios_path(loaded)
    return file_digest(path) if path is not None and path.is_file() else None


def _provenance(loaded: LoadedRecipe, plan: FusionPlan, ratios: str | None, digest_of: DigestOf) -> dict[str, Any]:
    provenance = {
        "sources": [
            {
                "name": source.name,
                "checkpoint": digest_of(source.checkpoint),
                "fisher": None if source.fisher is None else digest_of(source.fisher),
            }
            for source in plan.sources
        ],
        "ratios": json_digest(plan.ratios.as_json()) if ratios is None else ratios,
        "adapted": None if plan.adapted is None else digest_of(plan.adapted),
        "recipe": json_digest(loaded.recipe.without_places().model_dump(mode="json", exclude={"out", "data", "cache", "workers"})),
        "seed": plan.seed,
    }
    return provenance if plan.base is None else {**provenance, "base": digest_of(plan.base.checkpoint)}


def _remarks(plan: FusionPlan) -> list[str]:
    """One line on each shared tensor that could not be fused as it is, and one on the further names of tensors."""
    lines = [
        f"{tensor.outcome}: {tensor.entry.name}: {tensor.detail}"
        for tensor in plan.owners
        if tensor.detail is not None and tensor.partition == SHARED and tensor.outcome in (EXPANDED, RANDOM)
    ]
    counts = Counter(tensor.detail for tensor in plan.owners if tensor.detail is not None and tensor.outcome in (COPIED, FUSED))
    lines += [f"{count} {'tensors' if count > 1 else 'tensor'}: {detail}" for detail, count in counts.items()]
    aliases = len(plan.tensors) - len(plan.owners)
    return (
        [*lines, f"{aliases} of {len(plan.tensors)} names are further names of other tensors: merged once, written each"]
        if aliases
        else lines
    )
