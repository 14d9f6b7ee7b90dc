"""What networks still know of the sources' tasks: by flags, by a recipe, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from safetensors.numpy import load_file

from mergekit3d import evaluate, forgetting
from mergekit3d.checkpoints import TaskSpec
from mergekit3d.errors import InputError, LockedError, MergeKit3DError, UsageError
from mergekit3d.options import Options
from mergekit3d.storage.lock import LOCK_NAME
from mergekit3d_cli.console import PlainReporter
from tests.builders import save, save_source, spec_of, task_of, write_recipe

TASKS = {"m1": TaskSpec(("t1", "t2"), {"csf": (24,), "wm": (2, 7)}), "m2": TaskSpec(("t1", "t2"), {"gm": (8, 3)})}


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_data) -> Path:
    """A few small HCP subjects, and a file that names two of them."""
    root = make_data(tmp_path_factory.mktemp("data"))
    (root / "test.txt").write_text("100001\n100004\n")
    return root


@pytest.fixture
def networks(tmp_path) -> Path:
    """Two sources of different tasks, and a merge of the second one's."""
    for number, (name, task) in enumerate(TASKS.items(), 1):
        save_source(tmp_path / f"{name}.safetensors", number, spec_of(outputs=len(task.outputs)), task)
    save_source(tmp_path / "fused.safetensors", 3, spec_of(outputs=1), TASKS["m2"])
    return tmp_path


def run(networks, root, checkpoints=("fused",), **keywords):
    keywords = {
        "sources": {name: networks / f"{name}.safetensors" for name in TASKS},
        "data": root / "hcp",
        "subjects_file": root / "test.txt",
        "options": Options(device="cpu", precision="fp32"),
        **keywords,
    }
    return forgetting([networks / f"{name}.safetensors" for name in checkpoints], **keywords)


def test_matrix_by_flags(networks, data):
    """A row a source and checkpoint, a column a source; a source on its own task is what evaluate says of it."""
    result = run(networks, data)
    content = json.loads((networks / "forgetting" / "forgetting.json").read_text())
    own = evaluate(
        networks / "m1.safetensors",
        data / "hcp",
        subjects_file=data / "test.txt",
        options=Options(device="cpu", precision="fp32", out=networks / "evaluation"),
    )

    assert (["m1", "m2", "fused"], ["m1", "m2"]) == (content["networks"], content["tasks"])
    assert own.mean_dice == pytest.approx(content["dice"][0][0], abs=1e-9)
    assert {"m1": 2, "m2": 2} == content["subjects"]
    assert own.dice == pytest.approx(content["regions"]["m1"]["m1"])
    assert content["dice"] == [list(row) for row in result.matrix.dice]
    assert all(low <= dice <= high for (low, high), dice in zip(content["interval_95"][2], content["dice"][2], strict=True))
    assert (networks / "forgetting" / "forgetting.png").read_bytes().startswith(b"\x89PNG")
    with (networks / "forgetting" / "forgetting.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert 3 * 2 * (2 + 1) == len(rows)
    assert {"network", "task", "subject", "region", "dice", "hd95"} == set(rows[0])
    assert {"2", "5"} == {row["subject"] for row in rows}
    assert "10000" not in (networks / "forgetting" / "forgetting.json").read_text()
    assert str(networks) not in (networks / "forgetting" / "forgetting.json").read_text()


def test_every_network_has_the_private_tensors_of_the_task(networks, data):
    """A checkpoint with the shared tensors of m1 knows of both tasks exactly what m1 does, whatever its own private ones."""
    state, other = load_file(networks / "m1.safetensors"), load_file(networks / "m2.safetensors")
    private = [name for name in state if name.startswith("segmentation.") or ".norm." in name]
    for name in private:
        state[name] = other[name]
    save(networks / "twin.safetensors", state)
    matrix = run(networks, data, ["twin"]).matrix

    assert ("m1", "m2", "twin") == matrix.networks
    assert matrix.dice[0] == matrix.dice[2]
    assert matrix.dice[1] != matrix.dice[2]


def test_data_may_differ_from_source_to_source(networks, data):
    """A source without data has no column."""
    matrix = run(networks, data, data={"m2": data / "hcp"}).matrix

    assert ("m2",) == matrix.tasks
    with pytest.raises(UsageError, match="data of an unknown source: --data: wanted m1, m2, found m3"):
        run(networks, data, data={"m3": data / "hcp"})


def test_private_tensors_may_be_named(networks, data):
    """Where everything but the encoder's first layers is private, a network knows other things than with its own decoder."""
    with pytest.raises(UsageError, match="nothing would be shared: --private"):
        run(networks, data, private=["*"])
    with pytest.raises(MergeKit3DError, match="names no tensor"):
        run(networks, data, private=["encodr.*"])
    usual = run(networks, data, data={"m1": data / "hcp"}).matrix
    options = Options(device="cpu", precision="fp32", out=networks / "named")
    named = run(networks, data, private=["kind:norm", "segmentation.*", "decoder.*"], data={"m1": data / "hcp"}, options=options).matrix

    assert usual.dice[0] == named.dice[0]
    assert usual.dice[2] != named.dice[2]


def test_outputs_are_not_replaced_unless_forced_and_are_locked(networks, data):
    """As of every command."""
    run(networks, data)
    with pytest.raises(UsageError, match="the output exists already"):
        run(networks, data)
    before = (networks / "forgetting" / "forgetting.json").read_bytes()
    run(networks, data, options=Options(device="cpu", precision="fp32", force=True))
    assert before == (networks / "forgetting" / "forgetting.json").read_bytes()

    with FileLock(networks / "forgetting" / LOCK_NAME), pytest.raises(LockedError):
        run(networks, data, options=Options(device="cpu", precision="fp32", force=True))


def test_all_problems_of_the_checkpoints_come_at_once(networks, data):
    """A missing file and one of another network, before any work."""
    save_source(networks / "wide.safetensors", 1, spec_of(base_filters=4))
    with pytest.raises(MergeKit3DError) as caught:
        run(networks, data, ["wide", "missing"])

    assert "wide.safetensors" in str(caught.value)
    assert "missing.safetensors" in str(caught.value)
    assert not (networks / "forgetting").exists()


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"sources": None}, "forgetting needs --source too"),
        ({"recipe": "r.yaml"}, "--source and --recipe exclude each other"),
        ({"names": ["m1"]}, "the names do not fit the checkpoints: --names: wanted 1 different names, none of them m1 or m2, found m1"),
        ({"overlap": 1.5, "patch_size": (8, 8, 8)}, "no such overlap"),
    ],
)
def test_what_does_not_go_together_is_refused(networks, data, keywords, text):
    """In one line."""
    with pytest.raises(UsageError, match=text):
        run(networks, data, **keywords)


