"""Long Fisher estimations: what stops them, what they go on from, what they tell."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mergekit3d import adapt, fisher, fisher_sources, fuse
from mergekit3d.checkpoints import open_checkpoint
from mergekit3d.errors import InputError, MergeKit3DError, UsageError
from mergekit3d.fisher_run import _folded
from mergekit3d.merging.partitions import layer_of
from mergekit3d.options import Options
from tests.builders import fusing, save_source, task_of

SUBJECTS = 7
SCRIPT = """
import sys, time
from mergekit3d import fisher
from mergekit3d.errors import MergeKit3DError
from mergekit3d.options import Options

class Telling:
    info = warn = lambda self, message: None
    task = lambda self, description, total: self
    __enter__ = lambda self: self
    __exit__ = lambda self, *_: None
    def advance(self, steps=1, *, message=""):
        if message:
            print(message, flush=True)
            time.sleep(0.05)

try:
    settings = dict(draws=1, snapshot_minutes={minutes}, batch_size={batch_size})
    fisher({checkpoint!r}, {data!r}, **settings, options=Options(device="cpu"), reporter=Telling())
except MergeKit3DError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_data) -> Path:
    """Seven small HCP subjects."""
    return make_data(tmp_path_factory.mktemp("data")) / "hcp"


@pytest.fixture
def m1(tmp_path) -> Path:
    """A checkpoint for them."""
    path = tmp_path / "m1.safetensors"
    save_source(path, task=task_of())
    return path


@pytest.fixture(scope="module")
def through(data, tmp_path_factory) -> bytes:
    """The Fisher file of a run that nothing stopped."""
    path = tmp_path_factory.mktemp("through") / "m1.safetensors"
    save_source(path, task=task_of())
    return run(path, data).out.read_bytes()


@pytest.fixture(scope="module")
def killed(data, tmp_path_factory) -> Path:
    """What a run leaves that was killed after three subjects, with a snapshot after every one."""
    path = tmp_path_factory.mktemp("killed") / "m1.safetensors"
    save_source(path, task=task_of())
    code, _ = stop(path, data, signal.SIGKILL, after=4, minutes=0)
    assert -signal.SIGKILL == code
    return path.parent


@pytest.fixture
def stopped(killed, tmp_path) -> Path:
    """A checkpoint beside the snapshot of a run that was killed."""
    assert [".m1.fisher.safetensors.snapshot"] == snapshots(killed)
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    return tmp_path / "m1.safetensors"


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.messages = []
        self.info = self.warn = self.messages.append

    def task(self, description, total):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def advance(self, steps=1, *, message=""):
        self.messages.append(message)


SETTINGS = ("max_subjects", "dtype", "snapshot_minutes", "batch_size", "estimator", "patch_size", "architecture")


def run(checkpoint, data, *, reporter=None, draws=1, **given):
    settings = {"draws": draws, **{key: value for key, value in given.items() if key in SETTINGS}}
    options = {key: value for key, value in given.items() if key not in SETTINGS}
    return fisher(checkpoint, data, **settings, options=Options(device="cpu", **options), reporter=reporter or Notes())


def snapshots(folder):
    return sorted(path.name for path in folder.iterdir() if "snapshot" in path.name)


def stop(checkpoint, data, number, *, after, minutes, batch_size=1):
    """Send a signal to a process in the middle of its work; returns its exit code and what it said."""
    script = SCRIPT.format(checkpoint=str(checkpoint), data=str(data), minutes=minutes, batch_size=batch_size)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(after):
        assert process.stdout.readline().startswith("subject ")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def test_standard_errors_are_told_everywhere(m1, data):
    """In the result, for people, and in the file: the spread over subjects of the traces of runs on one subject each."""
    result = run(m1, data, max_subjects=5)
    told = result.as_json()
    provenance = open_checkpoint(result.out).metadata.provenance

    assert told["standard_error"] / told["trace"] == pytest.approx(told["relative_error"])
    assert told["relative_error_by_layer"].keys() == {layer for layer, trace in result.trace_by_layer.items() if trace}
    assert [result.trace, result.standard_error] == pytest.approx(provenance["trace"], rel=1e-3)
    assert result.trace_by_layer.keys() == provenance["trace_by_layer"].keys()
    assert f" +- {100 * result.relative_error:.2g} % over 5 subjects and " in result.lines()[0]
    layer = layer_of("encoder.0.input.conv.weight")
    assert result.trace_by_layer[layer] == pytest.approx(provenance["trace_by_layer"][layer][0], rel=1e-3)


