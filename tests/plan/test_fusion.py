"""What becomes of every tensor, decided from names and shapes."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
import torch

from mergekit3d.architectures.isensee2017 import INPUT_WEIGHT
from mergekit3d.errors import InputError, Problems, RecipeError, UsageError
from mergekit3d.plan.fusion import plan_fusion
from tests.builders import fusing, metadata_of, random_state, save, save_fisher, save_source, spec_of, task_of, two_sources

TARGET = "target: {data: brats, modalities: [t1, t1ce, t2, flair], regions: brats}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two sources with their Fisher diagonals."""
    folder = tmp_path_factory.mktemp("sources")
    two_sources(folder)
    return folder


def outcomes(plan):
    return Counter((tensor.partition, tensor.outcome, tensor.origin) for tensor in plan.tensors)


def of(plan, name):
    return next(tensor for tensor in plan.tensors if tensor.entry.name == name)


def test_without_a_target_private_tensors_are_those_of_the_last_source(folder):
    """Convolutions are fused, norms and heads copied, and the output is of the last source's task."""
    plan = plan_fusion(fusing(folder))

    shared = len([name for name in plan.shapes if ".conv." in name])
    assert {("shared", "fused", None): shared, ("private", "copied", "m2"): len(plan.shapes) - shared} == outcomes(plan)
    assert task_of() == plan.task
    assert spec_of() == plan.network
    assert list(random_state(spec_of())) == [tensor.entry.name for tensor in plan.tensors]


@pytest.mark.parametrize(("private", "outcome"), [("m1", "copied"), ("m2", "copied"), ("random", "random"), ("zero", "zero")])
def test_origin_of_private_tensors(folder, private, outcome):
    """A source's, random or zero, as the recipe says."""
    plan = plan_fusion(fusing(folder, f"{{method: imm, private: {private}}}"))

    assert {outcome} == {tensor.outcome for tensor in plan.tensors if tensor.partition == "private"}
    assert {private if outcome == "copied" else None} == {tensor.origin for tensor in plan.tensors if tensor.partition == "private"}


def test_target_makes_new_heads_and_matches_modalities(folder):
    """Two modalities to four: the first convolution is expanded by name, heads and norms are random."""
    plan = plan_fusion(fusing(folder, rest=TARGET))

    expanded = of(plan, INPUT_WEIGHT)
    assert ("expanded", (2, 4, 3, 3, 3)) == (expanded.outcome, expanded.entry.shape)
    detail = "[2, 2, 3, 3, 3] / [2, 2, 3, 3, 3] in the sources, [2, 4, 3, 3, 3] in the target"
    assert f"{detail}; input channels matched by modality, random for t1ce, flair" == expanded.detail
    assert ("fused", "encoder.0.input.conv") == (of(plan, "encoder.0.input.conv.bias").outcome, of(plan, "encoder.0.input.conv.bias").group)
    assert ("random", (3, 2, 1, 1, 1)) == (of(plan, "segmentation.0.weight").outcome, of(plan, "segmentation.0.weight").entry.shape)
    assert (4, 3) == (plan.network.in_channels, plan.network.out_channels)
    assert ("t1", "t1ce", "t2", "flair") == plan.task.modalities


def test_input_channels_may_stay_random(folder):
    """As in the paper's code."""
    tensor = of(plan_fusion(fusing(folder, "{method: imm, input_channels: random}", TARGET)), INPUT_WEIGHT)

    assert ("random", "[2, 2, 3, 3, 3] / [2, 2, 3, 3, 3] in the sources, [2, 4, 3, 3, 3] in the target") == (tensor.outcome, tensor.detail)


@pytest.mark.parametrize(
    ("outcome", "modalities", "missing"),
    [("fused", "[t1, t2]", None), ("expanded", "[t2, t1]", None), ("expanded", "[t1ce, t2]", "t1ce"), ("expanded", "[t2]", None)],
)
def test_channels_go_by_name_never_by_position(folder, outcome, modalities, missing):
    """As many modalities in another order, or other ones, are not fused as they stand."""
    tensor = of(plan_fusion(fusing(folder, rest=f"target: {{data: x, modalities: {modalities}, regions: brats}}")), INPUT_WEIGHT)

    assert outcome == tensor.outcome
    assert (missing is not None) == ("random for" in (tensor.detail or ""))
    assert missing is None or tensor.detail.endswith(f", random for {missing}")


