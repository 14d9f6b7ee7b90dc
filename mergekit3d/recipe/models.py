"""The recipe, as frozen pydantic models: every key, its type, its default, and one line on what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import to_jsonable_python

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Ratio = Annotated[float, Field(ge=0)]
Coefficient = float | Annotated[tuple[float, ...], Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Size3 = tuple[PositiveInt, PositiveInt, PositiveInt]
Spacing = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
Outputs = str | dict[str, tuple[Count, ...] | Count]


def _one_or_several(value: Any) -> Any:
    """One glob may stand without a list around it."""
    return (value,) if isinstance(value, str) else value


Globs = Annotated[tuple[str, ...], BeforeValidator(_one_or_several), Field(min_length=1)]


def _true_is_a_word(value: Any) -> Any:
    """YAML reads ``true`` as a boolean; here it is the name of an estimator."""
    return "true" if value is True else value


UNDECISIVE = frozenset({"snapshot_minutes", "workers", "cache", "out"})
"""Keys that change no result; names that users give are none of these."""


class Model(BaseModel):
    """A part of a recipe: unknown keys are refused, values do not change, inputs are not echoed in errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True, protected_namespaces=())

    def decisive(self, *, without: frozenset[str] = frozenset()) -> dict[str, Any]:
        """What decides a result, as plain data: all keys but those that change none, and but those named, at any depth."""
        found: dict[str, Any] = _without(self, UNDECISIVE | without)
        return found


def _without(value: Any, keys: frozenset[str]) -> Any:
    if isinstance(value, Model):
        return {name: _without(getattr(value, name), keys) for name in type(value).model_fields if name not in keys}
    if isinstance(value, dict):
        return {key: _without(part, keys) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_without(part, keys) for part in value]
    return to_jsonable_python(value)


class ArchitectureModel(Model):
    """A network by name, with its keyword arguments."""

    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True)

    name: str = Field(description="registered name, or import path of a torch.nn.Module (monai.UNet for MONAI's)")

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the network."""
        return dict(self.model_extra or {})


class SplitModel(Model):
    """Which subjects train, validate and test: numbers drawn by seed, or files of names; left out: a list's own, else all train."""

    train: Count | Path | None = Field(None, description="number of training subjects, or a file of names; left out: the rest")
    validation: Count | Path | None = Field(None, description="number of validation subjects, or a file of names")
    test: Count | Path | None = Field(None, description="number of test subjects (from the end of the shuffled list), or a file of names")
    skip: Count = Field(0, description="subjects left out at the start of the shuffled list (another model trains on them)")
    seed: Count = Field(0, description="seed of the shuffle")
    fold: Count | None = Field(None, description="of a list with folds: its subjects validate, the others train")

    @model_validator(mode="after")
    def _fold_alone(self) -> SplitModel:
        if self.fold is not None and self.model_fields_set != {"fold"}:
            raise ValueError("give a fold or numbers, not both")
        return self


class TargetModel(Model):
    """A task: its data, modalities and outputs."""

    data: str = Field(description="folder of the data set, a list of files (.json, .csv, .tsv), or a name from the recipe's data")
    layout: str = Field("auto", description="auto, or a layout by name: hcp, brats2018, nnunet, decathlon ...")
    modalities: tuple[str, ...] | None = Field(None, min_length=1, description="input channels by name, in order")
    regions: Outputs | None = Field(None, description="label ids of each region (one sigmoid each), or a shipped set: hcp-1-7, brats ...")
    labels: Outputs | None = Field(None, description="label ids of each class, exclusive (softmax)")
    split: SplitModel | Path = Field(SplitModel(), description="numbers and seed, a file, or a fold; left out: a list's own")
    normalisation: Literal["zscore", "rank", "none", "zscore-image", "rescale"] = Field(
        "zscore",
        description="intensities of each modality: zscore, rank over the foreground; zscore-image, rescale (0 to 1) over the whole image",
    )
    spacing_mm: Spacing | None = Field(None, description="voxel size to resample to; left out: native")

    @model_validator(mode="after")
    def _one_kind_of_outputs(self) -> TargetModel:
        if self.regions is not None and self.labels is not None:
            raise ValueError("give regions or labels, not both")
        return self


class ChanceModel(Model):
    """One random change."""

    probability: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="left out: the preset's, else nnU-Net's")
    range: tuple[float, float] | None = Field(None, description="between which values it is drawn; left out: the preset's, else nnU-Net's")


