"""Exact squared gradients of every sample, of Isensee 2017: ours, naive loop, vmap(grad) and opacus, against one plain pass.

    python benchmarks/fisher.py [--filters 8 16] [--sizes 32 64] [--batches 4 2] [--repeats 3] [--one-thread] [--markdown FILE]

Prints a table in Markdown: seconds, and peak memory, with the ratio to the floor in brackets: one forward and one backward pass of
the same batch in the same memory format and with the same fast convolutions. "torch default" is that pass without either. Seconds are
the medians of the repeats, ratios the medians of the ratios in one turn: the variants take turns, so that a machine that slows down
slows all of them. Memory is what a process of its own for each variant adds to what it has before the first pass (Linux only).
Ours includes the check of the first batch, a forward pass of one sample, only in the column "first". A second table tells how far
1, 4 and 16 draws of the labels are from many. Exits with 1 when it cannot measure: ours and the naive loop differ by more than 1e-4
in float64, or by more than 0.05 in float32 ("difference"; activations that change sign by rounding leave up to 0.01 there).
--one-thread measures processor time on one thread, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from mergekit3d.architectures.networks.isensee2017 import Isensee2017
from mergekit3d.architectures.slabs import fast_cpu_convolutions
from mergekit3d.fisher_estimation import Example, add_subject, empty_sums
from mergekit3d.per_sample import per_sample_gradients

FLOOR = "floor"
OURS = "ours"
NAIVE = "naive loop"
VARIANTS = (FLOOR, OURS, "torch default", NAIVE, "vmap(grad)", "opacus")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}
TOLERANCE = {torch.float64: 1e-4, torch.float32: 0.05}
INTERVAL_S = 0.002

Totals = dict[str, Tensor]
Step = Callable[[], Totals]


class CannotMeasureError(Exception):
    """A variant failed, or its result is wrong."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filters", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="floor and ours are always measured")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--draws", type=int, default=400, help="of the many that few draws are compared with; 0 leaves that table out")
    parser.add_argument("--one-thread", action="store_true")
    parser.add_argument("--markdown", type=Path, help="write the tables into this file too")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one_thread:
        torch.set_num_threads(1)
    if chosen.memory_of is not None:
        print(peak_of(chosen.memory_of, chosen.filters[0], chosen.sizes[0], chosen.batches[0], chosen.formats[0]))
        return
    try:
        text = measure_all(chosen)
    except CannotMeasureError as error:
        sys.exit(f"cannot measure: {error}")
    if chosen.markdown is not None:
        chosen.markdown.write_text(text, encoding="utf-8")


def measure_all(chosen: argparse.Namespace) -> str:
    """Both tables, printed line by line.

    Raises:
        CannotMeasureError: a variant failed, or ours differs from the naive loop.
    """
    said: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        said.append(line)

    present = [
        name for name in VARIANTS if name in {FLOOR, OURS, *chosen.variants} and (name != "opacus" or importlib.util.find_spec(name))
    ]
    threads = "1 thread, processor time" if chosen.one_thread else f"{torch.get_num_threads()} threads"
    say(f"torch {torch.__version__}, {threads}, {torch.backends.cpu.get_cpu_capability()}, median of {chosen.repeats}")
    if "opacus" in chosen.variants and "opacus" not in present:
        say("opacus is not installed: left out")
    say("\n| base filters | volume | batch | memory format | " + " | ".join(present) + " | ours, first | difference |")
    say("|" + "---|" * (6 + len(present)))
    for filters in chosen.filters:
        check_in_float64(filters)
    for batch in chosen.batches:
        for filters in chosen.filters:
            for size in chosen.sizes:
                for name in chosen.formats:
                    cells = measure(filters, size, batch, name, present, chosen)
                    say(f"| {filters} | {size}^3 | {batch} | {name} | " + " | ".join(cells) + " |")
    if chosen.draws:
        say("\nRelative error of the diagonal and of its trace, of a tiny network, against the mean of many draws")
        say("\n| draws | diagonal | trace |\n|---|---|---|")
        for draws, (of_diagonal, of_trace) in accuracy(chosen.draws).items():
            say(f"| {draws} | {of_diagonal:.1%} | {of_trace:.2%} |")
    return "\n".join([*said, ""])


