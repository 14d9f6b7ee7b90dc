"""Every file of the product comes into being by the atomic writer: no other way of writing stands in the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mergekit3d
import mergekit3d_cli

ROOTS = [Path(module.__file__).parent for module in (mergekit3d, mergekit3d_cli)]
OURS = {"write_bytes", "write_text", "write_json"}
"""Functions of `storage.atomic`; under these names methods of paths write as well."""
WRITERS = {
    "touch",
    "save",
    "savez",
    "savez_compressed",
    "savetxt",
    "tofile",
    "save_file",
    "savefig",
    "imsave",
    "to_filename",
    "to_csv",
    "dump",
    "rename",
    "symlink_to",
    "symlink",
    "link",
    "hardlink_to",
    "mkstemp",
    "NamedTemporaryFile",
    "truncate",
    "SummaryWriter",
    "copyfile",
    "copytree",
    "copy2",
    "move",
}
OF_MODULES_OF_FILES = {"copy", "replace"}
"""Names that arrays, texts and dataclasses have too: counted where `os` or `shutil` is asked."""

REASONS = {
    ("storage/atomic.py", "open"): "the atomic writer: the temporary file, and files and folders opened for their sync",
    ("storage/atomic.py", "replace"): "the atomic writer",
    ("help.py", "write_text"): "the formatter of --help, in memory",
    ("console.py", "open"): "the null device, in the place of a closed stdout",
    ("checkpoints/monai.py", "save"): "into memory, written by write_bytes",
    ("checkpoints/pt.py", "save"): "into a file of atomic_open",
    ("datasets/stored.py", "save"): "safetensors' bytes, written by write_bytes",
    ("plots/style.py", "savefig"): "into memory, written by atomic_open",
    ("preprocessing/correction.py", "savez"): "into a file of atomic_open",
    ("training/snapshot.py", "save"): "into a file of atomic_open",
    ("training/state.py", "save"): "into memory, for the other processes",
}
"""What may stand, by file and name, and why; methods `save` of our own classes are looked into where they are defined."""

OWN_OBJECTS = ("self", "keeper", "snapshots", "corrected")


def writes(tree: ast.AST) -> Iterator[str]:
    """By what a module writes, or may."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        owner, name = _called(node)
        if name == "open":
            counts = _may_write(node)
        elif name in OURS:
            counts = owner != ""
        elif name in OF_MODULES_OF_FILES:
            counts = owner in ("os", "shutil")
        else:
            counts = name in WRITERS and owner not in OWN_OBJECTS
        if counts:
            yield name


def _called(node: ast.Call) -> tuple[str, str]:
    """What stands right before the last point, "" where there is none, and the name behind it."""
    if isinstance(node.func, ast.Attribute):
        value = node.func.value
        return (value.id if isinstance(value, ast.Name) else getattr(value, "attr", "?")), node.func.attr
    return "", node.func.id if isinstance(node.func, ast.Name) else ""


def _may_write(node: ast.Call) -> bool:
    """Whether an `open` has any mode but one for reading."""
    owner, _ = _called(node)
    if owner == "os":
        return "os.O_RDONLY" != ast.unparse(node.args[1])
    place = 1 if owner in ("", "gzip", "io") else 0
    modes = [*node.args[place : place + 1], *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
    return any(isinstance(mode, ast.Constant) and isinstance(mode.value, str) and bool(set(mode.value) & set("wax+")) for mode in modes)


def test_nothing_writes_but_the_atomic_writer() -> None:
    """What else calls a writing function is in the list, with the reason why it touches no file by itself."""
    found = {
        (str(path.relative_to(root)), name)
        for root in ROOTS
        for path in root.rglob("*.py")
        for name in writes(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found - REASONS.keys() == set(), "write by mergekit3d.storage.atomic"
    assert REASONS.keys() - found == set(), "no longer there: take it out of the list"


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'w')",
        "open(path, mode='ab')",
        "path.open('x')",
        "os.open(path, os.O_CREAT | os.O_WRONLY)",
        "gzip.open(path, 'wt')",
        "path.write_text('')",
        "Path(name).write_bytes(b'')",
        "np.save(path, array)",
        "nibabel.save(image, path)",
        "figure.savefig(path)",
        "image.to_filename(path)",
        "json.dump(content, file)",
        "os.replace(a, b)",
        "shutil.copy(a, b)",
        "a.rename(b)",
    ],
)
def test_ways_of_writing_are_found(line: str) -> None:
    """The test above would not hold otherwise."""
    assert 1 == len(list(writes(ast.parse(line))))


HARMLESS = ["open(path, 'rb')", "path.open()", "write_text(path, text)", "text.replace('a', 'b')", "array.copy()", "self.save(x)"]


@pytest.mark.parametrize("line", HARMLESS)
def test_what_does_not_write_is_let_be(line: str) -> None:
    """Reading, our own functions, and methods of the same name."""
    assert [] == list(writes(ast.parse(line)))
