"""Where and in which precision to compute, and what to say when the memory runs out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergekit3d.errors import MachineError, UsageError, is_out_of_memory
from mergekit3d.registry import did_you_mean

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "fp32", "bf16")
TRAINING_PRECISIONS = (*PRECISIONS, "fp16")
"""Training alone can scale its loss so that gradients do not vanish in fp16."""

FAST_BF16_CAPABILITY = (8, 0)
"""CUDA compute capability from which tensor cores take bf16 (Ampere)."""


@dataclass(frozen=True)
class Runtime:
    """A device and a precision.

    Args:
        device: where networks and batches go.
        precision: fp32, or bf16 or fp16 by autocast (weights, optimizer and loss stay in float32).
    """

    device: torch.device
    precision: str = "fp32"

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass in this precision."""
        import torch

        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "fp32")


def resolve_runtime(device: str = "auto", precision: str = "auto", *, known: Sequence[str] = PRECISIONS) -> Runtime:
    """The device and precision that the flags ask for.

    Args:
        device: auto (the first CUDA device, else the CPU), cpu, cuda, cuda:N or mps.
        precision: auto (bf16 where the device computes it fast, else fp32), fp32, bf16, or where it is known, fp16.
        known: the precisions that this work can do.

    Returns:
        What to compute with.

    Raises:
        UsageError: a name that is unknown, a device that is not there, or fp16 where there is no GPU.
    """
    if precision not in known:
        raise UsageError(f"unknown precision {precision!r}", todo=did_you_mean(precision, known))
    found = _device(device)
    if precision == "fp16" and found.type != "cuda":
        raise UsageError("fp16 is for GPUs", where=f"device {found}", todo="set precision to auto, bf16 or fp32, or pass --device cuda")
    if precision == "auto":
        precision = "bf16" if _has_fast_bf16(found) else "fp32"
    return Runtime(found, precision)


def slow_precision(runtime: Runtime) -> str | None:
    """A warning where a precision that was asked for is emulated; None where it is not."""
    if runtime.precision != "bf16" or runtime.device.type not in ("cpu", "cuda") or _has_fast_bf16(runtime.device):
        return None
    where = "processor" if runtime.device.type == "cpu" else "GPU"
    return f"bf16 is emulated on this {where}, many times slower than fp32; set precision: auto"


def training_runtime(device: str, flag: str, recipe: str) -> Runtime:
    """The device and precision of a training.

    Args:
        device: see `resolve_runtime`.
        flag: the precision that the flag asks for; auto: the recipe decides.
        recipe: the precision of the recipe's training, which may be fp16.

    Raises:
        UsageError: see `resolve_runtime`.
    """
    return resolve_runtime(device, recipe if flag == "auto" else flag, known=TRAINING_PRECISIONS)


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    numbered = re.fullmatch(r"cuda(?::(\d+))?", name)
    if numbered is None and name not in ("cpu", "mps"):
        raise UsageError(f"unknown device {name!r}", todo="known: auto, cpu, cuda, cuda:N, mps")
    if numbered is not None:
        count, index = torch.cuda.device_count() if torch.cuda.is_available() else 0, int(numbered.group(1) or 0)
        if index >= count:
            found = "no CUDA device" if count == 0 else f"{count} CUDA devices, counted from 0"
            raise UsageError("the device is not there", where=name, found=found, todo="pass --device auto")
        return torch.device("cuda", index)
    if name == "mps" and not torch.backends.mps.is_available():
        raise UsageError("the device is not there", where=name, found="no Apple GPU", todo="pass --device auto")
    return torch.device(name)


def _has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32: elsewhere it is emulated, on an AVX2 processor at a tenth of the speed."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= FAST_BF16_CAPABILITY
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())  # noqa: SLF001  public from 2.11 on
    return False


@contextmanager
def memory_advice(
    runtime: Runtime, *, patch_size: tuple[int, int, int] | None, batch_size: int, further: Sequence[str] = ()
) -> Iterator[None]:
    """Tell an exhausted memory as one line with what to change.

    Args:
        runtime: where the work runs.
        patch_size: as it stands; None: whole volumes.
        batch_size: as it stands.
        further: what else would help.

    Raises:
        MachineError: the memory ran out inside the block.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        advice = ["set patch_size" if patch_size is None else f"make patch_size {list(patch_size)} smaller"]
        if batch_size > 1:
            advice.append(f"make batch_size {batch_size} smaller")
        if runtime.precision == "fp32" and runtime.device.type != "cpu":
            advice.append("pass --precision bf16")
        if runtime.device.type != "cpu":
            advice.append("pass --device cpu")
        advice += further
        raise MachineError("out of memory", where=runtime.device, todo=", or ".join(advice)) from error
