"""`inspect`: what checkpoints hold, what of several can be fused, and the plan of a recipe."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mergekit3d import inspect
from mergekit3d.architectures import network_shapes
from mergekit3d.engine import correspondence
from mergekit3d.engine.correspondence import warnings_on
from mergekit3d.errors import InputError, Problems, UsageError
from mergekit3d.verbs import inspect_plan, inspect_several
from tests.builders import fusing, metadata_of, random_state, save, save_fisher, save_source, spec_of, task_of, two_sources, write_recipe

HOSTILE = ["a\x1b[31mred\nline.weight", "[bold]b[/bold].weight", "\u202ec\u2066.weight", "d" * 10_000 + ".weight", "脳" * 300 + ".weight"]


@pytest.fixture
def checkpoint(tmp_path):
    """A source, and its path."""
    save_source(tmp_path / "m1.safetensors")
    return tmp_path / "m1.safetensors"


def row_of(result, name):
    """The line that begins with a name, as its words."""
    return next(line for line in result.lines() if line.startswith(f"{name} ")).split()


def fusing_recipe(folder, merge):
    return fusing(folder, merge).path


def test_one_path_without_a_list(checkpoint):
    """From Python, a path or its text stands for a list of one; a recipe needs no list at all."""
    assert inspect([checkpoint]) == inspect(checkpoint) == inspect(str(checkpoint))
    with pytest.raises(UsageError, match="nothing to inspect"):
        inspect()


def test_one_checkpoint(checkpoint):
    """Network, task, parameters by partition, and every tensor."""
    result = inspect([checkpoint])
    content = result.as_json()
    sizes = {name: int(np.prod(shape)) for name, shape in network_shapes(spec_of()).items()}
    shared = sum(size for name, size in sizes.items() if ".conv." in name)

    assert spec_of().as_json() == content["architecture"]
    assert ("m1.safetensors", "safetensors", "checkpoint", 32) == tuple(content[key] for key in ("file", "format", "kind", "layers"))
    assert checkpoint.stat().st_size == content["bytes"]
    assert {"shared": shared, "private": sum(sizes.values()) - shared} == content["parameters"]
    assert ["kind:norm", "segmentation.*"] == content["private"]
    assert list(sizes) == [row["name"] for row in content["tensors"]]
    json.dumps(content)
    assert [
        f"{checkpoint}: {checkpoint.stat().st_size:,} bytes, safetensors, checkpoint",
        "  network     isensee2017, 2 inputs, 3 outputs, base_filters 2, depth 3, segmentation_levels 2",
        "  tensors     64 (F32) in 32 layers",
        f"  parameters  {shared:,} shared, {sum(sizes.values()) - shared} private (kind:norm, segmentation.*)",
        "  task        t1 + t2 to csf, thalamus, pallidum; zscore",
        "  made by     train",
        "",
    ] == result.lines()[:7]


def test_table_has_a_row_a_layer(checkpoint):
    """Kind, shapes, dtype, parameters and partition."""
    result = inspect([checkpoint])

    assert ["layer", "kind", "weight", "bias", "dtype", "parameters", "partition"] == result.lines()[7].split()
    assert ["encoder.0.input.conv", "conv", "2×2×3×3×3", "2", "F32", "110", "shared"] == row_of(result, "encoder.0.input.conv")
    assert ["encoder.0.input.norm", "norm", "2", "2", "F32", "4", "private"] == row_of(result, "encoder.0.input.norm")
    assert 8 + 32 == len(result.lines())


def test_provenance_is_a_short_tree(tmp_path):
    """A line a source, digests by their first digits, no more than a few of many items."""
    digest = "0123456789abcdef" * 4
    provenance = {
        "sources": [{"name": "m1", "checkpoint": digest, "fisher": None}, {"name": "m2", "checkpoint": digest, "fisher": digest}],
        "ratios": digest,
        "seed": 3,
        "zero": [f"bias{number}" for number in range(9)],
        "trace": {"a": 0.123456789, "b": {"c": 1}},
        "adapted": None,
    }
    save(tmp_path / "fused.safetensors", {"x": np.ones(1)}, metadata_of(method="timm", provenance=provenance, tool={"name": "mergekit3d"}))

    assert [
        "  made by     timm, mergekit3d",
        "  ratios      0123456789ab",
        "  seed        3",
        "  sources     m1: checkpoint 0123456789ab",
        "              m2: checkpoint 0123456789ab, fisher 0123456789ab",
        "  trace       a 0.123457, b (1)",
        "  zero        bias0, bias1, bias2, bias3, bias4, bias5 and 3 more",
    ] == [line for line in inspect([tmp_path / "fused.safetensors"]).lines()[4:] if line.startswith("  ")]


def test_bare_checkpoint_of_an_unknown_network(tmp_path):
    """Is shown all the same."""
    torch.save({"a.weight": torch.ones(2, 3), "n": torch.tensor(1)}, tmp_path / "m1.pt")
    result = inspect([tmp_path / "m1.pt"])

    assert result.as_json()["architecture"] is None
    assert result.lines()[0].endswith("bytes, pt, not written by mergekit3d")
    assert ["  network     unknown", "  tensors     2 (1 F32, 1 I64) in 2 layers"] == result.lines()[1:3]
    assert ["n", "other", "scalar", "I64", "shared"] == row_of(result, "n")


def test_checkpoint_without_tensors(tmp_path):
    """Alone and beside another."""
    save(tmp_path / "m1.safetensors", {})

    assert "  tensors     none in 0 layers" == inspect([tmp_path / "m1.safetensors"], values=True).lines()[2]
    assert "0 tensors: nothing to fuse" == inspect([tmp_path / "m1.safetensors"] * 2, values=True).lines()[-1]


def test_network_told_from_its_tensors(tmp_path):
    """Is marked as such."""
    torch.save({name: torch.from_numpy(values) for name, values in random_state(spec_of()).items()}, tmp_path / "m1.pt")
    result = inspect([tmp_path / "m1.pt"])

    assert "tensors" == result.as_json()["architecture_from"]
    assert result.lines()[1].endswith("segmentation_levels 2 (told from its tensors)")


def test_import_path_of_a_checkpoint_is_not_followed(tmp_path):
    """Its metadata may name any module; nothing is imported to look at it."""
    metadata = metadata_of(spec_of(1, 2, a=1).__class__("no.such.Network", 1, 2))
    save(tmp_path / "m1.safetensors", {"a.weight": np.ones((2, 1, 3, 3, 3)), "b.weight": np.ones((2, 2, 1, 1, 1))}, metadata)

    assert ["shared", "private"] == [row["partition"] for row in inspect([tmp_path / "m1.safetensors"]).as_json()["tensors"]]


def test_aliases_are_counted_once(tmp_path):
    """A layer that is a further name of another says of which; buffers are no parameters."""
    weight, bias = torch.ones(2, 2, 3, 3, 3), torch.ones(2)
    state = {
        "a.weight": weight,
        "a.bias": bias,
        "again.a.weight": weight,
        "again.a.bias": bias,
        "b.weight": weight,
        "b.bias": torch.ones(2),
    }
    norm = {"n.weight": torch.ones(2), "n.bias": torch.ones(2), "n.running_mean": torch.ones(2), "n.num_batches_tracked": torch.tensor(1)}
    torch.save({**state, **norm}, tmp_path / "m1.pt")
    result = inspect([tmp_path / "m1.pt"])
    content = result.as_json()

    assert (7, 2) == (content["distinct_tensors"], content["buffers"])
    assert 108 + 2 + 2 + 4 == sum(content["parameters"].values())
    assert "  tensors     7 (6 F32, 1 I64) under 10 names in 3 layers" == result.lines()[2]
    assert ["again.a", "=", "a"] == row_of(result, "again.a")
    assert ["b", "conv", "2×2×3×3×3", "2", "F32", "2", "shared+private", "weight", "=", "a.weight"] == row_of(result, "b")
    assert ["n", "norm", "2", "2", "2", "buffers", "F32", "4", "private"] == row_of(result, "n")
    assert {"again.a.weight": "a.weight", "again.a.bias": "a.bias", "b.weight": "a.weight"} == {
        row["name"]: row["alias_of"] for row in content["tensors"] if row["alias_of"]
    }


def test_values_are_looked_at_where_asked(tmp_path):
    """NaN and Inf by tensor, ranges, and the seal."""
    state = random_state(spec_of())
    state["segmentation.0.bias"][:2] = [np.nan, np.inf]
    state["segmentation.1.bias"][:] = [-3, 0, 4]
    path = tmp_path / "m1.safetensors"
    save_source(path, state=state)

    assert "not_finite" not in inspect([path]).as_json()
    result = inspect([path], values=True)
    content = result.as_json()
    figures = next(row for row in content["tensors"] if row["name"] == "segmentation.1.bias")
    assert [{"name": "segmentation.0.bias", "count": 2}] == content["not_finite"]
    assert "intact" == content["seal"]
    assert (-3, 4, 0, 0) == tuple(figures[key] for key in ("min", "max", "nan", "inf"))
    np.testing.assert_allclose([7 / 3, (25 / 3) ** 0.5], [figures["mean_abs"], figures["rms"]])
    assert ["  seal        intact", "  not finite  2 NaN or Inf in segmentation.0.bias"] == result.lines()[6:8]
    assert "2" == row_of(result, "segmentation.0")[-1]

    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    inspect([path])
    with pytest.raises(InputError, match="the file is damaged"):
        inspect([path], values=True)


def test_tensors_without_finite_values(tmp_path):
    """Nothing but NaN, or nothing at all."""
    save(tmp_path / "m1.safetensors", {"a.weight": np.full((2, 2), np.nan), "b.weight": np.ones((0, 3))})
    tensors = inspect([tmp_path / "m1.safetensors"], values=True).as_json()["tensors"]

    assert [(None, None, 4), (None, None, 0)] == [(row["min"], row["rms"], row["nan"]) for row in tensors]


def test_fisher_diagonal(checkpoint):
    """Is told as what it is, with the digest of its checkpoint."""
    save_fisher(checkpoint)
    result = inspect([checkpoint.with_name("m1.fisher.safetensors")])

    assert result.lines()[0].endswith("bytes, safetensors, fisher")
    assert any(line.startswith("  checkpoint  ") for line in result.lines())


def test_several_checkpoints_are_compared(tmp_path):
    """What can be fused, and why the rest cannot."""
    save_source(tmp_path / "m1.safetensors")
    save_source(tmp_path / "m2.safetensors", spec=spec_of(4, 3), task=task_of(("t1", "t1ce", "t2", "flair")))
    result = inspect([tmp_path / "m1.safetensors", tmp_path / "m2.safetensors"])
    refused = [row for row in result.as_json()["fusible"] if not row["fusible"]]
    remark = "modalities differ (t1 + t2 / t1 + t1ce + t2 + flair): matched by name for a target"

    assert [("encoder.0.input.conv.weight", "refused", "shapes differ", remark)] == [
        (row["name"], row["outcome"], row["reason"], row["remark"]) for row in refused
    ]
    assert {"fusible": 29, "private": 34, "refused": 1} == result.as_json()["outcomes"]
    assert [
        "64 tensors: 29 can be fused, 34 private by default, 1 cannot be fused",
        "",
        "cannot be fused:",
        "tensors  the first                    why",
        f"      1  encoder.0.input.conv.weight  shapes differ: 2×2×3×3×3 / 2×4×3×3×3; {remark}",
    ] == [line for line in result.lines()[2:] if "cosine" not in line]


def test_heads_that_differ_are_no_obstacle(tmp_path):
    """They are private by default; still they are told."""
    save_source(tmp_path / "m1.safetensors")
    save_source(tmp_path / "m2.safetensors", spec=spec_of(2, 1), task=task_of(outputs={"WT": (1, 2, 4)}))
    rows = inspect([tmp_path / "m1.safetensors", tmp_path / "m2.safetensors"]).as_json()["fusible"]

    assert {("segmentation.0.weight", "private"), ("segmentation.0.bias", "private")} <= {
        (row["name"], row["outcome"]) for row in rows if row["reason"] == "shapes differ"
    }
    assert "refused" not in {row["outcome"] for row in rows}


def test_reasons_and_remarks(tmp_path):
    """Missing tensors, integer buffers, dtypes."""
    first = {"x.weight": np.ones((2, 2)), "y": np.ones(1), "n": np.array(1), "m": np.array(1), "only": np.ones(1), "i": np.ones(1)}
    second = {"x.weight": np.ones((2, 2), np.float16), "y": np.ones(1), "n": np.array(1), "m": np.array(2), "i": np.array([1])}
    save(tmp_path / "a.safetensors", first)
    save(tmp_path / "b.safetensors", second)
    rows = {row["name"]: row for row in inspect([tmp_path / "a.safetensors", tmp_path / "b.safetensors"]).as_json()["fusible"]}

    assert {
        "x.weight": None,
        "y": None,
        "n": "an integer buffer: equal",
        "m": "an integer buffer: differs",
        "only": "missing in b.safetensors",
        "i": "integer in some, float in others (F64 / I64)",
    } == {name: row["reason"] for name, row in rows.items()}
    assert "dtypes differ (F64 / F16): fused as F64" == rows["x.weight"]["remark"]
    assert (True, False, False) == tuple(rows[name]["fusible"] for name in ("x.weight", "n", "only"))


def test_rows_of_one_reason_stand_together(tmp_path):
    """One screen tells, whatever the number of tensors."""
    save(tmp_path / "a.safetensors", {f"layer{number}.weight": np.ones((2, 2)) for number in range(200)})
    save(tmp_path / "b.safetensors", {"other.weight": np.ones((2, 2))})
    lines = inspect([tmp_path / "a.safetensors", tmp_path / "b.safetensors"]).lines()

    assert "201 tensors: 201 cannot be fused" in lines
    assert "    200  layer0.weight  missing in b.safetensors" in lines
    assert len(lines) < 10


def test_aliases_of_several(tmp_path):
    """Counted once where they are aliases in all files; else it is said in which."""
    weight, other = torch.ones(2, 2), torch.ones(2, 2)
    torch.save({"a.weight": weight, "b.weight": weight, "c.weight": weight}, tmp_path / "m1.pt")
    torch.save({"a.weight": other, "b.weight": other, "c.weight": torch.ones(2, 2)}, tmp_path / "m2.pt")
    result = inspect([tmp_path / "m1.pt", tmp_path / "m2.pt"])
    rows = {row["name"]: row for row in result.as_json()["fusible"]}

    assert [None, "a.weight", None] == [row["alias_of"] for row in rows.values()]
    assert "an alias in m1.pt alone" == rows["c.weight"]["remark"]
    assert any(line.startswith("2 tensors (under 3 names): ") for line in result.lines())


def test_files_of_one_name_are_called_by_their_paths(tmp_path):
    """Or nobody could tell which lacks a tensor."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "m.safetensors", {"x": np.ones(1), **({"y": np.ones(1)} if folder == "one" else {})})
    rows = inspect([tmp_path / folder / "m.safetensors" for folder in ("one", "two")]).as_json()["fusible"]

    assert f"missing in {tmp_path}/two/m.safetensors" == rows[1]["reason"]


