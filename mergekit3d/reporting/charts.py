"""Charts for the report: matplotlib's SVG made part of a page, in the colours of its theme, with words for those who cannot see it."""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergekit3d.metrics import defined_mean
from mergekit3d.plots import style
from mergekit3d.plots.curves import curves_figure
from mergekit3d.plots.dice import DiceSample, dice_figure
from mergekit3d.plots.differences import differences_figure
from mergekit3d.plots.fisher import fisher_figure
from mergekit3d.plots.logs import TrainingLog, read_log
from mergekit3d.plots.path import path_figure
from mergekit3d.plots.ratios import ratios_figure
from mergekit3d.reporting.evidence import arm_dice, differences
from mergekit3d.reporting.results import Adaptation, StudyResults, display_name, listed
from mergekit3d.summaries import intervals_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THEME = {
    style.PAPER: "--card",
    style.INK: "--ink",
    style.MUTED: "--muted",
    style.GRID: "--grid",
    style.BETTER: "--better",
    style.WORSE: "--worse",
    style.PLAIN: "--plain",
    **{colour: f"--series-{index}" for index, colour in enumerate(style.SERIES, 1)},
}
"""What a figure's colours are called in the style sheet, which has a value for each theme."""

PIXELS_PER_POINT = 96 / 72
SMALLEST_WIDTH = 720
"""Pixels of a wide chart on a narrow screen: below, its text cannot be read, so it scrolls."""


@dataclass(frozen=True)
class Chart:
    """A picture of the report.

    Args:
        content: an ``<svg>`` or ``<img>`` element.
        caption: what it shows.
    """

    content: str
    caption: str


def themed_svg(figure: Figure, alt: str, prefix: str) -> str:
    """A figure as an ``<svg>`` element that takes its colours and font from the page.

    Args:
        figure: drawn in the colours of `mergekit3d.plots.style`.
        alt: what it shows, in words.
        prefix: of the element's ids; a page holds each once.
    """
    svg = style.svg_bytes(figure, live_text=True).decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.S)
    # A style element would act on the whole page; the page's own style sheet says the same for charts.
    svg = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'xlink:href="#', f'xlink:href="#{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub("|".join(THEME), lambda found: f"var({THEME[found.group()]})", svg)
    width = figure.get_figwidth() * 72 * PIXELS_PER_POINT
    size = f"width:{width:.0f}px;min-width:{min(0.7 * width, SMALLEST_WIDTH):.0f}px"
    return re.sub(
        r'<svg\b([^>]*?) width="[^"]*" height="[^"]*"', rf'<svg\1 role="img" aria-label="{html.escape(alt)}" style="{size}"', svg, count=1
    )


def png_image(png: bytes, alt: str) -> str:
    """An ``<img>`` element that holds its own bytes."""
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def dice_chart(results: StudyResults) -> Chart | None:
    """Test Dice of every initialisation, a dot a subject."""
    samples = {}
    for split in results.splits:
        arms = {name: arm_dice(results, split, name) for name in results.names}
        samples[split] = {
            display_name(name): DiceSample([value for value in arm.by_subject.values() if not math.isnan(value)], arm.mean, arm.interval_95)
            for name, arm in arms.items()
        }
    if not samples:
        return None
    means = "; ".join(
        f"{split}: " + ", ".join(f"{name} {sample.mean:.3f}" for name, sample in by_name.items()) for split, by_name in samples.items()
    )
    caption = "Each test subject's mean Dice, by initialisation. Diamond: the mean; line: its 95 % bootstrap interval."
    return Chart(themed_svg(dice_figure(samples), f"Dots of test Dice by initialisation. Means: {means}", "dice"), caption)


def evaluation_charts(results: StudyResults) -> list[Chart]:
    """Dice of every region in what `evaluate` measured, a dot a subject."""
    charts = []
    for index, evaluation in enumerate(results.evaluations):
        intervals = intervals_of(evaluation.metrics)["mean"]
        by_region: dict[str, list[float]] = {}
        for row in evaluation.metrics:
            if not math.isnan(row.dice):
                by_region.setdefault(row.region, []).append(row.dice)
        samples = {
            region: DiceSample(values, defined_mean(values), tuple(intervals.get(region, (math.nan, math.nan))))
            for region, values in by_region.items()
        }
        means = ", ".join(f"{region} {sample.mean:.3f}" for region, sample in samples.items())
        caption = "Each subject's Dice, by region. Diamond: the mean; line: its 95 % bootstrap interval over the subjects."
        figure = dice_figure({"": samples}) if samples else None
        if figure is not None:
            figure.axes[0].set_xlabel("Dice, a dot a subject")
        charts.append(
            Chart("<p>No region is defined in any subject.</p>", caption)
            if figure is None
            else Chart(themed_svg(figure, f"Dots of Dice by region. Means: {means}", f"evaluation{index}"), caption)
        )
    return charts


def difference_charts(results: StudyResults) -> list[Chart]:
    """Figure 4, one a comparison."""
    charts = []
    for index, (name, found) in enumerate(differences(results)):
        words = "; ".join(
            f"against {comparison.other} {comparison.mean_difference:+.3f} on average, better on {comparison.wins} of "
            f"{len(comparison.differences)} subjects"
            for comparison in found.of_mean()
        )
        caption = (
            f"{f'{name}. ' if name else ''}Dice of {found.first} minus that of each other, a bar a test subject, sorted by "
            f"the Dice of {found.first} (the paper's Figure 4). Dashed: the mean difference."
        )
        charts.append(
            Chart(themed_svg(differences_figure(found), f"Dice differences of {found.first}: {words}", f"differences{index}"), caption)
        )
    return charts


