"""The network of a MONAI bundle whose configuration tells it by expressions, which run here: only for a bundle that the user has read."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergekit3d.checkpoints.bundle import METADATA, Bundle, architecture_of, task_of_bundle
from mergekit3d.checkpoints.checkpoint import Checkpoint
from mergekit3d.errors import InputError, UsageError


def with_network_by_code(opened: Checkpoint, allowed: str) -> Checkpoint:
    """A bundle with the network that its expressions tell.

    Args:
        opened: the bundle.
        allowed: sha256 over its configurations and scripts, as the user was told it.

    Raises:
        UsageError: the checkpoint has no code to run, or other code than was allowed.
        InputError: the code fails, or tells no network that metadata can hold.
    """
    wanted = None if opened.metadata is None or not opened.is_foreign else opened.metadata.origin.get("code")
    if wanted is None:
        raise UsageError("there is no code to allow", where=opened.path, todo="leave --allow-code out")
    if allowed != wanted:
        raise UsageError("the code is not the one that was allowed", where=opened.path, wanted=allowed, found=wanted)
    bundle = Bundle(opened.path)
    if not opened.path.is_dir():
        raise UsageError("the code of an archive is not run", where=opened.path, todo="unpack the bundle first")
    assert bundle.network_config is not None
    assert opened.metadata is not None
    target, arguments = _evaluated(bundle, *bundle.network_config)
    architecture = architecture_of(target, arguments, bundle)
    if architecture is None:
        raise InputError("cannot use the network of the bundle", where=opened.path, wanted="a class of MONAI", found=target)
    return replace(opened, metadata=replace(opened.metadata, architecture=architecture, task=task_of_bundle(bundle), origin={}))


def _evaluated(bundle: Bundle, config: str, key: str) -> tuple[str, dict[str, Any]]:
    """Class and keyword arguments of the network, every expression carried out."""
    before, folder = list(sys.path), Path.cwd()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # importing MONAI alone emits some 65 of them
            from monai.bundle.config_parser import ConfigParser

            parser = ConfigParser()
            parser.read_config(str(bundle.path / config))
            parser.read_meta(str(bundle.path / METADATA))
            parser["bundle_root"] = str(bundle.path.resolve())
            sys.path.insert(0, str(bundle.path.resolve()))
            os.chdir(bundle.path)
            item = parser.get_parsed_content(key, instantiate=False)
            return str(item.get_config()["_target_"]), _plain(item.resolve_args())
    except Exception as error:  # what the bundle's own code raises
        found = f"{type(error).__name__}: {error}"[:200]
        raise InputError("the code of the bundle failed", where=bundle.path, found=found) from error
    finally:
        sys.path[:] = before
        os.chdir(folder)


def _plain(value: Any) -> Any:
    """A value as JSON has it.

    Raises:
        TypeError: JSON has it not.
    """
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"an argument that is a {type(value).__name__}")
