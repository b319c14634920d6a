"""Safe files: a file is written completely or not at all, and reading a file never runs code."""

import errno
import glob
import os
import pickle
import re
import socket
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; after the block, it is flushed to the disk and renamed to ``path``.

    A missing folder is created. If the block fails, or the process is killed, the file at ``path`` does not
    change, and the temporary file is removed; after a kill, the next writer removes it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    host = re.sub(r"\W", "", socket.gethostname())
    unfinished = path.with_name(f".{path.stem}.{host}.{os.getpid()}{path.suffix}")  # the suffix sets the format
    for left in path.parent.glob(f".{glob.escape(path.stem)}.{host}.*{path.suffix}"):
        if not _is_running(left.suffixes[-2][1:] if path.suffix else left.suffix[1:]):
            left.unlink(missing_ok=True)
    try:
        yield unfinished
        _sync(unfinished)
        os.replace(unfinished, path)
        if os.name == "posix":
            _sync(path.parent)  # otherwise a power failure could lose the new name
    finally:
        unfinished.unlink(missing_ok=True)


def _sync(path):
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems can't flush a folder
            raise
    finally:
        os.close(handle)


def _is_running(pid):
    if os.name != "posix" or not pid.isdigit():
        return True  # we can't know: assume that it runs
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def save(value: object, path: str | Path) -> None:
    """Write a dict of tensors and plain values to ``path``, completely or not at all. Raises: OSError."""
    with replacing(path) as unfinished, open(unfinished, "wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # torch hides the real error
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(path: str | Path, mmap: bool = False) -> Any:
    """Read what :func:`save` or torch.save wrote: tensors and plain values, never code.

    Raises: FileNotFoundError; a ValueError that says why the file can't be used.
    """
    path = Path(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                    raise ValueError("its contents are larger than the file: it is compressed or damaged")
                for part in archive.namelist():
                    if not mmap or part.endswith("data.pkl"):  # a memory-mapped part is too large to read here
                        _check_sum(archive, part)
        else:
            mmap = False  # files in the format before torch 1.6 can't be memory-mapped
            with open(path, "rb") as file:
                _check_pickle(file.read(1 << 20))
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError("it holds more than tensors and plain values; only these are read") from error
    except Exception as error:  # torch.load can raise almost any error
        what = str(error).split("\n")[0][:200]
        raise ValueError(f"it is damaged, or of another kind ({type(error).__name__}: {what})") from error
    if not all(map(_is_whole, _tensors(value))):
        raise ValueError("it has a tensor that claims more elements than it stores")
    return value


def _check_sum(archive, name):
    """Read a part of an archive; zipfile raises BadZipFile if its CRC-32 differs."""
    with archive.open(name) as part:
        content = part.read(1 << 20)
        if name.endswith("data.pkl"):
            _check_pickle(content + part.read())
        while part.read(1 << 20):
            continue


def _check_pickle(content):
    if b"\nbytearray\n" in content:  # torch would allocate a bytearray of any size
        raise ValueError("it creates a bytearray, which no file of tensors and plain values needs")


def _is_whole(tensor):
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _tensors(value):
    """All tensors in nested dicts, lists and tuples; each container is visited once."""
    seen, waiting = set(), [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


def cache_folder() -> Path:
    """The user's folder for files that can be computed again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rnn_lstm_captioning"
