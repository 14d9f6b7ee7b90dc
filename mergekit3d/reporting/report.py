"""The report of a study: one HTML file that needs no network, in a light and a dark theme, fit for print."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d import __version__
from mergekit3d.metrics import CONVENTIONS, HD95_DEFINITION, NSD_DEFINITION, check_convention
from mergekit3d.recipe.text import without_folders
from mergekit3d.reporting import charts, tables
from mergekit3d.reporting.answer import answer
from mergekit3d.reporting.results import StudyResults
from mergekit3d.reporting.singles import single_answer
from mergekit3d.storage.atomic import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

REPORT_NAME = "report.html"


def write_report(results: StudyResults, out: Path) -> tuple[str, ...]:
    """Write the report of a run, one self-contained HTML file.

    Args:
        results: what was found; parts that are missing are left out.
        out: the file.

    Returns:
        Names of the sections that it has.

    Raises:
        InputError: a log.csv among the results cannot be read.
        OutputError: the file system refused.
    """
    page = report_html(results)
    write_text(out, page)
    return tuple(re.findall(r'<section id="([\w-]+)"', page))


def report_html(results: StudyResults) -> str:
    """The report as text; the same results give the same text."""
    return _environment().get_template("template.html").render(_content(results))


def _content(results: StudyResults) -> dict[str, Any]:
    fusions = [(name, *tables.tensors_table(fusion), tables.layers_table(fusion)) for name, fusion in results.fusions.items()]
    convention = check_convention(results.convention)
    return {
        "results": results,
        "answer": answer(results) or single_answer(results),
        "recipe": without_folders(results.provenance.recipe),
        "facts": _facts(results),
        "subjects": tables.subjects_table(results),
        "dice": tables.dice_table(results),
        "dice_chart": charts.dice_chart(results),
        "evaluations": list(zip(tables.evaluation_tables(results), charts.evaluation_charts(results), strict=True)),
        "pictures": charts.picture_charts(results),
        "regions": tables.region_tables(results),
        "differences": list(zip(charts.difference_charts(results), tables.comparison_tables(results), strict=True)),
        "ratios": charts.ratio_charts(results),
        "lengths": [table for table in (tables.lengths_table(results), tables.trainings_table(results)) if table is not None],
        "curves": charts.curve_charts(results),
        "fishers": (charts.fisher_chart(results), tables.fisher_table(results)) if results.fishers else None,
        "forgetting": tables.forgetting_table(results),
        "fusions": fusions,
        "convention": (convention, CONVENTIONS[convention]),
        "hd95": HD95_DEFINITION,
        "nsd": NSD_DEFINITION,
        "version": __version__,
    }


def _facts(results: StudyResults) -> list[tuple[str, str]]:
    """The study in a few numbers, for the head of the page."""
    rows = [row for arm in results.arms for row in arm.metrics] + [row for one in results.evaluations for row in one.metrics]
    candidates = (
        (len(results.names) if len(results.arms) > 1 else 0, "initialisation"),
        (len(results.splits) if len(results.arms) > 1 else 0, "target size"),
        (len({row.subject for row in rows}), "test subject"),
        (len({row.region for row in rows}), "region"),
        (len(results.provenance.seeds) if len(results.arms) > 1 else 0, "seed"),
        (len(results.fishers), "Fisher diagonal"),
    )
    facts = [(str(count), what if count == 1 else f"{what}s") for count, what in candidates if count]
    if results.provenance.seconds is not None:
        facts.append((_duration(results.provenance.seconds), "in all"))
    return facts


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _environment() -> Environment:
    from jinja2 import BaseLoader, Environment, StrictUndefined
    from markupsafe import Markup

    class Here(BaseLoader):
        def get_source(self, _: Environment, template: str) -> tuple[str, None, None]:
            return _resource(template), None, None

    environment = Environment(loader=Here(), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals["style_sheet"] = Markup(_resource("style.css"))  # noqa: S704  our own file
    environment.filters["element"] = Markup  # what `charts` made, with every text in it escaped
    return environment


def _resource(name: str) -> str:
    return (resources.files("mergekit3d.reporting") / name).read_text(encoding="utf-8")
