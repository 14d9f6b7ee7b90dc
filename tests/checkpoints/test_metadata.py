"""What a file says of itself: plain data that comes back as it was, or one clear error."""

from __future__ import annotations

import json

import pytest

from mergekit3d.checkpoints.metadata import CHECKPOINT, FISHER, Metadata, TaskSpec, looks_like_metadata, parse_metadata, tool
from mergekit3d.errors import InputError

TASK = TaskSpec(("t1ce", "t1"), {"WT": (1, 2, 4), "ET": (4,)}, normalisation="rank", spacing_mm=(1.0, 1.0, 2.5))
FULL = Metadata(
    kind=CHECKPOINT,
    architecture={"name": "isensee2017", "in_channels": 2, "out_channels": 2, "base_filters": 8},
    task=TASK,
    method="timm",
    provenance={"sources": ["ab", "cd"], "seed": 3},
    tool={"name": "mergekit3d", "version": "0"},
)


@pytest.mark.parametrize("metadata", [FULL, Metadata(kind=FISHER), FULL.sealed("12")], ids=["full", "bare", "sealed"])
def test_round_trip(metadata):
    """What was written is what is read."""
    assert metadata == parse_metadata(metadata.as_text(), "file")


def test_order_of_modalities_and_outputs_is_kept():
    """Channels go by it, whatever sorts keys on the way."""
    task = parse_metadata(FULL.as_text(), "file").task

    assert ("t1ce", "t1") == task.modalities
    assert ["WT", "ET"] == list(task.outputs)


def test_channels_count_the_background_of_exclusive_classes():
    """A softmax has one channel more than it has names."""
    assert 2 == TASK.channels
    assert 3 == TaskSpec(TASK.modalities, TASK.outputs, exclusive=True).channels


def test_seal_covers_every_field():
    """Any change of the metadata is found."""
    content = json.loads(FULL.sealed("12").as_text())
    assert parse_metadata(json.dumps(content), "file").metadata_intact()

    changes = [
        ("kind", FISHER),
        ("method", "imm"),
        ("provenance", {}),
        ("tool", {}),
        ("architecture", {**content["architecture"], "base_filters": 16}),
        ("task", None),
    ]
    for key, value in changes:
        assert not parse_metadata(json.dumps({**content, key: value}), "file").metadata_intact(), key


def test_seal_is_asked_for():
    """Metadata without a seal is not intact."""
    assert not FULL.metadata_intact()


def test_infinite_number_is_damage():
    """It reads as JSON but was never written."""
    text = FULL.sealed("12").as_text().replace('"seed":3', '"seed":1e999')

    assert not parse_metadata(text, "file").metadata_intact()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("JSONDecodeError", "{"),
        ("TypeError", "[]"),
        ("KeyError", '{"format_version": 1}'),
        ("RecursionError", "[" * 100_000),
        ("TypeError", FULL.as_text().replace('"provenance":{', '"provenance":5,"x":{')),
        ("TypeError", FULL.as_text().replace('"seal":null', '"seal":"x"')),
        ("TypeError", FULL.as_text().replace('"in_channels":2', '"in_channels":"2"')),
        ("KeyError", FULL.as_text().replace(',"out_channels":2', "")),
        ("ValueError", FULL.as_text().replace('"rank"', '"ranks"')),
        ("IndexError", FULL.as_text().replace("[1.0,1.0,2.5]", "[1.0]")),
        ("OverflowError", FULL.as_text().replace('["ET",[4]]', '["ET",[1e999]]')),
        ("TypeError", FULL.as_text().replace('["ET",[4]]', '["ET",4]')),
    ],
)
def test_damage_is_one_clear_error(name, text):
    """Whatever is wrong with it, the file is named and nothing is raised but an input error."""
    with pytest.raises(InputError) as caught:
        parse_metadata(text, "m1.pt")
    assert f"damaged metadata: m1.pt: found {name} in the key 'mergekit3d'; restore the file" == str(caught.value)


def test_newer_format_asks_for_an_update():
    """A file of a later version is not damaged."""
    with pytest.raises(InputError) as caught:
        parse_metadata(FULL.as_text().replace('"format_version":1', '"format_version":2'), "m1.pt")
    assert "cannot read the metadata: m1.pt: wanted format version 1, found 2; update mergekit3d" == str(caught.value)


def test_metadata_is_known_by_its_text():
    """Under whatever key it stands."""
    assert looks_like_metadata(FULL.sealed("12").as_text())
    assert not looks_like_metadata('{"format":"pt"}')


def test_tool_is_this_version():
    """Files tell what wrote them."""
    import mergekit3d

    assert {"name": "mergekit3d", "version": mergekit3d.__version__} == tool()
