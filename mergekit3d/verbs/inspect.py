"""``mergekit3d inspect``: what checkpoints hold, what of several can be fused, and the plan of a recipe."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.aligned import Table, printable, shortened
from mergekit3d.checkpoints import open_checkpoint
from mergekit3d.checkpoints.checkpoint import FLOATS
from mergekit3d.errors import ProblemCollector, UsageError
from mergekit3d.inspection import BY_DEFAULT_PRIVATE, FUSIBLE, INTEGER, LOWEST_COSINE, REFUSED, SHAPES_DIFFER, compare, cosines, describe
from mergekit3d.merging.partitions import BUFFERS

if TYPE_CHECKING:
    from mergekit3d.plan.fusion import FusionPlan

MOST_ROWS = 40
MOST_ITEMS = 6
WIDEST_TEXT = 300
LABEL_WIDTH, WIDEST_LABEL = 11, 40
OPTIONAL = ("others", "bias", "dtype", "kind")
OUTCOMES = {FUSIBLE: "can be fused", BY_DEFAULT_PRIVATE: "private by default", INTEGER: "integer buffers", REFUSED: "cannot be fused"}


@dataclass(frozen=True)
class InspectResult:
    """What was found.

    Args:
        content: plain data.
        blocks: lines and tables for people.
    """

    content: Mapping[str, Any]
    blocks: Sequence[str | Table]

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return dict(self.content)

    def lines(self) -> list[str]:
        """Lines for people and logs."""
        return self._lines(None)

    def fitted(self, width: int) -> list[str]:
        """The same with tables of at most `width` cells, so that no row wraps on a terminal."""
        return self._lines(width)

    def _lines(self, width: int | None) -> list[str]:
        lines: list[str] = []
        for block in self.blocks:
            if isinstance(block, Table):
                lines += block.lines(width)
            else:
                lines.append(shortened(block, WIDEST_TEXT))
        return lines


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
        values: read the tensors too: seal, ranges, NaN and Inf, and the cosine between several checkpoints.

    Raises:
        MergeKit3DError: a file or the recipe cannot be read; all problems at once.
    """
    if recipe is not None:
        return _plan(Path(recipe), overrides, values=values)
    if not paths:
        raise UsageError("nothing to inspect", wanted="checkpoints or a recipe")
    problems, opened = ProblemCollector(), []
    for path in paths:
        checkpoint = problems.attempt(lambda path=path: open_checkpoint(path, verify=values))  # type: ignore[misc]
        if checkpoint is not None:
            opened.append(checkpoint)
    problems.raise_if_any()
    found = [describe(checkpoint, values=values) for checkpoint in opened]
    if len(opened) == 1:
        table = _layer_table(found[0]["tensors"], values=values)
        return InspectResult(found[0], [*_heading(opened[0].path, found[0]), "", table])
    labels = _labels([checkpoint.path for checkpoint in opened])
    rows = compare(opened, labels)
    counts = Counter(row["outcome"] for row in rows if row["alias_of"] is None)
    content = {"checkpoints": found, "outcomes": dict(counts), "fusible": rows}
    blocks: list[str | Table] = [_short_heading(label, description) for label, description in zip(labels, found, strict=True)]
    if values:
        told = dict(zip(labels[1:], cosines(opened, rows), strict=True))
        content["cosines"] = [{"file": label, "to": labels[0], "cosine": cosine} for label, cosine in told.items()]
        blocks += _cosine_lines(labels[0], told)
    return InspectResult(content, [*blocks, *_comparison_blocks(rows)])


def _labels(paths: Sequence[Path]) -> list[str]:
    """What each file is called: its name, or its path where two have one name."""
    names = Counter(path.name for path in paths)
    return [path.name if names[path.name] == 1 else str(path) for path in paths]


def _heading(path: Path, content: Mapping[str, Any]) -> list[str]:
    """What a checkpoint is, in lines of a label and a text."""
    metadata, kind = content["metadata"], content["kind"] or "not written by mergekit3d"
    lines = [
        printable(f"{path}: {content['bytes']:,} bytes, {content['format']}, {kind}"),
        _labelled("network", f"{_network(content)}{'' if content['architecture_from'] != 'tensors' else ' (told from its tensors)'}"),
        _labelled("tensors", f"{_tensor_count(content)} in {content['layers']} layers"),
        _labelled("parameters", _parameters(content)),
    ]
    if metadata is not None:
        if metadata["task"] is not None:
            lines.append(_labelled("task", _task(metadata["task"])))
        made_by = [metadata["method"], " ".join(str(metadata["tool"][key]) for key in ("name", "version") if key in metadata["tool"])]
        lines.append(_labelled("made by", ", ".join(str(part) for part in made_by if part) or "unknown"))
        lines += _provenance(metadata["provenance"])
    if "seal" in content:
        lines.append(_labelled("seal", content["seal"] or "none"))
        lines += [_labelled("not finite", f"{bad['count']:,} NaN or Inf in {bad['name']}") for bad in content["not_finite"][:MOST_ROWS]]
    return lines


