"""Links between the pages, and from them to the rest of the repository, lead somewhere; pictures are small and told of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "mergekit3d").rglob("README.md"))]
FENCES = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def prose(page):
    """A page without its code."""
    return FENCES.sub("", page.read_text(encoding="utf-8"))


def anchors(page):
    """The anchors that GitHub and mkdocs make of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-") for heading in headings}


def broken(page):
    """Links of a page that lead nowhere, or out of the repository."""
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_file() or not target.is_relative_to(ROOT) or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """To a file, not a folder, and to a heading that is there."""
    assert [] == list(broken(page))


def test_every_page_is_led_to():
    """From the README or from another page."""
    linked = {(page.parent / link.partition("#")[0]).resolve() for page in PAGES for link in re.findall(r"\]\(([^)\s]+)\)", prose(page))}
    shown_by_folder = {"tutorials", "howto"}  # the site lists them; the README leads to the folders

    assert [] == [page for page in PAGES[1:] if page not in linked and page.parent.name not in shown_by_folder]


def test_pictures_are_small():
    """A clone stays small: 150 kB each at most."""
    pictures = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".png", ".svg", ".jpg")]

    assert pictures
    assert [] == [path.name for path in pictures if path.stat().st_size > 150_000]
