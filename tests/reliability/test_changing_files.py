"""Files that another program replaces, cuts or overwrites while a command reads them: the old result, or exit code 65; never a mix.

MERGEKIT3D_MOMENTS sets before how many of the looks that `fuse` takes at its files each fault is tried (1). Real processes, and
trainings, are in test_soak.py.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from typer.testing import CliRunner

from mergekit3d.checkpoints import TaskSpec, open_checkpoint
from mergekit3d.datasets import Subject, cache
from mergekit3d.datasets.cache import SubjectStore
from mergekit3d.datasets.vocabulary import Vocabulary
from mergekit3d.errors import InputError
from mergekit3d.recipe.document import read_document
from mergekit3d.storage.steady import Stamp
from mergekit3d.textfiles import read_text
from mergekit3d.volumes import nifti
from mergekit3d_cli.app import app
from tests.builders import random_state, save_fisher, save_source, spec_of

from .soak import FAULTS, cut, overwrite, overwrite_half, replace

RECIPE = """version: 1
out: .
sources: [{{name: m1, checkpoint: m1{suffix}}}, {{name: m2, checkpoint: m2{suffix}}}]
merge: {{method: {method}, granularity: model, ratios: ratios.json}}
"""


def write_inputs(folder: Path, kind: str, seed: int) -> None:
    """Two sources, their Fisher diagonals, ratios and a recipe; another seed gives files of the same sizes with other values."""
    suffix = {"safetensors": ".safetensors", "pt": ".pt"}.get(kind.rsplit(maxsplit=1)[-1], ".safetensors")
    for number in (1, 2):
        path = folder / f"m{number}{suffix}"
        if kind.startswith("bare"):
            state = random_state(spec_of(), 10 * seed + number)
            if suffix == ".pt":
                torch.save({name: torch.from_numpy(values) for name, values in state.items()}, path)
            else:
                save_file(state, path)
            continue
        save_source(path, seed=10 * seed + number)
        save_fisher(path, seed=20 * seed + number)
    (folder / "ratios.json").write_text(
        json.dumps({"sources": ["m1", "m2"], "granularity": "model", "layers": {"model": [0.25 * seed, 1 - 0.25 * seed]}})
    )
    # Without a seal, and without a Fisher diagonal that names the digest of its weights, nothing but the file's stamp tells.
    method = "linear" if kind.startswith("bare") else "imm"
    (folder / "r.yaml").write_text(RECIPE.format(suffix=suffix, method=method))


EACH = int(os.environ.get("MERGEKIT3D_MOMENTS", "1"))


Fault = Callable[[Path, bytes], None]


class Moments:
    """Does something at the n-th moment that the product looks at a file's stamp, right before that look; and counts the moments."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.at, self.fault = 0, -1, None
        looks = Stamp.from_status.__func__

        def look(cls: type[Stamp], file: object) -> Stamp:
            if self.count == self.at and self.fault is not None:
                self.fault()
            self.count += 1
            return looks(cls, os.fstat(file) if isinstance(file, int) else Path(file).stat())

        monkeypatch.setattr(Stamp, "of", classmethod(look))

    def run(self, words: list[str], at: int = -1, fault: Callable[[], None] | None = None) -> tuple[int, str]:
        self.count, self.at, self.fault = 0, at, fault
        result = CliRunner().invoke(app, words)
        return result.exit_code, result.output


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> Moments:
    # One worker: the moments come in one order.
    monkeypatch.setattr("mergekit3d.engine.workers.worker_count", lambda _: 1)
    return Moments(monkeypatch)


def outcome(folder: Path) -> str | None:
    """The digest of the fused weights; None where there are none."""
    out = folder / "fused.safetensors"
    return open_checkpoint(out).digest if out.exists() else None


KINDS = ("sealed safetensors", "sealed pt", "bare safetensors", "bare pt")


@pytest.mark.parametrize("kind", KINDS)
def test_fuse(tmp_path: Path, moments: Moments, kind: str) -> None:
    """Each input, each fault, before some of the looks that the command takes at its files, the first and the last among them."""
    old, new = tmp_path / "old", tmp_path / "new"
    for seed, folder in enumerate((old, new), 1):
        folder.mkdir()
        write_inputs(folder, kind, seed)
    assert 0 == moments.run(["fuse", "--recipe", str(old / "r.yaml")])[0]
    number, wanted = moments.count, outcome(old)
    names = sorted(path.name for path in new.iterdir() if path.name != "r.yaml")
    moments_to_try = sorted({0, 1, 2, 5, number // 3, number // 2, 2 * number // 3, number - 3, number - 1})
    said, tried = set(), 0
    for name in names:
        for fault in FAULTS:
            for turn in range(min(EACH, len(moments_to_try))):
                at, now = moments_to_try[(5 * tried + turn) % len(moments_to_try)], tmp_path / "now"
                tried += 1
                shutil.copytree(old, now, ignore=shutil.ignore_patterns("fused*"))
                code, output = moments.run(
                    ["fuse", "--recipe", str(now / "r.yaml")], at, lambda f=fault, n=name, now=now: f(now / n, (new / n).read_bytes())
                )
                found = outcome(now)
                if code == 0 and found != wanted:
                    # What came before it was opened is simply the other file: the whole of its content, and no other's.
                    assert 0 == moments.run(["fuse", "--recipe", str(now / "r.yaml"), "--force"])[0], (name, fault, at)
                    assert found == outcome(now), (kind, name, fault.__name__, at)
                    said.add("new")
                else:
                    assert code == 0 or (code in (65,) and found is None), (kind, name, fault.__name__, at, output)
                    said.add(code)
                assert "Traceback" not in output
                shutil.rmtree(now)
    assert {0, 65} <= said
    assert tried == len(names) * len(FAULTS) * min(EACH, len(moments_to_try))


def subject_in(folder: Path, seed: int) -> Subject:
    """One image and a label map."""
    values = np.random.default_rng(seed).normal(100, 5, (8, 9, 10)).astype(np.float32)
    for name, data in (("t1", values), ("labels", (values > 100).astype(np.int16))):
        nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), folder / f"{name}.nii")
    return Subject("a", {"t1": folder / "t1.nii"}, folder / "labels.nii", number=1)


