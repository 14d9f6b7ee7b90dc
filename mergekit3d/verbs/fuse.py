"""``mergekit3d fuse``: N checkpoints of one architecture become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit3d.checkpoints import CHECKPOINT, Metadata, format_for
from mergekit3d.checkpoints.formats import FORMATS
from mergekit3d.checkpoints.metadata import tool
from mergekit3d.checkpoints.safetensors import SAFETENSORS, write_stream
from mergekit3d.fusion_engine import tensor_values
from mergekit3d.options import DEFAULT_OPTIONS, Options
from mergekit3d.plan.fusion import FusionPlan, plan_fusion
from mergekit3d.plan.ratios import ratios_path
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.recipe import LoadedRecipe, load_recipe
from mergekit3d.storage.atomic import refuse_existing, write_json
from mergekit3d.storage.lock import output_lock
from mergekit3d.storage.seal import file_digest, json_digest


@dataclass(frozen=True)
class FuseResult:
    """What a fusion wrote.

    Args:
        out: the fused checkpoint.
        report: what became of every tensor.
        outcomes: number of tensors by outcome.
        content: the report's content.
    """

    out: Path
    report: Path
    outcomes: Mapping[str, int]
    content: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"out": str(self.out), "report": str(self.report), "outcomes": dict(self.outcomes), **self.content}

    def lines(self) -> list[str]:
        """Lines for people."""
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.items())
        return [f"{self.out}: {counts}", f"{self.report}: what became of every tensor"]


def fuse(
    recipe: Path | str,
    *,
    overrides: Sequence[str] = (),
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> FuseResult:
    """Fuse the sources of a recipe.

    Args:
        recipe: YAML file with sources and merge.
        overrides: ``key.path=value`` each.
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
    loaded = load_recipe(recipe, overrides=overrides, out=folder)
    return fuse_loaded(loaded, out=file or loaded.merge_path, options=options, reporter=reporter)


def fuse_loaded(loaded: LoadedRecipe, *, out: Path, options: Options = DEFAULT_OPTIONS, reporter: Reporter = SILENT) -> FuseResult:
    """Fuse the sources of a recipe that is loaded already; see `fuse`."""
    file_format = format_for(out)
    report_path = out.with_name(f"{out.stem}.report.json")
    for path in (out, report_path):
        refuse_existing(path, force=options.force)
    plan = plan_fusion(loaded, seed=options.seed)
    for line in _remarks(plan):
        reporter.info(line)
    content = _report(plan)
    metadata = Metadata(
        kind=CHECKPOINT,
        architecture=None if plan.network is None else plan.network.as_json(),
        task=plan.task,
        method=plan.method.name,
        provenance=_provenance(loaded, plan),
        tool=tool(),
    )
    entries, values = [tensor.entry for tensor in plan.tensors], tensor_values(plan)
    with output_lock(out.parent):
        if file_format is SAFETENSORS:
            sealed = write_stream(out, entries, values, metadata)
        else:
            sealed = file_format.write(out, ((entry, values(entry)) for entry in entries), metadata)
        assert sealed.seal is not None
        content = {"digest": sealed.seal["tensors"], **content}
        write_json(report_path, content)
    return FuseResult(out, report_path, Counter(tensor.outcome for tensor in plan.tensors), content)


def _report(plan: FusionPlan) -> dict[str, Any]:
    tensors = []
    for tensor in plan.tensors:
        row: dict[str, Any] = {
            "name": tensor.entry.name,
            "outcome": tensor.outcome,
            "partition": tensor.partition,
            "shape": list(tensor.entry.shape),
            "dtype": tensor.entry.dtype,
            "source_shapes": {source.name: list(source.checkpoint.shapes[tensor.entry.name]) for source in plan.sources},
        }
        if tensor.group is not None:
            row["ratios"] = dict(zip(plan.ratios.sources, plan.ratios.layers[tensor.group], strict=True))
        if tensor.origin is not None:
            row["origin"] = tensor.origin
        if tensor.detail is not None:
            row["detail"] = tensor.detail
        tensors.append(row)
    return {
        "method": plan.method.name,
        "granularity": plan.ratios.granularity,
        "sources": list(plan.ratios.sources),
        "seed": plan.seed,
        "tensors": tensors,
    }


def _provenance(loaded: LoadedRecipe, plan: FusionPlan) -> dict[str, Any]:
    path = ratios_path(loaded)
    return {
        "sources": [
            {"name": source.name, "checkpoint": source.checkpoint.digest, "fisher": None if source.fisher is None else source.fisher.digest}
            for source in plan.sources
        ],
        "ratios": json_digest(plan.ratios.as_json()) if path is None else file_digest(path),
        "adapted": None if plan.adapted is None else plan.adapted.digest,
        "recipe": json_digest(loaded.recipe.model_dump(mode="json", exclude={"out", "data"})),
        "seed": plan.seed,
    }


def _remarks(plan: FusionPlan) -> list[str]:
    """One line on each shared tensor that could not be fused as it is."""
    return [
        f"{tensor.outcome}: {tensor.entry.name}: {tensor.detail}"
        for tensor in plan.tensors
        if tensor.detail is not None and tensor.partition == "shared"
    ]