LIMITS = {"rotate": (-180, 180), "scale": (0.1, 10), "elastic": (0, 20), "noise": (0, 10), "blur": (0, 10)} | {
    "low_resolution": (0.05, 1),
    **dict.fromkeys(("brightness", "contrast", "gamma", "gamma_inverted"), (0.01, 100)),
}


class AugmentModel(Model):
    """Random changes of the training volumes; every number is drawn from seed, epoch and place in the epoch."""

    preset: Literal["flips", "nnunet"] = Field(
        "flips", description="flips: mirroring alone; nnunet: the chances and ranges of nnU-Net; the keys below change or add single ones"
    )

    flip: tuple[Literal["left-right", "posterior-anterior", "inferior-superior"], ...] = Field(
        ("left-right",), description="axes to mirror along, each with probability 1/2; anatomy is nearly symmetric along the first alone"
    )
    rotate: ChanceModel | None = Field(None, description="degrees about each axis")
    scale: ChanceModel | None = Field(None, description="size of what a sample shows, relative to its own")
    elastic: ChanceModel | None = Field(None, description="smooth displacement, standard deviation in voxels")
    noise: ChanceModel | None = Field(None, description="Gaussian noise, standard deviation")
    blur: ChanceModel | None = Field(None, description="Gaussian smoothing, standard deviation in voxels")
    brightness: ChanceModel | None = Field(None, description="factor")
    contrast: ChanceModel | None = Field(None, description="factor of the distances from the mean")
    low_resolution: ChanceModel | None = Field(None, description="sampling down and up again, factor")
    gamma: ChanceModel | None = Field(None, description="power, mean and standard deviation stay")
    gamma_inverted: ChanceModel | None = Field(None, description="power of the negative")

    @model_validator(mode="after")
    def _within_limits(self) -> AugmentModel:
        for name, (least, most) in LIMITS.items():
            chance = getattr(self, name)
            if chance is not None and chance.range is not None and not least <= chance.range[0] <= chance.range[1] <= most:
                raise ValueError(f"the range of {name} goes from low to high, within {least} and {most}")
        return self


class TrainingModel(Model):
    """What train, adapt and finetune share: loss, optimizer, schedule, stopping. Defaults are the paper's."""

    epochs: PositiveInt = Field(500, description="epochs at most")
    patience: PositiveInt | None = Field(50, description="epochs without a better validation loss before stopping; null: never")
    learning_rate: Annotated[float, Field(gt=0)] = Field(5e-4, description="of the network's weights")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="optimizer")
    schedule: Literal["plateau", "polynomial", "cosine", "constant"] = Field("plateau", description="how the learning rate falls")
    plateau_patience: PositiveInt = Field(10, description="epochs without a better validation loss before the learning rate falls")
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="factor by which it falls")
    loss: Literal["dice", "dice-ce"] = Field("dice", description="soft Dice, or with cross-entropy added")
    batch_size: PositiveInt = Field(1, description="subjects a step")
    patch_size: Size3 | None = Field(None, description="voxels a patch; left out: whole volumes, cropped to the foreground")
    steps_per_epoch: PositiveInt | None = Field(None, description="left out: each training subject once")
    accumulate: PositiveInt = Field(1, description="batches whose gradients make one step")
    gradient_clip: Annotated[float, Field(gt=0)] | None = Field(None, description="largest norm of the gradient")
    smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="of the validation loss that stopping looks at (0: none)")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where it is fast; fp16, with scaling of the loss, on GPUs alone; the flag --precision beats it"
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="decay of a moving average of the weights over the steps (0.999), which is validated and kept; left out: none"
    )
    checkpoint_activations: bool = Field(False, description="compute activations twice, to train in less memory; the result is the same")
    compile: bool = Field(
        False, description="steps by torch.compile, which takes minutes at the start: for GPUs; another result, by rounding"
    )
    snapshot_minutes: Annotated[float, Field(ge=0)] = Field(10.0, description="time between snapshots for --resume")
    augment: AugmentModel = Field(AugmentModel(), description="random changes of the training volumes")


