"""One step of adaptation (T-IMM) of Isensee 2017 against a plain fine-tuning step, and against autograd through the fusion.

    python benchmarks/adapt.py [--filters 8 16] [--sizes 32 64] [--sources 2 4 8] [--precisions fp32 bf16] [--repeats 5]
                               [--device cpu] [--one-thread] [--markdown FILE]

Prints a table in Markdown. A step is what the training loop does: clear the gradients, forward and backward pass of one volume with
soft Dice, norm of the gradients, Adam. "plain" trains every weight; "adapt" trains delta and the private tensors, with the fusion
before and the gradient of delta after; "autograd" builds the graph through eq. 2 and 3 as they are written, for the first two numbers
of sources. "fusion" is what adapt adds: the two passes over the sources alone. Seconds are medians, ratios (to plain, in brackets) the
medians of the ratios in one turn: the variants take turns, so that a machine that slows down slows all of them. A second table tells
how far the gradient of delta in float32 is from that in float64, over a whole network. Exits with 1 where autograd disagrees in
float64 by more than 1e-8. --one-thread measures processor time on one thread, which other work disturbs less.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mergekit3d.adaptation import FusedWeights, SharedTensor
from mergekit3d.architectures.networks.isensee2017 import Isensee2017
from mergekit3d.architectures.slabs import fast_cpu_convolutions
from mergekit3d.merging.partitions import layer_of
from mergekit3d.training.loss import dice_loss

PLAIN = "plain"
RATE = 1e-12  # the weights stay where they are, so that every turn is alike
TOLERANCE = 1e-8

Step = Callable[[], None]
Autocast = Callable[[], AbstractContextManager[object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filters", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--sources", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one-thread", action="store_true")
    parser.add_argument("--markdown", type=Path, help="write the tables into this file too")
    chosen = parser.parse_args()
    if chosen.one_thread:
        torch.set_num_threads(1)
    said: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        said.append(line)

    threads = "1 thread, processor time" if chosen.one_thread else f"{torch.get_num_threads()} threads"
    say(f"torch {torch.__version__}, {chosen.device}, {threads}, {torch.backends.cpu.get_cpu_capability()}, median of {chosen.repeats}\n")
    autograd = chosen.sources[:2]
    heads = [*(f"adapt, T = {n}" for n in chosen.sources), *(f"autograd, T = {n}" for n in autograd)]
    say(f"| base filters | volume | precision | plain | {' | '.join(heads)} | fusion, {' / '.join(f'T = {n}' for n in chosen.sources)} |")
    say("|" + "---|" * (5 + len(heads)))
    for precision in chosen.precisions:
        for filters in chosen.filters:
            for size in chosen.sizes:
                cells = measure(filters, size, precision, autograd, chosen)
                say(f"| {filters} | {size}^3 | {precision} | {' | '.join(cells)} |")
    say("\n| base filters | sources | gradient of delta: float64, from autograd | float32, from float64 |\n|---|---|---|---|")
    worst = 0.0
    for filters in chosen.filters:
        for sources in chosen.sources[:2]:
            exact, rounded = accuracy(filters, sources)
            worst = max(worst, exact)
            say(f"| {filters} | {sources} | {exact:.0e} | {rounded:.0e} |")
    if chosen.markdown is not None:
        chosen.markdown.write_text("\n".join([*said, ""]), encoding="utf-8")
    if worst > TOLERANCE:
        sys.exit(f"cannot measure: the gradient of delta differs from autograd's by {worst:.1e}")


def measure(filters: int, size: int, precision: str, autograd: Sequence[int], chosen: argparse.Namespace) -> list[str]:
    """The cells of one line."""
    device = torch.device(chosen.device)
    autocast: Autocast = nullcontext
    if precision == "bf16":
        autocast = lambda: torch.autocast(device.type, torch.bfloat16)  # noqa: E731
    clock = time.process_time if chosen.one_thread else time.perf_counter

    def timed(step: Step) -> float:
        began = clock()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - began

    with ExitStack() as stack:
        image = torch.randn(1, 4, size, size, size, device=device)
        target = (image[:, :3] > 0).float()
        steps = {PLAIN: plain_step(filters, image, target, autocast, stack)}
        fusions: dict[int, Step] = {}
        for sources in chosen.sources:
            steps[f"adapt {sources}"], fusions[sources] = adapt_step(filters, sources, image, target, autocast, stack)
        for sources in autograd:
            steps[f"autograd {sources}"] = autograd_step(filters, sources, image, target, autocast, stack)
        for step in [*steps.values(), *fusions.values()]:
            step()
            step()
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        alone: dict[int, list[float]] = {sources: [] for sources in fusions}
        for _ in range(chosen.repeats):
            for name, step in steps.items():
                seconds[name].append(timed(step))
            for sources, step in fusions.items():
                alone[sources].append(timed(step))
    cells = [f"{median(seconds[PLAIN]):.4f} s"]
    for name, of_one in seconds.items():
        if name != PLAIN:
            ratio = median(one / floor for one, floor in zip(of_one, seconds[PLAIN], strict=True))
            cells.append(f"{median(of_one):.4f} s ({ratio:.3f})")
    return [*cells, " / ".join(f"{1000 * median(of_one):.1f}" for of_one in alone.values()) + " ms"]


def plain_step(filters: int, image: Tensor, target: Tensor, autocast: Autocast, stack: ExitStack) -> Step:
    network = new_network(filters, image.device)
    stack.enter_context(fast_cpu_convolutions(network))
    return step_of(network, list(network.parameters()), image, target, autocast)


def adapt_step(filters: int, sources: int, image: Tensor, target: Tensor, autocast: Autocast, stack: ExitStack) -> tuple[Step, Step]:
    """The whole step, and what the fusion takes of it."""
    network = new_network(filters, image.device)
    stack.enter_context(fast_cpu_convolutions(network))
    tensors = shared_tensors(network, sources)
    names = {tensor.name for tensor in tensors}
    fused = FusedWeights(network, tensors)
    private = [parameter for name, parameter in network.named_parameters() if name not in names]
    gradients = {name: torch.randn_like(network.get_parameter(name)) for name in names}

    def alone() -> None:
        fused.fuse()
        for name, gradient in gradients.items():
            network.get_parameter(name).grad = gradient
        fused.backward()

    return step_of(network, [*private, fused.delta], image, target, autocast, before=fused.fuse, after=fused.backward), alone


def autograd_step(filters: int, sources: int, image: Tensor, target: Tensor, autocast: Autocast, stack: ExitStack) -> Step:
    network = new_network(filters, image.device)
    stack.enter_context(fast_cpu_convolutions(network))
    tensors = shared_tensors(network, sources)
    names = {tensor.name for tensor in tensors}
    layers = list(dict.fromkeys(tensor.group for tensor in tensors))
    delta = nn.Parameter(torch.zeros(sources, len(layers), device=image.device))
    private = {name: parameter for name, parameter in network.named_parameters() if name not in names}
    optimizer = torch.optim.Adam([*private.values(), delta], lr=RATE, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        weights = as_written(tensors, delta, layers)
        with autocast():
            logits = functional_call(network, {**private, **weights}, (image,))
        torch.autograd.backward(dice_loss(logits, target, False))
        float(nn.utils.get_total_norm([delta.grad, *(parameter.grad for parameter in private.values())]))  # type: ignore[list-item]
        optimizer.step()

    return step


def as_written(tensors: Sequence[SharedTensor], delta: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Eq. 3 and eq. 2 of T-IMM as the paper writes them (its denominator over the sources), as a graph."""
    sigmoid = delta.sigmoid()
    ratios = sigmoid / sigmoid.sum(0)
    fused = {}
    for tensor in tensors:
        assert tensor.fishers is not None
        shaped = ratios[:, layers.index(tensor.group)].reshape(-1, *[1] * (tensor.thetas.ndim - 1))
        weighted = shaped * tensor.fishers
        fused[tensor.name] = (weighted * tensor.thetas).sum(0) / weighted.sum(0)
    return fused


