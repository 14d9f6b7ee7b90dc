"""``mergekit3d plot``: a picture of what a file holds, chosen by what the file is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.errors import InputError, UsageError
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.storage.atomic import refuse_existing
from mergekit3d.textfiles import read_csv, read_json_object

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

PLOTTED = (
    "ratios.json, a fusion's report.json, compare.json, forgetting.json, log.csv, a Fisher diagonal, or a segmentation as .nii or .nii.gz"
)
PREDICTION = "prediction"
MOST_LABELS = 32
"""Of a segmentation without regions: more are hardly a segmentation of ours, and no legend could tell them."""


@dataclass(frozen=True)
class PlotResult:
    """What was drawn.

    Args:
        kind: ratios, path, merge, fisher, curves, differences, forgetting or slices.
        out: the picture.
    """

    kind: str
    out: Path

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"kind": self.kind, "out": str(self.out)}

    def lines(self) -> list[str]:
        """The result in words."""
        return [f"{self.kind}: {self.out}"]


def plot(
    file: Path | str | Sequence[Path | str],
    *,
    out: Path | str | None = None,
    image: Path | str | None = None,
    truth: Path | str | None = None,
    regions: str | Mapping[str, tuple[int, ...]] | None = None,
    names: Sequence[str] | None = None,
    path: bool = False,
    force: bool = False,
    reporter: Reporter = SILENT,
) -> PlotResult:
    """Draw a file: ratios (Figure 5), a fusion, Fisher diagonals, differences (Figure 4), forgetting, curves, segmentations (Figure 3).

    Args:
        file: ratios.json, report.json, compare.json, forgetting.json, log.csv, a Fisher diagonal or a segmentation; several logs are
            overlaid, several Fisher diagonals or segmentations stand side by side.
        out: the picture, .png or .svg; by default a PNG named after the first file, beside it.
        image: what segmentations lie over.
        truth: the true labels of segmentations.
        regions: of segmentations: a shipped set, or label ids by region; by default every label that they hold.
        names: what to call several files; by default told from their paths.
        path: of the log of an adaptation: how every layer's ratios moved, in place of the learning curve.
        force: write over an existing picture.
        reporter: where messages go.

    Returns:
        What was drawn, and where.

    Raises:
        UsageError: files that do not go together, an ending that is no picture's, or an output that exists.
        InputError: a file that is damaged or none of those.
    """
    from mergekit3d.plots.style import check_ending, save_figure
    from mergekit3d.verbs.compare import names_of

    files = [Path(file)] if isinstance(file, (str, Path)) else [Path(one) for one in file]
    if not files:
        raise UsageError("nothing to plot", wanted=PLOTTED)
    picture = files[0].with_name(f"{_stem(files[0])}.png") if out is None else Path(out)
    check_ending(picture)
    refuse_existing(picture, force=force)
    if names is not None:
        called = list(names)
    else:
        # A segmentation is named after its subject, who has no place in a picture.
        called = [PREDICTION] if len(files) == 1 and _is_volume(files[0]) else names_of(files)
    if len(called) != len(files):
        raise UsageError("the names do not fit the files", wanted=f"{len(files)} names", found=", ".join(called))
    if path:
        kind, figure = "path", _path(files)
    else:
        over, true = (None if one is None else Path(one) for one in (image, truth))
        kind, figure = _figure(dict(zip(called, files, strict=True)), over, true, regions)
    save_figure(figure, picture)
    reporter.info(f"wrote {picture}")
    return PlotResult(kind, picture)


def _figure(
    files: Mapping[str, Path], image: Path | None, truth: Path | None, regions: str | Mapping[str, tuple[int, ...]] | None
) -> tuple[str, Figure]:
    first = next(iter(files.values()))
    if _is_volume(first):
        return "slices", _slices(files, image, truth, regions)
    if image is not None or truth is not None:
        raise UsageError("an image and a truth go with a segmentation", where=first, wanted=".nii or .nii.gz")
    if first.suffix.lower() == ".csv":
        return "curves", _curves(files)
    if _is_checkpoint(first):
        return "fisher", _fisher(files)
    if len(files) > 1:
        raise UsageError("several files can be drawn at once only where they are logs, Fisher diagonals or segmentations", where=first)
    if first.suffix.lower() == ".json":
        return _json_figure(first)
    raise InputError("cannot tell what to plot", where=first, wanted=PLOTTED)


def _json_figure(path: Path) -> tuple[str, Figure]:
    from mergekit3d.comparison import comparison_of
    from mergekit3d.forgetting_matrix import dice_of_json
    from mergekit3d.plan.ratios import read_ratios
    from mergekit3d.plots.differences import differences_figure
    from mergekit3d.plots.forgetting import forgetting_figure
    from mergekit3d.plots.merge import merge_figure
    from mergekit3d.plots.ratios import ratios_figure

    content = read_json_object(path, "the file to plot")
    if content.get("layers"):
        return "ratios", ratios_figure(read_ratios(path).as_json())
    if content.get("per_layer") and content.get("sources"):
        return "merge", merge_figure(_report_of(content, path))
    if "networks" in content and "tasks" in content:
        return "forgetting", forgetting_figure(*dice_of_json(content, path))
    if "comparisons" in content:
        return "differences", differences_figure(comparison_of(content, path))
    raise InputError(
        "cannot tell what to plot",
        where=path,
        wanted="what adapt, fuse, compare or forgetting writes",
        found=f"keys {', '.join(content)}"[:200],
    )


def _report_of(content: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """A fusion's report, as far as it is drawn.

    Raises:
        InputError: it is damaged.
    """
    layers, sources = content["per_layer"], content["sources"]
    good = isinstance(layers, dict) and isinstance(sources, list) and all(isinstance(row, dict) for row in layers.values())
    numbers = (
        [value for row in layers.values() for key in ("share", "distance") for value in dict(row.get(key, {})).values()] if good else [""]
    )
    if not all(value is None or isinstance(value, int | float) for value in numbers):
        raise InputError("damaged report of a fusion", where=path, wanted="figures by layer and source", todo="run fuse again")
    return content


def _curves(files: Mapping[str, Path]) -> Figure:
    from mergekit3d.plots.curves import curves_figure
    from mergekit3d.plots.logs import read_log

    for path in files.values():
        # A table of another command is told apart here, where the advice can be given.
        header = next((cells for _, cells in read_csv(path, "the training log", ())), {})
        if "dice" in header and "region" in header:
            raise InputError("metrics are not plotted alone", where=path, todo="compare two with `mergekit3d compare`")
    sources = next((found for path in files.values() if (found := _sources_beside(path))), [])
    return curves_figure({name: read_log(path) for name, path in files.items()}, sources=sources)


def _path(files: Sequence[Path]) -> Figure:
    """How the ratios moved.

    Raises:
        UsageError: several files, or one that is no log.
        InputError: the log, or the ratios beside it, cannot be read.
    """
    from mergekit3d.plots.logs import read_log
    from mergekit3d.plots.path import path_figure

    if len(files) > 1 or files[0].suffix.lower() != ".csv":
        raise UsageError("the path of the ratios is drawn from one log", where=files[0], wanted="the log.csv that adapt wrote")
    log, sources = read_log(files[0]), _sources_beside(files[0])
    if not sources:
        raise InputError("the sources are not known", where=files[0].with_name("ratios.json"), todo="plot the log where adapt wrote it")
    return path_figure(log, sources)


def _sources_beside(log: Path) -> list[str]:
    """The sources of an adaptation, from the ratios beside its log; none where there are no ratios."""
    ratios = log.parent / "ratios.json"
    return [str(source) for source in read_json_object(ratios, "the ratios").get("sources", [])] if ratios.is_file() else []


def _fisher(files: Mapping[str, Path]) -> Figure:
    from mergekit3d.checkpoints import open_checkpoint
    from mergekit3d.plots.fisher import fisher_figure, information_of

    return fisher_figure({name.removesuffix(".fisher"): information_of(open_checkpoint(path)) for name, path in files.items()})


def _slices(
    files: Mapping[str, Path], image: Path | None, truth: Path | None, regions: str | Mapping[str, tuple[int, ...]] | None
) -> Figure:
    import numpy as np

    from mergekit3d.plots.slices import slices_figure
    from mergekit3d.volumes.nifti import read_image, read_labels

    if image is None:
        raise UsageError("a segmentation is drawn over its image", where=next(iter(files.values())), todo="pass --image")
    background = read_image(image)
    labels = {name: read_labels(path) for name, path in files.items()}
    reference = None if truth is None else read_labels(truth)
    for path, volume in [*zip(files.values(), labels.values(), strict=True), *([(truth, reference)] if reference is not None else [])]:
        if volume.data.shape != background.data.shape or not np.allclose(volume.affine, background.affine, atol=1e-3):
            raise InputError("segmentation and image are not on one grid", where=path, wanted=f"the grid of {image}")
    outputs = _outputs(regions, [volume.data for volume in [*labels.values(), *([reference] if reference else [])]], truth or image)
    return slices_figure(
        background.data,
        None if reference is None else _masks(reference.data, outputs),
        {name: _masks(volume.data, outputs) for name, volume in labels.items()},
        list(outputs),
        spacing_mm=background.spacing_mm,
    )


def _outputs(
    regions: str | Mapping[str, tuple[int, ...]] | None, labels: Sequence[NDArray[Any]], where: Path
) -> Mapping[str, tuple[int, ...]]:
    import numpy as np

    from mergekit3d.datasets.labels import output_set

    if regions is not None:
        return output_set(regions) if isinstance(regions, str) else regions
    found = sorted({int(label) for data in labels for label in np.unique(data)} - {0})
    if len(found) > MOST_LABELS:
        todo = "pass the regions to draw, such as --regions hcp-1-14"
        raise InputError("too many labels to draw", where=where, wanted=f"at most {MOST_LABELS}", found=str(len(found)), todo=todo)
    return {f"label {label}": (label,) for label in found}


def _masks(labels: NDArray[Any], outputs: Mapping[str, tuple[int, ...]]) -> NDArray[Any]:
    import numpy as np

    masks = [np.isin(labels, ids) for ids in outputs.values()]
    return np.stack(masks) if masks else np.zeros((0, *labels.shape), bool)


def _is_checkpoint(path: Path) -> bool:
    """Told by its content, whatever the name."""
    from mergekit3d.checkpoints.formats import recognise

    return path.is_file() and recognise(path) is not None


def _is_volume(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _stem(path: Path) -> str:
    return path.name[: -len(".nii.gz")] if path.name.lower().endswith(".nii.gz") else path.stem
