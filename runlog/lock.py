"""The lock of a run's folder: one process at a time."""

import contextlib
import fcntl
import os
import weakref
from pathlib import Path

from runlog.disk import writing
from runlog.terminal import UserError

LOCK = ".lock"
ATTEMPTS = 100  # at a folder that other processes, which fail to start, create and remove


class FolderLock:
    """A lock on a folder, which it creates. The kernel releases it however the process dies.

    is_new: whether the folder was empty when it was locked, or has been emptied since.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.descriptor: int | None = None
        self.is_new = False
        self._made_parents = []  # parent folders that it has created, the innermost first

    @property
    def is_held(self) -> bool:
        return self.descriptor is not None

    def acquire(self) -> None:
        """Raises UserError if the folder is in use by another process, not writable, or on a disk
        without locks."""
        self._made_parents = []
        descriptor = self._open_and_lock()
        while not is_file(descriptor, self.folder / LOCK):
            os.close(descriptor)  # of a folder that another process has removed meanwhile
            descriptor = self._open_and_lock()
        self.descriptor = descriptor
        _HELD.add(self)
        self.is_new = os.listdir(self.folder) == [LOCK]
        with contextlib.suppress(OSError):  # only used in the message of another process
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}".encode(), 0)

    def release(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
        self.descriptor = None
        _HELD.discard(self)

    def remove_folder(self) -> None:
        """Removes the folder if it contains only the lock, held by this process, and the parent
        folders that `acquire` has created. Raises OSError if another process has put something into
        one of them in the meantime; that is kept."""
        if os.listdir(self.folder) != [LOCK]:
            return
        (self.folder / LOCK).unlink()
        self.folder.rmdir()
        for parent in self._made_parents:
            parent.rmdir()

    def _open_and_lock(self) -> int:
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            problem = f"{self.folder} is in use by process {pid}"
            raise UserError(f"{problem}; wait until it ends or stop it") from None
        except OSError as error:
            os.close(descriptor)
            with contextlib.suppress(OSError):  # no process can hold a lock here
                self.remove_folder()
            problem = f"cannot lock {self.folder} ({error})"
            raise UserError(f"{problem}; choose a folder on another disk") from None
        return descriptor

    def _open(self) -> int:
        for attempt in range(ATTEMPTS):
            with writing(self.folder):
                try:
                    self._make_folder()
                    return os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT)
                except (FileExistsError, FileNotFoundError):  # removed meanwhile
                    if attempt == ATTEMPTS - 1:
                        raise
        raise AssertionError("the last attempt returns or raises")

    def _make_folder(self) -> None:
        """Creates the folder, and records which parts of its path are new."""
        missing = []
        parent = self.folder.parent
        while not parent.exists() and parent != parent.parent:
            missing.append(parent)
            parent = parent.parent
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(exist_ok=True)
        self._made_parents += missing


def is_file(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at this path."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


# A forked child (for example a worker of AsyncVectorEnv) shares the locks of its parent, and would
# keep them after the parent's death.
_HELD: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _release_in_child() -> None:
    for lock in list(_HELD):
        with contextlib.suppress(OSError):
            lock.release()


os.register_at_fork(after_in_child=_release_in_child)