def test_one_subject_has_no_standard_error(m1, data):
    """It says nothing of the spread."""
    result = run(m1, data, max_subjects=1)

    assert (None, None, {}) == (result.standard_error, result.relative_error, result.as_json()["relative_error_by_layer"])
    assert "+-" not in result.lines()[0]
    assert " over 1 subject and " in result.lines()[0]


def test_progress_tells_how_well_the_trace_is_known(m1, data):
    """So that a user sees early whether there are enough subjects."""
    notes = Notes()
    run(m1, data, reporter=notes, max_subjects=3)
    first, second, _ = [message for message in notes.messages if message.startswith("subject ")]

    assert "+-" not in first
    assert second.endswith(" %")
    assert ", trace " in second


def test_signal_saves_the_state_and_resume_ends_with_the_same_bits(m1, data, tmp_path, through):
    """A real process, a real SIGTERM: exit code 143, one line, and the same file in the end; nothing is left beside it."""
    code, said = stop(m1, data, signal.SIGTERM, after=3, minutes=10)

    assert 143 == code
    assert 1 == len(said.splitlines())
    assert said.startswith("interrupted after ")
    assert said.endswith(f" of {SUBJECTS} subjects; the state is saved; go on with --resume\n")
    assert not (tmp_path / "m1.fisher.safetensors").exists()
    notes = Notes()
    result = run(m1, data, resume=True, reporter=notes)
    assert notes.messages[0].startswith("going on after ")
    assert through == result.out.read_bytes()
    assert [] == snapshots(tmp_path)


def test_kill_loses_what_came_after_the_last_snapshot_alone(stopped, data, tmp_path, through):
    """After kill -9, with a snapshot after every subject, the rest is done and the bits are the same."""
    notes = Notes()
    result = run(stopped, data, resume=True, reporter=notes)

    assert int(notes.messages[0].split()[3]) >= 3
    assert through == result.out.read_bytes()
    assert [] == snapshots(tmp_path)


@pytest.mark.parametrize("change", [{"draws": 2}, {"seed": 5}, {"max_subjects": 6}, {"batch_size": 2}])
def test_snapshot_of_other_settings_is_refused(stopped, data, tmp_path, change):
    """Draws, seed and subjects decide the sums, and subjects at once their rounding; --force begins anew."""
    with pytest.raises(UsageError) as caught:
        run(stopped, data, resume=True, **change)
    where = tmp_path / ".m1.fisher.safetensors.snapshot"
    expected = (
        f"cannot go on from the snapshot: {where}: found one of other settings, weights or subjects; run it without --resume to begin anew"
    )
    assert expected == str(caught.value)
    notes = Notes()
    run(stopped, data, resume=True, force=True, reporter=notes, **change)
    assert "cannot go on from the snapshot, found one of other settings, weights or subjects: it will be replaced" == notes.messages[0]


def test_snapshot_of_other_weights_is_refused(stopped, data):
    """The checkpoint changed since."""
    save_source(stopped, seed=9, task=task_of())
    with pytest.raises(UsageError, match="found one of other settings, weights or subjects"):
        run(stopped, data, resume=True)


def test_damaged_snapshot_is_one_line(stopped, data, tmp_path):
    """As every file."""
    (tmp_path / ".m1.fisher.safetensors.snapshot").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match="cannot read the snapshot: .*: found a damaged file; run it without --resume to begin anew"):
        run(stopped, data, resume=True)


def test_snapshot_is_told_of_where_nobody_resumes(stopped, data, tmp_path, through):
    """It is replaced, and the result is that of a run without it."""
    notes = Notes()
    result = run(stopped, data, reporter=notes)

    assert "the snapshot of an interrupted run is there and will be replaced; --resume goes on from it" == notes.messages[0]
    assert through == result.out.read_bytes()
    assert [] == snapshots(tmp_path)


