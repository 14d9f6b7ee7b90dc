"""`run`: a whole recipe, and only what is out of date the next time."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mergekit3d import prediction
from mergekit3d.errors import InputError, Problems, RecipeError
from mergekit3d.forgetting_matrix import Builder, Forgetting, forgetting_matrix, measured_forgetting, read_forgetting
from mergekit3d.options import DEFAULT_OPTIONS
from mergekit3d.plan.target import open_cohort
from mergekit3d.progress import SILENT, Reporter, Silent
from mergekit3d.recipe import load_recipe
from mergekit3d.recipe.text import recipe_text
from mergekit3d.steps import subjects_identity
from mergekit3d.study import Study
from mergekit3d.study_forgetting import forgetting_steps
from mergekit3d.study_pictures import write_slices
from mergekit3d.verbs.report import report
from mergekit3d.verbs.run import run

pytestmark = pytest.mark.slow

RECIPE = """
version: 1
name: small
data: {hcp: hcp/, brats: brats/}
architecture: {name: isensee2017, base_filters: 2, depth: 3}
sources:
  - name: m1
    target: {data: hcp, modalities: [t1, t2], regions: hcp-1-7, split: {train: 2, validation: 1, test: 1}}
    train: {init: none, epochs: 1, batch_size: 2}
  - name: m2
    target: {data: hcp, modalities: [t1, t2], regions: hcp-8-14, split: {skip: 3, train: 2, validation: 1, test: 1}}
    train: {init: m1, epochs: 1, batch_size: 2}
merge: {method: timm}
fisher: {draws: 1}
target: {data: brats, modalities: [t1, t1ce, t2, flair], regions: brats, split: {train: 2, validation: 1, test: 2}}
adapt: {epochs: 1, batch_size: 2}
finetune: {epochs: 1, batch_size: 2}
study: {initialisations: [none, timm]}
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[[Path], Path]) -> Path:
    """A folder in which the recipe has run once."""
    root = make_data(tmp_path_factory.mktemp("study"))
    (root / "small.yaml").write_text(RECIPE)
    result = run(root / "small.yaml")
    assert all(step.done for step in result.steps)
    return root


def names_done(root: Path, *overrides: str) -> list[str]:
    """Names of the steps that a run carries out."""
    return [step.name for step in run(root / "small.yaml", overrides=overrides).steps if step.done]


def planned(root: Path, *overrides: str, reporter: Reporter = SILENT) -> Study:
    """The study, before any step."""
    return Study(load_recipe(root / "small.yaml", overrides=overrides), DEFAULT_OPTIONS, reporter)


def test_run_writes_every_result(ran: Path) -> None:
    """Metrics of each arm, the comparison, the forgetting matrix, pictures, and one report."""
    out = ran / "small"
    expected = [
        "none/test/metrics.csv",
        "timm/test/metrics.csv",
        "timm/fused.safetensors",
        "compare.json",
        "forgetting.json",
        "slices.png",
        "report.html",
        *(f"tables/table-{number}.{ending}" for number in (1, 2, 3, 4) for ending in ("csv", "md")),
        *(f"figures/figure-{number}.png" for number in (3, 4, 5)),
    ]

    assert [] == [name for name in expected if not (out / name).is_file()]
    assert ["m1", "m2", "timm"] == json.loads((out / "forgetting.json").read_text())["networks"]


def test_report_tells_no_folder(ran: Path) -> None:
    """The report, and the record that it is made from, carry no absolute path and no name of a subject."""
    text = "".join((ran / "small" / name).read_text() for name in ("report.html", "study.json", "timm/adapt/recipe.yaml"))

    assert str(ran) not in text
    assert "Brats18_X" not in text
    assert not re.search(r"(?<![\w.])10000\d(?!\w)", text)


def test_report_of_the_folder_is_that_of_the_run(ran: Path) -> None:
    """`report RUN` needs neither recipe nor data, and gives the same page to the byte; grids and sizes of the splits are in it."""
    page = report(ran / "small", out=ran / "again.html").out.read_text()

    assert (ran / "small/report.html").read_text() == page
    assert "18 × 20 × 17 voxels of 2 mm" in page


def test_report_shows_the_recipe_as_it_was_carried_out(ran: Path) -> None:
    """What ``--set`` changed stands in it; otherwise the text of the file, comments and all."""
    unchanged = recipe_text(load_recipe(ran / "small.yaml"))
    changed = recipe_text(load_recipe(ran / "small.yaml", overrides=["finetune.epochs=7", f"data.hcp={ran}/hcp"]))

    assert RECIPE == unchanged
    assert "epochs: 7" in changed
    assert str(ran) not in changed


