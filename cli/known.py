"""Names and recipe keys that completion and did-you-mean know without loading the library; a test holds them against it."""

from __future__ import annotations

from collections.abc import Mapping

DEVICES = ("auto", "cpu", "cuda", "cuda:0", "cuda:1", "mps")
METHODS = ("dare", "greedy-soup", "imm", "linear", "mean-imm", "slerp", "task-arithmetic", "ties", "timm")
LAYOUTS = ("bids", "brats2018", "brats2023", "brats2024", "csv", "decathlon", "hcp", "monai", "nnunet", "plain")
REGIONS = ("brats", "brats-2023", "brats-msd", "hcp-1-14", "hcp-1-7", "hcp-8-14")
ARCHITECTURES = ("isensee2017", "nnunet", "monai.UNet", "monai.DynUNet", "monai.SegResNet")
FORMATS = ("safetensors", "pt", "nnunet", "monai")
"""Formats that `convert` writes."""
MODALITIES = ("t1", "t1ce", "t2", "flair")
INITIALISATIONS = ("none", "imm", "timm")

_KEYS = """
version 1
name
seed 0
out
cache false
workers
data
architecture.name
architecture
sources
baselines
partitions.private
partitions.shared
merge.method timm
merge.granularity model layer tensor kernel
merge.parameters
merge.base
merge.ratios
merge.private
merge.buffers
merge.dtype float32 float16 bfloat16 float64
merge.input_channels match random
merge.out
target.data
target.layout auto
target.modalities
target.regions
target.labels
target.split.train
target.split.validation
target.split.test
target.split.skip 0
target.split.seed 0
target.split.fold
target.normalisation zscore rank none zscore-image rescale
target.spacing_mm
train.epochs 500
train.patience 50
train.learning_rate 0.0005
train.optimizer adam adamw sgd
train.schedule plateau polynomial cosine constant
train.plateau_patience 10
train.plateau_factor 0.5
train.loss dice dice-ce
train.batch_size 1
train.patch_size
train.steps_per_epoch
train.accumulate 1
train.gradient_clip
train.smoothing 0
train.precision auto fp32 bf16 fp16
train.ema
train.checkpoint_activations false true
train.compile false true
train.snapshot_minutes 10
train.augment.preset flips nnunet
train.augment.flip
train.augment.rotate.probability
train.augment.rotate.range
train.augment.scale.probability
train.augment.scale.range
train.augment.elastic.probability
train.augment.elastic.range
train.augment.noise.probability
train.augment.noise.range
train.augment.blur.probability
train.augment.blur.range
train.augment.brightness.probability
train.augment.brightness.range
train.augment.contrast.probability
train.augment.contrast.range
train.augment.low_resolution.probability
train.augment.low_resolution.range
train.augment.gamma.probability
train.augment.gamma.range
train.augment.gamma_inverted.probability
train.augment.gamma_inverted.range
train.freeze
train.learning_rates
train.regularise.strength
train.regularise.by l2 fisher
train.regularise.tensors
train.memory_format contiguous channels_last
train.init none
train.initialisation xavier torch
train.drop_transfer 0
fisher.estimator sampled true
fisher.draws 4
fisher.max_subjects
fisher.patch_size
fisher.batch_size 1
fisher.dtype float32 sqrt-fp16
fisher.snapshot_minutes 10
adapt.epochs 20
adapt.patience 5
adapt.learning_rate 0.0005
adapt.optimizer adam adamw sgd
adapt.schedule plateau polynomial cosine constant
adapt.plateau_patience 10
adapt.plateau_factor 0.5
adapt.loss dice dice-ce
adapt.batch_size 1
adapt.patch_size
adapt.steps_per_epoch
adapt.accumulate 1
adapt.gradient_clip
adapt.smoothing 0.5
adapt.precision auto fp32 bf16 fp16
adapt.ema
adapt.checkpoint_activations false true
adapt.compile false true
adapt.snapshot_minutes 10
adapt.augment.preset flips nnunet
adapt.augment.flip
adapt.augment.rotate.probability
adapt.augment.rotate.range
adapt.augment.scale.probability
adapt.augment.scale.range
adapt.augment.elastic.probability
adapt.augment.elastic.range
adapt.augment.noise.probability
adapt.augment.noise.range
adapt.augment.blur.probability
adapt.augment.blur.range
adapt.augment.brightness.probability
adapt.augment.brightness.range
adapt.augment.contrast.probability
adapt.augment.contrast.range
adapt.augment.low_resolution.probability
adapt.augment.low_resolution.range
adapt.augment.gamma.probability
adapt.augment.gamma.range
adapt.augment.gamma_inverted.probability
adapt.augment.gamma_inverted.range
adapt.ratio_learning_rate 0.05
adapt.ratios uniform
adapt.normalise_fisher false true
adapt.regularise.by entropy uniform
adapt.regularise.strength
adapt.objective.supervised 1
adapt.objective.entropy 0
adapt.unlabelled
adapt.private
finetune.epochs 500
finetune.patience 50
finetune.learning_rate 0.0005
finetune.optimizer adam adamw sgd
finetune.schedule plateau polynomial cosine constant
finetune.plateau_patience 10
finetune.plateau_factor 0.5
finetune.loss dice dice-ce
finetune.batch_size 1
finetune.patch_size
finetune.steps_per_epoch
finetune.accumulate 1
finetune.gradient_clip
finetune.smoothing 0
finetune.precision auto fp32 bf16 fp16
finetune.ema
finetune.checkpoint_activations false true
finetune.compile false true
finetune.snapshot_minutes 10
finetune.augment.preset flips nnunet
finetune.augment.flip
finetune.augment.rotate.probability
finetune.augment.rotate.range
finetune.augment.scale.probability
finetune.augment.scale.range
finetune.augment.elastic.probability
finetune.augment.elastic.range
finetune.augment.noise.probability
finetune.augment.noise.range
finetune.augment.blur.probability
finetune.augment.blur.range
finetune.augment.brightness.probability
finetune.augment.brightness.range
finetune.augment.contrast.probability
finetune.augment.contrast.range
finetune.augment.low_resolution.probability
finetune.augment.low_resolution.range
finetune.augment.gamma.probability
finetune.augment.gamma.range
finetune.augment.gamma_inverted.probability
finetune.augment.gamma_inverted.range
finetune.freeze
finetune.learning_rates
finetune.regularise.strength
finetune.regularise.by l2 fisher
finetune.regularise.tensors
finetune.memory_format contiguous channels_last
finetune.init
predict.patch_size
predict.overlap 0.5
predict.mirror false true
predict.batch_size 1
study.initialisations
study.sizes
study.seeds
study.forgetting false true
study.submission.data
study.submission.format brats
study.submission.size
study.submission.initialisations
"""
"""A key a line, with its values, or its default."""


def _keys() -> dict[str, tuple[str, ...]]:
    keys = {key: tuple(values) for key, *values in map(str.split, _KEYS.strip().splitlines())}
    named = {"merge.method": METHODS, "finetune.init": INITIALISATIONS, "target.layout": ("auto", *LAYOUTS), "target.regions": REGIONS}
    return {**keys, **named}


KEYS: Mapping[str, tuple[str, ...]] = _keys()
"""Keys of a recipe as ``--set`` takes them, but for those inside lists and of users' own names."""
