"""Mixing ratios of a recipe: uniform, by source, by glob, or from the file that ``adapt`` wrote."""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit3d.errors import InputError, RecipeError
from mergekit3d.recipe.load import LoadedRecipe
from mergekit3d.registry import did_you_mean
from mergekit3d.storage.atomic import write_json

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
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ratios = Ratios(tuple(content["sources"]), content["granularity"], content["layers"])
        good = all(len(row) == len(ratios.sources) and _is_distribution(row) for row in ratios.layers.values())
    except FileNotFoundError as error:
        raise InputError("no mixing ratios", where=path, todo="run adapt first, or set merge.ratios: uniform") from error
    except OSError as error:
        raise InputError("cannot read the mixing ratios", where=path, found=(error.strerror or "an error").lower()) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "damaged mixing ratios", where=path, wanted="sources, granularity and layers", found=type(error).__name__
        ) from error
    if not good:
        raise InputError("damaged mixing ratios", where=path, wanted="a ratio >= 0 for each source, not all 0")
    return ratios


def _is_distribution(row: Any) -> bool:
    flat = [value for part in row for value in (part if isinstance(part, list) else [part])]
    return all(isinstance(value, (int, float)) and math.isfinite(value) and value >= 0 for value in flat) and sum(flat) > 0


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
    given = recipe.merge.ratios
    rows = {group: _row(given if isinstance(given, dict) else {}, group, names) for group in groups}
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
    return Ratios(names, granularity, {group: [ratios.layers[group][index] for index in order] for group in groups})


def _row(given: Mapping[str, Any], group: str, names: tuple[str, ...]) -> list[float]:
    by_source = given
    if any(isinstance(value, dict) for value in given.values()):
        by_source = next((row for glob, row in given.items() if isinstance(row, dict) and fnmatch.fnmatchcase(group, glob)), {})
    if not by_source:
        return [1 / len(names)] * len(names)
    for name in by_source:
        if name not in names:
            raise RecipeError("a ratio for an unknown source", where="merge.ratios", found=name, todo=did_you_mean(name, names))
    missing = [name for name in names if name not in by_source]
    if missing:
        raise RecipeError(
            "a source without a ratio", where="merge.ratios", found=missing[0], todo="give every source one (0 leaves it out)"
        )
    total = float(sum(by_source[name] for name in names))
    if total <= 0:
        raise RecipeError("ratios that are all 0", where="merge.ratios", todo="give at least one source a ratio above 0")
    return [float(by_source[name]) / total for name in names]
