"""The Fisher diagonal of a network: per subject, the square of the gradient of ONE subject's log-likelihood; then the mean.

    F_i = 1/N sum_n  E_y [ ( d log p(y | x_n) / d theta_i )^2 ],   log p(y | x) = sum over voxels and channels

Bernoulli for sigmoid outputs, categorical for softmax. Labels y are drawn from the model's own prediction (the Fisher information
proper) or are the true ones (the "empirical Fisher" of the T-IMM paper).

Source: Geyer, Corinzia, Wegmayr, MIDL 2019; Kunstner, Balles, Hennig, "Limitations of the Empirical Fisher Approximation",
NeurIPS 2019, on the difference of the two. What differs from common code: never the square of a batch's gradient, a sum of
log-probabilities (no soft Dice), labels drawn once for all tensors, sums in float64, nothing normalised.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from mergekit3d.errors import InputError
from mergekit3d.merging.partitions import layer_of
from mergekit3d.per_sample import NotFiniteError, PerSampleGradients, per_sample_gradients
from mergekit3d.training.taking import taking

PROBE_TOLERANCE = 1e-18
"""A bias whose squared gradient in float64 is this small beside its layer's weight has no information (a norm follows it)."""

WHOLE = ""
"""The name under which figures by layer hold those of the whole network."""


@dataclass(frozen=True)
class Example:
    """One subject, or one patch of it.

    Args:
        number: the subject's number, from 1.
        image: (1, modalities, X, Y, Z), padded to sizes that the network takes.
        labels: (1, regions, X, Y, Z) of 0 and 1, or (1, X, Y, Z) class indices; None where labels are drawn.
        size: (x, y, z) of the part that is not padding, at the start of each axis.
    """

    number: int
    image: Tensor
    labels: Tensor | None
    size: tuple[int, int, int]

    def on(self, device: torch.device) -> Example:
        """The same on a device."""
        return replace(self, image=self.image.to(device), labels=None if self.labels is None else self.labels.to(device))


@dataclass
class FisherSums:
    """Running sums over subjects, float64.

    Args:
        squares: sum over subjects of the squared gradients (mean over draws), by parameter.
        subjects: number of subjects in the sums.
        voxels: number of voxels in the likelihoods.
        traces: sum over subjects of each subject's trace, by layer, and under `WHOLE` that of the network.
        squared_traces: sum over subjects of the square of each subject's trace, by the same names.
    """

    squares: dict[str, Tensor]
    subjects: int = 0
    voxels: int = 0
    traces: dict[str, float] = field(default_factory=dict)
    squared_traces: dict[str, float] = field(default_factory=dict)

    def add_traces(self, by_parameter: Mapping[str, float]) -> None:
        """Note the traces of one subject: the sum of its squared gradients (mean over draws), by parameter."""
        by_layer: dict[str, float] = {}
        for name, trace in by_parameter.items():
            by_layer[layer_of(name)] = by_layer.get(layer_of(name), 0.0) + trace
        for layer, trace in {**by_layer, WHOLE: math.fsum(by_layer.values())}.items():
            self.traces[layer] = self.traces.get(layer, 0.0) + trace
            self.squared_traces[layer] = self.squared_traces.get(layer, 0.0) + trace * trace

    def standard_errors(self) -> dict[str, float]:
        """Of the mean over subjects of every trace, by layer and `WHOLE`: their spread over subjects / sqrt(subjects).

        Empty for fewer than two subjects, which have no spread.
        """
        n = self.subjects
        if n < 2:
            return {}
        variances = {layer: max(0.0, self.squared_traces[layer] - total * total / n) / (n - 1) for layer, total in self.traces.items()}
        return {layer: math.sqrt(variance / n) for layer, variance in variances.items()}

    def diagonal(self) -> dict[str, Tensor]:
        """The Fisher diagonal, float32: the mean over subjects."""
        return {name: (total / max(self.subjects, 1)).float() for name, total in self.squares.items()}


