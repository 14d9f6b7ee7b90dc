"""The pages of the documentation as a list of blocks, with what their comments ask of the tests.

A comment ``<!-- test: ... -->`` belongs to the next fenced block of its page; its parts are separated by semicolons:

- ``given hcp m1``: what the reader has already, made by `given.py` and put into the page's folder before the block
- ``save timm.yaml``: the block is a file of that name, and is written for the commands that follow
- ``add to timm.yaml``: the block is some keys of that recipe, and is merged into it
- ``epochs: 500 => epochs: 1``: what is run or written has the right side in place of the left one, wherever it stands in the block: the
  reader sees realistic numbers, the tests take seconds; a left side that the block does not hold fails the test
- ``exit 2``: the block ends with this exit code
- ``output``: every line of a text block is among what the block before it printed, in order; numbers may differ, ``...`` is anything
- ``needs nnunetv2``: run where that is installed, see NEEDS in `test_commands.py`
- ``not run: network``: never run, for one of the reasons in NOT_RUN there; of YAML that is no recipe: ``not a recipe``
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMENT = re.compile(r"<!--\s*test:(.*?)-->", re.DOTALL)
FENCE = re.compile(r"^( *)(`{3,}|~{3,})(.*)$")
COMMAND = re.compile(r"^(?: {4}|\t) *(?:\$ )?(?:mergekit3d|sbatch|srun|torchrun|python|pip|make|nnUNetv2_\w+) ", re.MULTILINE)


@dataclass(frozen=True)
class Wanted:
    """What the comments before a block ask for."""

    given: tuple[str, ...] = ()
    save: str | None = None
    add_to: str | None = None
    changes: tuple[tuple[str, str], ...] = ()
    exit_code: int | None = None
    output: bool = False
    needs: str | None = None
    not_run: str | None = None
    is_recipe: bool = True


@dataclass(frozen=True)
class Block:
    """A fenced block: its language (the first word after the fence), its text and where it stands."""

    page: Path
    line: int
    language: str
    text: str
    wanted: Wanted = field(default_factory=Wanted)

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def changed(self) -> str:
        """The text with the changes that its comment lists."""
        text = self.text
        for old, new in self.wanted.changes:
            assert old in text, f"{self.where}: the comment changes what the block does not hold: {old}"
            text = text.replace(old, new)
        return text


def read_wanted(text: str, where: str) -> Wanted:
    """The parts of one comment (or of several, joined)."""
    found: dict[str, object] = {}
    changes = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        word, _, rest = part.partition(" ")
        if " => " in part:
            old, _, new = part.partition(" => ")
            changes.append((old, new))
        elif part.startswith("add to "):
            found["add_to"] = part.removeprefix("add to ")
        elif part.startswith("not run: "):
            found["not_run"] = part.removeprefix("not run: ")
        elif part == "not a recipe":
            found["is_recipe"] = False
        elif part == "output":
            found["output"] = True
        elif word == "given":
            found["given"] = tuple(rest.split())
        elif word == "exit":
            found["exit_code"] = int(rest)
        elif word in ("save", "needs"):
            found[word] = rest
        else:
            raise AssertionError(f"{where}: nothing that a comment can ask for: {part}")
    return Wanted(changes=tuple(changes), **found)  # type: ignore[arg-type]


def read_page(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    blocks: list[Block] = []
    pending = ""
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        opening = FENCE.match(line)
        if opening is None:
            if "<!-- test:" in line:
                while "-->" not in line:
                    line += "\n" + next(lines)[1]  # noqa: PLW2901  a comment over several lines
                pending += ";" + ";".join(COMMENT.findall(line))
            continue
        indent, fence, info = opening.groups()
        inside = []
        for _, content in lines:
            closing = FENCE.match(content)
            if closing and closing[2].startswith(fence) and not closing[3].strip():
                break
            inside.append(content[len(indent) :] if content[: len(indent)].isspace() else content)
        where = f"{page.relative_to(ROOT)}:{number}"
        language = (info.split() or [""])[0]
        blocks.append(Block(page, number, language, "\n".join([*inside, ""]), read_wanted(pending, where)))
        pending = ""
    assert not pending, f"{page.relative_to(ROOT)}: a comment for the tests, and no block after it"
    return blocks


def pages() -> list[Path]:
    """README.md, as soon as it holds fenced blocks, and all pages below docs/."""
    readme = ROOT / "README.md"
    return [*([readme] if "```" in readme.read_text(encoding="utf-8") else []), *sorted((ROOT / "docs").rglob("*.md"))]


def outside_of_fences(page: Path) -> str:
    """A page without its fenced blocks."""
    kept, fence = [], None
    for line in page.read_text(encoding="utf-8").splitlines():
        match = FENCE.match(line)
        if match and (fence is None or match[2].startswith(fence)):
            fence = match[2] if fence is None else None
        elif fence is None:
            kept.append(line)
    return "\n".join(kept)
