"""Files that stay whole after a kill at any moment: JSON, checkpoints, and what they may
contain."""

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
    """A reader of `path` sees either the old or the new content, also after a kill."""
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
    """Makes renames in this folder survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_json(path: Path, content: dict) -> None:
    write_atomic(path, (json.dumps(content, indent=2, default=str) + "\n").encode())


def read_json(path: Path) -> dict:
    """Reads a JSON file that contains a dict; {} if it is missing. Raises UserError if it cannot be
    read, Damaged if it contains something else."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except NotADirectoryError:
        raise UserError(f"{path.parent} is a file, not a run's folder; move it away") from None
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
    buffer = io.BytesIO()  # torch's file writer turns a full disk into a C++ error
    torch.save(content, buffer)
    write_atomic(path, buffer.getbuffer())


def load_pt(path: Path) -> dict:
    """Loads a file of torch.save, which writes a zip with a CRC-32 for each record. Raises Damaged
    unless all of them are correct."""
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
    """`value` in a form that `weights_only=True` can read; tensors on the CPU and, if views,
    without the rest of their base."""
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
    """The end of a message about a folder that cannot be used: how to keep its files, and how to
    delete them."""
    away = f"mv {shlex.quote(str(folder))} {shlex.quote(f'{folder}.bak')}"
    keep = f"to keep its files, move it away ({away}) or choose another --runs-dir"
    return f"{keep}; or use --fresh to delete them"
