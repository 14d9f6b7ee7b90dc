"""The flags of the command line, one type each, and the values they are read into."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from mergekit3d.errors import UsageError
from mergekit3d.options import Options

Value = TypeVar("Value")

INPUT = "Input"
INFERENCE = "Inference"
COMPUTING = "Computing"
OUTPUT = "Output"
MESSAGES = "Messages"
"""Headings of flags in ``--help``; those without one stand under Options."""

Device = Annotated[
    str,
    typer.Option(metavar="auto|cpu|cuda|cuda:N|mps", help="Where to compute; auto: a GPU where there is one.", rich_help_panel=COMPUTING),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"],
    typer.Option(metavar="auto|fp32|bf16", help="auto: bf16 where it is fast.", rich_help_panel=COMPUTING),
]
Seed = Annotated[
    int | None,
    typer.Option(metavar="N", min=0, help="Seed of everything random; the recipe's, else 0, by default.", rich_help_panel=COMPUTING),
]
Out = Annotated[Path | None, typer.Option(metavar="PATH", help="Output folder or file.", rich_help_panel=OUTPUT)]
Force = Annotated[bool, typer.Option("--force", help="Replace outputs that exist already.", rich_help_panel=OUTPUT)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the snapshot of an interrupted run.", rich_help_panel=OUTPUT)]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on stdout, also of an error; all else on stderr.", rich_help_panel=MESSAGES),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr; warnings and errors stay.", rich_help_panel=MESSAGES)]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error, and warnings of libraries.", rich_help_panel=MESSAGES)
]
RecipeFlag = Annotated[Path | None, typer.Option("--recipe", metavar="RECIPE", help="The recipe, a YAML file.", rich_help_panel=INPUT)]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="Override a key of the recipe, such as adapt.epochs=5; repeat for more.",
        rich_help_panel=INPUT,
    ),
]  # fmt: skip
AllowOutside = Annotated[
    list[Path] | None,
    typer.Option(
        "--allow-outside", metavar="DIR", help="Let the recipe write here too, beside its own folder and --out; repeat for more.",
        rich_help_panel=INPUT,
    ),
]  # fmt: skip
Layout = Annotated[
    str,
    typer.Option(metavar="LAYOUT", help="Layout of the data: auto, hcp, brats2018, nnunet, decathlon ...", rich_help_panel=INPUT),
]
Regions = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SET|NAME=IDS", help="A shipped set (brats, hcp-1-7 ...), or one region, such as TC=1,4; repeat for more.",
        rich_help_panel=INPUT,
    ),
]  # fmt: skip
SubjectsFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Only the subjects named in this file, one a line.", rich_help_panel=INPUT)
]
Names = Annotated[str | None, typer.Option(metavar="A,B", help="What to call the files; told from their paths unless given.")]
Architecture = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|{NAME, ...}", help="The network of a checkpoint that does not say it, as in a recipe.", rich_help_panel=INPUT
    ),
]
PatchSize = Annotated[str | None, typer.Option(metavar="X,Y,Z", help="Patch size in voxels; one number for a cube; whole volumes else.")]
Window = Annotated[
    str | None,
    typer.Option(
        "--patch-size", metavar="X,Y,Z", help="Sliding window in voxels; one number for a cube; whole volumes else.",
        rich_help_panel=INFERENCE,
    ),
]  # fmt: skip
Overlap = Annotated[
    float | None,
    typer.Option(metavar="F", min=0, max=0.99, help="Of neighbouring windows (0.5 by default).", rich_help_panel=INFERENCE),
]
WindowsAtOnce = Annotated[
    int | None, typer.Option("--batch-size", metavar="N", min=1, help="Windows at once (1 by default).", rich_help_panel=INFERENCE)
]
Mirror = Annotated[bool, typer.Option("--mirror", help="Average over mirrored copies.", rich_help_panel=INFERENCE)]
MirrorAxes = Annotated[
    str | None,
    typer.Option(metavar="x,y,z", help="Mirror along these axes; --mirror alone: x, left-right.", rich_help_panel=INFERENCE),
]


@dataclass(frozen=True)
class Output:
    """How a command talks."""

    json: bool
    quiet: bool
    debug: bool


def output_flags(*, json: Json = False, quiet: Quiet = False, debug: Debug = False) -> Output:
    """The flags that every command has."""
    return Output(json=json, quiet=quiet, debug=debug)


def run_flags(
    *,
    device: Device = "auto",
    precision: Precision = "auto",
    seed: Seed = None,
    out: Out = None,
    force: Force = False,
    resume: Resume = False,
) -> Options:
    """The flags that every long command has besides."""
    if not re.fullmatch(r"auto|cpu|cuda|cuda:\d+|mps", device):
        raise UsageError("unknown device", where="--device", wanted="auto, cpu, cuda, cuda:N or mps", found=device)
    return Options(device=device, precision=precision, seed=seed, out=out, force=force, resume=resume)


def needed(value: Value | None, command: str, what: str, *, example: str) -> Value:
    """The value of a flag or argument that a command cannot do without.

    Raises:
        UsageError: it was not given.
    """
    if value is None or value == []:
        raise UsageError(f"{command} needs {what}", todo=f"for example: mergekit3d {example}")
    return value


def overrides_of(texts: Sequence[str] | None) -> tuple[str, ...]:
    """The values of ``--set``, each of the form KEY.PATH=VALUE."""
    for text in texts or ():
        if not re.match(r"[^=\s.]+(\.[^=]+)*=", text):
            raise UsageError("cannot read the override", where="--set", wanted="KEY.PATH=VALUE, such as finetune.epochs=100", found=text)
    return tuple(texts or ())


def names_of(text: str | None) -> tuple[str, ...] | None:
    """Names separated by commas."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def architecture_of(text: str | None) -> str | Mapping[str, Any] | None:
    """A network by name, or a mapping in YAML with its keyword arguments."""
    if text is None:
        return None
    from mergekit3d.recipe.document import parse_value

    value = parse_value(text, "--architecture")
    if not isinstance(value, str | dict):
        raise UsageError("not an architecture", where="--architecture", wanted="a name, or {name: monai.UNet, ...}", found=text)
    return value