class RegulariseModel(Model):
    """A pull back to the weights that a training starts from: the penalty 1/2 strength sum_i w_i (theta_i - start_i)^2."""

    strength: Annotated[float, Field(gt=0)] = Field(description="of the penalty; by fisher, the log tells the mean of the diagonal")
    by: Literal["l2", "fisher"] = Field("l2", description="w: l2: 1 (L2-SP, L2-transfer); fisher: the Fisher diagonal of the start (EWC)")
    tensors: tuple[str, ...] | None = Field(
        None, min_length=1, description="globs, kinds, shared or private; left out: shared in train, all in finetune; random ones stay free"
    )


class WholeModel(TrainingModel):
    """What train and finetune share: all weights learn, and some may be held."""

    freeze: tuple[str, ...] = Field((), description="tensors that stay as they are: globs on names, kind:norm ..., shared or private")
    learning_rates: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="rates of some tensors, by the same patterns; the first that fits decides, and schedules scale all"
    )
    regularise: RegulariseModel | None = Field(None, description="a pull back to the weights at the start")
    memory_format: Literal["contiguous", "channels_last"] = Field(
        "contiguous",
        description="of weights and images: channels_last is faster for some networks and devices; another result, by rounding",
    )

    @property
    def is_held(self) -> bool:
        """Whether some tensors train otherwise than the rest."""
        return bool(self.freeze or self.learning_rates or self.regularise is not None)


class TrainModel(WholeModel):
    """Training of a source model."""

    init: str = Field(
        "none", description="none, an earlier source's name, or a checkpoint to start from; heads are new where regions differ"
    )
    initialisation: Literal["xavier", "torch"] = Field(
        "xavier",
        description="random weights of init none: xavier, as in the paper; torch: PyTorch's smaller ones, which learn faster at one rate",
    )
    drop_transfer: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of output channels that take the weights of init in a step (drop-transfer of sequential IMM)"
    )

    @property
    def is_held(self) -> bool:
        """Whether some tensors train otherwise than the rest."""
        return super().is_held or self.drop_transfer > 0

    @model_validator(mode="after")
    def _has_a_start(self) -> TrainModel:
        if self.init == "none" and (self.regularise is not None or self.drop_transfer > 0):
            raise ValueError("regularise and drop_transfer need an init to hold on to")
        return self


class RatioPenaltyModel(Model):
    """A penalty on mixing ratios that are far from uniform."""

    by: Literal["entropy", "uniform"] = Field(description="entropy that is missing to log T, or squared distance to 1/T")
    strength: float = Field(description="what the mean over all ratios is multiplied by; below 0 it drives them apart")


class ObjectiveModel(Model):
    """A mix of objectives, by weight."""

    supervised: Ratio = Field(1.0, description="weight of the loss on the labelled training subjects")
    entropy: Ratio = Field(0.0, description="weight of the entropy of the prediction")

    @model_validator(mode="after")
    def _has_one(self) -> ObjectiveModel:
        if self.supervised + self.entropy <= 0:
            raise ValueError("give one of the objectives a weight above 0")
        return self


def _by_word(value: Any) -> Any:
    """One objective alone may stand by its name."""
    if isinstance(value, str):
        if value not in ObjectiveModel.model_fields:
            raise ValueError("give supervised, entropy, or weights of the two")
        return {"supervised": 0, "entropy": 0, value: 1}
    return value


class AdaptModel(TrainingModel):
    """Learning of the mixing ratios together with the private tensors."""

    epochs: PositiveInt = Field(20, description="epochs at most")
    patience: PositiveInt | None = Field(5, description="epochs without a better validation loss before stopping; null: never")
    smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.5, description="of the validation loss that stopping looks at (0: none)")
    ratio_learning_rate: Annotated[float, Field(gt=0)] = Field(0.05, description="of delta, the parameters of the mixing ratios")
    ratios: str | dict[str, Coefficient | dict[str, Coefficient]] = Field(
        "uniform", description="where the ratios start: uniform, by source, by glob and source, or a file of ratios"
    )
    normalise_fisher: bool = Field(False, description="start as if every Fisher diagonal had the same trace (an offset of delta)")
    regularise: RatioPenaltyModel | None = Field(None, description="penalty on ratios that are far from uniform")
    objective: Annotated[ObjectiveModel, BeforeValidator(_by_word)] = Field(
        ObjectiveModel(),
        description="supervised (loss on labelled subjects), entropy (of the prediction; delta alone is learned, private tensors "
        "stay as they are), or both by weight",
    )
    unlabelled: str | None = Field(
        None, description="folder or list of scans without labels, or a name from data, for the entropy; left out: the training subjects"
    )
    private: str | None = Field(
        None, description="private tensors to start from: random or a source's name; left out: as merge.private, else random"
    )


