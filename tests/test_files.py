from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtrain import files
from jaxtrain.errors import RunError


@pytest.mark.parametrize("flush", [True, False])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, flush: bool) -> None:
    path = tmp_path / "a.txt"
    with files.replacing(path, flush=flush) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    with contextlib.suppress(ValueError), files.replacing(path, flush=flush) as temporary:
        temporary.write_text("half")
        raise ValueError
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_text_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"a\.txt could not be written: No such file or directory$"):
        files.write_text(tmp_path / "nowhere" / "a.txt", "x")


def test_the_lock_is_for_one_process_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys\nfrom pathlib import Path\nfrom jaxtrain import files\n"
        "held = files.try_lock(Path(sys.argv[1]))\nprint(held is not None, flush=True)\ninput()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "True\n"
    assert files.try_lock(path) is None
    with pytest.raises(TimeoutError), files.file_lock(path, timeout=0.1):
        pass
    other.kill()
    other.wait()
    with files.file_lock(path, timeout=5.0):
        assert files.try_lock(path) is None


def test_a_file_system_without_locks_is_warned_about_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(code: int) -> None:
        def flock(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr("fcntl.flock", flock)

    said: list[int] = []
    refuse(errno.ENOSYS)
    held = files.try_lock(tmp_path / "lock", lambda: said.append(1))
    assert held is not None
    os.close(held)
    assert said == [1]
    with files.file_lock(tmp_path / "lock", timeout=0.1):
        pass
    refuse(errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.try_lock(tmp_path / "lock", lambda: said.append(1))
