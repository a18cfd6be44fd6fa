"""Files: write errors; for large memory-mapped files, the disk space and the checksums of rows.

If a mapped file has unallocated blocks on a full disk, or is truncated, touching such a page ends
the process with a bus error (SIGBUS) and no message. Space is therefore reserved, and the size
checked, in advance.
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

PIECE = 2**24  # bytes read or written at once
# Not disk errors:
CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failure to write (full disk, quota, file-size limit, permission) into a UserError."""
    try:
        yield
    except OSError as error:
        remedy = "free some space or choose a writable folder, then start the same command again"
        raise UserError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error


def append(path: Path, data: bytes, sync: bool = False) -> None:
    """Appends `data` to a file, all of it or nothing. sync: wait until it is on disk. Raises
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
            file.truncate(size)  # a partial record would spoil what follows
            raise


def check_space(path: Path, size: int, remedy: str, flag: str = "") -> None:
    """Raises UserError unless a file of `size` bytes fits at `path`, plus a twentieth for the other
    files of a run.

    Blocks that the file already has count as free. Quotas are not detected here, but by `reserve`.
    remedy: the end of the message. flag: its beginning, such as "--buffer-size 100". Nothing is
    created; folders of `path` need not exist.
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
    """Makes the file at `path` at least `size` bytes long, with allocated blocks. Its content is
    kept.

    Uses `posix_fallocate`; where the system (macOS) or the file system lacks it, zeros are
    appended, which takes as long as writing them. Raises UserError if there is no space (also: over
    a quota or a file-size limit) or the file is not writable; a file that did not exist before is
    then removed.
    """
    is_new = not path.exists()
    if is_new:  # an old file has its blocks, even if a compressing file system reports fewer
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
    """CRC-32 of each of the rows first ... end - 1 of a file, `row_size` bytes each: (end - first,)
    uint32.

    Reads in pieces, so that memory does not depend on the size of the file. A row beyond the end
    counts as empty. Raises OSError if the disk cannot read it.
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
    """Whether the system has reserved the space; False if it, or its file system, does not support
    this. Raises OSError if there is no space."""
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
    os.fsync(file.fileno())  # some file systems detect only here that they are full


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