def _labelled(label: str, text: str) -> str:
    return printable(f"  {shortened(label, WIDEST_LABEL):<{LABEL_WIDTH}} {text}")


def _network(content: Mapping[str, Any]) -> str:
    network = content["architecture"]
    if network is None:
        return "unknown"
    further = [f"{key} {value}" for key, value in network.items() if key not in ("name", "in_channels", "out_channels")]
    return ", ".join([str(network["name"]), f"{network['in_channels']} inputs", f"{network['out_channels']} outputs", *further])


def _tensor_count(content: Mapping[str, Any]) -> str:
    names, distinct = len(content["tensors"]), content["distinct_tensors"]
    counts = content["dtypes"]
    dtypes = ", ".join(counts if len(counts) == 1 else (f"{count} {dtype}" for dtype, count in counts.items()))
    return f"{distinct} ({dtypes})" if names == distinct else f"{distinct} ({dtypes}) under {names} names"


def _parameters(content: Mapping[str, Any]) -> str:
    counts = [f"{count:,} {partition}" for partition, count in content["parameters"].items()]
    return ", ".join([*counts, *([f"{content['buffers']} buffers"] if content["buffers"] else [])])


def _task(task: Mapping[str, Any]) -> str:
    spacing = "" if task["spacing_mm"] is None else f", {' x '.join(f'{length:g}' for length in task['spacing_mm'])} mm"
    classes = " (exclusive)" if task["exclusive"] else ""
    outputs = ", ".join(name for name, _ in task["outputs"])
    return f"{' + '.join(task['modalities'])} to {outputs}{classes}; {task['normalisation']}{spacing}"


def _provenance(provenance: Mapping[str, Any]) -> list[str]:
    """A line each on what the file was made from; digests by their first 12 digits."""
    lines = []
    for key, value in list(provenance.items())[:MOST_ROWS]:
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for number, item in enumerate(value[:MOST_ROWS]):
                lines.append(_labelled(key if number == 0 else "", _entries(item)))
        elif isinstance(value, dict):
            lines.append(_labelled(key, _entries(value)))
        elif value is not None:
            items = value if isinstance(value, list) else [value]
            lines.append(_labelled(key, ", ".join(map(_scalar, items[:MOST_ITEMS])) + _more(items)))
    return lines


def _entries(item: Mapping[str, Any]) -> str:
    told = {key: value for key, value in item.items() if value is not None and key != "name"}
    text = ", ".join(f"{shortened(key, WIDEST_LABEL)} {_scalar(value)}" for key, value in list(told.items())[:MOST_ITEMS]) + _more(told)
    return f"{_scalar(item['name'])}: {text}" if "name" in item else text


def _more(items: Sequence[Any] | Mapping[str, Any]) -> str:
    return f" and {len(items) - MOST_ITEMS} more" if len(items) > MOST_ITEMS else ""


