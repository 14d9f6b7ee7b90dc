"""How to train: the keys that ``train``, ``adapt`` and ``finetune`` share in a recipe, with the paper's values as defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of the loop; each is a recipe key of the same name.

    Args:
        epochs: at most.
        patience: epochs without a better validation loss before stopping; None: never.
        learning_rate: of parameter groups that bring none of their own.
        optimizer: adam, adamw or sgd (see ``optimizers.py``).
        schedule: plateau, polynomial, cosine or constant (see ``schedule.py``).
        plateau_patience: epochs without a better validation loss before the rate falls.
        plateau_factor: by which it falls.
        loss: dice or dice-ce (see ``loss.py``).
        batch_size: samples a batch; told in messages, the batches come ready-made.
        patch_size: voxels a patch along each axis, also the window of validation; None: whole volumes.
        steps_per_epoch: None: each subject once; the batches come ready-made.
        gradient_clip: largest norm of the gradient; None: any.
        accumulate: batches whose gradients make one step.
        smoothing: weight of the past in the exponential average of the validation loss that stop, plateau and best look at; 0: raw.
        ema: decay of the average of the weights over the steps, which is validated and kept; None: the weights themselves are.
        checkpoint_activations: compute activations twice, to keep fewer of them.
        compile: run the steps through torch.compile; validation is not compiled.
        memory_format: contiguous or channels_last, of the images; that of the weights comes with the network.
        snapshot_minutes: time between snapshots.

    Source: Geyer, Corinzia, Wegmayr, MIDL 2019, experiments; Isensee et al. 2017.
    """

    epochs: int = 500
    patience: int | None = 50
    learning_rate: float = 5e-4
    optimizer: str = "adam"
    schedule: str = "plateau"
    plateau_patience: int = 10
    plateau_factor: float = 0.5
    loss: str = "dice"
    batch_size: int = 1
    patch_size: tuple[int, int, int] | None = None
    steps_per_epoch: int | None = None
    gradient_clip: float | None = None
    accumulate: int = 1
    smoothing: float = 0.0
    ema: float | None = None
    checkpoint_activations: bool = False
    compile: bool = False
    memory_format: str = "contiguous"
    snapshot_minutes: float = 10.0
