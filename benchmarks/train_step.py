"""A training step with its data against the bare network's step, and against a plain MONAI loop on the same files.

Subjects are written as NIfTI files of random smooth images. The arms take turns, a block of steps each, every block with an iterator
of its own, so that the wait for the first batch counts:
    bare     forward, soft Dice, backward, norm of the gradient, Adam, on one batch that lies ready; no data
    store    the same step by mergekit3d's loop: stored subjects, its augmentation, its threads
    MONAI, cached   CacheDataset of MONAI's transforms, DataLoader, the same network, loss and optimizer
    MONAI, plain    the same with Dataset: files are read, cropped and normalised every epoch
All arms have the same network, convolutions and precision. Ratios are medians over blocks, of wall time, and of processor time of the
process with its workers.

    python benchmarks/train_step.py --markdown benchmarks/results/train_step.md
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from mergekit3d.architectures.networks.isensee2017 import Isensee2017
from mergekit3d.architectures.slabs import use_fast_cpu_convolutions
from mergekit3d.checkpoints.metadata import TaskSpec
from mergekit3d.datasets import find_dataset
from mergekit3d.datasets.cache import SubjectStore
from mergekit3d.datasets.prefetch import made_in_order, prefetch
from mergekit3d.datasets.sampling import epoch_jobs
from mergekit3d.recipe.models import AugmentModel
from mergekit3d.training.batches import augmentation_of, workers_of
from mergekit3d.training.devices import Runtime, resolve_runtime
from mergekit3d.training.interruption import Interruption
from mergekit3d.training.loop import PREFETCH_STEPS
from mergekit3d.training.loss import dice_loss
from mergekit3d.training.objective import SUPERVISED
from mergekit3d.training.processes import ALONE
from mergekit3d.training.settings import TrainingSettings
from mergekit3d.training.sharing import Sharing
from mergekit3d.training.stepping import Stepper

MODALITIES = ("t1", "t1ce", "t2", "flair")
RATE = 1e-3
Block = Callable[[int], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filters", type=int, nargs="+", default=[8])
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--volume", type=int, default=96)
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8, help="of a block")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--presets", nargs="+", choices=["flips", "nnunet"], default=["flips", "nnunet"])
    parser.add_argument("--workers", type=int, help="threads or MONAI's processes; left out: as a training would have")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--markdown", type=Path, help="write the table into this file too")
    chosen = parser.parse_args()
    runtime = resolve_runtime(chosen.device, chosen.precision)
    chosen.workers = workers_of(chosen.workers, runtime)
    said: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        said.append(line)

    say(
        f"torch {torch.__version__}, {runtime.device}, {runtime.precision}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, {chosen.workers} workers; {chosen.subjects} subjects of "
        f"{chosen.volume}^3, patches of {chosen.patch}^3, batch {chosen.batch_size}; medians of {chosen.repeats} blocks of "
        f"{chosen.steps} steps\n"
    )
    heads = ["base filters", "augmentation", "bare"]
    for arm in ("store", "MONAI, cached", "MONAI, plain"):
        heads += [f"{arm}: wall", "processor"]
    say(f"| {' | '.join(heads)} |")
    say("|" + "---|" * 9)
    with tempfile.TemporaryDirectory() as folder:
        write_subjects(Path(folder) / "data", chosen.subjects, chosen.volume)
        for filters, preset in itertools.product(chosen.filters, chosen.presets):
            say(f"| {filters} | {preset} | {' | '.join(measure(Path(folder), filters, preset, runtime, chosen))} |")
    if chosen.markdown is not None:
        chosen.markdown.write_text("\n".join([*said, ""]), encoding="utf-8")


def measure(folder: Path, filters: int, preset: str, runtime: Runtime, chosen: argparse.Namespace) -> list[str]:
    """The cells of one line."""
    shape = (chosen.patch,) * 3
    arms: dict[str, Block] = {
        "bare": bare(filters, shape, runtime, chosen),
        "store": by_store(folder, filters, preset, runtime, chosen),
        "cached": by_monai(folder, filters, preset, runtime, chosen, cached=True),
        "plain": by_monai(folder, filters, preset, runtime, chosen, cached=False),
    }
    for block in arms.values():
        block(2)
    walls: dict[str, list[float]] = {name: [] for name in arms}
    works: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(chosen.repeats):
        for name, block in arms.items():
            wall, work = time.perf_counter(), processor_time()
            block(chosen.steps)
            if runtime.device.type == "cuda":
                torch.cuda.synchronize()
            walls[name].append((time.perf_counter() - wall) / chosen.steps)
            works[name].append((processor_time() - work) / chosen.steps)
    cells = [f"{median(walls['bare']):.3f} s"]
    for name in ("store", "cached", "plain"):
        wall, work = (median(one / floor for one, floor in zip(of[name], of["bare"], strict=True)) for of in (walls, works))
        cells += [f"{median(walls[name]):.3f} s ({wall:.3f})", f"{work:.3f}"]
    return cells


def processor_time() -> float:
    """Of this process, its threads and the workers that ended, in seconds."""
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def new_network(filters: int, runtime: Runtime) -> nn.Module:
    torch.manual_seed(0)
    network = Isensee2017(len(MODALITIES), 3, base_filters=filters).to(runtime.device).train()
    use_fast_cpu_convolutions(network)
    return network


def plain_step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor, runtime: Runtime) -> float:
    """What the loop does in a step, written down plainly."""
    optimizer.zero_grad(set_to_none=True)
    with runtime.autocast():
        logits = network(images)
    loss = dice_loss(logits, targets, False)
    torch.autograd.backward(loss)
    norm = nn.utils.get_total_norm([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    if not torch.isfinite(norm):
        sys.exit("cannot measure: a gradient is not finite")
    optimizer.step()
    return float(loss)


def bare(filters: int, shape: tuple[int, ...], runtime: Runtime, chosen: argparse.Namespace) -> Block:
    network = new_network(filters, runtime)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, fused=True)
    images = torch.randn(chosen.batch_size, len(MODALITIES), *shape, device=runtime.device)
    targets = (images[:, :3] > 0).to(torch.uint8)

    def block(steps: int) -> None:
        for _ in range(steps):
            plain_step(network, optimizer, images, targets, runtime)

    return block


def by_store(folder: Path, filters: int, preset: str, runtime: Runtime, chosen: argparse.Namespace) -> Block:
    network = new_network(filters, runtime)
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=RATE, fused=True)
    stepper = Stepper(
        network,
        optimizer,
        parameters,
        TrainingSettings(),
        runtime=runtime,
        loss=SUPERVISED.of(dice_loss),
        exclusive=False,
        seed=0,
        sharing=Sharing(ALONE, Interruption()),
        before_forward=lambda: None,
        after_backward=lambda: None,
        before_step=lambda: None,
    )
    found = find_dataset(folder / "data")
    task = TaskSpec(MODALITIES, {"a": (1, 2, 3), "b": (2, 3), "c": (3,)})
    subjects = dict(enumerate(found.subjects, 1))
    store = SubjectStore(subjects, task, vocabulary=found.vocabulary, folder=folder / "prepared")
    spatial, augment = augmentation_of(AugmentModel(preset=cast(Any, preset)))
    epochs = itertools.count()

    def block(steps: int) -> None:
        epoch = next(epochs)
        jobs = epoch_jobs(
            store,
            list(subjects),
            batch_size=chosen.batch_size,
            patch_size=(chosen.patch,) * 3,
            multiple_of=16,
            seed=0,
            epoch=epoch,
            steps=steps,
            spatial=spatial,
            augment=augment,
        )
        made = made_in_order(jobs, chosen.workers)
        if runtime.device.type == "cuda":
            made = (batch.pinned() for batch in made)
        with closing(cast(Any, prefetch(made, PREFETCH_STEPS))) as batches:
            for step, batch in enumerate(batches):
                if not stepper.step([batch], epoch, step).good:
                    sys.exit("cannot measure: a step is not finite")

    return block


def by_monai(folder: Path, filters: int, preset: str, runtime: Runtime, chosen: argparse.Namespace, *, cached: bool) -> Block:
    warnings.simplefilter("ignore")
    import monai.transforms as mt
    from monai.data import CacheDataset, DataLoader, Dataset

    images, keys = list(MODALITIES), [*MODALITIES, "seg"]
    files = [{key: str(path / f"{key}.nii.gz") for key in keys} for path in sorted((folder / "data").iterdir())]
    fixed = [
        mt.LoadImaged(keys, ensure_channel_first=True),
        mt.Orientationd(keys, "RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
        mt.ConcatItemsd(images, "image"),
        mt.DeleteItemsd(images),
        mt.CropForegroundd(["image", "seg"], "image"),
        mt.NormalizeIntensityd("image", nonzero=True, channel_wise=True),
        mt.Lambdad("seg", regions_of),
    ]
    both = ["image", "seg"]
    patch = (chosen.patch,) * 3
    change = [mt.RandCropByPosNegLabeld(both, "seg", patch, pos=1, neg=2, num_samples=1)]
    if preset == "nnunet":
        modes = ("bilinear", "nearest")
        change += [
            mt.RandAffined(both, prob=0.36, rotate_range=(0.52,) * 3, scale_range=(0.35,) * 3, mode=modes, padding_mode="zeros"),
            mt.Rand3DElasticd(both, sigma_range=(9, 13), magnitude_range=(0, 900), prob=0.2, mode=modes, padding_mode="zeros"),
            mt.RandGaussianNoised("image", prob=0.1, std=0.1),
            mt.RandGaussianSmoothd("image", sigma_x=(0.5, 1), sigma_y=(0.5, 1), sigma_z=(0.5, 1), prob=0.2),
            mt.RandScaleIntensityd("image", factors=0.25, prob=0.15),
            mt.RandScaleIntensityFixedMeand("image", factors=0.25, prob=0.15),
            mt.RandSimulateLowResolutiond("image", prob=0.25, zoom_range=(0.5, 1)),
            mt.RandAdjustContrastd("image", prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
            mt.RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        ]
    change.append(mt.RandFlipd(both, prob=0.5, spatial_axis=0))
    transform = mt.Compose([*fixed, *change])
    transform.set_random_state(0)
    dataset = CacheDataset(files, transform, progress=False) if cached else Dataset(files, transform)
    pin = runtime.device.type == "cuda"
    loader = DataLoader(dataset, num_workers=chosen.workers, batch_size=chosen.batch_size, shuffle=True, pin_memory=pin)
    network = new_network(filters, runtime)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, fused=True)

    def batches() -> Iterator[dict[str, Tensor]]:
        while True:
            yield from loader

    def block(steps: int) -> None:
        with closing(cast(Any, batches())) as source:
            for batch in itertools.islice(source, steps):
                image, seg = (batch[key].as_tensor().to(runtime.device, non_blocking=True) for key in both)
                plain_step(network, optimizer, image, seg, runtime)

    return block


def regions_of(labels: Tensor) -> Tensor:
    return torch.cat([labels >= 1, labels >= 2, labels >= 3]).to(torch.uint8)


def write_subjects(root: Path, count: int, size: int) -> None:
    """Smooth random modalities within a ball, and nested labels."""
    from mergekit3d.volumes.nifti import Grid, write_volume

    grid = Grid((size, size, size), np.eye(4))
    radius = np.sqrt(((np.indices(grid.shape) - size / 2) ** 2).sum(0)) / (size / 2)
    for number in range(count):
        rng = np.random.default_rng(number)
        fields = [gaussian_filter(rng.standard_normal(grid.shape, dtype=np.float32), 2) for _ in MODALITIES]
        for name, field in zip(MODALITIES, fields, strict=True):
            write_volume(root / f"s{number}" / f"{name}.nii.gz", (100 + 500 * field) * (radius < 0.95), native=grid)
        labels = sum((radius < limit).astype(np.uint8) for limit in (0.6, 0.45, 0.3))
        write_volume(root / f"s{number}" / "seg.nii.gz", np.asarray(labels), native=grid)


if __name__ == "__main__":
    main()
