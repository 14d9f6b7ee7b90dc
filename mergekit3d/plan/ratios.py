"""Mixing ratios of a recipe: uniform, by source, by glob, or from the file that ``adapt`` wrote."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit3d.errors import InputError, RecipeError
from mergekit3d.merging.partitions import Granularity
from mergekit3d.nearby import did_you_mean_file
from mergekit3d.recipe.load import LoadedRecipe
from mergekit3d.registry import did_you_mean
from mergekit3d.storage.atomic import write_json
from mergekit3d.textfiles import read_json_object

ADAPTED_RATIOS = Path("adapt") / "ratios.json"
KEY = "merge.ratios"
GroupRatios = Sequence[float] | Sequence[Sequence[float]]


@dataclass(frozen=True)
class Ratios:
    """The ratios of every group.

    Args:
        sources: names, in the order of the ratios.
        granularity: model, layer, tensor or kernel; or groups by name, each with its globs.
        layers: one ratio a source for every group; for kernel, one list over the output channels a source.
    """

    sources: tuple[str, ...]
    granularity: Granularity
    layers: Mapping[str, GroupRatios]

    def as_json(self) -> dict[str, Any]:
        """The content of ratios.json."""
        return {
            "sources": list(self.sources),
            "granularity": granularity_as_json(self.granularity),
            "layers": {name: list(row) for name, row in self.layers.items()},
        }


def granularity_as_json(granularity: Granularity) -> str | dict[str, list[str]]:
    """Plain data: a word, or lists of globs by group."""
    return granularity if isinstance(granularity, str) else {group: list(globs) for group, globs in granularity.items()}


def write_ratios(path: Path, ratios: Ratios) -> None:
    """Write ratios.json atomically."""
    write_json(path, ratios.as_json())


def read_ratios(path: Path) -> Ratios:
    """Read ratios.json.

    Raises:
        InputError: missing, damaged, or ratios that are negative, not finite or all zero.
    """
    if not path.exists():
        todo = did_you_mean_file(path) or "run adapt first, or set merge.ratios: uniform"
        raise InputError("no mixing ratios", where=path, todo=todo)
    content = read_json_object(path, "the mixing ratios")
    try:
        ratios = Ratios(tuple(content["sources"]), content["granularity"], dict(content["layers"]))
        good = all(len(row) == len(ratios.sources) and _is_distribution(row) for row in ratios.layers.values())
        good = good and all(isinstance(name, str) for name in ratios.sources)
        granularity_as_json(ratios.granularity)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
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
        up, *rest = Path(given).parts or ("",)
        # the system finds nothing behind OUT/.. as long as there is no OUT
        return loaded.out.parent.joinpath(*rest) if up == ".." and not loaded.out.exists() else loaded.output_path(given)
    return None


def resolve_ratios(loaded: LoadedRecipe, groups: Sequence[str], *, normalised: bool = True, key: str = KEY) -> Ratios:
    """The ratios of every group of a fusion.

    Args:
        loaded: the recipe.
        groups: names of the groups, as of `ratio_groups`, in the order of the network.
        normalised: whether they are scaled to sum to 1 over the sources; else they are coefficients of any sign, 1 by default.
        key: of the recipe, that errors name.

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
    _check_given(given, groups, names, normalised=normalised, key=key)
    rows: dict[str, GroupRatios] = {
        group: _scaled(row, normalised=normalised, key=key) for group, row in _rows(given, groups, names).items()
    }
    return Ratios(names, recipe.merge.granularity, rows)


def check_start(rows: Mapping[str, GroupRatios]) -> None:
    """Refuse ratios of 0, which no delta has.

    Raises:
        RecipeError: there is one.
    """
    for group, row in rows.items():
        flat = [value for part in row for value in (part if isinstance(part, Sequence) else (part,))]
        if min(flat) <= 0:
            wanted = "a ratio above 0 for each source"
            raise RecipeError("cannot start from these ratios", where="adapt.ratios", wanted=wanted, found=f"0 in {group}")


