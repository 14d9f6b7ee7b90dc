"""Tiny networks on disk: checkpoints, Fisher diagonals and recipes that tests are made of."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np

from mergekit3d.architectures import NetworkSpec, network_shapes
from mergekit3d.checkpoints import CHECKPOINT, FISHER, Metadata, TaskSpec, TensorEntry, open_checkpoint, write_checkpoint
from mergekit3d.checkpoints.checkpoint import dtype_name
from mergekit3d.recipe import load_recipe

MODALITIES = ("t1", "t2")
OUTPUTS = {"csf": (24,), "thalamus": (10, 49), "pallidum": (13, 52)}


def spec_of(inputs=2, outputs=3, **arguments):
    """Isensee 2017 with a few hundred weights."""
    return NetworkSpec("isensee2017", inputs, outputs, {"base_filters": 2, "depth": 3, "segmentation_levels": 2, **arguments})


def task_of(modalities=MODALITIES, outputs=OUTPUTS, **fields):
    return TaskSpec(tuple(modalities), outputs, **fields)


def random_state(spec, seed=0):
    """Normal float32 values for every tensor of a network."""
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in network_shapes(spec).items()}


def metadata_of(spec=None, task=None, kind=CHECKPOINT, **fields):
    return Metadata(kind=kind, architecture=None if spec is None else spec.as_json(), task=task, **{"method": "train", **fields})


def save(path, state, metadata=None, dtypes=None):
    """Write arrays as a checkpoint; `dtypes` names those that differ from the arrays' own."""
    entries = [
        (TensorEntry(name, (dtypes or {}).get(name, dtype_name(values.dtype)), values.shape), values) for name, values in state.items()
    ]
    return write_checkpoint(path, entries, metadata_of() if metadata is None else metadata)


def save_source(path, seed=0, spec=None, task=None, state=None, dtypes=None):
    """A trained network, as far as anyone can tell."""
    spec = spec_of() if spec is None else spec
    state = random_state(spec, seed) if state is None else state
    save(path, state, metadata_of(spec, task_of() if task is None else task), dtypes)
    return state


def save_fisher(checkpoint, seed=0, values=None, path=None, of=None):
    """A Fisher diagonal beside its checkpoint: chi-squared, a quarter of the entries 0."""
    opened = open_checkpoint(checkpoint)
    generator = np.random.default_rng(seed)
    diagonal = {}
    for name, entry in opened.entries.items():
        drawn = generator.chisquare(1, entry.shape) * (generator.random(entry.shape) < 0.75)
        diagonal[name] = drawn.astype(np.float32) if values is None else values[name]
    path = Path(checkpoint).with_name(f"{Path(checkpoint).stem}.fisher.safetensors") if path is None else path
    provenance = {"checkpoint": opened.digest if of is None else of}
    save(path, diagonal, metadata_of(kind=FISHER, method="fisher-sampled", provenance=provenance))
    return diagonal


def two_sources(folder, suffix=".safetensors", **fields):
    """m1 and m2 with their Fisher diagonals; returns weights and diagonals of both."""
    states, diagonals = [], []
    for number, name in enumerate(("m1", "m2"), 1):
        states.append(save_source(folder / f"{name}{suffix}", seed=number, **fields))
        diagonals.append(save_fisher(folder / f"{name}{suffix}", seed=10 + number))
    return states, diagonals


def write_recipe(folder, text, name="recipe.yaml"):
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


def fusing(folder, merge="{method: imm}", rest="", suffix=".safetensors", **keywords):
    """A loaded recipe that fuses m1 and m2 of the folder."""
    sources = f"[{{name: m1, checkpoint: m1{suffix}}}, {{name: m2, checkpoint: m2{suffix}}}]"
    path = write_recipe(folder, f"version: 1\nsources: {sources}\nmerge: {merge}\n{textwrap.dedent(rest)}")
    return load_recipe(path, **keywords)
