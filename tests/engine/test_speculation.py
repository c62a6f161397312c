"""An engine that guesses, where something ends or fails in the middle of a check."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bento_kv.contract.plan import StepPlan
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.engine import Engine
from bento_kv.engine.observer import EngineStats, NullObserver
from bento_kv.engine.request import StepOutput
from tests.engine.fakes import Client, FakeDecoder, always, client, letters, run_to_end, to_ids

SONG = "abcdefghijklmnop"


def sing(
    who: Client, *, most: int = 4, decoder: FakeDecoder | None = None, observer: NullObserver | None = None
) -> FakeDecoder:
    """Serve a request for a song that repeats, so that from its second verse on all guesses are right."""
    decoder = decoder or FakeDecoder(logits=always(SONG))
    engine = Engine(decoder, letters, EngineConfig(speculation=most), observer)
    engine.submit(who.request)
    run_to_end(engine)
    return decoder


def drafts(decoder: FakeDecoder) -> list[int]:
    return [row.drafts for plan in decoder.plans for row in plan.rows]


def test_several_tokens_a_step_make_one_event_each() -> None:
    events: list[tuple[int, ...]] = []
    who = client("\n", temperature=0, max_tokens=40, logprobs=1)

    class Listening(Client):
        def hear(self, output: StepOutput) -> None:
            events.append(output.token_ids)
            super().hear(output)

    listening = Listening(who.id, who.prompt_ids, who.params)
    decoder = sing(listening)
    assert listening.text == (SONG * 3)[:40]
    assert len(listening.logprobs) == 40
    assert max(len(ids) for ids in events) == 5
    assert len(events) == len(decoder.plans) < 30


@pytest.mark.parametrize("max_tokens", [18, 19, 20, 21, 22, 23])
def test_never_more_than_max_tokens_and_none_guessed_beyond(max_tokens: int) -> None:
    who = client("\n", temperature=0, max_tokens=max_tokens)
    decoder = sing(who)
    assert (who.text, who.finish_reason) == ((SONG * 2)[:max_tokens], "length")
    for plan in decoder.plans:
        assert all(row.start + len(row.tokens) <= max_tokens for row in plan.rows)


@pytest.mark.parametrize("max_length", range(36, 42))
def test_an_answer_to_the_end_of_the_context_stays_in_its_slot(max_length: int) -> None:
    """The decoder insists on it."""
    who = client("\n", temperature=0)
    decoder = sing(who, decoder=FakeDecoder(logits=always(SONG), max_length=max_length))
    assert (len(who.token_ids), who.finish_reason) == (max_length - 1, "length")
    assert sum(drafts(decoder)) > 10


@pytest.mark.parametrize("stop", ["ijk", "j", "mn", "klmnopa"])
def test_a_stop_text_in_the_middle_of_a_check_ends_the_answer_there(stop: str) -> None:
    plain, guessed = (client("\nabcdefghijklmnop\n", temperature=0, stop=(stop,)) for _ in range(2))
    sing(plain, most=0)
    assert sum(drafts(sing(guessed, most=6))) > 0
    assert guessed.result == plain.result
    assert guessed.stop_reason == stop


def test_a_stop_token_in_the_middle_of_a_check_ends_the_answer_there() -> None:
    plain, guessed = (
        client("\nabcdefghijklmnop\n", temperature=0, stop_token_ids=frozenset(to_ids("h"))) for _ in range(2)
    )
    sing(plain, most=0)
    sing(guessed, most=6)
    assert guessed.result == plain.result
    assert guessed.token_ids == to_ids("abcdefgh")


def poisoned(text: str) -> FakeDecoder:
    """A singer with NaN in the logits after any prefix that ends with a text."""

    def logits(prefix: tuple[int, ...]) -> NDArray[np.float32]:
        row = always("abcdefghij")(prefix)
        if letters(prefix).endswith(text):
            row[0] = np.nan
        return row

    return FakeDecoder(logits=logits)


def test_what_was_chosen_before_a_failure_is_told() -> None:
    plain, guessed = (client("abcdefghij\n", temperature=0, max_tokens=30) for _ in range(2))
    sing(plain, most=0, decoder=poisoned("\nabcdef"))
    sing(guessed, most=8, decoder=poisoned("\nabcdef"))
    assert guessed.result == plain.result
    assert (guessed.text, guessed.finish_reason) == ("abcdef", "error")


def test_logits_after_a_wrong_guess_are_not_looked_at() -> None:
    who = client("abcdefzzz\n", temperature=0, max_tokens=12)
    decoder = sing(who, most=8, decoder=poisoned("abcdefz"))
    assert any("fz" in letters(row.tokens) for plan in decoder.plans for row in plan.rows if row.drafts)
    assert (who.text, who.finish_reason) == ("abcdefghijab", "length")


def test_the_observer_counts_every_token() -> None:
    class Counting(NullObserver):
        tokens = generated = 0
        kv_tokens: tuple[int, ...] = ()

        def first_token(self, seconds: float) -> None:
            self.tokens += 1

        def next_token(self, seconds: float) -> None:
            self.tokens += 1

        def step(self, stats: EngineStats, prompt_tokens: int, generated_tokens: int) -> None:
            self.generated += generated_tokens
            self.kv_tokens += (stats.kv_tokens_used,)

    observer = Counting()
    sing(client("\n", temperature=0, max_tokens=40), observer=observer)
    assert (observer.tokens, observer.generated) == (40, 40)
    # Wrong guesses would count here; all are right, and the last token of an answer is never computed.
    assert max(observer.kv_tokens) <= 40


class CountingDrafts(NullObserver):
    checked = accepted = 0

    def speculation(self, draft_tokens: int, accepted_tokens: int) -> None:
        self.checked += draft_tokens
        self.accepted += accepted_tokens


def test_the_observer_counts_guesses_and_those_that_were_right() -> None:
    observer = CountingDrafts()
    decoder = sing(client("\n", temperature=0, max_tokens=40), observer=observer)
    assert observer.checked == sum(drafts(decoder)) > 10
    assert observer.accepted == 40 - len(decoder.plans)  # a step brings one token, and one more for each right guess


def test_a_guess_behind_a_wrong_one_does_not_count_as_right() -> None:
    """The prompt goes on otherwise than the song does, so the first check's guesses are wrong from some place on."""
    observer = CountingDrafts()
    decoder = sing(client("abcdefzzz\n", temperature=0, max_tokens=12), most=8, observer=observer)
    assert observer.checked == sum(drafts(decoder))
    assert observer.accepted == 12 - len(decoder.plans) < observer.checked