def test_cosine_tells_networks_that_were_trained_apart(tmp_path):
    """Over convolutions and linear weights: norms are alike in all networks."""
    state = random_state(spec_of(), 1)
    save_source(tmp_path / "m1.safetensors", state=state)
    save_source(tmp_path / "m2.safetensors", state={name: -2 * values if "norm" in name else 2 * values for name, values in state.items()})
    save_source(tmp_path / "m3.safetensors", seed=9)
    result = inspect([tmp_path / f"m{number}.safetensors" for number in (1, 2, 3)], values=True)
    told = result.as_json()["cosines"]
    warning = warnings_on({"m3.safetensors": told[1]["cosine"]}, "m1.safetensors")

    np.testing.assert_allclose(1, told[0]["cosine"])
    assert abs(told[1]["cosine"]) < 0.1
    assert [False, False] == [row["sampled"] for row in told]
    assert "cosine of the weights of m2.safetensors to those of m1.safetensors: 1.000" in result.lines()
    assert warning == result.as_json()["warnings"]
    assert [f"warning: {line}" for line in warning] == [line for line in result.lines() if line.startswith("warning: ")]


def test_cosine_is_of_samples_unless_values_are_asked_for(tmp_path):
    """The first entries of every weight tell enough, as they do for `fuse`; in small files they are all."""
    assert (correspondence.SAMPLE_ENTRIES, correspondence.LOWEST_COSINE) == (inspect_several.SAMPLE_ENTRIES, inspect_several.LOWEST_COSINE)
    weights = np.ones((3, 4096), np.float32)
    save(tmp_path / "m1.safetensors", {"a.weight": weights, "b.weight": np.ones((2, 2), np.float32)})
    weights[1:] = -1
    save(tmp_path / "m2.safetensors", {"a.weight": weights, "b.weight": np.ones((2, 2), np.float16)})
    paths = [tmp_path / f"m{number}.safetensors" for number in (1, 2)]
    sampled, exact = (inspect(paths, values=values).as_json()["cosines"][0] for values in (False, True))

    assert (1.0, True) == (sampled["cosine"], sampled["sampled"])
    np.testing.assert_allclose((4 - 4096) / (4 + 3 * 4096), exact["cosine"])
    assert any(line.endswith(": 1.000 (sampled; --values takes all entries)") for line in inspect(paths).lines())