def fisher_chart(results: StudyResults) -> Chart:
    """The information of every layer, networks side by side."""
    alone = len(results.fishers) == 1
    left = "how it is spread over the layers" if alone else "whose it is, each network's taken as a whole of 1"
    caption = (
        f"Fisher information by layer, in the network's order. Left: {left}. Right: the mean of a parameter; line: one standard error "
        "over the subjects."
    )
    figure = fisher_figure({name: fisher.layers for name, fisher in results.fishers.items()})
    return Chart(themed_svg(figure, f"Fisher information by layer of {listed(list(results.fishers))}.", "fisher"), caption)


def ratio_charts(results: StudyResults) -> list[Chart]:
    """Figure 5, one a size, of its first seed."""
    charts = []
    for index, adaptation in enumerate(_first_adaptations(results)):
        if not adaptation.ratios.get("layers"):
            continue
        sources = [str(source) for source in adaptation.ratios["sources"]]
        caption = (
            f"{_run(results, adaptation)}Mixing ratio of {listed(sources)} in every layer after adaptation (the paper's Figure 5), in the "
            "network's order; dashed: equal shares."
        )
        charts.append(Chart(themed_svg(ratios_figure(adaptation.ratios), ratio_words(adaptation.ratios), f"ratios{index}"), caption))
        charts += _path_charts(results, adaptation, sources, index)
    return charts


def _path_charts(results: StudyResults, adaptation: Adaptation, sources: Sequence[str], index: int) -> list[Chart]:
    """How the ratios moved; nothing where the log does not tell it."""
    log = None if adaptation.log is None else read_log(adaptation.log)
    if log is None or not all(log.ratios(source) for source in sources):
        return []
    caption = (
        f"{_run(results, adaptation)}The path there: the ratios of every layer over the epochs of the adaptation, from the first layer "
        f"to the last, stacked; dashed: equal shares. The ratios of the epoch with the best validation loss were kept."
    )
    return [
        Chart(
            themed_svg(path_figure(log, sources), f"Path of the mixing ratios. {ratio_words(adaptation.ratios)}", f"path{index}"), caption
        )
    ]


def ratio_words(ratios: Any) -> str:
    """The ratios in a sentence: number of layers, range and mean of the first source's."""
    first = [_mean(row[0]) / math.fsum(map(_mean, row)) for row in ratios["layers"].values()]
    return (
        f"{len(first)} {'layer' if len(first) == 1 else 'layers'}; the ratio of {ratios['sources'][0]} lies between {min(first):.2f} and "
        f"{max(first):.2f}, {math.fsum(first) / len(first):.2f} on average"
    )


def curve_charts(results: StudyResults) -> list[Chart]:
    """Learning curves: the sources, the adaptations, and fine-tuning from every initialisation, a figure a size."""
    charts: list[Chart] = []
    trainings = {training.name: read_log(training.log) for training in results.trainings if training.log is not None}
    for name, log in trainings.items():
        caption = f"Training of {name} on its own task." if name in (*results.sources, *results.baselines) else f"Curves of the {name}."
        charts.append(_curves({name: log}, caption, f"training{len(charts)}"))
    for index, adaptation in enumerate(_first_adaptations(results)):
        if adaptation.log is not None:
            sources = [str(source) for source in adaptation.ratios.get("sources", ())]
            caption = f"{_run(results, adaptation)}Adaptation: mixing ratios and task-specific weights learned together."
            charts.append(_curves({"adaptation": read_log(adaptation.log)}, caption, f"adaptation{index}", sources))
    seed = results.seeds[0] if results.seeds else 0
    for index, split in enumerate(results.splits):
        logs = {display_name(arm.name): read_log(arm.log) for arm in results.arms if arm.split == split and arm.seed == seed and arm.log}
        if logs and len(results.arms) == 1:
            charts.append(_curves(logs, "Fine-tuning.", f"finetuning{index}"))
        elif logs:
            of_seed = f" (seed {seed})" if len(results.seeds) > 1 else ""
            charts.append(_curves(logs, f"{_prefix(results, split)}Fine-tuning from each initialisation{of_seed}.", f"finetuning{index}"))
    return charts


def picture_charts(results: StudyResults) -> list[Chart]:
    """Slices of predictions beside the truth."""
    return [Chart(png_image(picture.png, picture.alt or picture.caption), picture.caption) for picture in results.pictures]


def _curves(logs: dict[str, TrainingLog], caption: str, prefix: str, sources: Sequence[str] = ()) -> Chart:
    figure = curves_figure(logs, sources=sources)
    ends = [f"{name} {dice[-1]:.3f}" for name, log in logs.items() if (dice := log.get("validation_dice")) is not None]
    alt = f"Learning curves. {caption}" + (f" Last validation Dice: {', '.join(ends)}." if ends else "")
    return Chart(themed_svg(figure, alt, prefix), caption)


def _prefix(results: StudyResults, split: str) -> str:
    return f"{split}. " if len(results.splits) > 1 else ""


def _first_adaptations(results: StudyResults) -> list[Adaptation]:
    """The first seed's of every size: five seeds of three sizes would fill pages with the like."""
    by_split: dict[str, Adaptation] = {}
    for adaptation in results.adaptations:
        by_split.setdefault(adaptation.split, adaptation)
    return list(by_split.values())


def _run(results: StudyResults, adaptation: Adaptation) -> str:
    several_splits = len({other.split for other in results.adaptations}) > 1
    several_seeds = len({other.seed for other in results.adaptations}) > 1
    parts = [adaptation.split] * several_splits + [f"seed {adaptation.seed}"] * several_seeds
    return f"{', '.join(parts)}. " if parts else ""


def _mean(ratio: Any) -> float:
    return math.fsum(ratio) / len(ratio) if isinstance(ratio, Sequence) else float(ratio)