def test_a_row_that_fails_takes_no_one_with_it_where_others_guess_and_share_a_prefix() -> None:
    """All have one beginning; the answer of one comes to a letter that no step survives, alone or with others."""
    beginning = "abcdefghijklmnop" * 2

    def logits(prefix: tuple[int, ...]) -> NDArray[np.float32]:
        return always(SONG[:7] + "z" if "xx" in letters(prefix) else SONG)(prefix)

    def fail(plan: StepPlan) -> None:
        if any(token in to_ids("z") for row in plan.rows for token in row.tokens):
            raise OSError("no step with this")

    def serve(*who: Client) -> FakeDecoder:
        decoder = FakeDecoder(logits=logits, before_step=fail)
        engine = Engine(decoder, letters, EngineConfig(speculation=4))
        for each in who:
            engine.submit(each.request)
            engine.step()
        run_to_end(engine)
        return decoder

    def ask(name: str, end: str) -> Client:
        return client(beginning + end + "\n", name, temperature=0, max_tokens=20)

    alone = [ask("0", "a"), ask("1", "b")]
    for each in alone:
        serve(each)
    together = [ask("0", "a"), ask("1", "b")]
    victim = ask("2", "xx")
    decoder = serve(together[0], victim, together[1])
    assert [each.result for each in together] == [each.result for each in alone]
    assert (victim.text, victim.finish_reason) == (SONG[:7] + "z", "error")
    assert sum(drafts(decoder)) > 10
    assert any(move[0] == "copy" for move in decoder.moves)
