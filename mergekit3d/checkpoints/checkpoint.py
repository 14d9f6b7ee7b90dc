"""A set of named tensors in a file, whatever its format, read one tensor at a time.

numpy is imported where values are looked at: names, shapes and metadata are shown without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.checkpoints.metadata import Metadata
from mergekit3d.errors import InputError
from mergekit3d.storage.seal import hash_in_parallel, tensor_digest, tensors_digest

if TYPE_CHECKING:
    import numpy as np

NUMPY_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
ITEM_SIZES = {**{name: int(code[2:]) for name, code in NUMPY_DTYPES.items()}, "BF16": 2}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file.

    Args:
        name: parameter name.
        dtype: name as in safetensors: F32, BF16, I64 ...
        shape: sizes of the axes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether the values are floating point."""
        return self.dtype in FLOATS

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint or Fisher file.

    Args:
        path: where it stands.
        entries: its tensors by name, in the order of the file.
        metadata: what it says of itself; None where it says nothing.
        content: reads the little-endian bytes of one tensor.
        read_into: fills a buffer with the bytes of a tensor from an offset on, where the format can without a memory map: memory stays
            small then, and a file that is cut while it is read is an error instead of a crash. None where it cannot.
        aliases: further names of tensors, each with the first name in the file's order that is the same tensor.
        aliases_are_stored: whether aliases have bytes of their own in the file, which its digest covers too.
        check_steady: refuses the file where it was changed since it was opened, so that what was read may be of two contents.
        is_foreign: another program wrote it, so that there is no seal; its metadata is what its content was understood to say.
    """

    path: Path
    entries: Mapping[str, TensorEntry]
    metadata: Metadata | None
    content: Callable[[str], Any] = field(repr=False)
    read_into: Callable[[str, int, memoryview], None] | None = field(default=None, repr=False)
    aliases: Mapping[str, str] = field(default_factory=dict)
    aliases_are_stored: bool = False
    is_foreign: bool = False
    check_steady: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by name."""
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def owners(self) -> dict[str, TensorEntry]:
        """The tensors without the further names that some of them have, in order."""
        return {name: entry for name, entry in self.entries.items() if name not in self.aliases}

    def stored_as(self, name: str) -> str:
        """The name under which the bytes of a tensor stand in the file."""
        return name if self.aliases_are_stored else self.aliases.get(name, name)

    @property
    def stored(self) -> dict[str, TensorEntry]:
        """The tensors that have bytes of their own in the file, in order."""
        return {name: entry for name, entry in self.entries.items() if self.stored_as(name) == name}

    def read(self, name: str) -> np.ndarray:
        """One tensor as an array of its own dtype; bfloat16 comes widened to float32, which loses nothing, and roots as their squares."""
        return self.decoded(name, self.content(name), self.entries[name].shape)

    def read_bits(self, name: str) -> np.ndarray:
        """One tensor as it stands in the file, to be written again: bfloat16 as its bits in uint16, roots as they are."""
        import numpy as np

        entry = self.entries[name]
        return np.frombuffer(self.content(name), NUMPY_DTYPES.get(entry.dtype, "<u2")).reshape(entry.shape)

    def decoded(self, name: str, content: Any, shape: Iterable[int]) -> np.ndarray:
        """An array from bytes of a tensor, or of a part of it, as `read` gives them."""
        values = decode(content, self.entries[name].dtype, shape)
        scale = None if self.metadata is None else self.metadata.root_scales.get(name)
        if scale is None:
            return values
        from mergekit3d.checkpoints.roots import from_roots

        return from_roots(values, scale)

    def read_first(self, name: str, count: int) -> np.ndarray:
        """At most the first `count` entries of a tensor, flat; as `read` gives them."""
        entry = self.entries[name]
        count = min(count, entry.nbytes // ITEM_SIZES[entry.dtype])
        return self.decoded(name, memoryview(self.content(name))[: count * ITEM_SIZES[entry.dtype]], (count,))

    @cached_property
    def digest(self) -> str:
        """sha256 over every tensor's name, dtype, shape and bytes: the identity of the weights, whatever the format."""

        def of(name: str) -> str:
            entry = self.entries[name]
            return tensor_digest(entry.dtype, entry.shape, self.content(name))

        digests = hash_in_parallel(self.stored, of)
        self.check_steady()
        return tensors_digest({name: digests[self.stored_as(name)] for name in self.entries})

    def check_seal(self) -> None:
        """Compare the file with its seal; a file without one (not ours) passes.

        Raises:
            InputError: the file is damaged.
        """
        if self.metadata is None or self.is_foreign:
            return
        if not self.metadata.metadata_intact() or self.metadata.seal is None or self.metadata.seal.get("tensors") != self.digest:
            raise InputError(
                "the file is damaged", where=self.path, found="content that differs from its seal", todo="restore it from a copy"
            )

    def non_finite(self) -> list[tuple[str, int]]:
        """Names of float tensors that hold NaN or Inf, with the number of such values."""
        import numpy as np

        counts = [(name, int(np.count_nonzero(~np.isfinite(self.read(name))))) for name, entry in self.stored.items() if entry.is_float]
        return [(name, count) for name, count in counts if count]

    def check_finite(self) -> None:
        """Refuse NaN and Inf.

        Raises:
            InputError: some tensor holds them; the first is named.
        """
        self.refuse_non_finite(self.non_finite())

    def refuse_non_finite(self, bad: Sequence[tuple[str, int]]) -> None:
        """Tell of NaN and Inf that were found, by name of the tensor and number; none found passes.

        Raises:
            InputError: the first tensor is named.
        """
        if bad:
            name, count = bad[0]
            more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
            raise InputError(
                "values that are not finite", where=self.path, found=f"{count} NaN or Inf in {name}{more}", todo="use another checkpoint"
            )


def decode(content: Any, dtype: str, shape: Iterable[int]) -> np.ndarray:
    """An array from the bytes of a tensor; bfloat16 is widened to float32."""
    import numpy as np

    if dtype == "BF16":
        return (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4").reshape(tuple(shape))
    return np.frombuffer(content, NUMPY_DTYPES[dtype]).reshape(tuple(shape))


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """An array in the dtype named, ready to be written; bfloat16 comes as its bits in uint16, rounded to nearest even.

    Bits of bfloat16 in uint16 pass as they are.
    """
    import numpy as np

    if dtype == "BF16" and values.dtype == np.dtype("<u2"):
        return np.asarray(values, order="C")
    if dtype != "BF16":
        return np.asarray(values, NUMPY_DTYPES[dtype], order="C")
    bits = np.asarray(values, "<f4", order="C").view("<u4")
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def buffer_of(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    return memoryview(array.reshape(-1).view("u1"))  # type: ignore[arg-type]  # arrays are buffers


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The safetensors name of a numpy dtype."""
    code = dtype.newbyteorder("<").str
    return next(name for name, known in NUMPY_DTYPES.items() if known == code)
