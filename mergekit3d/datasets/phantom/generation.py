"""`phantom`: data sets in real layouts, from formulas or from real label maps."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mergekit3d.datasets.phantom.anatomy import FINEST_MM, draw_anatomy
from mergekit3d.datasets.phantom.fields import Shape, view_of
from mergekit3d.datasets.phantom.label_maps import LabelMaps
from mergekit3d.datasets.phantom.rendering import add_details, majority, render
from mergekit3d.datasets.phantom.tumour import draw_tumour
from mergekit3d.datasets.phantom.writing import LAYOUTS, draw_grid, write_subject
from mergekit3d.errors import UsageError
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.storage.atomic import output_error, real_path, refuse_existing
from mergekit3d.storage.lock import output_lock

PROCEDURAL_SPACING_MM, LABEL_MAP_SPACING_MM = 2.0, 1.0
SPACINGS_MM = (0.7, 6.0)  # from some 100 MB an array to a few voxels in the smallest structures
WORKERS = 4  # at 0.7 mm each takes 1.2 GB
HIGH_GRADE, LOW_GRADE, HIGH_GRADE_SHARE = "HGG", "LGG", 0.75


@dataclass(frozen=True)
class PhantomSubject:
    """One subject that was written.

    Args:
        number: from 1, counted over all subjects of the seed.
        name: of its folder.
        shape: voxels along x, y, z (RAS+).
        orientation: axis codes of its files.
        grade: HGG or LGG, where it has a tumour.
        label_map: number of the real label map, from 1 in the order of names; None for a procedural brain.
    """

    number: int
    name: str
    shape: Shape
    orientation: str
    grade: str | None
    label_map: int | None


@dataclass(frozen=True)
class PhantomResult:
    """What `phantom` wrote.

    Args:
        folder: name of the folder.
        layout: hcp or brats.
        seed: of all randomness.
        spacing_mm: voxel edge.
        modalities: of each subject.
        subjects: in the order of their numbers.
    """

    folder: str
    layout: str
    seed: int
    spacing_mm: float
    modalities: tuple[str, ...]
    subjects: tuple[PhantomSubject, ...]

    def as_json(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        content = asdict(self)
        content["modalities"] = list(self.modalities)
        content["subjects"] = [subject | {"shape": list(subject["shape"])} for subject in content["subjects"]]
        return content

    def lines(self) -> list[str]:
        """The result as text."""
        first, last = self.subjects[0], self.subjects[-1]
        count = "1 subject" if first == last else f"{len(self.subjects)} subjects"
        names = first.name if first == last else f"{first.name} to {last.name}"
        grid = f"{' x '.join(map(str, first.shape))} voxels of {self.spacing_mm:g} mm"
        return [f"{self.folder}: {count} in the layout {self.layout} with {', '.join(self.modalities)}, {grid}: {names}"]


@dataclass(frozen=True)
class _Order:
    """One subject to make.

    Args:
        layout, seed, spacing_mm: of the data set.
        index: from 0.
        grade: of the tumour.
        pick: number of the label map, from 0.
    """

    layout: str
    seed: int
    spacing_mm: float
    index: int
    grade: str | None
    pick: int | None

    @property
    def folder(self) -> str:
        """Folder of the subject below the root."""
        return LAYOUTS.get(self.layout).folder(self.seed, self.index, self.grade)

    def generator(self, purpose: str) -> np.random.Generator:
        """A stream of its own for each purpose, so that none depends on how much another took."""
        return _generator(self.seed, self.layout, purpose, self.index)


def phantom(
    out: Path | str,
    *,
    layout: str = "hcp",
    subjects: int = 4,
    labels: Path | str | None = None,
    spacing_mm: float | None = None,
    seed: int = 0,
    force: bool = False,
    reporter: Reporter = SILENT,
    first: int = 0,
) -> PhantomResult:
    """Write a data set of generated subjects, skull-stripped, in a real layout.

    A subject depends on the seed, its own number, the layout, the spacing and the label maps, never on how many are asked for.

    Args:
        out: the folder to write; refused where it holds something, unless `force`.
        layout: hcp (14-class brains with T1, T2; labels in FreeSurfer ids) or brats (BraTS 2018: tumours with T1, T1ce, T2, FLAIR).
        subjects: how many.
        labels: a folder of real label maps in FreeSurfer ids to render from; None draws brains from formulas.
        spacing_mm: voxel edge; None: 1 mm with `labels`, else 2 mm. At 3 mm a field of view is 64^3.
        seed: of all randomness, at least 0.
        force: write into a folder that holds something.
        reporter: where progress goes.
        first: how many subjects of the seed to pass over, for a second set that shares none with the first.

    Returns:
        What was written.

    Raises:
        UsageError: an argument is out of range, or `out` holds something.
        InputError: the label maps are missing, damaged or hold no brain.
        OutputError: the file system refused.
        LockedError: another run writes there.
    """
    LAYOUTS.get(layout)
    spacing = (PROCEDURAL_SPACING_MM if labels is None else LABEL_MAP_SPACING_MM) if spacing_mm is None else float(spacing_mm)
    _check(subjects=subjects, spacing_mm=spacing, seed=seed, first=first)
    out, maps = Path(out), None if labels is None else LabelMaps(Path(labels))
    orders = [_order(layout, seed, spacing, index, maps) for index in range(first, first + subjects)]
    _refuse_or_warn(out, {order.folder for order in orders}, force=force, reporter=reporter)
    if maps is not None:
        maps.check({order.pick for order in orders if order.pick is not None})

    written = []
    # Most of the time goes to array filters that release the interpreter lock, so that threads share the work.
    workers = min(WORKERS, os.cpu_count() or 1)
    with output_lock(out), reporter.task(f"phantom {layout}", len(orders)) as task, ThreadPoolExecutor(workers) as pool:
        for subject in pool.map(lambda order: _make(order, maps, out), orders):
            written.append(subject)
            task.advance(message=subject.name)
    return PhantomResult(real_path(out).name, layout, seed, spacing, tuple(LAYOUTS.get(layout).images), tuple(written))


def _order(layout: str, seed: int, spacing_mm: float, index: int, maps: LabelMaps | None) -> _Order:
    grade = None
    if LAYOUTS.get(layout).tumours:
        grade = HIGH_GRADE if _generator(seed, layout, "grade", index).random() < HIGH_GRADE_SHARE else LOW_GRADE
    pick = None if maps is None else maps.pick(_generator(seed, layout, "map", index // len(maps)), index)
    return _Order(layout, seed, spacing_mm, index, grade, pick)


def _make(order: _Order, maps: LabelMaps | None, out: Path) -> PhantomSubject:
    """Draw, render and write one subject."""
    layout = LAYOUTS.get(order.layout)
    if maps is not None and order.pick is not None:
        labels, view = maps.draw(order.generator("anatomy"), order.pick, order.spacing_mm)
    else:
        view = view_of(order.spacing_mm, finest_mm=FINEST_MM)
        labels = draw_anatomy(order.generator("anatomy"), view)
    tissues = add_details(order.generator("details"), labels, view)
    infiltration = None
    if order.grade is not None:
        tumour = draw_tumour(order.generator("tumour"), tissues, view, high_grade=order.grade == HIGH_GRADE)
        tissues, labels, infiltration = tumour.tissues, tumour.regions, tumour.infiltration
    images = render(order.generator("images"), tissues, view, tuple(layout.images), infiltration=infiltration)
    grid, codes = draw_grid(order.generator("grid"), layout, view)
    write_subject(out / order.folder, layout, grid, images, majority(labels, view))
    label_map = None if order.pick is None else order.pick + 1
    return PhantomSubject(order.index + 1, (out / order.folder).name, view.shape, codes, order.grade, label_map)


def _generator(seed: int, layout: str, purpose: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, index, *layout.encode(), 0, *purpose.encode()])


def _check(*, subjects: int, spacing_mm: float, seed: int, first: int) -> None:
    if subjects < 1:
        raise UsageError("cannot make a phantom", wanted="at least 1 subject", found=subjects)
    for what, value in (("seed", seed), ("first subject", first)):
        if value < 0:
            raise UsageError("cannot make a phantom", wanted=f"a {what} of at least 0", found=value)
    low, high = SPACINGS_MM
    if not low <= spacing_mm <= high:
        raise UsageError("cannot make a phantom", wanted=f"a spacing of {low:g} to {high:g} mm", found=spacing_mm)


def _refuse_or_warn(out: Path, folders: set[str], *, force: bool, reporter: Reporter) -> None:
    """An output that holds something is refused; with force, what will stay there is told."""
    if out.exists() and not out.is_dir():
        raise UsageError("cannot write a data set", where=out, wanted="a folder", found="a file")
    try:
        entries = [path for path in out.iterdir() if not path.name.startswith(".")] if out.exists() else []
    except OSError as error:
        raise output_error(error, out) from error
    if not entries:
        return
    refuse_existing(out, force=force)
    tops = {folder.split("/")[0] for folder in folders}
    others = [path for path in entries if path.name not in tops]
    others += [path for top in tops for path in (out / top).glob("*") if f"{top}/{path.name}" not in folders and top not in folders]
    if others:
        count = "1 other entry, which stays" if len(others) == 1 else f"{len(others)} other entries, which stay"
        reporter.warn(f"{out.name} holds {count}: {', '.join(sorted(path.name for path in others)[:4])}")
