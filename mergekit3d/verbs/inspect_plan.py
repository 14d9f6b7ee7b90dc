"""The plan of a recipe's fusion, without running it: the part of ``mergekit3d inspect`` behind ``--recipe``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit3d.aligned import Table, printable
from mergekit3d.checkpoints.formats import FORMATS, size_of
from mergekit3d.engine.correspondence import sampled_cosines, warnings_on
from mergekit3d.merging.partitions import layer_of
from mergekit3d.plan.fusion import FusionPlan, plan_fusion
from mergekit3d.plan.outcomes import TensorPlan
from mergekit3d.plan.ratios import ADAPTED_RATIOS, ratios_path
from mergekit3d.recipe import LoadedRecipe, load_recipe
from mergekit3d.verbs.inspect import MOST_ROWS, InspectResult, scalar_text, shape_text

MOST_RATIO_COLUMNS = 4
UNLEARNED = "adapt has not learned the ratios yet: those below are uniform, and its private tensors are random, as it begins"
FROM_VALIDATION = "which sources are averaged is chosen by the Dice of validation subjects when it runs; the ratios below are those of all"


def inspect_plan(recipe: Path, overrides: Sequence[str], *, values: bool, allow_outside: Sequence[Path | str] = ()) -> InspectResult:
    """Plan the fusion of a recipe.

    Args:
        recipe: YAML file with sources and merge.
        overrides: ``key.path=value`` each.
        values: read every file: seals, NaN and Inf, and whether a Fisher diagonal is of its weights.
        allow_outside: folders beside the recipe's own that the recipe may write to.

    Raises:
        MergeKit3DError: every problem of the recipe and its checkpoints at once.
    """
    loaded = load_recipe(recipe, overrides=overrides, allow_outside=allow_outside)
    unlearned = _awaits_adaptation(loaded)
    plan = plan_fusion(loaded, uniform=unlearned, verify=values)
    cosines = sampled_cosines(plan)
    content = {
        "method": plan.method.name,
        "parameters": plan.parameters.model_dump(mode="json"),
        "sources": [source.name for source in plan.sources],
        "base": None if plan.base is None else plan.base.name,
        "seed": plan.seed,
        "bytes_to_read": _bytes_to_read(plan),
        "bytes_to_write": _bytes_to_write(plan, loaded),
        "outcomes": dict(Counter(tensor.outcome for tensor in plan.tensors)),
        "ratios": plan.ratios.as_json(),
        "remarks": [*plan.remarks, *([FROM_VALIDATION] if plan.method.evaluates else []), *([UNLEARNED] if unlearned else [])],
        "cosines": cosines,
        "warnings": warnings_on(cosines, plan.sources[0].name),
        "tensors": [_tensor(plan, tensor) for tensor in plan.tensors],
    }
    return InspectResult(content, [*map(printable, _heading(plan, content)), "", _outcome_table(plan), "", _layer_table(plan)])


def _awaits_adaptation(loaded: LoadedRecipe) -> bool:
    """Whether the ratios are those that ``adapt`` writes, and it has not."""
    return ratios_path(loaded) == (ratios := loaded.output_path(ADAPTED_RATIOS)) and not ratios.exists()


def _bytes_to_read(plan: FusionPlan) -> int:
    return sum(size_of(path) for path in {file.path for file in plan.inputs})


def _bytes_to_write(plan: FusionPlan, loaded: LoadedRecipe) -> int:
    """Bytes of the values; a tensor with several names is written once where the format can say so."""
    once = loaded.merge_path.suffix.lower() in FORMATS.get("pt").suffixes
    return sum(tensor.entry.nbytes for tensor in (plan.owners if once else plan.tensors))


def _tensor(plan: FusionPlan, tensor: TensorPlan) -> dict[str, Any]:
    return {
        "name": tensor.entry.name,
        "dtype": tensor.entry.dtype,
        "shape": list(tensor.entry.shape),
        "partition": tensor.partition,
        "outcome": tensor.outcome,
        "origin": tensor.origin,
        "ratios": None if tensor.group is None else list(plan.ratios.layers[tensor.group]),
        "detail": tensor.detail,
        "alias_of": tensor.alias_of,
    }


def _heading(plan: FusionPlan, content: Mapping[str, Any]) -> list[str]:
    lines = [f"{plan.method.name} of {', '.join(content['sources'])}: {len(plan.owners)} tensors"]
    if content["parameters"]:
        lines.append(f"  parameters: {', '.join(f'{key} {scalar_text(value)}' for key, value in content['parameters'].items())}")
    if plan.base is not None:
        lines.append(f"  differences are taken from {plan.base.name}")
    lines.append(f"  reads {content['bytes_to_read']:,} bytes, writes {content['bytes_to_write']:,}")
    further = len(plan.tensors) - len(plan.owners)
    if further:
        lines.append(f"  {further} of {len(plan.tensors)} names are further names of other tensors: merged once, written each")
    lines += [f"  {remark}" for remark in (*content["remarks"], *_details(plan))]
    return [*lines, *(f"  warning: {warning}" for warning in content["warnings"])]


def _details(plan: FusionPlan) -> list[str]:
    """What there is to explain, a line each; tensors of one explanation together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for tensor in plan.owners:
        if tensor.detail is not None:
            groups.setdefault((tensor.outcome, tensor.detail), []).append(tensor.entry.name)
    lines = [
        f"{outcome}: {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {detail}"
        for (outcome, detail), names in groups.items()
    ]
    return [*lines[:MOST_ROWS], *([f"and {len(lines) - MOST_ROWS} more; --json tells all"] if len(lines) > MOST_ROWS else [])]


