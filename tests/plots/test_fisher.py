"""The picture of Fisher diagonals side by side."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mergekit3d import plot
from mergekit3d.checkpoints import FISHER, TensorEntry, open_checkpoint, write_checkpoint
from mergekit3d.checkpoints.roots import to_roots
from mergekit3d.errors import InputError, UsageError
from mergekit3d.plots.fisher import Information, fisher_figure, information_of
from tests.builders import metadata_of, save, save_source, two_sources

M1 = {"encoder.0.conv": Information(300.0, 3, 30.0), "decoder.0.conv": Information(100.0, 1)}
M2 = {"encoder.0.conv": Information(1.0, 3), "decoder.0.conv": Information(3.0, 1), "head": Information(0.0, 2)}


def bars(axes):
    return [[bar.get_width() for bar in container] for container in axes.containers]


def test_shares_are_taken_at_equal_traces():
    """m1 has three quarters of its trace in the encoder, m2 one: so much of a layer is each one's; nobody knows the head."""
    shares, _ = fisher_figure({"m1": M1, "m2": M2}).axes

    assert [pytest.approx([0.75, 0.25, 0.0]), pytest.approx([0.25, 0.75, 0.0])] == bars(shares)
    assert ["encoder.0.conv", "decoder.0.conv", "head"] == [label.get_text() for label in shares.get_yticklabels()]
    assert [0.5, 1.5] == [line.get_ydata()[0] for line in shares.lines]


def test_means_stand_at_their_logarithm_with_their_errors():
    """A dot a layer and model, a line where the file tells the error; a layer without information has neither."""
    _, means = fisher_figure({"m1": M1, "m2": M2}).axes
    dots = [float(dot.get_offsets()[0][0]) for dot in means.collections]
    errors = [list(line.get_xdata()) for line in means.lines if len({*line.get_ydata()}) == 1 and line.get_xdata()[0] != 0]

    assert [2.0, 2.0, math.log10(1 / 3), math.log10(3)] == pytest.approx(dots)
    assert [pytest.approx([math.log10(90), math.log10(110)])] == errors
    assert "lines: one standard error over subjects" == means.get_xlabel()


def test_one_file_shows_where_its_information_is():
    """Its shares are those of its own trace."""
    shares, means = fisher_figure({"m1": M1}).axes

    assert [[0.75, 0.25]] == bars(shares)
    assert "share of the trace" == shares.get_title("left")
    assert [0.0, 1.0] == [float(dot.get_offsets()[0][1]) for dot in means.collections]


def test_layers_of_other_networks_stand_where_they_follow():
    """The first file's order, and what only another has after its neighbour there."""
    axes = fisher_figure({"m1": M1, "m2": {"encoder.0.conv": M1["encoder.0.conv"], "encoder.1.conv": M1["decoder.0.conv"]}}).axes[0]

    assert ["encoder.0.conv", "encoder.1.conv", "decoder.0.conv"] == [label.get_text() for label in axes.get_yticklabels()]


def test_information_of_a_file(tmp_path):
    """Traces, sizes and errors by layer; square roots in float16 are read as what they stand for."""
    values = {"a.weight": np.array([[1.0, 4.0]], np.float32), "a.bias": np.array([4.0], np.float32)}
    roots = {name: to_roots(array) for name, array in values.items()}
    provenance = {"trace_by_layer": {"a": [9.0, 0.5]}}
    metadata = metadata_of(kind=FISHER, provenance=provenance, root_scales={name: scale for name, (_, scale) in roots.items()})
    write_checkpoint(
        tmp_path / "m1.safetensors", [(TensorEntry(name, "F16", array.shape), array) for name, (array, _) in roots.items()], metadata
    )

    assert {"a": Information(9.0, 3, 0.5)} == information_of(open_checkpoint(tmp_path / "m1.safetensors"))


def test_files_are_drawn_side_by_side_under_their_models_names(tmp_path, monkeypatch):
    """Told by content; the picture stands beside the first."""
    two_sources(tmp_path)
    drawn = {}
    monkeypatch.setattr("mergekit3d.plots.style.save_figure", lambda figure, path: drawn.update({path: figure}))
    result = plot([tmp_path / f"{name}.fisher.safetensors" for name in ("m1", "m2")])

    assert ("fisher", tmp_path / "m1.fisher.png") == (result.kind, result.out)
    assert ["m1", "m2"] == [text.get_text() for text in drawn[result.out].legends[0].get_texts()]


def test_picture_is_written(tmp_path):
    """As PNG, of a file of any name."""
    two_sources(tmp_path)
    (tmp_path / "m1.fisher.safetensors").rename(tmp_path / "information")

    assert b"PNG" == plot(tmp_path / "information").out.read_bytes()[1:4]


def test_other_files_are_refused(tmp_path):
    """A checkpoint, zeros alone, negative values, and files that do not go together: one line each."""
    save_source(tmp_path / "m1.safetensors")
    for name, value in (("zero", 0.0), ("negative", -1.0)):
        save(tmp_path / f"{name}.safetensors", {"a.weight": np.full(2, value, np.float32)}, metadata_of(kind=FISHER))
    (tmp_path / "r.json").write_text("{}")

    with pytest.raises(InputError, match="not a Fisher diagonal: .*found a checkpoint; run `mergekit3d fisher` on it"):
        plot(tmp_path / "m1.safetensors")
    with pytest.raises(InputError, match="no information to draw: .*found zeros alone"):
        plot(tmp_path / "zero.safetensors")
    with pytest.raises(InputError, match=r"a Fisher diagonal is finite and not negative: .*a\.weight; compute it again"):
        plot(tmp_path / "negative.safetensors")
    with pytest.raises(UsageError, match="only where they are logs, Fisher diagonals or segmentations"):
        plot([tmp_path / "r.json", tmp_path / "zero.safetensors"])
