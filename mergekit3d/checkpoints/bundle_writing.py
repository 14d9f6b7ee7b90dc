"""The configuration of a MONAI bundle of ours: metadata, and inference that ``python -m monai.bundle run`` carries out."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit3d.checkpoints.bundle import BUILT, METADATA
from mergekit3d.checkpoints.metadata import Metadata, TaskSpec
from mergekit3d.checkpoints.monai_networks import CHANNEL_ARGUMENTS, least_multiple
from mergekit3d.errors import UsageError

PATCH = 96
MARGIN = 2
"""Voxels around the foreground, as `mergekit3d.datasets.prepare` leaves them."""
OVER_THE_BOX: Mapping[str, Mapping[str, Any]] = {
    "zscore-image": {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": False, "channel_wise": True},
    "rescale": {"_target_": "ScaleIntensityd", "keys": "image", "minv": 0.0, "maxv": 1.0, "channel_wise": True},
}
"""Normalisations that look at all voxels of the box of what is not 0."""


def configs_of(metadata: Metadata, path: Path) -> dict[str, bytes]:
    """The files of a bundle beside its weights, by name.

    Args:
        metadata: of the checkpoint.
        path: of the bundle, for error texts.

    Raises:
        UsageError: architecture or task are unknown, or intensities are normalised in a way that MONAI does not know.
    """
    network, task = metadata.architecture, metadata.task
    if network is None or task is None:
        wanted = "its architecture" if network is None else "its modalities and regions"
        todo = "pass --like with a bundle of the same network"
        raise UsageError("the checkpoint does not say what a bundle needs", where=path, wanted=wanted, todo=todo)
    if task.normalisation == "rank":
        raise UsageError("MONAI has no such normalisation", where=path, found="rank", todo="pass --like with another bundle")
    files = {"configs/inference.json": _inference(network, task), METADATA: _metadata(network, task)}
    return {name: json.dumps(content, indent=2, ensure_ascii=False).encode() for name, content in files.items()}


def _network(network: Mapping[str, Any]) -> dict[str, Any]:
    """The definition of a network: MONAI's own by its class, any other built by mergekit3d."""
    name = str(network["name"])
    arguments = {key: value for key, value in network.items() if key not in ("name", "in_channels", "out_channels", "multiple_of")}
    if name.startswith("monai.") and "." not in name.removeprefix("monai."):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its import alone emits some 65 of them
            from monai.networks import nets

        known = inspect.signature(getattr(nets, name.removeprefix("monai."), dict)).parameters
        for inputs, outputs in CHANNEL_ARGUMENTS:
            if inputs in known and outputs in known:
                channels = {inputs: network["in_channels"], outputs: network["out_channels"]}
                return {"_target_": name.removeprefix("monai."), **channels, **arguments}
    return {"_target_": BUILT, **network}


def _inference(network: Mapping[str, Any], task: TaskSpec) -> dict[str, Any]:
    return {
        "imports": ["$import glob", "$import os", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "data",
        "output_dir": "$@bundle_root + '/eval'",
        "modalities": list(task.modalities),
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "datalist": "$[{'image': [os.path.join(folder, modality + '.nii.gz') for modality in @modalities]}"
        " for folder in sorted(glob.glob(os.path.join(@dataset_dir, '*')))]",
        "network_def": _network(network),
        "network": "$@network_def.to(@device)",
        "multiple_of": _multiple(network),
        "preprocessing": {"_target_": "Compose", "transforms": _preparation(task)},
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False, "num_workers": 0},
        "inferer": _inferer(network),
        "postprocessing": {"_target_": "Compose", "transforms": _decision(task)},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def _multiple(network: Mapping[str, Any]) -> int | str:
    """What volumes are padded to a multiple of; of networks that mergekit3d builds, it says so when the bundle runs."""
    if "_target_" in network or str(network["name"]).startswith("monai."):
        return least_multiple(network)
    return f"$__import__('mergekit3d.architectures', fromlist=['']).multiple_of({dict(network)!r})"


def _inferer(network: Mapping[str, Any]) -> dict[str, Any]:
    """Whole volumes, as ``mergekit3d predict`` takes them; windows where the network is for images of one size."""
    size = network.get("img_size")
    if not size or "feature_size" not in network or network["name"] == "monai.SwinUNETR":
        return {"_target_": "SimpleInferer"}
    edges = list(size) if isinstance(size, (list, tuple)) else [size] * 3
    return {"_target_": "SlidingWindowInferer", "roi_size": edges, "sw_batch_size": 1, "overlap": 0.5, "mode": "gaussian"}


def _preparation(task: TaskSpec) -> list[dict[str, Any]]:
    """What is done with the images before the network, as mergekit3d does it; the modalities of a subject are the channels."""
    over_the_box = OVER_THE_BOX.get(task.normalisation)
    crop = {"select_fn": "$lambda image: image != 0", "margin": MARGIN if over_the_box is None else 0, "allow_smaller": True}
    transforms: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "CropForegroundd", "keys": "image", "source_key": "image", **crop},
        *([] if over_the_box is None else [dict(over_the_box)]),
    ]
    if task.spacing_mm is not None:
        transforms.append({"_target_": "Spacingd", "keys": "image", "pixdim": list(task.spacing_mm), "mode": "bilinear"})
    if task.normalisation == "zscore":
        transforms.append({"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True})
    return [*transforms, {"_target_": "DivisiblePadd", "keys": "image", "k": "@multiple_of", "method": "end"}]


def _decision(task: TaskSpec) -> list[dict[str, Any]]:
    """From the network's output to a segmentation on the subject's own grid."""
    decided = {"argmax": True} if task.exclusive else {"threshold": 0.5}
    transforms: list[dict[str, Any]] = [
        {"_target_": "Activationsd", "keys": "pred", **({"softmax": True} if task.exclusive else {"sigmoid": True})},
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
            "to_tensor": True,
        },
        {"_target_": "AsDiscreted", "keys": "pred", **decided},
    ]
    labels = [ids[0] for ids in task.outputs.values()]
    if task.exclusive and labels != list(range(1, len(labels) + 1)):
        classes = {"orig_labels": list(range(1, len(labels) + 1)), "target_labels": labels}
        transforms.append({"_target_": "MapLabelValued", "keys": "pred", **classes})
    saved = {"output_dir": "@output_dir", "output_postfix": "seg", "data_root_dir": "@dataset_dir", "separate_folder": False}
    return [*transforms, {"_target_": "SaveImaged", "keys": "pred", **saved}]


def _metadata(network: Mapping[str, Any], task: TaskSpec) -> dict[str, Any]:
    from importlib.metadata import version

    names = (["background"] if task.exclusive else []) + list(task.outputs)
    image = {"type": "image", "format": "magnitude", "num_channels": len(task.modalities), "spatial_shape": [PATCH] * 3, "dtype": "float32"}
    prediction = {**image, "format": "segmentation", "num_channels": len(names)}
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": "written by mergekit3d"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "name": "mergekit3d",
        "task": "segmentation",
        "description": f"{network['name']}: {', '.join(task.outputs)} from {', '.join(task.modalities)}",
        "authors": "",
        "copyright": "",
        "network_data_format": {
            "inputs": {"image": {**image, "channel_def": {str(number): name for number, name in enumerate(task.modalities)}}},
            "outputs": {"pred": {**prediction, "channel_def": {str(number): name for number, name in enumerate(names)}}},
        },
    }
