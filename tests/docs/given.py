"""What a reader of a page has already, by name: small, made once, copied into the folder of each page that asks for it.

| name | files |
|---|---|
| `hcp`, `brats` | `hcp/`, `brats/`: 5 generated subjects each, voxels of 6 mm |
| `labels` | `labels/`: label maps of real heads, as far as anyone can tell (FreeSurfer's ids) |
| `m1`, `m2` | `m1.pt`, `m2.pt`: networks for `hcp-1-7` and `hcp-8-14` on T1 and T2, the second near the first |
| `fisher` | `m1.fisher.safetensors`, `m2.fisher.safetensors` (after `m1 m2`) |
| `fused`, `best` | `fused.safetensors`, `best.safetensors`: networks for BraTS's regions on its four modalities |
| `m1.yaml` | a recipe of a source model on `hcp/` |
| `timm.yaml` | the README's recipe of T-IMM over `m1.pt`, `m2.pt` and `brats/`, small |
| `predictions` | `predictions/`: segmentations of the subjects of `brats/` |
| `slurm` | `sbatch`, `srun`, `scontrol` and `squeue` that carry out a job at once, one process each |
| `nnunet` | `nnUNet_raw`, `nnUNet_preprocessed` and `nnUNet_results` with two trained data sets (T1, T2) and a planned third (BraTS) |
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.builders import nnunet_plans, random_state, save_fisher, save_nnunet, save_source, spec_of, task_of

from .pages import ROOT

BRATS = {"ET": (4,), "TC": (1, 4), "WT": (1, 2, 4)}
M1 = """\
version: 1
name: m1
architecture: {name: isensee2017, base_filters: 2, depth: 3}
target: {data: hcp/, modalities: [t1, t2], regions: hcp-1-7, split: {train: 1, validation: 1, seed: 0}}
train: {init: none, epochs: 1}
"""
TIMM = """\
version: 1
name: timm
sources:
  - {name: m1, checkpoint: m1.pt}
  - {name: m2, checkpoint: m2.pt}
partitions:
  private: ["kind:norm", "segmentation.*"]
  shared: ["*"]
merge: {method: timm, granularity: layer}
target:
  data: brats/
  modalities: [t1, t1ce, t2, flair]
  regions: {ET: [4], TC: [1, 4], WT: [1, 2, 4]}
  split: {train: 2, validation: 1, test: 2, seed: 0}
adapt: {epochs: 1, steps_per_epoch: 1}
finetune: {init: timm, epochs: 1, steps_per_epoch: 1}
"""
SLURM = {
    "sbatch": """
script=
for word in "$@"; do case $word in -*) shift;; *) break;; esac; done
export SLURM_JOB_ID=1 SLURM_NTASKS=1 SLURM_NTASKS_PER_NODE=1 SLURM_CPUS_PER_TASK=1 SLURM_JOB_NODELIST=localhost
for task in 0; do  # of an array, the first alone
    export SLURM_ARRAY_JOB_ID=1 SLURM_ARRAY_TASK_ID=$task
    bash "$@" > slurm-1.out 2>&1 || { cat slurm-1.out >&2; exit 1; }