def test_resume_of_a_finished_run_leaves_it_as_it_is(m1, data):
    """A job that a queue starts once more finds nothing to do; of other settings it is refused."""
    first = run(m1, data)
    before = first.out.stat().st_mtime_ns
    notes = Notes()

    assert first == run(m1, data, resume=True, reporter=notes)
    assert ["m1.fisher.safetensors: done before"] == notes.messages
    assert before == first.out.stat().st_mtime_ns
    with pytest.raises(UsageError, match="nothing to resume: .*found a file of other settings, weights or subjects; pass --force"):
        run(m1, data, resume=True, draws=2)
    run(m1, data, resume=True, draws=2, force=True)
    assert before != first.out.stat().st_mtime_ns


def test_biases_before_a_norm_are_zero_and_named(m1, data):
    """In the result and in the file."""
    result = run(m1, data, max_subjects=1)
    opened = open_checkpoint(result.out)

    assert list(result.zero) == opened.metadata.provenance["zero"]
    assert [0] * len(result.zero) == [int(np.count_nonzero(opened.read(name))) for name in result.zero]
    assert all(name.endswith("conv.bias") for name in result.zero)


def test_square_roots_take_half_the_space_and_fuse_to_the_same_weights(m1, data, tmp_path):
    """`--dtype sqrt-fp16`: read as the diagonal wherever it is used; the figures are those of the float32 file."""
    save_source(tmp_path / "m2.safetensors", seed=2, task=task_of())
    fused, sizes = [], []
    for dtype in ("float32", "sqrt-fp16"):
        results = [run(tmp_path / f"{name}.safetensors", data, max_subjects=2, dtype=dtype, force=True) for name in ("m1", "m2")]
        opened = open_checkpoint(results[0].out)
        opened.check_seal()
        sizes.append(sum(entry.nbytes for entry in opened.entries.values()))
        rest = f"partitions: {{private: []}}\nname: {dtype}"
        out = fuse(fusing(tmp_path, "{method: imm, private: m1}", rest=rest).path, options=Options(out=tmp_path / dtype)).out
        fused.append(open_checkpoint(out))
        again = run(m1, data, max_subjects=2, dtype=dtype, resume=True)
        assert (results[0].trace, results[0].zero) == (again.trace, again.zero)

    first, second = (open_checkpoint(tmp_path / f"{name}.safetensors") for name in ("m1", "m2"))
    assert sizes[0] == 2 * sizes[1]
    for name in first.entries:
        distance = np.abs(first.read(name) - second.read(name))
        # d theta / d log F is at most a quarter of the distance between the sources, for each of the two.
        assert np.all(np.abs(fused[0].read(name) - fused[1].read(name)) <= 2e-3 / 4 * 2 * distance + 1e-6), name


def test_adapt_reads_square_roots_as_the_diagonal(m1, data, tmp_path):
    """Ratios that start at the inverse of each layer's trace are the same from either file."""
    save_source(tmp_path / "m2.safetensors", seed=2, task=task_of())
    target = f"""
    target: {{data: {data}, modalities: [t1, t2], regions: hcp-1-7, split: {{train: 2, validation: 0, test: 0}}}}
    adapt: {{epochs: 1, ratio_learning_rate: 1e-9, normalise_fisher: true}}
    """
    recipe, learned = fusing(tmp_path, "{method: timm}", rest=target).path, []
    for dtype in ("float32", "sqrt-fp16"):
        for name in ("m1", "m2"):
            run(tmp_path / f"{name}.safetensors", data, max_subjects=1, dtype=dtype, force=True)
        out = adapt(recipe, options=Options(device="cpu", out=tmp_path / dtype)).ratios
        learned.append(json.loads(out.read_text())["layers"])

    assert learned[0].keys() == learned[1].keys()
    assert max(abs(ratios[0] - 0.5) for ratios in learned[0].values()) > 0.05
    for layer, ratios in learned[0].items():
        assert ratios == pytest.approx(learned[1][layer], abs=1e-3), layer