def empty_sums(network: nn.Module) -> FisherSums:
    """Sums over no subjects."""
    squares = {
        name: torch.zeros_like(parameter, dtype=torch.float64, memory_format=torch.contiguous_format)
        for name, parameter in network.named_parameters()
    }
    return FisherSums(squares)


def add_subject(
    sums: FisherSums,
    network: nn.Module,
    example: Example,
    *,
    exclusive: bool,
    draws: int,
    generator: torch.Generator,
    autocast: Callable[[], AbstractContextManager[object]],
) -> None:
    """Add one subject's squared gradients to the sums.

    Args:
        sums: changed in place.
        network: in evaluation mode, on the device of the example.
        example: one subject.
        exclusive: softmax in place of sigmoids.
        draws: draws of the labels; not used with true labels.
        generator: of the draws, on the CPU, so that every device draws the same.
        autocast: precision of the forward pass.

    Raises:
        InputError: a gradient that is not finite.
    """
    add_subjects(sums, network, [example], exclusive=exclusive, draws=draws, generators=[generator], autocast=autocast)


def add_subjects(
    sums: FisherSums,
    network: nn.Module,
    examples: Sequence[Example],
    *,
    exclusive: bool,
    draws: int,
    generators: Sequence[torch.Generator],
    autocast: Callable[[], AbstractContextManager[object]],
    recorder: PerSampleGradients | None = None,
) -> None:
    """Add the squared gradients of each of several subjects to the sums, by one forward pass of all of them.

    What is added does not depend on which subjects come together, up to rounding.

    Args:
        sums: changed in place.
        network: in evaluation mode, on the device of the examples.
        examples: subjects of one padded size.
        exclusive: softmax in place of sigmoids.
        draws: draws of the labels; not used with true labels.
        generators: of the draws, one a subject, on the CPU, so that every device draws the same.
        autocast: precision of the forward pass.
        recorder: of `per_sample_gradients`, attached to the network with the same autocast; left out: one for this call alone.

    Raises:
        InputError: a gradient that is not finite.
        UsageError: the network is in training mode, or lets the subjects affect one another.
    """
    if recorder is None:
        with per_sample_gradients(network, autocast=autocast) as own:
            add_subjects(sums, network, examples, exclusive=exclusive, draws=draws, generators=generators, autocast=autocast, recorder=own)
        return
    images = torch.cat([example.image for example in examples])
    with taking(images):
        logits = recorder.forward(images)
    alone = zip(torch.split(logits.detach(), 1), examples, generators, strict=True)
    scores = [score_functions(part, example, exclusive=exclusive, draws=draws, generator=generator) for part, example, generator in alone]
    total = 1 if examples[0].labels is not None else draws
    traces: list[dict[str, float]] = [{} for _ in examples]
    for index, score in enumerate(zip(*scores, strict=True), 1):
        try:
            added = recorder.add_squares(torch.cat(score), sums.squares, scale=1 / total, last=index == total)
        except NotFiniteError as error:
            where = f"subject {examples[error.sample].number}: {error.name}"
            raise InputError("the Fisher diagonal is not finite", where=where, todo="look at this subject's images") from error
        for sums_of_one, added_by_one in zip(traces, added, strict=True):
            for name, trace in added_by_one.items():
                sums_of_one[name] = sums_of_one.get(name, 0.0) + trace
    for example, by_parameter in zip(examples, traces, strict=True):
        sums.add_traces(by_parameter)
        sums.subjects += 1
        sums.voxels += example.size[0] * example.size[1] * example.size[2]


