"""Squared per-sample gradients: equal to one gradient a sample, for every layer, network and batch."""

from __future__ import annotations

import contextlib
import copy
import importlib.util

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from mergekit3d.architectures import build_network
from mergekit3d.architectures.slabs import fast_cpu_convolutions
from mergekit3d.errors import UsageError
from mergekit3d.per_sample import NotFiniteError, convolutions, per_sample_gradients
from mergekit3d.per_sample.products import rows_product
from tests.builders import spec_of

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Of torch, in all of these tests."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_network(network, seed=0, dtype=torch.float64):
    """In evaluation mode, with no parameter or statistic at a special value."""
    network = network.to(dtype).eval()
    with torch.no_grad():
        for name, values in [*network.named_parameters(), *network.named_buffers()]:
            if values.is_floating_point():
                drawn = torch.randn(values.shape, generator=generator(seed + len(name)), dtype=torch.float64) * 0.5
                values.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
    return network


def images(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def score_like(logits, seed=2):
    return torch.randn(logits.shape, generator=generator(seed), dtype=torch.float64).to(logits.dtype)


def empty_totals(network):
    return {name: torch.zeros_like(values, dtype=torch.float64) for name, values in network.named_parameters()}


def ours(network, x, score=None, autocast=contextlib.nullcontext):
    """Sums of squares by parameter, and what computed them."""
    totals = empty_totals(network)
    with per_sample_gradients(network, autocast=autocast) as recorder:
        logits = recorder.forward(x)
        recorder.add_squares(score_like(logits) if score is None else score, totals)
    return totals, recorder


def by_vmap(network, x):
    """The same by torch.func."""
    network = copy.deepcopy(network)
    parameters = {name: values.detach() for name, values in network.named_parameters()}
    buffers = dict(network.named_buffers())
    with torch.no_grad():
        score = score_like(network(x))

    def of_one(parameters, image, score):
        return (functional_call(network, (parameters, buffers), (image[None],))[0] * score).sum()

    gradients = vmap(grad(of_one), in_dims=(None, 0, 0))(parameters, x, score)
    return {name: values.square().sum(0) for name, values in gradients.items()}


def by_loop(network, x, autocast=contextlib.nullcontext):
    """The same by one forward and one backward pass a sample."""
    parameters = dict(network.named_parameters())
    totals = empty_totals(network)
    with torch.no_grad(), autocast():
        score = score_like(wide(network(x)))
    for sample in range(len(x)):
        with autocast():
            logits = wide(network(x[sample : sample + 1]))
        gradients = torch.autograd.grad(logits, parameters.values(), grad_outputs=score[sample : sample + 1], allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                totals[name] += gradient.double().square()
    return totals


def wide(logits):
    return logits.float() if logits.dtype == torch.bfloat16 else logits


def assert_equal(expected, actual, rtol=1e-9, noise=1e-20):
    """Of every parameter, beside the largest of its values; biases before a norm are rounding noise beside the largest of all."""
    assert list(expected) == list(actual)
    largest = max(float(values.max()) for values in expected.values())
    for name, values in expected.items():
        atol = max(rtol * float(values.max()), noise * largest)
        torch.testing.assert_close(values, actual[name], rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def assert_fast(recorder):
    assert ({}, [], []) == (recorder.replayed, recorder.looped, recorder.unused)


# Layers

CONVOLUTIONS = {
    "1d": (nn.Conv1d(4, 6, 3), (4, 9)),
    "1d everything": (nn.Conv1d(4, 6, 5, stride=2, padding=3, dilation=2, groups=2), (4, 17)),
    "1d same, even kernel": (nn.Conv1d(4, 6, 4, padding="same"), (4, 9)),
    "1d circular": (nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular"), (4, 9)),
    "2d": (nn.Conv2d(3, 4, (3, 2), padding=(1, 0)), (3, 6, 5)),
    "2d everything": (nn.Conv2d(4, 8, (3, 5), stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=4, bias=False), (4, 9, 11)),
    "2d same, dilated": (nn.Conv2d(3, 4, (4, 3), padding="same", dilation=(1, 3)), (3, 6, 7)),
    "2d reflect": (nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="reflect", stride=2), (3, 6, 7)),
    "2d one voxel": (nn.Conv2d(3, 4, 1), (3, 6, 5)),
    "3d": (nn.Conv3d(3, 4, 3, padding=1), (3, 6, 5, 4)),
    "3d no padding, no bias": (nn.Conv3d(3, 4, 3, bias=False), (3, 6, 5, 4)),
    "3d large kernel": (nn.Conv3d(2, 3, (5, 7, 1), padding=(2, 3, 0)), (2, 6, 7, 4)),
    "3d strides": (nn.Conv3d(2, 3, 3, stride=(1, 2, 3), padding=(0, 1, 2)), (2, 7, 6, 5)),
    "3d dilated": (nn.Conv3d(2, 3, 2, dilation=(2, 1, 3), padding=1), (2, 7, 6, 5)),
    "3d groups": (nn.Conv3d(4, 8, 3, groups=2, padding=1), (4, 4, 5, 6)),
    "3d depthwise": (nn.Conv3d(4, 4, 3, groups=4, padding=1), (4, 4, 5, 6)),
    "3d one voxel": (nn.Conv3d(4, 6, 1), (4, 4, 5, 6)),
    "3d one voxel, strides": (nn.Conv3d(4, 6, 1, stride=2), (4, 4, 5, 6)),
    "3d one voxel, padded": (nn.Conv3d(4, 6, 1, padding=1), (4, 4, 5, 6)),
    "3d one voxel, groups": (nn.Conv3d(4, 6, 1, groups=2), (4, 4, 5, 6)),
    "3d same": (nn.Conv3d(2, 3, (2, 3, 4), padding="same"), (2, 5, 6, 7)),
    "3d valid": (nn.Conv3d(2, 3, 2, padding="valid"), (2, 5, 6, 7)),
    "3d replicate": (nn.Conv3d(2, 3, 3, padding=(1, 2, 1), padding_mode="replicate"), (2, 5, 6, 7)),
    "3d same, circular": (nn.Conv3d(2, 3, (2, 3, 4), padding="same", padding_mode="circular"), (2, 5, 6, 7)),
    "1d transposed": (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (4, 7)),
    "2d transposed": (nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), groups=2), (4, 5, 4)),
    "3d transposed": (nn.ConvTranspose3d(4, 6, 2, stride=2), (4, 3, 4, 2)),
    "3d transposed everything": (
        nn.ConvTranspose3d(4, 6, 3, stride=(2, 3, 1), padding=(1, 0, 1), output_padding=(1, 2, 0), dilation=(1, 2, 1), groups=2),
        (4, 3, 4, 5),
    ),
    "3d transposed, no bias": (nn.ConvTranspose3d(4, 6, 1, bias=False), (4, 3, 4, 2)),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, batch):
    """Of any kernel, stride, padding, dilation and groups, transposed or not, along one to three axes."""
    module, shape = CONVOLUTIONS[name]
    network = random_network(nn.Sequential(copy.deepcopy(module), nn.Tanh()))
    x = images(batch, *shape)
    expected = by_loop(network, x) if "transposed" in name else by_vmap(network, x)
    actual, recorder = ours(network, x)

    assert_equal(expected, actual)
    assert_fast(recorder)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(
    ("channels", "rows", "stride", "padding"),
    [((4, 8), 8, 1, 1), ((16, 16), 8, 1, 1), ((16, 16), 7, 2, 1), ((8, 16), 9, 1, 0), ((32, 24), 3, 1, 1), ((24, 8), 32, 1, 1)],
)
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_every_way_of_a_convolution_in_float32(channels, rows, stride, padding, memory_format, capability, monkeypatch):
    """Groups, one by one and in slabs: what is fast depends on channels, size, memory format and processor."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    network = random_network(nn.Conv3d(*channels, 3, stride=stride, padding=padding), dtype=torch.float32)
    network = network.to(memory_format=memory_format)
    x = images(3, channels[0], rows, rows, rows, dtype=torch.float32).contiguous(memory_format=memory_format)

    assert_equal(by_loop(copy.deepcopy(network), x), ours(network, x)[0], rtol=1e-3)


@pytest.mark.parametrize("rows", [8, 9])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), [(3, 1, 1, 1), (3, 2, 0, 1), (5, 3, 2, 1), (2, 1, 1, 2)])
def test_slabs_are_the_whole_convolution(rows, kernel, stride, padding, dilation):
    """Two slabs along the depth, of even and odd numbers of rows."""
    module = nn.Conv3d(2, 3, kernel, stride=stride, padding=padding, dilation=dilation).double()
    x = images(3, 2, rows + 2, 7, 6)
    score = score_like(module(x))
    geometry = convolutions._padded(module, x, score)[1]
    volumes, gradients, unpadded = convolutions._slabs(x, score, kernel, geometry)

    for sample in range(3):
        one = slice(sample, sample + 1)
        (expected,) = torch.autograd.grad(module(x[one]), module.weight, grad_outputs=score[one])
        both = slice(2 * sample, 2 * sample + 2)
        actual = unpadded.of_weight(volumes[both], module.weight, gradients[both])
        torch.testing.assert_close(expected, actual, rtol=1e-10, atol=1e-10)


def test_transposed_convolution_with_a_wanted_size():
    """The output's size is an argument of the call, for which there is no rule: the module is looped."""

    class Wanted(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 3, 3, stride=2)

        def forward(self, x):
            return self.up(x, output_size=[x.shape[2] * 2 + 2, x.shape[3] * 2 + 1])

    network, x = random_network(Wanted()), images(3, 2, 4, 5)
    actual, recorder = ours(network, x)

    assert_equal(by_loop(network, x), actual)
    assert {"up": ["up.weight", "up.bias"]} == recorder.replayed


OTHERS = {
    "linear": (nn.Linear(4, 3), (4,)),
    "linear, axes before": (nn.Linear(4, 3, bias=False), (5, 2, 4)),
    "instance norm 1d": (nn.InstanceNorm1d(4, affine=True), (4, 6)),
    "instance norm 2d": (nn.InstanceNorm2d(4, affine=True, eps=0.1), (4, 6, 5)),
    "instance norm 3d": (nn.InstanceNorm3d(4, affine=True), (4, 3, 4, 5)),
    "instance norm 3d, tracked": (nn.InstanceNorm3d(4, affine=True, track_running_stats=True), (4, 3, 4, 5)),
    "group norm": (nn.GroupNorm(2, 4), (4, 3, 4, 5)),
    "group norm, all groups": (nn.GroupNorm(4, 4, eps=0.2), (4, 6)),
    "group norm, no axes": (nn.GroupNorm(2, 4), (4,)),
    "layer norm": (nn.LayerNorm(4), (5, 4)),
    "layer norm, two axes, no bias": (nn.LayerNorm((3, 4), bias=False), (2, 3, 4)),
    "layer norm, nothing before": (nn.LayerNorm((3, 4), eps=0.3), (3, 4)),
    "batch norm 1d": (nn.BatchNorm1d(4), (4,)),
    "batch norm 2d": (nn.BatchNorm2d(4, eps=0.1), (4, 3, 5)),
    "batch norm 3d": (nn.BatchNorm3d(4), (4, 3, 2, 5)),
    "one slope": (nn.PReLU(), (4, 3, 2)),
    "slopes": (nn.PReLU(4), (4, 3, 2, 2)),
    "slopes, no axes": (nn.PReLU(4), (4,)),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", OTHERS)
def test_other_layers(name, batch):
    """Linear, norms and slopes; each alone and behind another layer."""
    module, shape = OTHERS[name]
    for parts in ([module], [nn.PReLU(), module, nn.Tanh()]):
        network = random_network(nn.Sequential(*copy.deepcopy(parts)))
        x = images(batch, *shape)
        actual, recorder = ours(network, x)

        assert_equal(by_loop(network, x), actual)
        if "norm, no axes" not in name:
            assert_fast(recorder)


@pytest.mark.parametrize("name", ["instance norm 3d", "group norm", "layer norm", "batch norm 3d", "slopes", "linear, axes before"])
def test_other_layers_equal_vmap(name):
    """torch.func gives the same."""
    module, shape = OTHERS[name]
    network, x = random_network(nn.Sequential(copy.deepcopy(module))), images(3, *shape)

    assert_equal(by_vmap(network, x), ours(network, x)[0])


# Networks


class Residual(nn.Module):
    """Shared layers, in-place activations, and a bare parameter in the middle."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.InstanceNorm2d(4, affine=True)
        self.slope = nn.PReLU(4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = functional.leaky_relu(self.stem(x), 0.1, inplace=True)
        for _ in range(2):
            x = x + self.slope(self.norm(self.shared(x)))
        return self.head(x)


def test_shared_layers_add_their_gradients_before_the_square():
    """A convolution, a norm and slopes that are used twice."""
    network, x = random_network(Residual()), images(3, 2, 5, 6)
    actual, recorder = ours(network, x)

    assert_equal(by_vmap(network, x), actual)
    assert_fast(recorder)


@pytest.mark.parametrize("batch", [1, 3])
def test_isensee(batch):
    """The network of the paper, whole, by fast rules alone."""
    network, x = random_network(build_network(spec_of())), images(batch, 2, 8, 16, 8)
    actual, recorder = ours(network, x)

    assert_equal(by_vmap(network, x), actual, rtol=1e-8)
    assert_fast(recorder)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("batch", [1, 2])
def test_isensee_in_float32(batch, memory_format):
    """With fast convolutions and in either memory format, up to rounding."""
    network = random_network(build_network(spec_of()), dtype=torch.float32)
    x = images(batch, 2, 16, 16, 16, dtype=torch.float32).contiguous(memory_format=memory_format)
    expected = by_loop(network, x)
    network = network.to(memory_format=memory_format)
    with fast_cpu_convolutions(network):
        actual, recorder = ours(network, x)

    assert_fast(recorder)
    assert_equal(expected, actual, rtol=1e-2, noise=1e-10)


class Template(nn.Module):
    """One of torch's layers that is handed a parameter as its input."""

    def __init__(self):
        super().__init__()
        self.template = nn.Parameter(torch.zeros(1, 2, 4, 4, 4))
        self.conv = nn.Conv3d(2, 2, 3, padding=1)

    def forward(self, x):
        return x * self.conv(self.template)


@pytest.mark.parametrize("batch", [1, 2])
def test_parameter_that_is_the_input_of_a_layer(batch):
    """It has its gradient, although the functions within the layer are not watched."""
    network, x = random_network(Template()), images(batch, 2, 4, 4, 4)
    actual, _ = ours(network, x)

    assert_equal(by_loop(network, x), actual)


def test_error_within_a_layer_leaves_nothing_behind():
    """Torch's functions can be watched again, and the next batch is exact."""
    network = random_network(nn.Sequential(nn.Conv3d(2, 2, 3), nn.InstanceNorm3d(2, affine=True)))
    x, totals = images(2, 2, 5, 5, 5), empty_totals(network)
    with per_sample_gradients(network) as recorder:
        with pytest.raises(RuntimeError, match="channels"):
            recorder.forward(images(2, 3, 5, 5, 5))
        assert not torch._C._is_torch_function_all_disabled()
        logits = recorder.forward(x)
        recorder.add_squares(score_like(logits), totals)

    assert_equal(by_loop(network, x), totals)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_large_layers_are_squared_piece_by_piece(memory_format):
    """Whatever the memory format of the totals, with a last piece that is shorter than the others."""
    network = random_network(nn.Sequential(nn.Conv3d(64, 80, 3, padding=1)))
    x = images(2, 64, 2, 3, 2)
    expected = by_loop(network, x)
    totals = {
        name: total.contiguous(memory_format=memory_format) if total.ndim == 5 else total for name, total in empty_totals(network).items()
    }
    with per_sample_gradients(network) as recorder:
        logits = recorder.forward(x)
        traces = recorder.add_squares(score_like(logits), totals)

    assert_equal(expected, totals)
    assert sum(trace["0.weight"] for trace in traces) == pytest.approx(float(expected["0.weight"].sum()), rel=1e-9)


def dynunet():
    from monai.networks.nets import DynUNet

    return DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[2, 4, 6], deep_supervision=True, deep_supr_num=1, res_block=True)


def segresnet():
    from monai.networks.nets import SegResNet

    return SegResNet(3, init_filters=8, in_channels=1, out_channels=2, blocks_down=(1, 1), blocks_up=(1,))


def vnet():
    from monai.networks.nets import VNet

    return VNet(spatial_dims=3, in_channels=1, out_channels=2, act=("prelu", {}))


def attention():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    return nn.Sequential(nn.Linear(3, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 2))


SMALL_NETWORKS = [(dynunet, (1, 8, 8, 8)), (segresnet, (1, 4, 8, 4)), (attention, (5, 3))]


@pytest.mark.parametrize(
    ("build", "shape", "batch"),
    # VNet has 45 million parameters: once is enough.
    [*((build, shape, batch) for build, shape in SMALL_NETWORKS for batch in (1, 2)), (vnet, (1, 16, 16, 16), 2)],
)
def test_networks(build, shape, batch):
    """Of MONAI and torch: every parameter is exact, or takes no part."""
    network, x = random_network(build()), images(batch, *shape)
    actual, recorder = ours(network, x)
    expected = by_loop(network, x)

    assert_equal(expected, actual, rtol=1e-8)
    assert [] == recorder.looped
    assert [name for name in expected if float(expected[name].max()) == 0] == recorder.unused
    if build is attention:
        assert {"1.layers.0.self_attn", "1.layers.1.self_attn"} == set(recorder.replayed)
    else:
        assert {} == recorder.replayed
    if build is dynunet:
        assert recorder.unused
        assert all("heads" in name for name in recorder.unused)


@pytest.mark.skipif(importlib.util.find_spec("einops") is None, reason="MONAI's UNETR needs einops")
@pytest.mark.parametrize("batch", [1, 2])
def test_unetr(batch):
    """Of MONAI, with positional embeddings."""
    from monai.networks.nets import UNETR

    network = random_network(UNETR(1, 2, (16, 16, 16), feature_size=4, hidden_size=12, mlp_dim=16, num_heads=2))
    x = images(batch, 1, 16, 16, 16)
    actual, recorder = ours(network, x)

    assert_equal(by_loop(network, x), actual, rtol=1e-8)
    assert [] == recorder.looped


def test_attention_with_the_batch_in_the_second_axis():
    """As many tokens as samples, so that no shape tells; the network is looped, and exact."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.attention = nn.MultiheadAttention(4, 2)

        def forward(self, x):
            x = self.inner(x.transpose(0, 1))
            return self.attention(x, x, x)[0].transpose(0, 1)

    network, x = random_network(Tokens()), images(3, 3, 4)
    actual, recorder = ours(network, x)

    assert_equal(by_loop(network, x), actual)
    assert list(actual) == recorder.looped


def test_windows_in_the_first_axis():
    """Several rows a sample add up; rows of other samples between them are noticed."""

    class Windows(nn.Module):
        def __init__(self, mixed):
            super().__init__()
            self.mixed = mixed
            self.layer, self.norm, self.convolution = nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv1d(3, 2, 2)

        def forward(self, x):
            rows = x.transpose(0, 1) if self.mixed else x
            y = self.convolution(self.norm(self.layer(rows.reshape(-1, 3, 4))))
            y = y.reshape(*rows.shape[:2], *y.shape[1:])
            return y.transpose(0, 1) if self.mixed else y

    x = images(3, 2, 3, 4)
    for mixed in (False, True):
        network = random_network(Windows(mixed))
        actual, recorder = ours(network, x)

        assert_equal(by_loop(network, x), actual)
        assert (list(actual) if mixed else []) == recorder.looped


# Nothing is skipped


class Scale(nn.Module):
    """No rule is for it."""

    def __init__(self, channels):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(channels))
        self.inner = nn.Linear(channels, channels)

    def forward(self, x, *, shift):
        return (self.inner(x) * self.factor + shift).sin_(), None


@pytest.mark.parametrize("batch", [1, 3])
def test_module_without_a_rule_is_named_and_exact(batch):
    """It is looped over the samples, alone; what it holds that has a rule goes by it."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.scale, self.second = nn.Linear(3, 4), Scale(4), nn.Linear(4, 2)

        def forward(self, x):
            return self.second(self.scale(self.first(x), shift=torch.ones(1, 1, 4, dtype=x.dtype))[0])

    network, x = random_network(Network()), images(batch, 5, 3)
    actual, recorder = ours(network, x)

    assert_equal(by_loop(network, x), actual)
    assert ({"scale": ["scale.factor"]}, [], []) == (recorder.replayed, recorder.looped, recorder.unused)


def test_subclass_and_changed_parameters_have_no_rule():
    """They may compute something else: a scaled convolution, and a weight norm."""

    class Scaled(nn.Conv1d):
        def forward(self, x):
            return super().forward(x) * 2

    with pytest.warns(FutureWarning):
        normed = nn.utils.weight_norm(nn.Conv1d(3, 2, 2))
    network = random_network(nn.Sequential(Scaled(2, 3, 2), normed, nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 2, 1))))
    x = images(3, 2, 6)
    actual, recorder = ours(network, x)

    assert_equal(by_loop(network, x), actual)
    assert {"0": ["0.weight", "0.bias"]}.items() <= recorder.replayed.items()
    assert [] == recorder.unused


