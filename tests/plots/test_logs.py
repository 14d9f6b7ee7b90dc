from __future__ import annotations

import numpy as np
import pytest

from mergekit3d.errors import InputError
from mergekit3d.plots.logs import read_log


def test_columns_come_as_numbers_with_nan_for_empty_cells(tmp_path):
    """Epochs without validation leave cells empty; a column without a number counts as absent."""
    path = tmp_path / "log.csv"
    path.write_text(
        "epoch,train_loss,validation_dice,validation_dice_ET,validation_dice_WT,ratio_e.0_m1,ratio_e.0_m2,note\n"
        "1,0.9,,,,0.5,0.5,\n2,0.8,0.5,0.4,0.6,0.6,0.4,\n"
    )
    log = read_log(path)
    assert [1, 2] == log.epochs.tolist()
    np.testing.assert_array_equal([np.nan, 0.5], log.get("validation_dice"))
    assert list(log.regions) == ["ET", "WT"]
    assert {"e.0": [0.4]} == {layer: values[1:].tolist() for layer, values in log.ratios("m2").items()}
    assert log.get("note") is None
    assert log.get("learning_rate") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch,train_loss\n", "wanted a row an epoch, found a header alone"),
        ("step,train_loss\n1,2\n", "found no column epoch"),
        ("epoch,train_loss\n1,low\n", r"line 2, column train_loss: wanted a number, found 'low'"),
    ],
)
def test_bad_logs_are_told_in_one_line(tmp_path, text, message):
    """The file and the cell are named."""
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_log(tmp_path / "log.csv")
