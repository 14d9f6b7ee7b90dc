"""What a MONAI bundle's configuration tells of its network and task, read as plain data: none of its expressions run."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mergekit3d.checkpoints.metadata import TaskSpec
from mergekit3d.checkpoints.modalities import canonical_modality
from mergekit3d.errors import InputError

METADATA = "configs/metadata.json"
MODEL = "models/model.pt"
CONFIGS = tuple(f"configs/{name}.{ending}" for name in ("inference", "evaluate", "train") for ending in ("json", "yaml", "yml"))
NETWORKS = ("network_def", "network", "net")
MAX_CONFIG_BYTES = 1 << 20
MAX_REFERENCES = 16
MONAI = re.compile(r"(?:monai\.networks\.nets\.(?:\w+\.)?)?([A-Z]\w*)")
BUILT = "mergekit3d.architectures.built"


class CodeInConfigError(Exception):
    """The network is told by an expression, which would have to run."""


@dataclass(frozen=True)
class Bundle:
    """The files of a bundle: a folder, or a zip archive of one.

    Args:
        path: of the folder or archive.
    """

    path: Path

    @cached_property
    def members(self) -> dict[str, str]:
        """Every file by its name within the bundle, with its name in the archive."""
        if self.path.is_dir():
            return {file.relative_to(self.path).as_posix(): str(file) for file in sorted(self.path.rglob("*")) if file.is_file()}
        with zipfile.ZipFile(self.path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
        tops = {name.removesuffix(METADATA) for name in names if name.endswith(METADATA)}
        if len(tops) != 1:
            raise InputError("cannot read the bundle", where=self.path, wanted=f"one {METADATA}", found=f"{len(tops)} of them")
        (top,) = tops
        return {name.removeprefix(top): name for name in names if name.startswith(top)}

    def size_of(self, name: str) -> int:
        """Bytes of a file."""
        if self.path.is_dir():
            return Path(self.members[name]).stat().st_size
        with zipfile.ZipFile(self.path) as archive:
            return archive.getinfo(self.members[name]).file_size

    def read(self, name: str, most: int) -> bytes:
        """The content of a file.

        Raises:
            InputError: it is larger than it can be, or damaged.
        """
        size = self.size_of(name)
        if size > most:
            raise InputError("the file is too large", where=f"{self.path}: {name}", wanted=f"at most {most} bytes", found=size)
        try:
            if self.path.is_dir():
                return Path(self.members[name]).read_bytes()
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.members[name])
        except Exception as error:  # what zlib and zipfile raise of a damaged archive has no common class
            found = str(getattr(error, "strerror", None) or type(error).__name__)
            raise InputError("cannot read the bundle", where=f"{self.path}: {name}", found=found, todo="restore it from a copy") from error

    def config(self, name: str) -> dict[str, Any]:
        """A configuration file.

        Raises:
            InputError: it is no mapping of JSON or YAML.
        """
        content = self.read(name, MAX_CONFIG_BYTES)
        try:
            found = json.loads(content) if name.endswith(".json") else _yaml(content.decode())
        except (ValueError, RecursionError) as error:
            said = str(error).partition("\n")[0][:100]
            raise InputError("cannot read the configuration", where=f"{self.path}: {name}", found=said) from error
        if not isinstance(found, dict):
            raise InputError("cannot read the configuration", where=f"{self.path}: {name}", wanted="a mapping")
        return found

    @cached_property
    def network_config(self) -> tuple[str, str] | None:
        """The configuration file that defines the network, and the key; None where none does."""
        for name in CONFIGS:
            if name in self.members:
                config = self.config(name)
                key = next((key for key in NETWORKS if isinstance(config.get(key), dict) and "_target_" in config[key]), None)
                if key is not None:
                    return name, key
        return None

    def code_digest(self) -> str:
        """sha256 over the configurations and scripts, which running an expression runs."""
        digest = hashlib.sha256()
        for name in sorted(self.members):
            if name.endswith((".py", ".json", ".yaml", ".yml")):
                digest.update(f"{name}\0{self.size_of(name)}\0".encode() + self.read(name, 16 * MAX_CONFIG_BYTES))
        return digest.hexdigest()


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def network_of_bundle(bundle: Bundle) -> dict[str, Any] | None:
    """The architecture for metadata; None where the bundle says of none, or of one that is not MONAI's.

    Raises:
        CodeInConfigError: it is told by an expression.
    """
    if bundle.network_config is None:
        return None
    name, key = bundle.network_config
    config = bundle.config(name)
    definition = config[key]
    if definition.get("_mode_", "default") != "default":
        return None
    given = {name: _resolved(value, config) for name, value in definition.items() if not name.startswith("_")}
    return architecture_of(str(_resolved(definition["_target_"], config)), given, bundle)


def architecture_of(target: str, given: dict[str, Any], bundle: Bundle) -> dict[str, Any] | None:
    """The architecture of a class and its arguments.

    Args:
        target: as a bundle names classes: MONAI's by their bare name, too.
        given: keyword arguments.
        bundle: whose metadata tells the channels, where the arguments do not.
    """
    if target == BUILT:
        return given if isinstance(given.get("name"), str) and _is_count(given.get("in_channels"), given.get("out_channels")) else None
    known = MONAI.fullmatch(target)
    if known is None:
        return None
    inputs = given.pop("in_channels", None)
    outputs = next((given.pop(key) for key in ("out_channels", "num_classes", "n_classes") if key in given), None)
    told = channels(bundle)
    inputs, outputs = told[0] if inputs is None else inputs, told[1] if outputs is None else outputs
    if not _is_count(inputs, outputs):
        return None
    return {"name": f"monai.{known.group(1)}", "in_channels": inputs, "out_channels": outputs, **given}


def _is_count(*values: Any) -> bool:
    return all(type(value) is int and value > 0 for value in values)


def _resolved(value: Any, config: Mapping[str, Any], depth: int = 0) -> Any:
    """A value with its references followed.

    Raises:
        CodeInConfigError: it holds an expression, or text of another file.
    """
    if depth > MAX_REFERENCES:
        raise CodeInConfigError
    if isinstance(value, dict):
        if "_target_" in value:
            raise CodeInConfigError
        return {key: _resolved(item, config, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, config, depth + 1) for item in value]
    if not isinstance(value, str):
        return value
    reference = re.fullmatch(r"\$?@([\w#:]+)", value)
    if reference is None:
        if value.startswith(("$", "%", "@")):
            raise CodeInConfigError
        return value
    found: Any = config
    for part in re.split(r"::|#", reference.group(1)):
        try:
            found = found[int(part)] if isinstance(found, list) else found[part]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise CodeInConfigError from error
    return _resolved(found, config, depth + 1)


def channels(bundle: Bundle) -> tuple[int | None, int | None]:
    """Numbers of input and output channels that metadata.json tells."""
    inputs, outputs = _data_format(bundle)
    return inputs.get("num_channels"), outputs.get("num_channels")


def task_of_bundle(bundle: Bundle) -> TaskSpec | None:
    """The task, where metadata.json names every input channel and every class; its label ids are the channels' numbers."""
    inputs, outputs = _data_format(bundle)
    modalities, classes = _named(inputs.get("channel_def")), _named(outputs.get("channel_def"))
    if not modalities or len(classes) < 2 or classes[0].lower() != "background":
        return None
    names = tuple(canonical_modality(name) for name in modalities)
    if len(set(names)) < len(names) or len(set(classes)) < len(classes):
        return None
    return TaskSpec(names, {name: (label,) for label, name in enumerate(classes) if label > 0}, exclusive=True)


def _data_format(bundle: Bundle) -> tuple[dict[str, Any], dict[str, Any]]:
    found = []
    data_format = bundle.config(METADATA).get("network_data_format")
    for side, key in (("inputs", "image"), ("outputs", "pred")):
        of_side = data_format.get(side) if isinstance(data_format, dict) else None
        of_key = of_side.get(key) if isinstance(of_side, dict) else None
        found.append(of_key if isinstance(of_key, dict) else {})
    return found[0], found[1]


def _named(channel_def: Any) -> list[str]:
    """Names of channels 0, 1, 2 ...; empty where some has none."""
    if not isinstance(channel_def, dict):
        return []
    names = [channel_def.get(str(channel)) for channel in range(len(channel_def))]
    return [str(name) for name in names] if all(isinstance(name, str) for name in names) else []
