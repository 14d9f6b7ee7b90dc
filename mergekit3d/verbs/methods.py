"""``mergekit3d methods``: the merge methods that a recipe can name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mergekit3d.merging.methods import METHODS, MergeMethod


@dataclass(frozen=True)
class MethodEntry:
    """What a person wants to know of a merge method.

    Args:
        name: ``merge.method``.
        summary: what it computes.
        reference: the paper.
        needs: what it takes beside the sources: Fisher diagonals, a base, validation data.
        parameters: ``merge.parameters`` by name: default and description.
    """

    name: str
    summary: str
    reference: str
    needs: tuple[str, ...]
    parameters: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class MethodList:
    """The merge methods.

    Args:
        entries: by name.
    """

    entries: tuple[MethodEntry, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``: by name."""
        return {entry.name: {key: value for key, value in vars(entry).items() if key != "name"} for entry in self.entries}

    def lines(self) -> list[str]:
        """A line each, with what it needs, its parameters and its reference below."""
        width = max((len(entry.name) for entry in self.entries), default=0)
        return [line for entry in self.entries for line in _lines(entry, width)]


def methods() -> MethodList:
    """Every merge method: what it computes, what it needs, its parameters, its reference."""
    return MethodList(tuple(_entry(method) for _, method in sorted(METHODS.items())))


def _lines(entry: MethodEntry, width: int) -> list[str]:
    needs = [f"needs {', '.join(entry.needs)}"] if entry.needs else []
    parameters = [f"parameters.{name} ({field['default']}): {field['description']}" for name, field in entry.parameters.items()]
    return [f"{entry.name:<{width}}  {entry.summary}", *(" " * (width + 2) + text for text in (*needs, *parameters, entry.reference))]


def _entry(method: MergeMethod) -> MethodEntry:
    needs = {
        "Fisher diagonals": method.uses_fisher,
        "ratios from adapt": method.learned_ratios,
        "merge.base": method.uses_base,
        "validation subjects of the target": method.evaluates,
        f"{method.sources} sources": method.sources is not None,
    }
    parameters = {
        name: {"default": field.default, "description": field.description or ""} for name, field in method.parameters.model_fields.items()
    }
    return MethodEntry(method.name, method.summary, method.reference, tuple(what for what, wanted in needs.items() if wanted), parameters)