def test_sources_of_different_modalities(tmp_path):
    """Each channel is fused over those that have it, in the order of the last source, where there is no target."""
    save_source(tmp_path / "m1.safetensors", 1, task=task_of(("t2", "t1")))
    save_source(tmp_path / "m2.safetensors", 2, task=task_of(("t1", "flair")))
    plan = plan_fusion(fusing(tmp_path, "{method: mean-imm}"))

    assert "expanded" == of(plan, INPUT_WEIGHT).outcome
    assert "random" not in of(plan, INPUT_WEIGHT).detail
    assert ("t1", "flair") == plan.task.modalities


def test_source_left_out_by_its_ratio_gives_no_channel(tmp_path):
    """What only it had is random, and said so."""
    save_source(tmp_path / "m1.safetensors", 1, task=task_of(("t1", "t1ce")))
    save_source(tmp_path / "m2.safetensors", 2, task=task_of(("t1", "t2")))
    plan = plan_fusion(fusing(tmp_path, "{method: mean-imm, ratios: {m1: 0, m2: 1}}", TARGET))

    assert of(plan, INPUT_WEIGHT).detail.endswith(", random for flair; also random for t1ce, whose sources have a ratio of 0")


def test_same_shape_of_other_modalities_stays_random_where_asked(folder):
    """And the report says why."""
    rest = "target: {data: x, modalities: [t2, t1], regions: brats}"
    tensor = of(plan_fusion(fusing(folder, "{method: imm, input_channels: random}", rest)), INPUT_WEIGHT)

    assert "random" == tensor.outcome
    assert tensor.detail.endswith("; other modalities")


def test_unknown_modalities_cannot_be_matched(tmp_path):
    """Bare checkpoints do not say them: the first convolution is random."""
    for number, name in enumerate(("m1", "m2")):
        state = random_state(spec_of(), number)
        torch.save({key: torch.from_numpy(values) for key, values in state.items()}, tmp_path / f"{name}.pt")
        save_fisher(tmp_path / f"{name}.pt")
    plan = plan_fusion(fusing(tmp_path, rest=TARGET, suffix=".pt"))

    assert "random" == of(plan, INPUT_WEIGHT).outcome
    assert "fused" == of(plan, "encoder.1.input.conv.weight").outcome


def test_adapted_tensors_are_carried_over(folder):
    """What was trained beside the ratios: private tensors and the first convolution."""
    loaded = fusing(folder, "{method: imm, private: adapted}", TARGET)
    (loaded.out / "adapt").mkdir(parents=True, exist_ok=True)
    save_source(loaded.out / "adapt" / "checkpoint.safetensors", 5, spec=spec_of(4, 3), task=task_of(("t1", "t1ce", "t2", "flair")))
    plan = plan_fusion(loaded)

    assert ("copied", "adapted") == (of(plan, INPUT_WEIGHT).outcome, of(plan, INPUT_WEIGHT).origin)
    assert {"copied"} == {tensor.outcome for tensor in plan.tensors if tensor.partition == "private"}
    assert "fused" == of(plan, "encoder.1.input.conv.weight").outcome
    assert of(plan, INPUT_WEIGHT).detail.endswith("matched by modality, random for t1ce, flair")


def test_adapted_tensors_that_are_not_there(folder, tmp_path):
    """Asked for and missing is an error."""
    with pytest.raises(InputError, match=r"no such file: .*adapt/checkpoint.safetensors"):
        plan_fusion(fusing(folder, "{method: imm, private: adapted}", TARGET, out=tmp_path / "nothing"))


def test_partitions_of_the_recipe(folder):
    """Patterns of the recipe replace the architecture's."""
    rest = 'partitions: {private: ["decoder.*", "segmentation.*"], shared: ["kind:conv", "kind:norm"]}'
    plan = plan_fusion(fusing(folder, rest=rest))

    assert "fused" == of(plan, "encoder.0.input.norm.weight").outcome
    assert "private" == of(plan, "decoder.0.upsample.conv.weight").partition


