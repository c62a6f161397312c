"""SIGTERM in a process of its own, as it has to be in the main thread."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

from bento_kv.bento.drain import Drain
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.engine import Engine
from tests.engine.fakes import FakeDecoder, letters

ROOT = Path(__file__).parents[2]

SERVER = """
import signal, sys, threading, time
from dataclasses import replace
from bento_kv.engine.config import EngineConfig
from bento_kv.bento.drain import Drain
from bento_kv.engine.engine import Engine
from bento_kv.errors import EngineClosedError
from tests.engine.fakes import FakeDecoder, always, client, letters
from tests.engine.faulty import FaultyDecoder, Hang

hang, stop = Hang(), threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())  # the server's own handler
decoder = FakeDecoder(logits=always("abc"), before_step=lambda plan: time.sleep(0.01))
engine = Engine(FaultyDecoder(decoder, hang), letters, EngineConfig(slots=1, step_timeout=0.2))
engine.start()
Drain(engine, timeout=float(sys.argv[1])).install()
waiters = [client(request_id=str(i), temperature=0, max_tokens=40) for i in range(2)]
for who in waiters:
    engine.submit(who.request)
if sys.argv[2] == "hang":
    hang.arm()
    hang.began.wait()
print("ready", flush=True)
while engine.accepting:
    time.sleep(0.001)
try:
    engine.submit(client(request_id="late").request)
except EngineClosedError as error:
    print(error, stop.is_set(), flush=True)
stop.wait()
print([who.finish_reason for who in waiters], flush=True)
"""


def run(timeout: float, what: str = "", *, then: signal.Signals | None = None) -> tuple[int, list[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(timeout), what], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    if then is not None:
        assert process.stdout.readline() == f"{REFUSED}\n"  # it drains
        process.send_signal(then)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output.splitlines()


REFUSED = "the engine is shutting down; try another server False"


def test_what_runs_is_finished_before_the_server_hears_of_it() -> None:
    assert run(60) == (0, [REFUSED, "['length', 'length']"])


def test_being_told_twice_by_one_stop_aborts_nothing() -> None:
    """systemd signals every process of a service, and the supervisor its workers besides."""
    assert run(60, then=signal.SIGTERM) == (0, ["['length', 'length']"])


def test_an_interrupt_ends_it_at_once() -> None:
    assert run(60, then=signal.SIGINT)[0] == -signal.SIGINT


def test_what_does_not_end_in_time_is_aborted() -> None:
    code, (*_, ends) = run(0)
    assert code == 0
    assert "abort" in ends


def test_a_process_whose_step_hangs_ends_all_the_same() -> None:
    code, output = run(0.1, "hang")
    assert code == 1
    assert output in ([REFUSED], [])  # the watchdog may have been sooner than the signal


def test_only_the_main_thread_hears_signals() -> None:
    failed: list[BaseException] = []

    def install() -> None:
        try:
            Drain(Engine(FakeDecoder(), letters, EngineConfig()), timeout=1).install()
        except ValueError as error:
            failed.append(error)

    thread = threading.Thread(target=install)
    thread.start()
    thread.join()
    assert "main thread" in str(failed[0])
