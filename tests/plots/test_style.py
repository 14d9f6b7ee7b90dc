from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import pytest

from mergekit3d.errors import UsageError
from mergekit3d.plots import style


def small_figure():
    with style.styled():
        figure = style.new_figure(2, 1)
        figure.subplots().plot([0, 1], [0, 1])
    return figure


def test_colours_follow_the_order_and_leave_none_grey():
    """Sources take the series in order; what has no source is grey; the ninth colour is the first again."""
    names = ["none", *(f"m{index}" for index in range(9))]
    colours = style.colours(names)
    assert colours["none"] == style.PLAIN
    assert [*style.SERIES, style.SERIES[0]] == [colours[f"m{index}"] for index in range(9)]


def test_styled_leaves_matplotlibs_settings_as_they_were():
    """A user's own settings survive our figures."""
    before = dict(matplotlib.rcParams)
    small_figure()
    assert before == dict(matplotlib.rcParams)


@pytest.mark.parametrize(("ending", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".SVG", b"<?xml")])
def test_the_ending_chooses_the_format(tmp_path, ending, start):
    """PNG or SVG, without dates, versions or paths; the same figure gives the same bytes."""
    path = tmp_path / f"figure{ending}"
    style.save_figure(small_figure(), path)
    content = path.read_bytes()
    assert content.startswith(start)
    assert b"dc:date" not in content
    assert b"Matplotlib v" not in content
    assert str(tmp_path).encode() not in content
    style.save_figure(small_figure(), path)
    assert content == path.read_bytes()


def test_another_ending_is_refused(tmp_path):
    """PDF is not offered, and nothing is written."""
    with pytest.raises(UsageError, match=r"wanted \.png or \.svg, found \.pdf"):
        style.save_figure(small_figure(), tmp_path / "figure.pdf")
    assert list(tmp_path.iterdir()) == []


def test_pyplot_is_never_imported():
    """Figures are drawn without pyplot, whose state is global."""
    sources = Path(style.__file__).parent.glob("*.py")
    assert [source.name for source in sources if re.search(r"import.*pyplot", source.read_text(encoding="utf-8"))] == []
