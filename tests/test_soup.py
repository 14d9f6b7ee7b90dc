"""Greedy soup: sources chosen by their Dice on validation subjects, then averaged whole."""

from __future__ import annotations

import numpy as np
import pytest

from mergekit3d import fuse
from mergekit3d.checkpoints import open_checkpoint
from mergekit3d.errors import RecipeError
from mergekit3d.merging.methods.greedy_soup import greedy_soup
from mergekit3d.options import Options
from tests.builders import random_state, save_source, spec_of, task_of, write_recipe

REGIONS = {"ET": (4,), "TC": (1, 4), "WT": (1, 2, 4)}
MODALITIES = ("t1", "t1ce", "t2", "flair")
RECIPE = """
version: 1
sources: [{name: a, checkpoint: a.safetensors}, {name: b, checkpoint: b.safetensors}, {name: c, checkpoint: c.safetensors}]
merge: {method: greedy-soup}
target: {data: brats, modalities: [t1, t1ce, t2, flair], regions: brats, split: {train: 1, validation: 2, test: 1, seed: 0}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_data):
    """Five tumours, and three networks for them: two near one another, one far away."""
    folder = make_data(tmp_path_factory.mktemp("soup"))
    spec, task = spec_of(4, 3), task_of(MODALITIES, REGIONS)
    base = {name: np.float32(0.3) * values for name, values in random_state(spec, 0).items()}
    for name, scale, seed in (("a", 0.05, 1), ("b", 0.05, 2), ("c", 3.0, 3)):
        state = {key: values + np.float32(scale) * random_state(spec, seed)[key] for key, values in base.items()}
        save_source(folder / f"{name}.safetensors", spec=spec, task=task, state=state)
    write_recipe(folder, RECIPE)
    return folder


def test_sources_are_chosen_by_validation_dice_and_averaged(folder):
    """The choice is that of the scores in the report, and the file is the plain average of the chosen ones, heads and norms too."""
    result = fuse(folder / "recipe.yaml", options=Options(force=True, precision="fp32"))
    scores, names = result.content["validation_dice"], ("a", "b", "c")
    chosen = greedy_soup(3, lambda indices: scores[" + ".join(names[index] for index in indices)])
    fused = open_checkpoint(result.out)

    assert {"a", "b", "c"} < set(scores)
    assert [names[index] for index in chosen] == result.content["soup"]
    for name in fused.entries:
        values = [open_checkpoint(folder / f"{names[index]}.safetensors").read(name).astype(np.float64) for index in chosen]
        np.testing.assert_allclose(np.mean(values, axis=0), fused.read(name), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("told", "override"),
    [
        ("greedy-soup needs validation subjects: target.split; set target.split.validation", "target.split.validation=0"),
        ("greedy-soup evaluates its sources, and this tensor is of none of them: segmentation.0.weight", "target.regions={WT: [1, 2, 4]}"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(folder, told, override):
    """Before any work: nothing to measure on, or heads of another task."""
    with pytest.raises(RecipeError) as caught:
        fuse(folder / "recipe.yaml", overrides=[override], options=Options(force=True))
    assert str(caught.value).startswith(told)
