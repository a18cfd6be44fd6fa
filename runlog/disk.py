"""Files: what fails in writing them; of large ones that are mapped into memory, the space and the
checksums of rows.

Of the disk itself: a mapped file whose blocks are not its own, or that becomes shorter, ends the
process with a bus error (SIGBUS) where a page is touched, without a message. So the space is taken,
and the size looked at, beforehand.
"""

import contextlib
import errno
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from runlog.terminal import UserError

PIECE = 2**24  # bytes that are read or written at once
# Not an error of the disk:
CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Failure to write (full disk, quota, file-size limit, permission) is the user's to mend."""
    try:
        yield
    except OSError as error:
        remedy = "free some space or choose a writable folder, then start the same command again"
        raise UserError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error


def append(path: Path, data: bytes, sync: bool = False) -> None:
    """Adds `data` to a file, all of it or nothing. sync: wait until it is on the disk. Raises
    OSError."""
    rest = memoryview(data)
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            while rest:
                rest = rest[file.write(rest) :]
            if sync:
                os.fsync(file.fileno())
        except OSError:
            file.truncate(size)  # half a record would spoil what follows
            raise


def check_space(path: Path, size: int, remedy: str, flag: str = "") -> None:
    """Raises UserError unless a file of `size` bytes fits at `path`, with a twentieth more for what
    else a run writes.

    Blocks that the file has already count as free. Quotas are not seen here; `reserve` notices
    them. remedy: the end of the message. flag: its beginning, such as "--buffer-size 100". Nothing
    is created; folders of `path` need not exist.
    """
    missing = size
    with writing(path):
        if path.exists():
            missing -= path.stat().st_blocks * 512  # of 512 bytes on every system
        folder = path.parent
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
    if missing > 0 and missing + size // 20 > free:
        needs = f"needs {_megabytes(missing + size // 20)}"
        beginning = f"{flag}: {path}" if flag else f"{path}"
        raise UserError(
            f"{beginning} {needs} of disk, of which {_megabytes(free)} are free; {remedy}"
        )


def reserve(path: Path, size: int, remedy: str) -> None:
    """Makes the file at `path` at least `size` bytes long, with blocks of its own. What it holds
    stays.

    By `posix_fallocate`; where a system (macOS) or a file system has none, zeros are written behind
    what is there, which takes as long as the disk needs for them. Raises UserError: no space (also:
    over a quota or a file-size limit) or not writable; a file that was not there before is gone
    then.
    """
    is_new = not path.exists()
    if is_new:  # else most or all of it is there, which a compressing file system would deny
        check_space(path, size, remedy)
    try:
        with open(path, "ab", buffering=0) as file:
            if not _fallocate(file.fileno(), size):
                _append_zeros(file, size)
    except BaseException as error:
        if is_new:  # a failed reservation keeps its blocks
            path.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        problem = f"cannot write {path}, which takes {_megabytes(size)} ({error.strerror or error})"
        raise UserError(f"{problem}; {remedy}") from error


def row_checksums(path: Path, row_size: int, first: int, end: int) -> np.ndarray:
    """CRC-32 of each of the rows first ... end - 1, `row_size` bytes each, of a file: (end -
    first,) uint32.

    Reads in pieces, so that memory does not depend on the size of the file. A row beyond the end
    counts as empty. Raises OSError: the disk cannot read it.
    """
    checksums = np.zeros(end - first, np.uint32)
    rows_per_piece = max(PIECE // row_size, 1)
    with open(path, "rb") as file:
        file.seek(first * row_size)
        for start in range(0, end - first, rows_per_piece):
            stop = min(start + rows_per_piece, end - first)
            piece = memoryview(file.read((stop - start) * row_size))
            for i in range(start, stop):
                offset = (i - start) * row_size
                checksums[i] = zlib.crc32(piece[offset : offset + row_size])
    return checksums


def _fallocate(descriptor: int, size: int) -> bool:
    """Whether the system has reserved the space; False: it, or its file system, cannot. Raises
    OSError: no space."""
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in CANNOT_RESERVE:
            return False
        raise
    return True


def _append_zeros(file, size: int) -> None:
    missing = size - os.fstat(file.fileno()).st_size
    zeros = memoryview(bytes(PIECE))
    while missing > 0:
        missing -= file.write(zeros[:missing])
    os.fsync(file.fileno())  # some file systems notice only now that they are full


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
