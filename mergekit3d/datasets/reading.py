"""The images of a subject, each file read once, whether it holds one modality or all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mergekit3d.datasets.subject import Subject
from mergekit3d.volumes.nifti import Channel, Volume, read_channels, read_image


def read_subject(subject: Subject, modalities: Sequence[str], called: Callable[[str], str]) -> dict[str, Volume]:
    """The images of a subject; see `read_modalities`."""
    return read_modalities({modality: subject.images[modality] for modality in modalities}, subject.channels, called)


def read_modalities(images: Mapping[str, Path], channels: Mapping[str, Channel], called: Callable[[str], str]) -> dict[str, Volume]:
    """Images by modality.

    Args:
        images: modality -> file.
        channels: of the modalities that share a 4D file, which of its volumes they are.
        called: what an error calls the image of a modality that is not finite.

    Returns:
        The volumes, in the order of `images`.

    Raises:
        InputError: a file cannot be read.
    """
    found = {}
    for first, path in images.items():
        if first in found:
            continue
        together = [modality for modality, other in images.items() if other == path and modality in channels]
        if first not in together:
            found[first] = read_image(path, called=called(first))
            continue
        indices, count = [channels[modality].index for modality in together], channels[first].count
        volumes = read_channels(path, indices, count, called=[called(modality) for modality in together])
        found |= dict(zip(together, volumes, strict=True))
    return {modality: found[modality] for modality in images}


def image_identities(subject: Subject, modalities: Sequence[str], digest: Callable[[Path], str]) -> list[str]:
    """What identifies the image of each modality: the digest of its file, hashed once, and which of its volumes it is."""
    digests = {path: digest(path) for path in {subject.images[modality]: None for modality in modalities}}
    indices = [f"[{subject.channels[modality].index}]" if modality in subject.channels else "" for modality in modalities]
    return [digests[subject.images[modality]] + index for modality, index in zip(modalities, indices, strict=True)]
