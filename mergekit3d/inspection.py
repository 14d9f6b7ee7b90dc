"""The facts that ``inspect`` tells of checkpoints, as plain data: what one holds, and what of several can be fused.

Names, shapes and metadata alone are looked at unless values are asked for; nothing heavy is imported for that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergekit3d.architectures import NetworkSpec, default_partitions, network_of, stems_of
from mergekit3d.architectures.ends import Shapes
from mergekit3d.checkpoints import Checkpoint, TensorEntry, recognised_format
from mergekit3d.checkpoints.ancestry import origins
from mergekit3d.checkpoints.checkpoint import FLOATS
from mergekit3d.checkpoints.formats import size_of
from mergekit3d.merging.correspondence import comparable_weights
from mergekit3d.merging.partitions import BUFFERS, PRIVATE, SHARED, assign, kinds, layer_of

if TYPE_CHECKING:
    import numpy as np

FUSIBLE, BY_DEFAULT_PRIVATE, INTEGER, REFUSED = "fusible", "private", "integer", "refused"
SHAPES_DIFFER = "shapes differ"
PIECE_ENTRIES = 1 << 20


def describe(checkpoint: Checkpoint, *, values: bool) -> dict[str, Any]:
    """What a checkpoint holds.

    Args:
        checkpoint: opened; with its seal compared already where values are asked for.
        values: look at every value: range, mean absolute value, root mean square, NaN and Inf.
    """
    spec, shapes, metadata = network_of(checkpoint), checkpoint.shapes, checkpoint.metadata
    partition_of, kind_of, owners = _partition_of(spec, shapes, checkpoint.aliases), kinds(shapes), checkpoint.owners
    tensors = [_tensor(entry, kind_of, partition_of, checkpoint.aliases) for entry in checkpoint.entries.values()]
    if values:
        figures = {name: _figures(checkpoint, name) for name, entry in checkpoint.stored.items() if entry.is_float}
        tensors = [{**tensor, **figures.get(checkpoint.stored_as(tensor["name"]), {})} for tensor in tensors]
    parameters = {SHARED: 0, PRIVATE: 0}
    for name, entry in owners.items():
        if is_parameter(entry):
            parameters[partition_of[name]] += math.prod(entry.shape)
    content: dict[str, Any] = {
        "file": checkpoint.path.name,
        "bytes": size_of(checkpoint.path),
        "format": recognised_format(checkpoint.path).name,
        "kind": None if metadata is None or checkpoint.is_foreign else metadata.kind,
        "architecture": None if spec is None else spec.as_json(),
        "architecture_from": None if spec is None else "metadata" if metadata is not None and metadata.architecture else "tensors",
        "parameters": parameters,
        "private": list(default_partitions(spec, shapes).private),
        "buffers": sum(1 for entry in owners.values() if not is_parameter(entry)),
        "layers": len({layer_of(name) for name in owners}),
        "distinct_tensors": len(owners),
        "dtypes": dict(Counter(entry.dtype for entry in owners.values())),
        "metadata": None if metadata is None else metadata.as_json(),
        "origins": None if metadata is None or checkpoint.is_foreign else origins(metadata),
        "tensors": tensors,
    }
    if values:
        content["seal"] = None if metadata is None or checkpoint.is_foreign else "intact"
        bad = {name: found["nan"] + found["inf"] for name, found in figures.items()}
        content["not_finite"] = [{"name": name, "count": count} for name, count in bad.items() if count]
    return content


def is_parameter(entry: TensorEntry) -> bool:
    """Whether a tensor is trained: running statistics and integers are not."""
    return entry.is_float and entry.name.rpartition(".")[2] not in BUFFERS


def _tensor(entry: TensorEntry, kind_of: Mapping[str, str], partition_of: Mapping[str, str], aliases: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": entry.name,
        "layer": layer_of(entry.name),
        "kind": kind_of[entry.name],
        "dtype": entry.dtype,
        "shape": list(entry.shape),
        "bytes": entry.nbytes,
        "partition": partition_of[entry.name],
        "alias_of": aliases.get(entry.name),
    }


def _partition_of(spec: NetworkSpec | None, shapes: Shapes, aliases: Mapping[str, str]) -> dict[str, str]:
    """The partition of every name by default; a further name of a tensor is where its owner is."""
    assigned = assign(default_partitions(spec, shapes), shapes)
    return {name: assigned[aliases.get(name, name)] for name in shapes}


def _pieces(values: np.ndarray) -> Iterator[np.ndarray]:
    """A tensor in float64, flat, a piece at a time."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, PIECE_ENTRIES):
        yield flat[start : start + PIECE_ENTRIES].astype("f8")


