"""The commands on files as they are: inspect, report, verify, convert, schema, methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import mergekit3d
from mergekit3d.progress import Reporter

from .console import Result
from .flags import OUTPUT, AllowOutside, Force, Layout, Out, Overrides, RecipeFlag, needed, overrides_of

SchemaOut = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write it to this file.", rich_help_panel=OUTPUT)]


def inspect(
    checkpoints: Annotated[
        list[Path] | None, typer.Argument(metavar="CKPT...|DATA", help="Checkpoints, or one data set.", show_default=False)
    ] = None,
    *,
    recipe: RecipeFlag = None,
    overrides: Overrides = None,
    allow_outside: AllowOutside = None,
    layout: Layout = "auto",
    values: Annotated[bool, typer.Option("--values", help="Read all tensors, or label maps, too: seal, ranges, NaN, cosines.")] = False,
    names: Annotated[bool, typer.Option("--names", help="Of data: whom every number stands for; may be patients' names.")] = False,
) -> Result:
    """Show what checkpoints or data hold, and what can be fused.

    With --recipe: the plan, without running it. Of a folder or list of subjects: modalities, grids, labels, and what is missing or odd.
    Writes nothing.

    Examples:

      mergekit3d inspect m1.pt

      mergekit3d inspect m1.pt m2.pt

      mergekit3d inspect brats/

      mergekit3d inspect brats/ --names

      mergekit3d inspect folds.json

      mergekit3d inspect --recipe timm.yaml
    """
    if recipe is None:
        needed(checkpoints, "inspect", "checkpoints or a recipe", example="inspect m1.pt m2.pt")
    return mergekit3d.inspect(
        checkpoints or [],
        recipe=recipe,
        overrides=overrides_of(overrides),
        allow_outside=allow_outside or (),
        layout=layout,
        values=values,
        names=names,
    )


def report(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)] = None,
    *,
    out: Out = None,
    force: Force = False,
    reporter: Reporter,
) -> Result:
    """Write one HTML file on what a run left.

    RUN is the output folder of run, train, fisher, adapt, fuse, finetune, evaluate, compare or forgetting. Nothing is computed anew.
    Writes RUN/report.html, unless --out says otherwise.

    Examples:

      mergekit3d report demo/ --force

      mergekit3d report out/adapt/ --out adaptation.html
    """
    run = needed(run, "report", "the folder of a run", example="report demo/")
    return mergekit3d.report(run, out=out, force=force, reporter=reporter)


def verify(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="A checkpoint or Fisher diagonal.", show_default=False)] = None,
) -> Result:
    """Check the seal of a file that mergekit3d wrote.

    Writes nothing; the exit code tells: 0 intact, 65 damaged or without a seal.

    Examples:

      mergekit3d verify fused.safetensors
    """
    file = needed(file, "verify", "a file", example="verify fused.safetensors")
    return mergekit3d.verify(file)


def convert(
    checkpoint: Annotated[Path | None, typer.Argument(metavar="CKPT", help="A checkpoint of any format.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="The file or folder to write.", show_default=False)] = None,
    *,
    to: Annotated[
        str | None, typer.Option(metavar="safetensors|pt|nnunet|monai", help="Format of OUT; told from its name unless given.")
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(metavar="CKPT", help="Take plans and the like over from this checkpoint, or data set of nnUNet_preprocessed."),
    ] = None,
    allow_code: Annotated[str | None, typer.Option(metavar="SHA256", help="Run the code of this very MONAI bundle or pickle.")] = None,
    force: Force = False,
) -> Result:
    """Write a checkpoint in another format, every tensor bit for bit.

    Writes OUT: a file, or the folder of a bundle or of a trained model.

    Examples:

      mergekit3d convert m1.pth m1.safetensors

      mergekit3d convert fused.safetensors
      nnUNetTrainer__nnUNetPlans__3d_fullres/ --to nnunet

      mergekit3d convert fused.safetensors bundle/ --to monai

      mergekit3d convert best.safetensors best.pth --like checkpoint_final.pth
    """
    example = "convert m1.pth m1.safetensors"
    checkpoint = needed(checkpoint, "convert", "a checkpoint", example=example)
    out = needed(out, "convert", "an output", example=example)
    return mergekit3d.convert(checkpoint, out, to=to, like=like, allow_code=allow_code, force=force)


def schema(*, out: SchemaOut = None, force: Force = False) -> Result:
    """Print the JSON schema of recipes, for editors.

    Writes to stdout, or to --out. Editors with the YAML language server (VS Code with its YAML extension, Neovim, Emacs, Helix) then show
    what each key means, complete keys, and mark wrong ones, if the first line of a recipe names the file:

      # yaml-language-server: $schema=recipe.schema.json

    Examples:

      mergekit3d schema --out recipe.schema.json

      mergekit3d schema > recipe.schema.json
    """
    return mergekit3d.schema(out=out, force=force)


def methods() -> Result:
    """List the merge methods that a recipe can name.

    Writes nothing but to stdout.

    Examples:

      mergekit3d methods
    """
    return mergekit3d.methods()
