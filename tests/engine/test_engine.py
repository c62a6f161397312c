"""The engine without its thread: the test takes the steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from bento_kv.contract.plan import Exactness, StepPlan
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.engine import Engine
from bento_kv.engine.observer import EngineStats, NullObserver
from bento_kv.engine.request import FinishReason, SamplingParams, StepOutput
from bento_kv.errors import ContextLengthError, EngineClosedError, QueueFullError, RequestError
from tests.engine.fakes import FakeDecoder, always, client, hash_logits, letters, run_to_end, to_ids


def make_engine(decoder: FakeDecoder | None = None, **config: int) -> Engine:
    return Engine(decoder or FakeDecoder(logits=always("abcdef")), letters, EngineConfig(**config))  # type: ignore[arg-type]


def test_an_answer_of_a_given_length() -> None:
    engine, who = make_engine(), client(temperature=0, max_tokens=8)
    engine.submit(who.request)
    run_to_end(engine)
    assert (who.text, who.token_ids) == ("abcdefab", to_ids("abcdefab"))
    assert (who.finish_reason, who.stop_reason, who.error) == ("length", None, None)


def test_an_answer_goes_to_the_end_of_the_context() -> None:
    decoder = FakeDecoder(logits=always("abc"), max_length=10)
    engine, who = make_engine(decoder, max_length=100), client("hello\n", temperature=0)
    engine.submit(who.request)
    run_to_end(engine)
    assert (who.text, who.finish_reason) == ("abca", "length")
    assert engine.max_length == 10


def test_a_stop_token_is_counted_but_not_shown() -> None:
    engine, who = make_engine(), client(temperature=0, stop_token_ids=frozenset(to_ids("dz")))
    engine.submit(who.request)
    run_to_end(engine)
    assert (who.text, who.token_ids) == ("abc", to_ids("abcd"))
    assert (who.finish_reason, who.stop_reason) == ("stop", to_ids("d")[0])


def test_a_stop_text_is_cut_off() -> None:
    engine, who = make_engine(), client(temperature=0, stop=("xyz", "de"))
    engine.submit(who.request)
    run_to_end(engine)
    assert (who.text, who.token_ids) == ("abc", to_ids("abcde"))
    assert (who.finish_reason, who.stop_reason) == ("stop", "de")


def test_text_held_back_for_a_stop_text_is_sent_at_the_end() -> None:
    engine, who = make_engine(), client(temperature=0, max_tokens=5, stop=("dex",))
    engine.submit(who.request)
    run_to_end(engine)
    assert (who.text, who.finish_reason) == ("abcde", "length")


def test_log_probabilities_are_the_models_own() -> None:
    engine = make_engine(FakeDecoder())
    plain, biased = client(request_id="a", max_tokens=1, logprobs=2), client(request_id="b", max_tokens=1, logprobs=2)
    biased.params = replace(biased.params, logit_bias={3: 100.0}, temperature=0.1)
    for who in (plain, biased):
        engine.submit(who.request)
    run_to_end(engine)
    logits = hash_logits(plain.prompt_ids).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    assert biased.token_ids == (3,)
    assert biased.logprobs[0].logprob == pytest.approx(expected[3])
    assert plain.logprobs[0].top == biased.logprobs[0].top
    assert [i for i, _ in plain.logprobs[0].top] == np.argsort(-expected)[:2].tolist()


def test_no_more_slots_than_the_decoder_has() -> None:
    engine = make_engine(FakeDecoder(slots=2), slots=16)
    assert engine.stats() == EngineStats(running=0, waiting=0, slots=2, kv_tokens_used=0, kv_tokens_total=128)


def test_stats_count_running_and_waiting() -> None:
    engine = make_engine(FakeDecoder(slots=1, max_length=20))
    for name in "abc":
        engine.submit(client("hello\n", name, max_tokens=3).request)
    assert (engine.stats().running, engine.stats().waiting) == (0, 3)
    engine.step()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_tokens_used) == (1, 2, 6)


@pytest.mark.parametrize("max_queue", [0, 2])
def test_one_more_than_slots_and_queue_is_refused(max_queue: int) -> None:
    engine = make_engine(slots=2, max_queue=max_queue)
    for i in range(2 + max_queue):
        engine.submit(client(request_id=f"r{i}", temperature=0, max_tokens=2).request)
    late = client(request_id="late", temperature=0, max_tokens=2)
    with pytest.raises(QueueFullError) as caught:
        engine.submit(late.request)
    assert caught.value.retry_after > 0
    run_to_end(engine)
    engine.submit(late.request)
    run_to_end(engine)
    assert late.finish_reason == "length"


def test_the_place_is_free_when_the_end_is_told() -> None:
    engine = make_engine(slots=1, max_queue=0)
    second = client(request_id="second", temperature=0, max_tokens=1)

    def hear(output: StepOutput) -> None:
        assert output.finish_reason == "length"
        assert engine.stats().running == 0
        engine.submit(second.request)

    engine.submit(replace(client(max_tokens=1).request, emit=hear))
    run_to_end(engine)
    assert second.finish_reason == "length"


def test_bad_requests_are_refused_and_leave_no_trace() -> None:
    engine = make_engine(slots=1, max_queue=0, max_tokens=5)
    with pytest.raises(RequestError, match="top_p"):
        engine.submit(client(top_p=2.0).request)
    with pytest.raises(RequestError, match="max_tokens"):
        engine.submit(client(max_tokens=6).request)
    with pytest.raises(ContextLengthError):
        engine.submit(client("a" * 64).request)
    engine.submit(client().request)
    assert engine.stats().waiting == 1


def test_an_id_can_be_used_again_but_not_twice_at_once() -> None:
    engine = make_engine()
    engine.submit(client(max_tokens=1).request)
    with pytest.raises(RequestError, match="'r'"):
        engine.submit(client(max_tokens=1).request)
    run_to_end(engine)
    engine.submit(client(max_tokens=1).request)


def test_abort_ends_a_waiting_and_a_running_request() -> None:
    engine = make_engine(slots=1)
    running, waiting = client(request_id="running"), client(request_id="waiting")
    engine.submit(running.request)
    engine.submit(waiting.request)
    engine.step()
    for name in ("running", "waiting", "running", "unknown"):
        engine.abort(name)
    engine.abort("waiting")
    run_to_end(engine)
    assert (running.finish_reason, waiting.finish_reason) == ("abort", "abort")
    assert len(running.token_ids) == 1
    assert engine.stats().running == 0


def test_an_abort_reaches_a_request_that_has_just_been_submitted() -> None:
    engine, who = make_engine(), client()
    engine.submit(who.request)
    engine.abort(who.id)
    assert not engine.step()
    assert (who.finish_reason, who.token_ids) == ("abort", ())


def test_a_failing_step_ends_its_requests_and_no_others() -> None:
    def fail_prefill_of_z(plan: StepPlan) -> None:
        if any(to_ids("z")[0] in row.tokens for row in plan.rows):
            raise OSError("/secret/path")

    decoder = FakeDecoder(logits=always("abc"), before_step=fail_prefill_of_z)
    engine, good, bad = (
        make_engine(decoder),
        client(request_id="good", temperature=0, max_tokens=5),
        client("zz\n", "bad"),
    )
    engine.submit(good.request)
    engine.step()
    engine.submit(bad.request)
    run_to_end(engine)
    assert (good.text, good.finish_reason) == ("abcab", "length")
    assert bad.finish_reason == "error"
    assert bad.error is not None
    assert "OSError" in bad.error
    assert "secret" not in bad.error
    after = client(request_id="after", temperature=0, max_tokens=3)
    engine.submit(after.request)
    run_to_end(engine)
    assert after.text == "abc"


def test_logits_of_a_wrong_shape_are_an_error() -> None:
    engine, who = make_engine(FakeDecoder(logits=lambda prefix: np.zeros(7, dtype=np.float32))), client()
    engine.submit(who.request)
    run_to_end(engine)
    assert who.error is not None
    assert "(1, 7)" in who.error


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_ends_its_request_and_no_other(poison: float) -> None:
    def logits(prefix: tuple[int, ...]) -> NDArray[np.float32]:
        row = always("abc")(prefix)
        if prefix[0] == to_ids("z")[0]:
            row[3] = poison
        return row

    engine = make_engine(FakeDecoder(logits=logits))
    good, bad = client(request_id="good", temperature=0, max_tokens=3), client("z\n", "bad", temperature=0)
    engine.submit(bad.request)
    engine.submit(good.request)
    run_to_end(engine)
    assert (bad.finish_reason, bad.token_ids) == ("error", ())
    assert bad.error is not None
    assert "bad" in bad.error
    assert (good.text, good.finish_reason) == ("abc", "length")


def test_a_detokenizer_that_raises_ends_only_its_request() -> None:
    def detokenize(ids: object) -> str:
        raise LookupError

    engine, who = Engine(FakeDecoder(), detokenize, EngineConfig()), client()
    engine.submit(who.request)
    run_to_end(engine)
    assert who.finish_reason == "error"


@pytest.mark.parametrize("max_tokens", [1, 3])
def test_an_emit_that_raises_ends_only_its_request(max_tokens: int) -> None:
    def broken(output: StepOutput) -> None:
        raise ValueError

    engine, who = make_engine(), client(request_id="good", temperature=0, max_tokens=4)
    engine.submit(replace(client(request_id="bad", max_tokens=max_tokens).request, emit=broken))
    engine.submit(who.request)
    run_to_end(engine)
    assert who.text == "abcd"
    assert engine.stats().running == 0
    engine.submit(client(request_id="bad", max_tokens=1).request)


class Recorder(NullObserver):
    """Writes down what it is told, durations left out."""

    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    def queued(self) -> None:
        self.heard.append(("queued",))

    def admitted(self, queue_seconds: float) -> None:
        assert queue_seconds >= 0
        self.heard.append(("admitted",))

    def prefix_cache(self, query_tokens: int, hit_tokens: int) -> None:
        self.heard.append(("prefix", query_tokens, hit_tokens))

    def first_token(self, seconds: float) -> None:
        assert seconds >= 0
        self.heard.append(("first",))

    def next_token(self, seconds: float) -> None:
        assert seconds >= 0
        self.heard.append(("next",))

    def finished(self, reason: FinishReason, e2e_seconds: float, prompt_tokens: int, generated_tokens: int) -> None:
        assert e2e_seconds >= 0
        self.heard.append(("finished", reason, prompt_tokens, generated_tokens))

    def step(self, stats: EngineStats, prompt_tokens: int, generated_tokens: int) -> None:
        self.heard.append(("step", stats.running, stats.kv_tokens_used, prompt_tokens, generated_tokens))


def test_the_observer_hears_a_request_from_beginning_to_end() -> None:
    observer = Recorder()
    engine = Engine(FakeDecoder(), letters, EngineConfig(), observer)
    engine.submit(client("hi\n", max_tokens=2).request)
    run_to_end(engine)
    assert observer.heard == [
        ("queued",),
        ("admitted",),
        ("prefix", 3, 0),
        ("first",),
        ("step", 1, 3, 3, 1),
        ("next",),
        ("finished", "length", 3, 2),
        ("step", 0, 0, 0, 1),
    ]


def test_an_observer_that_raises_is_ignored() -> None:
    class Broken(Recorder):
        def queued(self) -> None:
            raise ValueError

        def step(self, stats: EngineStats, prompt_tokens: int, generated_tokens: int) -> None:
            raise ValueError

    engine, who = Engine(FakeDecoder(logits=always("abc")), letters, EngineConfig(), Broken()), client(temperature=0)
    engine.submit(who.request)
    run_to_end(engine)
    assert who.finish_reason == "length"


@pytest.mark.parametrize("exact", ["batch", "full"])
def test_drafts_change_no_output(exact: Exactness) -> None:
    """Right ones and wrong ones, and rows with and without them in one step."""

    def answers(draft: bool) -> list[tuple[object, ...]]:
        decoder = FakeDecoder(logits=always("abcdef"), exact=exact)
        engine = Engine(decoder, letters, EngineConfig(exact=exact))
        clients = [client(request_id=name, temperature=0, max_tokens=12, logprobs=1) for name in "xy"]
        for who in clients:
            engine.submit(who.request)
        engine.step()
        for guess in ("bzz", "bcd", "zzz") * 4:
            if draft and (generation := engine._core.generations.get("x")):
                generation.sequence.drafts = to_ids(guess)
            engine.step()
            engine.check_books()
        run_to_end(engine)
        assert not draft or any(row.drafts == 3 for plan in decoder.plans for row in plan.rows)
        return [who.result for who in clients]

    assert answers(draft=True) == answers(draft=False)


def test_an_engine_that_was_never_started_still_ends_what_it_accepted() -> None:
    engine, drained = make_engine(), client(temperature=0, max_tokens=3)
    engine.submit(drained.request)
    assert not engine.alive
    engine.close()
    engine.close(drain=False)
    assert drained.text == "abc"
    with pytest.raises(EngineClosedError):
        engine.submit(client().request)
    with pytest.raises(EngineClosedError):
        engine.start()


def test_a_sampling_parameter_object_is_not_changed() -> None:
    params = SamplingParams(temperature=0, max_tokens=3, logit_bias={1: 2.0}, repetition_penalty=1.2)
    before = replace(params, logit_bias=dict(params.logit_bias))
    engine, who = make_engine(), client()
    who.params = params
    engine.submit(who.request)
    run_to_end(engine)
    assert params == before
