from __future__ import annotations

import pytest

from mergekit3d.plots import style
from mergekit3d.plots.ratios import plot_ratios, ratios_figure


def bars(axes):
    """Left end and length of every bar, top to bottom, a list a source."""
    return [[(round(bar.get_x(), 6), round(bar.get_width(), 6)) for bar in container] for container in axes.containers]


def test_bars_stack_to_one_in_the_networks_order():
    """The second source starts where the first ends; encoder and decoder stand apart under their names."""
    layers = {"encoder.0.conv": [0.25, 0.75], "encoder.1.conv": [0.5, 0.5], "decoder.0.conv": [0.9, 0.1]}
    encoder, decoder = ratios_figure({"sources": ["m1", "m2"], "layers": layers}).axes
    assert (encoder.get_title("left"), decoder.get_title("left")) == ("encoder", "decoder")
    assert [[(0.0, 0.25), (0.0, 0.5)], [(0.25, 0.75), (0.5, 0.5)]] == bars(encoder)
    assert [[(0.0, 0.9)], [(0.9, 0.1)]] == bars(decoder)
    assert ["0.conv", "1.conv"] == [label.get_text() for label in encoder.get_yticklabels()]
    assert style.SERIES[0] == "#" + "".join(f"{round(255 * part):02x}" for part in encoder.containers[0][0].get_facecolor()[:3])


def test_equal_shares_are_marked_for_every_number_of_sources():
    """Two sources meet at 1/2; three at 1/3 and 2/3."""
    for sources, ticks in ((["a", "b"], ["0", "0.5", "1"]), (["a", "b", "c"], ["0", "0.33", "0.67", "1"])):
        figure = ratios_figure({"sources": sources, "layers": {"model": [1 / len(sources)] * len(sources)}})
        assert ticks == [label.get_text() for label in figure.axes[0].get_xticklabels()]


@pytest.mark.parametrize("count", [27, 100])
def test_rows_keep_their_height_whatever_the_number_of_layers(count):
    """The figure grows in height, at most two columns wide, so that names stay readable."""
    layers = {f"model.{index}.conv": [0.5, 0.5] for index in range(count)}
    figure = ratios_figure({"sources": ["a", "b"], "layers": layers})
    rows = count if count <= 30 else -(-count // 2)
    assert figure.get_figheight() == pytest.approx(1.25 + 0.185 * rows)
    assert figure.get_figwidth() < 10
    assert sum(len(axes.containers[0]) for axes in figure.axes) == count


def test_kernel_ratios_are_drawn_by_their_mean():
    """A list over the output channels counts by its mean; given ratios that sum to 2 are scaled."""
    figure = ratios_figure({"sources": ["a", "b"], "layers": {"conv": [[0.2, 0.4], [0.8, 0.6]], "next": [1.5, 0.5]}})
    assert [[(0.0, 0.3), (0.0, 0.75)], [(0.3, 0.7), (0.75, 0.25)]] == bars(figure.axes[0])


def test_names_with_dollar_signs_are_plain_text(tmp_path):
    """No name is taken for a formula."""
    plot_ratios({"sources": ["$a$", "b_1^2"], "layers": {"$\\frac{": [0.5, 0.5]}}, tmp_path / "ratios.svg")
    assert (tmp_path / "ratios.svg").stat().st_size > 1000