def axes_of(text: str | None) -> tuple[int, ...] | None:
    """Axes of RAS+ by their letters."""
    if text is None:
        return None
    letters = [letter.strip() for letter in text.split(",")]
    if any(letter not in ("x", "y", "z") for letter in letters):
        raise UsageError("no such axes", where="--mirror-axes", wanted="some of x, y, z", found=text)
    return tuple("xyz".index(letter) for letter in letters)


def size_of(text: str | None, flag: str) -> tuple[int, int, int] | None:
    """Three voxel counts separated by commas; one number stands for a cube."""
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts) or len(parts) not in (1, 3):
        raise UsageError("cannot read the size", where=flag, wanted="one or three whole numbers above 0, such as 64,64,48", found=text)
    x, y, z = (int(part) for part in (parts * 3 if len(parts) == 1 else parts))
    return x, y, z


def tolerances_of(texts: Sequence[str] | None) -> float | Mapping[str, float]:
    """Tolerances in mm: one for all regions, or by region; a number alone stands for all others."""
    parts = [part.strip() for text in texts or () for part in text.split(",")]
    found = {}
    for part in parts:
        region, _, length = part.rpartition("=")
        region = region.strip() or "*"
        if not re.fullmatch(r"\s*\d+(\.\d+)?\s*", length, flags=re.ASCII) or region in found:
            wanted = "mm, or REGION=MM, each region once, such as ET=1,WT=2"
            raise UsageError("cannot read the tolerance", where="--tolerance-mm", wanted=wanted, found=part)
        found[region] = float(length)
    return found or 1.0


def by_name(texts: Sequence[str] | None, flag: str) -> dict[str, str]:
    """Values by name, each given as NAME=VALUE."""
    found: dict[str, str] = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        if not (separator and name.strip() and value.strip()) or name.strip() in found:
            raise UsageError("cannot read the flag", where=flag, wanted="NAME=VALUE, each name once", found=text)
        found[name.strip()] = value.strip()
    return found


def spacing_of(text: str | None, flag: str) -> tuple[float, float, float] | None:
    """Three voxel edges in mm separated by commas; one number stands for a cube."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(re.fullmatch(r"\s*\d+(\.\d+)?\s*", part, flags=re.ASCII) for part in parts):
        raise UsageError("cannot read the voxel size", where=flag, wanted="one or three numbers of mm, such as 1 or 1,1,3", found=text)
    x, y, z = (float(part) for part in (parts * 3 if len(parts) == 1 else parts))
    return x, y, z


def regions_of(texts: Sequence[str] | None) -> str | Mapping[str, tuple[int, ...]] | None:
    """The name of a shipped set of regions, or regions by name as label ids."""
    if not texts:
        return None
    if len(texts) == 1 and "=" not in texts[0]:
        return texts[0]
    regions = {}
    for text in texts:
        name, _, ids = text.partition("=")
        if not name.strip() or not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", ids, flags=re.ASCII):
            raise UsageError("cannot read the region", where="--regions", wanted="one set, or NAME=IDS such as TC=1,4", found=text)
        regions[name.strip()] = tuple(int(label) for label in ids.split(","))
    return regions
