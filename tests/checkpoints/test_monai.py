"""MONAI bundles: read without running their code, written so that `python -m monai.bundle run` runs them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mergekit3d import convert, predict, verify
from mergekit3d.architectures import NetworkSpec, build_network, network_of
from mergekit3d.checkpoints import TaskSpec, load_tensors, open_checkpoint, recognised_format
from mergekit3d.errors import InputError, UsageError
from mergekit3d.options import Options
from tests.builders import assert_mutants_are_refused, metadata_of, save, save_source, spec_of, task_of

UNET = NetworkSpec("monai.UNet", 2, 3, {"spatial_dims": 3, "channels": [2, 4], "strides": [2], "num_res_units": 1})
DEFINITION = {"_target_": "UNet", "in_channels": 2, "out_channels": 3, **UNET.arguments}
CLASSES = TaskSpec(("t1", "t2"), {"csf": (1,), "gm": (2,)}, exclusive=True, spacing_mm=(4.0, 4.0, 4.0))


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return build_network(UNET).state_dict()


def write_bundle(folder, state, definition=DEFINITION, config=None, metadata=None, name="inference.json"):
    """A bundle as those of the model zoo are."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    data_format = {
        "inputs": {"image": {"num_channels": 2, "channel_def": {"0": "T1w", "1": "T2w"}}},
        "outputs": {"pred": {"num_channels": 3, "channel_def": {"0": "background", "1": "csf", "2": "gm"}}},
    }
    (folder / "configs" / "metadata.json").write_text(
        json.dumps({"version": "0.1.0", "network_data_format": data_format, **(metadata or {})})
    )
    whole = {"imports": ["$import os"], "network_def": definition, "network": "$@network_def.to(@device)", **(config or {})}
    (folder / "configs" / name).write_text(json.dumps(whole))
    torch.save(state, folder / "models" / "model.pt")
    return folder


def zipped(folder, path, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"zoo/{file.relative_to(folder)}")
    return path


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "model and opt"])
@pytest.mark.parametrize("is_zip", [False, True], ids=["folder", "zip"])
def test_network_task_and_tensors(tmp_path, weights, wrapped, is_zip):
    """Told by the configuration and metadata, from a folder or an archive; weights alone or beside an optimizer."""
    state = {"model": weights, "opt": {"state": {}, "param_groups": []}} if wrapped else weights
    path = write_bundle(tmp_path / "zoo", state)
    path = zipped(path, tmp_path / "zoo.zip") if is_zip else path
    checkpoint = open_checkpoint(path)

    assert "monai" == recognised_format(path).name
    assert UNET == network_of(checkpoint)
    assert TaskSpec(("t1", "t2"), {"csf": (1,), "gm": (2,)}, exclusive=True) == checkpoint.metadata.task
    assert list(weights) == list(checkpoint.entries)
    assert all(torch.equal(tensor, load_tensors(checkpoint)[name]) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("definition", "config"),
    [
        ({**DEFINITION, "_target_": "monai.networks.nets.UNet"}, {}),
        ({**DEFINITION, "_target_": "monai.networks.nets.unet.UNet"}, {}),
        ({**DEFINITION, "in_channels": "@inputs", "channels": "@net#widths"}, {"inputs": 2, "net": {"widths": [2, 4]}}),
        ({**DEFINITION, "out_channels": "$@classes::1", "strides": ["@stride"]}, {"classes": [0, 3], "stride": "@two", "two": 2}),
        ({key: value for key, value in DEFINITION.items() if "_channels" not in key}, {}),
    ],
    ids=["module", "file", "references", "nested", "metadata"],
)
def test_ways_to_say_the_same_network(tmp_path, weights, definition, config):
    """Full names, references to other keys, channels that only metadata.json tells."""
    assert UNET == network_of(open_checkpoint(write_bundle(tmp_path / "zoo", weights, definition, config)))


def test_configuration_in_yaml(tmp_path, weights):
    """JSON is YAML too."""
    assert UNET == network_of(open_checkpoint(write_bundle(tmp_path / "zoo", weights, name="train.yaml")))


