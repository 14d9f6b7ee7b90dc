"""What mkdocs does besides: the README as the first page, other files of the repository that pages link to, equations as MathML.

Pages link to each other and to the rest of the repository by relative paths, as any viewer of Markdown follows them. What lies
outside of docs/ and is linked to becomes part of the site, under repository/.
"""

from __future__ import annotations

import html
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def uri_of(path: str) -> str:
    """The place in the site of a file of the repository."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def path_of(uri: str) -> str:
    """The file of the repository that a place in the site comes from: the inverse of `uri_of`."""
    if uri == "index.md":
        return "README.md"
    return uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}"


def targets(path: str) -> list[str]:
    """Files of the repository that a page of it links to, those that are not there left out."""
    text = (ROOT / path).read_text(encoding="utf-8")
    found = [posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for _, link, _ in LINK.findall(text)]
    return [target for target in found if not target.startswith("..") and (ROOT / target).is_file()]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README and all that is linked to."""
    wanted = ["README.md", *(path_of(file.src_uri) for file in files.documentation_pages())]
    seen = set(wanted[1:])
    while wanted:
        path = wanted.pop()
        if path not in seen and files.get_file_from_path(uri_of(path)) is None:
            files.append(File.generated(config, uri_of(path), abs_src_path=os.fspath(ROOT / path)))
        seen.add(path)
        if path.endswith(".md"):
            wanted += [target for target in targets(path) if target not in seen]
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links of the repository into links of the site."""
    own = path_of(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(own), match[2]))
        if target.startswith("..") or not (ROOT / target).is_file():
            return match[0]  # the strict build tells
        return f"{match[1]}{posixpath.relpath(uri_of(target), posixpath.dirname(page.file.src_uri) or '.')}{match[3]}"

    return LINK.sub(moved, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Turn equations into MathML, which browsers draw by themselves."""

    def drawn(match: re.Match[str]) -> str:
        return convert(html.unescape(match[3]).strip(), display="inline" if match[2] == "(" else "block")

    return EQUATION.sub(drawn, content)