@pytest.mark.parametrize(
    ("told", "rest"),
    [
        (
            "the pattern names no tensor: partitions.private[0]: found 'decodr.*'; did you mean 'decoder'?",
            'partitions: {private: ["decodr.*"]}',
        ),
        ("unknown kind of tensor: partitions.shared[0]: found cnv; did you mean 'conv'?", 'partitions: {shared: ["kind:cnv"]}'),
        (
            "nothing would be fused: partitions; let shared name at least one tensor that private does not",
            'partitions: {private: ["*"]}',
        ),
    ],
)
def test_wrong_partitions(folder, told, rest):
    """One line, with what was meant."""
    with pytest.raises(RecipeError) as caught:
        plan_fusion(fusing(folder, rest=rest))
    assert told == str(caught.value)


def test_unknown_origin_of_private_tensors(folder):
    """The nearest of those there are."""
    with pytest.raises(RecipeError) as caught:
        plan_fusion(fusing(folder, "{method: imm, private: adaptd}"))
    assert "unknown origin of the private tensors: merge.private: found adaptd; did you mean 'adapted'?" == str(caught.value)


def test_unknown_method(folder):
    """As every name."""
    with pytest.raises(UsageError, match="unknown merge method 'im'; did you mean 'imm'"):
        plan_fusion(fusing(folder, "{method: im}"))


def test_target_and_sources_are_reported_together(folder):
    """Before any work."""
    loaded = fusing(folder, rest="target: {data: x, modalities: [t1, t1], regions: brats}", overrides=["sources.m2.checkpoint=m3.pt"])
    with pytest.raises(Problems) as caught:
        plan_fusion(loaded)

    assert "a modality stands twice: target.modalities: found t1, t1" in str(caught.value)
    assert "no such file" in str(caught.value)


def test_architecture_of_the_recipe_must_be_that_of_the_checkpoints(folder):
    """By name, and by what the tensors tell."""
    with pytest.raises(InputError, match="wanted monai.UNet, found isensee2017; correct architecture in the recipe"):
        plan_fusion(fusing(folder, rest="architecture: monai.UNet"))
    with pytest.raises(InputError, match="does not fit the network: .*wanted base_filters 16, found 2; correct architecture"):
        plan_fusion(fusing(folder, rest="architecture: {name: isensee2017, base_filters: 16}"))
    with pytest.raises(RecipeError, match=r"unknown argument of the architecture: architecture.base_filter; did you mean 'base_filters'"):
        plan_fusion(fusing(folder, rest="architecture: {name: isensee2017, base_filter: 2}"))


def test_architecture_of_the_recipe_may_say_what_leaves_no_trace(folder):
    """Leaky slope and dropout."""
    plan = plan_fusion(fusing(folder, rest="architecture: {name: isensee2017, base_filters: 2, leaky_slope: 0.3}"))

    assert spec_of(leaky_slope=0.3) == plan.network


def test_foreign_checkpoints_under_a_registered_name(tmp_path):
    """Are told, whatever their tensors are called."""
    for name in ("m1", "m2"):
        save(
            tmp_path / f"{name}.safetensors",
            {"conv.weight": np.ones((1, 1, 3, 3, 3), np.float32), "last.weight": np.ones((1, 1), np.float32)},
        )
    with pytest.raises(InputError, match="the checkpoint is of another network: .*wanted isensee2017, found other tensors"):
        plan_fusion(fusing(tmp_path, "{method: mean-imm}", "architecture: isensee2017"))


def test_unknown_networks_are_fused_all_the_same(tmp_path):
    """Nothing but names and shapes is needed: norms and the last layer are private."""
    state = {"a.weight": np.ones((2, 1, 3, 3, 3), np.float32), "n.weight": np.ones(2, np.float32), "z.weight": np.ones((1, 2), np.float32)}
    for name in ("m1", "m2"):
        save(tmp_path / f"{name}.safetensors", state, metadata_of())
    plan = plan_fusion(fusing(tmp_path, "{method: mean-imm}"))

    assert ["fused", "copied", "copied"] == [tensor.outcome for tensor in plan.tensors]
    assert plan.network is None