def _outcome_table(plan: FusionPlan) -> Table:
    """What becomes of how many tensors, and how large they are."""
    sizes: dict[tuple[str, str, str], list[int]] = {}
    for tensor in plan.owners:
        sizes.setdefault((tensor.outcome, tensor.partition, tensor.origin or ""), []).append(math.prod(tensor.entry.shape))
    rows = [(*key, f"{len(found)}", f"{sum(found):,}") for key, found in sizes.items()]
    return Table(("outcome", "partition", "from", "tensors", "entries"), rows, frozenset({"tensors", "entries"}))


def _layer_table(plan: FusionPlan) -> Table:
    """A row a layer; several where not all of its tensors go the same way."""
    ways: dict[tuple[Any, ...], list[TensorPlan]] = {}
    for tensor in plan.owners:
        ways.setdefault((layer_of(tensor.entry.name), tensor.outcome, tensor.origin, tensor.group), []).append(tensor)
    whole = Counter(layer for layer, *_ in ways)
    names = tuple(source.name for source in plan.sources)
    apart = len(names) <= MOST_RATIO_COLUMNS
    rows = []
    for (layer, outcome, origin, group), members in ways.items():
        # Where a layer has several rows, each is named after its first tensor.
        name = layer if whole[layer] == 1 else members[0].entry.name
        ratios = ["" for _ in names] if group is None else [_ratio(row) for row in plan.ratios.layers[group]]
        shapes = ", ".join(shape_text(tensor.entry.shape) for tensor in members)
        rows.append((name, outcome, origin or "", shapes, *(ratios if apart else [" ".join(ratios).strip()])))
    headings = ("layer", "outcome", "from", "shapes", *(names if apart else ["ratios"]))
    flexible = frozenset({"layer"} if apart else {"layer", "ratios"})
    return Table(headings, rows, frozenset(names if apart else ()), flexible, ("shapes", "from"))


def _ratio(ratio: Any) -> str:
    """A ratio, or the range of the ratios of a layer's kernels."""
    return f"{ratio:.3f}" if isinstance(ratio, (int, float)) else f"{min(ratio):.3f} to {max(ratio):.3f}"
