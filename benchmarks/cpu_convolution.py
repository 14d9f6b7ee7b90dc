"""Training step of Isensee 2017 on the CPU in float32: slab convolutions, and channels_last_3d, against the plain network.

    python benchmarks/cpu_convolution.py [--repeats 3] [--filters 8 16] [--sizes 32 48 64] [--batches 1 2] [--one-thread]

Prints a table in Markdown: the fastest of the repeats in seconds, and its ratio to the plain network's. The variants take turns, so
that a machine that slows down slows all of them. --one-thread measures processor time on one thread, which other work on the machine
disturbs less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mergekit3d.architectures.networks.isensee2017 import Isensee2017
from mergekit3d.architectures.slabs import fast_cpu_convolutions
from mergekit3d.training.loss import dice_loss

VARIANTS = ("plain", "channels_last_3d", "slabs", "slabs, channels_last_3d")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--filters", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 48, 64])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--one-thread", action="store_true")
    chosen = parser.parse_args()
    clock = time.process_time if chosen.one_thread else time.perf_counter
    if chosen.one_thread:
        torch.set_num_threads(1)
    threads = "1 thread, processor time" if chosen.one_thread else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {threads}, {torch.backends.cpu.get_cpu_capability()}, best of {chosen.repeats}\n")
    print("| base filters | volume | batch | plain | " + " | ".join(VARIANTS[1:]) + " |")
    print("|" + "---|" * (4 + len(VARIANTS) - 1))
    for batch in chosen.batches:
        for filters in chosen.filters:
            for size in chosen.sizes:
                seconds = measure(filters, size, batch, chosen.repeats, clock)
                ratios = [f"{seconds[name]:.3f} s ({seconds[name] / seconds['plain']:.2f})" for name in VARIANTS[1:]]
                print(f"| {filters} | {size}^3 | {batch} | {seconds['plain']:.3f} s | " + " | ".join(ratios) + " |", flush=True)


def measure(filters: int, size: int, batch: int, repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of the fastest step of every variant, after one for warming up."""
    steps = {}
    for name in VARIANTS:
        torch.manual_seed(0)
        network = Isensee2017(4, 3, base_filters=filters)
        image = torch.randn(batch, 4, size, size, size)
        if "channels_last_3d" in name:
            network = network.to(memory_format=torch.channels_last_3d)
            image = image.contiguous(memory_format=torch.channels_last_3d)
        target = (image[:, :3] > 0).float()
        steps[name] = (network, torch.optim.Adam(network.parameters(), lr=5e-4, fused=True), image, target)
    fastest = dict.fromkeys(VARIANTS, float("inf"))
    for _ in range(repeats + 1):
        for name, (network, optimizer, image, target) in steps.items():
            fast: AbstractContextManager[None] = fast_cpu_convolutions(network) if "slabs" in name else nullcontext()
            with fast:
                began = clock()
                step(network, optimizer, image, target)
                fastest[name] = min(fastest[name], clock() - began)
    return fastest


def step(network: nn.Module, optimizer: torch.optim.Optimizer, image: Tensor, target: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(dice_loss(network(image), target, False))
    optimizer.step()


if __name__ == "__main__":
    main()
