"""What is written is there whole or not at all, and what a killed process leaves is known and removed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bento_kv import disk
from bento_kv.locks import alone, lock


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
        from bento_kv.locks import alone
        with alone(Path(sys.argv[1]), lambda: None):
            print("mine", flush=True)
            time.sleep(600)
    """
    waited = []
    with process(code, tmp_path / "lock") as holder:

        def waiting() -> None:
            waited.append(True)
            holder.send_signal(signal.SIGKILL)

        with alone(tmp_path / "lock", waiting):
            assert waited == [True]
    with alone(tmp_path / "lock", lambda: waited.append(False)):
        assert waited == [True]


def test_where_no_lock_can_be_made_nobody_is_kept_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with alone(tmp_path / "file" / "lock", lambda: None):
        pass


def test_a_lock_file_that_may_only_be_read_keeps_others_out_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def another_users(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, mode)

    (tmp_path / "lock").touch()
    monkeypatch.setattr(os, "open", another_users)
    waited: list[bool] = []
    with alone(tmp_path / "lock", lambda: None):
        held = opened(tmp_path / "lock", os.O_RDONLY)
        waited.append(not lock(held, wait=False))
        os.close(held)
    assert waited == [True]


def test_where_nothing_can_be_made_it_says_so() -> None:
    """There is a /proc, and it takes no folders, with the error of one that is not there."""
    with pytest.raises(OSError, match="/proc"), disk.folder_beside(Path("/proc/decoder")):
        pass
    with pytest.raises(OSError, match="/proc"):
        disk.write_whole(Path("/proc/decoder"), b"")


def test_a_parent_that_goes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> int:
        (tmp_path / "parent").rmdir()
        raise FileNotFoundError

    (tmp_path / "parent").mkdir()
    monkeypatch.setattr(disk, "_open_folder", gone)
    with pytest.raises(FileNotFoundError, match="parent"), disk.folder_beside(tmp_path / "parent" / "it"):
        pass


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_keeps_its_mode_and_owner(mode: int, tmp_path: Path) -> None:
    target = tmp_path / "it"
    target.write_bytes(b"old")
    target.chmod(mode)
    if os.geteuid() == 0:
        os.chown(target, 12345, 12345)
    before = target.stat()
    disk.write_whole(target, b"new")
    after = target.stat()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(after.st_mode) == mode
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)


def test_a_file_that_is_a_mount_is_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    target = tmp_path / "it"
    target.write_bytes(b"older")
    number = target.stat().st_ino
    monkeypatch.setattr(os, "replace", busy)
    disk.write_whole(target, b"new")
    assert (target.read_bytes(), target.stat().st_ino) == (b"new", number)
    assert names(tmp_path) == ["it"]


def dies_after(renames: int, real: Callable[..., Any]) -> Callable[..., Any]:
    def rename(*arguments: Any) -> Any:
        nonlocal renames
        if not renames:
            os.kill(os.getpid(), signal.SIGKILL)
        renames -= 1
        return real(*arguments)

    return rename


def killed_at_each_rename(
    prepare: Callable[[], object], work: Callable[[], object], check: Callable[[], object]
) -> int:
    """How many renames the work takes; it is killed in a child before each of them, then done, and checked each time."""
    for number in range(20):
        prepare()
        child = os.fork()
        if child == 0:
            os.rename = os.replace = dies_after(number, os.rename)
            try:
                work()
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        check()
        if not os.WIFSIGNALED(status):
            return number
    raise AssertionError("it never ends")


def test_a_folder_replaced_in_two_steps_is_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_exchange", lambda *_: False)  # as where the system has no call for it
    target = tmp_path / "it"

    def prepare() -> None:
        target.mkdir(exist_ok=True)
        for path in target.iterdir():
            path.unlink()
        (target / "old").touch()

    def work() -> None:
        with disk.folder_beside(target) as part:
            (part / "new").touch()
            disk.replace(part, target)

    def check() -> None:
        disk.clean(tmp_path, "it")
        assert names(tmp_path) == ["it"]
        assert names(target) in (["old"], ["new"])

    assert killed_at_each_rename(prepare, work, check) == 2


@pytest.mark.parametrize("had_data", [True, False])
@pytest.mark.parametrize("has_data", [True, False])
def test_a_file_and_what_belongs_to_it_are_replaced_together(had_data: bool, has_data: bool, tmp_path: Path) -> None:
    target, data = tmp_path / "it", tmp_path / "it.data"

    def put(place: Path, content: str, with_data: bool) -> None:
        (place / "it").write_text(content)
        if with_data:
            (place / "it.data").write_text(content)

    def prepare() -> None:
        data.unlink(missing_ok=True)
        put(tmp_path, "old", had_data)

    def work() -> None:
        with disk.folder_beside(target) as part:
            put(part, "new", has_data)
            disk.replace_together(part, target, [data])

    def check() -> None:
        disk.clean(tmp_path, "it")
        content = target.read_text()
        if had_data if content == "old" else has_data:
            assert data.read_text() == content
        assert names(tmp_path) in (["it"], ["it", "it.data"])

    assert killed_at_each_rename(prepare, work, check) == 2 + had_data + has_data
    assert target.read_text() == "new"
    assert data.exists() == has_data


def test_what_is_set_aside_comes_back_where_the_new_cannot_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, data = tmp_path / "it", tmp_path / "it.data"
    target.write_text("old")
    data.write_text("old")
    replaced = os.replace

    def fails(part: Path, place: Path) -> None:
        if part.read_text() == "new" and place == target:
            raise OSError(28, "No space left on device")
        replaced(part, place)

    monkeypatch.setattr(os, "replace", fails)
    with disk.folder_beside(target) as part:
        (part / "it").write_text("new")
        (part / "it.data").write_text("new")
        with pytest.raises(OSError, match="No space"):
            disk.replace_together(part, target, [data])
    assert (target.read_text(), data.read_text()) == ("old", "old")
    assert names(tmp_path) == ["it", "it.data"]
