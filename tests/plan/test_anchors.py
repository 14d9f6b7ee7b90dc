"""How strongly the entries of a start count."""

from __future__ import annotations

import numpy as np
import pytest

from mergekit3d.architectures.isensee2017 import INPUT_WEIGHT
from mergekit3d.checkpoints import open_checkpoint
from mergekit3d.errors import InputError
from mergekit3d.plan.anchors import checkpoint_anchors, fusion_anchors
from mergekit3d.plan.fusion import plan_fusion
from mergekit3d.plan.network import checkpoint_start
from tests.builders import fusing, save_fisher, save_source, task_of, two_sources

BRATS = task_of(("t1", "t1ce", "t2", "flair"), {"ET": (4,)})
TARGET = "target: {data: nowhere, modalities: [t1, t1ce, t2, flair], regions: brats}"
FUSED, NORM = "encoder.1.input.conv.weight", "encoder.1.input.norm.weight"


def test_fused_tensors_count_by_the_weighted_sum_of_the_fishers(tmp_path):
    """sum_t a^t F^t with the ratios of the merge, which is the precision that eq. 2 divides by."""
    _, (first, second) = two_sources(tmp_path)
    anchors = fusion_anchors(plan_fusion(fusing(tmp_path, "{method: imm, ratios: {m1: 1, m2: 3}}")), "fisher")

    np.testing.assert_allclose(anchors.weights[FUSED], 0.25 * first[FUSED] + 0.75 * second[FUSED], rtol=1e-6)
    assert [open_checkpoint(tmp_path / f"{name}.fisher.safetensors").digest for name in ("m1", "m2")] == list(anchors.digests)


def test_copied_tensors_count_by_their_sources_fisher(tmp_path):
    """Without a target the private tensors are the last source's."""
    _, (_, second) = two_sources(tmp_path)
    anchors = fusion_anchors(plan_fusion(fusing(tmp_path)), "fisher")

    assert np.array_equal(second[NORM], anchors.weights[NORM])


def test_random_tensors_are_free(tmp_path):
    """Heads and norms of a new target have no start worth holding; by l2 all others count 1."""
    two_sources(tmp_path)
    anchors = fusion_anchors(plan_fusion(fusing(tmp_path, rest=TARGET)), "l2")

    assert NORM not in anchors.weights
    assert anchors.weights[FUSED] is None
    assert () == anchors.digests


@pytest.mark.parametrize("by", ["l2", "fisher"])
def test_input_channels_without_a_source_are_free(tmp_path, by):
    """T1 and T2 are held, T1ce and FLAIR are new."""
    _, (first, second) = two_sources(tmp_path)
    weights = fusion_anchors(plan_fusion(fusing(tmp_path, rest=TARGET)), by).weights[INPUT_WEIGHT]
    mean = (first[INPUT_WEIGHT] + second[INPUT_WEIGHT]) / 2

    for channel, known in enumerate((0, None, 1, None)):
        expected = 0 if known is None else 1 if by == "l2" else mean[:, known]
        np.testing.assert_allclose(weights[:, channel], np.broadcast_to(expected, weights[:, channel].shape), rtol=1e-6)


@pytest.mark.parametrize("by", ["l2", "fisher"])
def test_checkpoint_counts_by_its_own_fisher(tmp_path, by):
    """Copied tensors by the diagonal beside it, input channels by modality, new heads not at all."""
    save_source(tmp_path / "m1.safetensors")
    diagonal = save_fisher(tmp_path / "m1.safetensors")
    loaded = fusing(tmp_path)
    start = checkpoint_start(loaded, tmp_path / "m1.safetensors", BRATS, 0)
    weights = checkpoint_anchors(loaded, tmp_path / "m1.safetensors", None, start, BRATS, by).weights
    inputs = weights[INPUT_WEIGHT]

    assert "segmentation.0.weight" not in weights
    assert weights[FUSED] is None if by == "l2" else np.array_equal(diagonal[FUSED], weights[FUSED])
    assert [True, False, True, False] == [bool(inputs[:, channel].any()) for channel in range(4)]
    assert by == "l2" or np.array_equal(diagonal[INPUT_WEIGHT][:, 1], inputs[:, 2])


def test_checkpoint_without_a_fisher_is_refused(tmp_path):
    """With what to run."""
    save_source(tmp_path / "m1.safetensors")
    loaded = fusing(tmp_path)
    start = checkpoint_start(loaded, tmp_path / "m1.safetensors", task_of(), 0)
    with pytest.raises(InputError, match=r"no Fisher diagonal(.|\n)*mergekit3d fisher m1.safetensors"):
        checkpoint_anchors(loaded, tmp_path / "m1.safetensors", None, start, task_of(), "fisher")
