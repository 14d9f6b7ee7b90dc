"""Fused files against an independent float64 evaluation of eq. 2 on the files that went in."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mergekit3d.architectures.initialise import initial_tensor
from mergekit3d.architectures.isensee2017 import INPUT_WEIGHT
from mergekit3d.engine import values as values_module
from mergekit3d.engine.combining import widened
from mergekit3d.engine.values import tensor_values
from mergekit3d.plan.fusion import plan_fusion
from tests.builders import fusing, random_state, save_fisher, save_source, spec_of, task_of, two_sources

TARGET = "target: {data: brats, modalities: [t1, t1ce, t2, flair], regions: brats}"


def equation_2(thetas, fishers, ratios):
    """Eq. 2 as it is written, in float64; ratios broadcast, and where no F is known they average alone."""
    thetas, fishers = [[np.asarray(row, np.float64) for row in rows] for rows in (thetas, fishers)]
    known = sum(fishers) > 0
    weights = [ratio * np.where(known, fisher, 1.0) for ratio, fisher in zip(ratios, fishers, strict=True)]
    return sum(weight * theta for weight, theta in zip(weights, thetas, strict=True)) / sum(weights)


def fused(loaded):
    """Every tensor that a recipe gives, with its plan."""
    plan = plan_fusion(loaded)
    values = tensor_values(plan)
    return plan, {tensor.entry.name: values(tensor.entry) for tensor in plan.tensors}


def write_ratios(loaded, content):
    path = loaded.out / "adapt" / "ratios.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def sources(tmp_path):
    """The folder of two sources, their weights and their Fisher diagonals."""
    return tmp_path, *two_sources(tmp_path)


@pytest.mark.parametrize("ratios", [(0.5, 0.5), (0.2, 0.8)])
def test_shared_tensors_are_equation_2(sources, ratios):
    """Within float32 of the independent evaluation, tensor by tensor."""
    folder, states, diagonals = sources
    plan, values = fused(fusing(folder, f"{{method: imm, ratios: {{m1: {ratios[0]}, m2: {ratios[1]}}}}}"))
    shared = [tensor.entry.name for tensor in plan.tensors if tensor.outcome == "fused"]

    assert shared
    for name in shared:
        expected = equation_2([state[name] for state in states], [diagonal[name] for diagonal in diagonals], ratios)
        np.testing.assert_allclose(expected, values[name], rtol=0, atol=5e-7 * np.abs(expected).max())
        assert np.float32 == values[name].dtype


def test_pieces_do_not_show(sources, monkeypatch):
    """A tensor is computed piece by piece, with the same bits whatever their size."""
    whole = fused(fusing(sources[0]))[1]
    monkeypatch.setattr(values_module, "PIECE_ENTRIES", 8)
    pieces = fused(fusing(sources[0]))[1]

    assert all(values.tobytes() == pieces[name].tobytes() for name, values in whole.items())


@pytest.mark.parametrize("piece", [8, 1 << 17])
def test_ratios_by_kernel(sources, monkeypatch, piece):
    """Every output channel has its own, weights and biases alike, also where a tensor is cut into pieces."""
    monkeypatch.setattr(values_module, "PIECE_ENTRIES", piece)
    folder, states, diagonals = sources
    loaded = fusing(folder, "{method: timm, granularity: kernel}")
    generator, layers = np.random.default_rng(0), {}
    for name, values in states[0].items():
        if name.endswith("conv.weight"):
            first = generator.uniform(0.05, 0.95, len(values))
            layers[name.removesuffix(".weight")] = [first.tolist(), (1 - first).tolist()]
    write_ratios(loaded, {"sources": ["m1", "m2"], "granularity": "kernel", "layers": layers})
    plan, values = fused(loaded)

    for tensor in plan.tensors:
        if tensor.outcome == "fused":
            name = tensor.entry.name
            columns = [np.reshape(row, (-1, *[1] * (values[name].ndim - 1))) for row in layers[tensor.group]]
            expected = equation_2([state[name] for state in states], [diagonal[name] for diagonal in diagonals], columns)
            np.testing.assert_allclose(expected, values[name], rtol=0, atol=5e-7 * np.abs(expected).max())


def test_ratio_of_zero_leaves_a_source_out(sources):
    """Bit for bit: neither its weights nor its Fisher diagonal have a say."""
    folder, states, _ = sources
    plan, values = fused(fusing(folder, "{method: imm, ratios: {m1: 1, m2: 0}}"))

    for tensor in plan.tensors:
        if tensor.outcome == "fused":
            assert states[0][tensor.entry.name].tobytes() == values[tensor.entry.name].tobytes()


def test_identical_sources_return_themselves(tmp_path):
    """Bit for bit, whatever their Fisher diagonals."""
    state = save_source(tmp_path / "m1.safetensors", 1)
    save_source(tmp_path / "m2.safetensors", 1)
    for number, name in enumerate(("m1", "m2")):
        save_fisher(tmp_path / f"{name}.safetensors", seed=number)
    _, values = fused(fusing(tmp_path))

    assert all(array.tobytes() == values[name].tobytes() for name, array in state.items())


@pytest.mark.parametrize(("dtype", "tolerance"), [("F16", 2e-3), ("BF16", 1e-2), ("F64", 1e-12)])
def test_sources_of_another_precision(tmp_path, dtype, tolerance):
    """Half precision is fused in float32, double in double, and the plan keeps the sources' dtype."""
    states = [random_state(spec_of(), seed) for seed in (1, 2)]
    if dtype == "F16":
        states = [{name: values.astype(np.float16) for name, values in state.items()} for state in states]
    if dtype == "F64":
        states = [{name: values.astype(np.float64) * (1 + 1e-12) for name, values in state.items()} for state in states]
    dtypes = dict.fromkeys(states[0], dtype)
    for name, state in zip(("m1", "m2"), states, strict=True):
        save_source(tmp_path / f"{name}.safetensors", state=state, dtypes=dtypes)
    plan, values = fused(fusing(tmp_path, "{method: mean-imm}"))

    for tensor in plan.tensors:
        assert dtype == tensor.entry.dtype
        if tensor.outcome == "fused":
            expected = sum(np.asarray(state[tensor.entry.name], np.float64) for state in states) / 2
            np.testing.assert_allclose(expected, values[tensor.entry.name], rtol=0, atol=tolerance * np.abs(expected).max())


