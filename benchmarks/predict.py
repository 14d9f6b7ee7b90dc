"""`predict` against MONAI's `sliding_window_inference` alone: time and memory of one whole volume.

    python benchmarks/predict.py [--volume 160 208 160] [--patch 96] [--filters 8] [--precision auto] [--repeats 3] [--threads 1]
                                 [--mirror] [--whole] [--device cpu]

One subject of four modalities is written as NIfTI files, and a checkpoint of Isensee 2017 of random weights. Each arm is a process of
its own, and the arms take turns:

- MONAI alone: network and prepared image in memory, `sliding_window_inference` with the same window, overlap 0.5 and Gaussian weights
  under autocast, then sigmoid. Nothing is read, prepared or written in what is timed.
- library: `Predictor.probabilities` of the same prepared image, on the native grid.
- command: `mergekit3d predict` from the files to the segmentation.

Of the first two the call is timed alone, and of all the whole process, with its start; that of the command reads, prepares and writes
besides. Processor time is what other work on the machine disturbs least. Memory is the peak of the whole process (VmHWM). --mirror has
every arm average over left-right copies too, --whole adds a line for the whole volume in one pass. The first two must agree within 1e-4
(1e-2 in bf16); exits non-zero where they do not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from fusion.processes import CannotMeasureError, Run, run

if TYPE_CHECKING:
    import numpy as np

MODALITIES = ("t1", "t1ce", "t2", "flair")
REGIONS = {"ET": (4,), "TC": (1, 4), "WT": (1, 2, 4)}
MONAI, LIBRARY, COMMAND, WHOLE = "MONAI alone", "library", "command", "library, whole volume"
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", type=int, nargs=3, default=[160, 208, 160])
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--filters", type=int, default=8)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mirror", action="store_true")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--markdown", type=Path, help="write the table into this file too")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--arm", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.make is not None:
        make(chosen.make, chosen)
    elif chosen.arm:
        arm(chosen.arm[0], Path(chosen.arm[1]), chosen)
    else:
        with tempfile.TemporaryDirectory() as folder:
            try:
                measure(Path(folder), chosen)
            except CannotMeasureError as error:
                sys.exit(f"cannot measure: {error}")


def measure(folder: Path, chosen: argparse.Namespace) -> None:
    # This process stays small: what a child's ru_maxrss begins at is its parent's memory.
    flags = ["--patch", chosen.patch, "--filters", chosen.filters, "--precision", chosen.precision, "--device", chosen.device]
    flags += ["--volume", *chosen.volume, "--threads", chosen.threads, *(["--mirror"] if chosen.mirror else [])]
    script = [sys.executable, "-W", "ignore", __file__, *map(str, flags)]
    subprocess.run([*script, "--make", str(folder)], check=True)  # noqa: S603  ours
    said = json.loads((folder / "runtime.json").read_text())
    environment = {**os.environ, "OMP_NUM_THREADS": str(chosen.threads)}
    predict = ["-m", "mergekit3d_cli", "predict", folder / "network.safetensors", "--data", folder / "data", "--out", folder / "out"]
    predict += ["--patch-size", chosen.patch, "--precision", said["precision"], "--device", chosen.device, "--force", "--quiet"]
    predict += ["--mirror"] if chosen.mirror else []
    commands = {name: [*script, "--arm", name, str(folder)] for name in (MONAI, LIBRARY, *([WHOLE] if chosen.whole else []))}
    commands[COMMAND] = [sys.executable, *map(str, predict)]
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    calls: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _ in range(chosen.repeats):
        for name, command in commands.items():
            runs[name].append(run(command, folder / "log", environment))
            whole = {"process_s": runs[name][-1].cpu_s}
            calls[name].append(whole | ({} if name == COMMAND else json.loads((folder / "call.json").read_text())))
            print(f"{name}: {whole['process_s']:.1f} s of processors", file=sys.stderr, flush=True)
    check(folder, said["precision"])
    window = f"windows of {chosen.patch}^3, overlap 0.5{', mirrored along left-right' if chosen.mirror else ''}"
    volume = f"{' x '.join(map(str, chosen.volume))}, {len(MODALITIES)} modalities, base {chosen.filters}, {said['precision']}, {window}"
    machine = f"torch {said['torch']}, MONAI {said['monai']}, {said['capability']}, {platform.machine()}, {chosen.threads} thread(s)"
    lines = [
        f"{machine}; {volume}; {datetime.now(UTC):%Y-%m-%d}, median of {chosen.repeats}\n",
        "| | the call: processor time | of MONAI's | wall | of MONAI's | the process: processor time | of MONAI's | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in commands:
        cells = [cell for key in ("cpu_s", "wall_s", "process_s") for cell in against(calls[name], calls[MONAI], key)]
        lines.append(f"| {name} | {' | '.join(cells)} | {median(one.peak_rss for one in runs[name]) / 2**20:.0f} MB |")
    print("\n".join(lines), flush=True)
    if chosen.markdown is not None:
        chosen.markdown.write_text("\n".join([*lines, ""]), encoding="utf-8")


def against(mine: list[dict[str, float]], theirs: list[dict[str, float]], key: str) -> list[str]:
    if key not in mine[0]:
        return ["", ""]
    ratio = median(one[key] / other[key] for one, other in zip(mine, theirs, strict=True))
    return [f"{median(one[key] for one in mine):.2f} s", f"{ratio:.3f}"]


def make(folder: Path, chosen: argparse.Namespace) -> None:
    """One subject as files and prepared, and a checkpoint."""
    import numpy as np
    import torch
    from scipy.ndimage import gaussian_filter

    from mergekit3d.architectures import NetworkSpec, build_network
    from mergekit3d.checkpoints import CHECKPOINT, Metadata, TaskSpec, save_tensors
    from mergekit3d.datasets import find_dataset
    from mergekit3d.datasets.prepare import prepare
    from mergekit3d.training.devices import resolve_runtime
    from mergekit3d.volumes.nifti import Grid, write_volume

    grid, generator = Grid(tuple(chosen.volume), np.eye(4)), np.random.default_rng(0)
    for modality in MODALITIES:
        field = gaussian_filter(generator.standard_normal(grid.shape, dtype=np.float32), 2)
        write_volume(folder / "data" / "s0" / f"{modality}.nii.gz", 100 + 500 * field, native=grid)
    task = TaskSpec(MODALITIES, REGIONS)
    dataset = find_dataset(folder / "data")
    prepared = prepare(dataset.subjects[0], 1, task, vocabulary=dataset.vocabulary, with_target=False)
    np.save(folder / "image.npy", prepared.image)
    torch.manual_seed(0)
    spec = NetworkSpec("isensee2017", len(MODALITIES), len(REGIONS), {"base_filters": chosen.filters})
    network = build_network(spec)
    metadata = Metadata(kind=CHECKPOINT, architecture=spec.as_json(), task=task, method="train")
    save_tensors(folder / "network.safetensors", network.state_dict(), metadata)
    from importlib.metadata import version

    precision = resolve_runtime(chosen.device, chosen.precision).precision
    told = {"precision": precision, "torch": torch.__version__, "monai": version("monai")}
    told["capability"] = torch.backends.cpu.get_cpu_capability()
    (folder / "runtime.json").write_text(json.dumps(told))


def arm(name: str, folder: Path, chosen: argparse.Namespace) -> None:
    """One call, timed in this process."""
    import numpy as np
    import torch

    torch.set_num_threads(chosen.threads)
    call = by_monai(folder, chosen) if name == MONAI else by_library(folder, chosen, whole=name == WHOLE)
    wall, work = time.perf_counter(), time.process_time()
    found = call()
    told = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - work}
    (folder / "call.json").write_text(json.dumps(told))
    if name != WHOLE:
        np.save(folder / f"{name}.npy", found)


def by_monai(folder: Path, chosen: argparse.Namespace) -> Any:
    import numpy as np
    import torch
    from monai.inferers import sliding_window_inference

    from mergekit3d.architectures import build_network, network_of
    from mergekit3d.architectures.slabs import use_fast_cpu_convolutions
    from mergekit3d.checkpoints import load_tensors, open_checkpoint
    from mergekit3d.training.devices import resolve_runtime

    runtime = resolve_runtime(chosen.device, chosen.precision)
    checkpoint = open_checkpoint(folder / "network.safetensors")
    spec = network_of(checkpoint)
    assert spec is not None
    network = build_network(spec)
    network.load_state_dict(load_tensors(checkpoint))
    network = network.to(runtime.device).eval()
    use_fast_cpu_convolutions(network)
    image = torch.from_numpy(np.load(folder / "image.npy"))[None].to(runtime.device)

    def call() -> np.ndarray[Any, Any]:
        total = None
        with torch.inference_mode(), runtime.autocast():
            for axes in [[], [2]] if chosen.mirror else [[]]:
                logits = sliding_window_inference(
                    image.flip(axes) if axes else image, (chosen.patch,) * 3, 1, network, overlap=0.5, mode="gaussian", sigma_scale=0.125
                )
                probabilities = torch.sigmoid(logits)
                probabilities = probabilities.flip(axes) if axes else probabilities
                total = probabilities if total is None else total + probabilities
        assert total is not None
        return (total[0] / 2 if chosen.mirror else total[0]).float().cpu().numpy()

    return call


def by_library(folder: Path, chosen: argparse.Namespace, *, whole: bool) -> Any:
    import numpy as np

    from mergekit3d.datasets.prepare import Box, Prepared
    from mergekit3d.options import Options
    from mergekit3d.prediction import load_predictor
    from mergekit3d.volumes.nifti import Grid

    shape = tuple(chosen.volume)
    prepared = Prepared(1, np.load(folder / "image.npy"), None, np.eye(4), Box((0, 0, 0), shape), Grid(shape, np.eye(4)))
    patch = None if whole else (chosen.patch,) * 3
    options = Options(device=chosen.device, precision=chosen.precision)
    predictor = load_predictor(folder / "network.safetensors", options, patch_size=patch, mirror_axes=(0,) if chosen.mirror else ())
    return lambda: predictor.probabilities(prepared)


def check(folder: Path, precision: str) -> None:
    import numpy as np

    theirs, mine = np.load(folder / f"{MONAI}.npy"), np.load(folder / f"{LIBRARY}.npy")
    worst = float(np.abs(theirs - mine).max())
    if theirs.shape != mine.shape or not worst < TOLERANCE[precision]:
        raise CannotMeasureError(f"the two differ by {worst:.1e}")


if __name__ == "__main__":
    main()
