"""Sequential IMM: tasks one after the other, the merges of all, and what each network still knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mergekit3d.errors import MergeKit3DError
from mergekit3d.options import DEFAULT_OPTIONS
from mergekit3d.progress import SILENT
from mergekit3d.recipe import load_recipe
from mergekit3d.study import Study
from mergekit3d.verbs.run import RunResult, run

RECIPE = Path(str(files("mergekit3d_recipes"))) / "sequential.yaml"
SMALL = "architecture={name: isensee2017, base_filters: 2, depth: 3}"
TRAINING = {"epochs": 2, "steps_per_epoch": 2, "batch_size": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[[Path], Path]) -> Path:
    """Seven subjects, enough for three tasks of two each and one to test."""
    return make_data(tmp_path_factory.mktemp("sequence"))


def overrides(data: Path, *changes: str) -> list[str]:
    """The shipped recipe on these subjects, with a network of base 2 and two epochs a task."""
    small = [SMALL, f"data.hcp={data / 'hcp'}", "fisher.draws=1"]
    for number, name in enumerate(("m1", "m2", "m3")):
        split = f"{{skip: {2 * number}, train: 1, validation: 1, test: 1, seed: 0}}"
        small.append(f"sources.{name}.target.split={split}")
        small += [f"sources.{name}.train.{key}={value}" for key, value in TRAINING.items()]
    return [*small, *changes]


@pytest.fixture(scope="module")
def ran(data: Path) -> RunResult:
    """The shipped recipe after a run."""
    return run(write(data, "sequential"), overrides=overrides(data))


def write(data: Path, name: str) -> Path:
    """The shipped recipe in a folder where it may write."""
    path = data / f"{name}.yaml"
    path.write_text(RECIPE.read_text())
    return path


def test_recipe_trains_a_chain_and_merges_it_both_ways(ran: RunResult) -> None:
    """Three trainings, their Fisher diagonals, mean- and mode-IMM of all three, and the forgetting matrix; nothing is fine-tuned."""
    expected = [f"{verb} {name}" for name in ("m1", "m2", "m3") for verb in ("train", "fisher")]

    assert [*expected, "fuse mean-imm seed 0", "fuse imm seed 0", "forgetting seed 0"] == [step.name for step in ran.steps]
    assert ran.report is not None
    assert "mean of the tasks" in ran.report.read_text()


def test_forgetting_matrix_has_every_network_and_every_task(ran: RunResult) -> None:
    """Rows: the networks along the sequence, then the merges; columns: the tasks, each with its own private tensors."""
    content = json.loads((ran.out / "forgetting.json").read_text())

    assert ["m1", "m2", "m3", "mean-imm", "imm"] == content["networks"]
    assert ["m1", "m2", "m3"] == content["tasks"]
    assert (5, 3) == np.shape(content["dice"])
    assert all(0 <= value <= 1 for row in content["dice"] for value in row)
    assert len({tuple(row) for row in content["dice"]}) > 1


def test_merges_are_those_of_all_three_networks(ran: RunResult) -> None:
    """Mean-IMM is the plain mean of the shared tensors, mode-IMM the mean weighted by the Fisher diagonals, both in float64."""
    name = "encoder.1.context.0.conv.weight"
    thetas, fishers = (
        np.stack([load_file(ran.out / f"{source}/train/best{kind}.safetensors")[name] for source in ("m1", "m2", "m3")]).astype(np.float64)
        for kind in ("", ".fisher")
    )
    mean, mode = (load_file(ran.out / f"{method}/fused.safetensors")[name] for method in ("mean-imm", "imm"))
    informed = fishers.sum(0) > 0

    np.testing.assert_allclose(mean, thetas.mean(0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(mode[informed], ((fishers * thetas).sum(0) / fishers.sum(0))[informed], rtol=0, atol=1e-6)


def test_transfer_holds_the_later_tasks_alone(ran: RunResult) -> None:
    """The first has nothing to hold on to; the log of the others tells the penalty, which leaves the start only with them."""
    logs = [(ran.out / f"{name}/train/log.csv").read_text().splitlines() for name in ("m1", "m2", "m3")]

    assert [False, True, True] == ["penalty" in log[0] for log in logs]
    assert all(float(log[-1].rpartition(",")[2]) > 0 for log in logs[1:])


def test_second_run_does_nothing(ran: RunResult, data: Path) -> None:
    """All steps are up to date."""
    again = run(data / "sequential.yaml", overrides=overrides(data))

    assert not any(step.done for step in again.steps)
    assert ran.report == again.report


def test_ewc_takes_the_fisher_of_the_task_before(ran: RunResult, data: Path) -> None:
    """It is estimated before the next training, also where no merge asks for it; and a new one trains anew."""
    changes = [f"sources.{name}.train.regularise={{strength: 1e-6, by: fisher}}" for name in ("m2", "m3")]
    recipe = write(data, "ewc")
    steps = [step.name for step in run(recipe, overrides=overrides(data, *changes, "study.initialisations=[mean-imm]")).steps]
    assert ["train m1", "fisher m1", "train m2"] == steps[:3]

    done = [step.name for step in run(recipe, overrides=overrides(data, *changes, "study=null", "fisher.draws=2")).steps if step.done]
    assert ["fisher m1", "train m2", "fisher m2", "train m3", "fisher m3"] == done
    assert ran.out != data / "ewc"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("study.initialisations=[imm, timm]", "without a target: imm, mean-imm"),
        ("study.sizes={a: {train: 1}}", "sizes of no target"),
    ],
)
def test_what_needs_a_target_is_refused(data: Path, change: str, text: str) -> None:
    """Before any work."""
    with pytest.raises(MergeKit3DError, match=text):
        run(write(data, "refused"), overrides=overrides(data, change))
    assert not (data / "refused").exists()


def test_misspelt_layers_of_every_training_are_told_before_any_work(data: Path) -> None:
    """Those of the third task too, though its turn would come last."""
    changes = [f"sources.{name}.train.freeze=[encodr.*]" for name in ("m2", "m3")]
    with pytest.raises(MergeKit3DError) as caught:
        run(write(data, "misspelt"), overrides=overrides(data, *changes))

    assert "sources.m2.train.freeze[0]" in str(caught.value)
    assert "sources.m3.train.freeze[0]" in str(caught.value)


def test_an_architecture_that_cannot_be_is_told_once(data: Path) -> None:
    """Not again for each of the three tasks."""
    with pytest.raises(MergeKit3DError) as caught:
        run(write(data, "deep"), overrides=overrides(data, "architecture={name: isensee2017, dept: 3}"))

    assert 1 == len(str(caught.value).splitlines())
    assert "did you mean 'depth'?" in str(caught.value)


def test_unused_study_of_a_sequence_has_no_arms(data: Path) -> None:
    """Without study, a recipe of sources alone trains them and stops there."""
    loaded = load_recipe(write(data, "alone"), overrides=overrides(data, "study=null"))

    assert () == Study(loaded, DEFAULT_OPTIONS, SILENT).arms
