import errno
import os
import sys

import pytest

from fusedrnn.lm import files
from fusedrnn.lm.files import lock, write_atomically


def test_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failure_keeps_the_old_file_whole(tmp_path, monkeypatch, failing):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full") as caught:
        write_atomically(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_locked_once(tmp_path):
    pytest.importorskip("fcntl")
    first = lock(tmp_path)
    with pytest.raises(BlockingIOError):
        lock(tmp_path)
    os.close(first)
    os.close(lock(tmp_path))


def test_where_there_are_no_locks_nothing_is_locked(tmp_path, monkeypatch):
    def none(descriptor, operation):
        raise OSError(errno.ENOLCK, "no locks available")

    if sys.platform != "win32":
        monkeypatch.setattr(files.fcntl, "flock", none)
    assert lock(tmp_path) is None
    monkeypatch.setattr(sys, "platform", "win32")
    assert lock(tmp_path) is None


def test_a_folder_that_is_not_there_is_named_by_the_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "nowhere" / "file", b"new")
    assert caught.value.filename == str(tmp_path / "nowhere" / "file")
