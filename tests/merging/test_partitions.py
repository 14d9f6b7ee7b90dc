"""Which tensors are shared and which are private, by globs and by kinds."""

from __future__ import annotations

import pytest

from mergekit3d.merging.partitions import Partitions, assign, check_groups, check_patterns, kinds, layer_of, ratio_groups

SHAPES = {
    "encoder.0.conv.weight": (4, 2, 3, 3, 3),
    "encoder.0.conv.bias": (4,),
    "encoder.0.norm.weight": (4,),
    "encoder.0.norm.bias": (4,),
    "batch.weight": (4,),
    "batch.running_mean": (4,),
    "batch.num_batches_tracked": (),
    "plain.running_var": (4,),
    "linear.weight": (4, 7),
    "linear.bias": (4,),
    "token": (1, 4),
    "segmentation.0.weight": (3, 4, 1, 1, 1),
    "segmentation.0.bias": (3,),
}


def test_kinds_follow_the_layer():
    """A bias is of its layer's kind; running statistics make a norm; a tensor of its own is other."""
    expected = ["conv", "conv", "norm", "norm", "norm", "norm", "norm", "norm", "linear", "linear", "other", "conv", "conv"]

    assert dict(zip(SHAPES, expected, strict=True)) == kinds(SHAPES)


def test_private_wins_over_shared():
    """By default norms and heads are private, all else is shared."""
    partition_of = assign(Partitions(), SHAPES)

    shared = ["encoder.0.conv.weight", "encoder.0.conv.bias", "linear.weight", "linear.bias", "token"]
    assert shared == [name for name, partition in partition_of.items() if partition == "shared"]
    assert {"shared", "private"} == set(partition_of.values())


def test_what_no_pattern_names_is_private():
    """It stays out of the fusion."""
    partition_of = assign(Partitions(private=(), shared=("kind:conv",)), SHAPES)

    assert "private" == partition_of["linear.weight"]
    assert "shared" == partition_of["segmentation.0.bias"]


def test_globs_are_case_sensitive_and_cross_dots():
    """`*` stands for any text, dots included, on every system."""
    names = {"a.b.weight": (2, 2), "A.b.weight": (2, 2)}

    assert {"a.b.weight": "shared", "A.b.weight": "private"} == assign(Partitions(private=(), shared=("a.*",)), names)


def test_patterns_that_name_nothing_are_problems():
    """Each misspelling is told with its place and the nearest name."""
    problems = check_patterns(Partitions(private=("kind:norms", "segmentaton.*"), shared=("*", "decoder.*")), SHAPES)

    assert [
        "unknown kind of tensor: partitions.private[0]: found norms; did you mean 'norm'?",
        "the pattern names no tensor: partitions.private[1]: found 'segmentaton.*'; did you mean 'segmentation'?",
        "the pattern names no tensor: partitions.shared[1]: found 'decoder.*'; did you mean 'encoder'?",
    ] == [str(problem) for problem in problems]


def test_a_kind_that_is_absent_is_no_problem():
    """`kind:norm` is a default; a network without norms is fine."""
    assert [] == check_patterns(Partitions(private=("kind:norm",)), {"conv.weight": (1, 1, 3, 3, 3)})


@pytest.mark.parametrize(("expected", "name"), [("encoder.0.conv", "encoder.0.conv.weight"), ("token", "token")])
def test_layer_is_the_name_up_to_the_last_dot(expected, name):
    """A tensor without a dot is a layer of its own."""
    assert expected == layer_of(name)


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        ("model", ["model", "model", "model"]),
        ("layer", ["a.conv", "a.conv", "token"]),
        ("tensor", ["a.conv.weight", "a.conv.bias", "token"]),
        ("kernel", ["a.conv", "a.conv", "token"]),
    ],
)
def test_groups_share_a_ratio(granularity, expected):
    """The weight and the bias of one convolution share it, unless ratios are by tensor."""
    names = ["a.conv.weight", "a.conv.bias", "token"]

    assert dict(zip(names, expected, strict=True)) == ratio_groups(names, granularity)


def test_groups_by_glob():
    """The first group with a fitting glob decides; what none names is left out."""
    names = ["encoder.0.weight", "encoder.0.bias", "decoder.0.weight", "head.weight"]
    granularity = {"first": ["*.0.weight"], "encoder": ["encoder.*", "enc"]}

    assert {"encoder.0.weight": "first", "encoder.0.bias": "encoder", "decoder.0.weight": "first"} == ratio_groups(names, granularity)


def test_problems_of_groups():
    """A glob that names nothing, with a guess; tensors that no group names, with what to add."""
    names = ["encoder.0.weight", "decoder.0.weight", "decoder.1.weight"]
    texts = [str(problem) for problem in check_groups({"enc": ["encodr.*"], "first": ["encoder.*"]}, names)]

    assert 2 == len(texts)
    assert "merge.granularity.enc" in texts[0]
    assert "did you mean 'encoder'" in texts[0]
    assert "decoder.0.weight and 1 more" in texts[1]
    assert [] == check_groups("layer", names)
    assert [] == check_groups({"all": ["*"]}, names)
