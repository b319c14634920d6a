"""Safe files: a file is written completely or not at all, and reading a file never runs code."""

import errno
import functools
import glob
import hashlib
import os
import pickle
import pickletools
import re
import socket
import struct
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import InputError
from .files import check_unprotected, open_file


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; after the block, it is flushed to the disk and renamed to ``path``.

    A missing folder is created. If the block fails, or the process is killed, the file at ``path`` does not
    change, and the temporary file is removed; after a kill, the next writer removes it.
    """
    path = Path(path)
    check_unprotected(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    host = re.sub(r"\W", "", socket.gethostname())[:30]
    stem = path.stem
    if len(os.fsencode(stem)) > 150:  # a name has at most 255 bytes
        stem = hashlib.sha256(os.fsencode(stem)).hexdigest()
    unfinished = path.with_name(f".{stem}.{host}.{os.getpid()}{path.suffix}")  # the suffix sets the format
    for left in path.parent.glob(f".{glob.escape(stem)}.{host}.*{path.suffix}"):
        if not is_running(left.suffixes[-2][1:] if path.suffix else left.suffix[1:]):
            left.unlink(missing_ok=True)
    try:
        yield unfinished
        _sync(unfinished)
        os.replace(unfinished, path)
        if os.name == "posix":
            _sync(path.parent)  # otherwise a power failure could lose the new name
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, completely or not at all; a file name in it that is not valid text is escaped."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def only_one(path: str | Path, what: str) -> Iterator[None]:
    """Inside the block, no other process can enter a block for this path; after a kill, the path is free again.

    Args: path, of a small file that is created, and stays empty; what, the path is used for, for the message.
    Raises: InputError if another process is inside. Where files can't be locked, nothing is checked.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        try:
            _lock(file)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise InputError(f"another process is {what}: wait until it ends, or choose another name") from error
        try:
            yield
        finally:
            if os.name == "posix":  # elsewhere an open file can't be removed
                path.unlink(missing_ok=True)


def _lock(file):
    if os.name == "posix":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]


def _sync(path):
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems can't flush a folder
            raise
    finally:
        os.close(handle)


def is_running(pid: str) -> bool:
    """Whether a process of this machine runs, as far as we can know."""
    if os.name != "posix" or not (pid.isascii() and pid.isdigit()):
        return True  # we can't know: assume that it runs
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
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

    Args: mmap, map the tensors into memory, read-only: pages are read when they are used, and all processes share them,
        so the file can be larger than the memory. Nobody may write into such a tensor.
    Raises: FileNotFoundError; a ValueError that says why the file can't be used.
    """
    path = Path(path)
    with open_file(path) as file:
        try:
            if _is_archive(file):
                _check_directory(file)
                with zipfile.ZipFile(file) as archive:
                    _check_archive(archive, file, all_parts=not mmap)
                    value = _map_archive(archive, path) if mmap else None
            else:
                mmap = False  # files in the format before torch 1.6 can't be memory-mapped
                storages: dict[str, int] = {}
                for _ in range(5):  # a number, a version, the system, the value, the names of its storages
                    storages |= _storages_of(file)
                _check_size(storages, file)
            if not mmap:
                value = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError("it holds more than tensors and plain values; only these are read") from error
        except Exception as error:  # torch.load can raise almost any error
            what = str(error).split("\n")[0][:200]
            raise ValueError(f"it is damaged, or of another kind ({type(error).__name__}: {what})") from error
    if not all(map(_is_whole, _tensors(value))):
        raise ValueError("it has a tensor that claims more elements than it stores")
    return value


def fingerprint(path: str | Path) -> str:
    """A string that changes with the contents of a file that :func:`load` can read, without reading gigabytes.

    It has the size, the time of the last change, and the CRC-32 of every part, which an archive stores; a file in the
    format before torch 1.6 stores none, and is read.
    """
    digest, status = hashlib.sha256(), os.stat(path)
    with open_file(path) as file:
        if _is_archive(file):
            with zipfile.ZipFile(file) as archive:
                digest.update(repr([(part.filename, part.CRC) for part in archive.infolist()]).encode())
        else:
            while content := file.read(1 << 20):
                digest.update(content)
    return f"{status.st_size} bytes of {status.st_mtime_ns}, {digest.hexdigest()}"


def _is_archive(file):
    """Whether torch will read a file as a zip archive: it looks at the first bytes, zipfile at the last ones."""
    start = file.read(4)
    file.seek(0)
    return start == b"PK\3\4"


def _check_directory(file):
    """Raise ValueError if a zip file has two directories, in 32 and 64 bits, that differ: each reader uses another."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - 98))
    end = file.read()
    if end[-22:-18] != b"PK\5\6":
        raise ValueError("it has something after its end")
    if end[-42:-38] == b"PK\6\7":
        if len(end) < 98 or end[:4] != b"PK\6\6":
            raise ValueError("its directory is damaged")
        short, long = struct.unpack("<HII", end[-12:-2]), struct.unpack("<QQQ", end[32:56])
        if any(a != b and a != limit for a, b, limit in zip(short, long, (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF))):
            raise ValueError("its two directories differ")


