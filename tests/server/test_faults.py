"""Faults put into a served decoder: what clients saw, what the process did, and that it serves again afterwards.

Each case is a row of the table in docs/guides/operate.md, word for word.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from tests.engine.faulty import Fault, FaultyDecoder, Hang, at, marked, nan_for, raises, together, truncated
from tests.server.world import MODEL, World, serving

OPERATIONS = Path(__file__).parents[2] / "docs" / "guides" / "operate.md"
MARK = ord("Z")
GOOD = ["say:hello|", "say:good morning|", "say:yes|"]
BAD = "Z say:never|"
ERROR = "error"

MARKED_FAIL = [*(prompt[4:-1] for prompt in GOOD), ERROR]
NONE_FAIL = [*MARKED_FAIL[:-1], "never"]
ALL_FAIL = [ERROR] * 4


@dataclass(frozen=True)
class Case:
    """A fault and what comes of it.

    Attributes:
        what: the fault, as in the table.
        fault: what goes wrong.
        outcomes: what each of four clients gets: three whose prompts are healthy, one whose prompt is marked.
        clients, process: the same in words, as in the table.
    """

    what: str
    fault: Fault
    outcomes: list[str]
    clients: str
    process: str


CASES = [
    Case(
        "every step with one request in it raises",
        raises(RuntimeError("secret detail"), marked(MARK)),
        MARKED_FAIL,
        "that request 500 `internal_error`, all others their whole answers",
        "tries the rows of the step alone, ends the one that fails",
    ),
    Case(
        "the same, after keys and values were written",
        raises(RuntimeError("secret detail"), marked(MARK), after=True),
        MARKED_FAIL,
        "that request 500 `internal_error`, all others their whole answers",
        "writes the rows' positions again, row by row",
    ),
    Case(
        "one step raises, once",
        raises(RuntimeError("secret detail"), at(4)),
        NONE_FAIL,
        "nothing",
        "tries the rows of the step alone",
    ),
    Case(
        "every step raises",
        raises(RuntimeError("secret detail"), lambda seen: True),
        ALL_FAIL,
        "500 `internal_error`, each request",
        "ends each, and takes the next",
    ),
    Case(
        "a step of several requests runs out of memory",
        raises(MemoryError(), together),
        NONE_FAIL,
        "nothing; answers come slower",
        "tries the rows of the step alone",
    ),
    Case(
        "one request's step runs out of memory",
        raises(MemoryError(), marked(MARK)),
        MARKED_FAIL,
        "that request 500 `internal_error`, all others their whole answers",
        "ends it, and takes the next",
    ),
    Case(
        "NaN in one request's logits",
        nan_for(MARK),
        MARKED_FAIL,
        "that request 500 `internal_error`, all others their whole answers",
        "ends it, and takes the next",
    ),
    Case(
        "logits of a wrong shape",
        truncated,
        ALL_FAIL,
        "500 `internal_error`, each request",
        "ends each, and takes the next",
    ),
]


def ask(world: World, prompt: str, *, stream: bool) -> str:
    """The answer, or that there was an error; in a stream, after a true beginning of the answer."""
    text, failure = "", None
    with world.client() as client:
        try:
            if not stream:
                return client.completions.create(model=MODEL, prompt=prompt).choices[0].text
            for chunk in client.completions.create(model=MODEL, prompt=prompt, stream=True):
                text += chunk.choices[0].text
        except openai.APIError as error:
            failure = error
    if failure is None:
        return text
    assert failure.code == "internal_error"
    assert "secret" not in str(failure)
    assert prompt[prompt.index("say:") + 4 : -1].startswith(text)
    assert stream or (isinstance(failure, openai.APIStatusError) and failure.status_code == 500)
    return ERROR


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", CASES, ids=[case.what for case in CASES])
def test_faults(case: Case, stream: bool) -> None:
    with serving(wrap=lambda decoder: FaultyDecoder(decoder, case.fault)) as world, ThreadPoolExecutor(4) as pool:
        prompts = [*GOOD, BAD]
        assert list(pool.map(lambda prompt: ask(world, prompt, stream=stream), prompts)) == case.outcomes
        world.wait_until_idle()
        assert world.engine.accepting
        assert len(world.observer.reasons) == 4
        world.decoder.fault = None
        assert list(pool.map(lambda prompt: ask(world, prompt, stream=stream), prompts)) == NONE_FAIL
        world.wait_until_idle()
    world.engine.check_books()


def test_a_step_that_hangs() -> None:
    hang, long = Hang(), "ab" * 1000
    with (
        serving(wrap=lambda decoder: FaultyDecoder(decoder, hang), config={"step_timeout": 0.05}) as world,
        ThreadPoolExecutor(4) as pool,
    ):
        answers = [pool.submit(ask, world, f"say:{long}|", stream=True) for _ in range(3)]
        world.wait_until(lambda stats: stats.running == 3)
        hang.arm()
        assert hang.began.wait(60)
        while world.engine.alive:
            pass
        with world.client() as client, pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model=MODEL, prompt="say:late|")
        assert (caught.value.status_code, caught.value.code) == (503, "service_unavailable")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        hang.release()
        assert [answer.result(60) for answer in answers] == [long] * 3
        assert world.engine.accepting
        assert ask(world, BAD, stream=False) == "never"


def test_an_engine_that_fails() -> None:
    """What is not an Exception escapes the step: nothing can be said of the books, so nothing is served any more."""
    fault = raises(SystemExit(), lambda seen: True)
    with serving(wrap=lambda decoder: FaultyDecoder(decoder)) as world, ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, world, f"say:{'ab' * 1000}|", stream=False) for _ in range(4)]
        world.wait_until(lambda stats: stats.running == 4)
        world.decoder.fault = fault
        assert [answer.result(60) for answer in answers] == ALL_FAIL
        assert not world.engine.alive
        with world.client() as client, pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model=MODEL, prompt="say:late|")
        assert caught.value.status_code == 503


def test_the_table_in_the_docs_is_this_one() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| yes \|$", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE)
    assert [row for row in rows if row[0] in {case.what for case in CASES}] == [
        (case.what, case.clients, case.process) for case in CASES
    ]
