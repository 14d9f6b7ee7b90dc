"""TorchScript archives: tensors alone, and none of their code runs."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch

from mergekit3d import convert
from mergekit3d.checkpoints import load_tensors, open_checkpoint, recognised_format
from mergekit3d.errors import InputError
from tests.builders import assert_mutants_are_refused

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Block(torch.nn.Module):
    """Parameters, buffers, modules in lists, a tensor that is none of them, one that is shared, and one that is not there."""

    def __init__(self, channels):
        super().__init__()
        self.convs = torch.nn.ModuleList([torch.nn.Conv3d(1, channels, 3, padding=1), torch.nn.Conv3d(channels, 1, 1, bias=False)])
        self.norm = torch.nn.BatchNorm3d(channels)
        self.again = self.convs[0]
        self.scale = torch.nn.Parameter(torch.randn(channels, 1, 1, 1, dtype=torch.float64).half())
        self.plain = torch.ones(3)
        self.nothing = None

    def forward(self, x):
        return self.convs[1](self.norm(self.again(x)) * self.scale.float() + self.plain.sum())


def save_scripted(path, module, how):
    torch.manual_seed(0)
    image = torch.randn(1, 1, 4, 4, 4)
    scripted = torch.jit.trace(module.eval(), image) if how == "trace" else torch.jit.script(module)
    torch.jit.save(scripted, path)


@pytest.mark.parametrize("how", ["trace", "script"])
def test_tensors_are_those_of_the_state_dict(tmp_path, how):
    """In its order, under its names, bit for bit, with its aliases; attributes that are no parameters and no buffers are not."""
    module = torch.nn.Sequential(Block(2), Block(3), torch.nn.ReLU())
    save_scripted(tmp_path / "model.ts", module, how)
    expected = torch.jit.load(tmp_path / "model.ts").state_dict()
    checkpoint = open_checkpoint(tmp_path / "model.ts")
    found = load_tensors(checkpoint)

    assert "torchscript" == recognised_format(tmp_path / "model.ts").name
    assert list(expected) == list(found)
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype
        assert torch.equal(tensor, found[name]), name
    assert {f"{block}.again.{name}": f"{block}.convs.0.{name}" for block in (0, 1) for name in ("weight", "bias")} == checkpoint.aliases


@pytest.mark.parametrize("name", ["UNet", "DynUNet"])
def test_networks_of_monai(tmp_path, name):
    """As the bundles of MONAI's model zoo hold them."""
    from monai.networks import nets

    arguments = {
        "UNet": {"channels": (4, 8, 8), "strides": (2, 2), "norm": "batch"},
        "DynUNet": {"kernel_size": (3, 3, 3), "strides": (1, 2, 2), "upsample_kernel_size": (2, 2), "filters": (4, 8, 8)},
    }
    network = getattr(nets, name)(spatial_dims=3, in_channels=1, out_channels=2, **arguments[name])
    torch.jit.save(torch.jit.script(network), tmp_path / "model.ts")
    found = load_tensors(open_checkpoint(tmp_path / "model.ts"))

    assert network.state_dict().keys() == found.keys()
    network.load_state_dict(found)


def test_conversion_keeps_every_bit(tmp_path):
    """Into a file that loads anywhere."""
    save_scripted(tmp_path / "model.ts", Block(2), "script")
    convert(tmp_path / "model.ts", tmp_path / "model.safetensors")

    assert open_checkpoint(tmp_path / "model.ts").digest == open_checkpoint(tmp_path / "model.safetensors").digest


def rewritten(path, out, change):
    """The archive with its pickle changed."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(out, "w") as copy:
        for name in archive.namelist():
            content = archive.read(name)
            copy.writestr(name, change(content) if name.endswith("/data.pkl") else content)


def test_names_that_run_code_are_refused(tmp_path):
    """Whatever the pickle names is looked up in a list of what is inert."""
    save_scripted(tmp_path / "model.ts", torch.nn.Conv3d(1, 1, 1), "script")
    rewritten(
        tmp_path / "model.ts", tmp_path / "odd.ts", lambda content: content.replace(b"ctorch._utils\n_rebuild_tensor_v2", b"cos\nsystem")
    )

    with pytest.raises(InputError) as caught:
        open_checkpoint(tmp_path / "odd.ts")
    said = f"cannot use the TorchScript archive: {tmp_path}/odd.ts: wanted modules of dense tensors, found os.system"
    assert said == str(caught.value)


def test_module_without_tensors(tmp_path):
    """There is nothing to merge."""
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "model.ts")

    with pytest.raises(InputError, match="no tensors in the file"):
        open_checkpoint(tmp_path / "model.ts")


def test_mutants_raise_nothing_but_input_errors(tmp_path):
    """And never give other values."""
    save_scripted(tmp_path / "model.ts", torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2)), "script")
    assert_mutants_are_refused(tmp_path / "model.ts")


def test_mutants_of_the_pickle_raise_nothing_but_input_errors(tmp_path):
    """Where the checksum is right and the content is not."""
    save_scripted(tmp_path / "model.ts", torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2)), "script")
    generator = np.random.default_rng(1)

    def changed(content):
        mutant = bytearray(content)
        mutant[int(generator.integers(len(mutant)))] = int(generator.integers(256))
        return bytes(mutant)

    for _ in range(300):
        rewritten(tmp_path / "model.ts", tmp_path / "mutant.ts", changed)
        try:
            checkpoint = open_checkpoint(tmp_path / "mutant.ts")
        except InputError:
            continue
        assert all(checkpoint.read(name) is not None for name in checkpoint.entries)