def step_of(
    network: nn.Module,
    parameters: list[nn.Parameter],
    image: Tensor,
    target: Tensor,
    autocast: Autocast,
    *,
    before: Step = lambda: None,
    after: Step = lambda: None,
) -> Step:
    optimizer = torch.optim.Adam(parameters, lr=RATE, fused=True)

    def step() -> None:
        before()
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            logits = network(image)
        torch.autograd.backward(dice_loss(logits, target, False))
        after()
        float(nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None]))
        optimizer.step()

    return step


def new_network(filters: int, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return Isensee2017(4, 3, base_filters=filters).to(device).train()


def shared_tensors(network: nn.Module, sources: int) -> list[SharedTensor]:
    """Sources beside the network's weights, with Fisher diagonals over some orders of magnitude."""
    generator = torch.Generator().manual_seed(0)

    def drawn(parameter: Tensor) -> Tensor:
        return torch.randn(sources, *parameter.shape, generator=generator).to(parameter)

    return [
        SharedTensor(name, layer_of(name), 0.1 * drawn(parameter) + parameter.detach(), torch.exp(2 * drawn(parameter) - 10))
        for name, parameter in network.named_parameters()
        if ".conv." in name
    ]


def accuracy(filters: int, sources: int) -> tuple[float, float]:
    """Relative errors of the gradient of delta: float64 from autograd's, float32 from float64, one network pass of 32^3 without dropout."""
    network = new_network(filters, torch.device("cpu")).double().eval()
    image = torch.randn(1, 4, 32, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    target = (image[:, :3] > 0).double()
    tensors = shared_tensors(network, sources)
    fused = FusedWeights(network, tensors)
    fused.delta.data.normal_(generator=torch.Generator().manual_seed(2))
    fused.fuse()
    torch.autograd.backward(dice_of(network(image), target))
    gradients = {tensor.name: network.get_parameter(tensor.name).grad for tensor in tensors}
    fused.backward()
    exact = fused.delta.grad
    assert exact is not None

    delta = fused.delta.detach().clone().requires_grad_()
    layers = list(dict.fromkeys(tensor.group for tensor in tensors))
    loss = dice_of(functional_call(network, as_written(tensors, delta, layers), (image,)), target)
    (by_autograd,) = torch.autograd.grad(loss, delta)

    single = new_network(filters, torch.device("cpu"))
    rounded = FusedWeights(
        single, [SharedTensor(t.name, t.group, t.thetas.float(), t.fishers.float()) for t in tensors if t.fishers is not None]
    )
    rounded.delta.data.copy_(fused.delta.data)
    rounded.fuse()
    for name, gradient in gradients.items():
        assert gradient is not None
        single.get_parameter(name).grad = gradient.float()
    rounded.backward()
    assert rounded.delta.grad is not None
    size = exact.norm()
    return float((exact - by_autograd).norm() / size), float((rounded.delta.grad - exact).norm() / size)


def dice_of(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice in the dtype of the logits (`dice_loss` is float32)."""
    p = logits.sigmoid().flatten(2)
    y = target.flatten(2)
    return 1 - (2 * (p * y).sum(2) / (p.sum(2) + y.sum(2))).mean()


if __name__ == "__main__":
    main()
