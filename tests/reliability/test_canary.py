"""Names of patients and places: a canary in every input is looked for in all that every command writes and says."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mergekit3d_cli.app import COMMANDS, app

pytestmark = pytest.mark.slow

CANARY = "Kanarienvogel"
PLACE = "Kanarischeinsel"
"""Of the folder that everything stands in: no absolute path may be told."""

SOURCE = """
version: 1
architecture: {{name: isensee2017, base_filters: 2, depth: 3}}
target:
  data: hcp/
  modalities: [t1, t2]
  regions: {regions}
  split: {{skip: {skip}, train: 2, validation: 1, test: 1, seed: 0}}
train: {{init: {init}, epochs: 1, patience: null, batch_size: 2}}
"""
TIMM = """
version: 1
sources:
  - {name: m1, checkpoint: m1/train/best.safetensors}
  - {name: m2, checkpoint: Kanarienvogel.pt}
merge: {method: timm}
target: {data: brats/, modalities: [t1, t1ce, t2, flair], regions: brats, split: {train: 2, validation: 1, test: 2, seed: 0}}
adapt: {epochs: 1, batch_size: 2}
finetune: {epochs: 1, patience: null, batch_size: 2}
study: {initialisations: [m1, timm]}
"""

NAMED = re.compile(r"(^|/)(metrics\.csv|summary\.json|split\.json)$")
"""Files that tell results and parts by the user's names of subjects, since that is what they are for."""