class FinetuneModel(WholeModel):
    """Training of all weights on the target task, but for those that are frozen."""

    init: str | None = Field(None, description="none, a source's name, imm, timm, or a checkpoint; left out: merge.method")


class FisherModel(Model):
    """Estimation of the Fisher diagonals of the sources."""

    estimator: Annotated[Literal["sampled", "true"], BeforeValidator(_true_is_a_word)] = Field(
        "sampled", description="labels drawn from the model's own prediction, or the true ones"
    )
    draws: PositiveInt = Field(4, description="draws of the labels a subject")
    max_subjects: PositiveInt | None = Field(None, description="subjects at most")
    patch_size: Size3 | None = Field(None, description="one patch a subject of this size; left out: whole volumes")
    batch_size: PositiveInt = Field(1, description="subjects at once, if they follow one another and have one padded size")
    dtype: Literal["float32", "sqrt-fp16"] = Field("float32", description="of the file; scaled square roots in float16 to publish it")
    snapshot_minutes: Annotated[float, Field(ge=0)] = Field(10.0, description="time between snapshots for --resume")


class SourceModel(Model):
    """One trained network to fuse: a checkpoint, or the task and training that make it."""

    name: Name = Field(description="short name, used in ratios and reports")
    checkpoint: Path | None = Field(None, description="checkpoint file; left out: what training makes")
    fisher: Path | None = Field(None, description="Fisher diagonal; left out: <stem>.fisher.safetensors beside the checkpoint")
    target: TargetModel | None = Field(None, description="the task it was trained on: for training and Fisher")
    train: TrainModel | None = Field(None, description="how to train it, where there is no checkpoint yet")

    @model_validator(mode="after")
    def _has_weights(self) -> SourceModel:
        if self.checkpoint is None and (self.train is None or self.target is None):
            raise ValueError("give a checkpoint, or target and train")
        return self


class PartitionsModel(Model):
    """Which tensors are fused and which belong to a task: globs on names, or kind:conv, norm, linear, activation, other; private wins."""

    private: tuple[str, ...] | None = Field(None, description="task-specific tensors; left out: the architecture's heads and norms")
    shared: tuple[str, ...] = Field(("*",), description="fused tensors")


class MergeModel(Model):
    """How the sources are fused."""

    method: str = Field("timm", description="merge method; see mergekit3d methods")
    granularity: Literal["model", "layer", "tensor", "kernel"] | Annotated[dict[Name, Globs], Field(min_length=1)] = Field(
        "layer", description="what shares one mixing ratio: model, layer, tensor, kernel, or groups by name, each a glob or several"
    )
    parameters: dict[str, Any] = Field({}, description="of the method; see mergekit3d methods")
    base: str | None = Field(
        None, description="source or checkpoint that the others were trained from, for methods that work on differences from it"
    )
    ratios: str | dict[str, Coefficient | dict[str, Coefficient]] | None = Field(
        None,
        description="file of ratios, uniform, by source, or by glob and source; a list of numbers runs along the depth of the network; "
        "left out: adapt/ratios.json for timm, else uniform",
    )
    private: str | None = Field(
        None, description="private tensors: adapted, random, zero or a source's name; left out: adapted where there are, else random"
    )
    buffers: str | None = Field(
        None, description="source whose counters and other integer tensors are taken where they differ; left out: the last"
    )
    dtype: Literal["float32", "float16", "bfloat16", "float64"] | None = Field(
        None, description="of the fused file's weights; left out: the widest of the sources'"
    )
    input_channels: Literal["match", "random"] = Field(
        "match", description="first convolution where modalities differ: match by name, or random"
    )
    out: Path = Field(Path("fused.safetensors"), description="the fused checkpoint")


class PredictModel(Model):
    """Inference on validation and test subjects."""

    patch_size: Size3 | None = Field(None, description="sliding window of this size; left out: whole volumes")
    overlap: Annotated[float, Field(ge=0, lt=1)] = Field(0.5, description="of neighbouring windows")
    mirror: bool = Field(False, description="average over mirrored copies")
    batch_size: PositiveInt = Field(1, description="windows at once")