def test_second_run_does_nothing(ran: Path) -> None:
    """Steps whose inputs and results are unchanged are not repeated."""
    before = (ran / "small/timm/finetune/best.safetensors").stat().st_mtime_ns

    assert [] == names_done(ran)
    assert before == (ran / "small/timm/finetune/best.safetensors").stat().st_mtime_ns


def test_tables_follow_a_recipe_that_asks_for_less(ran: Path) -> None:
    """No step is out of date, and yet tables and report are, as after a run that ended before it wrote them."""
    table = ran / "small/tables/table-2.csv"

    assert [] == names_done(ran, "study.initialisations=[none]", "study.forgetting=false")
    assert "T-IMM" not in table.read_text()
    assert [] == names_done(ran)
    assert "T-IMM" in table.read_text()


def test_slices_are_predicted_as_the_evaluation_is(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By windows and mirrors of the recipe's `predict`: whole volumes may not fit into memory, and the Dice above a slice is its own."""
    asked: list[Any] = []
    load = prediction.load_predictor
    monkeypatch.setattr(prediction, "load_predictor", lambda *args, **how: asked.append(how) or load(*args, **how))  # type: ignore[func-returns-value]
    write_slices(planned(ran, "predict.patch_size=[16, 16, 16]").arms, tmp_path / "slices.png", options=DEFAULT_OPTIONS, reporter=SILENT)

    assert [(16, 16, 16)] * 2 == [how["patch_size"] for how in asked]


def test_change_repeats_only_what_depends_on_it(ran: Path) -> None:
    """Another length of the adaptation repeats T-IMM and what follows it, nothing of the sources and of the other arm."""
    done = names_done(ran, "adapt.epochs=2")

    assert "adapt timm seed 0" == done[0]
    assert {"fuse timm seed 0", "finetune timm seed 0", "evaluate timm seed 0"} <= set(done)
    assert not any(name.startswith(("train", "fisher", "finetune none", "evaluate none")) for name in done)


def test_what_sources_and_uniform_merges_know_is_measured_once(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several seeds a step of its own measures the rows that all have; a matrix of each still has all rows, to the same numbers."""
    measured: list[tuple[str, ...]] = []

    def counted(networks: Mapping[str, Builder], *args: Any, **keywords: Any) -> Forgetting:
        measured.append(tuple(networks))
        return measured_forgetting(networks, *args, **keywords)

    monkeypatch.setattr("mergekit3d.forgetting_matrix.measured_forgetting", counted)
    study = planned(ran, "study.seeds=[0,1]", "study.initialisations=[none,imm,mean-imm]")
    steps = list(forgetting_steps(study))
    for step in steps:
        step.action()

    assert ["forgetting of the sources", "forgetting seed 0", "forgetting seed 1"] == [step.name for step in steps]
    assert [("m1", "m2", "imm", "mean-imm")] == measured
    shared, first, second = (json.loads(step.outputs[0].read_text()) for step in steps)
    assert shared == first == second
    merges = [arm.loaded for arm in study.groups()[0] if arm.initialisation != "none"]
    assert shared == forgetting_matrix(study.loaded, merges, options=DEFAULT_OPTIONS, reporter=SILENT).as_json()


def test_rows_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    """Shared rows that were cut end in one line that names the folder."""
    (tmp_path / "forgetting.json").write_text('{"networks": ["a"], "tasks": ["b"], "dice": [[0.5]]}')
    (tmp_path / "forgetting.csv").write_text("network,task,subject,region,dice,hd95\na,b,1,x,0.5\n")

    with pytest.raises(InputError, match="cannot read the forgetting matrix: .*wanted what forgetting writes, found TypeError"):
        read_forgetting(tmp_path)


def test_mean_imm_is_an_initialisation(ran: Path) -> None:
    """It is fused, fine-tuned and tested beside the others, and needs no adaptation."""
    done = names_done(ran, "study.initialisations=[mean-imm]", "study.forgetting=false")

    assert ["fuse mean-imm seed 0", "finetune mean-imm seed 0", "evaluate mean-imm seed 0"] == done


def test_size_may_name_its_own_initialisations(ran: Path) -> None:
    """They stand in for those of the study at that size, as the paper's joint baselines do at 8 %."""
    sizes = "{a: {train: 1, validation: 1, test: 1}, b: {train: 2, validation: 1, test: 1, initialisations: [none, m1]}}"
    study = planned(ran, f"study.sizes={sizes}")

    assert [("a", "none"), ("a", "timm"), ("b", "none"), ("b", "m1")] == [(arm.size, arm.initialisation) for arm in study.arms]


def test_every_size_has_its_subjects_before_any_work(ran: Path) -> None:
    """All sizes that lack some are told together; a study must not find out at its last one."""
    sizes = "{a: {train: 9, test: 1}, b: {train: 1, test: 1}, c: {train: 1, test: 9}}"

    with pytest.raises(Problems, match=r"9 train \+ 1 test = 10(.|\n)*1 train \+ 9 test = 10"):
        planned(ran, f"study.sizes={sizes}").check()


def test_random_start_does_not_depend_on_the_sources(ran: Path) -> None:
    """An arm waits for, and is repeated with, what it starts from alone."""
    steps = {step.name: step for step in planned(ran, "study.initialisations=[none, m2, timm]").steps()}
    origins = {
        init: {path.relative_to(ran / "small").parts[0] for path in steps[f"finetune {init} seed 0"].inputs} for init in ("none", "m2")
    }

    assert {"none": set(), "m2": {"m2"}} == origins
    assert {"m1", "m2"} == {path.relative_to(ran / "small").parts[0] for path in steps["adapt timm seed 0"].inputs}


def test_every_input_that_a_step_waits_for_is_made_by_one_before_it(ran: Path) -> None:
    """So that an order by inputs is an order at all."""
    made: set[Path] = set()
    for step in planned(ran).steps():
        own = {path for path in step.inputs if path.suffix in (".safetensors", ".csv") and "fused" not in path.name}
        assert own <= made
        made |= set(step.outputs)


def test_submission_segments_subjects_of_another_folder(ran: Path) -> None:
    """With each network that is asked for, in the challenge's labels; the next run keeps them."""
    override = "study.submission={data: brats, initialisations: [timm]}"

    assert "submit timm seed 0" in names_done(ran, override)
    assert 5 == len(list((ran / "small/timm/submission").glob("*.nii.gz")))
    assert "submission,0,0,0,5,t1 t1ce t2 flair,\n" in (ran / "small/tables/table-1.csv").read_text()
    assert ["m1", "m2", "target", "submission"] == [task["name"] for task in json.loads((ran / "small/study.json").read_text())["subjects"]]
    assert [] == names_done(ran, override)


def test_submission_without_its_folder_is_left_out_aloud(ran: Path) -> None:
    """Not everyone has an online set; the rest of the study goes on."""
    told: list[str] = []
    reporter = Silent()
    reporter.warn = told.append  # type: ignore[method-assign]
    study = planned(ran, "study.submission={data: nowhere}", reporter=reporter)
    study.check()

    assert "study.submission is left out" in told[0]
    assert not any(step.name.startswith("submit") for step in study.steps())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("study.submission={data: brats, size: 4 %}", "unknown size"),
        ("study.submission={data: brats, initialisations: [imm]}", "no such network to submit"),
        ("study.sizes={a: {train: 1, test: 1, initialisations: [joint]}}", "unknown initialisation"),
        ("study.sizes={'..': {train: 1, test: 1}}", "no folder can have the name of a size"),
        ("study.sizes={4 %: {train: 1, test: 1}, 4 percent: {train: 2, test: 1}}", "two sizes would share one folder"),
    ],
)
def test_names_of_a_study_are_checked(ran: Path, override: str, said: str) -> None:
    """Before any work."""
    with pytest.raises(RecipeError, match=said):
        planned(ran, override).check()


def test_touched_subject_is_out_of_date(ran: Path) -> None:
    """A file of a subject that was written again changes the identity of what is made from it."""
    loaded = load_recipe(ran / "small.yaml")
    subjects = open_cohort(loaded, loaded.recipe.target).dataset.subjects
    before = subjects_identity(subjects)
    label = subjects[0].label
    assert label is not None
    os.utime(label, ns=(0, 0))

    assert before != subjects_identity(subjects)


def test_problems_of_the_whole_recipe_are_told_before_any_work(ran: Path, tmp_path: Path) -> None:
    """Missing data of two tasks, and an ending that no checkpoint has, are told together, and nothing is written."""
    loaded = load_recipe(ran / "small.yaml")
    assert loaded.name == "small"
    with pytest.raises(Exception, match=r"no such folder(.|\n)*no such folder") as caught:
        run(ran / "small.yaml", overrides=["data.hcp=nowhere", "data.brats=nowhere", "merge.out=fused"])

    assert 65 == caught.value.exit_code
    assert 4 == len(str(caught.value).splitlines())
