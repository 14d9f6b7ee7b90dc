"""Which tensors a recipe freezes, rates and holds."""

from __future__ import annotations

import numpy as np
import pytest

from mergekit3d.architectures import network_shapes
from mergekit3d.errors import MergeKit3DError
from mergekit3d.plan.anchors import Anchors
from mergekit3d.plan.constraints import check_constraints, plan_constraints
from mergekit3d.plan.network import checkpoint_start, random_start
from mergekit3d.recipe import load_recipe
from tests.builders import save_source, spec_of, task_of, write_recipe

SPEC = spec_of()
SHAPES = network_shapes(SPEC)
NORMS = {name for name in SHAPES if ".norm." in name}
PRIVATE = NORMS | {name for name in SHAPES if name.startswith("segmentation.")}


def checked(folder, finetune):
    loaded = load_recipe(write_recipe(folder, f"version: 1\nfinetune: {finetune}\n"))
    return check_constraints(loaded, loaded.recipe.finetune, SPEC, SHAPES, "finetune")


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("[private]", PRIVATE),
        ("[shared]", set(SHAPES) - PRIVATE),
        ("[kind:norm]", NORMS),
        (
            "['segmentation.0.*', encoder.0.input.conv.bias]",
            {*(f"segmentation.0.{leaf}" for leaf in ("weight", "bias")), "encoder.0.input.conv.bias"},
        ),
    ],
)
def test_patterns_name_partitions_kinds_and_globs(tmp_path, patterns, expected):
    """As under partitions, and the two partitions themselves."""
    assert expected == checked(tmp_path, f"{{freeze: {patterns}}}").frozen


def test_first_rate_that_fits_decides(tmp_path):
    """As of ratios by glob; what is frozen has none."""
    rates = checked(tmp_path, "{freeze: ['segmentation.*'], learning_rates: {encoder.0.*: 1e-4, kind:norm: 1e-3, private: 1e-2}}").rates

    assert NORMS | {name for name in SHAPES if name.startswith("encoder.0.")} == set(rates)
    assert (1e-4, 1e-3) == (rates["encoder.0.input.norm.weight"], rates["encoder.1.input.norm.weight"])


def test_every_problem_is_told_at_once(tmp_path):
    """Patterns that name nothing, each with its key and the nearest name."""
    finetune = "{freeze: [segmentatoin.*], learning_rates: {kind:normm: 1}, regularise: {strength: 1, tensors: [x]}}"
    with pytest.raises(MergeKit3DError) as caught:
        checked(tmp_path, finetune)
    text = str(caught.value)

    assert "finetune.freeze[0]" in text
    assert "did you mean 'segmentation'?" in text
    assert "finetune.learning_rates.kind:normm" in text
    assert "finetune.regularise.tensors[0]" in text


def test_everything_frozen_is_refused(tmp_path):
    """Before any work."""
    with pytest.raises(MergeKit3DError, match="nothing is left to train"):
        checked(tmp_path, "{freeze: [shared, private]}")


@pytest.mark.parametrize("key", ["regularise: {strength: 1}", "drop_transfer: 0.5"])
def test_train_from_random_holds_on_to_nothing(tmp_path, key):
    """The recipe itself is refused."""
    with pytest.raises(MergeKit3DError, match="need an init to hold on to"):
        load_recipe(write_recipe(tmp_path, f"version: 1\ntrain: {{init: none, {key}}}\n"))


def planned(folder, train, anchors=lambda: Anchors({})):
    save_source(folder / "m1.safetensors")
    loaded = load_recipe(write_recipe(folder, f"version: 1\ntrain: {train}\n"))
    start = checkpoint_start(loaded, folder / "m1.safetensors", task_of(outputs={"a": (1,)}), 0)
    return plan_constraints(loaded, loaded.recipe.train, start, anchors, "train")


def test_train_holds_and_drops_the_shared_tensors(tmp_path):
    """What belongs to a task is free: heads and norms; buffers, frozen and unknown tensors are no one's to hold."""
    weights = dict.fromkeys(set(SHAPES) - {"decoder.0.upsample.conv.bias"})
    train = "{init: m1.safetensors, drop_transfer: 0.5, freeze: ['encoder.0.*'], regularise: {strength: 2}}"
    constraints = planned(tmp_path, train, lambda: Anchors(weights, ("abc",)))
    expected = {name for name in SHAPES if name not in PRIVATE and not name.startswith("encoder.0.")}

    assert expected == set(constraints.dropped)
    assert expected - {"decoder.0.upsample.conv.bias"} == set(constraints.anchors)
    assert (2.0, 0.5, ("abc",)) == (constraints.strength, constraints.drop_rate, constraints.digests)


def test_anchors_are_asked_for_where_the_recipe_regularises(tmp_path):
    """Fisher diagonals are read for nothing else."""

    def anchors():
        raise AssertionError

    assert {} == planned(tmp_path, "{init: m1.safetensors}", anchors).anchors


def test_nothing_to_hold_is_refused(tmp_path):
    """Where the start knows none of the tensors."""
    with pytest.raises(MergeKit3DError, match="nothing to regularise"):
        planned(tmp_path, "{init: m1.safetensors, regularise: {strength: 1}}")


def test_remark_tells_what_holds(tmp_path):
    """With the mean weight, which a strength by fisher is chosen by."""
    name = "encoder.1.input.conv.bias"
    train = f"{{init: m1.safetensors, freeze: [{name}], regularise: {{strength: 1}}}}"
    weight = "encoder.1.input.conv.weight"
    remark = planned(tmp_path, train, lambda: Anchors({weight: np.full(SHAPES[weight], 2.5, np.float32)})).remark()

    assert "1 tensors frozen, 1 pulled to their start, mean weight 2.5" == remark


def test_a_random_start_drops_nothing(tmp_path):
    """No layer of it is an earlier task's."""
    loaded = load_recipe(write_recipe(tmp_path, "version: 1\ntrain: {init: m1.pt, drop_transfer: 0.5}\n"))
    with pytest.raises(MergeKit3DError, match="no layer takes part"):
        plan_constraints(loaded, loaded.recipe.train, random_start(SPEC, 0), lambda: Anchors({}), "train")
