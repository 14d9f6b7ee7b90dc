"""A recipe as a reader of its results sees it: as it was carried out, without the folders that it names."""

from __future__ import annotations

import re
from pathlib import Path

from mergekit3d.errors import MergeKit3DError
from mergekit3d.recipe.document import parse_document
from mergekit3d.recipe.load import LoadedRecipe, validate_recipe
from mergekit3d.storage.atomic import write_text

RECIPE_NAME = "recipe.yaml"
ABSOLUTE_PATH = re.compile(r"(?<![\w./\\])(?:~[\w.-]*|[A-Za-z]:)?[/\\](?:[^,\]}\n\"'#]|(?<! )#)*")
"""From a slash (after ~ or a drive) that no relative path precedes to the end of a YAML value, which may hold spaces."""


def recipe_text(loaded: LoadedRecipe) -> str:
    """A recipe as it was carried out: the text of its file, or, where ``--set`` changed it, what it became; see `without_folders`."""
    import yaml

    try:
        text = loaded.path.read_text(encoding="utf-8-sig")
        as_written = validate_recipe(parse_document(text, str(loaded.path)), str(loaded.path)) == loaded.recipe
    except (OSError, ValueError, MergeKit3DError):  # edited or removed since it was loaded
        as_written = False
    if as_written:
        return without_folders(text)
    changed = yaml.safe_dump(loaded.recipe.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True, width=120)
    return without_folders(f"# as changed on the command line, or by the study that it is part of\n{changed}")


def without_folders(text: str) -> str:
    """A recipe's text with every absolute path as "…": they can name patients, and tell nobody else anything."""
    return ABSOLUTE_PATH.sub("…", text)


def write_recipe(loaded: LoadedRecipe, path: Path) -> None:
    """Leave the recipe beside the results that it led to.

    Raises:
        OutputError: the file system refused.
    """
    write_text(path, recipe_text(loaded))