def test_another_dtype_is_another_file(m1, data):
    """A finished run of another dtype is not taken for this one's."""
    run(m1, data, max_subjects=1)
    with pytest.raises(UsageError, match="nothing to resume"):
        run(m1, data, max_subjects=1, dtype="sqrt-fp16", resume=True)
    with pytest.raises(UsageError, match="unknown dtype: --dtype: wanted float32 or sqrt-fp16, found float16"):
        run(m1, data, dtype="float16")


@pytest.fixture(scope="module")
def uneven(make_data, tmp_path_factory) -> Path:
    """Subjects of which the third and the last have less foreground, and so a smaller padded size."""
    folder = make_data(tmp_path_factory.mktemp("uneven")) / "hcp"
    for number in (3, 7):
        for path in (folder / f"10000{number - 1}" / "T1w").glob("*restore.nii.gz"):
            image = nibabel.load(path)
            values = image.get_fdata(dtype=np.float32)
            values[:, :, 7:] = 0
            nibabel.save(nibabel.Nifti1Image(values, image.affine), path)
    return folder


@pytest.mark.parametrize("settings", [{"draws": 2}, {"estimator": "true"}, {"patch_size": (8, 8, 8)}])
def test_subjects_at_once_change_nothing_but_rounding(m1, uneven, tmp_path, settings):
    """Whole subjects of several sizes, by either estimator, and patches; each subject counts once."""
    one, two = (
        run(m1, uneven, batch_size=size, out=tmp_path / f"{size}.fisher.safetensors", reporter=notes, **settings)
        for size, notes in ((1, Notes()), (2, Notes()))
    )

    assert (SUBJECTS, one.voxels, one.zero) == (two.subjects, two.voxels, two.zero)
    assert one.trace == pytest.approx(two.trace, rel=1e-4)
    assert one.standard_error == pytest.approx(two.standard_error, rel=1e-3)
    first, second = open_checkpoint(one.out), open_checkpoint(two.out)
    for name in first.entries:
        values = first.read(name)
        np.testing.assert_allclose(values, second.read(name), rtol=1e-3, atol=1e-4 * values.max(), err_msg=name)


def test_batches_end_where_the_size_changes(m1, uneven):
    """Two subjects at a time that follow one another; progress counts subjects."""
    notes = Notes()
    run(m1, uneven, batch_size=2, reporter=notes)

    told = [message.split(",")[0] for message in notes.messages if message.startswith("subject ")]
    assert ["subject 2", "subject 3", "subject 5", "subject 6", "subject 7"] == told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("after", [2, 3, 4])
def test_stopped_batches_go_on_to_the_same_bits(m1, uneven, tmp_path, after, number):
    """Whatever batch was the last: the state is saved between batches, and those that follow hold the same subjects."""
    expected = run(m1, uneven, batch_size=2, out=tmp_path / "through.fisher.safetensors").out.read_bytes()
    code, said = stop(m1, uneven, number, after=after, minutes=0, batch_size=2)
    assert {signal.SIGTERM: 143, signal.SIGKILL: -9}[number] == code, said
    notes = Notes()
    result = run(m1, uneven, batch_size=2, resume=True, reporter=notes)

    assert notes.messages[0].startswith("going on after ")
    assert int(notes.messages[0].split()[3]) in (2, 3, 5, 6, 7)
    assert expected == result.out.read_bytes()
    assert [] == snapshots(tmp_path)


