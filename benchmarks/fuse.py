"""`mergekit3d fuse` against a naive torch script, mergekit-pytorch where it is installed, and the I/O floor; growth with N and size.

    python benchmarks/fuse.py [--repeats 5] [--compare 31x2 240x4] [--fisher-large] [--sources 2 4 8 16] [--sizes 8 31 120 240]
                              [--mergekit PATH] [--folder DIR] [--markdown FILE]

Times whole processes and prints tables in Markdown: wall and processor time, peak memory, ratio to the floor. The variants take
turns, so that a machine that slows down slows all of them. Exits with 1 when it cannot measure: a variant fails, or writes something
else than the formula gives. Linux only. By default it takes about 10 minutes and 9 GB for temporary files; --fisher-large adds 4 GB,
and should have 24 GB of memory so that all inputs stay in the page cache. `--compare 8x2 --sources --sizes` is a quick look.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fusion import inputs, tables
from fusion.cases import Case, Variant, environment_of, find_peer, variants
from fusion.processes import CannotMeasureError, Run

IMM_MILLIONS = 40  # larger ones than this with --fisher-large alone: their Fisher diagonals double the disk space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compare", nargs="*", type=size_and_number, default=[(31, 2), (240, 4)], metavar="MILLIONSxN")
    parser.add_argument("--fisher-large", action="store_true", help=f"imm of more than {IMM_MILLIONS} M parameters too")
    parser.add_argument("--sources", nargs="*", type=int, default=[2, 4, 8, 16], help="growth with N, at the first size of --compare")
    parser.add_argument(
        "--sizes", nargs="*", type=float, default=[8, 31, 120, 240], help="growth with size at N = 2, millions of parameters"
    )
    parser.add_argument("--mergekit", type=Path, help="the executable mergekit-pytorch; left out: the one on PATH")
    parser.add_argument("--folder", type=Path, help="where the inputs go, and stay; left out: a temporary folder")
    parser.add_argument("--markdown", type=Path, help="write the tables into this file too")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mergekit3d-fuse-")) if chosen.folder is None else chosen.folder.resolve()
    try:
        text = measure_all(chosen, folder)
    except CannotMeasureError as error:
        sys.exit(f"cannot measure: {error}")
    finally:
        if chosen.folder is None:
            shutil.rmtree(folder)
    if chosen.markdown is not None:
        chosen.markdown.write_text(text)


def size_and_number(text: str) -> tuple[float, int]:
    millions, _, sources = text.partition("x")
    return float(millions), int(sources)


def measure_all(chosen: argparse.Namespace, folder: Path) -> str:
    """Every table, printed as soon as it is measured.

    Raises:
        CannotMeasureError: a variant failed, or its output is missing or wrong.
    """
    if not Path("/proc/self/status").exists():
        raise CannotMeasureError("memory is read from Linux's /proc")
    peer = find_peer(chosen.mergekit)
    heading = tables.heading(peer, chosen.repeats)
    comparisons, by_sources, by_size = planned(chosen, folder)
    write_inputs([*comparisons, *by_sources.values(), *by_size.values()], folder)
    bench = Bench(chosen.repeats, environment_of(folder))
    said = Said()
    said.add(f"# Fusion of checkpoints\n\n`python benchmarks/fuse.py`, {heading}\n")
    for case in comparisons:
        found = bench.take_turns({case.title: case}, {case.title: variants(case, peer, all_of_them=True)})
        said.add(tables.comparison(case, found[case.title]))
    for title, axis, cases in (
        (f"Growth with the number of sources: linear, {first_size(chosen):g} M parameters", "N", by_sources),
        ("Growth with the size: linear, N = 2", "parameters", by_size),
    ):
        if cases:
            found = bench.take_turns(cases, {label: variants(case, None, all_of_them=False) for label, case in cases.items()})
            said.add(tables.growth(title, axis, {label: (case, found[label]) for label, case in cases.items()}))
    said.add(tables.cross_check(bench.runs))
    return said.text


def first_size(chosen: argparse.Namespace) -> float:
    return float(chosen.compare[0][0]) if chosen.compare else 31.0


def planned(chosen: argparse.Namespace, folder: Path) -> tuple[list[Case], dict[str, Case], dict[str, Case]]:
    """The cases to compare all variants on, and those of the two tables of growth by their labels."""
    comparisons = []
    for millions, sources in chosen.compare:
        methods = ("linear", "imm") if millions <= IMM_MILLIONS or chosen.fisher_large else ("linear",)
        comparisons += [Case(method, millions, sources, folder) for method in methods]
    by_sources = {str(number): Case("linear", first_size(chosen), number, folder) for number in chosen.sources}
    by_size = {f"{millions:g} M": Case("linear", millions, 2, folder) for millions in chosen.sizes}
    return comparisons, by_sources, by_size


def write_inputs(cases: Iterable[Case], folder: Path) -> None:
    """Write all inputs, by a process of its own.

    Raises:
        CannotMeasureError: there is not enough space.
    """
    needed = {path: case.millions for case in cases for path in case.inputs}
    folder.mkdir(parents=True, exist_ok=True)
    missing = sum(4e6 * millions for path, millions in needed.items() if not path.exists()) + 4e6 * max(needed.values(), default=0)
    if 1.1 * missing > shutil.disk_usage(folder).free:
        raise CannotMeasureError(f"{1.1 * missing / 1e9:.1f} GB are needed in {folder}; name another place with --folder or TMPDIR")
    for case in cases:
        command = [sys.executable, inputs.__file__, str(folder), "--millions", str(case.millions), "--sources", str(case.sources)]
        if subprocess.run([*command, *(["--fisher"] if case.with_fisher else [])], check=False).returncode != 0:  # noqa: S603  ours
            raise CannotMeasureError(f"the inputs of {case.title} could not be written")


@dataclass
class Bench:
    """Runs variants in turns.

    Args:
        repeats: measured runs of each variant.
        environment: of every process.
        runs: all that were measured.
    """

    repeats: int
    environment: Mapping[str, str]
    runs: list[Run] = field(default_factory=list)

    def take_turns(self, cases: Mapping[str, Case], ways: Mapping[str, Sequence[Variant]]) -> dict[str, dict[str, list[Run]]]:
        """A round to warm up, and then as many as there are repeats; the outputs of the last one are checked.

        Returns:
            The runs of each variant by label of the case and name of the variant.

        Raises:
            CannotMeasureError: a variant failed, or its output is missing or wrong.
        """
        found: dict[str, dict[str, list[Run]]] = {label: {variant.name: [] for variant in ways[label]} for label in cases}
        for turn in range(self.repeats + 1):
            for label, case in cases.items():
                for variant in ways[label]:
                    print(f"{case.title}: {variant.name}, {turn} of {self.repeats}", file=sys.stderr)
                    measured = variant.run_once(case, self.environment, check=turn == self.repeats)
                    if turn > 0:
                        found[label][variant.name].append(measured)
                        self.runs.append(measured)
        return found


class Said:
    """What was printed so far."""

    def __init__(self) -> None:
        self.text = ""

    def add(self, part: str) -> None:
        print(part, flush=True)
        self.text += f"{part}\n"


if __name__ == "__main__":
    main()
