"""What of several checkpoints can be fused, and why the rest cannot: the part of ``mergekit3d inspect`` that compares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mergekit3d.aligned import Table, printable
from mergekit3d.checkpoints import FISHER, Checkpoint
from mergekit3d.inspection import BY_DEFAULT_PRIVATE, FUSIBLE, INTEGER, REFUSED, SHAPES_DIFFER, compare, cosines, weights_to_compare
from mergekit3d.merging.correspondence import LOWEST_COSINE, SAMPLE_ENTRIES, warnings_on
from mergekit3d.verbs.inspect import MOST_ROWS, InspectResult, network_text, shape_text, task_text, tensor_count

__all__ = ["LOWEST_COSINE", "SAMPLE_ENTRIES", "inspect_several", "sampled_cosine"]

OUTCOMES = {FUSIBLE: "can be fused", BY_DEFAULT_PRIVATE: "private by default", INTEGER: "integer buffers", REFUSED: "cannot be fused"}


def inspect_several(opened: Sequence[Checkpoint], found: Sequence[Mapping[str, Any]], *, values: bool) -> InspectResult:
    """Compare checkpoints.

    Args:
        opened: two or more.
        found: what `describe` tells of each.
        values: take the cosines over all entries; else over the first ones of every weight.
    """
    labels = _labels([checkpoint.path for checkpoint in opened])
    rows = compare(opened, labels)
    told = {label: _cosine_to(opened[0], other, values=values) for label, other in zip(labels[1:], opened[1:], strict=True)}
    warnings = [
        *(f"{label} is a Fisher diagonal, no weights" for label, content in zip(labels, found, strict=True) if content["kind"] == FISHER),
        *warnings_on(told, labels[0]),
    ]
    content = {
        "checkpoints": list(found),
        "outcomes": dict(Counter(row["outcome"] for row in rows if row["alias_of"] is None)),
        "cosines": [{"file": label, "to": labels[0], "cosine": cosine, "sampled": not values} for label, cosine in told.items()],
        "warnings": warnings,
        "fusible": rows,
    }
    how = "" if values else " (sampled; --values takes all entries)"
    blocks = [
        *(_short_heading(label, description) for label, description in zip(labels, found, strict=True)),
        *(f"cosine of the weights of {label} to those of {labels[0]}: {_figure(cosine)}{how}" for label, cosine in told.items()),
        *(f"warning: {warning}" for warning in warnings),
    ]
    return InspectResult(content, [*map(printable, blocks), *_comparison_blocks(rows)])


def _cosine_to(first: Checkpoint, other: Checkpoint, *, values: bool) -> float | None:
    """Of two alone: what a third one lacks is no reason to tell nothing of them."""
    pair = (first, other)
    rows = compare(pair, ("", ""))
    return cosines(pair, rows)[0] if values else sampled_cosine(pair, rows)


def sampled_cosine(pair: tuple[Checkpoint, Checkpoint], rows: Sequence[Mapping[str, Any]]) -> float | None:
    """What `cosines` computes, over the first entries of every weight alone: cheap, whatever the size of the files."""
    names = weights_to_compare(pair[0], rows)
    if not names:
        return None
    left, right = (np.concatenate([checkpoint.read_first(name, SAMPLE_ENTRIES).astype("f8") for name in names]) for checkpoint in pair)
    with np.errstate(all="ignore"):  # what is not finite has no cosine
        scale = float(np.linalg.norm(left) * np.linalg.norm(right))
        cosine = float(left @ right) / scale if scale > 0 else np.nan
    return cosine if np.isfinite(cosine) else None


def _figure(cosine: float | None) -> str:
    return "not defined" if cosine is None else f"{cosine:.3f}"


def _labels(paths: Sequence[Path]) -> list[str]:
    """What each file is called: its name, or its path where two have one name."""
    names = Counter(path.name for path in paths)
    return [path.name if names[path.name] == 1 else str(path) for path in paths]


def _short_heading(label: str, content: Mapping[str, Any]) -> str:
    metadata = content["metadata"]
    task = "" if metadata is None or metadata["task"] is None else f"; {task_text(metadata['task'])}"
    return printable(
        f"{label}: {network_text(content)}{'' if content['architecture'] else ' network'}; tensors {tensor_count(content)}{task}"
    )


def _comparison_blocks(rows: Sequence[Mapping[str, Any]]) -> list[str | Table]:
    """Counts by outcome, then the tensors that cannot be fused or need a remark."""
    own = [row for row in rows if row["alias_of"] is None]
    counts = Counter(row["outcome"] for row in own)
    names = "" if len(own) == len(rows) else f" (under {len(rows)} names)"
    summary = ", ".join(f"{counts[outcome]} {words}" for outcome, words in OUTCOMES.items() if counts[outcome])
    blocks: list[str | Table] = [f"{len(own)} tensors{names}: {summary or 'nothing to fuse'}"]
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
        shapes = " / ".join("none" if shape is None else shape_text(shape) for shape in row["shapes"])
        reason = f"shapes differ: {shapes}" if row["reason"] == SHAPES_DIFFER else row["reason"]
        why = "; ".join(text for text in (reason, row["remark"]) if text)
        if why:
            groups.setdefault(why, []).append(row["name"])
    table = [(f"{len(names)}", names[0], why) for why, names in groups.items()]
    return Table(("tensors", "the first", "why"), table, frozenset({"tensors"}), frozenset({"the first", "why"}))
