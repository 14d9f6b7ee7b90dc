"""`mergekit3d preprocess` against SimpleITK alone: seconds per subject for N4, foreground crop, resampling and z-scores.

    python benchmarks/preprocess.py [--subjects 2] [--repeats 3] [--labels DIR] [--spacing-mm 1.5] [--n4-shrink 4] [--data DIR]

Both write the same files of the same subjects (generated ones, T1, T1ce, T2, FLAIR and labels, unless --data names a BraTS folder), each
as a process of its own, its start counted, on one processor. SimpleITK once carries out the steps in the textbook's order (N4 on the
whole image), and once crops first, as mergekit3d does. The runs take turns, so that a machine that slows down slows all; processor time is
what other work on the machine disturbs least. Ends with a line on how far the results agree, and exits non-zero where one cannot be
measured.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK

from mergekit3d import phantom
from mergekit3d.datasets import find_dataset
from mergekit3d.datasets.subject import Subject
from mergekit3d.volumes.nifti import read_image

MARGIN = 2
OURS, TEXTBOOK, CROP_FIRST = "mergekit3d", "SimpleITK, textbook order", "SimpleITK, crop first"
VARIANTS = (OURS, TEXTBOOK, CROP_FIRST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--labels", type=Path, help="render from this folder of real label maps")
    parser.add_argument("--spacing-mm", type=float, default=1.5, help="voxels of the output")
    parser.add_argument("--n4-shrink", type=int, default=4)
    parser.add_argument("--data", type=Path, help="a BraTS folder, in place of generated subjects")
    parser.add_argument("--simpleitk", nargs=3, metavar=("DATA", "OUT", "ORDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.simpleitk:
        data, out, order = chosen.simpleitk
        alone(Path(data), Path(out), chosen.spacing_mm, chosen.n4_shrink, crop_first=order == CROP_FIRST)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = chosen.data or root / "data"
        if chosen.data is None:
            phantom(data, layout="brats", subjects=chosen.subjects, labels=chosen.labels, spacing_mm=None if chosen.labels else 1.0)
        measure(data, root, chosen)


def measure(data: Path, root: Path, chosen: argparse.Namespace) -> None:
    subjects = find_dataset(data).subjects
    shape = " x ".join(map(str, read_image(next(iter(subjects[0].images.values()))).data.shape))
    wall: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    processor: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(chosen.repeats):
        for variant in VARIANTS:
            out = root / variant.replace(" ", "_")
            shutil.rmtree(out, ignore_errors=True)
            took = run(variant, data, out, chosen)
            for kept, seconds in zip((wall, processor), took, strict=True):
                kept[variant].append(seconds / len(subjects))
            print(
                f"{variant}: {wall[variant][-1]:.2f} s a subject, {processor[variant][-1]:.2f} s of processors", file=sys.stderr, flush=True
            )
    print(
        f"{len(subjects)} subjects of 4 images of {shape} voxels, to {chosen.spacing_mm:g} mm, N4 shrunken by {chosen.n4_shrink}, SimpleITK"
    )
    print(f"{SimpleITK.Version.VersionString()}, {len(os.sched_getaffinity(0))} processors, median of {chosen.repeats} [least, most]\n")
    print("| | processor seconds a subject | of SimpleITK's, in pairs | wall seconds a subject | of SimpleITK's, in pairs |")
    print("|---|---|---|---|---|")
    for variant in VARIANTS:
        cells = [_spread(values) for kept in (processor, wall) for values in (kept[variant], _ratios(kept, variant))]
        print(f"| {variant} | {' | '.join(cells)} |")
    agreement = [compare(subject, root) for subject in subjects]
    print(f"\nCorrelation with SimpleITK's images (textbook order), over the foreground: at least {min(agreement):.4f}")


def run(variant: str, data: Path, out: Path, chosen: argparse.Namespace) -> tuple[float, float]:
    """Wall and processor seconds of one process and its own, on the first processor alone."""
    if variant == OURS:
        command = ["-m", "mergekit3d_cli", "preprocess", data, out, "--layout", "brats2018", "--quiet"]
        command += ["--spacing-mm", chosen.spacing_mm, "--n4-shrink", chosen.n4_shrink]
    else:
        command = [__file__, "--simpleitk", data, out, variant, "--spacing-mm", chosen.spacing_mm, "--n4-shrink", chosen.n4_shrink]
    began, before = time.perf_counter(), _children()
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)  # noqa: S603  ours
    os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
    if process.wait() != 0:
        sys.exit(f"cannot measure: {variant} failed")
    return time.perf_counter() - began, _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def alone(data: Path, out: Path, spacing_mm: float, shrink: int, *, crop_first: bool) -> None:
    """The same steps in SimpleITK, one thread."""
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    for folder in sorted(path for path in data.rglob("*") if path.is_dir() and any(path.glob("*_seg.nii.gz"))):
        images = {
            path.name: SimpleITK.ReadImage(path, SimpleITK.sitkFloat32)
            for path in sorted(folder.glob("*.nii.gz"))
            if "seg" not in path.name
        }
        label = SimpleITK.ReadImage(folder / f"{folder.name}_seg.nii.gz", SimpleITK.sitkUInt8)
        mask = SimpleITK.Cast(sum((image != 0 for image in images.values()), label * 0), SimpleITK.sitkUInt8) > 0
        box = _box(mask | (label > 0))
        target = out / folder.relative_to(data)
        target.mkdir(parents=True)
        if crop_first:
            images, label, mask = {name: _cropped(image, box) for name, image in images.items()}, _cropped(label, box), _cropped(mask, box)
        for name, image in images.items():
            corrected = _without_bias(image, mask, shrink)
            corrected, inside = (item if crop_first else _cropped(item, box) for item in (corrected, mask))
            grid = _grid(inside, spacing_mm)
            resampled = SimpleITK.Resample(_smoothed(corrected, spacing_mm), grid, SimpleITK.Transform(), SimpleITK.sitkLinear)
            inside = SimpleITK.Resample(inside, grid, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor)
            SimpleITK.WriteImage(_zscored(resampled, inside), target / name, True)
        label = label if crop_first else _cropped(label, box)
        resampled = SimpleITK.Resample(label, _grid(label, spacing_mm), SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor)
        SimpleITK.WriteImage(resampled, target / f"{folder.name}_seg.nii.gz", True)


def _box(mask: SimpleITK.Image) -> tuple[list[int], list[int]]:
    statistics_filter = SimpleITK.LabelShapeStatisticsImageFilter()
    statistics_filter.Execute(mask)
    x, y, z, *size = statistics_filter.GetBoundingBox(1)
    start = [max(0, first - MARGIN) for first in (x, y, z)]
    stop = [min(whole, first + length + MARGIN) for first, length, whole in zip((x, y, z), size, mask.GetSize(), strict=True)]
    return start, [last - first for first, last in zip(start, stop, strict=True)]


def _cropped(image: SimpleITK.Image, box: tuple[list[int], list[int]]) -> SimpleITK.Image:
    return SimpleITK.RegionOfInterest(image, box[1], box[0])


def _without_bias(image: SimpleITK.Image, mask: SimpleITK.Image, shrink: int) -> SimpleITK.Image:
    corrector = SimpleITK.N4BiasFieldCorrectionImageFilter()
    corrector.Execute(*(SimpleITK.Shrink(item, [shrink] * 3) for item in (image, mask)))
    return image / SimpleITK.Exp(corrector.GetLogBiasFieldAsImage(image))


def _grid(image: SimpleITK.Image, spacing_mm: float) -> SimpleITK.Image:
    """An empty image over the same field of view."""
    sizes = [max(1, round(size * edge / spacing_mm)) for size, edge in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    grid = SimpleITK.Image(sizes, SimpleITK.sitkUInt8)
    grid.SetSpacing([spacing_mm] * 3)
    grid.SetDirection(image.GetDirection())
    centre = image.TransformContinuousIndexToPhysicalPoint([(size - 1) / 2 for size in image.GetSize()])
    own = grid.TransformContinuousIndexToPhysicalPoint([(size - 1) / 2 for size in sizes])
    grid.SetOrigin([there - here for there, here in zip(centre, own, strict=True)])
    return grid


def _smoothed(image: SimpleITK.Image, spacing_mm: float) -> SimpleITK.Image:
    """Smoothed by mergekit3d's rule for down-sampling."""
    sigmas = [max(0.0, (spacing_mm / edge - 1) / 2) * edge for edge in image.GetSpacing()]
    return SimpleITK.DiscreteGaussian(image, [sigma**2 for sigma in sigmas], useImageSpacing=True) if any(sigmas) else image


def _zscored(image: SimpleITK.Image, inside: SimpleITK.Image) -> SimpleITK.Image:
    within = SimpleITK.LabelStatisticsImageFilter()
    within.Execute(image, inside)
    return SimpleITK.Mask((image - within.GetMean(1)) / within.GetSigma(1), inside)


def compare(subject: Subject, root: Path) -> float:
    """The least correlation of an image of ours with SimpleITK's, where both have foreground."""
    correlations = []
    for path in subject.images.values():
        tail = Path(*path.parts[-3:]) if path.parts[-3] in ("HGG", "LGG") else Path(*path.parts[-2:])
        ours, theirs = (read_image(root / variant.replace(" ", "_") / tail).data for variant in (OURS, TEXTBOOK))
        both = (ours != 0) & (theirs != 0)
        correlations.append(float(np.corrcoef(ours[both], theirs[both])[0, 1]))
    return min(correlations)


def _ratios(seconds: Mapping[str, Sequence[float]], variant: str) -> list[float]:
    """Of a variant's seconds to those of SimpleITK in the textbook's order, in the order of the repeats."""
    return [own / other for own, other in zip(seconds[variant], seconds[TEXTBOOK], strict=True)]


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


if __name__ == "__main__":
    main()