@pytest.mark.parametrize("values", [False, True])
def test_cosine_beside_another_network(tmp_path, values):
    """Is of the weights that two files share, whatever a third one lacks."""
    save_source(tmp_path / "m1.safetensors")
    save_source(tmp_path / "m2.safetensors")
    save(tmp_path / "m3.safetensors", {"x.weight": np.ones((2, 2))})
    result = inspect([tmp_path / f"m{number}.safetensors" for number in (1, 2, 3)], values=values)
    told = [row["cosine"] for row in result.as_json()["cosines"]]

    np.testing.assert_allclose(1, told[0])
    assert told[1] is None


def test_table_with_values_keeps_names_on_a_narrow_terminal(checkpoint):
    """What is told elsewhere gives way first: bias, dtype, kind and partition."""
    lines = inspect([checkpoint], values=True).fitted(80)
    heading = next(line for line in lines if line.startswith("layer"))

    assert ["layer", "weight", "parameters", "min", "max", "rms"] == heading.split()
    assert all(len(line) <= 80 for line in lines[lines.index(heading) :])
    assert any(line.startswith("encoder.0.input.conv ") for line in lines)


def test_fisher_diagonal_among_checkpoints(checkpoint):
    """Has the same names and shapes; it is warned about."""
    save_fisher(checkpoint)
    result = inspect([checkpoint, checkpoint.with_name("m1.fisher.safetensors")])

    assert "m1.fisher.safetensors is a Fisher diagonal, no weights" in result.as_json()["warnings"]


