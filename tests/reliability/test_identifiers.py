"""No identifier of a patient travels: every command runs on data and checkpoints full of canaries, then every output is searched.

Subject names may stand where the user's own outputs need them: in metrics.csv, in the cases of summary.json (nnU-Net's keys), in
split.json (which a recipe can name as its split), and in the names of predictions and of a preprocessed data set's files. Nothing
else of the input may turn up anywhere: no folder above, no text of a header, no stem of a checkpoint.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import pytest
import torch
from typer.testing import CliRunner

from mergekit3d_cli.app import COMMANDS, app

FOLDER, SUBJECT, HEADER, STEM, INSIDE = "FOLDERCANARY", "SUBJECTCANARY", "HEADCANARY", "STEMCANARY", "INSIDECANARY"
NETWORK = "{name: isensee2017, base_filters: 2, depth: 3}"
SOURCE = """
version: 1
architecture: {network}
target: {{data: hcp/, modalities: [t1, t2], regions: {regions}, split: {{train: 2, validation: 1, test: 1, seed: 0}}}}
train: {{init: {init}, epochs: 1, patience: null, batch_size: 2}}
"""
TIMM = """
version: 1
name: timm
sources:
  - {name: m1, checkpoint: STEMCANARY.pt}
  - {name: m2, checkpoint: m2/train/best.safetensors}
merge: {method: timm}
target: {data: brats/, modalities: [t1, t1ce, t2, flair], regions: brats, split: {train: 2, validation: 1, test: 2, seed: 0}}
adapt: {epochs: 1, patience: null, batch_size: 2}
finetune: {epochs: 1, patience: null, batch_size: 2}
"""
BEST = "timm/finetune/best.safetensors"
LINES = [
    "phantom generated --layout brats --subjects 1 --spacing-mm 6",
    "train --recipe m1.yaml",
    "convert m1/train/best.safetensors STEMCANARY.pt",
    "inspect foreign.pt",
    "train --recipe m2.yaml",
    "fisher STEMCANARY.pt --data hcp --max-subjects 2",
    "fisher m2/train/best.safetensors --data hcp --max-subjects 2",
    "inspect brats",
    "inspect STEMCANARY.pt m2/train/best.safetensors",
    "adapt --recipe timm.yaml",
    "inspect --recipe timm.yaml",
    "fuse --recipe timm.yaml --plot",
    "finetune --recipe timm.yaml",
    "inspect timm/fused.safetensors",
    "inspect timm/fused.safetensors --json",
    f"predict {BEST} --data brats --out predictions --probabilities",
    f"evaluate {BEST} --data brats --out evaluation",
    "evaluate --pred predictions --truth brats --regions brats --out again",
    "compare evaluation/metrics.csv again/metrics.csv --out compared",
    "plot timm/finetune/log.csv",
    "plot timm/adapt/ratios.json --force",
    "preprocess brats corrected --no-n4 --workers 1",
    "verify timm/fused.safetensors",
    "convert timm/fused.safetensors STEMCANARY2.pt",
    "run m1.yaml",
    "schema",
    "methods",
]
"""Every command but `demo`, which runs on data of its own."""
TELLS_SUBJECTS = ("metrics.csv", "summary.json", "split.json")
SHOWS_SUBJECTS = ("predictions/", "corrected/")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[[Path], Path]) -> Iterator[dict[str, str]]:
    """What every command said; the working folder is that of the project."""
    root = make_data(tmp_path_factory.mktemp(FOLDER) / "project")
    mark(root)
    (root / "m1.yaml").write_text(SOURCE.format(network=NETWORK, regions="hcp-1-7", init="none"))
    (root / "m2.yaml").write_text(SOURCE.format(network=NETWORK, regions="hcp-8-14", init="STEMCANARY.pt"))
    (root / "timm.yaml").write_text(TIMM)
    foreign = {"state_dict": {"conv.weight": torch.ones(2, 2)}, "hyper_parameters": {"data": INSIDE}, INSIDE: {"file": INSIDE}}
    torch.save(foreign, root / "foreign.pt")
    said = {}
    inputs = {path for path in root.rglob("*") if path.is_file()}
    with contextlib.chdir(root):
        for line in LINES:
            result = CliRunner().invoke(app, line.split(" "))
            assert result.exit_code == 0, f"{line}: {result.output}"
            said[line] = result.stdout + result.stderr
        for path in inputs:
            path.unlink()
        yield said


def mark(root: Path) -> None:
    """Canaries in the names of subjects, and in every text of a header."""
    for path in sorted(root.rglob("*.nii.gz")):
        image = nibabel.load(path)
        header = image.header
        header["descrip"], header["db_name"], header["aux_file"], header["intent_name"] = HEADER, HEADER, HEADER, HEADER
        header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", HEADER.encode()))
        changed = nibabel.Nifti1Image(image.get_fdata().astype(image.get_data_dtype()), image.affine, header)
        path.unlink()
        nibabel.save(changed, path.with_name(path.name.replace("Brats18_X", f"Brats18_{SUBJECT}")))
    for folder in sorted(root.rglob("Brats18_X*")):
        folder.rename(folder.with_name(folder.name.replace("Brats18_X", f"Brats18_{SUBJECT}")))
    for folder in sorted((root / "hcp").iterdir()):
        folder.rename(folder.with_name(f"{SUBJECT}{folder.name}"))


def contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file, packed and unpacked."""
    content = path.read_bytes()
    yield content
    if content[:2] == b"\x1f\x8b":
        yield gzip.decompress(content)
    if content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            yield from (archive.read(name) for name in archive.namelist())


def leaks(canary: str) -> list[str]:
    """Files that hold a canary."""
    files = (path for path in Path().rglob("*") if path.is_file())
    return [str(path) for path in files if any(canary.encode() in content for content in contents(path))]


def test_every_command_ran(told: dict[str, str]) -> None:
    """A new command has a line here too."""
    assert {command.__name__ for command in COMMANDS} - {"demo"} == {line.split()[0] for line in LINES}


@pytest.mark.parametrize("canary", [FOLDER, HEADER, STEM, INSIDE])
def test_no_file_holds_a_canary(told: dict[str, str], canary: str) -> None:
    """Folders above the data, texts of headers, names of checkpoints, what a foreign checkpoint tells of its past."""
    assert [] == leaks(canary)


def test_subjects_are_named_where_they_must_be_alone(told: dict[str, str]) -> None:
    """In the files that tell one subject from another for their user; and by the names of predictions, not within them."""
    assert set(TELLS_SUBJECTS) == {Path(path).name for path in leaks(SUBJECT)}
    named = [os.fspath(path) for path in Path().rglob(f"*{SUBJECT}*") if path.is_file()]
    assert named
    assert [] == [path for path in named if not any(allowed in path for allowed in SHOWS_SUBJECTS)]


@pytest.mark.parametrize("canary", [FOLDER, HEADER, INSIDE, SUBJECT])
def test_nothing_said_holds_a_canary(told: dict[str, str], canary: str) -> None:
    """Logs speak of subjects by numbers, and of files as the user named them."""
    assert [] == [f"{line}: {said}" for line, said in told.items() if canary in said]