def test_imported_network_keeps_its_channels_without_a_target(tmp_path):
    """Of bare checkpoints they are told from the first and the last layer."""
    from mergekit3d.architectures import NetworkSpec

    spec = NetworkSpec("monai.BasicUNet", 2, 5, {"features": [2, 2, 2, 2, 2, 2]})
    for number, name in enumerate(("m1", "m2")):
        save(tmp_path / f"{name}.safetensors", random_state(spec, number))
    plan = plan_fusion(fusing(tmp_path, "{method: mean-imm}", "architecture: {name: monai.BasicUNet, features: [2, 2, 2, 2, 2, 2]}"))

    assert spec == plan.network
    assert {"fused", "copied"} == {tensor.outcome for tensor in plan.tensors}


def batch_norm_sources(folder, counts):
    """Two sources with running statistics and counters."""
    for number, (name, count) in enumerate(zip(("m1", "m2"), counts, strict=True)):
        state = {
            "conv.weight": np.full((2, 1, 3, 3, 3), 1.0 + number, np.float32),
            "batch.running_mean": np.full(2, 2.0 + number, np.float32),
            "batch.num_batches_tracked": np.array(count),
            "last.weight": np.ones((1, 2, 1, 1, 1), np.float32),
        }
        save(folder / f"{name}.safetensors", state)
        save_fisher(folder / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("told", "origin", "counts", "buffers"),
    [
        ("an integer tensor, equal in all sources", "m1", (7, 7), "{method: mean-imm}"),
        ("an integer tensor, differs between the sources and is never averaged: taken from 'm2'", "m2", (7, 9), "{method: mean-imm}"),
        (
            "an integer tensor, differs between the sources and is never averaged: taken from 'm1'",
            "m1",
            (7, 9),
            "{method: mean-imm, buffers: m1}",
        ),
    ],
)
def test_integer_tensors_are_never_averaged(tmp_path, told, origin, counts, buffers):
    """Equal in all sources, or a named source's, the last one's by default; the report says which."""
    batch_norm_sources(tmp_path, counts)
    tensor = of(plan_fusion(fusing(tmp_path, buffers, "partitions: {private: []}")), "batch.num_batches_tracked")

    assert ("copied", origin, told, "I64") == (tensor.outcome, tensor.origin, tensor.detail, tensor.entry.dtype)


def test_running_statistics_are_averaged_by_the_ratios(tmp_path):
    """They have no Fisher information, which eq. 2 takes as F = 1."""
    batch_norm_sources(tmp_path, (7, 7))
    tensor = of(plan_fusion(fusing(tmp_path, rest="partitions: {private: []}")), "batch.running_mean")

    assert ("fused", "batch", False) == (tensor.outcome, tensor.group, tensor.has_fisher)
    assert "running statistics have no Fisher information: averaged by the ratios" == tensor.detail


def test_unknown_source_of_integer_tensors(folder):
    """The nearest name."""
    with pytest.raises(RecipeError) as caught:
        plan_fusion(fusing(folder, "{method: imm, buffers: m3}"))
    assert "unknown source of the integer tensors: merge.buffers: found m3; known: m1, m2" == str(caught.value)


def test_dtypes_that_differ_give_the_widest(tmp_path):
    """Else the sources' own is kept; a line tells of it."""
    state = random_state(spec_of())
    half = {name: values.astype(np.float16) for name, values in state.items()}
    save_source(tmp_path / "m1.safetensors", state=half)
    save_source(tmp_path / "m2.safetensors", state={**half, "segmentation.0.bias": state["segmentation.0.bias"]})
    plan = plan_fusion(fusing(tmp_path, "{method: mean-imm}"))

    assert "F16" == of(plan, INPUT_WEIGHT).entry.dtype
    assert "F32" == of(plan, "segmentation.0.bias").entry.dtype