class Bare(nn.Module):
    """Parameters that the network uses itself: tied, positional, hidden from torch's functions, and none at all."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 4)
        self.tied = nn.Linear(3, 4, bias=False)
        self.position = nn.Parameter(torch.ones(5, 4))
        self.hidden = nn.Parameter(torch.ones(4))
        self.idle = nn.Parameter(torch.ones(2))
        self.embedding = nn.Embedding(7, 4)

    def forward(self, x):
        y = self.inner(x) + self.tied(x) + self.position + self.embedding(torch.arange(5))
        return functional.linear(Hidden.apply(y, self.hidden).sin(), self.tied.weight.t())


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x, factor)
        return torch.from_numpy(x.detach().numpy() * factor.detach().numpy())

    @staticmethod
    def backward(ctx, gradient):
        x, factor = ctx.saved_tensors
        return gradient * factor, (gradient * x).reshape(-1, 4).sum(0)


@pytest.mark.parametrize("batch", [1, 3])
def test_parameters_that_no_call_accounts_for_are_looped(batch):
    """And named; one that takes no part is 0, and named."""
    network, x = random_network(Bare()), images(batch, 5, 3)
    totals = empty_totals(network)
    expected = by_loop(network, x)
    with per_sample_gradients(network) as recorder:
        for _ in range(2):
            recorder.add_squares(score_like(recorder.forward(x)), totals)

    assert_equal({name: 2 * values for name, values in expected.items()}, totals)
    assert {"tied.weight", "position", "hidden"} <= set(recorder.looped)
    assert ["idle"] == recorder.unused
    assert "inner.weight" not in recorder.looped


def test_embedding_of_each_sample():
    """Looped as a module."""
    network = random_network(nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 2)))
    x = torch.randint(7, (3, 5), generator=generator())
    actual, recorder = ours(network, x)

    assert_equal(by_loop(network, x), actual)
    assert ({"0": ["0.weight"]}, []) == (recorder.replayed, recorder.looped)


def test_layers_whose_output_is_dropped_or_detached():
    """They take no part, whether their gradients are asked for or not."""

    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.dropped, self.frozen = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            self.dropped(x)
            with torch.no_grad():
                x = self.frozen(x)
            return self.used(x)

    network, x = random_network(Dropping()), images(2, 3)
    actual, recorder = ours(network, x)

    assert_equal(by_loop(network, x), actual)
    assert ["dropped.weight", "dropped.bias", "frozen.weight", "frozen.bias"] == recorder.unused


def test_input_changed_in_place_is_an_error():
    """As in plain autograd."""

    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            x = self.first(x)
            y = self.second(x)
            x.mul_(2)
            return x + y

    with pytest.raises(RuntimeError, match="an input of Linear was changed in place"):
        ours(random_network(Changing()), images(1, 3))


def test_samples_that_affect_one_another_are_refused():
    """A gradient of one sample has no meaning there; a batch of one has."""
    network = random_network(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Conv1d(3, 2, 2)))
    with pytest.raises(UsageError, match="the samples of a batch affect one another: Sequential; use batches of one subject"):
        ours(network, images(3, 3, 6))
    x = images(1, 3, 6)

    assert_equal(by_loop(network, x), ours(network, x)[0])


def test_training_mode_is_refused():
    """Dropout would draw, batch norm would mix the samples."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    network[1].train()
    with pytest.raises(UsageError, match="evaluation mode: found 1 in training mode; call network.eval()"), per_sample_gradients(network):
        pass


