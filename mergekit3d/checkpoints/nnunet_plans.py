"""What nnU-Net v2's plans and dataset.json tell of a network: its class and arguments, its channels, its task.

Source: nnunetv2 2.8.1, `PlansManager`, `LabelManager` and `get_network_from_plans`, whose rules are followed here without importing it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mergekit3d.checkpoints.metadata import TaskSpec
from mergekit3d.checkpoints.modalities import canonical_modality

DATASET_KEYS = (
    "channel_names", "modality", "labels", "regions_class_order", "file_ending", "numTraining", "name", "overwrite_image_reader_writer",
)  # fmt: skip
"""What is kept of dataset.json: the rest may name subjects."""
NORMALISATIONS = {
    ("ZScoreNormalization", True): "zscore",
    ("ZScoreNormalization", False): "zscore-image",
    **{("NoNormalization", masked): "none" for masked in (True, False)},
    **{("RescaleTo01Normalization", masked): "rescale" for masked in (True, False)},
}
"""By the scheme, and whether statistics are those of the foreground (`use_mask_for_norm`)."""
OLD_CLASSES = {
    "PlainConvUNet": ("dynamic_network_architectures.architectures.unet.PlainConvUNet", "n_conv_per_stage"),
    "ResidualEncoderUNet": ("dynamic_network_architectures.architectures.unet.ResidualEncoderUNet", "n_blocks_per_stage"),
}


def configuration_of(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration of the plans with what it inherits.

    Raises:
        KeyError: it is not there.
        ValueError: it inherits from itself.
    """
    configurations, chain = plans["configurations"], [name]
    while "inherits_from" in configurations[chain[-1]]:
        parent = configurations[chain[-1]]["inherits_from"]
        if parent in chain:
            raise ValueError("a configuration that inherits from itself")
        chain.append(parent)
    return {key: value for ancestor in reversed(chain) for key, value in configurations[ancestor].items()}


def network_of_plans(origin: Mapping[str, Any]) -> dict[str, Any] | None:
    """The architecture for metadata; None for 2D networks and for cascades, which take more than images.

    Args:
        origin: plans, configuration and dataset_json of a checkpoint.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, IndexError: the plans are of another form.
    """
    plans, dataset = origin["plans"], origin["dataset_json"]
    configuration = configuration_of(plans, origin["configuration"])
    if configuration.get("previous_stage") is not None or len(configuration["patch_size"]) != 3:
        return None
    described = configuration.get("architecture") or _old_architecture(configuration)
    transposed = [int(axis) for axis in plans["transpose_forward"]]
    if sorted(transposed) != [0, 1, 2]:
        raise ValueError("no order of three axes")
    return {
        "name": "nnunet",
        "in_channels": len(channel_names(dataset)),
        "out_channels": len(regions_of(dataset) or all_labels(dataset)),
        "class_name": str(described["network_class_name"]),
        "arguments": dict(described["arch_kwargs"]),
        "imported": [str(key) for key in described["_kw_requires_import"]],
        "axes": [2 - axis for axis in transposed],
        "deep_supervision": "NoDeepSupervision" not in str(origin.get("trainer_name")),
    }


def task_of_plans(origin: Mapping[str, Any]) -> TaskSpec | None:
    """The task; None where mergekit3d cannot say it; `unsaid_task` tells why.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, IndexError: the plans are of another form.
    """
    plans, dataset = origin["plans"], origin["dataset_json"]
    configuration = configuration_of(plans, origin["configuration"])
    if unsaid_task(origin) is not None:
        return None
    modalities, regions = tuple(canonical_modality(name) for name in channel_names(dataset)), regions_of(dataset)
    in_order = sorted(dataset["labels"].items(), key=lambda item: _ids(item[1]))
    outputs = regions or {str(name): tuple(_ids(ids)) for name, ids in in_order if _is_output(name, ids)}
    spacing = [float(configuration["spacing"][axis]) for axis in plans["transpose_backward"]][::-1]
    if len(spacing) != 3 or not all(math.isfinite(edge) and edge > 0 for edge in spacing):
        raise ValueError("no spacing")
    return TaskSpec(
        modalities=modalities,
        outputs=outputs,
        exclusive=not regions,
        normalisation=NORMALISATIONS[_schemes(configuration)[0]],
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
    )


def unsaid_task(origin: Mapping[str, Any]) -> str | None:
    """Why mergekit3d cannot say the task of a checkpoint, in a few words; None where it can.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, IndexError: the plans are of another form.
    """
    dataset = origin["dataset_json"]
    names = [canonical_modality(name) for name in channel_names(dataset)]
    if len(set(names)) < len(names):
        return f"several channels of one name ({', '.join(names)})"
    schemes = _schemes(configuration_of(origin["plans"], origin["configuration"]))
    unknown = next((scheme for scheme, masked in schemes if (scheme, masked) not in NORMALISATIONS), None)
    if unknown is not None:
        return f"the normalisation {unknown}"
    if len({NORMALISATIONS[scheme] for scheme in schemes}) > 1:
        return "normalisations that differ between the channels"
    labels = all_labels(dataset)
    if not regions_of(dataset) and labels != list(range(len(labels))):
        return f"labels that are not 0, 1, 2 ... ({', '.join(map(str, labels))})"
    return None


def _schemes(configuration: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Of every channel, the scheme and whether it goes by the foreground; plans that do not say go by it."""
    schemes = [str(scheme) for scheme in configuration["normalization_schemes"]]
    masked = configuration.get("use_mask_for_norm") or [True] * len(schemes)
    return [(scheme, bool(of_channel)) for scheme, of_channel in zip(schemes, masked, strict=True)]


def channel_names(dataset: Mapping[str, Any]) -> list[str]:
    """Names of the input channels, in order."""
    names = dataset["modality"] if "modality" in dataset else dataset["channel_names"]
    return [str(names[key]) for key in sorted(names, key=int)]


def all_labels(dataset: Mapping[str, Any]) -> list[int]:
    """Every label id with the background, sorted; the label to ignore is none."""
    return sorted({label for name, ids in dataset["labels"].items() if name != "ignore" for label in _ids(ids)})


def regions_of(dataset: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Regions by name in the order of the output channels; empty where the outputs are labels."""
    labels = dataset["labels"]
    if not any(isinstance(ids, Sequence) and not isinstance(ids, str) and len(ids) > 1 for ids in labels.values()):
        return {}
    return {str(name): tuple(_ids(ids)) for name, ids in labels.items() if _is_output(name, ids)}


def _is_output(name: str, ids: Any) -> bool:
    return name != "ignore" and set(_ids(ids)) != {0}


def _ids(ids: Any) -> list[int]:
    return [int(label) for label in ids] if isinstance(ids, Sequence) and not isinstance(ids, str) else [int(ids)]


def _old_architecture(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture of plans from before nnU-Net 2.5, as nnU-Net itself reconstructs it."""
    class_name, blocks = OLD_CLASSES[configuration["UNet_class_name"]]
    counts = configuration["n_conv_per_stage_encoder"]
    base, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
    return {
        "network_class_name": class_name,
        "arch_kwargs": {
            "n_stages": len(counts),
            "features_per_stage": [min(base * 2**stage, most) for stage in range(len(counts))],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": configuration["conv_kernel_sizes"],
            "strides": configuration["pool_op_kernel_sizes"],
            blocks: counts,
            "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
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
