"""Sources and their Fisher diagonals, checked before anything is fused."""

from __future__ import annotations

import numpy as np
import pytest

from mergekit3d.errors import InputError, Problems, RecipeError
from mergekit3d.plan.sources import open_sources
from mergekit3d.recipe import load_recipe
from tests.builders import fusing, metadata_of, random_state, save, save_fisher, save_source, spec_of, task_of, two_sources, write_recipe


def refusal(loaded, *, with_fisher=True):
    """What opening the sources is answered with."""
    with pytest.raises(InputError) as caught:
        open_sources(loaded, with_fisher=with_fisher)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    """Two sources with their Fisher diagonals."""
    two_sources(tmp_path)
    return tmp_path


def test_sources_with_all_that_is_known_of_them(folder):
    """Weights, Fisher diagonal, network and task, in the order of the recipe."""
    m1, m2 = open_sources(fusing(folder), with_fisher=True)

    assert ("m1", "m2") == (m1.name, m2.name)
    assert (spec_of(), task_of()) == (m1.network, m2.task)
    assert "fisher" == m1.fisher.metadata.kind
    assert m1.fisher.metadata.provenance["checkpoint"] == m1.checkpoint.digest


@pytest.mark.parametrize(
    ("target", "expected"),
    [("{data: hcp, modalities: [t2, t1], regions: {csf: 24}}", ("t2", "t1")), ("{data: hcp, regions: {csf: 24}}", None), ("null", None)],
    ids=["told", "without modalities", "untold"],
)
def test_task_of_a_bare_state_dict_is_that_of_the_recipe(tmp_path, target, expected):
    """MONAI's usual file says nothing of its channels; where the recipe does, they meet those of the target by name."""
    import torch

    torch.save({name: torch.from_numpy(values) for name, values in random_state(spec_of()).items()}, tmp_path / "m1.pt")
    sources = f"[{{name: m1, checkpoint: m1.pt, target: {target}}}]"
    recipe = write_recipe(tmp_path, f"version: 1\nsources: {sources}\n")
    [source] = open_sources(load_recipe(recipe), with_fisher=False)

    assert expected == (None if source.task is None else source.task.modalities)


def test_fisher_is_not_asked_for_without_need(tmp_path):
    """A plain average does without."""
    for name in ("m1", "m2"):
        save_source(tmp_path / f"{name}.safetensors")

    assert [None, None] == [source.fisher for source in open_sources(fusing(tmp_path), with_fisher=False)]


def test_missing_fisher_tells_the_command(folder):
    """That makes it."""
    (folder / "m2.fisher.safetensors").unlink()

    path = folder / "m2.fisher.safetensors"
    told = f"no Fisher diagonal: source 'm2': {path}; run: mergekit3d fisher m2.safetensors --data <its data set>"
    assert told == refusal(fusing(folder))


def test_fisher_of_other_weights(folder):
    """Its checkpoint has been trained again since."""
    save_source(folder / "m2.safetensors", seed=7)

    told = refusal(fusing(folder))
    assert told.startswith(f"the Fisher diagonal is of other weights: {folder}/m2.fisher.safetensors: wanted of m2.safetensors (")
    assert told.endswith("; run: mergekit3d fisher m2.safetensors --data <its data set> --force")


@pytest.mark.parametrize(("value", "told"), [(np.nan, "values that are not finite"), (-1e-12, "a Fisher diagonal cannot be negative")])
def test_fisher_that_cannot_be(folder, value, told):
    """NaN would poison every weight; a square is not negative."""
    values = {name: np.ones_like(array) for name, array in random_state(spec_of()).items()}
    values["encoder.1.input.conv.weight"].flat[3] = value
    save_fisher(folder / "m2.safetensors", values=values)

    text = refusal(fusing(folder))
    assert text.startswith(told)
    assert "encoder.1.input.conv.weight" in text


@pytest.mark.parametrize(
    ("found", "change"),
    [("found none", None), ("found [5]", np.ones(5, np.float32))],
)
def test_fisher_of_other_tensors(folder, found, change):
    """A published file without provenance is compared by its shapes."""
    values = {name: np.ones_like(array) for name, array in random_state(spec_of()).items()}
    del values["encoder.1.input.conv.bias"]
    if change is not None:
        values["encoder.1.input.conv.bias"] = change
    save(folder / "m2.fisher.safetensors", values, metadata_of(kind="fisher"))

    path = folder / "m2.fisher.safetensors"
    told = f"the Fisher diagonal does not fit the checkpoint: {path}: wanted encoder.1.input.conv.bias [4], {found}"
    assert told == refusal(fusing(folder))


def test_running_statistics_need_no_fisher(tmp_path):
    """They are no weights."""
    state = {"conv.weight": np.ones((1, 1, 1, 1, 1), np.float32), "batch.running_mean": np.ones(1, np.float32)}
    for name in ("m1", "m2"):
        save(tmp_path / f"{name}.safetensors", state)
        save(tmp_path / f"{name}.fisher.safetensors", {"conv.weight": state["conv.weight"]}, metadata_of(kind="fisher"))

    assert 2 == len(open_sources(fusing(tmp_path), with_fisher=True))


def test_fisher_in_place_of_a_checkpoint(folder):
    """Is told as such."""
    loaded = fusing(folder, overrides=["sources.m1.checkpoint=m1.fisher.safetensors"])

    assert f"a Fisher diagonal stands where a checkpoint is wanted: {folder}/m1.fisher.safetensors" == refusal(loaded, with_fisher=False)


def test_weights_that_are_not_finite(folder):
    """Are named with their number."""
    state = random_state(spec_of())
    state["segmentation.0.bias"][:2] = np.inf
    save_source(folder / "m1.safetensors", state=state)

    assert "found 2 NaN or Inf in segmentation.0.bias" in refusal(fusing(folder), with_fisher=False)


def test_sources_of_different_networks(folder):
    """Names that differ are counted, the first is told."""
    save_source(folder / "m2.safetensors", spec=spec_of(segmentation_levels=1))

    wanted = f"wanted the {len(random_state(spec_of()))} tensors of 'm1', found no segmentation.1.weight (2 names differ)"
    told = f"the sources are of different networks: {folder}/m2.safetensors: {wanted}"
    assert f"{told}; fuse checkpoints of one architecture, each trained from the one before" == refusal(fusing(folder), with_fisher=False)


def test_all_problems_of_all_sources_at_once(folder):
    """One line each."""
    (folder / "m1.fisher.safetensors").unlink()
    (folder / "m2.safetensors").write_bytes(b"damaged")
    with pytest.raises(Problems) as caught:
        open_sources(fusing(folder), with_fisher=True)

    assert ["no Fisher diagonal", "not a checkpoint"] == [line.split(":")[0] for line in str(caught.value).splitlines()]
    assert 65 == caught.value.exit_code


def test_recipe_without_sources(tmp_path):
    """Has nothing to fuse."""
    path = write_recipe(tmp_path, "version: 1")
    with pytest.raises(RecipeError) as caught:
        open_sources(load_recipe(path), with_fisher=False)
    assert f"the recipe has no sources: {path}; list the checkpoints to fuse under sources" == str(caught.value)
