"""A memory-mapped file of rows, with a checksum for every row."""

import zlib
from pathlib import Path

import numpy as np

from runlog.disk import reserve, row_checksums, writing
from runlog.terminal import UserError


class DamagedRows(UserError):
    """A file does not hold the expected rows. reason: why, without the remedy."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(f"{reason}; {remedy}")
        self.reason = reason


class MappedRows:
    """Rows of a numpy dtype in a memory-mapped file: `array` (num_rows, ...), and a CRC-32 of each
    row.

    Space is reserved in advance, since a mapped file on a full disk ends the process without a
    message. Call `update_checksum` after writing into a row; the checksums are kept in memory only.

    keep: continue with the existing file; otherwise a new one is started. no_space, damaged: how
    messages end when there is no space, and when the rows are not the expected ones. Raises
    UserError if the disk is too small or not writable, DamagedRows if the file is missing or too
    short.
    """

    def __init__(
        self,
        path: Path,
        dtype: np.dtype,
        shape: tuple[int, ...],
        keep: bool,
        no_space: str,
        damaged: str,
    ):
        self.path = path
        self.damaged = damaged
        size = int(np.prod(shape)) * dtype.itemsize
        if not keep:
            path.unlink(missing_ok=True)
        elif not path.exists() or path.stat().st_size < size:
            raise DamagedRows(f"{path} is missing or too short for the checkpoint", damaged)
        reserve(path, size, no_space)
        self.array = np.memmap(path, dtype, "r+", shape=shape)
        self.row_size = self.array[0].nbytes
        self.checksums = np.zeros(len(self.array), np.uint32)

    def update_checksum(self, row: int) -> None:
        self.checksums[row] = zlib.crc32(self.array[row])

    def read_checksums(self, first: int, end: int) -> None:
        """Computes the checksums of the rows first ... end - 1 from the file. Raises DamagedRows if
        the disk cannot read it."""
        try:
            self.checksums[first:end] = row_checksums(self.path, self.row_size, first, end)
        except OSError as error:
            problem = f"{self.path} cannot be read ({error.strerror})"
            raise DamagedRows(problem, self.damaged) from error

    def flush(self) -> None:
        """Waits until all rows are on disk. Raises UserError if they cannot be written."""
        with writing(self.path):
            self.array.flush()
