"""The report of a study: one HTML file that needs no network, in a light and a dark theme, fit for print."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d import __version__
from mergekit3d.metrics import CONVENTIONS, HD95_DEFINITION, check_convention
from mergekit3d.report import charts, tables
from mergekit3d.report.answer import answer
from mergekit3d.report.results import StudyResults
from mergekit3d.storage.atomic import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

ABSOLUTE_PATH = re.compile(r"(?<![\w./\\])(?:~[\w.-]*|[A-Za-z]:)?[/\\](?:[^,\]}\n\"'#]|(?<! )#)*")
"""From a slash (after ~ or a drive) that no relative path precedes to the end of a YAML value, which may hold spaces."""


def write_report(results: StudyResults, out: Path) -> None:
    """Write the report of a study, one self-contained HTML file.

    Args:
        results: what was found; parts that are missing are left out.
        out: the file.

    Raises:
        InputError: a log.csv among the results cannot be read.
        OutputError: the file system refused.
    """
    write_text(out, report_html(results))


def report_html(results: StudyResults) -> str:
    """The report as text; the same results give the same text."""
    return _environment().get_template("template.html").render(_content(results))


def _content(results: StudyResults) -> dict[str, Any]:
    fusions = [(name, *tables.tensors_table(fusion)) for name, fusion in results.fusions.items()]
    return {
        "results": results,
        "answer": answer(results),
        "recipe": without_folders(results.provenance.recipe),
        "facts": _facts(results),
        "dice": tables.dice_table(results),
        "dice_chart": charts.dice_chart(results),
        "pictures": charts.picture_charts(results),
        "regions": tables.region_tables(results),
        "differences": list(zip(charts.difference_charts(results), tables.comparison_tables(results), strict=True)),
        "ratios": charts.ratio_charts(results),
        "lengths": [table for table in (tables.lengths_table(results), tables.trainings_table(results)) if table is not None],
        "curves": charts.curve_charts(results),
        "forgetting": tables.forgetting_table(results),
        "fusions": fusions,
        "convention": (results.convention, CONVENTIONS[check_convention(results.convention)]),
        "hd95": HD95_DEFINITION,
        "version": __version__,
    }


def without_folders(text: str) -> str:
    """A recipe's text with every absolute path as "…": they can name patients, and tell nobody else anything."""
    return ABSOLUTE_PATH.sub("…", text)


def _facts(results: StudyResults) -> list[tuple[str, str]]:
    """The study in a few numbers, for the head of the page."""
    subjects = {row.subject for arm in results.arms for row in arm.metrics}
    candidates = (
        (len(results.names), "initialisation"),
        (len(results.splits), "target size"),
        (len(subjects), "test subject"),
        (len(results.regions), "region"),
        (len(results.seeds), "seed"),
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
    return (resources.files("mergekit3d.report") / name).read_text(encoding="utf-8")