# Batches, scores, precision


def test_batch_has_no_part_in_the_result():
    """Five samples at once, two and three, one by one."""
    network, x = random_network(build_network(spec_of())), images(5, 2, 8, 8, 8)
    score = score_like(network(x).detach())
    sums = []
    for sizes in ([5], [2, 3], [1] * 5):
        totals = empty_totals(network)
        with per_sample_gradients(network) as recorder:
            for part, of_part in zip(x.split(sizes), score.split(sizes), strict=True):
                recorder.forward(part)
                recorder.add_squares(of_part, totals)
        sums.append(totals)

    assert_equal(sums[0], sums[1])
    assert_equal(sums[0], sums[2])


def test_layers_larger_than_what_is_held_at_once(monkeypatch):
    """Some samples of a layer at a time."""
    network, x = random_network(build_network(spec_of())), images(5, 2, 8, 8, 8)
    expected = ours(network, x)[0]
    for entries in (1, 500):
        monkeypatch.setattr("mergekit3d.per_sample.squares.ENTRIES_AT_ONCE", entries)

        assert_equal(expected, ours(network, x)[0])


def test_several_scores_of_one_forward_pass():
    """Each is squared for itself, and scaled."""
    network, x = random_network(Residual()), images(3, 2, 5, 6)
    scores = [score_like(network(x).detach(), seed) for seed in (3, 4)]
    singles = [ours(network, x, score)[0] for score in scores]
    totals = empty_totals(network)
    with per_sample_gradients(network) as recorder:
        recorder.forward(x)
        recorder.add_squares(scores[0], totals, scale=0.5, last=False)
        recorder.add_squares(scores[1], totals, scale=0.5)

    assert_equal({name: (singles[0][name] + singles[1][name]) / 2 for name in totals}, totals)


