"""Whether a fault at a worker's start ends its server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bento_kv.bento import starting
from bento_kv.errors import DecoderError


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Signals that were sent, by a process that takes its parent for its server."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setenv(starting._SERVER, f"{os.getppid()}:{tmp_path / 'fault'}")
    monkeypatch.setattr(starting, "_outlive_nobody", lambda server: None)
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)) if number else None)
    return sent


def _fail() -> None:
    with pytest.raises(DecoderError), starting.starting():
        raise DecoderError("no memory today")


def test_the_first_fault_ends_the_server(killed: list[tuple[int, int]], tmp_path: Path) -> None:
    _fail()
    assert killed == [(os.getppid(), signal.SIGTERM)]
    assert (tmp_path / "fault").read_text() == "no memory today"


def test_it_ends_though_the_sentence_cannot_be_written(killed: list[tuple[int, int]], tmp_path: Path) -> None:
    (tmp_path / "fault").mkdir()
    with pytest.raises(IsADirectoryError), starting.starting():
        raise DecoderError("no memory today")
    assert killed


def test_once_a_worker_has_started_the_others_go_on(killed: list[tuple[int, int]], tmp_path: Path) -> None:
    with starting.starting():
        pass
    _fail()
    assert not killed
    assert not (tmp_path / "fault").exists()


def test_what_was_loaded_is_left_alone_by_the_garbage_collector_and_threads_switch_soon() -> None:
    settled = "import gc, sys; from bento_kv.bento.starting import settle; settle(); "
    told = settled + "print(gc.get_freeze_count(), sys.getswitchinterval())"
    process = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True)
    frozen, interval = process.stdout.split()
    assert int(frozen) > 10_000
    assert float(interval) < 0.005