def _scalar(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return f"({len(value)})"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text[:12] if len(text) == 64 and set(text) <= set("0123456789abcdef") else shortened(text, 60)


def _layer_table(tensors: Sequence[Mapping[str, Any]], *, values: bool) -> Table:
    """A row a layer."""
    layers: dict[str, list[Mapping[str, Any]]] = {}
    for tensor in tensors:
        layers.setdefault(tensor["layer"], []).append(tensor)
    numbers = ("min", "max", "rms", "NaN/Inf") if values else ()
    headings = ("layer", "kind", "weight", "bias", "others", "dtype", "parameters", "partition", *numbers, "aliases")
    rows: list[tuple[str, ...]] = []
    for layer, members in layers.items():
        owner = _owner_of(members)
        figures = _ranges(members) if values else ()
        rows.append((layer, f"= {owner}") if owner else (*_layer_row(layer, members), *figures, _aliases(members)))
    return Table(headings, rows, frozenset({"parameters", *numbers}), frozenset({"layer", "others", "aliases"}), OPTIONAL)


def _layer_row(layer: str, members: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    shapes = {tensor["name"].removeprefix(f"{layer}."): _shape(tensor["shape"]) for tensor in members}
    # A name without a dot is a layer of its own.
    weight = shapes.pop("weight", "") or shapes.pop(layer, "")
    bias = shapes.pop("bias", "")
    others = [f"{leaf} {shape}" for leaf, shape in shapes.items() if leaf not in BUFFERS]
    buffers = len(shapes) - len(others)
    trained = [tensor for tensor in members if tensor["dtype"] in FLOATS and tensor["name"].rpartition(".")[2] not in BUFFERS]
    own = [math.prod(tensor["shape"]) for tensor in trained if tensor["alias_of"] is None]
    return (
        layer,
        members[0]["kind"],
        weight,
        bias,
        ", ".join([*others, *([f"{buffers} buffers"] if buffers else [])]),
        _joined(tensor["dtype"] for tensor in trained or members),
        f"{sum(own):,}" if own else "",
        _joined(tensor["partition"] for tensor in members),
    )


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _joined(words: Iterable[str]) -> str:
    return "+".join(dict.fromkeys(words))


def _ranges(members: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Lowest, highest and root mean square over the float tensors of a layer, and the number of NaN and Inf."""
    told = [tensor for tensor in members if tensor.get("rms") is not None]
    bad = sum(tensor.get("nan", 0) + tensor.get("inf", 0) for tensor in members)
    if not told:
        return "", "", "", f"{bad:,}" if bad else ""
    sizes = [math.prod(tensor["shape"]) - tensor["nan"] - tensor["inf"] for tensor in told]
    squares = sum(size * tensor["rms"] ** 2 for size, tensor in zip(sizes, told, strict=True))
    figures = min(tensor["min"] for tensor in told), max(tensor["max"] for tensor in told), math.sqrt(squares / sum(sizes))
    return (*(f"{figure:.3g}" for figure in figures), f"{bad:,}" if bad else "")


def _owner_of(members: Sequence[Mapping[str, Any]]) -> str | None:
    """The layer that this one is a further name of, in all its tensors."""
    owners = {str(tensor["alias_of"]).rpartition(".")[::2] for tensor in members if tensor["alias_of"] is not None}
    leaves = {tensor["name"].rpartition(".")[2] for tensor in members}
    layers = {owner for owner, _ in owners}
    same = len(owners) == len(members) and len(layers) == 1 and {leaf for _, leaf in owners} == leaves
    return layers.pop() if same else None


def _aliases(members: Sequence[Mapping[str, Any]]) -> str:
    """Tensors of a layer that are further names of others, where not all are."""
    return ", ".join(f"{tensor['name'].rpartition('.')[2]} = {tensor['alias_of']}" for tensor in members if tensor["alias_of"] is not None)


def _short_heading(label: str, content: Mapping[str, Any]) -> str:
    metadata = content["metadata"]
    task = "" if metadata is None or metadata["task"] is None else f"; {_task(metadata['task'])}"
    return printable(f"{label}: {_network(content)}{'' if content['architecture'] else ' network'}; tensors {_tensor_count(content)}{task}")


def _cosine_lines(first: str, told: Mapping[str, float | None]) -> list[str]:
    """How far the weights correspond to the first checkpoint's."""
    lines = []
    for label, cosine in told.items():
        figure = "not defined" if cosine is None else f"{cosine:.3f}"
        apart = cosine is not None and abs(cosine) < LOWEST_COSINE
        remark = "; not trained from one another: fusing them breaks them" if apart else ""
        lines.append(printable(f"cosine of the weights of {label} to those of {first}: {figure}{remark}"))
    return lines


def _comparison_blocks(rows: Sequence[Mapping[str, Any]]) -> list[str | Table]:
    """Counts by outcome, then the tensors that cannot be fused or need a remark."""
    own = [row for row in rows if row["alias_of"] is None]
    counts = Counter(row["outcome"] for row in own)
    names = "" if len(own) == len(rows) else f" (under {len(rows)} names)"
    summary = ", ".join(f"{counts[outcome]} {words}" for outcome, words in OUTCOMES.items() if counts[outcome])
    blocks: list[str | Table] = [f"{len(own)} tensors{names}: {summary}"]
    for outcome in reversed(OUTCOMES):
        table = _remark_table([row for row in own if row["outcome"] == outcome])
        if table.rows:
            blocks += ["", f"{OUTCOMES[outcome]}:", Table(table.headings, table.rows[:MOST_ROWS], table.right, table.flexible)]
            blocks += [f"and {len(table.rows) - MOST_ROWS} more kinds; --json tells all"] if len(table.rows) > MOST_ROWS else []
    return blocks


def _remark_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows that carry a reason or a remark, those of one text together."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        shapes = " / ".join("none" if shape is None else _shape(shape) for shape in row["shapes"])
        reason = f"shapes differ: {shapes}" if row["reason"] == SHAPES_DIFFER else row["reason"]
        why = "; ".join(text for text in (reason, row["remark"]) if text)
        if why:
            groups.setdefault(why, []).append(row["name"])
    table = [(f"{len(names)}", names[0], why) for why, names in groups.items()]
    return Table(("tensors", "the first", "why"), table, frozenset({"tensors"}), frozenset({"the first", "why"}))


def _differ(items: Sequence[Any]) -> bool:
    return any(item != items[0] for item in items)


def _plan(recipe: Path, overrides: Sequence[str], *, values: bool) -> InspectResult:
    from mergekit3d.plan.fusion import plan_fusion
    from mergekit3d.recipe import load_recipe

    plan = plan_fusion(load_recipe(recipe, overrides=overrides), verify=values)
    sources = plan.sources if plan.base is None else (*plan.sources, plan.base)
    files = [file for source in sources for file in (source.checkpoint, source.fisher) if file is not None]
    files += [] if plan.adapted is None else [plan.adapted]
    content = {
        "method": plan.method.name,
        "sources": [source.name for source in plan.sources],
        "bytes_to_read": sum(path.stat().st_size for path in {file.path for file in files}),
        "bytes_to_write": sum(tensor.entry.nbytes for tensor in plan.tensors),
        "outcomes": dict(Counter(tensor.outcome for tensor in plan.tensors)),
        "ratios": plan.ratios.as_json(),
        "remarks": list(plan.remarks),
        "tensors": [
            {
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
            for tensor in plan.tensors
        ],
    }
    return InspectResult(content, _plan_blocks(plan, content))


def _plan_blocks(plan: FusionPlan, content: Mapping[str, Any]) -> list[str | Table]:
    names = [source.name for source in plan.sources]
    blocks: list[str | Table] = [
        printable(f"{plan.method.name} of {', '.join(names)}: {len(plan.owners)} tensors"),
        f"  reads {content['bytes_to_read']:,} bytes, writes {content['bytes_to_write']:,}",
        *(printable(f"  {remark}") for remark in plan.remarks),
        "",
        _outcome_table(plan),
    ]
    details = [(tensor.entry.name, tensor.outcome, tensor.detail) for tensor in plan.owners if tensor.detail is not None]
    if details:
        blocks += ["", Table(("tensor", "outcome", "why"), details[:MOST_ROWS], flexible=frozenset({"tensor", "why"}))]
        blocks += [f"and {len(details) - MOST_ROWS} more; --json tells all"] if len(details) > MOST_ROWS else []
    rows = plan.ratios.layers
    if rows and not _differ([list(row) for row in rows.values()]):
        told = ", ".join(f"{name} {_ratio(ratio)}" for name, ratio in zip(names, next(iter(rows.values())), strict=True))
        return [*blocks, "", printable(f"ratios of all {len(rows)} groups: {told}")]
    table, heading = [(group, *map(_ratio, row)) for group, row in rows.items()], f"ratios by {plan.ratios.granularity}"
    return [*blocks, "", Table((heading, *names), table, frozenset(names), frozenset({heading}))]


def _outcome_table(plan: FusionPlan) -> Table:
    """What becomes of how many tensors, and how large they are."""
    counts: dict[tuple[str, str, str], list[int]] = {}
    for tensor in plan.owners:
        key = (tensor.outcome, tensor.partition, tensor.origin or "")
        size = math.prod(tensor.entry.shape)
        counts.setdefault(key, []).append(size)
    rows = [(outcome, partition, origin, f"{len(sizes)}", f"{sum(sizes):,}") for (outcome, partition, origin), sizes in counts.items()]
    return Table(("outcome", "partition", "from", "tensors", "entries"), rows, frozenset({"tensors", "entries"}))


def _ratio(ratio: Any) -> str:
    """A ratio, or the range of the ratios of a layer's kernels."""
    return f"{ratio:.3f}" if isinstance(ratio, (int, float)) else f"{min(ratio):.3f} to {max(ratio):.3f}"