def _check_archive(archive, file, all_parts):
    """Raise ValueError if an archive's parts claim more than it holds; zipfile raises BadZipFile for a wrong CRC-32."""
    parts = archive.infolist()
    if sum(part.file_size for part in parts) > os.fstat(file.fileno()).st_size:
        raise ValueError("its contents are larger than the file: it is compressed or damaged")
    names = [part.filename for part in parts]
    if len({name.split("/")[0] for name in names}) > 1 or len(set(names)) < len(names):
        raise ValueError("it holds more than one value")
    for name in names:
        if name.endswith("/data.pkl"):
            with archive.open(name) as part:
                _check_size(_storages_of(part), file)
        if all_parts or name.endswith("/data.pkl"):  # a memory-mapped part is too large to read here
            with archive.open(name) as part:
                while part.read(1 << 20):
                    continue


def _storages_of(file):
    """Read one pickle without making any of its objects. Returns: the bytes that each of its storages claims."""
    start = file.tell()
    for operation, value, _ in pickletools.genops(file):
        if operation.name in ("PUT", "LONG_BINPUT") and int(value or 0) > 1e7:  # room is made for all smaller ones
            raise ValueError("its pickle stores too many values")
    file.seek(start)
    reader = _ClaimReader(file)
    reader.load()
    return reader.storages


class _ClaimReader(pickle.Unpickler):
    """Makes nothing but an empty object for everything that is not a plain value."""

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}

    def find_class(self, module, name):
        if name == "bytearray":  # torch would allocate a bytearray of any size
            raise ValueError("it creates a bytearray, which no file of tensors and plain values needs")
        return type(name, (_Nothing,), {})

    def persistent_load(self, claim):
        _, kind, key, _, elements = claim[:5]  # a torch storage
        self.storages[key] = elements * DTYPES.get(kind.__name__, torch.uint8).itemsize


def read_only(array: np.ndarray) -> torch.Tensor:
    """A tensor that shares the memory of an array in which nobody may write: torch has no such tensors, and warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _map_archive(archive, path):
    """The value in an archive; its tensors are read-only maps of the file. (torch's own maps are private: the system
    must have memory for every page of them.)"""
    offsets = {part.filename.split("/", 1)[1]: _data_offset(archive, part) for part in archive.infolist()}
    sizes = {part.filename.split("/", 1)[1]: part.file_size for part in archive.infolist()}
    name = archive.namelist()[0].split("/")[0]
    if "byteorder" in sizes and archive.read(f"{name}/byteorder") != sys.byteorder.encode():
        raise ValueError("it was written on a machine with another byte order")

    def storage(key):
        part = f"data/{key}"
        if not sizes[part]:
            return torch.empty(0, dtype=torch.uint8)
        return read_only(np.memmap(path, np.uint8, "r", offsets[part], (sizes[part],)))

    with archive.open(f"{name}/data.pkl") as part:
        return _MapReader(part, storage).load()


def _data_offset(archive, part):
    """Where a part's bytes begin in the file: after its local header, whose length it says itself."""
    archive.fp.seek(part.header_offset)
    header = archive.fp.read(30)
    if header[:4] != b"PK\3\4" or part.compress_type != zipfile.ZIP_STORED:
        raise ValueError("it is compressed or damaged")
    return part.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))


class _MapReader(pickle.Unpickler):
    """Makes plain values, and tensors from the storages that ``storage(key)`` gives, uint8 (bytes,); nothing else."""

    def __init__(self, file, storage):
        super().__init__(file)
        self.storage = functools.cache(storage)

    def find_class(self, module, name):
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: storage.as_strided(size, stride, offset)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module in ("torch", "torch.storage") and name in DTYPES:
            return DTYPES[name]
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, claim):
        _, dtype, key, _, elements = claim
        content = self.storage(key)
        if content.data_ptr() % dtype.itemsize:
            content = content.clone()  # not aligned: another program wrote it
        return content.view(dtype)[:elements]


class _Nothing:
    def __new__(cls, *_, **__):
        return object.__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _):
        pass

    def __setitem__(self, _, __):
        pass


DTYPES = {  # of torch's storages
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip


def _check_size(storages, file):
    if sum(storages.values()) > os.fstat(file.fileno()).st_size:
        raise ValueError("its tensors claim to be larger than the file")


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
