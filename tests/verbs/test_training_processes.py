"""train, adapt and finetune shared out among processes, as torchrun starts them."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from safetensors.numpy import load_file

from mergekit3d import adapt, finetune, train
from mergekit3d.options import Options
from tests.builders import task_of, torchrun, two_sources, write_recipe

NETWORK = "{name: isensee2017, base_filters: 2, depth: 3, segmentation_levels: 2, dropout: 0}"
SETTINGS = "epochs: 2, learning_rate: 2e-3, loss: dice-ce"
RECIPE = f"""
version: 1
name: timm
architecture: {NETWORK}
sources: [{{name: m1, checkpoint: m1.safetensors}}, {{name: m2, checkpoint: m2.safetensors}}]
partitions: {{private: ["kind:norm", "segmentation.*"], shared: ["*"]}}
merge: {{method: timm}}
target:
  data: hcp/
  modalities: [t1, t2]
  regions: {{csf: [24], thalamus: [10, 49]}}
  split: {{train: 4, validation: 3, seed: 0}}
adapt: {{{SETTINGS}, batch_size: 2, patch_size: [12, 12, 12], accumulate: 2}}
finetune: {{{SETTINGS}, init: m1, batch_size: 2, gradient_clip: 1.0}}
"""
SOURCE = f"""
version: 1
name: m3
architecture: {NETWORK}
target:
  data: hcp/
  modalities: [t1, t2]
  regions: {{csf: [24], thalamus: [10, 49]}}
  split: {{train: 5, validation: 1, seed: 0}}