def test_autocast_computes_what_autograd_does():
    """bfloat16 in the forward pass; the sums are as near to plain gradients under autocast as those allow."""
    network = random_network(build_network(spec_of()), dtype=torch.float32)
    x = images(2, 2, 8, 8, 8, dtype=torch.float32)

    def autocast():
        return torch.autocast("cpu", torch.bfloat16)

    expected = by_loop(network, x, autocast)
    actual, recorder = ours(network, x, autocast=autocast)

    assert_fast(recorder)
    assert_equal(expected, actual, rtol=0.1, noise=1e-5)


def test_gradient_that_is_not_finite_names_parameter_and_sample():
    """From 0, in the batch."""
    network, x = random_network(nn.Sequential(nn.Linear(3, 2))), images(3, 3)
    x[1, 2] = float("inf")
    with pytest.raises(NotFiniteError) as caught:
        ours(network, x, torch.ones(3, 2, dtype=torch.float64))

    assert ("0.weight", 1) == (caught.value.name, caught.value.sample)


def test_network_is_left_as_it_was():
    """Gradients asked for, hooks, methods and outputs; also after an error."""
    network, x = random_network(Residual()), images(2, 2, 5, 6)
    network.head.bias.requires_grad_(False)
    before = network(x)
    with contextlib.suppress(ZeroDivisionError), per_sample_gradients(network) as recorder:
        during = recorder.forward(x)
        raise ZeroDivisionError

    torch.testing.assert_close(before, during, rtol=1e-12, atol=1e-12)
    assert torch.equal(before, network(x))
    assert ["head.bias"] == [name for name, values in network.named_parameters() if not values.requires_grad]
    assert all("forward" not in vars(module) and not module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("shape", [(1, 8, 196608), (2, 5, 70000), (1, 64, 512)])
def test_products_of_bfloat16_are_summed_in_float32(shape):
    """The first shape ends the process inside oneDNN where the processor has AMX, if it is multiplied in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).bfloat16() for _ in range(2))

    torch.testing.assert_close(torch.bmm(a.double(), b.double().transpose(1, 2)), rows_product(a, b).double(), rtol=1e-4, atol=0.05)
    assert torch.float32 == rows_product(a, b).dtype