@pytest.mark.parametrize(
    ("definition", "config"),
    [
        ({**DEFINITION, "out_channels": "$len([0, 1, 2])"}, {}),
        ({**DEFINITION, "channels": "%other.json::channels"}, {}),
        ({**DEFINITION, "in_channels": "@a"}, {"a": "@b", "b": "@a"}),
        ({**DEFINITION, "in_channels": "@missing"}, {}),
        ({**DEFINITION, "act": {"_target_": "torch.nn.ReLU"}}, {}),
        ({**DEFINITION, "_target_": "scripts.nets.Mine"}, {}),
        ({**DEFINITION, "_target_": "os.system"}, {}),
        ("$monai.networks.nets.UNet(3, 2, 3, [2, 4], [2])", {}),
    ],
    ids=["expression", "macro", "circle", "missing", "component", "script", "system", "whole"],
)
def test_what_would_run_code_is_left_unknown(tmp_path, weights, definition, config):
    """The tensors open; nothing runs."""
    checkpoint = open_checkpoint(write_bundle(tmp_path / "zoo", weights, definition, config))

    assert network_of(checkpoint) is None
    assert list(weights) == list(checkpoint.entries)


def test_code_runs_when_its_digest_is_allowed(tmp_path, weights):
    """The conversion tells what to pass; code that was changed since is not run."""
    folder = write_bundle(tmp_path / "zoo", weights, {**DEFINITION, "out_channels": "$len(@names)"}, {"names": ["a", "b", "c"]})
    result = convert(folder, tmp_path / "unknown.safetensors")
    convert(folder, tmp_path / "told.safetensors", allow_code=result.code)

    assert network_of(open_checkpoint(tmp_path / "unknown.safetensors")) is None
    assert UNET == network_of(open_checkpoint(tmp_path / "told.safetensors"))
    assert result.lines()[1].endswith(f"then pass --allow-code {result.code}")
    (folder / "configs" / "inference.json").write_text((folder / "configs" / "inference.json").read_text() + " ")
    with pytest.raises(UsageError, match="the code is not the one that was allowed"):
        convert(folder, tmp_path / "changed.safetensors", allow_code=result.code)


@pytest.mark.parametrize("what", ["nothing to allow", "archive", "raises"])
def test_code_that_cannot_run(tmp_path, weights, what):
    """Is told in one line."""
    code = "$1 / 0" if what == "raises" else "$1 + 2"
    definition = DEFINITION if what == "nothing to allow" else {**DEFINITION, "out_channels": code}
    path = write_bundle(tmp_path / "zoo", weights, definition)
    path = zipped(path, tmp_path / "zoo.zip") if what == "archive" else path
    digest = convert(path, tmp_path / "unknown.safetensors").code or "0" * 64
    said = {
        "nothing to allow": (UsageError, "there is no code to allow"),
        "archive": (UsageError, "the code of an archive is not run"),
        "raises": (InputError, "the code of the bundle failed"),
    }
    kind, text = said[what]
    with pytest.raises(kind) as caught:
        convert(path, tmp_path / "told.safetensors", allow_code=digest)

    assert str(caught.value).startswith(f"{text}: {path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_round_trip_returns_every_bit(tmp_path, weights, name):
    """With metadata and identity, whatever stands in between; sealed."""
    state = {key: tensor.numpy() for key, tensor in weights.items()}
    sealed = save(tmp_path / "m.safetensors", state, metadata_of(UNET, CLASSES))
    convert(tmp_path / "m.safetensors", tmp_path / name, to="monai")
    back = convert(tmp_path / name, tmp_path / "back.safetensors")

    assert sealed == open_checkpoint(tmp_path / name).metadata == open_checkpoint(tmp_path / "back.safetensors").metadata
    assert open_checkpoint(tmp_path / "m.safetensors").digest == back.digest == verify(tmp_path / name).digest


def test_damage_is_found(tmp_path, weights):
    """The seal in metadata.json covers the weights; the archive's checksums too."""
    save(tmp_path / "m.safetensors", {key: tensor.numpy() for key, tensor in weights.items()}, metadata_of(UNET, CLASSES))
    convert(tmp_path / "m.safetensors", tmp_path / "bundle", to="monai")
    torch.save({key: tensor + 1 for key, tensor in weights.items()}, tmp_path / "bundle" / "models" / "model.pt")

    with pytest.raises(InputError, match="the file is damaged"):
        open_checkpoint(tmp_path / "bundle")


def test_template_is_taken_over(tmp_path, weights):
    """`--like`: configuration, scripts and documents as they are, with new weights, and no weights of the template's."""
    like = write_bundle(tmp_path / "zoo", weights, {**DEFINITION, "out_channels": "$1 + 2"})
    (like / "scripts").mkdir()
    (like / "scripts" / "mine.py").write_text("raise SystemExit")
    (like / "models" / "model.ts").write_bytes(b"old")
    torch.save({name: tensor * 0 for name, tensor in weights.items()}, tmp_path / "new.pt")
    convert(tmp_path / "new.pt", tmp_path / "bundle", to="monai", like=like)
    written = torch.load(tmp_path / "bundle" / "models" / "model.pt", weights_only=True)

    assert list(weights) == list(written)
    assert not any(tensor.any() for tensor in written.values())
    for name in ("configs/inference.json", "scripts/mine.py"):
        assert (like / name).read_bytes() == (tmp_path / "bundle" / name).read_bytes()
    assert "0.1.0" == json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())["version"]
    assert ["model.pt"] == [file.name for file in (tmp_path / "bundle" / "models").iterdir()]


