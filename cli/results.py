"""The commands around the method: data to try it on, predictions, their evaluation, and the whole as a demo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

import mergekit3d
from mergekit3d.errors import UsageError
from mergekit3d.options import Options
from mergekit3d.progress import Reporter

from .console import Result
from .flags import (
    INPUT,
    AllowOutside,
    Force,
    Layout,
    Mirror,
    MirrorAxes,
    Names,
    Out,
    Overlap,
    Overrides,
    RecipeFlag,
    Regions,
    SubjectsFile,
    Window,
    WindowsAtOnce,
    axes_of,
    by_name,
    names_of,
    needed,
    overrides_of,
    regions_of,
    size_of,
    spacing_of,
    tolerances_of,
)


def demo(*, options: Options, reporter: Reporter) -> Result:
    """Show the whole method at work, without a download.

    On generated data: M1, M2, Fisher, IMM, T-IMM, fine-tuning, forgetting.
    Writes demo/report.html, and a table like the paper's on the screen; under 5 minutes on 2 cores.

    Examples:

      mergekit3d demo

      mergekit3d demo --out /tmp/demo --force
    """
    out = options.out or Path("demo")
    return mergekit3d.demo(out, options=replace(options, out=out), reporter=reporter)


def phantom(
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)] = None,
    *,
    layout: Annotated[
        Literal["hcp", "brats"] | None, typer.Option(metavar="hcp|brats", help="14-class brains, or tumours with nested regions.")
    ] = None,
    subjects: Annotated[int | None, typer.Option(metavar="N", min=1, help="How many subjects.")] = None,
    labels: Annotated[Path | None, typer.Option(metavar="DIR", help="Render from this folder of real label maps.")] = None,
    spacing_mm: Annotated[
        float | None, typer.Option(metavar="MM", min=0.7, max=6, help="Edge of a voxel in mm (2 by default; 1 with --labels).")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of everything random.")] = 0,
    force: Force = False,
    reporter: Reporter,
) -> Result:
    """Write generated subjects as NIfTI files in a real layout.

    Writes OUT: a data set as HCP or BraTS 2018 lay it out.

    Examples:

      mergekit3d phantom hcp/ --layout hcp --subjects 12

      mergekit3d phantom brats/ --layout brats --subjects 20 --spacing-mm 3
    """
    example = "phantom hcp/ --layout hcp --subjects 12"
    out = needed(out, "phantom", "a folder to write", example=example)
    chosen: str = needed(layout, "phantom", "a layout", example=example)
    subjects = needed(subjects, "phantom", "a number of subjects", example=example)
    return mergekit3d.phantom(
        out, layout=chosen, subjects=subjects, labels=labels, spacing_mm=spacing_mm, seed=seed, force=force, reporter=reporter
    )


def preprocess(
    data: Annotated[Path | None, typer.Argument(metavar="IN", help="A data set: a folder or a list.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)] = None,
    *,
    layout: Layout = "auto",
    n4: Annotated[bool, typer.Option("--n4/--no-n4", help="Correct the bias field.")] = True,
    n4_shrink: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of the grid that the field is estimated on; about 4 mm by default.")
    ] = None,
    crop: Annotated[bool, typer.Option("--crop/--no-crop", help="Cut to foreground and labels.")] = True,
    margin: Annotated[int, typer.Option(metavar="N", min=0, help="Voxels around them.")] = 2,
    spacing_mm: Annotated[
        str | None,
        typer.Option("--spacing-mm", "--spacing", metavar="MM|X,Y,Z", help="Voxel size of the output in mm; as it is by default."),
    ] = None,
    intensity: Annotated[
        Literal["zscore", "rank", "nyul", "histogram", "none"],
        typer.Option(metavar="zscore|rank|nyul|histogram|none", help="Over the foreground; rank: to a uniform [0, 1]."),
    ] = "zscore",
    reference: Annotated[
        str | None, typer.Option(metavar="SUBJECT", help="Of --intensity histogram: whose histogram the others get, by name or number.")
    ] = None,
    landmarks: Annotated[
        Path | None, typer.Option(metavar="FILE", help="preprocess.json of another data set, onto whose nyul or histogram scale to map.")
    ] = None,
    subjects_file: SubjectsFile = None,
    workers: Annotated[int | None, typer.Option(metavar="N", min=1, help="Processes; one a processor by default.")] = None,
    force: Force = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what is done with these settings from this input.")] = False,
    reporter: Reporter,
) -> Result:
    """Correct, crop, resample and normalise a data set.

    N4, foreground crop, voxel size, intensities, subjects in parallel. Writes OUT in the layout of the input; preprocess.json in it tells
    what was done. A subject that cannot be used is told by its number and left out, the others are done, and the exit code is 65.

    Examples:

      mergekit3d preprocess brats/ brats-n4/

      mergekit3d preprocess hcp/ hcp-1mm/ --spacing-mm 1 --intensity rank

      mergekit3d preprocess b/ b2/ --intensity nyul --landmarks a2/preprocess.json
    """
    example = "preprocess brats/ brats-n4/"
    data = needed(data, "preprocess", "a data set", example=example)
    out = needed(out, "preprocess", "a folder to write", example=example)
    return mergekit3d.preprocess(
        data,
        out,
        layout=layout,
        n4=n4,
        n4_shrink=n4_shrink,
        crop=crop,
        margin=margin,
        spacing_mm=spacing_of(spacing_mm, "--spacing-mm"),
        intensity=intensity,
        reference=reference,
        landmarks=landmarks,
        subjects_file=subjects_file,
        workers=workers,
        force=force,
        resume=resume,
        reporter=reporter,
    )


def predict(
    checkpoints: Annotated[list[Path] | None, typer.Argument(metavar="CKPT...", help="Trained networks.", show_default=False)] = None,
    *,
    data: Annotated[
        Path | None, typer.Option(metavar="DATA", help="The subjects to segment: a folder or a list.", rich_help_panel=INPUT)
    ] = None,
    layout: Layout = "auto",
    patch_size: Window = None,
    overlap: Overlap = None,
    batch_size: WindowsAtOnce = None,
    mirror: Mirror = False,
    mirror_axes: MirrorAxes = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Write probabilities/<subject>.nii.gz too.")] = False,
    submission: Annotated[
        Literal["brats"] | None, typer.Option(metavar="brats", help="Write the label ids of a challenge: 4, 1, 2 from ET, TC, WT.")
    ] = None,
    subjects_file: SubjectsFile = None,
    options: Options,
    reporter: Reporter,
) -> Result:
    """Segment subjects, each on its own grid.

    Several checkpoints are an ensemble: the mean of their probabilities. Writes <subject>.nii.gz into --out, and predictions.json, by which
    --resume tells what is done. A subject that cannot be used is told at the end, the others are done, and the exit code is 65.

    Examples:

      mergekit3d predict best.safetensors --data brats/ --out predictions/

      mergekit3d predict a.safetensors b.safetensors --data brats/
      --out predictions/ --mirror --submission brats
    """
    example = "predict best.safetensors --data brats/ --out predictions/"
    given = needed(checkpoints or None, "predict", "a checkpoint", example=example)
    data = needed(data, "predict", "data", example=example)
    out = needed(options.out, "predict", "an output folder", example=example)
    return mergekit3d.predict(
        given[0] if len(given) == 1 else given,
        data,
        out,
        layout=layout,
        patch_size=size_of(patch_size, "--patch-size"),
        overlap=overlap,
        batch_size=batch_size,
        mirror=mirror,
        mirror_axes=None if mirror_axes is None else axes_of(mirror_axes),
        probabilities=probabilities,
        submission=submission,
        subjects_file=subjects_file,
        options=options,
        reporter=reporter,
    )


def evaluate(
    checkpoint: Annotated[Path | None, typer.Argument(metavar="CKPT", help="A trained network.", show_default=False)] = None,
    *,
    data: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Labelled subjects, for CKPT: a folder or a list.", rich_help_panel=INPUT)
    ] = None,
    pred: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Segmentations made before, in place of CKPT.", rich_help_panel=INPUT)
    ] = None,
    truth: Annotated[Path | None, typer.Option(metavar="DIR", help="Their true labels.", rich_help_panel=INPUT)] = None,
    layout: Layout = "auto",
    empty: Annotated[
        Literal["nnunet", "brats"],
        typer.Option(metavar="nnunet|brats", help="A region absent from both: NaN and left out of the mean, or Dice 1."),
    ] = "nnunet",
    tolerance_mm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MM|REGION=MM,...", help="Of the normalised surface Dice in mm, of all (other) regions or of one; 1 by default."
        ),
    ] = None,
    regions: Regions = None,
    subjects_file: SubjectsFile = None,
    patch_size: Window = None,
    overlap: Overlap = None,
    batch_size: WindowsAtOnce = None,
    mirror: Mirror = False,
    mirror_axes: MirrorAxes = None,
    options: Options,
    reporter: Reporter,
) -> Result:
    """Compute Dice, HD95, surface Dice and volumes.

    Of each subject and region: of a checkpoint on labelled data, or of segmentations made before. Writes metrics.csv and summary.json into
    --out, or else into evaluation/ beside the checkpoint, or the folder of the segmentations.

    Examples:

      mergekit3d evaluate best.safetensors --data brats/ --out evaluation/

      mergekit3d evaluate --pred predictions/ --truth brats/ --regions brats
    """
    by_checkpoint = checkpoint is not None or data is not None
    by_files = pred is not None or truth is not None
    if by_checkpoint == by_files:
        raise UsageError(
            "evaluate needs a checkpoint with --data, or --pred with --truth",
            todo="for example: mergekit3d evaluate best.safetensors --data brats/",
        )
    if by_checkpoint:
        example = "evaluate best.safetensors --data brats/"
        needed(checkpoint, "evaluate", "a checkpoint beside --data", example=example)
        needed(data, "evaluate", "--data beside a checkpoint", example=example)
    else:
        example = "evaluate --pred predictions/ --truth brats/"
        needed(pred, "evaluate", "--pred beside --truth", example=example)
        needed(truth, "evaluate", "--truth beside --pred", example=example)
    return mergekit3d.evaluate(
        checkpoint,
        data,
        pred,
        truth,
        layout=layout,
        empty=empty,
        tolerance_mm=tolerances_of(tolerance_mm),
        regions=regions_of(regions),
        subjects_file=subjects_file,
        patch_size=size_of(patch_size, "--patch-size"),
        overlap=overlap,
        batch_size=batch_size,
        mirror=mirror,
        mirror_axes=axes_of(mirror_axes),
        options=options,
        reporter=reporter,
    )


def compare(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="METRICS...", help="Two metrics.csv files or more.", show_default=False)
    ] = None,
    *,
    names: Names = None,
    out: Out = None,
    force: Force = False,
    reporter: Reporter,
) -> Result:
    """Compare metrics.csv files subject by subject.

    Means, paired differences to the first file, Wilcoxon p (the paper's Figure 4). Writes compare.json and compare.png into --out, or else
    into the current folder.

    Examples:

      mergekit3d compare timm/metrics.csv imm/metrics.csv none/metrics.csv
    """
    files = files or []
    if len(files) < 2:
        raise UsageError("compare needs two files or more", todo="for example: mergekit3d compare timm/metrics.csv imm/metrics.csv")
    return mergekit3d.compare(files, names=names_of(names), out=out, force=force, reporter=reporter)


def forgetting(
    checkpoints: Annotated[list[Path] | None, typer.Argument(metavar="CKPT...", help="Trained networks.", show_default=False)] = None,
    *,
    recipe: RecipeFlag = None,
    overrides: Overrides = None,
    allow_outside: AllowOutside = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=CKPT", help="A source, whose private tensors and task these are; repeat for more.", rich_help_panel=INPUT
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR|NAME=DIR", help="Labelled subjects: one folder, or one a source; repeat for more.", rich_help_panel=INPUT
        ),
    ] = None,
    names: Names = None,
    private: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Private tensors: a glob on names, or kind:norm; repeat for more; as the recipe or the network."),
    ] = None,
    layout: Layout = "auto",
    subjects_file: SubjectsFile = None,
    patch_size: Window = None,
    overlap: Overlap = None,
    batch_size: WindowsAtOnce = None,
    mirror: Mirror = False,
    mirror_axes: MirrorAxes = None,
    options: Options,
    reporter: Reporter,
) -> Result:
    """Tell what networks still know of the sources' tasks.

    Any merged or trained checkpoint, with the private tensors of each source, on that source's data (the paper's Table 4). With a recipe
    and no checkpoint: the merges and fine-tuned networks that it made, on the test subjects of its sources. Writes forgetting.json,
    forgetting.csv and forgetting.png into --out, or else into forgetting/ in the recipe's output folder or beside the first checkpoint.

    Examples:

      mergekit3d forgetting --recipe timm.yaml

      mergekit3d forgetting fused.safetensors out/finetune/best.safetensors
      --source m1=m1.safetensors --source m2=m2.safetensors --data hcp/
    """
    if (overrides or allow_outside) and recipe is None:
        flag, what = ("--set", "overrides keys of a recipe") if overrides else ("--allow-outside", "is about what a recipe writes")
        raise UsageError(f"{flag} {what}", todo=f"pass --recipe, or leave {flag} out")
    folders = data or []
    by_source = any("=" in folder for folder in folders)
    if not by_source and len(folders) > 1:
        raise UsageError("several folders of data", where="--data", wanted="one for all sources, or NAME=DIR for each", found=folders[1])
    return mergekit3d.forgetting(
        checkpoints or [],
        sources=by_name(source, "--source") if source else None,
        data=by_name(folders, "--data") if by_source else next(iter(folders), None),
        recipe=recipe,
        overrides=overrides_of(overrides),
        allow_outside=allow_outside or (),
        names=names_of(names),
        private=private or None,
        layout=layout,
        subjects_file=subjects_file,
        patch_size=size_of(patch_size, "--patch-size"),
        overlap=overlap,
        batch_size=batch_size,
        mirror=mirror or None,
        mirror_axes=axes_of(mirror_axes),
        options=options,
        reporter=reporter,
    )


def plot(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="What to draw; what it is tells how.", show_default=False)
    ] = None,
    *,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="What segmentations lie over.")] = None,
    truth: Annotated[Path | None, typer.Option(metavar="FILE", help="The true labels of segmentations.")] = None,
    regions: Regions = None,
    names: Names = None,
    path: Annotated[bool, typer.Option("--path", help="Of adapt's log: how every layer's ratios moved.")] = False,
    out: Out = None,
    force: Force = False,
    reporter: Reporter,
) -> Result:
    """Draw ratios, fusions, Fisher diagonals, curves, or predictions.

    Several logs are overlaid; several Fisher diagonals, or segmentations of one subject, stand side by side. Writes a picture, .png or
    .svg: --out, or else a PNG beside the first file.

    Examples:

      mergekit3d plot out/adapt/ratios.json --out ratios.svg

      mergekit3d plot out/adapt/log.csv --path

      mergekit3d plot out/fused.report.json

      mergekit3d plot m1.fisher.safetensors m2.fisher.safetensors

      mergekit3d plot imm/log.csv timm/log.csv --names IMM,T-IMM

      mergekit3d plot imm/s01.nii.gz timm/s01.nii.gz --regions brats
      --image s01_flair.nii.gz --truth s01_seg.nii.gz
    """
    files = needed(files, "plot", "a file", example="plot out/adapt/ratios.json")
    return mergekit3d.plot(
        files,
        out=out,
        image=image,
        truth=truth,
        regions=regions_of(regions),
        names=names_of(names),
        path=path,
        force=force,
        reporter=reporter,
    )
