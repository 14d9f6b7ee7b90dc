"""From a recipe file to a checked recipe whose paths are known."""

from __future__ import annotations

import os
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from mergekit3d.errors import ProblemCollector, RecipeError, UsageError
from mergekit3d.recipe.bounds import Bounds, real_paths
from mergekit3d.recipe.document import Document, KeyPath, parse_value, read_document
from mergekit3d.recipe.models import ArchitectureModel, Recipe, SourceModel
from mergekit3d.recipe.wording import wrong_value
from mergekit3d.registry import did_you_mean

PREPARED_NAME = "prepared"


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with its place in the file system.

    Args:
        recipe: the checked recipe.
        path: its file.
        out: its output folder, OUT.
        prepared: folder of prepared subjects; None: they are not stored.
        bounds: where its file may make the work write.
    """

    recipe: Recipe
    path: Path
    out: Path
    prepared: Path | None = None
    bounds: Bounds = field(default=Bounds(), repr=False)

    @property
    def folder(self) -> Path:
        """The recipe's own folder, where relative paths of inputs start."""
        return self.path.parent

    @property
    def name(self) -> str:
        """The recipe's name."""
        return self.recipe.name or self.path.stem

    def input_path(self, path: Path | str) -> Path:
        """A path of an input, from the recipe's folder."""
        return self.folder / _expanded(path)

    def output_path(self, path: Path | str) -> Path:
        """A path of an output, from OUT."""
        return self.out / _expanded(path)

    def data_path(self, data: str) -> Path:
        """The folder of a data set: by its name in the recipe's ``data``, or as a path."""
        return self.input_path(self.recipe.data.get(data, Path(data)))

    def checkpoint_path(self, source: SourceModel) -> Path:
        """The checkpoint of a source: the one named, or the one that training makes."""
        if source.checkpoint is not None:
            return self.input_path(source.checkpoint)
        return self.out / source.name / "train" / "best.safetensors"

    def fisher_path(self, source: SourceModel) -> Path:
        """The Fisher diagonal of a source: the one named, or the one beside its checkpoint."""
        return self.input_path(source.fisher) if source.fisher is not None else fisher_beside(self.checkpoint_path(source))

    def fisher_output(self, source: SourceModel) -> Path:
        """Where the Fisher diagonal of a source is written.

        Raises:
            RecipeError: the recipe's file leads out of where it may write.
        """
        path = self.fisher_path(source)
        given, key = (source.fisher, "fisher") if source.fisher is not None else (source.checkpoint, "checkpoint")
        if given is not None:
            listed, group = (self.recipe.sources, "sources") if source in self.recipe.sources else (self.recipe.baselines, "baselines")
            self.bounds.check((group, listed.index(source), key), path, given, is_file=True)
        return path

    @property
    def merge_path(self) -> Path:
        """The fused checkpoint."""
        return self.output_path(self.recipe.merge.out)

    @property
    def architecture(self) -> ArchitectureModel | None:
        """The architecture with its arguments, where the recipe names one; its import path is trusted from here on."""
        given = self.recipe.architecture
        return None if given is None else architecture_of(given)

    def changed(self, *, out: Path | None = None, **changes: Any) -> LoadedRecipe:
        """A copy with some top-level keys replaced, for the steps of a study."""
        recipe = self.recipe.model_copy(update=changes)
        return replace(self, recipe=recipe, out=self.out if out is None else out)


def _expanded(path: Path | str) -> Path:
    """A path from the home folder where it begins with ~; as it is where there is no such user, which the missing file then tells."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path.expanduser raises there


def architecture_of(given: str | Mapping[str, Any] | ArchitectureModel) -> ArchitectureModel:
    """An architecture by name, or by name and keyword arguments; its import path is trusted from here on: the user named it.

    Raises:
        UsageError: it has no name.
    """
    from mergekit3d.architectures.imported import allow_import

    if not isinstance(given, ArchitectureModel):
        content = {"name": given} if isinstance(given, str) else dict(given)
        if not isinstance(content.get("name"), str):
            raise UsageError("the architecture has no name", where="--architecture", wanted="a name, or {name: monai.UNet, channels: ...}")
        given = ArchitectureModel.model_validate(content)
    allow_import(given.name)
    return given


def fisher_beside(checkpoint: Path) -> Path:
    """``<stem>.fisher.safetensors`` beside a checkpoint."""
    return checkpoint.with_name(f"{checkpoint.stem}.fisher.safetensors")


def load_recipe(
    path: Path | str,
    *,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    allow_outside: Sequence[Path | str] = (),
    by_hand: Collection[KeyPath] = (),
) -> LoadedRecipe:
    """Read and check a recipe.

    Args:
        path: YAML file.
        overrides: ``key.path=value`` each, as of ``--set``; they beat the file.
        out: output folder; beats the recipe's.
        allow_outside: folders beside the recipe's own, and `out`, that the recipe's file may make the work write to.
        by_hand: keys whose values are not used, since the user named another place.

    Raises:
        RecipeError: no strict YAML, unknown keys or values, or places to write outside of those folders; all problems at once.
    """
    path = Path(path)
    document = read_document(path)
    set_by_hand = {_override(document, override) for override in overrides} | set(by_hand)
    recipe = validate_recipe(document, str(path))
    given_out = out is not None
    if out is None:
        out = path.parent / (_expanded(recipe.out) if recipe.out is not None else Path(recipe.name or path.stem))
    first = Bounds(str(path), real_paths([path.parent, *allow_outside]), document.lines, frozenset(set_by_hand))
    bounds = replace(first, roots=(*first.roots, *real_paths([out])))
    loaded = LoadedRecipe(recipe=recipe, path=path, out=out, prepared=_prepared(recipe, path.parent, out), bounds=bounds)
    problems = ProblemCollector()
    if not given_out:
        problems.attempt(lambda: first.check(("out",), loaded.out, recipe.out or Path(loaded.name)))
    if given_out or len(bounds.roots) > len(first.roots):  # else OUT is no path, which was told
        problems.attempt(lambda: bounds.check(("merge", "out"), loaded.merge_path, recipe.merge.out, is_file=True))
    if recipe.cache and loaded.prepared is not None:
        prepared, written = loaded.prepared, recipe.cache
        problems.attempt(lambda: bounds.check(("cache",), prepared, written))
    problems.raise_if_any()
    return loaded


def _prepared(recipe: Recipe, folder: Path, out: Path) -> Path | None:
    """Where prepared subjects are stored; in OUT by default, so that copies of patients' images stand where their owner looks."""
    if recipe.cache is None:
        return out / PREPARED_NAME
    return folder / _expanded(recipe.cache) if recipe.cache else None


