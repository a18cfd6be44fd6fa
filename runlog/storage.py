"""Files that a kill at any moment leaves whole: JSON, checkpoints, and what they may hold."""

import contextlib
import io
import json
import os
import shlex
import zipfile
from pathlib import Path

import torch

from runlog.disk import writing
from runlog.terminal import UserError, reason


class Damaged(Exception):
    """A file that cannot be used; the text says why."""


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Whoever looks at `path`, also after a kill, sees the old or the new content."""
    temp = path.with_name(path.name + ".tmp")
    with writing(path):
        try:
            path.parent.mkdir(exist_ok=True)
            with open(temp, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temp.unlink(missing_ok=True)
            raise
        os.replace(temp, path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in this folder last through a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_json(path: Path, content: dict) -> None:
    write_atomic(path, (json.dumps(content, indent=2, default=str) + "\n").encode())


def read_json(path: Path) -> dict:
    """A file of JSON that holds a dict; {} if it is missing. Raises UserError if it cannot be read,
    Damaged if it holds something else."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; make it a readable file, or move it away"
        ) from None
    try:
        found = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged ({reason(error)})") from None
    if not isinstance(found, dict):
        raise Damaged(
            f"{path} is damaged (it holds {str(found)[:40]!r} instead of keys and values)"
        )
    return found


def bytes_or_none(path: Path) -> bytes | None:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return None


def write_pt(path: Path, content: dict) -> None:
    buffer = io.BytesIO()  # torch's own file writer turns a full disk into a C++ error
    torch.save(content, buffer)
    write_atomic(path, buffer.getbuffer())


def load_pt(path: Path) -> dict:
    """torch.save writes a zip with a CRC-32 for each record. Raises Damaged unless every one is
    right."""
    try:
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                raise ValueError(f"wrong checksum of {bad}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        raise Damaged(
            f"{path} is {'damaged' if path.exists() else 'missing'} ({reason(error)})"
        ) from None


def plain(value, where: str):
    """`value` as `weights_only=True` can read it; a tensor on the CPU and, if a view, without the
    rest of its base."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return value.clone() if value.untyped_storage().nbytes() != value.nbytes else value
    if isinstance(value, dict):
        return {key: plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)([plain(item, f"{where}[{i}]") for i, item in enumerate(value)])
    if value is not None and type(value) not in (bool, int, float, str):
        allowed = "a checkpoint holds tensors, numbers, strings, dicts, lists"
        raise TypeError(f"{where} is a {type(value).__name__}; {allowed}")
    return value


def keep_or_fresh(folder: Path) -> str:
    """The end of a message on a folder that cannot be used as it is: what keeps its files, and what
    deletes them."""
    away = f"mv {shlex.quote(str(folder))} {shlex.quote(f'{folder}.bak')}"
    keep = f"to keep its files, move it away ({away}) or choose another --runs-dir"
    return f"{keep}; or use --fresh to delete them"
