from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from mergekit3d.errors import InputError
from mergekit3d.recipe.text import without_folders
from mergekit3d.reporting.report import report_html, write_report
from mergekit3d.reporting.results import Arm, StudyResults

VOID = {"meta", "img", "input", "path", "use", "br", "rect", "circle"}
SECTIONS = [
    "data", "evaluation", "dice", "slices", "regions", "differences", "ratios", "fisher", "forgetting", "training", "tensors", "provenance",
]  # fmt: skip


class Page(HTMLParser):
    """Elements, ids and texts of a page; open tags must be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.attributes, self.open, self.texts = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def sections_in_order(page):
    return [value for tag, name, value in page.attributes if (tag, name) == ("section", "id")]


@pytest.fixture(scope="module")
def text(everything):
    return report_html(everything)


def test_report_is_one_safe_and_whole_page(text):
    """Every section; nothing fetched, no script, hostile names as text, every id once, no path."""
    page = Page(text)
    assert [section for section in SECTIONS if section in page.ids] == SECTIONS
    assert [value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")][1:] == list(sections_in_order(page))
    assert "script" not in page.tags
    assert "link" not in page.tags
    fetched = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "action", "data")]
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in fetched)
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org/)", text)
    assert len(page.ids) == len(set(page.ids))
    targets = {value[1:] for value in fetched if value.startswith("#")} | set(re.findall(r"url\(#([^)]*)\)", text))
    assert targets <= set(page.ids)
    assert "<script>" in "".join(page.texts)
    assert "CANARY" not in text


def test_report_speaks_to_those_who_cannot_see_it(text):
    """Pictures have words, tables captions and headings with a scope, the page a language."""
    page = Page(text)
    assert ("html", "lang", "en") in page.attributes
    pictures = page.tags.count("svg") + page.tags.count("img")
    words = [value for tag, name, value in page.attributes if (tag, name) in {("svg", "aria-label"), ("img", "alt")}]
    assert pictures == len([value for value in words if value]) > 4
    assert page.tags.count("caption") == page.tags.count("table") > 4
    scopes = [value for tag, name, value in page.attributes if (tag, name) == ("th", "scope")]
    assert page.tags.count("th") == len(scopes)


def test_report_has_two_themes_and_a_print_form(text):
    """Every colour has two values, switched by the system or by hand without a script; charts take their colours from there."""
    assert "color-scheme: light dark" in text
    assert ":root:has(#theme-dark:checked) { color-scheme: dark; }" in text
    assert "@media print" in text
    assert "fill: var(--series-1)" in text
    assert not re.search(r"var\(--[\w-]+\)[^;]*#[0-9a-f]{6}", text)
    used = set(re.findall(r"var\((--[\w-]+)", text))
    assert used - {"--share"} <= set(re.findall(r"(--[\w-]+):", text))


def brightness(colour):
    """Relative luminance as WCAG 2.2 has it, of #rrggbb."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ink", ["ink", "muted", "accent"])
@pytest.mark.parametrize("ground", ["page", "card", "accent-soft"])
def test_colours_of_text_stand_out(text, theme, ink, ground):
    """Contrast of 4.5 or more in both themes, told from the style sheet, also where there is no browser."""
    colours = {name: pair for name, *pair in re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", text)}
    brighter, darker = sorted((brightness(colours[name][theme]) for name in (ink, ground)), reverse=True)

    assert (brighter + 0.05) / (darker + 0.05) >= 4.5


def test_report_states_answer_numbers_and_convention(text):
    """The headline, the table's numbers, what HD95 means, what became of the tensors."""
    words = " ".join("".join(Page(text).texts).split())
    for expected in ("next came the merge IMM with 0.600.", "1 fused", "5 min in all", "Empty regions as in nnunet", "data: …"):
        assert expected in words
    assert "<strong>0.700</strong>" in text


def test_missing_parts_are_left_out(tmp_path):
    """An empty study gives a page with its title, and a study of one arm its table."""
    page = Page(report_html(StudyResults("Empty")))
    assert [section for section in SECTIONS if section in page.ids] == []
    assert "Empty" in page.texts


def test_the_same_results_give_the_same_file(arms, tmp_path):
    """Nothing of the day or the machine gets in."""
    results = StudyResults("study", arms[4:])
    write_report(results, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == report_html(results)


def test_a_damaged_log_is_named(arms, tmp_path):
    """The report is not written with a part silently missing."""
    (tmp_path / "log.csv").write_text("epoch,train_loss\n1,low\n")
    broken = replace(arms[0], log=tmp_path / "log.csv")
    with pytest.raises(InputError, match="cannot read the training log"):
        write_report(StudyResults("study", [broken]), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_arms_without_common_subjects_are_told_without_a_comparison(arms):
    """Two arms tested on different subjects have their means, and no paired part."""
    renamed = [replace(row, subject=f"other-{row.subject}") for row in arms[1].metrics]
    results = StudyResults("study", [arms[0], Arm("m1", "4 subjects", renamed)])
    ids = Page(report_html(results)).ids
    assert "dice" in ids
    assert "differences" not in ids


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("data: {hcp: /home/John Doe/hcp, brats: ../brats/x}", "data: {hcp: …, brats: ../brats/x}"),
        ('a: "/mnt/x y/z" # note', 'a: "…" # note'),
        ("b: ~/data", "b: …"),
        ("c: C:\\Users\\x", "c: …"),
        ("d: data/a/b", "d: data/a/b"),
        ("e: [/a/b, rel/c]", "e: […, rel/c]"),
        ("f: 0.5  # 1/2", "f: 0.5  # 1/2"),
    ],
)
def test_absolute_paths_do_not_reach_the_report(recipe, expected):
    """Only what tells nobody's folders stays."""
    assert expected == without_folders(recipe)