def batches_of_one_size(examples: Iterable[Example], batch_size: int) -> Iterator[list[Example]]:
    """Subjects that follow one another and have the same padded size, together.

    Args:
        examples: the subjects.
        batch_size: subjects at most in a batch.

    Yields:
        Batches for `add_subjects`, in the order of the subjects.
    """
    batch: list[Example] = []
    for example in examples:
        if batch and (len(batch) == batch_size or example.image.shape != batch[0].image.shape):
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def score_functions(logits: Tensor, example: Example, *, exclusive: bool, draws: int, generator: torch.Generator) -> Iterator[Tensor]:
    """d log p(y | x) / d logits for the true labels, or for each draw of sampled ones; 0 in the padding.

    Args:
        logits: (1, channels, X, Y, Z), detached.
        example: the subject, with its labels where they are the true ones.
        exclusive: softmax in place of sigmoids.
        draws: number of draws.
        generator: of the draws, on the CPU.

    Yields:
        y - p, (1, channels, X, Y, Z): one tensor for true labels, else one a draw.
    """
    probabilities = logits.softmax(1) if exclusive else logits.sigmoid()
    inside = torch.zeros_like(logits[:, :1])
    inside[..., : example.size[0], : example.size[1], : example.size[2]] = 1
    if example.labels is not None:
        yield (_one_hot(example.labels, logits, exclusive=exclusive) - probabilities) * inside
        return
    for _ in range(draws):
        if exclusive:
            uniform = torch.rand(logits[:, :1].shape, generator=generator).to(logits)
            index = (probabilities.cumsum(1) < uniform).sum(1).clamp_max(logits.shape[1] - 1)
            labels = _one_hot(index, logits, exclusive=True)
        else:
            labels = (torch.rand(logits.shape, generator=generator).to(logits) < probabilities).to(logits)
        yield (labels - probabilities) * inside


def _one_hot(labels: Tensor, like: Tensor, *, exclusive: bool) -> Tensor:
    if not exclusive:
        return labels.to(like)
    return functional.one_hot(labels.long(), like.shape[1]).movedim(-1, 1).to(like)


def silence_uninformed(diagonal: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The diagonal with exact zeros for the parameters named: their values are rounding noise."""
    return {name: torch.zeros_like(values) if name in names else values for name, values in diagonal.items()}


def uninformed_biases(network: nn.Module, patterns: Sequence[str], image_shapes: Iterable[Sequence[int]] = ()) -> list[str]:
    """Biases that have no information, since a norm takes any constant away.

    Args:
        network: the network.
        patterns: globs that its architecture gives; where there are none, one probe in float64 finds them.
        image_shapes: (1, modalities, X, Y, Z) of the probe's random image; the first that the network takes is used.

    Returns:
        Names of the biases whose Fisher information is exactly 0.

    Raises:
        RuntimeError: the network takes none of the shapes.
    """
    biases = [name for name, _ in network.named_parameters() if name.endswith("bias")]
    if patterns:
        return [name for name in biases if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    refusal: Exception | None = None
    for shape in image_shapes:
        try:
            return _probe(network, biases, shape)
        except (RuntimeError, ValueError, AssertionError) as error:  # a network for images of one size
            refusal = error
    if refusal is not None:
        raise RuntimeError("the network takes no image of the sizes that it was probed with") from refusal
    return []


def _probe(network: nn.Module, biases: Sequence[str], image_shape: Sequence[int]) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    twin = _in_double(network)
    output = twin(torch.randn(tuple(image_shape), generator=generator, dtype=torch.float64))
    score = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    named = dict(twin.named_parameters())
    gradients = torch.autograd.grad(output, list(named.values()), grad_outputs=score, allow_unused=True)
    largest = {name: 0.0 if gradient is None else float(gradient.square().max()) for name, gradient in zip(named, gradients, strict=True)}
    return [
        name
        for name in biases
        if (weight := largest.get(f"{layer_of(name)}.weight", 0.0)) > 0 and largest[name] <= PROBE_TOLERANCE * weight
    ]


def _in_double(network: nn.Module) -> nn.Module:
    """A copy on the CPU, in float64 and evaluation mode."""
    import copy

    # DynUNet keeps the outputs of its last forward pass, which cannot be copied.
    for module in network.modules():
        kept = getattr(module, "heads", None)
        if isinstance(kept, list):
            kept[:] = [part.detach() if isinstance(part, Tensor) else part for part in kept]
    return copy.deepcopy(network).to("cpu", torch.float64).eval()
