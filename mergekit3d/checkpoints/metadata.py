"""What a file of ours says of itself, in the one metadata key ``mergekit3d``.

Canonical JSON: kind, format version, tool, architecture, task, method, provenance (hashes, never paths or names of subjects) and
the seal. Read without torch or pydantic, so that ``inspect`` and ``fuse`` stay quick.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mergekit3d.errors import InputError
from mergekit3d.storage.seal import canonical_json, json_digest

KEY = "mergekit3d"
FORMAT_VERSION = 1
CHECKPOINT = "checkpoint"
FISHER = "fisher"
NORMALISATIONS = ("zscore", "rank", "none", "zscore-image", "rescale")


@dataclass(frozen=True)
class TaskSpec:
    """What a network was trained to do.

    Args:
        modalities: canonical names of the input channels, in order.
        outputs: label ids of every region or class, in the order of the output channels.
        exclusive: False for one sigmoid a region; True for a softmax whose channel 0 is the background (not in `outputs`).
        normalisation: of the intensities, per modality: zscore or rank over the foreground; zscore-image or rescale (to 0 ... 1) over
            the box of all that is not 0; or none.
        spacing_mm: voxel size that subjects are resampled to; None keeps the native one.
    """

    modalities: tuple[str, ...]
    outputs: Mapping[str, tuple[int, ...]]
    exclusive: bool = False
    normalisation: str = "zscore"
    spacing_mm: tuple[float, float, float] | None = None

    @property
    def channels(self) -> int:
        """Number of output channels of the network."""
        return len(self.outputs) + int(self.exclusive)

    def as_json(self) -> dict[str, Any]:
        """Plain data for JSON. Outputs are a list, as their order matters and canonical JSON sorts keys."""
        return {
            "modalities": list(self.modalities),
            "outputs": [[name, list(ids)] for name, ids in self.outputs.items()],
            "exclusive": self.exclusive,
            "normalisation": self.normalisation,
            "spacing_mm": None if self.spacing_mm is None else list(self.spacing_mm),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TaskSpec:
        """The task that `as_json` wrote."""
        spacing = content["spacing_mm"]
        if content["normalisation"] not in NORMALISATIONS:
            raise ValueError(f"unknown normalisation {content['normalisation']!r}")
        return cls(
            modalities=tuple(str(modality) for modality in content["modalities"]),
            outputs={str(name): tuple(int(label) for label in ids) for name, ids in content["outputs"]},
            exclusive=bool(content["exclusive"]),
            normalisation=content["normalisation"],
            spacing_mm=None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        )


@dataclass(frozen=True)
class Metadata:
    """The content of the metadata key.

    Args:
        kind: checkpoint or fisher.
        architecture: name and keyword arguments of the network; None where unknown.
        task: what the network was trained to do; None where unknown.
        method: what made the file: train, imm, timm, adapt, finetune, fisher-sampled ...
        provenance: hashes and figures of what it was made from.
        tool: name and version of the writer.
        aliases: further names of tensors, each with the name that owns the tensor; in the file every name has its values.
        root_scales: tensors that the file keeps as square roots in float16, each with the scale of the roots; see `roots`.
        origin: what a file of another program holds beside its tensors, so that one of the same kind can be written again; plain data.
        ancestry: what the files that it was made from told of their making, and those before them; see `ancestry`.
        seal: digests, set when the file is written.
    """

    kind: str
    architecture: Mapping[str, Any] | None = None
    task: TaskSpec | None = None
    method: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    tool: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    root_scales: Mapping[str, float] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    ancestry: Mapping[str, Any] = field(default_factory=dict)
    seal: Mapping[str, str] | None = None

    def sealed(self, tensors: str) -> Metadata:
        """A copy with the seal for tensors of that digest."""
        return replace(self, seal={"tensors": tensors, "metadata": self._own_digest()})

    def metadata_intact(self) -> bool:
        """Whether the metadata is what was sealed."""
        try:
            return self.seal is not None and self.seal.get("metadata") == self._own_digest()
        except ValueError:  # values that were never written: an infinite number, half a character
            return False

    def _own_digest(self) -> str:
        return json_digest(replace(self, seal=None).as_json())

    def as_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        content: dict[str, Any] = {
            "kind": self.kind,
            "format_version": FORMAT_VERSION,
            "tool": dict(self.tool),
            "architecture": None if self.architecture is None else dict(self.architecture),
            "task": None if self.task is None else self.task.as_json(),
            "method": self.method,
            "provenance": dict(self.provenance),
            "seal": None if self.seal is None else dict(self.seal),
        }
        # Left out where there are none: the seals of files that were written before there were any still hold.
        if self.aliases:
            content["aliases"] = dict(self.aliases)
        if self.root_scales:
            content["root_scales"] = dict(self.root_scales)
        if self.origin:
            content["origin"] = dict(self.origin)
        if self.ancestry:
            content["ancestry"] = dict(self.ancestry)
        return content

    def as_text(self) -> str:
        """Canonical JSON."""
        return canonical_json(self.as_json())


def parse_metadata(text: str, where: object) -> Metadata:
    """Metadata from the text of the key.

    Args:
        text: canonical JSON.
        where: the file, for error texts.

    Raises:
        InputError: damaged text, or a newer format.
    """
    try:
        content = json.loads(text)
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise InputError(
                "cannot read the metadata", where=where, wanted=f"format version {FORMAT_VERSION}", found=version, todo="update mergekit3d"
            )
        return Metadata(
            kind=str(content["kind"]),
            architecture=None if content["architecture"] is None else _architecture(content["architecture"]),
            task=None if content["task"] is None else TaskSpec.from_json(content["task"]),
            method=content["method"],
            provenance=_mapping(content["provenance"]),
            tool=_mapping(content["tool"]),
            aliases={str(name): str(owner) for name, owner in _mapping(content.get("aliases", {})).items()},
            root_scales={str(name): float(scale) for name, scale in _mapping(content.get("root_scales", {})).items()},
            origin=_mapping(content.get("origin", {})),
            ancestry=_mapping(content.get("ancestry", {})),
            seal=None if content["seal"] is None else _mapping(content["seal"]),
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(
            "damaged metadata", where=where, found=f"{type(error).__name__} in the key {KEY!r}", todo="restore the file"
        ) from error


def _mapping(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise TypeError("no mapping")
    return content


def _architecture(content: Any) -> dict[str, Any]:
    network = _mapping(content)
    if not isinstance(network["name"], str) or type(network["in_channels"]) is not int or type(network["out_channels"]) is not int:
        raise TypeError("no network")
    return network


def looks_like_metadata(text: str) -> bool:
    """Whether a text is what `Metadata.as_text` writes, under whatever key it stands."""
    return text.startswith(('{"aliases":', '{"ancestry":', '{"architecture":')) and '"format_version":' in text and '"seal":{' in text


def tool() -> dict[str, str]:
    """Name and version of this program, for metadata."""
    from mergekit3d import __version__

    return {"name": "mergekit3d", "version": __version__}
