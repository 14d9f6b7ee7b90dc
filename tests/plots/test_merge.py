"""The picture of a fusion's report."""

from __future__ import annotations

import json

import pytest

from mergekit3d import fuse, plot
from mergekit3d.errors import InputError
from mergekit3d.plots.merge import merge_figure
from tests.builders import fusing, two_sources

LAYERS = {
    "encoder.0.conv": {"distance": {"m1": 0.1, "m2": 0.2}, "share": {"m1": 0.75, "m2": 0.25}, "no_information": 0.02},
    "decoder.0.conv": {"distance": {"m1": 0.3, "m2": None}, "share": {"m1": 0.5, "m2": 0.5}, "no_information": 0.0},
}


def test_a_row_a_layer_and_a_panel_a_figure():
    """Shares stack to one; a distance that is not defined has no dot; encoder and decoder are parted by a line."""
    shares, distances, unknown = merge_figure({"sources": ["m1", "m2"], "per_layer": LAYERS}).axes

    assert [[0.75, 0.5], [0.25, 0.5]] == [[bar.get_width() for bar in bars] for bars in shares.containers]
    assert [[0.1, 0.3], [0.2]] == [[float(x) for x, _ in dots.get_offsets()] for dots in distances.collections]
    assert [0.02, 0.0] == [bar.get_width() for bar in unknown.containers[0]]
    assert ["encoder.0.conv", "decoder.0.conv"] == [label.get_text() for label in shares.get_yticklabels()]
    assert [0.5, 0.5] == list(shares.lines[0].get_ydata())


def test_methods_without_shares_have_no_such_panel():
    """What is not known is not drawn."""
    layers = {name: {"distance": row["distance"]} for name, row in LAYERS.items()}

    assert 1 == len(merge_figure({"sources": ["m1", "m2"], "per_layer": layers}).axes)


def test_report_of_a_fusion_is_drawn(tmp_path):
    """By ``plot``, and by ``fuse`` where it is asked to."""
    two_sources(tmp_path)
    result = fuse(fusing(tmp_path).path, plot=True)
    drawn = plot(result.report, out=tmp_path / "merge.svg")

    assert tmp_path / "recipe" / "fused.report.png" == result.picture
    assert b"PNG" == result.picture.read_bytes()[1:4]
    assert "merge" == drawn.kind
    assert b"<svg" in drawn.out.read_bytes()


def test_damaged_report_is_one_line(tmp_path):
    """As every file."""
    (tmp_path / "r.json").write_text(json.dumps({"sources": ["m1"], "per_layer": {"a": {"share": {"m1": "much"}}}}))
    with pytest.raises(InputError, match="damaged report of a fusion"):
        plot(tmp_path / "r.json")
