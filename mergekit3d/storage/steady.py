"""Whether a file stayed the same while it was read: another program may replace, cut or overwrite it meanwhile.

A file that is replaced by a rename goes on under its open descriptor as it was. One that is overwritten in place does not, and what
was read of it may be a mix of two contents: its size or time tells. What has a seal is compared with it besides.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mergekit3d.errors import InputError

AFTER_A_CHANGE = "let what writes it end, then run again"
"""What to do about a file that did not stay the same."""


@dataclass(frozen=True)
class Stamp:
    """What a file system tells of a file's content: another content has another stamp, but for one written within a tick of its clock.

    Args:
        inode: of the file; a device's number is left out, which a network file system may change when it is mounted anew.
        size: in bytes.
        mtime_ns: when it was last written.
    """

    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, file: Path | str | int) -> Stamp:
        """The stamp of a path or an open descriptor.

        Raises:
            OSError: it is not there.
        """
        return cls.from_status(os.fstat(file) if isinstance(file, int) else Path(file).stat())

    @classmethod
    def from_status(cls, status: os.stat_result) -> Stamp:
        """The stamp in what `os.stat` answered."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


def refuse_changed(before: Stamp, file: Path | str | int, where: object) -> None:
    """Refuse a file whose content is not what it was.

    Args:
        before: its stamp when it was opened.
        file: its path or open descriptor now.
        where: what errors call it.

    Raises:
        InputError: it was changed, replaced or removed.
    """
    try:
        now = Stamp.of(file)
    except OSError as error:
        raise InputError("the file changed while it was read", where=where, found="nothing under its name", todo=AFTER_A_CHANGE) from error
    if now.size < before.size:
        raise InputError(
            "the file was cut while it was read", where=where, wanted=f"{before.size} bytes", found=f"{now.size} bytes", todo=AFTER_A_CHANGE
        )
    if now != before:
        raise InputError("the file changed while it was read", where=where, todo=AFTER_A_CHANGE)
