"""A training step in both memory formats, plain and by torch.compile: what `memory_format` and `compile` of a recipe are worth here.

    python benchmarks/memory_format.py [--filters 8 16] [--size 64] [--batch-size 1] [--precisions fp32 bf16] [--compile] [--device cuda]

Isensee 2017 with mergekit3d's own step (forward, soft Dice, backward, norm of the gradient, Adam) on one batch that lies ready. Prints
a table in Markdown: medians, and the ratio to the contiguous step; with --compile also what the first step takes, which compiles.
--one-thread measures processor time on one thread, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from mergekit3d.architectures.networks.isensee2017 import Isensee2017
from mergekit3d.architectures.slabs import use_fast_cpu_convolutions
from mergekit3d.datasets.sampling import Batch
from mergekit3d.training.devices import Runtime, resolve_runtime
from mergekit3d.training.interruption import Interruption
from mergekit3d.training.loss import dice_loss
from mergekit3d.training.objective import SUPERVISED
from mergekit3d.training.processes import ALONE
from mergekit3d.training.settings import TrainingSettings
from mergekit3d.training.sharing import Sharing
from mergekit3d.training.stepping import MEMORY_FORMATS, Stepper

ARMS = ((False, "contiguous"), (False, "channels_last"), (True, "contiguous"), (True, "channels_last"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filters", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--one-thread", action="store_true")
    parser.add_argument("--markdown", type=Path, help="write the table into this file too")
    chosen = parser.parse_args()
    if chosen.one_thread:
        torch.set_num_threads(1)
    clock = "1 thread, processor time" if chosen.one_thread else f"{torch.get_num_threads()} threads"
    said = [
        f"torch {torch.__version__}, {chosen.device}, {clock}; {chosen.size}^3, batch {chosen.batch_size}, median of {chosen.repeats}\n",
        "| base filters | precision | memory format | plain | torch.compile | its first step |\n|---|---|---|---|---|---|",
    ]
    print(*said, sep="\n", flush=True)
    for filters in chosen.filters:
        for precision in chosen.precisions:
            for line in measured(filters, precision, chosen):
                said.append(line)
                print(line, flush=True)
    if chosen.markdown is not None:
        chosen.markdown.write_text("\n".join([*said, ""]), encoding="utf-8")


def measured(filters: int, precision: str, chosen: argparse.Namespace) -> list[str]:
    """A line for each memory format; the arms take turns."""
    runtime = resolve_runtime(chosen.device, precision)
    arms = [arm for arm in ARMS if chosen.compile or not arm[0]]
    steps = {arm: prepared(filters, runtime, *arm, size=chosen.size, batch_size=chosen.batch_size) for arm in arms}
    clock = time.process_time if chosen.one_thread else time.perf_counter
    first, seconds = {}, {arm: [] for arm in arms}  # type: ignore[var-annotated]
    for arm, step in steps.items():
        began = time.perf_counter()
        step()
        first[arm] = time.perf_counter() - began
    for _ in range(chosen.repeats):
        for arm, step in steps.items():
            began = clock()
            step()
            seconds[arm].append(clock() - began)
    base = median(seconds[False, "contiguous"])

    def cell(arm: tuple[bool, str]) -> str:
        return f"{median(seconds[arm]) * 1e3:.0f} ms ({median(seconds[arm]) / base:.2f})" if arm in seconds else ""

    return [
        f"| {filters} | {precision} | {name} | {cell((False, name))} | {cell((True, name))} | "
        f"{f'{first[True, name]:.0f} s' if chosen.compile else ''} |"
        for name in MEMORY_FORMATS
    ]


def prepared(filters: int, runtime: Runtime, compiled: bool, memory_format: str, *, size: int, batch_size: int) -> Callable[[], None]:
    """A step, ready to be taken; on a GPU it waits for its end."""
    torch.manual_seed(0)
    network = Isensee2017(4, 3, base_filters=filters).train()
    use_fast_cpu_convolutions(network)
    network.to(runtime.device, memory_format=MEMORY_FORMATS[memory_format])  # type: ignore[call-overload]
    parameters = list(network.parameters())
    stepper = Stepper(
        network,
        torch.optim.Adam(parameters, 1e-3),
        parameters,
        TrainingSettings(compile=compiled, memory_format=memory_format),
        runtime=runtime,
        loss=SUPERVISED.of(dice_loss),
        exclusive=False,
        seed=0,
        sharing=Sharing(ALONE, Interruption(), network, parameters),
        before_forward=lambda: None,
        after_backward=lambda: None,
        before_step=lambda: None,
    )
    shape = (size, size, size)
    images = torch.randn(batch_size, 4, *shape)
    targets = (torch.rand(batch_size, 3, *shape) > 0.7).to(torch.uint8)
    batch = Batch(images, targets, tuple(range(1, batch_size + 1)), (shape,) * batch_size)

    def step() -> None:
        stepper.step([batch], 0, 0)
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()

    return step


if __name__ == "__main__":
    main()
