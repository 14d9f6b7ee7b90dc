"""Where a training starts: at random, from a checkpoint, or from a fusion."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from mergekit3d.architectures import network_shapes
from mergekit3d.architectures.initialise import initial_tensor
from mergekit3d.architectures.isensee2017 import INPUT_WEIGHT, ISENSEE2017
from mergekit3d.errors import InputError, RecipeError
from mergekit3d.plan.fusion import plan_fusion
from mergekit3d.plan.network import checkpoint_start, fusion_start, network_for, random_start
from mergekit3d.recipe import load_recipe
from tests.builders import fusing, random_state, save_fisher, save_source, spec_of, task_of, two_sources, write_recipe

BRATS = task_of(("t1", "t1ce", "t2", "flair"), {"ET": (4,), "TC": (1, 4), "WT": (1, 2, 4)})


def recipe(folder, architecture=""):
    return load_recipe(write_recipe(folder, f"version: 1\n{architecture}"))


def test_default_network_is_the_papers(tmp_path):
    """With the inputs and outputs of the task."""
    spec = network_for(recipe(tmp_path), BRATS, None)

    assert ("isensee2017", 4, 3, {}) == (spec.name, spec.in_channels, spec.out_channels, spec.arguments)


def test_network_of_the_recipe_or_of_the_checkpoint(tmp_path):
    """The recipe's arguments beat the checkpoint's; what it leaves out stays."""
    assert spec_of(4, 3, dropout=0.1) == network_for(recipe(tmp_path), BRATS, spec_of(dropout=0.1))
    given = recipe(tmp_path, "architecture: {name: isensee2017, dropout: 0.2}")
    assert spec_of(4, 3, dropout=0.2, leaky_slope=0.3) == network_for(given, BRATS, spec_of(dropout=0.1, leaky_slope=0.3))


def test_exclusive_classes_have_a_background(tmp_path):
    """One channel more than classes."""
    assert 4 == network_for(recipe(tmp_path), task_of(exclusive=True), None).out_channels


@pytest.mark.parametrize(
    ("told", "architecture"),
    [
        ("unknown argument of the architecture: architecture.dept; did you mean 'depth'?", "{name: isensee2017, dept: 3}"),
        ("cannot build isensee2017: architecture.depth: wanted a whole number from 2 to 12, found 1", "{name: isensee2017, depth: 1}"),
    ],
)
def test_wrong_arguments(tmp_path, told, architecture):
    """Before anything is built."""
    with pytest.raises(RecipeError) as caught:
        network_for(recipe(tmp_path, f"architecture: {architecture}"), BRATS, None)
    assert told == str(caught.value)


def test_checkpoint_of_another_architecture(tmp_path):
    """Is refused by name."""
    with pytest.raises(InputError, match="the checkpoint is of another network: wanted monai.UNet, found isensee2017"):
        network_for(recipe(tmp_path, "architecture: monai.UNet"), BRATS, spec_of())


def test_random_start_is_xavier():
    """All of it, by seed and name."""
    start = random_start(spec_of(), 3)

    assert "64 random" == start.remark()
    assert list(network_shapes(spec_of())) == list(start.values)
    assert np.array_equal(initial_tensor(INPUT_WEIGHT, (2, 2, 3, 3, 3), "conv", 3), start.values[INPUT_WEIGHT])
    built = start.build().state_dict()
    assert all(torch.equal(torch.from_numpy(values), built[name]) for name, values in start.values.items())


def test_same_task_copies_all(tmp_path):
    """Heads too."""
    state = save_source(tmp_path / "m1.safetensors")
    start = checkpoint_start(recipe(tmp_path), tmp_path / "m1.safetensors", task_of(), 0)

    assert {"copied": 64} == Counter(start.outcomes.values())
    assert all(np.array_equal(values, start.values[name]) for name, values in state.items())
    assert {"init"} == set(start.origin)


def test_other_regions_get_new_heads(tmp_path):
    """Also where there are as many of them: M2 starts from M1 with heads of its own."""
    state = save_source(tmp_path / "m1.safetensors")
    task = task_of(outputs={"a": (1,), "b": (2,), "c": (3,)})
    start = checkpoint_start(recipe(tmp_path), tmp_path / "m1.safetensors", task, 5)

    heads = [name for name in state if name.startswith("segmentation.")]
    assert {"copied": 64 - len(heads), "random": len(heads)} == Counter(start.outcomes.values())
    for name in heads:
        assert np.array_equal(initial_tensor(name, state[name].shape, "conv", 5, ISENSEE2017.initial_biases), start.values[name])


def test_input_channels_go_by_modality(tmp_path):
    """T1 to T1, T2 to T2; what the source has not is random."""
    state = save_source(tmp_path / "m1.safetensors", task=task_of(("t2", "t1")))
    start = checkpoint_start(recipe(tmp_path), tmp_path / "m1.safetensors", BRATS, 5)
    weight, random = start.values[INPUT_WEIGHT], initial_tensor(INPUT_WEIGHT, (2, 4, 3, 3, 3), "conv", 5)

    assert ["encoder.0.input.conv.weight"] == [name for name, outcome in start.outcomes.items() if outcome == "expanded"]
    assert np.array_equal(state[INPUT_WEIGHT][:, 1], weight[:, 0])
    assert np.array_equal(random[:, 1], weight[:, 1])
    assert np.array_equal(state[INPUT_WEIGHT][:, 0], weight[:, 2])
    assert np.array_equal(random[:, 3], weight[:, 3])


def test_other_order_of_the_same_modalities(tmp_path):
    """Is put in order, though the shape fits."""
    state = save_source(tmp_path / "m1.safetensors")
    start = checkpoint_start(recipe(tmp_path), tmp_path / "m1.safetensors", task_of(("t2", "t1")), 0)

    assert np.array_equal(state[INPUT_WEIGHT][:, ::-1], start.values[INPUT_WEIGHT])


def test_bare_state_dict(tmp_path):
    """Its modalities are not known: channels that fit are copied, others are random."""
    state = random_state(spec_of())
    torch.save({name: torch.from_numpy(values) for name, values in state.items()}, tmp_path / "m1.pt")

    assert {"copied"} == set(checkpoint_start(recipe(tmp_path), tmp_path / "m1.pt", task_of(), 0).outcomes.values())
    wider = checkpoint_start(recipe(tmp_path), tmp_path / "m1.pt", task_of(("t1", "t2", "flair")), 0)
    assert ["encoder.0.input.conv.weight"] == [name for name, outcome in wider.outcomes.items() if outcome == "random"]


def test_checkpoint_that_does_not_fit(tmp_path):
    """Names what to write into the recipe."""
    save_source(tmp_path / "m1.safetensors")
    with pytest.raises(InputError) as caught:
        checkpoint_start(recipe(tmp_path, "architecture: {name: isensee2017, base_filters: 4}"), tmp_path / "m1.safetensors", task_of(), 0)
    told = str(caught.value)
    assert "the checkpoint does not fit the network" in told
    assert "leave architecture out" in told


@pytest.mark.parametrize("damage", ["nan", "fisher", "missing"])
def test_unusable_checkpoints(tmp_path, damage):
    """NaN, a Fisher diagonal, nothing at all."""
    path = tmp_path / "m1.safetensors"
    state = random_state(spec_of())
    if damage == "nan":
        state[INPUT_WEIGHT][0] = np.nan
    save_source(path, state=state)
    save_fisher(path)
    path = {"nan": path, "fisher": tmp_path / "m1.fisher.safetensors", "missing": tmp_path / "m3.pt"}[damage]
    told = {"nan": "not finite", "fisher": "a Fisher diagonal stands", "missing": "no such file"}[damage]
    with pytest.raises(InputError, match=told):
        checkpoint_start(recipe(tmp_path), path, task_of(), 0)


def test_start_from_a_fusion(tmp_path):
    """In memory, the same values as the file would hold."""
    (first, second), _ = two_sources(tmp_path)
    start = fusion_start(plan_fusion(fusing(tmp_path, "{method: mean-imm}")))

    name = "encoder.1.input.conv.weight"
    np.testing.assert_allclose((first[name] + second[name]) / 2, start.values[name], atol=1e-6)
    assert np.array_equal(second["segmentation.0.weight"], start.values["segmentation.0.weight"])
    assert "fused" in start.remark()
    assert 2 == len(start.origin["sources"])
