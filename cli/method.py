"""The commands of the method: train, fisher, fuse, adapt, finetune, and run for all of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import mergekit3d
from mergekit3d.errors import UsageError
from mergekit3d.options import Options
from mergekit3d.progress import Reporter

from .console import Result
from .flags import (
    INPUT,
    AllowOutside,
    Architecture,
    Layout,
    Overrides,
    PatchSize,
    RecipeFlag,
    SubjectsFile,
    architecture_of,
    names_of,
    needed,
    overrides_of,
    size_of,
)

RECIPE = "a recipe"


def train(
    *, recipe: RecipeFlag = None, overrides: Overrides = None, allow_outside: AllowOutside = None, options: Options, reporter: Reporter
) -> Result:
    """Train a source model, from random or another source.

    Writes OUT/train: best.safetensors, last.safetensors, log.csv, progress.png, split.json, recipe.yaml. OUT is --out, the recipe's out, or
    a folder of its name beside it.

    Examples:

      mergekit3d train --recipe m1.yaml

      mergekit3d train --recipe m2.yaml --set train.epochs=100 --device cuda

      torchrun --nproc-per-node 4 -m mergekit3d_cli train --recipe m2.yaml
    """
    recipe = needed(recipe, "train", RECIPE, example="train --recipe m1.yaml")
    return mergekit3d.train(
        recipe, overrides=overrides_of(overrides), allow_outside=allow_outside or (), options=options, reporter=reporter
    )


def fisher(
    checkpoint: Annotated[Path | None, typer.Argument(metavar="CKPT", help="A trained network.", show_default=False)] = None,
    *,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="The data that the checkpoint was trained on: a folder or a list.", rich_help_panel=INPUT),
    ] = None,
    recipe: RecipeFlag = None,
    overrides: Overrides = None,
    allow_outside: AllowOutside = None,
    estimator: Annotated[
        Literal["sampled", "true"] | None,
        typer.Option(metavar="sampled|true", help="Labels drawn from the model's own prediction (the default), or the true ones."),
    ] = None,
    draws: Annotated[int | None, typer.Option(metavar="N", min=1, help="Draws of the labels a subject (4 by default).")] = None,
    layout: Layout = "auto",
    modalities: Annotated[
        str | None, typer.Option(metavar="A,B", help="Input channels by name, where the checkpoint does not say.", rich_help_panel=INPUT)
    ] = None,
    regions: Annotated[
        str | None,
        typer.Option(
            metavar="SET",
            help="A shipped set (brats, hcp-1-7 ...), for true labels where the checkpoint does not say.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    architecture: Architecture = None,
    max_subjects: Annotated[int | None, typer.Option(metavar="N", min=1, help="Subjects at most; all by default.")] = None,
    subjects_file: SubjectsFile = None,
    patch_size: PatchSize = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Subjects at once, where their padded sizes agree (1 by default).")
    ] = None,
    dtype: Annotated[
        Literal["float32", "sqrt-fp16"] | None,
        typer.Option(
            metavar="float32|sqrt-fp16",
            help="Of the file (float32 by default); sqrt-fp16, scaled square roots, takes half the space (2e-3 exact).",
        ),
    ] = None,
    snapshot_minutes: Annotated[
        float | None, typer.Option(metavar="N", min=0, help="Minutes between snapshots for --resume (10 by default).")
    ] = None,
    options: Options,
    reporter: Reporter,
) -> Result:
    """Estimate the Fisher diagonal of a checkpoint or a recipe.

    Of a recipe: of every source. Writes <stem>.fisher.safetensors beside the checkpoint, unless --out says otherwise.

    Examples:

      mergekit3d fisher m1.pt --data hcp/

      mergekit3d fisher --recipe timm.yaml

      mergekit3d fisher unet.pt --data brats/
      --architecture "{name: monai.UNet, spatial_dims: 3, channels: [8, 16]}"

      torchrun --nproc-per-node 4 -m mergekit3d_cli fisher m1.pt --data hcp/
    """
    flags: dict[str, Any] = {
        "estimator": estimator,
        "draws": draws,
        "max_subjects": max_subjects,
        "patch_size": size_of(patch_size, "--patch-size"),
        "batch_size": batch_size,
        "dtype": dtype,
        "snapshot_minutes": snapshot_minutes,
    }
    flags = {key: value for key, value in flags.items() if value is not None}
    if recipe is not None:
        own = {
            "a checkpoint": checkpoint,
            "--data": data,
            "--modalities": modalities,
            "--regions": regions,
            "--architecture": architecture,
            "--subjects-file": subjects_file,
        }
        _refuse_beside_recipe([flag for flag, value in own.items() if value is not None])
        changes = tuple(f"fisher.{key}={list(value) if isinstance(value, tuple) else value}" for key, value in flags.items())
        overrides = [*overrides_of(overrides), *changes]
        return mergekit3d.fisher_sources(
            recipe, overrides=tuple(overrides), allow_outside=allow_outside or (), options=options, reporter=reporter
        )
    if overrides or allow_outside:
        flag, what = ("--set", "overrides keys of a recipe") if overrides else ("--allow-outside", "is about what a recipe writes")
        raise UsageError(f"{flag} {what}", todo=f"pass --recipe, or leave {flag} out")
    what, example = "a checkpoint and its data, or a recipe", "fisher m1.pt --data hcp/"
    checkpoint = needed(checkpoint, "fisher", what, example=example)
    data = needed(data, "fisher", what, example=example)
    flags.update(layout=layout, modalities=names_of(modalities), regions=regions, subjects_file=subjects_file)
    flags.update(architecture=architecture_of(architecture))
    return mergekit3d.fisher(checkpoint, data, **flags, options=options, reporter=reporter)


def fuse(
    *,
    recipe: RecipeFlag = None,
    overrides: Overrides = None,
    allow_outside: AllowOutside = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the report too: <stem>.report.png.")] = False,
    options: Options,
    reporter: Reporter,
) -> Result:
    """Fuse the sources of a recipe into one checkpoint.

    Writes merge.out of the recipe, and beside it <stem>.report.json, which tells what became of every tensor.

    Examples:

      mergekit3d fuse --recipe timm.yaml

      mergekit3d fuse --recipe timm.yaml --set merge.method=imm
      --set merge.ratios=uniform --set merge.out=imm.safetensors
    """
    recipe = needed(recipe, "fuse", RECIPE, example="fuse --recipe timm.yaml")
    return mergekit3d.fuse(
        recipe, overrides=overrides_of(overrides), allow_outside=allow_outside or (), plot=plot, options=options, reporter=reporter
    )


def adapt(
    *, recipe: RecipeFlag = None, overrides: Overrides = None, allow_outside: AllowOutside = None, options: Options, reporter: Reporter
) -> Result:
    """Learn the mixing ratios on the target data (T-IMM).

    The task-specific tensors are learned together with them. Writes OUT/adapt: ratios.json, checkpoint.safetensors, log.csv, ratios.png,
    path.png, split.json, recipe.yaml.

    Examples:

      mergekit3d adapt --recipe timm.yaml

      torchrun --nproc-per-node 4 -m mergekit3d_cli adapt --recipe timm.yaml
    """
    recipe = needed(recipe, "adapt", RECIPE, example="adapt --recipe timm.yaml")
    return mergekit3d.adapt(
        recipe, overrides=overrides_of(overrides), allow_outside=allow_outside or (), options=options, reporter=reporter
    )


def finetune(
    *, recipe: RecipeFlag = None, overrides: Overrides = None, allow_outside: AllowOutside = None, options: Options, reporter: Reporter
) -> Result:
    """Train all weights on the target data, from any start.

    The start is finetune.init of the recipe: none, a source, imm, timm or a checkpoint. Writes OUT/finetune: best.safetensors,
    last.safetensors, log.csv, progress.png, split.json, recipe.yaml.

    Examples:

      mergekit3d finetune --recipe timm.yaml

      mergekit3d finetune --recipe timm.yaml --set finetune.init=imm --out from_imm

      torchrun --nproc-per-node 4 -m mergekit3d_cli finetune --recipe timm.yaml
    """
    recipe = needed(recipe, "finetune", "a recipe with a target to train on", example="finetune --recipe timm.yaml")
    return mergekit3d.finetune(
        recipe, overrides=overrides_of(overrides), allow_outside=allow_outside or (), options=options, reporter=reporter
    )


def run(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)] = None,
    *,
    overrides: Overrides = None,
    allow_outside: AllowOutside = None,
    devices: Annotated[
        str | None, typer.Option(metavar="A,B", help="Share the steps of a study among these devices (cuda:0,cuda:1).")
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Steps of a study at once on each device.")] = 1,
    options: Options,
    reporter: Reporter,
) -> Result:
    """Carry out every step of a recipe that is out of date.

    Steps of a study run side by side on all visible GPUs, one on each, unless told otherwise. Writes what the steps write, study.json and
    report.html; of a study also tables/ and figures/.

    Examples:

      mergekit3d run timm.yaml

      mergekit3d run recipes/paper/timm2019.yaml --devices cuda:0,cuda:1
    """
    recipe = needed(recipe, "run", RECIPE, example="run timm.yaml")
    return mergekit3d.run(
        recipe,
        overrides=overrides_of(overrides),
        allow_outside=allow_outside or (),
        devices=names_of(devices) or (),
        jobs=jobs,
        options=options,
        reporter=reporter,
    )


def _refuse_beside_recipe(given: list[str]) -> None:
    if given:
        raise UsageError(f"{given[0]} and --recipe exclude each other", todo="the recipe says it all; change it with --set")
