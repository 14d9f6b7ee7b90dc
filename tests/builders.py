"""Tiny networks on disk: checkpoints, Fisher diagonals and recipes that tests are made of."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

from mergekit3d.architectures import NetworkSpec, network_shapes
from mergekit3d.checkpoints import CHECKPOINT, FISHER, Metadata, TaskSpec, TensorEntry, open_checkpoint, write_checkpoint
from mergekit3d.checkpoints.checkpoint import dtype_name
from mergekit3d.errors import InputError
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


NNUNET_LABELS = {"background": 0, "csf": 1, "gm": 2}


def nnunet_plans(inputs=2, **configuration):
    """Plans of a two-stage U-Net, and what else `configuration` says."""
    three = [[3, 3, 3], [3, 3, 3]]
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 2,
            "features_per_stage": [2, 4],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": three,
            "strides": [[1, 1, 1], [1, 2, 2]],
            "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    resampling = {"order": 1, "order_z": 0, "force_separate_z": None}
    fullres = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 16, 16],
        "median_image_size_in_voxels": [16.0, 16.0, 16.0],
        "spacing": [3.0, 2.0, 1.5],
        "normalization_schemes": ["ZScoreNormalization"] * inputs,
        "use_mask_for_norm": [False] * inputs,
        **{f"resampling_fn_{of}": "resample_data_or_seg_to_shape" for of in ("data", "seg", "probabilities")},
        **{f"resampling_fn_{of}_kwargs": {"is_seg": of == "seg", **resampling} for of in ("data", "seg", "probabilities")},
        "architecture": architecture,
        "batch_dice": True,
        **configuration,
    }
    return {
        "dataset_name": "Dataset001_Tiny",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [3.0, 2.0, 1.5],
        "original_median_shape_after_transp": [16, 16, 16],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": fullres},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(channel): {"mean": 1.0, "std": 1.0} for channel in range(inputs)},
    }


def nnunet_state(inputs=2, outputs=3, seed=0):
    """The tensors of that network, each under all the names that nnU-Net gives it."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    state = {}

    def block(name, shape, aliases):
        conv, norm = f"{name}.convs.0", torch.rand(shape[0], generator=generator)
        weight, bias = torch.randn(shape, generator=generator), torch.randn(shape[0], generator=generator)
        shift = torch.randn(shape[0], generator=generator)
        for prefix in aliases:
            state[f"{prefix}{conv}.conv.weight"] = state[f"{prefix}{conv}.all_modules.0.weight"] = weight
            state[f"{prefix}{conv}.conv.bias"] = state[f"{prefix}{conv}.all_modules.0.bias"] = bias
            state[f"{prefix}{conv}.norm.weight"] = state[f"{prefix}{conv}.all_modules.1.weight"] = norm
            state[f"{prefix}{conv}.norm.bias"] = state[f"{prefix}{conv}.all_modules.1.bias"] = shift

    block("encoder.stages.0.0", (2, inputs, 3, 3, 3), ("", "decoder."))
    block("encoder.stages.1.0", (4, 2, 3, 3, 3), ("", "decoder."))
    block("decoder.stages.0", (2, 4, 3, 3, 3), ("",))
    state["decoder.transpconvs.0.weight"] = torch.randn(4, 2, 1, 2, 2, generator=generator)
    state["decoder.transpconvs.0.bias"] = torch.randn(2, generator=generator)
    state["decoder.seg_layers.0.weight"] = torch.randn(outputs, 2, 1, 1, 1, generator=generator)
    state["decoder.seg_layers.0.bias"] = torch.randn(outputs, generator=generator)
    return state


def save_nnunet(path, seed=0, plans=None, labels=None, state=None, channel_names=None, **content):
    """A checkpoint as nnU-Net 2.8 writes it, with a data set that names a subject."""
    import torch

    labels = NNUNET_LABELS if labels is None else labels
    plans = nnunet_plans() if plans is None else plans
    inputs = len(plans["foreground_intensity_properties_per_channel"])
    outputs = sum(name != "ignore" for name in labels) - any(isinstance(ids, list) for ids in labels.values())
    dataset = {
        "channel_names": channel_names or {str(channel): name for channel, name in enumerate(["T1", "T1Gd", "FLAIR"][:inputs])},
        "labels": labels,
        "numTraining": 2,
        "file_ending": ".nii.gz",
        "training": [{"image": "./imagesTr/DOE_JOHN.nii.gz"}],
    }
    arguments = {"plans": plans, "configuration": "3d_fullres", "fold": 0, "dataset_json": dataset, "device": torch.device("cuda")}
    whole = {
        "network_weights": nnunet_state(inputs, outputs, seed=seed) if state is None else state,
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)]},
        "_best_ema": np.float32(0.5),
        "current_epoch": 7,
        "init_args": arguments,
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
        **content,
    }
    torch.save(whole, path)
    return whole


def assert_mutants_are_refused(path):
    """Files of one flipped bit, 300 of them, raise nothing but input errors, and never give other values."""
    good, digest = path.read_bytes(), open_checkpoint(path).digest
    generator, mutant_path = np.random.default_rng(0), path.with_name(f"mutant{path.suffix}")
    for position in generator.integers(0, len(good), 300):
        mutant = bytearray(good)
        mutant[position] ^= 1 << int(generator.integers(8))
        mutant_path.write_bytes(bytes(mutant))
        try:
            assert digest == open_checkpoint(mutant_path).digest
        except InputError:
            continue


def torchrun(processes, *arguments, cwd=None):
    """What the command printed when torchrun started it in several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "mergekit3d_cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    ended = subprocess.run(
        [*command, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=180, check=False, env=environment
    )
    assert 0 == ended.returncode, ended.stderr
    return ended
