"""What holds a training of all weights back: frozen tensors, rates of their own, a pull to the start, drop-transfer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mergekit3d.architectures import NetworkSpec
from mergekit3d.errors import ProblemCollector, RecipeError
from mergekit3d.merging.partitions import BUFFERS, SHARED, assign, kinds, named_by
from mergekit3d.plan.anchors import Anchors
from mergekit3d.plan.fusion import partitions_of
from mergekit3d.plan.network import Start
from mergekit3d.plan.outcomes import RANDOM
from mergekit3d.recipe.load import LoadedRecipe
from mergekit3d.recipe.models import TrainModel, WholeModel

NODES = ("conv", "linear")


@dataclass(frozen=True)
class Constraints:
    """How a training is held back, tensor by tensor.

    Args:
        frozen: tensors that stay as they are, running statistics too.
        rates: learning rates of tensors that have one of their own.
        strength: of the penalty.
        anchors: tensors that the penalty pulls to their start, with the weights of their entries; None for 1.
        drop_rate: share of output channels that take their start's weights in a step.
        dropped: tensors of the layers whose channels do.
        digests: of the Fisher diagonals that the anchors' weights come from.
    """

    frozen: frozenset[str] = frozenset()
    rates: Mapping[str, float] = field(default_factory=dict)
    strength: float = 0.0
    anchors: Mapping[str, np.ndarray | None] = field(default_factory=dict)
    drop_rate: float = 0.0
    dropped: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()

    def remark(self) -> str:
        """What holds the training back, in a few words; empty where nothing does."""
        parts = [f"{len(self.frozen)} tensors frozen"] if self.frozen else []
        if self.rates:
            parts.append(f"{len(self.rates)} with a learning rate of their own")
        if self.anchors:
            weights = [values for values in self.anchors.values() if values is not None]
            total, entries = sum(float(values.sum(dtype=np.float64)) for values in weights), sum(values.size for values in weights)
            mean = f", mean weight {total / entries:.3g}" if len(weights) == len(self.anchors) else ""
            parts.append(f"{len(self.anchors)} pulled to their start{mean}")
        if self.dropped:
            parts.append(f"drop-transfer in {len(self.dropped)}")
        return ", ".join(parts)


FREE = Constraints()


def check_constraints(
    loaded: LoadedRecipe, model: WholeModel, network: NetworkSpec | None, shapes: Mapping[str, Sequence[int]], key: str
) -> Constraints:
    """What a recipe's patterns name, which names and shapes alone tell.

    Args:
        loaded: the recipe.
        model: its train or finetune.
        network: architecture.
        shapes: shape of every tensor.
        key: where the model stands in the recipe, for error texts.

    Returns:
        Frozen tensors, rates, and without a look at the start, all tensors that penalty and drop-transfer may hold.

    Raises:
        MergeKit3DError: patterns that name nothing, and a recipe that trains nothing; all at once.
    """
    problems = ProblemCollector()
    partition_of = assign(partitions_of(loaded, network, shapes), shapes)

    def names(pattern: str, where: str) -> list[str]:
        return problems.attempt(lambda: named_by(pattern, partition_of, shapes, f"{key}.{where}")) or []

    frozen = {name for index, pattern in enumerate(model.freeze) for name in names(pattern, f"freeze[{index}]")}
    rates: dict[str, float] = {}
    for pattern, rate in model.learning_rates.items():
        rates = {**dict.fromkeys(_parameters(names(pattern, f"learning_rates.{pattern}")), rate), **rates}
    held: list[str] = []
    if model.regularise is not None:
        patterns = model.regularise.tensors or ((SHARED,) if isinstance(model, TrainModel) else ("*",))
        held = [name for index, pattern in enumerate(patterns) for name in names(pattern, f"regularise.tensors[{index}]")]
    problems.raise_if_any()
    if not set(_parameters(shapes)) - frozen:
        raise RecipeError("nothing is left to train", where=f"{key}.freeze", todo="freeze fewer tensors")
    drop_rate = model.drop_transfer if isinstance(model, TrainModel) else 0.0
    kind_of = kinds(shapes)
    nodes = [name for name in shapes if partition_of[name] == SHARED and kind_of[name] in NODES and name not in frozen]
    strength = 0.0 if model.regularise is None else model.regularise.strength
    rates = {name: rate for name, rate in rates.items() if name not in frozen}
    anchors = dict.fromkeys(name for name in _parameters(held) if name not in frozen)
    return Constraints(frozenset(frozen), rates, strength, anchors, drop_rate, tuple(nodes) if drop_rate else ())


def plan_constraints(loaded: LoadedRecipe, model: WholeModel, start: Start, anchors: Callable[[], Anchors], key: str) -> Constraints:
    """What holds a training back, for the start that it has.

    Args:
        loaded: the recipe.
        model: its train or finetune.
        start: the network to train.
        anchors: how strongly the start's entries count; asked for where the recipe regularises.
        key: where the model stands in the recipe, for error texts.

    Raises:
        MergeKit3DError: see `check_constraints`; nothing of what it should hold is there at the start.
    """
    shapes = {name: values.shape for name, values in start.values.items()}
    wanted = check_constraints(loaded, model, start.network, shapes, key)
    dropped = tuple(name for name in wanted.dropped if start.outcomes[name] != RANDOM)
    if wanted.drop_rate and not dropped:
        raise RecipeError("no layer takes part in drop-transfer", where=f"{key}.drop_transfer", wanted="shared layers that init has")
    if model.regularise is None:
        return replace(wanted, dropped=dropped)
    known = anchors()
    held = {name: known.weights[name] for name in wanted.anchors if name in known.weights}
    if not held:
        raise RecipeError("nothing to regularise", where=f"{key}.regularise", found="tensors that are frozen, or random at the start")
    return replace(wanted, anchors=held, dropped=dropped, digests=known.digests)


def _parameters(names: Sequence[str] | Mapping[str, object]) -> list[str]:
    return [name for name in names if name.rpartition(".")[2] not in BUFFERS]