def measure(filters: int, size: int, batch: int, memory_format: str, present: list[str], chosen: argparse.Namespace) -> list[str]:
    """The cells of one line: every variant's seconds and memory, and the difference of ours from the naive loop."""
    clock = time.process_time if chosen.one_thread else time.perf_counter
    with ExitStack() as stack:
        steps = {name: prepared(name, filters, size, batch, memory_format, stack) for name in present}
        reference = prepared(NAIVE, filters, size, batch, memory_format, stack)
        began = clock()
        found = steps[OURS]()
        first = clock() - began
        apart = difference(reference(), found)
        if not apart <= TOLERANCE[torch.float32]:
            raise CannotMeasureError(f"ours differs from the naive loop by {apart:.1e} at {filters} filters, {size}^3, batch {batch}")
        for name, step in steps.items():
            if name != OURS:
                step()
        seconds: dict[str, list[float]] = {name: [] for name in present}
        for _ in range(chosen.repeats):
            for name, step in steps.items():
                began = clock()
                step()
                seconds[name].append(clock() - began)
    memory = {name: memory_of(name, filters, size, batch, memory_format, one_thread=chosen.one_thread) for name in present}
    floor = median(seconds[FLOOR])
    return [*(cell(name, seconds, memory) for name in present), f"{first:.3f} s ({first / floor:.2f})", f"{apart:.0e}"]


def check_in_float64(filters: int) -> None:
    """Compare ours with the naive loop where rounding is small.

    Raises:
        CannotMeasureError: they differ.
    """
    with ExitStack() as stack:
        ours, naive = (prepared(name, filters, 32, 2, "contiguous", stack, torch.float64) for name in (OURS, NAIVE))
        apart = difference(naive(), ours())
    if not apart <= TOLERANCE[torch.float64]:
        raise CannotMeasureError(f"ours differs from the naive loop by {apart:.1e} in float64 at {filters} filters")


def cell(name: str, seconds: Mapping[str, list[float]], memory: Mapping[str, float]) -> str:
    text = f"{median(seconds[name]):.3f} s"
    ratio = median(one / floor for one, floor in zip(seconds[name], seconds[FLOOR], strict=True))
    in_memory = f"{memory[name] / 1e6:.0f} MB"
    if name == FLOOR:
        return f"{text}, {in_memory}"
    return f"{text} ({ratio:.2f}), {in_memory} ({memory[name] / memory[FLOOR]:.2f})"


def prepared(
    name: str, filters: int, size: int, batch: int, memory_format: str, stack: ExitStack, dtype: torch.dtype = torch.float32
) -> Step:
    """A variant, ready to be run: it gives sums of squares by parameter, or plain gradients where it is a floor."""
    torch.manual_seed(0)
    network: nn.Module = Isensee2017(4, 3, base_filters=filters).to(dtype).eval()
    x = torch.randn(batch, 4, size, size, size, dtype=dtype)
    score = torch.randn(batch, 3, size, size, size, dtype=dtype) * 0.1
    if name != "torch default":
        network.to(memory_format=FORMATS[memory_format])  # type: ignore[call-overload]
        x = x.contiguous(memory_format=FORMATS[memory_format])
    if name == FLOOR:
        return lambda: plain(network, x, score, fast_cpu_convolutions(network))
    if name == "torch default":
        return lambda: plain(network, x, score, nullcontext())
    if name == NAIVE:
        return lambda: loop(network, x, score)
    if name == "vmap(grad)":
        return lambda: by_vmap(network, x, score)
    if name == "opacus":
        return by_opacus(network, x, score)
    stack.enter_context(fast_cpu_convolutions(network))
    recorder = stack.enter_context(per_sample_gradients(network))
    totals = zeros(network)  # a run has them once, for all of its subjects

    def ours() -> Totals:
        for total in totals.values():
            total.zero_()
        recorder.forward(x)
        recorder.add_squares(score, totals)
        return totals

    return ours


def zeros(network: nn.Module) -> Totals:
    return empty_sums(network).squares


def plain(network: nn.Module, x: Tensor, score: Tensor, fast: AbstractContextManager[None]) -> Totals:
    names, parameters = zip(*network.named_parameters(), strict=True)
    with fast:
        return dict(zip(names, torch.autograd.grad(network(x), parameters, grad_outputs=score), strict=True))


def loop(network: nn.Module, x: Tensor, score: Tensor) -> Totals:
    totals = zeros(network)
    for image, of_image in zip(torch.split(x, 1), torch.split(score, 1), strict=True):
        for name, gradient in plain(network, image, of_image, nullcontext()).items():
            totals[name] += gradient.double().square_()
    return totals