def test_source_that_does_not_say_its_task_is_refused(networks, data):
    """It has to stand in a recipe, whose targets do."""
    save(networks / "m1.safetensors", load_file(networks / "m1.safetensors"))
    with pytest.raises(InputError, match="the source does not say its task: .*m1.safetensors"):
        run(networks, data)


RECIPE = """
version: 1
data: {{hcp: {data}/hcp}}
sources:
  - name: m1
    checkpoint: m1.safetensors
    target: {{data: hcp, modalities: [t1, t2], regions: {{csf: [24], wm: [2, 7]}}, split: {split}}}
  - name: m2
    checkpoint: m2.safetensors
    target: {{data: hcp, modalities: [t1, t2], regions: {{gm: [8, 3]}}, split: {split}}}
merge: {{method: mean-imm, out: {out}}}
predict: {{mirror: true}}
"""


def recipe_in(networks, data, split="{train: 1, validation: 1, test: 1}"):
    return write_recipe(networks, RECIPE.format(data=data, split=split, out=networks / "fused.safetensors"))


def test_recipe_tells_sources_test_subjects_and_merge(networks, data):
    """What its outputs hold of merges and fine-tuned networks; inference as the recipe says."""
    path = recipe_in(networks, data)
    result = forgetting(recipe=path, options=Options(device="cpu", precision="fp32"))
    plain = forgetting(
        recipe=path, overrides=["predict.mirror=false"], options=Options(device="cpu", precision="fp32", out=networks / "plain")
    )

    assert networks / "recipe" / "forgetting" == result.out
    assert ("m1", "m2", "mean-imm") == result.matrix.networks
    assert 1 == result.matrix.subjects("m1")
    assert result.matrix.dice != plain.matrix.dice


def test_recipe_without_a_merge_or_test_subjects_is_refused(networks, data):
    """It says what to do."""
    path = recipe_in(networks, data)
    with pytest.raises(InputError, match="nothing merged or trained yet: .*; run fuse first"):
        forgetting(recipe=path, overrides=["merge.out=other.safetensors"])
    with pytest.raises(UsageError, match="names of no checkpoints: --names"):
        forgetting(recipe=path, names=["a"])
    with pytest.raises(UsageError, match="no source has test subjects"):
        forgetting(recipe=recipe_in(networks, data, "{train: 1, validation: 1, test: 0}"))


def test_recipe_tells_the_task_of_a_source_that_does_not(networks, data):
    """A bare state dict is what its target says; the matrix is the same."""
    path = recipe_in(networks, data)
    options = Options(device="cpu", precision="fp32")
    wanted = forgetting(recipe=path, options=options).matrix.dice
    save(networks / "m1.safetensors", load_file(networks / "m1.safetensors"))

    assert wanted == forgetting(recipe=path, options=replace(options, force=True)).matrix.dice


@pytest.mark.parametrize(
    ("bare", "regions", "text"),
    [
        (
            False,
            "{wm: [2, 7], csf: [24]}",
            "the source was trained for another task than its target: sources.m1.target: wanted t1, t2 to csf",
        ),
        (
            True,
            "{csf: [24]}",
            "the source's network is of another task than its target: .*: wanted 2 modalities and 2 outputs",
        ),
    ],
)
def test_target_of_another_task_is_refused(networks, data, bare, regions, text):
    """Outputs in another order would be measured against one another."""
    path = recipe_in(networks, data)
    if bare:
        save(networks / "m1.safetensors", load_file(networks / "m1.safetensors"))
    with pytest.raises(InputError, match=text):
        forgetting(recipe=path, overrides=[f"sources.m1.target.regions={regions}"])


def test_checkpoint_without_a_modality_is_told(networks, data):
    """The source's own channel stands in, which the reader has to know."""
    said = io.StringIO()
    save_source(networks / "fused.safetensors", 3, spec_of(inputs=1, outputs=1), task_of(("t2",), {"gm": (8, 3)}))
    run(networks, data, reporter=PlainReporter(said))

    assert "warning: fused has no input channel for t1: on the task of m1, that of m1 is used" in said.getvalue()


def test_nothing_is_written_where_a_subject_cannot_be_read(networks, data, tmp_path):
    """All or nothing."""
    folder = Path(shutil.copytree(data / "hcp", tmp_path / "damaged"))
    (folder / "100004" / "T1w" / "T2w_acpc_dc_restore.nii.gz").write_bytes(b"")
    with pytest.raises(MergeKit3DError):
        run(networks, data, data=folder)

    assert not list((networks / "forgetting").glob("forgetting.*"))
