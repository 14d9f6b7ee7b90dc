"""Every command of the documentation works: the blocks of a page run in order, in one shell and one new folder, as by its reader.

What comments in the pages ask for stands in `pages.py`, what a reader has beforehand in `given.py`. The `bash` blocks of a page are
one session of bash with ``-e -o pipefail``; its `mergekit3d` and `python` are those of this environment, forked from a process that has
imported all they need (`tests/warm.py`). `python` blocks are scripts. Recipes in `yaml` are checked as they stand, and run with the
numbers that the comments put in.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest

from mergekit3d.recipe import load_recipe
from tests.warm import Warm

from .given import Given
from .pages import COMMAND, ROOT, Block, outside_of_fences, pages, read_page, read_wanted

NEEDS = {"nnunetv2"}
"""What blocks may need that is no dependency; a page with such blocks has two tests."""
NOT_RUN = {
    "network": "it downloads",
    "GPU": "it computes on a GPU, or on several",
    "SLURM": "it needs a cluster in a way that no stand-in has",
    "time": "it takes minutes, however small the data",
}
"""Why a block may be left out altogether."""
LANGUAGES = {"bash", "yaml", "python", "text", "json", "csv", "toml", "bibtex", "mermaid", "html"}
PAGES = pages()
BLOCKS = [block for page in PAGES for block in read_page(page)]
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def given(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Given:
    return Given(tmp_path_factory.mktemp("given"), warm.programs)


def is_run(block: Block, *, with_tools: bool) -> bool:
    """Whether a block is carried out, now that the tools that some need are there or not."""
    needs = block.wanted.needs
    return block.wanted.not_run is None and (needs is None or with_tools)


class Session:
    """A page's blocks as one script; each block's output stands in a file of its own."""

    def __init__(self, folder: Path, given: Given) -> None:
        self.folder, self.given = folder, given
        self.home, self.notes = folder / "home", folder / "notes"
        for made in (self.home, self.notes):
            made.mkdir()
        self.script = ["set -e -o pipefail"]
        self.blocks: list[Block] = []

    def add(self, block: Block) -> None:
        """Prepare a block, and say how it is run."""
        number = len(self.blocks)
        self.blocks.append(block)
        self.script.append(f"echo {number} > '{self.notes}/at'")
        text, wanted = block.changed, block.wanted
        for name in wanted.given:
            self.given.into(self.notes / f"given{number}", name)
        if wanted.given:
            self.script.append(f"cp -R '{self.notes}/given{number}/.' .")
        target = wanted.save or wanted.add_to
        if target is not None:
            staged = self.notes / f"file{number}"
            staged.write_text(text)
            if wanted.add_to is not None:
                self.script.append(f"python '{Path(__file__).with_name('adding.py')}' {target} '{staged}'")
            else:
                self.script.append(f"mkdir -p $(dirname {target}); cp '{staged}' {target}")
        elif block.language == "python":
            staged = self.notes / f"block{number}.py"
            staged.write_text(text)
            self._run(f"python '{staged}'\n", number, wanted.exit_code)
        elif block.language == "bash":
            self._run(text, number, wanted.exit_code)

    def _run(self, text: str, number: int, exit_code: int | None) -> None:
        out = f"> '{self.notes}/out{number}' 2>&1"
        if exit_code is None:
            self.script.append(f"{{\n{text}}} {out}")
        else:
            self.script.append(f"set +e\n(set -e\n{text}) {out}\n[ $? = {exit_code} ] || exit 1\nset -e")

    def run(self, programs: list[Path]) -> None:
        """Carry the script out; a block that fails is named, with the end of what it said."""
        script = self.notes / "script"
        script.write_text("\n".join(self.script))
        path = os.pathsep.join([f"{self.home}/.programs", *map(str, programs), os.environ["PATH"]])
        environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": ""}
        environment |= {name: str(self.home / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        quiet = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        ended = subprocess.run(["bash", script], cwd=self.home, env=environment, timeout=900, check=False, **quiet)
        at = int((self.notes / "at").read_text())
        said = self.said(at) + ended.stderr
        assert 0 == ended.returncode, f"{self.blocks[at].where}: exit code {ended.returncode}\n{said[-3000:]}"

    def said(self, number: int) -> str:
        """What a block printed."""
        file = self.notes / f"out{number}"
        return file.read_text(errors="replace") if file.exists() else ""

    def check_outputs(self) -> None:
        """The outputs that the page shows are those of its commands, but for numbers."""
        for number, block in enumerate(self.blocks):
            if block.wanted.output:
                said, rest = self.said(number - 1), self.said(number - 1)
                for line in filter(str.strip, block.changed.splitlines()):
                    found = re.search(pattern_of(line), rest)
                    assert found, f"{block.where}: not printed: {line}\n{said}"
                    rest = rest[found.end() :]


def pattern_of(line: str) -> str:
    """A line as shown: spaces may be more or fewer, numbers others, and ``...`` is anything."""
    words = []
    for word in line.split():
        parts = [r".*".join(re.escape(bit) for bit in part.split("...")) for part in NUMBER.split(word)]
        words.append(r"[-+]?[\d.]+(?:e[-+]?\d+)?".join(parts))
    return r"\s+".join(words)


def run_page(page: Path, folder: Path, given: Given, *, with_tools: bool) -> None:
    session = Session(folder, given)
    for block in read_page(page):
        if is_run(block, with_tools=with_tools):
            session.add(block)
    nnunet = importlib.util.find_spec("nnunetv2")
    extra = [Path(nnunet.origin).parents[1] / "bin"] if nnunet and nnunet.origin else []
    session.run([given.programs, *extra])
    session.check_outputs()


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.language in ("bash", "python") for b in read_page(page))], ids=name_of)
def test_page(page, given, tmp_path):
    """Every block ends as it should; those that need a tool which is no dependency are left to the next test."""
    run_page(page, tmp_path, given, with_tools=False)


@pytest.mark.slow
@pytest.mark.needs_nnunet
@pytest.mark.parametrize("page", [page for page in PAGES if any(b.wanted.needs == "nnunetv2" for b in read_page(page))], ids=name_of)
def test_page_with_nnunet(page, given, tmp_path):
    """Every block, those of nnU-Net too."""
    run_page(page, tmp_path, given, with_tools=True)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml" and block.wanted.is_recipe], ids=lambda b: b.where)
def test_recipes_are_valid_as_they_stand(block, tmp_path):
    """Whole ones, and parts of one; with the numbers that the reader sees, and with those of the tests."""
    for text in (block.text, block.changed):
        whole = text if re.search(r"^version:", text, re.MULTILINE) else f"version: 1\n{text}"
        (tmp_path / "recipe.yaml").write_text(whole)
        load_recipe(tmp_path / "recipe.yaml")


def test_blocks_that_are_not_run_say_why():
    """With one of the reasons that are known here; all others run."""
    assert [] == [b.where for b in BLOCKS if b.wanted.not_run is not None and b.wanted.not_run not in NOT_RUN]
    assert [] == [b.where for b in BLOCKS if b.wanted.needs is not None and b.wanted.needs not in NEEDS]


def test_no_command_escapes():
    """Every fence says its language, commands stand in `bash` alone, and no block is made by indentation."""
    assert [] == [block.where for block in BLOCKS if block.language not in LANGUAGES]
    escaped = re.compile(r"^(?:\$ |mergekit3d \w+ (?:-|\w+[./])|sbatch |pip install )", re.MULTILINE)
    assert [] == [block.where for block in BLOCKS if block.language == "text" and escaped.search(block.text)]
    assert [] == [name_of(page) for page in PAGES if COMMAND.search(outside_of_fences(page))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: 500 => epochs: 1", "changes what the block does not hold: epochs: 500"),
        ("gives hcp", "nothing that a comment can ask for: gives hcp"),
    ],
)
def test_comments_that_are_out_of_date_fail(text, said):
    """A number that the block no longer has, a misspelt word."""
    with pytest.raises(AssertionError, match=said):
        Block(ROOT / "README.md", 1, "yaml", "epochs: 400\n", read_wanted(text, "here")).changed  # noqa: B018


def test_a_failing_block_is_named(given, tmp_path):
    """By page and line, with what it said; the blocks before it have run, in the same shell."""
    page = ROOT / "docs" / "x.md"
    session = Session(tmp_path, given)
    for line, text in enumerate(["name=m1.pt\n", "echo read $name | cat\nmergekit3d inspect missing.pt\n", "touch after\n"]):
        session.add(Block(page, line, "bash", text))
    with pytest.raises(AssertionError, match=r"docs/x.md:1: exit code 65\n *read m1.pt\n *error: no such file: missing.pt"):
        session.run([given.programs])
    assert not (session.home / "after").exists()


@pytest.mark.parametrize(
    ("line", "printed", "matches"),
    [
        ("mean Dice 0.42 of 7 subjects", "mean   Dice 0.0031 of 2 subjects", True),
        ("wrote ... in 3 s", "wrote timm/fused.safetensors in 12.5 s", True),
        ("trace 1.2e5", "trace 3.4e-02", True),
        ("mean Dice", "mean HD95", False),
    ],
)
def test_outputs_are_compared_but_for_their_numbers(line, printed, matches):
    """Words decide."""
    assert matches == bool(re.search(pattern_of(line), printed))