def by_vmap(network: nn.Module, x: Tensor, score: Tensor) -> Totals:
    def of_one(parameters: Totals, image: Tensor, of_image: Tensor) -> Tensor:
        logits: Tensor = functional_call(network, parameters, (image[None],))
        return (logits[0] * of_image).sum()

    parameters = {name: values.detach() for name, values in network.named_parameters()}
    gradients = vmap(grad(of_one), in_dims=(None, 0, 0))(parameters, x, score)
    return {name: values.square().sum(0, dtype=torch.float64) for name, values in gradients.items()}


def by_opacus(network: nn.Module, x: Tensor, score: Tensor) -> Step:
    from opacus import GradSampleModule  # type: ignore[import-not-found]

    wrapped = GradSampleModule(network, loss_reduction="sum")
    for module in wrapped.modules():  # its hooks are silent in evaluation mode
        module.training = not isinstance(module, nn.modules.dropout._DropoutNd)  # noqa: SLF001  the class that all share

    def step() -> Totals:
        wrapped.zero_grad(set_to_none=True)
        with patch.object(functional, "leaky_relu", partial(out_of_place, functional.leaky_relu)):
            torch.autograd.backward((wrapped(x) * score).sum())
        named = {name.removeprefix("_module."): values for name, values in wrapped.named_parameters()}
        return {name: values.grad_sample.square().sum(0, dtype=torch.float64) for name, values in named.items()}

    return step


def out_of_place(leaky_relu: Callable[[Tensor, float], Tensor], x: Tensor, slope: float, inplace: bool = False) -> Tensor:  # noqa: ARG001
    """The activation that the backward hooks of opacus bear: what it hands out must not be changed in place."""
    return leaky_relu(x, slope)


def difference(expected: Totals, actual: Totals) -> float:
    """The largest relative difference of a parameter; biases before a norm, whose values are noise, are left out."""
    largest = max(float(values.max()) for values in expected.values())
    informed = {name: values for name, values in expected.items() if float(values.max()) > 1e-9 * largest}
    return max(float((values - actual[name]).norm() / values.norm()) for name, values in informed.items())


def memory_of(name: str, filters: int, size: int, batch: int, memory_format: str, *, one_thread: bool) -> float:
    """Bytes that a process of its own adds for two passes.

    Raises:
        CannotMeasureError: the process failed.
    """
    case = ["--filters", str(filters), "--sizes", str(size), "--batches", str(batch), "--formats", memory_format]
    command = [sys.executable, __file__, "--memory-of", name, *case, *(["--one-thread"] if one_thread else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  ours
    if done.returncode != 0:
        raise CannotMeasureError(f"the memory of {name}: {done.stderr.strip()[-300:]}")
    return float(done.stdout)


def peak_of(name: str, filters: int, size: int, batch: int, memory_format: str) -> float:
    """Bytes resident at the peak of two passes, beyond those before the first."""
    with ExitStack() as stack:
        step = prepared(name, filters, size, batch, memory_format, stack)
        torch.randn(64, 64) @ torch.randn(64, 64)  # threads and libraries are there before
        peak = [resident()]
        before, done = peak[0], threading.Event()

        def watch() -> None:
            while not done.wait(INTERVAL_S):
                peak[0] = max(peak[0], resident())

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        for _ in range(2):
            step()
        done.set()
        watcher.join()
    return float(peak[0] - before)


def resident() -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise CannotMeasureError("memory is read from Linux's /proc")


def accuracy(many: int) -> dict[int, tuple[float, float]]:
    """Relative errors of the diagonal (norm of the difference) and of its trace, by the number of draws; medians over 9 seeds."""
    torch.manual_seed(0)
    network = Isensee2017(1, 2, base_filters=2, depth=3).eval()
    subject = Example(1, torch.randn(1, 1, 16, 16, 16), None, (16, 16, 16))

    def diagonal(draws: int, seed: int) -> Tensor:
        sums = empty_sums(network)
        generator = torch.Generator().manual_seed(seed)
        add_subject(sums, network, subject, exclusive=False, draws=draws, generator=generator, autocast=nullcontext)
        return torch.cat([values.flatten() for values in sums.squares.values()])

    truth = diagonal(many, 1000)
    found = {}
    for draws in (1, 4, 16):
        estimates = [diagonal(draws, seed) for seed in range(9)]
        of_diagonal = median(float((one - truth).norm() / truth.norm()) for one in estimates)
        of_trace = median(abs(float(one.sum() / truth.sum()) - 1) for one in estimates)
        found[draws] = (of_diagonal, of_trace)
    return found


if __name__ == "__main__":
    main()
