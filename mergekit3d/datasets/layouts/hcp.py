"""The Human Connectome Project's structural folders, with FreeSurfer's segmentation as labels."""

from __future__ import annotations

from pathlib import Path

from mergekit3d.datasets.layouts import Layout, folders, nifti_files, register
from mergekit3d.datasets.subject import Subject
from mergekit3d.datasets.vocabulary import FREESURFER

MODALITIES = {"t1": "T1w_acpc_dc_restore", "t2": "T2w_acpc_dc_restore"}
LABEL_NAMES = ("aparc+aseg", "wmparc")


def find(root: Path) -> list[Subject]:
    """Folders with a ``T1w`` folder in them that holds files of the pipeline."""
    return [subject for folder in folders(root) if (subject := _subject(folder)) is not None]


def _subject(folder: Path) -> Subject | None:
    if not (folder / "T1w").is_dir():
        return None
    files = nifti_files(folder / "T1w")
    whole = {modality: files[name] for modality, name in MODALITIES.items() if name in files}
    brain = {modality: files[f"{name}_brain"] for modality, name in MODALITIES.items() if f"{name}_brain" in files}
    label = next((files[name] for name in LABEL_NAMES if name in files), None)
    if not whole and not brain:
        return None
    # Never the brain of one modality beside the whole head of another.
    return Subject(folder.name, brain if brain.keys() >= whole.keys() else whole, label)


HCP = register(Layout("hcp", "<id>/T1w/{T1w_acpc_dc_restore,T2w_acpc_dc_restore,aparc+aseg}.nii.gz", FREESURFER, find))
