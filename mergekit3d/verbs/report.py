"""``mergekit3d report``: what any run left, as one HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit3d.progress import SILENT, Reporter
from mergekit3d.storage.atomic import refuse_existing
from mergekit3d.storage.lock import output_lock


@dataclass(frozen=True)
class ReportResult:
    """What was reported.

    Args:
        out: the page.
        title: of the report.
        sections: names of its sections.
        size: of the page in bytes.
    """

    out: Path
    title: str
    sections: tuple[str, ...]
    size: int

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {**vars(self), "out": str(self.out), "sections": list(self.sections)}

    def lines(self) -> list[str]:
        """The result in words."""
        size = f"{self.size / 1e6:.1f} MB" if self.size >= 1e6 else f"{self.size / 1e3:.0f} kB"
        return [f"{self.out}: {self.title}; {', '.join(self.sections)} ({size})"]


def report(run: Path | str, *, out: Path | str | None = None, force: bool = False, reporter: Reporter = SILENT) -> ReportResult:
    """Write one self-contained page on what a run left; nothing is computed anew.

    Args:
        run: output folder of a study, or of a single `train`, `fisher`, `adapt`, `fuse`, `finetune`, `evaluate`, `compare` or `forgetting`.
        out: the page; by default report.html in the run's folder.
        force: write over an existing page.
        reporter: where messages go.

    Returns:
        Where the page is, and what is in it.

    Raises:
        UsageError: the page exists.
        InputError: there is nothing to report, or a file is damaged.
        LockedError: another run is writing where the page goes.
    """
    from mergekit3d.reporting.collect import collect
    from mergekit3d.reporting.report import REPORT_NAME, write_report

    folder = Path(run)
    page = folder / REPORT_NAME if out is None else Path(out)
    refuse_existing(page, force=force)
    results = collect(folder)
    with output_lock(page.parent):
        sections = write_report(results, page)
    reporter.info(f"wrote {page}")
    return ReportResult(page, results.title, sections, page.stat().st_size)