def test_cosine_of_weights_without_one(tmp_path):
    """All zero, or not finite: none is told."""
    for name, values in (("a", np.ones((2, 2))), ("b", np.zeros((2, 2))), ("c", np.full((2, 2), np.nan))):
        save(tmp_path / f"{name}.safetensors", {"x.weight": values})
    for values in (False, True):
        result = inspect([tmp_path / f"{name}.safetensors" for name in "abc"], values=values)
        assert [None, None] == [row["cosine"] for row in result.as_json()["cosines"]]


@pytest.mark.parametrize("width", [None, 200, 80, 40])
def test_hostile_names_are_printed_safely(tmp_path, width):
    """No escape reaches the terminal, and every tensor has its one line, within the width."""
    metadata = metadata_of(method="\x1b]0;title\7", provenance={"\x1b[2J" * 100: "\n" * 10_000}, tool={"name": "[red]", "version": "\r"})
    save(tmp_path / "m1.safetensors", {name: np.ones((1, 1)) for name in HOSTILE}, metadata)
    save(tmp_path / "m2.safetensors", {"x": np.ones(1)}, metadata)
    one = inspect([tmp_path / "m1.safetensors"])
    several = inspect([tmp_path / "m1.safetensors", tmp_path / "m2.safetensors"])
    lines = [line for result in (one, several) for line in (result.lines() if width is None else result.fitted(width))]

    assert all(line.isprintable() for line in lines)
    assert max(map(len, lines)) <= 400
    assert len(HOSTILE) + 1 == len(one.lines()) - one.lines().index("") - 1
    if width is not None:
        assert max(map(len, one.fitted(width)[one.lines().index("") :])) <= width
    if width != 40:
        assert any("[bold]b[/bold]" in line for line in lines)
    assert json.dumps(one.as_json()).isprintable()