@pytest.mark.parametrize(
    ("metadata", "flags", "said"),
    [
        (metadata_of(None, CLASSES), {}, "wanted its architecture; pass --like with a bundle of the same network"),
        (metadata_of(UNET), {}, "wanted its modalities and regions; pass --like with a bundle of the same network"),
        (metadata_of(UNET, task_of(normalisation="rank")), {}, "found rank; pass --like with another bundle"),
        (metadata_of(UNET, CLASSES), {"like": "m.safetensors"}, "the template is no MONAI bundle"),
    ],
    ids=["architecture", "task", "rank", "template"],
)
def test_bundle_that_would_not_run_is_refused(tmp_path, metadata, flags, said):
    """Nothing is written."""
    save(tmp_path / "m.safetensors", {"a": np.ones(1)}, metadata)
    with pytest.raises(UsageError) as caught:
        convert(tmp_path / "m.safetensors", tmp_path / "bundle", to="monai", **{key: tmp_path / name for key, name in flags.items()})

    assert said in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def run_bundle(folder, data):
    """What `python -m monai.bundle run` answers."""
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    return subprocess.run([*command, "--dataset_dir", str(data)], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Two subjects in folders of their own, on different grids."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, shape, edge in (("a", (20, 24, 16), 4.0), ("b", (40, 33, 30), 2.0)):
        (root / name).mkdir()
        for modality in ("t1", "t2"):
            image = np.zeros(shape, np.float32)
            image[2:-2, 2:-2, 2:-2] = rng.uniform(50, 100, [size - 4 for size in shape])
            nibabel.save(nibabel.Nifti1Image(image, np.diag([-edge, -edge, edge, 1])), root / name / f"{modality}.nii.gz")
    return root


@pytest.mark.slow
def test_monai_runs_a_bundle_of_its_own_network(tmp_path, weights, subjects):
    """Segmentations on the subjects' own grids, of the classes' labels; its own class is named, so mergekit3d is not needed there."""
    task = TaskSpec(("t1", "t2"), {"csf": (24,), "gm": (7,)}, exclusive=True, spacing_mm=(4.0, 4.0, 4.0))
    save(tmp_path / "m.safetensors", {key: tensor.numpy() for key, tensor in weights.items()}, metadata_of(UNET, task))
    convert(tmp_path / "m.safetensors", tmp_path / "bundle", to="monai")
    outcome = run_bundle(tmp_path / "bundle", subjects)

    assert 0 == outcome.returncode, outcome.stderr[-2000:]
    assert "mergekit3d." not in (tmp_path / "bundle" / "configs" / "inference.json").read_text()
    for name in ("a", "b"):
        image = nibabel.load(subjects / name / "t1.nii.gz")
        written = nibabel.load(tmp_path / "bundle" / "eval" / name / "t1_seg.nii.gz")
        np.testing.assert_array_equal(image.affine, written.affine)
        assert image.shape == written.shape
        assert {0, 7, 24} == set(np.unique(np.asarray(written.dataobj)))


@pytest.mark.slow
def test_monai_runs_a_bundle_of_any_other_network(tmp_path, subjects):
    """Built by mergekit3d, which is installed there then; a mask for each region."""
    save_source(tmp_path / "m.safetensors", spec=spec_of(2, 3), task=task_of(("t1", "t2"), spacing_mm=(4.0, 4.0, 4.0)))
    convert(tmp_path / "m.safetensors", tmp_path / "bundle", to="monai")
    shutil.rmtree(tmp_path / "bundle" / "eval", ignore_errors=True)
    outcome = run_bundle(tmp_path / "bundle", subjects)

    assert 0 == outcome.returncode, outcome.stderr[-2000:]
    written = nibabel.load(tmp_path / "bundle" / "eval" / "b" / "t1_seg.nii.gz")
    assert (40, 33, 30, 3) == written.shape
    assert {0, 1} == set(np.unique(np.asarray(written.dataobj)))


@pytest.mark.slow
@pytest.mark.parametrize("normalisation", ["zscore", "zscore-image", "rescale"])
def test_monai_and_predict_agree(tmp_path, weights, normalisation):
    """Voxel by voxel: the network sees the same crop, padding and intensities, so that its strides fall on the same voxels."""
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    for name, shape in (("a", (23, 27, 21)), ("b", (30, 19, 26))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for modality in ("t1", "t2"):
            image = np.zeros(shape, np.float32)
            image[5:-3, 4:-6, 3:-4] = rng.uniform(50, 100, [size - less for size, less in zip(shape, (8, 10, 7), strict=True)])
            nibabel.save(nibabel.Nifti1Image(image, np.diag([-3, 3, 3, 1])), tmp_path / "data" / name / f"{modality}.nii.gz")
    task = TaskSpec(("t1", "t2"), {"csf": (24,), "gm": (7,)}, exclusive=True, normalisation=normalisation)
    state = {key: torch.randn(tensor.shape, generator=generator).numpy() for key, tensor in weights.items()}
    save(tmp_path / "m.safetensors", state, metadata_of(UNET, task))
    convert(tmp_path / "m.safetensors", tmp_path / "bundle", to="monai")
    outcome = run_bundle(tmp_path / "bundle", tmp_path / "data")
    predict(tmp_path / "m.safetensors", tmp_path / "data", tmp_path / "ours", options=Options(device="cpu", precision="fp32"))

    assert 0 == outcome.returncode, outcome.stderr[-2000:]
    for name in ("a", "b"):
        theirs = np.asarray(nibabel.load(tmp_path / "bundle" / "eval" / name / "t1_seg.nii.gz").dataobj)
        ours = np.asarray(nibabel.load(tmp_path / "ours" / f"{name}.nii.gz").dataobj)
        assert {0, 7, 24} == set(np.unique(ours))
        # A vote may be a tie to the last bit of float32.
        assert np.mean(ours != theirs) < 1e-3


@pytest.mark.parametrize("files", [[], ["a.pt", "b.pt"]], ids=["none", "two"])
def test_weights_that_cannot_be_chosen(tmp_path, weights, files):
    """Their names are told."""
    folder = write_bundle(tmp_path / "zoo", weights)
    (folder / "models" / "model.pt").unlink()
    for name in files:
        torch.save(weights, folder / "models" / name)

    found = ", ".join(f"models/{name}" for name in files) or "none"
    with pytest.raises(InputError, match=f"cannot choose the weights of the bundle.*found {found}"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "model.ts"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:The TorchScript type system")
def test_weights_in_other_formats(tmp_path, weights, name):
    """Told by their content, in the folder of a bundle."""
    folder = write_bundle(tmp_path / "zoo", weights)
    digest = open_checkpoint(folder).digest
    (folder / "models" / "model.pt").unlink()
    network = build_network(UNET)
    network.load_state_dict(weights)
    if name.endswith(".ts"):
        torch.jit.save(torch.jit.script(network), folder / "models" / name)
    else:
        save_file(weights, folder / "models" / name)

    assert digest == open_checkpoint(folder).digest
    assert UNET == network_of(open_checkpoint(folder))


@pytest.mark.parametrize("content", ["{", "[]", "\x00", "[" * 100_000], ids=["cut", "list", "null", "deep"])
def test_damaged_configuration(tmp_path, weights, content):
    """65, with the file's name."""
    folder = write_bundle(tmp_path / "zoo", weights)
    (folder / "configs" / "metadata.json").write_text(content)

    with pytest.raises(InputError, match="cannot read the configuration: .*configs/metadata.json"):
        open_checkpoint(folder)


def test_bomb_in_an_archive(tmp_path, weights):
    """Sizes are looked at before anything is unpacked."""
    folder = write_bundle(tmp_path / "zoo", weights)
    torch.save({"a": torch.zeros(8_000_000)}, folder / "models" / "model.pt")

    with pytest.raises(InputError, match="the file is too large"):
        open_checkpoint(zipped(folder, tmp_path / "zoo.zip"))


def test_mutants_of_an_archive_raise_nothing_but_input_errors(tmp_path, weights):
    """And never give other values."""
    path = zipped(write_bundle(tmp_path / "zoo", weights), tmp_path / "zoo.zip")
    assert_mutants_are_refused(path)