def mark(folder: Path, rename: Callable[[Path], str]) -> None:
    """Give every subject the canary's name, and every image a header that holds it."""
    for path in sorted(folder.rglob("*.nii.gz")):
        image = nibabel.load(path)
        values = np.asanyarray(image.dataobj).copy()
        marked = nibabel.Nifti1Image(values, image.affine)
        for field in ("descrip", "aux_file", "db_name", "intent_name"):
            marked.header[field] = CANARY[: marked.header[field].dtype.itemsize].encode()
        marked.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", CANARY.encode()))
        path.unlink()
        nibabel.save(marked, path)
    for path in sorted(folder.rglob("*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(rename(path)))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[[Path], Path]) -> Path:
    """Data, recipes and a checkpoint of another tool, all of them with the canary in them."""
    root = make_data(tmp_path_factory.mktemp(PLACE))
    mark(root / "hcp", lambda path: path.name.replace("10000", CANARY))
    mark(root / "brats", lambda path: path.name.replace("_X_", f"_{CANARY}_"))
    (root / "m1.yaml").write_text(SOURCE.format(regions="hcp-1-7", skip=0, init="none"))
    (root / "m2.yaml").write_text(SOURCE.format(regions="hcp-8-14", skip=3, init="m1/train/best.safetensors"))
    (root / "timm.yaml").write_text(TIMM)
    return root


class Told:
    """What the commands said, by their words."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def call(self, *arguments: object) -> None:
        words = [str(argument) for argument in arguments]
        result = CliRunner().invoke(app, words)
        assert 0 == result.exit_code, (words, result.output)
        self.texts[" ".join(words)] = result.output


def commands(root: Path) -> Iterator[tuple[object, ...]]:
    """Every command that reads data or weights, as a user types it in the folder."""
    yield "inspect", "hcp"
    yield "inspect", "brats", "--json"
    yield "preprocess", "hcp", "hcp-prepared", "--no-n4", "--intensity", "rank"
    for name in ("m1", "m2"):
        yield "train", "--recipe", f"{name}.yaml"
    # A pickle whose archive is named as its file, like those of torch.save on a path.
    tensors = {key: torch.from_numpy(values) for key, values in load(root / "m2/train/best.safetensors").items()}
    torch.save({"state_dict": tensors, "subject": CANARY}, root / f"{CANARY}.pt")
    yield "fisher", "m1/train/best.safetensors", "--data", "hcp", "--max-subjects", "2"
    modalities = ("--modalities", "t1,t2", "--regions", "hcp-8-14")
    yield "fisher", f"{CANARY}.pt", "--data", "hcp", "--max-subjects", "2", "--estimator", "true", *modalities
    yield "inspect", "m1/train/best.safetensors", f"{CANARY}.pt"
    for verb in ("adapt", "fuse", "finetune"):
        yield verb, "--recipe", "timm.yaml"
    best = "timm/finetune/best.safetensors"
    yield "predict", best, "--data", "brats", "--out", "predictions", "--probabilities"
    yield "evaluate", best, "--data", "brats", "--out", "evaluation"
    yield "evaluate", "--pred", "predictions", "--truth", "brats", "--regions", "brats", "--out", "evaluation-2"
    yield "compare", "evaluation/metrics.csv", "evaluation-2/metrics.csv", "--out", "comparison"
    subject = f"brats/LGG/Brats18_{CANARY}_0_1/Brats18_{CANARY}_0_1"
    prediction, truth = f"predictions/Brats18_{CANARY}_0_1.nii.gz", f"{subject}_seg.nii.gz"
    yield (
        "plot",
        prediction,
        "--image",
        f"{subject}_t1.nii.gz",
        "--truth",
        truth,
        "--regions",
        "brats",
        "--names",
        "a",
        "--out",
        "slices.svg",
    )
    yield "plot", "timm/adapt/ratios.json", "--out", "ratios.svg"
    yield "plot", "timm/finetune/log.csv", "m1/train/log.csv", "--out", "curves.svg"
    yield "convert", f"{CANARY}.pt", "converted.safetensors"
    yield "convert", "timm/fused.safetensors", "converted.pt"
    yield "inspect", "timm/fused.safetensors"
    yield "verify", "timm/fused.safetensors"
    yield "forgetting", "timm/fused.safetensors", "--source", "m1=m1/train/best.safetensors", "--data", "hcp", "--out", "forgetting"
    yield "run", "timm.yaml", "--out", "study"
    for folder in ("study", "timm", "m1", "evaluation", "comparison"):
        yield "report", folder, "--force"


def load(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


@pytest.fixture(scope="module")
def told(project: Path) -> Told:
    """The project after every command, and what they said."""
    told, before = Told(), Path.cwd()
    os.chdir(project)
    try:
        for command in commands(project):
            told.call(*command)
    finally:
        os.chdir(before)
    return told


def content_of(path: Path) -> bytes:
    """A file's bytes, and what is compressed in it."""
    raw = path.read_bytes()
    if path.name.endswith(".gz"):
        return raw + gzip.decompress(raw)
    if zipfile.is_zipfile(io.BytesIO(raw)):
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            return raw + b"".join(archive.read(name) for name in archive.namelist())
    return raw


def inputs(root: Path) -> set[Path]:
    return {path for folder in ("hcp", "brats") for path in (root / folder).rglob("*")} | {root / f"{CANARY}.pt", root / "timm.yaml"}


def test_every_command_ran(told: Told) -> None:
    """But for those that look at nothing of a user's: a new one has its place above."""
    assert {command.__name__ for command in COMMANDS} - {"demo", "phantom", "schema", "methods"} == {
        command.split()[0] for command in told.texts
    }


def test_no_file_holds_a_name_of_a_patient_or_a_place(project: Path, told: Told) -> None:
    """But for results by subject, the split, and the names of prediction files."""
    found = {}
    for path in sorted(set(project.rglob("*")) - inputs(project)):
        if not path.is_file():
            continue
        content, name = content_of(path), str(path.relative_to(project))
        for recipe in (TIMM, json.dumps(TIMM)[1:-1]):  # the user's own words, in the report and in the record that it is made from
            content = content.replace(recipe.encode(), b"")
        words = [word for word in (CANARY, CANARY[:8], PLACE) if word.encode() in content]
        if NAMED.search(name):
            words = [word for word in words if word == PLACE]
        if words:
            found[name] = words
    assert {} == found


def test_no_command_says_a_name_of_a_patient_or_a_place(told: Told) -> None:
    """But for the paths that the user typed: what a command was given it may say back."""
    found = {}
    for command, text in told.texts.items():
        typed = [word for word in command.split() if CANARY in word]
        rest = text
        for word in typed:
            rest = rest.replace(word, "").replace(Path(word).name, "").replace(Path(word).stem, "")
        if CANARY in rest or PLACE in rest:
            found[command] = [line for line in rest.splitlines() if CANARY in line or PLACE in line][:5]
    assert {} == found


def test_images_that_are_written_have_headers_of_their_own(project: Path, told: Told) -> None:
    """Affine, voxel size and units alone: nothing of the input's texts and extensions."""
    written = [*project.glob("predictions/*.nii.gz"), *project.glob("hcp-prepared/**/*.nii.gz")]
    assert len(written) > 8
    for path in written:
        header = nibabel.load(path).header
        assert not header.extensions
        assert {b""} == {bytes(header[field]).rstrip(b"\0") for field in ("descrip", "aux_file", "db_name", "intent_name")}


@pytest.mark.parametrize("fault", ["not finite", "cut", "no labels"])
def test_what_is_wrong_with_a_subject_is_told_by_its_number(project: Path, told: Told, tmp_path: Path, fault: str) -> None:
    """Whichever command meets it: exit code 65, one line, and no name of a patient or a place."""
    folder = tmp_path / PLACE
    shutil.copytree(project / "hcp", folder / "hcp")
    subject = folder / "hcp" / f"{CANARY}3" / "T1w"
    image = subject / "T2w_acpc_dc_restore.nii.gz"
    if fault == "not finite":
        values = nibabel.load(image).get_fdata(dtype=np.float32)
        values[8, 8, 8] = np.nan
        nibabel.save(nibabel.Nifti1Image(values, nibabel.load(image).affine), image)
    elif fault == "cut":
        image.write_bytes(image.read_bytes()[:-60])
    else:
        (subject / "aparc+aseg.nii.gz").unlink()
    (folder / "train").mkdir()
    for name in ("m1/train/best.safetensors", "m1.yaml"):
        shutil.copy(project / name, folder / name.removeprefix("m1/"))
    read_all = "target.split={train: 5, validation: 1, test: 1, seed: 0}"
    best, said = folder / "train/best.safetensors", {}
    for command in (
        ("train", "--recipe", folder / "m1.yaml", "--set", read_all, "--out", folder / "out"),
        ("fisher", best, "--data", folder / "hcp", "--estimator", "true"),
        ("predict", best, "--data", folder / "hcp", "--out", folder / "predictions"),
        ("evaluate", best, "--data", folder / "hcp", "--out", folder / "evaluation"),
        ("preprocess", folder / "hcp", folder / "prepared", "--no-n4"),
        ("inspect", folder / "hcp"),
    ):
        result = CliRunner().invoke(app, [str(word) for word in command])
        output = result.output
        for typed in (folder / "hcp", best, folder):
            output = output.replace(str(typed), "")
        said[command[0]] = (result.exit_code, output)
    assert {} == {name: output for name, (_, output) in said.items() if CANARY in output or PLACE in output or "Traceback" in output}
    without_labels_done = {"predict", "preprocess"} if fault == "no labels" else set()
    assert {name for name, (code, _) in said.items() if code == 65} == said.keys() - {"inspect"} - without_labels_done
