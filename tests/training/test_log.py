"""log.csv."""

from __future__ import annotations

import math

import pytest

from mergekit3d.errors import OutputError
from mergekit3d.training.log import write_log


def test_rows_come_back_bit_for_bit_and_undefined_cells_are_empty(tmp_path):
    """Whole numbers stay whole, floats keep every digit."""
    write_log(
        tmp_path / "log.csv",
        [{"epoch": 1, "train_loss": 0.1 + 0.2, "validation_loss": math.nan}, {"epoch": 2, "train_loss": 1e-17, "validation_loss": 0.5}],
    )
    assert "epoch,train_loss,validation_loss\n1,0.30000000000000004,\n2,1e-17,0.5\n" == (tmp_path / "log.csv").read_text()


def test_a_name_with_a_comma_is_quoted(tmp_path):
    """Region names are the user's."""
    write_log(tmp_path / "log.csv", [{"epoch": 1, 'validation_dice_a,"b"': 0.5}])
    assert 'epoch,"validation_dice_a,""b"""\n1,0.5\n' == (tmp_path / "log.csv").read_text()


def test_a_log_that_cannot_be_written_is_told(tmp_path):
    """As every output."""
    (tmp_path / "log.csv").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_log(tmp_path / "log.csv", [{"epoch": 1}])
