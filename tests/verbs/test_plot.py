from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest

from mergekit3d.comparison import compare_rows
from mergekit3d.errors import InputError, UsageError
from mergekit3d.metrics import SubjectMetrics
from mergekit3d.verbs.plot import plot


@pytest.fixture
def drawn(monkeypatch):
    """Figures that would be written, by path; layout and encoding are tested elsewhere."""
    figures = {}
    monkeypatch.setattr("mergekit3d.plots.style.save_figure", lambda figure, path: figures.update({path: figure}))
    return figures


def write_volume(path, data):
    nibabel.save(nibabel.Nifti1Image(data, np.diag([2.0, 2.0, 2.0, 1.0])), path)


def test_ratios_json_gives_figure_5(tmp_path, drawn):
    """The picture stands beside the file by default."""
    path = tmp_path / "ratios.json"
    path.write_text(json.dumps({"sources": ["m1", "m2"], "granularity": "layer", "layers": {"encoder.0": [0.4, 0.6]}}))
    result = plot(path)
    assert (result.kind, result.out) == ("ratios", tmp_path / "ratios.png")
    assert result.lines() == [f"ratios: {tmp_path / 'ratios.png'}"]
    assert list(drawn) == [tmp_path / "ratios.png"]


def test_compare_json_gives_figure_4(tmp_path, drawn):
    """What compare wrote can be drawn again, as SVG; where to is a path or a text."""
    rows = [SubjectMetrics(f"s{index}", "ET", 0.5 + index / 10, 1.0) for index in range(3)]
    (tmp_path / "compare.json").write_text(json.dumps(compare_rows({"a": rows, "b": rows}).as_json()))
    assert plot(tmp_path / "compare.json", out=f"{tmp_path}/figure4.svg").kind == "differences"
    assert list(drawn) == [tmp_path / "figure4.svg"]


def test_forgetting_json_gives_table_4(tmp_path, drawn):
    """What forgetting or a study wrote; damaged ones are told."""
    path = tmp_path / "forgetting.json"
    path.write_text(json.dumps({"networks": ["m1", "imm"], "tasks": ["m1"], "dice": [[0.9], [None]]}))
    assert "forgetting" == plot(path).kind
    assert ["0.90", "–"] == [text.get_text() for text in drawn[tmp_path / "forgetting.png"].axes[0].texts]
    path.write_text(json.dumps({"networks": ["m1", "imm"], "tasks": ["m1"], "dice": [[0.9]]}))
    with pytest.raises(InputError, match="cannot read the forgetting matrix: .*forgetting.json"):
        plot(path, force=True)


def test_logs_are_overlaid_under_their_folders_names(tmp_path, drawn):
    """Two log.csv files are told apart by their folders; ratios.json beside one names the sources."""
    for name in ("none", "adapt"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.csv").write_text("epoch,train_loss,ratio_e.0_m_1,ratio_e.0_m_2\n1,0.9,0.5,0.5\n2,0.8,0.4,0.6\n")
    (tmp_path / "adapt" / "ratios.json").write_text('{"sources": ["m_1", "m_2"], "layers": {}}')
    result = plot([tmp_path / "none" / "log.csv", tmp_path / "adapt" / "log.csv"], out=tmp_path / "curves.png")
    assert result.kind == "curves"
    figure = drawn[tmp_path / "curves.png"]
    assert ["none", "adapt"] == [text.get_text() for text in figure.legends[0].get_texts()]
    assert figure.axes[-1].get_title("left") == "ratio of m_1, a line a layer (adapt)"


def test_segmentations_are_drawn_over_their_image(tmp_path, drawn):
    """Each label is an output unless regions are given; a single one is not named after its file, which is named after its subject."""
    image, labels = np.zeros((8, 8, 8), np.float32), np.zeros((8, 8, 8), np.uint8)
    image[1:7, 1:7, 1:7], labels[2:5, 2:5, 2:5], labels[3, 3, 3] = 1.0, 2, 4
    for name, data in (("image", image), ("timm", labels), ("truth", labels)):
        write_volume(tmp_path / f"{name}.nii.gz", data)
    given = {"image": f"{tmp_path}/image.nii.gz", "truth": tmp_path / "truth.nii.gz"}
    assert plot(tmp_path / "timm.nii.gz", **given).out == tmp_path / "timm.png"
    figure = drawn[tmp_path / "timm.png"]
    assert ["image", "truth", "prediction\nDice 1.00"] == [axes.get_title() for axes in figure.axes[:3]]
    assert ["label 2", "label 4"] == [text.get_text() for text in figure.legends[0].get_texts()]
    plot(tmp_path / "timm.nii.gz", **given, regions="brats", out=tmp_path / "brats.png")
    assert ["ET", "TC", "WT"] == [text.get_text() for text in drawn[tmp_path / "brats.png"].legends[0].get_texts()]


def test_a_segmentation_needs_an_image_on_its_grid(tmp_path, drawn):
    """Without one, or on another grid, the error says what to do."""
    write_volume(tmp_path / "seg.nii.gz", np.zeros((8, 8, 8), np.uint8))
    write_volume(tmp_path / "image.nii.gz", np.zeros((8, 8, 9), np.float32))
    with pytest.raises(UsageError, match=r"a segmentation is drawn over its image: .*seg\.nii\.gz; pass --image"):
        plot(tmp_path / "seg.nii.gz")
    with pytest.raises(InputError, match="segmentation and image are not on one grid"):
        plot(tmp_path / "seg.nii.gz", image=tmp_path / "image.nii.gz")
    assert drawn == {}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.txt",
            "x",
            r"cannot tell what to plot: .*a\.txt: wanted ratios\.json, a fusion's report\.json, compare\.json, forgetting\.json, log\.csv",
        ),
        ("a.json", '{"x": 1}', "cannot tell what to plot: .*wanted what adapt, fuse, compare or forgetting writes, found keys x"),
        ("a.json", "{", "cannot read the file to plot"),
        (
            "metrics.csv",
            "subject,region,dice,hd95\na,ET,0.5,1\n",
            "metrics are not plotted alone: .*; compare two with `mergekit3d compare`",
        ),
    ],
)
def test_files_that_are_none_of_those_are_refused(tmp_path, name, text, message):
    """One line, and no picture."""
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        plot(tmp_path / name)
    assert [tmp_path / name] == list(tmp_path.iterdir())


def test_an_existing_picture_is_kept_unless_forced(tmp_path, drawn):
    """Pictures are refused like any output; other endings are none."""
    (tmp_path / "log.csv").write_text("epoch,train_loss\n1,0.9\n2,0.8\n")
    (tmp_path / "log.png").write_bytes(b"mine")
    with pytest.raises(UsageError, match="the output exists already"):
        plot(tmp_path / "log.csv")
    plot(tmp_path / "log.csv", force=True)
    assert list(drawn) == [tmp_path / "log.png"]
    with pytest.raises(UsageError, match="cannot tell the kind of picture"):
        plot(tmp_path / "log.csv", out=tmp_path / "log.jpg")
