"""``mergekit3d inspect``: what checkpoints hold, what of several can be fused, and the plan of a recipe."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit3d.architectures import architecture, network_of, norms_and_last_layer
from mergekit3d.checkpoints import Checkpoint, open_checkpoint
from mergekit3d.errors import MergeKit3DError, ProblemCollector, UsageError
from mergekit3d.merging.partitions import SHARED, assign, layer_of


@dataclass(frozen=True)
class InspectResult:
    """What was found.

    Args:
        content: plain data.
        text: lines for people.
    """

    content: Mapping[str, Any]
    text: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return dict(self.content)

    def lines(self) -> list[str]:
        """Lines for people."""
        return list(self.text)


def inspect(
    paths: Sequence[Path | str],
    *,
    recipe: Path | str | None = None,
    overrides: Sequence[str] = (),
    values: bool = False,
) -> InspectResult:
    """Show checkpoints, or the plan of a recipe.

    Args:
        paths: one checkpoint, or several to compare.
        recipe: show what its fusion would do, without doing it.
        overrides: ``key.path=value`` each, for the recipe.
        values: read the tensors too: seal, NaN and Inf.

    Raises:
        MergeKit3DError: a file or the recipe cannot be read; all problems at once.
    """
    if recipe is not None:
        return _plan(Path(recipe), overrides)
    if not paths:
        raise UsageError("nothing to inspect", wanted="checkpoints or a recipe")
    problems, opened = ProblemCollector(), []
    for path in paths:
        try:
            opened.append(open_checkpoint(path, verify=values))
        except MergeKit3DError as error:
            problems.add(error)
    problems.raise_if_any()
    found = [_describe(checkpoint, values=values) for checkpoint in opened]
    text = [line for checkpoint, content in zip(opened, found, strict=True) for line in _checkpoint_lines(checkpoint, content)]
    if len(opened) == 1:
        return InspectResult(found[0], text)
    comparison = _compare(opened)
    return InspectResult({"checkpoints": found, "fusible": comparison}, [*text, *_comparison_lines(comparison)])


def _describe(checkpoint: Checkpoint, *, values: bool) -> dict[str, Any]:
    spec, shapes, metadata = network_of(checkpoint), checkpoint.shapes, checkpoint.metadata
    partition_of = assign(norms_and_last_layer(shapes) if spec is None else architecture(spec.name).partitions(shapes), shapes)
    parameters: Counter[str] = Counter()
    for name, shape in shapes.items():
        parameters[partition_of[name]] += math.prod(shape)
    content: dict[str, Any] = {
        "file": checkpoint.path.name,
        "bytes": checkpoint.path.stat().st_size,
        "architecture": None if spec is None else spec.as_json(),
        "parameters": dict(parameters),
        "layers": len({layer_of(name) for name in shapes}),
        "metadata": None if metadata is None else metadata.as_json(),
        "tensors": [
            {"name": entry.name, "dtype": entry.dtype, "shape": list(entry.shape), "partition": partition_of[entry.name]}
            for entry in checkpoint.entries.values()
        ],
    }
    if values:
        content["not_finite"] = [{"name": name, "count": count} for name, count in checkpoint.non_finite()]
    return content


def _checkpoint_lines(checkpoint: Checkpoint, content: Mapping[str, Any]) -> list[str]:
    network = content["architecture"]
    name = (
        "unknown network"
        if network is None
        else ", ".join(f"{key} {value}" if key != "name" else str(value) for key, value in network.items())
    )
    counts = Counter(entry.dtype for entry in checkpoint.entries.values())
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in counts.items())
    lines = [
        f"{checkpoint.path}: {name}",
        f"  {len(checkpoint.entries)} tensors ({dtypes}) in {content['layers']} layers",
        f"  parameters: {', '.join(f'{count:,} {partition}' for partition, count in content['parameters'].items())}",
    ]
    metadata = checkpoint.metadata
    if metadata is not None:
        lines.append(f"  {metadata.kind} made by {metadata.method} of {metadata.tool.get('name')} {metadata.tool.get('version')}")
        if metadata.task is not None:
            lines.append(f"  {' + '.join(metadata.task.modalities)} to {', '.join(metadata.task.outputs)}")
    return lines + [f"  {bad['count']} NaN or Inf in {bad['name']}" for bad in content.get("not_finite", [])]


def _compare(opened: Sequence[Checkpoint]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for checkpoint in opened for name in checkpoint.entries))
    rows = []
    for name in names:
        shapes = [list(checkpoint.shapes[name]) if name in checkpoint.entries else None for checkpoint in opened]
        reason = None
        if any(shape is None for shape in shapes):
            reason = "missing in " + ", ".join(
                checkpoint.path.name for checkpoint, shape in zip(opened, shapes, strict=True) if shape is None
            )
        elif any(shape != shapes[0] for shape in shapes):
            reason = "shapes differ"
        elif not all(checkpoint.entries[name].is_float for checkpoint in opened):
            reason = "an integer buffer"
        rows.append({"name": name, "shapes": shapes, "fusible": reason is None, "reason": reason})
    return rows


def _comparison_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    refused = [row for row in rows if not row["fusible"]]
    lines = [f"{len(rows) - len(refused)} of {len(rows)} tensors can be fused"]
    return lines + [f"  {row['name']}: {row['reason']} ({' / '.join(map(str, row['shapes']))})" for row in refused]


def _plan(recipe: Path, overrides: Sequence[str]) -> InspectResult:
    from mergekit3d.plan.fusion import plan_fusion
    from mergekit3d.recipe import load_recipe

    loaded = load_recipe(recipe, overrides=overrides)
    plan = plan_fusion(loaded)
    outcomes = Counter(tensor.outcome for tensor in plan.tensors)
    files = [file for source in plan.sources for file in (source.checkpoint, source.fisher) if file is not None]
    content = {
        "method": plan.method.name,
        "sources": [source.name for source in plan.sources],
        "bytes_to_read": sum(file.path.stat().st_size for file in files),
        "bytes_to_write": sum(tensor.entry.nbytes for tensor in plan.tensors),
        "outcomes": dict(outcomes),
        "tensors": [
            {
                "name": tensor.entry.name,
                "shape": list(tensor.entry.shape),
                "partition": tensor.partition,
                "outcome": tensor.outcome,
                "ratios": None if tensor.group is None else list(plan.ratios.layers[tensor.group]),
                "detail": tensor.detail,
            }
            for tensor in plan.tensors
        ],
    }
    shared = sum(1 for tensor in plan.tensors if tensor.partition == SHARED)
    text = [
        f"{plan.method.name} of {', '.join(source.name for source in plan.sources)}: {len(plan.tensors)} tensors, {shared} shared",
        f"  {', '.join(f'{count} {outcome}' for outcome, count in outcomes.items())}",
        f"  reads {content['bytes_to_read']:,} bytes, writes {content['bytes_to_write']:,}",
        *(f"  {tensor.outcome}: {tensor.entry.name}: {tensor.detail}" for tensor in plan.tensors if tensor.detail is not None),
    ]
    return InspectResult(content, text)