def _from_file(ratios: Ratios, path: Path, names: tuple[str, ...], granularity: Granularity, groups: Sequence[str]) -> Ratios:
    if sorted(ratios.sources) != sorted(names):
        raise InputError(
            "the mixing ratios are of other sources", where=path, wanted=", ".join(names), found=", ".join(map(str, ratios.sources))
        )
    wanted, found = granularity_as_json(granularity), granularity_as_json(ratios.granularity)
    if wanted != found:
        raise InputError("the mixing ratios are of another granularity", where=path, wanted=wanted, found=found)
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


def _check_given(given: Mapping[str, Any], groups: Sequence[str], names: tuple[str, ...], *, normalised: bool, key: str) -> None:
    """Refuse what would be passed over: globs that name no group, unknown sources, the two forms mixed."""
    globs = {glob: row for glob, row in given.items() if isinstance(row, dict)}
    if globs and len(globs) != len(given):
        odd = next(name for name in given if name not in globs)
        todo = "give ratios by source, or by glob and source (* for all others)"
        raise RecipeError("ratios by source and by glob do not mix", where=key, found=odd, todo=todo)
    for glob in globs:
        if not any(fnmatch.fnmatchcase(group, glob) for group in groups):
            raise RecipeError("the pattern names no ratio", where=key, found=repr(glob), todo=did_you_mean(glob, groups[:6]))
    for row in globs.values() or ([given] if given else []):
        _check_row(row, groups, names, normalised=normalised, key=key)


def _check_row(row: Mapping[str, Any], groups: Sequence[str], names: tuple[str, ...], *, normalised: bool, key: str) -> None:
    for name in row:
        if name not in names:
            raise RecipeError("a ratio for an unknown source", where=key, found=name, todo=did_you_mean(name, names))
    missing = [name for name in names if name not in row]
    if missing:
        todo = "give every source one (0 leaves it out)"
        raise RecipeError("a source without a ratio", where=key, found=missing[0], todo=todo)
    anchors = {name: _anchors(value) for name, value in row.items()}
    along = next((name for name, values in anchors.items() if len(values) > 1), None)
    if along is not None and groups == ["model"]:
        todo = "set merge.granularity: layer"
        raise RecipeError("one ratio for the whole model cannot follow its depth", where=key, found=along, todo=todo)
    lowest = min(value for values in anchors.values() for value in values)
    if normalised and lowest < 0:
        raise RecipeError("a ratio below 0", where=key, found=lowest, todo="only methods that add task vectors take one")
    if all(value == 0 for values in anchors.values() for value in values):
        raise RecipeError("ratios that are all 0", where=key, todo="give at least one source a ratio above 0")


def _anchors(value: Any) -> Sequence[float]:
    return value if isinstance(value, Sequence) else (value,)


def _rows(given: Mapping[str, Any], groups: Sequence[str], names: tuple[str, ...]) -> dict[str, list[float]]:
    """The ratios of every group as given: the first glob that fits decides; equal ones where none does."""
    by_glob = given if any(isinstance(row, dict) for row in given.values()) else {"*": given} if given else {}
    rows: dict[str, list[float]] = {}
    for glob, row in by_glob.items():
        named = [group for group in groups if fnmatch.fnmatchcase(group, glob)]
        for position, group in enumerate(named):
            depth = position / max(len(named) - 1, 1)
            if group not in rows:
                rows[group] = [_at_depth(_anchors(row[name]), depth) for name in names]
    return {group: rows.get(group, [1.0] * len(names)) for group in groups}


def _at_depth(anchors: Sequence[float], depth: float) -> float:
    """Anchors spread evenly from the first layer (depth 0) to the last one (depth 1), linear in between."""
    if len(anchors) == 1:
        return float(anchors[0])
    place = depth * (len(anchors) - 1)
    below = min(int(place), len(anchors) - 2)
    share = place - below
    return float(anchors[below] if share == 0 else anchors[below] * (1 - share) + anchors[below + 1] * share)


def _scaled(row: Sequence[float], *, normalised: bool, key: str) -> list[float]:
    if not normalised:
        return [float(value) for value in row]
    total = float(sum(row))
    if total <= 0:
        raise RecipeError("ratios that are all 0", where=key, todo="give at least one source a ratio above 0")
    return [float(value) / total for value in row]