class SizeModel(SplitModel):
    """A size of the target's training set in a study: a split, and what is compared there."""

    initialisations: tuple[str, ...] | None = Field(None, min_length=1, description="at this size; left out: those of the study")

    @property
    def split(self) -> SplitModel:
        """The split alone."""
        return SplitModel(**{name: getattr(self, name) for name in SplitModel.model_fields})


class SubmissionModel(Model):
    """Subjects without labels that a study's fine-tuned networks segment, for a challenge that keeps the truth to itself."""

    data: str = Field(description="folder of the subjects, or a name from data; where it is not there, this is left out, with a warning")
    format: Literal["brats"] = Field("brats", description="label ids to write: brats (4, 1, 2 from ET, TC, WT)")
    size: str | None = Field(None, description="size whose networks segment them; left out: all sizes")
    initialisations: tuple[str, ...] | None = Field(None, min_length=1, description="whose networks; left out: all of the size")


class StudyModel(Model):
    """A comparison of initialisations, as in the paper's Tables 2 to 4; without a target, of merges on the sources' tasks."""

    initialisations: tuple[str, ...] = Field(
        ("none", "imm", "timm"),
        min_length=1,
        description="none, names of sources or baselines, imm, mean-imm, timm; without a target: imm, mean-imm",
    )
    sizes: dict[str, SizeModel] = Field({}, description="splits of the target by name (4 %, 8 % ...); left out: the target's own")
    seeds: tuple[Count, ...] = Field((0,), min_length=1, description="seeds of adaptation and fine-tuning")
    forgetting: bool = Field(True, description="evaluate the merges with each source's private tensors on that source's test subjects")
    submission: SubmissionModel | None = Field(None, description="unlabelled subjects to segment for a challenge, such as an online set")


class Recipe(Model):
    """A whole recipe; which parts it needs depends on the commands that are run on it."""

    version: Literal[1] = Field(description="of the recipe's format")
    name: Name | None = Field(None, description="left out: the name of the file")
    seed: Count = Field(0, description="of everything random")
    out: Path | None = Field(None, description="output folder; left out: a folder of the recipe's name beside it")
    cache: Path | Literal[False] | None = Field(
        None,
        description="folder of prepared subjects, which recipes may share; left out: prepared, in the output folder; false: none is stored",
    )
    workers: PositiveInt | None = Field(
        None, description="threads that make training batches; left out: 1 on the CPU, up to 8 beside a GPU; they change no result"
    )
    data: dict[Name, Path] = Field({}, description="folders or lists of data sets by name")
    architecture: str | ArchitectureModel | None = Field(None, description="network; left out: what the checkpoints say")
    sources: tuple[SourceModel, ...] = Field((), description="networks to fuse, in the order of training")
    baselines: tuple[SourceModel, ...] = Field((), description="further networks that fine-tuning may start from")
    partitions: PartitionsModel = Field(PartitionsModel(), description="shared and private tensors")
    merge: MergeModel = Field(MergeModel(), description="fusion")
    target: TargetModel | None = Field(None, description="the task to learn")
    train: TrainModel | None = Field(None, description="training of a source model (in place of sources and merge)")
    fisher: FisherModel = Field(FisherModel(), description="estimation of the Fisher diagonals")
    adapt: AdaptModel = Field(AdaptModel(), description="learning of the mixing ratios")
    finetune: FinetuneModel = Field(FinetuneModel(), description="fine-tuning on the target")
    predict: PredictModel = Field(PredictModel(), description="inference on validation and test subjects")
    study: StudyModel | None = Field(None, description="comparison of several initialisations")

    @model_validator(mode="after")
    def _distinct_names(self) -> Recipe:
        names = [source.name for source in (*self.sources, *self.baselines)]
        reserved = {"none", "imm", "mean-imm", "timm", "adapt", "finetune", "train", "prepared", "random", "zero", "adapted"} & set(names)
        if len(set(names)) != len(names):
            raise ValueError("two sources or baselines have the same name")
        if reserved:
            raise ValueError(f"{sorted(reserved)[0]!r} cannot be the name of a source")
        return self

    def without_places(self) -> Recipe:
        """A copy that does not tell where the files of sources stand, for digests: a study that has moved is the same study."""
        nowhere = {"checkpoint": None, "fisher": None}
        sources, baselines = (tuple(source.model_copy(update=nowhere) for source in group) for group in (self.sources, self.baselines))
        return self.model_copy(update={"sources": sources, "baselines": baselines})