done
echo "Submitted batch job 1"
""",
    "srun": 'SLURM_PROCID=0 SLURM_LOCALID=0 exec "$@"\n',
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> requeued; fi\n',
    "squeue": 'echo "JOBID NAME ST TIME"\n',
}


class Given:
    """Makes things by name into folders; each once, then copies."""

    def __init__(self, cache: Path, programs: Path) -> None:
        self.cache, self.programs = cache, programs
        self.kinds: dict[str, Callable[[Path], None]] = {
            "hcp": lambda folder: self._phantom(folder, "hcp"),
            "brats": lambda folder: self._phantom(folder, "brats"),
            "labels": self._labels,
            "m1": lambda folder: self._source(folder, "m1"),
            "m2": lambda folder: self._source(folder, "m2"),
            "fisher": self._fisher,
            "fused": lambda folder: self._target(folder, "fused", 3),
            "best": lambda folder: self._target(folder, "best", 4),
            "m1.yaml": lambda folder: self._text(folder / "m1.yaml", M1),
            "timm.yaml": lambda folder: self._text(folder / "timm.yaml", TIMM),
            "predictions": self._predictions,
            "slurm": self._slurm,
            "nnunet": self._nnunet,
        }

    def into(self, folder: Path, name: str) -> None:
        """Put what `name` says into a folder."""
        stored = self.cache / name
        if not stored.exists():
            stored.mkdir(parents=True)
            self.kinds[name](stored)
        shutil.copytree(stored, folder, dirs_exist_ok=True)

    def run(self, folder: Path, *words: str) -> None:
        """A command of mergekit3d."""
        subprocess.run([self.programs / "mergekit3d", *words], cwd=folder, check=True, capture_output=True)

    def _text(self, path: Path, text: str) -> None:
        path.write_text(text)

    def _phantom(self, folder: Path, layout: str) -> None:
        self.run(folder, "phantom", layout, "--layout", layout, "--subjects", "5", "--spacing-mm", "6")

    def _labels(self, folder: Path) -> None:
        self.into(folder / "made", "hcp")
        (folder / "labels").mkdir()
        for number, path in enumerate(sorted((folder / "made").rglob("aparc+aseg.nii.gz"))[:3]):
            shutil.copy(path, folder / "labels" / f"head{number}.nii.gz")
        shutil.rmtree(folder / "made")

    def _source(self, folder: Path, name: str) -> None:
        from mergekit3d.datasets.labels import output_set

        spec = spec_of(outputs=7)
        near = random_state(spec, seed=1)
        state = {key: values if name == "m1" else values + 0.05 * random_state(spec, seed=2)[key] for key, values in near.items()}
        outputs = output_set("hcp-1-7" if name == "m1" else "hcp-8-14")
        save_source(folder / f"{name}.pt", spec=spec, task=task_of(outputs=outputs), state=state)

    def _fisher(self, folder: Path) -> None:
        for seed, name in enumerate(("m1", "m2")):
            self._source(folder, name)
            save_fisher(folder / f"{name}.pt", seed=seed)
            (folder / f"{name}.pt").unlink()

    def _target(self, folder: Path, name: str, seed: int) -> None:
        spec, task = spec_of(inputs=4, outputs=3), task_of(("t1", "t1ce", "t2", "flair"), BRATS)
        save_source(folder / f"{name}.safetensors", seed=seed, spec=spec, task=task)

    def _predictions(self, folder: Path) -> None:
        import nibabel

        self.into(folder / "made", "brats")
        (folder / "predictions").mkdir()
        for path in (folder / "made").rglob("*_seg.nii.gz"):
            truth = nibabel.load(path)
            shifted = np.roll(np.asarray(truth.dataobj), 1, axis=0)
            nibabel.save(nibabel.Nifti1Image(shifted, truth.affine), folder / "predictions" / path.name.replace("_seg", ""))
        shutil.rmtree(folder / "made")

    def _slurm(self, folder: Path) -> None:
        for name, text in SLURM.items():
            program = folder / ".programs" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(f"#!/bin/bash\n{text}")
            program.chmod(0o755)
        (folder / "docs").mkdir()
        shutil.copy(ROOT / "docs" / "slurm.sh", folder / "docs")

    def _nnunet(self, folder: Path) -> None:
        self.into(folder / "made", "hcp")
        self.into(folder / "made", "brats")
        heads = sorted((folder / "made" / "hcp").glob("*/T1w"))
        tumours = sorted({path.parent for path in (folder / "made" / "brats").rglob("*_seg.nii.gz")})
        labels = {"background": 0, "thalamus": 1, "putamen": 2}
        regions = {"background": 0, "WT": [1, 2, 3], "TC": [2, 3], "ET": 3}
        small = {"spacing": [6.0, 6.0, 6.0], "use_mask_for_norm": [True] * 4}
        for number, name in enumerate(("Dataset001_One", "Dataset002_Two"), 1):
            images = [[head / f"T{contrast}w_acpc_dc_restore.nii.gz" for contrast in (1, 2)] for head in heads[:3]]
            ids = {1: (10, 49), 2: (12, 51)}
            raw = _write_raw(
                folder / "nnUNet_raw" / name, ["T1", "T2"], labels, images, [head / "aparc+aseg.nii.gz" for head in heads], ids
            )
            _write(folder / "nnUNet_preprocessed" / name / "nnUNetPlans_of3.json", nnunet_plans(4, **small))
            model = folder / "nnUNet_results" / name / "nnUNetTrainer__nnUNetPlans_of3__3d_fullres" / "fold_all"
            model.mkdir(parents=True)
            plans = nnunet_plans(2, spacing=[6.0, 6.0, 6.0], use_mask_for_norm=[True] * 2)
            save_nnunet(model / "checkpoint_final.pth", seed=number, plans=plans, labels=labels, channel_names=raw["channel_names"])
        names = ["T1", "T1Gd", "T2", "FLAIR"]
        images = [[case / f"{case.name}_{name}.nii.gz" for name in ("t1", "t1ce", "t2", "flair")] for case in tumours]
        truths = [case / f"{case.name}_seg.nii.gz" for case in tumours]
        raw = _write_raw(folder / "nnUNet_raw" / "Dataset003_Brats", names, regions, images[:3], truths, {1: (2,), 2: (1,), 3: (4,)})
        for channel, image in enumerate(images[3]):
            test = folder / "nnUNet_raw" / "Dataset003_Brats" / "imagesTs"
            test.mkdir(exist_ok=True)
            shutil.copy(image, test / f"other_{channel:04d}.nii.gz")
        _write(folder / "nnUNet_preprocessed" / "Dataset003_Brats" / "nnUNetPlans.json", nnunet_plans(4, **small))
        _write(folder / "nnUNet_preprocessed" / "Dataset003_Brats" / "dataset.json", raw)
        shutil.rmtree(folder / "made")


def _write(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return content


def _write_raw(
    folder: Path, channels: list[str], labels: dict[str, Any], images: list[list[Path]], truths: list[Path], ids: dict[int, tuple[int, ...]]
) -> dict[str, Any]:
    """A raw data set of nnU-Net; `ids` are those of the truth by the ids to write. Returns its dataset.json."""
    import nibabel

    for of in ("imagesTr", "labelsTr"):
        (folder / of).mkdir(parents=True)
    for number, (of_case, truth) in enumerate(zip(images, truths, strict=False)):
        for channel, image in enumerate(of_case):
            shutil.copy(image, folder / "imagesTr" / f"case{number}_{channel:04d}.nii.gz")
        known = nibabel.load(truth)
        found = np.asarray(known.dataobj)
        written = sum((np.uint8(label) * np.isin(found, of_label) for label, of_label in ids.items()), np.zeros(found.shape, np.uint8))
        nibabel.save(nibabel.Nifti1Image(written, known.affine), folder / "labelsTr" / f"case{number}.nii.gz")
    order = {"regions_class_order": [1, 2, 3]} if any(isinstance(label, list) for label in labels.values()) else {}
    by_number = {str(channel): name for channel, name in enumerate(channels)}
    description = {"channel_names": by_number, "labels": labels, "numTraining": len(images), "file_ending": ".nii.gz", **order}
    return _write(folder / "dataset.json", description)