def test_plan_of_a_recipe(tmp_path):
    """Without running it."""
    two_sources(tmp_path)
    sources = "[{name: m1, checkpoint: m1.safetensors}, {name: m2, checkpoint: m2.safetensors}]"
    path = write_recipe(
        tmp_path, f"version: 1\nsources: {sources}\nmerge: {{method: imm}}\ntarget: {{data: x, modalities: [t1], regions: brats}}"
    )
    result = inspect([], recipe=path)
    content = result.as_json()

    files = [tmp_path / f"{name}{suffix}.safetensors" for name in ("m1", "m2") for suffix in ("", ".fisher")]
    to_read, to_write = (content[key] for key in ("bytes_to_read", "bytes_to_write"))
    assert sum(file.stat().st_size for file in files) == to_read
    assert sum(int(np.prod(shape)) * 4 for shape in network_shapes(spec_of(1, 3)).values()) == to_write
    assert {"fused", "expanded", "random"} == set(content["outcomes"])
    assert [0.5, 0.5] == content["tensors"][0]["ratios"]
    assert ["imm of m1, m2: 64 tensors", f"  reads {to_read:,} bytes, writes {to_write:,}"] == result.lines()[:2]
    assert result.lines()[2].startswith("  expanded: encoder.0.input.conv.weight: [2, 2, 3, 3, 3] / [2, 2, 3, 3, 3] in the sources, ")
    assert ["expanded", "shared", "1", "54"] == row_of(result, "expanded")
    assert ["encoder.0.input.conv.weight", "expanded", "2×1×3×3×3", "0.500", "0.500"] == row_of(result, "encoder.0.input.conv.weight")
    assert ["encoder.0.input.norm", "random", "2,", "2"] == row_of(result, "encoder.0.input.norm")
    assert ["encoder.1.input.conv", "fused", "4×2×3×3×3,", "4", "0.500", "0.500"] == row_of(result, "encoder.1.input.conv")
    assert not (tmp_path / "recipe").exists()


