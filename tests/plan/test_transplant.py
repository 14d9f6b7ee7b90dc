"""Shared tensors of a checkpoint with the private ones of a source."""

from __future__ import annotations

import numpy as np
import pytest

from mergekit3d.architectures import network_of
from mergekit3d.checkpoints import TaskSpec, open_checkpoint
from mergekit3d.errors import InputError
from mergekit3d.merging.partitions import Partitions, assign
from mergekit3d.plan.sources import Source
from mergekit3d.plan.transplant import transplanted
from tests.builders import save, save_source, spec_of, task_of

INPUT = "encoder.0.input.conv.weight"


def opened(path):
    checkpoint = open_checkpoint(path)
    return Source("m1", checkpoint, None, network_of(checkpoint), checkpoint.metadata.task)


def partition_of(source):
    return assign(Partitions(), source.checkpoint.shapes)


def test_private_tensors_are_the_sources_and_the_rest_the_checkpoints(tmp_path):
    """Bit for bit; a network of another number of outputs serves as well, as its heads are private."""
    own = save_source(tmp_path / "m1.safetensors", 1)
    theirs = save_source(tmp_path / "merged.safetensors", 2, spec_of(outputs=1), TaskSpec(("t1", "t2"), {"WT": (1,)}))
    source = opened(tmp_path / "m1.safetensors")
    start = transplanted(open_checkpoint(tmp_path / "merged.safetensors"), source, partition_of(source))

    assert {"copied", "fused"} == set(start.outcomes.values())
    for name, outcome in start.outcomes.items():
        wanted = own[name] if outcome == "copied" else theirs[name]
        assert np.array_equal(wanted, start.values[name])
    assert "copied" == start.outcomes["encoder.0.input.norm.weight"]
    assert start.build() is not None


def test_input_channels_go_by_modality(tmp_path):
    """A checkpoint of four modalities in another order; what it lacks is the source's."""
    own = save_source(tmp_path / "m1.safetensors", 1)
    tumour = TaskSpec(("flair", "t2", "t1ce"), {"WT": (1,)})
    theirs = save_source(tmp_path / "merged.safetensors", 2, spec_of(inputs=3, outputs=1), tumour)
    source = opened(tmp_path / "m1.safetensors")
    start = transplanted(open_checkpoint(tmp_path / "merged.safetensors"), source, partition_of(source))

    assert "expanded" == start.outcomes[INPUT]
    assert np.array_equal(own[INPUT][:, 0], start.values[INPUT][:, 0])
    assert np.array_equal(theirs[INPUT][:, 1], start.values[INPUT][:, 1])


@pytest.mark.parametrize("kind", ["shape", "names", "bare"])
def test_other_networks_are_refused(tmp_path, kind):
    """A shared tensor of another shape, other names, or input channels whose modalities nothing tells."""
    save_source(tmp_path / "m1.safetensors", 1)
    state = save_source(tmp_path / "merged.safetensors", 2, spec_of(base_filters=4) if kind == "shape" else spec_of(inputs=3), task_of())
    if kind == "names":
        save(tmp_path / "merged.safetensors", {"other.weight": np.zeros(3, np.float32)})
    elif kind == "bare":
        save(tmp_path / "merged.safetensors", state)
    source = opened(tmp_path / "m1.safetensors")
    text = "the checkpoint is of another network" if kind == "names" else "the checkpoint does not fit the source"
    with pytest.raises(InputError, match=f"{text}: .*merged.safetensors"):
        transplanted(open_checkpoint(tmp_path / "merged.safetensors"), source, partition_of(source))