def _figures(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Range, mean absolute value and root mean square of the finite entries of a float tensor, and the number of others."""
    import numpy as np

    lowest, highest, absolute, squares, nan, inf, count = math.inf, -math.inf, 0.0, 0.0, 0, 0, 0
    for piece in _pieces(checkpoint.read(name)):
        finite = piece[np.isfinite(piece)]
        nan += int(np.count_nonzero(np.isnan(piece)))
        count += finite.size
        inf += piece.size - finite.size
        if finite.size:
            lowest, highest = min(lowest, float(finite.min())), max(highest, float(finite.max()))
            absolute += float(np.abs(finite).sum())
            squares += float(np.dot(finite, finite))
    return {
        "min": lowest if count else None,
        "max": highest if count else None,
        "mean_abs": absolute / count if count else None,
        "rms": math.sqrt(squares / count) if count else None,
        "nan": nan,
        "inf": inf - nan,
    }


@dataclass(frozen=True)
class _Comparison:
    """Judges every tensor of several checkpoints.

    Args:
        opened: the checkpoints.
        labels: what each is called.
    """

    opened: Sequence[Checkpoint]
    labels: Sequence[str]

    def rows(self) -> list[dict[str, Any]]:
        """A row a tensor, in the order of the first checkpoint that has it."""
        specs = [network_of(checkpoint) for checkpoint in self.opened]
        spec = next((spec for spec in specs if spec is not None), None)
        shapes = {name: entry.shape for checkpoint in reversed(self.opened) for name, entry in checkpoint.entries.items()}
        shapes = {name: shapes[name] for name in dict.fromkeys(name for checkpoint in self.opened for name in checkpoint.entries)}
        shared_names = {name: owner for name in shapes if (owner := self._owner_in_all(name)) is not None}
        partition_of, taking = _partition_of(spec, shapes, shared_names), stems_of(spec, shapes)
        return [self._row(name, partition_of[name], is_input=name in taking) for name in shapes]

    def _row(self, name: str, partition: str, *, is_input: bool) -> dict[str, Any]:
        entries = [checkpoint.entries.get(name) for checkpoint in self.opened]
        outcome, reason = self._judge(name, entries, partition)
        remarks = [remark for remark in (self._input_remark(entries) if is_input else None, self._alias_remark(name)) if remark]
        dtypes = [None if entry is None else entry.dtype for entry in entries]
        if reason is None and len(set(dtypes)) > 1:
            wider = "F64" if "F64" in dtypes else "F32"
            remarks.append(f"dtypes differ ({' / '.join(map(str, dtypes))}): fused as {wider}")
        return {
            "name": name,
            "partition": partition,
            "outcome": outcome,
            "fusible": reason is None,
            "reason": reason,
            "remark": "; ".join(remarks) or None,
            "shapes": [None if entry is None else list(entry.shape) for entry in entries],
            "dtypes": dtypes,
            "alias_of": self._owner_in_all(name),
        }

    def _judge(self, name: str, entries: Sequence[TensorEntry | None], partition: str) -> tuple[str, str | None]:
        """The outcome of a tensor, and why it cannot be fused; None where it can."""
        outcome = FUSIBLE if partition == SHARED else BY_DEFAULT_PRIVATE
        found = [entry for entry in entries if entry is not None]
        if len(found) < len(entries):
            missing = [label for label, entry in zip(self.labels, entries, strict=True) if entry is None]
            return REFUSED, f"missing in {', '.join(missing)}"
        floats = [entry.dtype in FLOATS for entry in found]
        if any(floats) and not all(floats):
            return REFUSED, f"integer in some, float in others ({' / '.join(entry.dtype for entry in found)})"
        if any(entry.shape != found[0].shape for entry in found):
            return (REFUSED if partition == SHARED else outcome), SHAPES_DIFFER
        if not all(floats):
            return INTEGER, f"an integer buffer: {'equal' if self._are_equal(name) else 'differs'}"
        return outcome, None

    def _are_equal(self, name: str) -> bool:
        import numpy as np

        first = self.opened[0].read(name)
        return all(np.array_equal(first, checkpoint.read(name)) for checkpoint in self.opened[1:])

    def _input_remark(self, entries: Sequence[TensorEntry | None]) -> str | None:
        """What tasks say of the first convolution: a channel is a modality."""
        tasks = [None if checkpoint.metadata is None else checkpoint.metadata.task for checkpoint in self.opened]
        modalities = [task.modalities for task in tasks if task is not None]
        if len(modalities) < len(entries) or len(set(modalities)) == 1:
            return None
        return f"modalities differ ({' / '.join(' + '.join(names) for names in modalities)}): matched by name for a target"

    def _owners(self, name: str) -> set[str]:
        return {checkpoint.aliases.get(name, name) for checkpoint in self.opened if name in checkpoint.entries}

    def _owner_in_all(self, name: str) -> str | None:
        """The name that owns a tensor, where this is a further name of it in every file that has it."""
        owners = self._owners(name)
        return next(iter(owners - {name}), None) if len(owners) == 1 else None

    def _alias_remark(self, name: str) -> str | None:
        """What is one tensor in some of the files and two in others."""
        if len(self._owners(name)) == 1:
            return None
        having = [label for checkpoint, label in zip(self.opened, self.labels, strict=True) if name in checkpoint.aliases]
        return f"an alias in {', '.join(having)} alone"


def compare(opened: Sequence[Checkpoint], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Whether each tensor of several checkpoints can be fused, and why not.

    Args:
        opened: two checkpoints or more.
        labels: what each is called in reasons.

    Returns:
        For every tensor name, partition (by default of the network), outcome, fusible, reason, remark, shapes and dtypes by checkpoint,
        and the name that owns it where it is a further name of another tensor in all of them.
    """
    return _Comparison(opened, labels).rows()


def weights_to_compare(first: Checkpoint, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The weights whose cosine tells, of those that `compare` found fusible."""
    return comparable_weights([row["name"] for row in rows if row["fusible"] and row["alias_of"] is None], first.shapes)


def cosines(opened: Sequence[Checkpoint], rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Cosine of each checkpoint's weights to the first one's, over the convolutions and linear layers that all have.

    Returns:
        A cosine for every checkpoint but the first; None where it is not defined.
    """
    import numpy as np

    names = weights_to_compare(opened[0], rows)
    found = []
    for other in opened[1:]:
        dot = square = other_square = 0.0
        for name in names:
            for a, b in zip(_pieces(opened[0].read(name)), _pieces(other.read(name)), strict=True):
                dot, square, other_square = dot + float(np.dot(a, b)), square + float(np.dot(a, a)), other_square + float(np.dot(b, b))
        norm = math.sqrt(square) * math.sqrt(other_square)
        found.append(dot / norm if norm and math.isfinite(norm) and math.isfinite(dot) else None)
    return found
