"""Files of results that grow line by line over hours: one writer at a time, and whole lines only."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import fcntl


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Create a file and lock it for this process; the lock ends with the process. Windows has no such locks: two runs
    that write to one file are not noticed there.

    Raises:
        ValueError: another process has locked it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"another process is writing {path}: wait for it, or choose another --output"
                ) from error
        yield


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Add lines to a file, all of them or none; a partial last line left by an interruption is removed first.

    The lines are on the disk when this returns. A file has one writer at a time (`only_writer`).
    """
    with open(path, "a+b") as file:
        remove_torn_line(file)
        end = file.seek(0, os.SEEK_END)
        try:
            file.write("".join(f"{line}\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def remove_torn_line(file: Any) -> None:
    """Remove everything after the last line end of a binary file opened for reading and writing."""
    length = end = file.seek(0, os.SEEK_END)
    while end > 0:
        size = min(end, 1 << 16)
        file.seek(end - size)
        newline = file.read(size).rfind(b"\n")
        if newline >= 0:
            end += newline + 1 - size
            break
        end -= size
    if end < length:
        file.truncate(end)