def test_plan_warns_of_sources_that_were_trained_apart(tmp_path):
    """As `fuse` would, before anything is computed."""
    two_sources(tmp_path)
    path = fusing_recipe(tmp_path, "{method: imm}")
    warnings = inspect([], recipe=path).as_json()["warnings"]

    assert 1 == len(warnings)
    assert warnings[0].startswith("m2 was not trained from m1, nor m1 from it: the cosine of their weights is ")
    assert f"  warning: {warnings[0]}" in inspect([], recipe=path).lines()


def test_plan_tells_parameters_and_base(tmp_path):
    """And where copied tensors come from; the base is read too, once."""
    two_sources(tmp_path)
    path = fusing_recipe(tmp_path, "{method: ties, base: m1, parameters: {density: 0.25}, private: m2}")
    result = inspect([], recipe=path)
    content = result.as_json()

    assert (0.25, "m1") == (content["parameters"]["density"], content["base"])
    assert sum((tmp_path / f"{name}.safetensors").stat().st_size for name in ("m1", "m2")) == content["bytes_to_read"]
    assert ["  parameters: density 0.25, scale 1", "  differences are taken from m1"] == result.lines()[1:3]
    assert ["encoder.0.input.norm", "copied", "m2"] == row_of(result, "encoder.0.input.norm")[:3]


def test_ratios_of_a_plan_layer_by_layer(tmp_path):
    """A column a source; one for all where there are many sources; the range of a layer's kernels."""
    two_sources(tmp_path)
    path = fusing_recipe(tmp_path, "{method: imm, ratios: {'encoder.*': {m1: 0.3, m2: 0.7}, '*': {m1: 1, m2: 2}}}")
    result = inspect([], recipe=path)
    names = [f"s{number}" for number in range(5)]
    sources = ", ".join(f"{{name: {name}, checkpoint: m{1 + number % 2}.safetensors}}" for number, name in enumerate(names))
    many = inspect([], recipe=write_recipe(tmp_path, f"version: 1\nsources: [{sources}]\nmerge: {{method: linear}}\n"))
    kernels = {"encoder.0.input.conv": [[0.25, 0.5], [0.75, 0.5]]}
    (tmp_path / "r.json").write_text(json.dumps({"sources": ["m1", "m2"], "granularity": "kernel", "layers": kernels}))
    path = fusing_recipe(tmp_path, f"{{method: imm, granularity: kernel, ratios: {tmp_path}/r.json}}")
    by_kernel = inspect([], recipe=path, overrides=['partitions.private=["[!e]*", "encoder.[!0]*", "*norm*", "*context*"]'])

    assert ["0.300", "0.700"] == row_of(result, "encoder.0.input.conv")[-2:]
    assert ["0.333", "0.667"] == row_of(result, "decoder.0.upsample.conv")[-2:]
    assert ["0.200"] * 5 == row_of(many, "encoder.0.input.conv")[-5:]
    assert "0.250 to 0.500  0.500 to 0.750" in next(line for line in by_kernel.lines() if line.startswith("encoder.0.input.conv"))


