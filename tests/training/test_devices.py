"""Devices, precisions and exhausted memory."""

from __future__ import annotations

import pytest
import torch

from mergekit3d.errors import MergeKit3DError, UsageError
from mergekit3d.training.devices import Runtime, memory_advice, resolve_runtime, slow_precision, training_runtime

CPU = torch.device("cpu")


@pytest.fixture
def cuda(monkeypatch):
    """Two CUDA devices of a capability."""

    def pretend(count=2, capability=(8, 0)):
        monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)

    return pretend


@pytest.fixture
def slow_processor(monkeypatch):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)


@pytest.mark.parametrize(("precision", "slow"), [("fp32", False), ("bf16", True)])
def test_emulated_precision_is_warned_about(slow_processor, precision, slow):
    """A recipe from another machine may ask for what this one emulates."""
    told = slow_precision(Runtime(CPU, precision))

    assert ("bf16 is emulated on this processor, many times slower than fp32; set precision: auto" if slow else None) == told


def test_auto_takes_the_gpu_where_there_is_one(cuda, slow_processor):
    """The first CUDA device in bf16, else the CPU in fp32."""
    cuda(0)
    assert Runtime(CPU, "fp32") == resolve_runtime()
    cuda(2)
    assert Runtime(torch.device("cuda:0"), "bf16") == resolve_runtime()


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_takes_bf16_from_ampere_on(cuda, capability, precision):
    """Older GPUs emulate it."""
    cuda(capability=capability)
    assert precision == resolve_runtime("cuda:1").precision


@pytest.mark.parametrize("feature", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_auto_takes_bf16_on_processors_that_compute_it(monkeypatch, slow_processor, feature):
    """AVX-512 with bf16, or AMX."""
    assert resolve_runtime("cpu").precision == "fp32"
    monkeypatch.setattr(f"torch.cpu.{feature}", lambda: True)
    assert resolve_runtime("cpu").precision == "bf16"


def test_fp16_is_for_trainings_on_gpus(cuda):
    """Which scale the loss: on the CPU it is refused, and so it is elsewhere; the flag beats the recipe."""
    cuda()
    assert Runtime(torch.device("cuda:0"), "fp16") == training_runtime("auto", "auto", "fp16")
    assert "bf16" == training_runtime("auto", "bf16", "fp16").precision
    with pytest.raises(UsageError, match="fp16 is for GPUs: device cpu; set precision to auto, bf16 or fp32, or pass --device cuda"):
        training_runtime("cpu", "auto", "fp16")
    with pytest.raises(UsageError, match="unknown precision 'fp16'"):
        resolve_runtime("auto", "fp16")


def test_a_precision_that_is_asked_for_is_taken():
    """Also where it is slow."""
    assert resolve_runtime("cpu", "bf16").precision == "bf16"
    assert resolve_runtime("cpu", "fp32").precision == "fp32"


@pytest.mark.parametrize(
    ("count", "device", "text"),
    [
        (0, "cuda", "the device is not there: cuda: found no CUDA device; pass --device auto"),
        (2, "cuda:2", "the device is not there: cuda:2: found 2 CUDA devices, counted from 0; pass --device auto"),
        (0, "gpu", "unknown device 'gpu'; known: auto, cpu, cuda, cuda:N, mps"),
        (0, "cuda:N", "unknown device 'cuda:N'; known: auto, cpu, cuda, cuda:N, mps"),
        (0, "cuda:-1", "unknown device 'cuda:-1'; known: auto, cpu, cuda, cuda:N, mps"),
    ],
)
def test_a_device_that_is_not_there_is_refused(cuda, count, device, text):
    """In one line, with what there is."""
    cuda(count)
    with pytest.raises(UsageError) as caught:
        resolve_runtime(device)
    assert text == str(caught.value)


def test_mps_is_refused_where_there_is_no_apple_gpu(monkeypatch):
    """In one line."""
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(UsageError, match="mps: found no Apple GPU; pass --device auto"):
        resolve_runtime("mps")


def test_an_unknown_precision_is_refused():
    """With the nearest name."""
    with pytest.raises(UsageError, match="unknown precision 'fp16'; did you mean 'bf16'"):
        resolve_runtime("cpu", "fp16")


def test_autocast_computes_in_the_precision():
    """bf16 in the forward pass, or nothing at all."""
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with Runtime(CPU, "bf16").autocast():
        assert layer(x).dtype == torch.bfloat16
    with Runtime(CPU).autocast():
        assert layer(x).dtype == torch.float32


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_exhausted_memory_says_what_to_change(error):
    """Patch, batch and precision, as they stand."""
    with pytest.raises(MergeKit3DError) as caught, memory_advice(Runtime(torch.device("cuda:1")), patch_size=(64, 64, 32), batch_size=2):
        raise error
    smaller = "make patch_size [64, 64, 32] smaller, or make batch_size 2 smaller"
    assert f"out of memory: cuda:1; {smaller}, or pass --precision bf16, or pass --device cpu" == str(caught.value)
    assert 71 == caught.value.exit_code


def test_whole_volumes_are_told_to_become_patches():
    """On the CPU, at batch 1."""
    with pytest.raises(MergeKit3DError) as caught, memory_advice(Runtime(CPU), patch_size=None, batch_size=1):
        raise MemoryError
    assert "out of memory: cpu; set patch_size" == str(caught.value)


def test_other_errors_pass():
    """A bug is no lack of memory."""
    with pytest.raises(RuntimeError, match="shapes differ"), memory_advice(Runtime(CPU), patch_size=None, batch_size=1):
        raise RuntimeError("shapes differ")
