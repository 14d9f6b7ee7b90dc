"""``mergekit3d inspect``: what checkpoints hold, what of several can be fused, and the plan of a recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit3d.aligned import Table, printable, shortened
from mergekit3d.checkpoints import open_checkpoint
from mergekit3d.checkpoints.ancestry import INPUTS, origin_lines
from mergekit3d.checkpoints.checkpoint import FLOATS
from mergekit3d.checkpoints.formats import recognise
from mergekit3d.errors import ProblemCollector, UsageError
from mergekit3d.inspection import describe
from mergekit3d.merging.partitions import BUFFERS

MOST_ROWS = 40
MOST_ITEMS = 6
WIDEST_TEXT = 300
LABEL_WIDTH, WIDEST_LABEL = 11, 40
OPTIONAL = ("others", "bias", "dtype", "kind", "partition")


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
    paths: Path | str | Sequence[Path | str] = (),
    *,
    recipe: Path | str | None = None,
    overrides: Sequence[str] = (),
    allow_outside: Sequence[Path | str] = (),
    layout: str = "auto",
    values: bool = False,
    names: bool = False,
) -> InspectResult:
    """Show checkpoints, a data folder, or the plan of a recipe.

    Args:
        paths: one checkpoint, several to compare, or one folder or list of subjects.
        recipe: show what its fusion would do, without doing it.
        overrides: ``key.path=value`` each, for the recipe.
        allow_outside: folders beside the recipe's own that it may write to.
        layout: of a data folder.
        values: of a data folder, read every label map; of checkpoints, read the tensors too: seal, ranges, NaN and Inf; between
            several checkpoints the cosine of all weights, not of samples.
        names: of a data folder, tell the name of every subject beside its number.

    Raises:
        MergeKit3DError: a file or the recipe cannot be read; all problems at once.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    is_data = len(paths) == 1 and recipe is None and _is_data(Path(paths[0]))
    if names and not is_data:
        raise UsageError("--names is for data", wanted="one folder or list of subjects", todo="leave --names out, or name the data")
    if recipe is not None:
        if paths:
            raise UsageError("inspect takes checkpoints or a recipe, not both", todo="leave one of them out")
        from mergekit3d.verbs.inspect_plan import inspect_plan

        return inspect_plan(Path(recipe), overrides, values=values, allow_outside=allow_outside)
    if not paths:
        raise UsageError("nothing to inspect", wanted="checkpoints or a recipe")
    if is_data:
        from mergekit3d.verbs.inspect_data import inspect_data

        return inspect_data(Path(paths[0]), layout, values=values, names=names)
    problems, opened = ProblemCollector(), []
    for path in paths:
        checkpoint = problems.attempt(lambda path=path: open_checkpoint(path, verify=values))  # type: ignore[misc]
        if checkpoint is not None:
            opened.append(checkpoint)
    problems.raise_if_any()
    found = [describe(checkpoint, values=values) for checkpoint in opened]
    if len(opened) > 1:
        from mergekit3d.verbs.inspect_several import inspect_several

        return inspect_several(opened, found, values=values)
    table = _layer_table(found[0]["tensors"], values=values)
    return InspectResult(found[0], [*_heading(opened[0].path, found[0]), "", table])


def _is_data(path: Path) -> bool:
    """Whether a path is a folder without a checkpoint, or named like a list of subjects."""
    if path.is_dir():
        return recognise(path) is None
    from mergekit3d.datasets.find import is_list

    return is_list(path)


