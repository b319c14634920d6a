"""A disk that fails. It counts every write, flush and rename of the storage, and from a given one on, all fail."""

import errno
import os
import signal

from rnn_lstm_captioning import storage


class FailingDisk:
    """From operation number ``at`` on, no space is left. With ``kill``, the process is killed instead.

    Use it as a context manager. ``count`` is the number of operations so far.
    """

    def __init__(self, at, kill=False):
        self.at, self.kill, self.count = at, kill, 0

    def operation(self):
        if self.count >= self.at:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.count += 1

    def __enter__(self):
        self.real = os.fsync, os.replace
        os.fsync = lambda *args: (self.operation(), self.real[0](*args))[1]
        os.replace = lambda *args: (self.operation(), self.real[1](*args))[1]
        storage.open = self.open
        return self

    def __exit__(self, *_):
        os.fsync, os.replace = self.real
        del storage.open

    def open(self, path, mode="r", **keywords):
        self.operation()
        file = open(path, mode, **keywords)  # noqa: SIM115, the caller closes it
        return _Watched(file, self.operation) if "w" in mode else file


class _Watched:
    def __init__(self, file, operation):
        self.file, self.operation = file, operation

    def write(self, data):
        self.operation()
        written = self.file.write(data)
        self.file.flush()  # otherwise Python delays the write
        return written

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