@pytest.mark.parametrize(("dtype", "name"), [("F16", "float16"), ("BF16", "bfloat16"), ("F64", "float64")])
def test_dtype_of_the_recipe(folder, dtype, name):
    """For every float tensor."""
    assert {dtype} == {tensor.entry.dtype for tensor in plan_fusion(fusing(folder, f"{{method: imm, dtype: {name}}}")).tensors}


def test_fused_tensors_of_several_dtypes_are_told(tmp_path):
    """One line, with an example."""
    state = random_state(spec_of())
    save_source(tmp_path / "m1.safetensors", state=state)
    save_source(tmp_path / "m2.safetensors", state={name: values.astype(np.float64) for name, values in state.items()})
    plan = plan_fusion(fusing(tmp_path, "{method: mean-imm}"))

    assert len(plan.remarks) == 1
    assert re.fullmatch(rf"dtypes differ in \d+ tensors \({re.escape(INPUT_WEIGHT)}: m1 F32, m2 F64\): written as F64", plan.remarks[0])


def test_tensors_that_no_pattern_names_are_told(folder):
    """They are private, and a line names them."""
    plan = plan_fusion(fusing(folder, rest='partitions: {private: ["segmentation.*"], shared: ["kind:conv"]}'))

    assert plan.remarks[0].startswith("private, since no pattern of partitions names them: encoder.0.input.norm.weight, ")
    assert "private" == of(plan, "encoder.0.input.norm.weight").partition


def test_uniform_start_of_an_adaptation(folder):
    """Whatever the recipe says, and without its ratio file."""
    plan = plan_fusion(fusing(folder, "{method: timm, ratios: nothing.json}"), uniform=True)

    assert {(0.5, 0.5)} == {tuple(row) for row in plan.ratios.layers.values()}


@pytest.mark.parametrize(("expected", "seed"), [(3, None), (5, 5)])
def test_seed_of_the_recipe_or_of_the_flag(folder, expected, seed):
    """The flag beats the recipe."""
    assert expected == plan_fusion(fusing(folder, rest="seed: 3"), seed=seed).seed


def test_metadata_of_more_modalities_than_channels(tmp_path):
    """A first convolution whose channels are not those that its task names is not matched: random, and the report says so."""
    save_source(tmp_path / "m1.safetensors", 1, task=task_of(("t1", "t2", "flair")))
    save_source(tmp_path / "m2.safetensors", 2)
    tensor = of(plan_fusion(fusing(tmp_path, "{method: mean-imm}", TARGET)), INPUT_WEIGHT)

    assert "random" == tensor.outcome
    assert "[2, 2, 3, 3, 3] / [2, 2, 3, 3, 3] in the sources, [2, 4, 3, 3, 3] in the target" == tensor.detail


def test_sources_of_another_width(tmp_path):
    """A conflict of shapes is refused, with both."""
    save_source(tmp_path / "m1.safetensors", 1, spec=spec_of(base_filters=4))
    save_source(tmp_path / "m2.safetensors", 2)
    with pytest.raises(
        InputError, match=r"the sources' shapes differ: .*wanted one shape to fuse, found m1 \[4\], m2 \[2\] \(\d+ tensors differ\)"
    ):
        plan_fusion(fusing(tmp_path, "{method: mean-imm}"))


def test_first_convolutions_of_unknown_modalities_are_refused_without_a_target(tmp_path):
    """Nothing tells which channel is which, and a random one would break a merge that is not trained."""
    for number, inputs in enumerate((2, 4), 1):
        state = random_state(spec_of(inputs), number)
        torch.save({key: torch.from_numpy(values) for key, values in state.items()}, tmp_path / f"m{number}.pt")
    with pytest.raises(InputError) as caught:
        plan_fusion(fusing(tmp_path, "{method: mean-imm}", suffix=".pt"))
    assert str(caught.value) == (
        f"the sources' shapes differ: {INPUT_WEIGHT}: wanted one shape to fuse, found m1 [2, 2, 3, 3, 3], m2 [2, 4, 3, 3, 3]; "
        "give a target with modalities, or name it in partitions.private"
    )