train: {{{SETTINGS}, batch_size: 1, accumulate: 2}}
"""
VERBS = {"train": train, "adapt": adapt, "finetune": finetune}


@pytest.fixture(scope="module")
def project(tmp_path_factory, make_data) -> Path:
    """Seven HCP subjects of several sizes, two sources and two recipes."""
    root = make_data(tmp_path_factory.mktemp("processes"))
    for number, folder in enumerate(sorted((root / "hcp").iterdir())):
        for path in (folder / "T1w").iterdir():
            image = nibabel.load(path)
            values = np.asarray(image.dataobj).copy()
            values[: 3 + number] = 0
            nibabel.save(nibabel.Nifti1Image(values, image.affine), path)
    two_sources(root, task=task_of())
    write_recipe(root, RECIPE, "timm.yaml")
    write_recipe(root, SOURCE, "m3.yaml")
    return root


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """As torchrun gives each process."""


class Pair:
    """Two processes that share a command, told so as torchrun tells it; their own exit codes and words can be seen."""

    def __init__(self, program, folder, *arguments):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        told = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        command = [program, *map(str, arguments)]
        self.processes = [
            subprocess.Popen(
                command,
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **told, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]

    def end(self):
        """Exit codes, stdout and stderr, of both."""
        said = [process.communicate(timeout=120) for process in self.processes]
        return [process.returncode for process in self.processes], [out for out, _ in said], [err for _, err in said]


@pytest.fixture
def shared(warm):
    """Begins a training in two processes, on the CPU."""

    def begin(folder, verb, recipe, *arguments):
        return Pair(warm.command, folder, verb, "--recipe", recipe, "--device", "cpu", "--precision", "fp32", "--json", *arguments)

    return begin


def alone(folder, verb, recipe, out, *overrides, **options):
    return VERBS[verb](folder / recipe, overrides=overrides, options=Options(device="cpu", precision="fp32", out=out, **options))


def errors(said):
    return [line for text in said for line in text.splitlines() if line.startswith("error: ")]


def rows(path):
    with path.open() as file:
        return [{key: float(value or "nan") for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def assert_same(wanted: Path, found: Path, *, atol: float) -> None:
    """The same files, with the same numbers up to rounding."""
    names = sorted(path.name for path in wanted.iterdir() if not path.name.startswith("."))
    assert names == sorted(path.name for path in found.iterdir() if not path.name.startswith("."))
    for name in names:
        if name.endswith(".safetensors"):
            one, two = load_file(wanted / name), load_file(found / name)
            # A bias before an instance norm has a gradient of 0 but for rounding, which Adam scales up; the norm takes it out again.
            for key in one.keys() - {key for key in one if key.endswith(".conv.bias")}:
                # As a whole: of single entries, whose gradients are small, Adam scales the rounding up as well.
                apart, size = np.linalg.norm(one[key] - two[key]), np.linalg.norm(one[key])
                assert apart <= atol * max(size, 1), f"{name}: {key}: {apart} of {size}"
    for row, other in zip(rows(wanted / "log.csv"), rows(found / "log.csv"), strict=True):
        assert row == pytest.approx(other, abs=10 * atol)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "recipe", "settings"),
    [
        ("train", "m3.yaml", ()),
        ("train", "m3.yaml", ("train.steps_per_epoch=3", "train.batch_size=3", "train.accumulate=1", "train.patch_size=[8, 8, 8]")),
        ("adapt", "timm.yaml", ()),
        ("adapt", "timm.yaml", ("adapt.patch_size=null", "adapt.accumulate=1", "adapt.regularise={by: entropy, strength: 3}")),
        ("finetune", "timm.yaml", ()),
        ("finetune", "timm.yaml", ("finetune.regularise={strength: 0.5}", "finetune.accumulate=2")),
        ("adapt", "timm.yaml", ("adapt.objective={supervised: 1, entropy: 0.5}", "adapt.unlabelled=hcp/", "adapt.batch_size=1")),
    ],
)
def test_two_processes_give_the_result_of_one(project, shared, tmp_path, verb, recipe, settings):
    """Without dropout, up to rounding: weights, ratios and log; one JSON object on stdout; a step may have one sample only."""
    codes, said, complaints = shared(project, verb, recipe, "--out", tmp_path / "two", *flags_of(settings)).end()

    assert [0, 0] == codes, complaints
    one = alone(project, verb, recipe, tmp_path / "one", *settings)
    assert ("", one.epochs) == (said[1], json.loads(said[0])["epochs"])
    assert "" == complaints[1]
    assert_same(tmp_path / "one" / verb, tmp_path / "two" / verb, atol=1e-4)


@pytest.mark.slow
def test_torchrun_shares_a_training(project, tmp_path):
    """As a user types it; a process that gets no sample takes part all the same, and that is told."""
    settings = ("train.epochs=1",)
    flags = ["--recipe", "m3.yaml", "--device", "cpu", "--precision", "fp32", "--out", tmp_path / "three", *flags_of(settings)]
    ended = torchrun(3, "train", *flags, cwd=project)

    idle = "1 of 3 processes have nothing to do: a step has batch_size x accumulate = 2 samples, for all of them together"
    assert 1 == ended.stderr.count(idle)
    alone(project, "train", "m3.yaml", tmp_path / "one", *settings)
    assert_same(tmp_path / "one/train", tmp_path / "three/train", atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("struck", [[0], [1], [0, 1]])
def test_a_signal_to_any_process_stops_all_and_one_goes_on(project, shared, tmp_path, struck):
    """Both end with 143 after the same step, one of them says so, and the snapshot is that of the whole: one process resumes it."""
    settings = ("train.epochs=20", "train.patience=null")
    stopped = shared(project, "train", "m3.yaml", "--out", tmp_path / "two", *flags_of(settings))
    wait_for(tmp_path / "two/train/log.csv")
    for rank in struck:
        stopped.processes[rank].send_signal(signal.SIGTERM)
    codes, said, complaints = stopped.end()

    assert ([143, 143], "") == (codes, said[1]), complaints
    assert 143 == json.loads(said[0])["error"]["exit_code"]
    (told,) = errors(complaints)
    assert re.search(r"interrupted in epoch \d+ after step \d+; the state is saved; go on with --resume", told)
    before = len(rows(tmp_path / "two/train/log.csv"))
    assert 1 <= before < 20
    resumed = alone(project, "train", "m3.yaml", tmp_path / "two", *settings, resume=True)
    assert 20 == resumed.epochs
    through = alone(project, "train", "m3.yaml", tmp_path / "one", *settings)
    assert resumed.validation_loss == pytest.approx(through.validation_loss, abs=1e-3)
    assert not (tmp_path / "two/train/snapshot.pt").exists()


@pytest.mark.slow
def test_two_processes_go_on_from_the_snapshot_of_one_and_repeat_their_bits(project, shared, warm, tmp_path):
    """An adaptation stopped in one process and resumed in two is that of one; two that were not stopped give their bits again."""
    settings = ("adapt.epochs=6", "adapt.patience=null")
    command = [warm.command, "adapt", "--recipe", "timm.yaml", "--device", "cpu", "--precision", "fp32"]
    stopped = subprocess.Popen(
        [*command, "--out", str(tmp_path / "one"), *flags_of(settings)], cwd=project, stderr=subprocess.PIPE, env=dict(os.environ)
    )
    wait_for(tmp_path / "one/adapt/log.csv")
    stopped.send_signal(signal.SIGTERM)
    stopped.communicate(timeout=60)
    assert 143 == stopped.returncode
    codes, _, complaints = shared(project, "adapt", "timm.yaml", "--out", tmp_path / "one", "--resume", *flags_of(settings)).end()
    assert [0, 0] == codes, complaints
    assert 1 == sum("going on from epoch" in text for text in complaints)
    for name in ("first", "second"):
        codes, _, complaints = shared(project, "adapt", "timm.yaml", "--out", tmp_path / name, *flags_of(settings)).end()
        assert [0, 0] == codes, complaints

    assert (tmp_path / "first/adapt/ratios.json").read_bytes() == (tmp_path / "second/adapt/ratios.json").read_bytes()
    ratios = [json.loads((tmp_path / name / "adapt/ratios.json").read_text())["layers"] for name in ("first", "one")]
    for layer, row in ratios[0].items():
        assert row == pytest.approx(ratios[1][layer], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_subject_that_cannot_be_used_ends_both_with_one_message(project, shared, tmp_path, part):
    """Wherever it is read: exit code 65 from both, nothing under a final name."""
    shutil.copytree(project / "hcp", tmp_path / "hcp")
    alone(project, "train", "m3.yaml", tmp_path / "good", "train.epochs=1")
    name = json.loads((tmp_path / "good/train/split.json").read_text())[part][0]
    path = tmp_path / "hcp" / name / "T1w/T1w_acpc_dc_restore.nii.gz"
    image = nibabel.load(path)
    values = image.get_fdata(dtype=np.float32)
    values[8, 8, 8] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, image.affine), path)
    bad = ("--set", f"target.data={tmp_path / 'hcp'}", "--out", tmp_path / "bad")
    codes, said, complaints = shared(project, "train", "m3.yaml", *bad).end()

    assert ([65, 65], "") == (codes, said[1]), complaints
    assert 65 == json.loads(said[0])["error"]["exit_code"]
    (told,) = errors(complaints)
    assert "wanted finite voxels, found 1 of 6120 are NaN" in told
    assert [] == [path for path in (tmp_path / "bad").glob("**/*.safetensors") if "prepared" not in path.parts]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_both_with_the_subjects(project, shared, tmp_path):
    """One message, which names them by number, and one rescued checkpoint."""
    huge = ("--set", "train.learning_rate=1e30", "--set", "train.optimizer=sgd", "--out", tmp_path)
    codes, _, complaints = shared(project, "train", "m3.yaml", *huge).end()

    assert [65, 65] == codes, complaints
    (told,) = errors(complaints)
    assert re.search(r"the (loss|gradient) is not finite: epoch 1, step 2, subjects \d(, \d)*; look at the images", told)
    assert ["rescued.safetensors"] == [path.name for path in (tmp_path / "train").glob("*.safetensors")]


@pytest.mark.slow
def test_problems_before_the_work_are_told_once(project, shared, tmp_path):
    """A recipe that asks for what is not there, and outputs that exist: the same exit code from both."""
    settings = ("--set", "target.split.train=40", "--out", tmp_path)
    codes, _, complaints = shared(project, "train", "m3.yaml", *settings).end()
    assert [2, 2] == codes
    (told,) = errors(complaints)
    assert "too few subjects" in told
    assert "" == complaints[1]
    (tmp_path / "train").mkdir()
    (tmp_path / "train/log.csv").write_text("")
    codes, _, complaints = shared(project, "train", "m3.yaml", "--out", tmp_path).end()
    assert [2, 2] == codes
    (told,) = errors(complaints)
    assert "the output exists already" in told


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other(project, shared, tmp_path):
    """Killed, it can tell nothing; the other says that it is gone, and does not wait for ever."""
    settings = ("train.epochs=400", "train.patience=null")
    pair = shared(project, "train", "m3.yaml", "--out", tmp_path, *flags_of(settings))
    wait_for(tmp_path / "train/log.csv")
    pair.processes[1].kill()
    codes, _, complaints = pair.end()

    assert [71, -signal.SIGKILL] == codes
    assert ["error: another process of this run has ended; look at what it says"] == errors(complaints)


def flags_of(settings):
    return [part for setting in settings for part in ("--set", setting)]


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.01)
