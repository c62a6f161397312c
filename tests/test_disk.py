"""What is written is there whole or not at all, and what a killed process leaves is known and removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bento_kv import disk


@contextmanager
def process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `code`, and has said so by a line."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        started.stdout.readline()
        try:
            yield started
        finally:
            started.kill()


HALF_A_FILE = """
    import sys, time
    from pathlib import Path
    from bento_kv.disk import beside
    with beside(Path(sys.argv[1])) as part:
        part.write_bytes(b"half")
        print("written", flush=True)
        time.sleep(600)
"""
HALF_A_FOLDER = """
    import sys, time
    from pathlib import Path
    from bento_kv.disk import folder_beside
    with folder_beside(Path(sys.argv[1])) as part:
        (part / "half").write_bytes(b"half")
        print("written", flush=True)
        time.sleep(600)
"""
SCRATCH = """
    import time
    from bento_kv.disk import scratch
    with scratch("test") as folder:
        (folder / "half").write_bytes(b"half")
        print("written", flush=True)
        time.sleep(600)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("code", [HALF_A_FILE, HALF_A_FOLDER])
def test_a_leftover_is_removed_when_its_process_is_dead_and_not_before(code: str, tmp_path: Path) -> None:
    target = tmp_path / "it"
    with process(code, target) as writer:
        disk.clean(tmp_path, "it")
        (left,) = names(tmp_path)
        assert disk.is_part(left)
        disk.write_whole(target, b"whole")  # beside the other's
        assert names(tmp_path) == [left, "it"]
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert names(tmp_path) == [left, "it"]
    disk.clean(tmp_path, "another")
    assert names(tmp_path) == [left, "it"]
    disk.write_whole(target, b"again")
    assert names(tmp_path) == ["it"]
    assert target.read_bytes() == b"again"


def test_what_is_left_below_tmpdir_is_removed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "somebody-elses").mkdir()
    with process(SCRATCH) as writer:
        disk.clean_scratch()
        assert len(names(tmp_path)) == 2
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    disk.clean_scratch()
    assert names(tmp_path) == ["somebody-elses"]


def test_what_only_looks_like_a_leftover_is_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("mine")
    link = tmp_path / f".it.{'0' * 16}.bento_kv-part"
    link.symlink_to(kept)
    os.mkfifo(tmp_path / f".it.{'1' * 16}.bento_kv-part")
    disk.clean(tmp_path)
    assert (kept / "file").read_text() == "mine"
    assert link.is_symlink()


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "it"
    target.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        disk.write_whole(target, b"new")
    assert names(tmp_path) == ["it"]
    assert target.read_bytes() == b"old"


def test_links_stay_links_and_pipes_are_written_to(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    disk.write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    disk.write_whole(Path("/dev/null"), b"nothing")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_takes_the_place_of_one(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:  # as where the system has no call for it
        monkeypatch.setattr(disk, "_exchange", lambda *_: False)
    target = tmp_path / "it"
    target.mkdir()
    (target / "old").touch()
    with disk.folder_beside(target) as part:
        (part / "new").touch()
        disk.replace(part, target)
    assert names(tmp_path) == ["it"]
    assert names(target) == ["new"]
    with disk.folder_beside(target) as part, pytest.raises(FileExistsError):
        disk.put(part, target)
    assert names(tmp_path) == ["it"]


def test_one_process_at_a_time_and_none_for_a_dead_one(tmp_path: Path) -> None:
    code = """
        import sys, time
        from pathlib import Path
        from bento_kv.disk import alone
        with alone(Path(sys.argv[1]), lambda: None):
            print("mine", flush=True)
            time.sleep(600)
    """
    waited = []
    with process(code, tmp_path / "lock") as holder:

        def waiting() -> None:
            waited.append(True)
            holder.send_signal(signal.SIGKILL)

        with disk.alone(tmp_path / "lock", waiting):
            assert waited == [True]
    with disk.alone(tmp_path / "lock", lambda: waited.append(False)):
        assert waited == [True]


def test_where_no_lock_can_be_made_nobody_is_kept_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with disk.alone(tmp_path / "file" / "lock", lambda: None):
        pass