def validate_recipe(document: Document, where: str) -> Recipe:
    """Check plain data against the models.

    Raises:
        MergeKit3DError: every problem, one line each, with key and line.
    """
    try:
        return Recipe.model_validate(document.content)
    except ValidationError as error:
        found = [(_real_location(details, document.content), details) for details in error.errors(include_url=False, include_input=False)]
        problems = ProblemCollector()
        for index, (location, details) in enumerate(found):
            others = [other for position, (other, _) in enumerate(found) if position != index]
            # A value that fits no member of a union fails once for each; the most precise failure is the one to tell.
            told = any(other[: len(location)] == location and len(other) > len(location) for other in others)
            if not told and location not in [other for other, _ in found[:index]]:
                problems.add(_problem(location, details, document, where))
        problems.raise_if_any()
        raise


def _problem(location: KeyPath, details: Any, document: Document, where: str) -> RecipeError:
    key = ".".join(f"{part}" for part in location) or "the recipe"
    place = document.place(location, where)
    if details["type"] == "extra_forbidden":
        fields = _fields_at(location[:-1])
        return RecipeError(f"unknown key {key!r}", where=place, todo=did_you_mean(str(location[-1]), fields))
    if details["type"] == "missing":
        return RecipeError(f"the key {key!r} is missing", where=place)
    return wrong_value(key, place, details, _value_at(document.content, location))


def _value_at(content: Any, location: KeyPath) -> Any:
    for part in location:
        content = content[part]
    return content


def _real_location(details: Any, content: Any) -> KeyPath:
    """The part of a pydantic location that stands in the document: the names of union members are left out."""
    real: list[str | int] = []
    location = details["loc"]
    for index, part in enumerate(location):
        absent = details["type"] == "missing" and index == len(location) - 1
        if isinstance(content, dict) and (part in content or absent):
            real.append(part)
            content = content.get(part)
        elif isinstance(content, list) and isinstance(part, int) and part < len(content):
            real.append(part)
            content = content[part]
    return tuple(real)


def _fields_at(location: KeyPath) -> list[str]:
    """Names of the keys that the models know at a location."""
    models: list[type[BaseModel]] = [Recipe]
    for part in location:
        if isinstance(part, int):
            continue
        models = [
            found for model in models if part in model.model_fields for found in _models_in(model.model_fields[part].annotation)
        ] or models
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]


def _override(document: Document, override: str) -> KeyPath:
    """Set one key of a document, and tell its path; a part of the path may be a list's index or the name of a source."""
    dotted, separator, text = override.partition("=")
    where = f"--set {dotted}"
    if not separator or not dotted:
        raise RecipeError("cannot read the override", where=f"--set {override}", wanted="key.path=value")
    content: Any = document.content
    location: list[str | int] = []
    *parts, last = dotted.split(".")
    for part in parts:
        content, step = _descend(content, part, where)
        location.append(step)
    step = _step(content, last, where)
    content[step] = parse_value(text, where)
    document.overrides[(*location, step)] = where
    for end in range(1, len(location) + 1):
        if tuple(location[:end]) not in document.lines:
            document.overrides[tuple(location[:end])] = where
    return (*location, step)


def _descend(content: Any, part: str, where: str) -> tuple[Any, str | int]:
    """What stands under a part of a key path, and the key or index that it stands under."""
    step = _step(content, part, where)
    if isinstance(content, dict) and content.get(part) is None:
        content[part] = {}
    return content[step], step


def _step(content: Any, part: str, where: str) -> str | int:
    if isinstance(content, list):
        return _index(content, part, where)
    if isinstance(content, dict):
        return part
    raise RecipeError("no key can be set there", where=where, found="a plain value in the recipe")


def _index(content: list[Any], part: str, where: str) -> int:
    names = [str(item.get("name")) if isinstance(item, dict) else "" for item in content]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(content):
        return int(part)
    raise RecipeError("no such item", where=where, found=part, todo=did_you_mean(part, [name for name in names if name] or ["0"]))
