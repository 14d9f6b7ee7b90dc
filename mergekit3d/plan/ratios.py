"""Mixing ratios of a recipe: uniform, by source, by glob, or from the file that ``adapt`` wrote."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit3d.errors import InputError, RecipeError
from mergekit3d.recipe.load import LoadedRecipe
from mergekit3d.registry import did_you_mean
from mergekit3d.storage.atomic import write_json
from mergekit3d.textfiles import read_json_object

ADAPTED_RATIOS = Path("adapt") / "ratios.json"
GroupRatios = Sequence[float] | Sequence[Sequence[float]]


@dataclass(frozen=True)
class Ratios:
    """The ratios of every group.

    Args:
        sources: names, in the order of the ratios.
        granularity: model, layer, tensor or kernel.
        layers: one ratio a source for every group; for kernel, one list over the output channels a source.
    """

    sources: tuple[str, ...]
    granularity: str
    layers: Mapping[str, GroupRatios]

    def as_json(self) -> dict[str, Any]:
        """The content of ratios.json."""
        return {
            "sources": list(self.sources),
            "granularity": self.granularity,
            "layers": {name: list(row) for name, row in self.layers.items()},
        }


def write_ratios(path: Path, ratios: Ratios) -> None:
    """Write ratios.json atomically."""
    write_json(path, ratios.as_json())


def read_ratios(path: Path) -> Ratios:
    """Read ratios.json.

    Raises:
        InputError: missing, damaged, or ratios that are negative, not finite or all zero.
    """
    if not path.exists():
        raise InputError("no mixing ratios", where=path, todo="run adapt first, or set merge.ratios: uniform")
    content = read_json_object(path, "the mixing ratios")
    try:
        ratios = Ratios(tuple(content["sources"]), content["granularity"], dict(content["layers"]))
        good = all(len(row) == len(ratios.sources) and _is_distribution(row) for row in ratios.layers.values())
        good = good and all(isinstance(name, str) for name in ratios.sources)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "damaged mixing ratios", where=path, wanted="sources, granularity and layers", found=type(error).__name__
        ) from error
    if not good:
        raise InputError("damaged mixing ratios", where=path, wanted="a ratio >= 0 for each source, not all 0 (by kernel: above 0)")
    return ratios


def _is_distribution(row: Any) -> bool:
    """One number a source, or one list a source, of one length; a kernel cannot leave a source out."""
    by_kernel = any(isinstance(part, list) for part in row)
    flat = [value for values in zip(*row, strict=True) for value in values] if by_kernel else list(row)
    good = all(type(value) in (int, float) and math.isfinite(value) and value >= 0 for value in flat)
    return good and (min(flat, default=0) if by_kernel else sum(flat)) > 0


def ratios_path(loaded: LoadedRecipe) -> Path | None:
    """The file that a recipe's ratios come from; None where they are given in the recipe itself."""
    given = loaded.recipe.merge.ratios
    if given is None and loaded.recipe.merge.method == "timm":
        return loaded.output_path(ADAPTED_RATIOS)
    if isinstance(given, str) and given != "uniform":
        return loaded.output_path(given)
    return None


def resolve_ratios(loaded: LoadedRecipe, groups: Sequence[str]) -> Ratios:
    """The ratios of every group of a fusion.

    Args:
        loaded: the recipe.
        groups: names of the groups, as of `ratio_groups`.

    Raises:
        InputError: a ratio file that is missing, damaged or of other sources or layers.
        RecipeError: ratios for unknown sources.
    """
    recipe = loaded.recipe
    names = tuple(source.name for source in recipe.sources)
    path = ratios_path(loaded)
    if path is not None:
        return _from_file(read_ratios(path), path, names, recipe.merge.granularity, groups)
    given = recipe.merge.ratios if isinstance(recipe.merge.ratios, dict) else {}
    _check_given(given, groups, names)
    rows = {group: _row(given, group, names) for group in groups}
    return Ratios(names, recipe.merge.granularity, rows)


def _from_file(ratios: Ratios, path: Path, names: tuple[str, ...], granularity: str, groups: Sequence[str]) -> Ratios:
    if sorted(ratios.sources) != sorted(names):
        raise InputError(
            "the mixing ratios are of other sources", where=path, wanted=", ".join(names), found=", ".join(map(str, ratios.sources))
        )
    if ratios.granularity != granularity:
        raise InputError("the mixing ratios are of another granularity", where=path, wanted=granularity, found=ratios.granularity)
    missing = [group for group in groups if group not in ratios.layers]
    if missing:
        raise InputError(
            "mixing ratios are missing",
            where=path,
            wanted=missing[0],
            found=f"{len(missing)} of {len(groups)} without",
            todo="run adapt again",
        )
    order = [ratios.sources.index(name) for name in names]
    rows: dict[str, Any] = {group: [ratios.layers[group][index] for index in order] for group in groups}
    return Ratios(names, granularity, rows)


def _check_given(given: Mapping[str, Any], groups: Sequence[str], names: tuple[str, ...]) -> None:
    """Refuse what would be passed over: globs that name no group, unknown sources, the two forms mixed."""
    globs = {glob: row for glob, row in given.items() if isinstance(row, dict)}
    if globs and len(globs) != len(given):
        odd = next(name for name in given if name not in globs)
        todo = "give ratios by source, or by glob and source (* for all others)"
        raise RecipeError("ratios by source and by glob do not mix", where="merge.ratios", found=odd, todo=todo)
    for glob in globs:
        if not any(fnmatch.fnmatchcase(group, glob) for group in groups):
            raise RecipeError("the pattern names no ratio", where="merge.ratios", found=repr(glob), todo=did_you_mean(glob, groups[:6]))
    for row in globs.values() or ([given] if given else []):
        for name in row:
            if name not in names:
                raise RecipeError("a ratio for an unknown source", where="merge.ratios", found=name, todo=did_you_mean(name, names))
        missing = [name for name in names if name not in row]
        if missing:
            todo = "give every source one (0 leaves it out)"
            raise RecipeError("a source without a ratio", where="merge.ratios", found=missing[0], todo=todo)
        if sum(row.values()) <= 0:
            raise RecipeError("ratios that are all 0", where="merge.ratios", todo="give at least one source a ratio above 0")


def _row(given: Mapping[str, Any], group: str, names: tuple[str, ...]) -> list[float]:
    """The first glob that fits decides; uniform where none does."""
    row = given
    if any(isinstance(value, dict) for value in given.values()):
        row = next((row for glob, row in given.items() if fnmatch.fnmatchcase(group, glob)), {})
    if not row:
        return [1 / len(names)] * len(names)
    total = float(sum(row[name] for name in names))
    return [float(row[name]) / total for name in names]