def store_of(subject: Subject, folder: Path | None) -> SubjectStore:
    task = TaskSpec(("t1",), {"x": (1,)})
    return SubjectStore({1: subject}, task, vocabulary=Vocabulary("test", range(2)), capacity_bytes=0, folder=folder)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["t1.nii", "labels.nii"])
def test_subject_between_two_epochs(tmp_path: Path, fault: Fault, name: str) -> None:
    """What was learned from before was another image."""
    (tmp_path / "new").mkdir()
    subject, _ = subject_in(tmp_path, 1), subject_in(tmp_path / "new", 2)
    store = store_of(subject, None)
    store.get(1)
    fault(tmp_path / name, (tmp_path / "new" / name).read_bytes())
    with pytest.raises(InputError, match="a file changed while it was used: subject 1"):
        store.get(1)


def test_subject_that_is_touched_between_two_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long training goes on where the content is known to be the same: what is prepared is stored by its hash."""
    store = store_of(subject_in(tmp_path, 1), tmp_path / "prepared")
    before = store.get(1)
    monkeypatch.setattr(store, "_mapped", {})
    os.utime(tmp_path / "t1.nii")
    replace(tmp_path / "labels.nii", (tmp_path / "labels.nii").read_bytes())
    assert np.array_equal(before.image, store.get(1).image)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stored", [True, False])
def test_subject_while_it_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, stored: bool) -> None:
    """Between its hash, by which it is stored, and its voxels: nothing is stored under a wrong name."""
    (tmp_path / "new").mkdir()
    subject, _ = subject_in(tmp_path, 1), subject_in(tmp_path / "new", 2)
    prepare = cache.prepare

    def changed_before(*arguments: object, **keywords: object) -> object:
        fault(tmp_path / "t1.nii", (tmp_path / "new" / "t1.nii").read_bytes())
        return prepare(*arguments, **keywords)

    monkeypatch.setattr(cache, "prepare", changed_before)
    with pytest.raises(InputError, match="changed while it was used|whole file|different grids"):
        store_of(subject, tmp_path / "prepared" if stored else None).get(1)
    assert [] == list(tmp_path.glob("prepared/**/*.safetensors"))


@pytest.mark.parametrize("fault", [overwrite, overwrite_half, cut])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_volume_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, suffix: str) -> None:
    """After its header: an uncompressed file has no checksum that would tell."""
    old, new = (nibabel.Nifti1Image(np.full((40, 40, 40), value, np.float32), np.eye(4)) for value in (1, 2))
    for name, image in (("old", old), ("new", new)):
        nibabel.save(image, tmp_path / f"{name}{suffix}")
    read = nifti.read_header

    def changed_after(*arguments: object) -> object:
        header = read(*arguments)
        fault(tmp_path / f"old{suffix}", (tmp_path / f"new{suffix}").read_bytes())
        return header

    monkeypatch.setattr(nifti, "read_header", changed_after)
    with pytest.raises(InputError, match=rf"old{suffix}"):
        nifti.read_image(tmp_path / f"old{suffix}")


def test_volume_that_is_replaced_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a rename: the old one goes on under the open descriptor, and is what is told."""
    for name, value in (("old", 1), ("new", 2)):
        nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 4), value, np.float32), np.eye(4)), tmp_path / f"{name}.nii")
    read = nifti.read_header

    def replaced_after(*arguments: object) -> object:
        header = read(*arguments)
        replace(tmp_path / "old.nii", (tmp_path / "new.nii").read_bytes())
        return header

    monkeypatch.setattr(nifti, "read_header", replaced_after)
    assert {1.0} == set(nifti.read_image(tmp_path / "old.nii").data.flat)
    monkeypatch.undo()
    assert {2.0} == set(nifti.read_image(tmp_path / "old.nii").data.flat)


def test_recipe_and_ratios_while_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files too are written in pieces."""
    (tmp_path / "r.yaml").write_text("version: 1\n")
    (tmp_path / "ratios.json").write_text("{}")
    moments = Moments(monkeypatch)
    for read, path in ((read_document, tmp_path / "r.yaml"), (lambda path: read_text(path, "the ratios"), tmp_path / "ratios.json")):
        moments.count, moments.at, moments.fault = 0, 1, lambda path=path: overwrite(path, path.read_bytes() + b" ")
        with pytest.raises(InputError, match=f"the file changed while it was read: .*{path.name}"):
            read(path)