def test_advice_on_memory_names_the_subjects_at_once(m1, data, monkeypatch):
    """They are what can be made smaller first."""

    def exhausted(*_, **__):
        raise MemoryError

    monkeypatch.setattr("mergekit3d.fisher_run.add_subjects", exhausted)
    with pytest.raises(MergeKit3DError, match="out of memory: cpu; set patch_size, or make batch_size 3 smaller"):
        run(m1, data, batch_size=3)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_subject_that_is_not_finite_is_refused_by_its_number(m1, make_data, tmp_path, batch_size):
    """Nothing is written; the name of its folder, and its path, stay out of what is told."""
    folder = make_data(tmp_path / "canary") / "hcp"
    path = folder / "100004/T1w/T2w_acpc_dc_restore.nii.gz"
    image = nibabel.load(path)
    values = image.get_fdata(dtype=np.float32)
    values[8, 8, 8] = np.inf
    nibabel.save(nibabel.Nifti1Image(values, image.affine), path)
    notes = Notes()
    with pytest.raises(InputError, match="subject 5, t2: wanted finite voxels, found 1 of 6120 are N") as caught:
        run(m1, folder, batch_size=batch_size, reporter=notes)

    assert 65 == caught.value.exit_code
    assert not [text for text in (str(caught.value), *notes.messages) if "100004" in text or "canary" in text]
    assert not (tmp_path / "m1.fisher.safetensors").exists()


@pytest.fixture
def foreign(tmp_path) -> tuple[Path, dict]:
    """A state dict of MONAI's UNet, which does not say what it is, and its network."""
    import torch

    networks = pytest.importorskip("monai.networks.nets")
    how = {"spatial_dims": 3, "channels": [2, 4], "strides": [2], "num_res_units": 1}
    torch.manual_seed(0)
    torch.save(networks.UNet(in_channels=2, out_channels=3, **how).state_dict(), tmp_path / "unet.pt")
    return tmp_path / "unet.pt", {"name": "monai.UNet", **how}


def test_network_that_the_user_names(foreign, data):
    """Inputs and outputs are the tensors'; PReLU and residual units have their values too."""
    checkpoint, network = foreign
    result = run(checkpoint, data, architecture=network)
    written = open_checkpoint(result.out)

    assert set(open_checkpoint(checkpoint).entries) == set(written.entries)
    assert ("monai.UNet", 2, 3) == tuple(written.metadata.architecture[key] for key in ("name", "in_channels", "out_channels"))
    assert all(np.abs(written.read(name)).max() > 0 for name in written.entries if name.endswith("weight"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, r"the network cannot be told from the tensors: .*unet.pt; pass --architecture, for example '\{name: monai.UNet"),
        ("monai.Unet3d", "no such network: monai.Unet3d: wanted a torch.nn.Module"),
        ({"channels": [2, 4]}, "the architecture has no name: --architecture: wanted a name, or {name: monai.UNet"),
        ({"name": "monai.UNet", "spatial_dims": 3, "channels": [2, 8], "strides": [2]}, "the checkpoint is of another network than monai"),
        ({"name": "monai.UNet", "in_channels": 2}, "the channels of a network follow from its task: architecture.in_channels"),
    ],
)
def test_network_that_is_not_the_checkpoints(foreign, data, given, said):
    """One line, and nothing is written."""
    checkpoint, _ = foreign
    with pytest.raises(MergeKit3DError, match=said):
        run(checkpoint, data, architecture=given)
    assert not checkpoint.with_name("unet.fisher.safetensors").exists()


def test_recipe_names_the_network_of_bare_checkpoints(foreign, data, tmp_path):
    """As of sources that come from elsewhere."""
    checkpoint, network = foreign
    source = {"name": "m1", "checkpoint": str(checkpoint)}
    target = {"data": str(data), "modalities": ["t1", "t2"], "regions": {"a": [2], "b": [3], "c": [4]}, "split": {"train": 2}}
    recipe = {"version": 1, "architecture": network, "sources": [{**source, "target": target}], "fisher": {"draws": 1}}
    (tmp_path / "timm.yaml").write_text(json.dumps(recipe))
    (result,) = fisher_sources(tmp_path / "timm.yaml", options=Options(device="cpu")).sources

    assert 2 == result.subjects
    assert "monai.UNet" == open_checkpoint(result.out).metadata.architecture["name"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["b.norm.bias", "a.0.bias"], "a.0.bias, b.norm.bias"),
        (["vit.0.norm.bias", "vit.11.norm.bias", "vit.1.norm.weight"], "vit.*.norm.bias (2), vit.1.norm.weight"),
    ],
)
def test_names_of_many_blocks_are_one(names, said):
    """What differs in the number of its block alone."""
    assert said == _folded(names)