def test_widened_is_float32_or_wider():
    """Fusion never computes in half precision."""
    assert [np.float32, np.float32, np.float64] == [widened(np.ones(1, dtype)).dtype for dtype in (np.float16, np.float32, np.float64)]


def test_expanded_channels_are_fused_by_modality(tmp_path):
    """Over the sources that have a modality, whatever its place; one that has it alone gives it; the rest is random."""
    first = save_source(tmp_path / "m1.safetensors", 1, task=task_of(("t2", "t1")))
    second = save_source(tmp_path / "m2.safetensors", 2, task=task_of(("t1", "flair")))
    fishers = [save_fisher(tmp_path / f"m{number}.safetensors", seed=number) for number in (1, 2)]
    plan, values = fused(fusing(tmp_path, "{method: imm, ratios: {m1: 0.3, m2: 0.7}}", TARGET))
    weight, name = values[INPUT_WEIGHT], INPUT_WEIGHT

    expected = equation_2([first[name][:, 1], second[name][:, 0]], [fishers[0][name][:, 1], fishers[1][name][:, 0]], (0.3, 0.7))
    np.testing.assert_allclose(expected, weight[:, 0], rtol=0, atol=5e-7 * np.abs(expected).max())
    assert np.array_equal(initial_tensor(name, (2, 4, 3, 3, 3), "conv", plan.seed)[:, 1], weight[:, 1])
    assert np.array_equal(first[name][:, 0], weight[:, 2])
    assert np.array_equal(second[name][:, 1], weight[:, 3])


def test_source_left_out_gives_no_channel(tmp_path):
    """With a ratio of 0 its modality is random, like one that no source has."""
    save_source(tmp_path / "m1.safetensors", 1, task=task_of(("t1", "t1ce")))
    second = save_source(tmp_path / "m2.safetensors", 2, task=task_of(("t1", "t2")))
    plan, values = fused(fusing(tmp_path, "{method: mean-imm, ratios: {m1: 0, m2: 1}}", TARGET))
    weight = values[INPUT_WEIGHT]

    assert np.array_equal(second[INPUT_WEIGHT][:, 0], weight[:, 0])
    assert np.array_equal(initial_tensor(INPUT_WEIGHT, (2, 4, 3, 3, 3), "conv", plan.seed)[:, 1], weight[:, 1])


@pytest.mark.parametrize("private", ["random", "zero", "m1"])
def test_private_tensors(sources, private):
    """By seed and name, zero, or a source's."""
    folder, states, _ = sources
    plan, values = fused(fusing(folder, f"{{method: imm, private: {private}}}", "seed: 4"))
    name = "segmentation.0.weight"
    expected = {"random": initial_tensor(name, plan.shapes[name], "conv", 4), "zero": np.zeros(plan.shapes[name]), "m1": states[0][name]}

    assert np.array_equal(expected[private], values[name])


def test_three_sources(tmp_path):
    """Nothing is special about two."""
    states, diagonals = [], []
    for number in (1, 2, 3):
        states.append(save_source(tmp_path / f"m{number}.safetensors", number))
        diagonals.append(save_fisher(tmp_path / f"m{number}.safetensors", seed=10 + number))
    listed = ", ".join(f"{{name: m{number}, checkpoint: m{number}.safetensors}}" for number in (1, 2, 3))
    loaded = fusing(tmp_path, overrides=[f"sources=[{listed}]"])
    _, values = fused(loaded)
    name = "decoder.0.upsample.conv.weight"
    expected = equation_2([state[name] for state in states], [diagonal[name] for diagonal in diagonals], [1 / 3] * 3)

    np.testing.assert_allclose(expected, values[name], rtol=0, atol=5e-7 * np.abs(expected).max())