def _heading(path: Path, content: Mapping[str, Any]) -> list[str]:
    """What a checkpoint is, in lines of a label and a text."""
    metadata, kind = content["metadata"], content["kind"] or "not written by mergekit3d"
    lines = [
        printable(f"{path}: {content['bytes']:,} bytes, {content['format']}, {kind}"),
        _labelled("network", f"{network_text(content)}{'' if content['architecture_from'] != 'tensors' else ' (told from its tensors)'}"),
        _labelled("tensors", f"{tensor_count(content)} in {content['layers']} layers"),
        _labelled("parameters", _parameters(content)),
    ]
    if metadata is not None:
        if metadata["task"] is not None:
            lines.append(_labelled("task", task_text(metadata["task"])))
        made_by = [metadata["method"], " ".join(str(metadata["tool"][key]) for key in ("name", "version") if key in metadata["tool"])]
        lines.append(_labelled("made by", ", ".join(str(part) for part in made_by if part) or "unknown"))
        tree = origin_lines(content["origins"]) if "ancestry" in metadata and content["origins"] is not None else []
        lines += _provenance({key: value for key, value in metadata["provenance"].items() if not tree or key not in INPUTS})
        lines += [_labelled("made from" if number == 0 else "", line) for number, line in enumerate(tree)]
    if "seal" in content:
        lines.append(_labelled("seal", content["seal"] or "none"))
        lines += [_labelled("not finite", f"{bad['count']:,} NaN or Inf in {bad['name']}") for bad in content["not_finite"][:MOST_ROWS]]
    return lines


def _labelled(label: str, text: str) -> str:
    return printable(f"  {shortened(label, WIDEST_LABEL):<{LABEL_WIDTH}} {text}")


def network_text(content: Mapping[str, Any]) -> str:
    """Name, inputs, outputs and further arguments of a network."""
    network = content["architecture"]
    if network is None:
        return "unknown"
    told = {key: value for key, value in network.items() if key not in ("name", "in_channels", "out_channels") and _is_short(value)}
    further = [f"{key} {value}" for key, value in told.items()]
    return ", ".join([str(network["name"]), f"{network['in_channels']} inputs", f"{network['out_channels']} outputs", *further])


def _is_short(value: Any) -> bool:
    """Whether an argument is shown: a number, a name, numbers in a list."""
    return not isinstance(value, Mapping) and not (isinstance(value, list) and any(isinstance(item, str) for item in value))


def tensor_count(content: Mapping[str, Any]) -> str:
    """Number of tensors by dtype, and of their names where some have several."""
    names, distinct = len(content["tensors"]), content["distinct_tensors"]
    counts = content["dtypes"]
    dtypes = ", ".join(counts if len(counts) == 1 else (f"{count} {dtype}" for dtype, count in counts.items()))
    text = f"{distinct} ({dtypes})" if distinct else "none"
    return text if names == distinct else f"{text} under {names} names"


def _parameters(content: Mapping[str, Any]) -> str:
    counts = [f"{count:,} {partition}" for partition, count in content["parameters"].items()]
    counts[-1] += f" ({', '.join(content['private'])})"
    return ", ".join([*counts, *([f"{content['buffers']} buffers"] if content["buffers"] else [])])


def task_text(task: Mapping[str, Any]) -> str:
    """Modalities, outputs and how intensities are normalised."""
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
            lines.append(_labelled(key, ", ".join(map(scalar_text, items[:MOST_ITEMS])) + _more(items)))
    return lines


def _entries(item: Mapping[str, Any]) -> str:
    told = {key: value for key, value in item.items() if value is not None and key != "name"}
    text = ", ".join(f"{shortened(key, WIDEST_LABEL)} {scalar_text(value)}" for key, value in list(told.items())[:MOST_ITEMS]) + _more(told)
    return f"{scalar_text(item['name'])}: {text}" if "name" in item else text


def _more(items: Sequence[Any] | Mapping[str, Any]) -> str:
    return f" and {len(items) - MOST_ITEMS} more" if len(items) > MOST_ITEMS else ""


def scalar_text(value: Any) -> str:
    """A value in a few words; a digest by its first digits."""
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
    shapes = {tensor["name"].removeprefix(f"{layer}."): shape_text(tensor["shape"]) for tensor in members}
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


def shape_text(shape: Sequence[int]) -> str:
    """The sizes of the axes."""
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
