"""The recipes that are shipped: each loads, and each is planned on real files."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from mergekit3d.architectures import NetworkSpec, build_network
from mergekit3d.checkpoints import CHECKPOINT, FISHER, Metadata, TaskSpec, open_checkpoint, save_tensors
from mergekit3d.datasets.labels import output_set
from mergekit3d.options import DEFAULT_OPTIONS
from mergekit3d.plan.fusion import plan_fusion
from mergekit3d.plan.target import open_cohort
from mergekit3d.plan.whole import check_whole
from mergekit3d.progress import SILENT
from mergekit3d.recipe import load_recipe
from mergekit3d.study import Study

RECIPES = Path(str(files("mergekit3d_recipes")))
NAMES = sorted(str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*.yaml"))
SMALL = "{train: 1, validation: 1, test: 1, seed: 0}"
SKIPPED = "{skip: 2, train: 1, validation: 1, test: 1, seed: 0}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[[Path], Path]) -> Path:
    """Subjects in HCP and BraTS layouts, and two sources with their Fisher diagonals."""
    root = make_data(tmp_path_factory.mktemp("recipes"))
    for name in ("m1", "m2"):
        task = TaskSpec(("t1", "t2"), output_set("hcp-1-7" if name == "m1" else "hcp-8-14"))
        spec = NetworkSpec("isensee2017", 2, 7, {"base_filters": 2, "depth": 3})
        tensors = build_network(spec).state_dict()
        path = root / f"{name}.safetensors"
        save_tensors(path, tensors, Metadata(CHECKPOINT, spec.as_json(), task))
        provenance = {"checkpoint": open_checkpoint(path).digest}
        save_tensors(
            root / f"{name}.fisher.safetensors",
            {key: torch.ones_like(value) for key, value in tensors.items()},
            Metadata(FISHER, provenance=provenance),
        )
    return root


def test_every_recipe_of_the_issue_is_there() -> None:
    """Sources, both merges, the whole transfer, the demo, and the paper's experiment."""
    assert {
        "m1.yaml",
        "m2.yaml",
        "imm.yaml",
        "timm.yaml",
        "transfer.yaml",
        "demo.yaml",
        "sequential.yaml",
        "near.yaml",
        "paper/timm2019.yaml",
        "paper/small.yaml",
    } <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_loads(name: str) -> None:
    """Every key is known and every value fits."""
    assert 1 == load_recipe(RECIPES / name).recipe.version


@pytest.mark.parametrize(("name", "split"), [("m1.yaml", SMALL), ("m2.yaml", SKIPPED)])
def test_sources_are_planned(name: str, split: str, data: Path) -> None:
    """Data are found, and subjects split as the recipe says."""
    overrides = [f"target.data={data / 'hcp'}", f"target.split={split}", f"train.init={data / 'm1.safetensors'}"]
    loaded = load_recipe(RECIPES / name, overrides=overrides)
    cohort = open_cohort(loaded, loaded.recipe.target)

    check_whole(loaded)
    assert (1, 1, 1) == (len(cohort.split.train), len(cohort.split.validation), len(cohort.split.test))
    assert 7 == len(cohort.task.outputs)


@pytest.mark.parametrize(("name", "method"), [("imm.yaml", "imm"), ("timm.yaml", "timm")])
def test_merges_are_planned(name: str, method: str, data: Path) -> None:
    """Shared tensors are fused, the first convolution is expanded by modality, heads and norms are new."""
    overrides = [f"sources.{source}.checkpoint={data / f'{source}.safetensors'}" for source in ("m1", "m2")]
    loaded = load_recipe(RECIPES / name, overrides=[*overrides, "merge.ratios=uniform", f"target.data={data / 'brats'}"])
    plan = plan_fusion(loaded)
    outcomes = {tensor.entry.name: tensor.outcome for tensor in plan.tensors}

    assert method == plan.method.name
    assert "fused" == outcomes["encoder.1.input.conv.weight"]
    assert "expanded" == outcomes["encoder.0.input.conv.weight"]
    assert "random" == outcomes["segmentation.0.weight"]
    assert "random" == outcomes["encoder.0.input.norm.weight"]


def test_joint_baselines_of_the_paper_start_at_8_percent_alone() -> None:
    """As in its Table 2; the other five start at every size."""
    recipe = load_recipe(RECIPES / "paper/timm2019.yaml")
    by_size: dict[str, list[str]] = {}
    for arm in Study(recipe, DEFAULT_OPTIONS, SILENT).arms:
        by_size.setdefault(arm.size, []).append(arm.initialisation)
    five = ["none", "m1", "m2", "imm", "timm"]

    assert {"4 %": five, "8 %": [*five, "joint-1-14", "joint-1-7", "joint-8-14"], "100 %": five} == by_size


@pytest.mark.parametrize(
    ("name", "splits", "first", "last"),
    [
        ("transfer.yaml", ["target"], "train m1", "evaluate timm seed 0"),
        ("demo.yaml", ["target"], "train m1", "forgetting seed 0"),
        ("sequential.yaml", ["sources.m3.target"], "train m1", "forgetting seed 0"),
        ("paper/small.yaml", ["study.sizes.4 subjects", "study.sizes.16 subjects"], "train m1", "forgetting at 16 subjects seed 4"),
        ("paper/timm2019.yaml", ["study.sizes.4 %", "study.sizes.8 %", "study.sizes.100 %"], "train m1", "forgetting at 100 % seed 0"),
    ],
)
def test_whole_recipes_are_planned(name: str, splits: list[str], first: str, last: str, data: Path) -> None:
    """All steps are known, in the order of their inputs, before the first one runs."""
    overrides = [
        f"data.hcp={data / 'hcp'}",
        f"data.brats={data / 'brats'}",
        f"sources.m1.target.split={SMALL}",
        f"sources.m2.target.split={SKIPPED}",
    ]
    overrides += [f"{split}.split={SMALL}" if split.endswith("target") else f"{split}={SMALL}" for split in splits]
    if "timm2019" in name:
        overrides += [f"baselines.{joint}.target.split={SMALL}" for joint in ("joint-1-14", "joint-1-7", "joint-8-14")]
    loaded = load_recipe(RECIPES / name, overrides=overrides)
    study = Study(loaded, DEFAULT_OPTIONS, SILENT)

    check_whole(loaded)
    study.check()
    names = [step.name for step in study.steps()]
    assert (first, last) == (names[0], names[-1])
    assert len(set(names)) == len(names)