def test_plan_of_aliases(tmp_path):
    """A tensor with several names has one row; a .pt file holds it once."""
    for name in ("m1", "m2"):
        weight = torch.ones(2, 2, 3, 3, 3)
        torch.save({"a.weight": weight, "b.weight": weight, "c.weight": torch.ones(2, 2, 1, 1, 1)}, tmp_path / f"{name}.pt")
    sizes = []
    for out in ("fused.safetensors", "fused.pt"):
        loaded = fusing(tmp_path, f"{{method: linear, out: {out}}}", suffix=".pt")
        result = inspect([], recipe=loaded.path)
        sizes.append(result.as_json()["bytes_to_write"])

    assert [4 * (108 + 108 + 4), 4 * (108 + 4)] == sizes
    assert "  1 of 3 names are further names of other tensors: merged once, written each" in result.lines()
    assert not any(line.startswith("b") for line in result.lines())


def test_plan_of_a_method_that_chooses_its_sources(tmp_path):
    """Says that the ratios are not the last word."""
    for name in ("m1", "m2"):
        save_source(tmp_path / f"{name}.safetensors")
    target = "target: {data: x, modalities: [t1, t2], regions: hcp-1-7, split: {train: 1, validation: 1}}"
    path = fusing(tmp_path, "{method: greedy-soup, input_channels: match}", f"{target}\npartitions: {{private: ['segmentation.*']}}").path
    result = inspect([], recipe=path)

    assert [inspect_plan.FROM_VALIDATION] == result.as_json()["remarks"]
    assert f"  {inspect_plan.FROM_VALIDATION}" in result.lines()


def test_plan_before_the_adaptation(tmp_path):
    """Shows what it will start from, and says so; ratios of a name of one's own have to be there."""
    two_sources(tmp_path)
    target = "target: {data: x, modalities: [t1, t2], regions: brats, split: {train: 1, validation: 1}}"
    result = inspect([], recipe=fusing(tmp_path, "{method: timm}", target).path)

    assert inspect_plan.UNLEARNED in result.as_json()["remarks"]
    assert f"  {inspect_plan.UNLEARNED}" in result.lines()
    assert [[0.5, 0.5]] == [list(row) for row in {tuple(row) for row in result.as_json()["ratios"]["layers"].values()}]
    with pytest.raises(InputError, match="no mixing ratios: .*own.json; run adapt first, or set merge.ratios: uniform"):
        inspect([], recipe=fusing_recipe(tmp_path, "{method: timm, ratios: own.json}"))


def test_checkpoints_and_a_recipe(tmp_path):
    """Are two questions."""
    with pytest.raises(UsageError, match="inspect takes checkpoints or a recipe, not both"):
        inspect([tmp_path / "m1.pt"], recipe=tmp_path / "r.yaml")


@pytest.mark.parametrize("given", [{"paths": ["m1.pt"]}, {"paths": ["m1.pt", "m2.pt"]}, {"recipe": "r.yaml"}])
def test_names_are_those_of_subjects(given):
    """A checkpoint or recipe has none, and the flag is not passed over in silence."""
    with pytest.raises(UsageError, match="--names is for data: ?wanted one folder or list of subjects"):
        inspect(**given, names=True)


def test_all_unreadable_files_at_once(tmp_path):
    """One line each."""
    with pytest.raises(Problems) as caught:
        inspect([tmp_path / "a.pt", tmp_path / "b.pt"])
    assert [f"no such file: {tmp_path}/{name}.pt" for name in "ab"] == str(caught.value).splitlines()


def test_nothing_to_inspect():
    """Is a usage error."""
    with pytest.raises(UsageError, match="nothing to inspect: ?wanted checkpoints or a recipe"):
        inspect([])
