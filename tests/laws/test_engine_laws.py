"""Laws 2 to 5 of the architecture, for the engine: random arrivals, lengths, parameters, aborts and failures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from bento_kv.contract.plan import StepPlan
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.deadlines import Deadlines
from bento_kv.engine.engine import Engine
from bento_kv.engine.observer import EngineStats, NullObserver
from bento_kv.engine.request import FinishReason, SamplingParams
from tests.engine.fakes import VOCAB_SIZE, Client, FakeDecoder, hash_logits, letters, reference, run_to_end

MAX_LENGTH = 24

ids = st.integers(0, VOCAB_SIZE - 1)
params = st.builds(
    SamplingParams,
    max_tokens=st.none() | st.integers(1, 8),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 1, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 2**64),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    logit_bias=st.dictionaries(ids, st.floats(-5, 5), max_size=2),
    stop=st.lists(st.text("abc", min_size=1, max_size=2), max_size=3).map(tuple),
    stop_token_ids=st.frozensets(ids, max_size=2),
    logprobs=st.none() | st.integers(0, 3),
)
# A prompt leaves room for the longest answer.
requests = st.lists(st.tuples(st.lists(ids, min_size=1, max_size=MAX_LENGTH - 8).map(tuple), params), max_size=7)
sizes = st.builds(
    EngineConfig,
    slots=st.integers(1, 4),
    exact=st.sampled_from(["batch", "full"]),
    prefill_tokens=st.integers(3, 32),
    prefill_chunk=st.integers(3, 8),
    max_length=st.just(MAX_LENGTH),
    speculation=st.sampled_from([0, 1, 5]),
)


@dataclass
class Load:
    """When each request comes, and when one is aborted, counted in steps of the engine."""

    arrivals: list[int] = field(default_factory=list)
    aborts: dict[int, int] = field(default_factory=dict)  # request: step
    failures: set[int] = field(default_factory=set)  # steps that raise
    late: set[int] = field(default_factory=set)  # requests that are out of time when they come


@st.composite
def loads(draw: st.DrawFn, count: int, *, trouble: bool) -> Load:
    arrivals = draw(st.lists(st.integers(0, 12), min_size=count, max_size=count))
    if not trouble or not count:
        return Load(arrivals)
    aborts = draw(st.dictionaries(st.integers(0, count - 1), st.integers(0, 20), max_size=3))
    late = draw(st.sets(st.integers(0, count - 1), max_size=2))
    return Load(arrivals, aborts, draw(st.sets(st.integers(0, 30), max_size=2)), late)


class Ends(NullObserver):
    def __init__(self) -> None:
        self.reasons: Counter[FinishReason] = Counter()
        self.last: EngineStats | None = None

    def finished(self, reason: FinishReason, e2e_seconds: float, prompt_tokens: int, generated_tokens: int) -> None:
        self.reasons[reason] += 1


def serve(clients: list[Client], load: Load, config: EngineConfig, observer: Ends | None = None) -> Engine:
    """Run the clients' requests under a load, and check the books after each step."""
    steps = 0

    def fail(plan: StepPlan) -> None:
        if steps in load.failures:
            raise OSError("no model today")

    engine = Engine(FakeDecoder(max_length=MAX_LENGTH, before_step=fail, exact=config.exact), letters, config, observer)
    while steps <= max([*load.arrivals, *load.aborts.values()], default=0):
        for index, (client, arrival) in enumerate(zip(clients, load.arrivals, strict=True)):
            if arrival == steps:
                deadlines = Deadlines(max_time=1e-9 if index in load.late else None)
                engine.submit(replace(client.request, deadlines=deadlines))
        for index, step in load.aborts.items():
            if step == steps:
                engine.abort(clients[index].id)
        engine.step()
        engine.check_books()
        steps += 1
    run_to_end(engine)
    return engine


def make_clients(chosen: list[tuple[tuple[int, ...], SamplingParams]]) -> list[Client]:
    return [Client(f"r{i}", prompt_ids, params) for i, (prompt_ids, params) in enumerate(chosen)]


@settings(max_examples=60, deadline=None)
@given(chosen=requests, config=sizes, data=st.data())
def test_alone_equals_together(
    chosen: list[tuple[tuple[int, ...], SamplingParams]], config: EngineConfig, data: st.DataObject
) -> None:
    together = make_clients(chosen)
    serve(together, data.draw(loads(len(chosen), trouble=False)), config)
    for client in together:
        alone = replace(client, text="", token_ids=(), logprobs=(), finish_reason=None, stop_reason=None)
        serve([alone], Load([0]), EngineConfig(slots=1, max_length=MAX_LENGTH))
        assert client.result == alone.result
        outcome = client.text, client.token_ids, client.finish_reason, client.stop_reason
        assert outcome == reference(client.prompt_ids, client.params, max_length=MAX_LENGTH)


@settings(max_examples=40, deadline=None)
@given(prompt_ids=st.lists(ids, min_size=1, max_size=8).map(tuple), seed=st.integers(), others=requests, data=st.data())
def test_same_seed_same_output_whatever_the_load(
    prompt_ids: tuple[int, ...],
    seed: int,
    others: list[tuple[tuple[int, ...], SamplingParams]],
    data: st.DataObject,
) -> None:
    params = SamplingParams(seed=seed, temperature=1.2, max_tokens=12)
    outputs = []
    for config in (EngineConfig(slots=1, max_length=MAX_LENGTH), data.draw(sizes)):
        clients = make_clients([*others, (prompt_ids, params)])
        load = data.draw(loads(len(clients), trouble=True))
        load.failures.clear()
        load.aborts.pop(len(others), None)
        load.late.discard(len(others))
        serve(clients, load, config)
        outputs.append(clients[-1].result)
    assert outputs[0] == outputs[1]


@settings(max_examples=60, deadline=None)
@given(chosen=requests, config=sizes, data=st.data())
def test_free_plus_used_is_total(
    chosen: list[tuple[tuple[int, ...], SamplingParams]], config: EngineConfig, data: st.DataObject
) -> None:
    # `serve` checks the books after every step; here it is what they say at the end.
    engine = serve(make_clients(chosen), data.draw(loads(len(chosen), trouble=True)), config)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_tokens_used) == (0, 0, 0)
    assert stats.kv_tokens_total == config.slots * MAX_LENGTH


@settings(max_examples=60, deadline=None)
@given(chosen=requests, config=sizes, data=st.data())
def test_every_request_ends_exactly_once(
    chosen: list[tuple[tuple[int, ...], SamplingParams]], config: EngineConfig, data: st.DataObject
) -> None:
    clients, observer = make_clients(chosen), Ends()
    load = data.draw(loads(len(chosen), trouble=True))
    serve(clients, load, config, observer)  # a client refuses events after its end
    assert all(client.finish_reason is not None for client in clients)
    assert observer.reasons == Counter(client.finish_reason for client in clients)
    for index, client in enumerate(clients):
        whole = reference(client.prompt_ids, client.params, max_length=MAX_LENGTH)
        if client.finish_reason in ("stop", "length"):
            assert (client.text, client.token_ids, client.finish_reason, client.stop_reason) == whole
        else:
            assert client.finish_reason == "error" or index in load.aborts or index in load.late
            assert isinstance(whole[1], tuple)
            assert client.token_ids == whole[1][: len(client.token_ids)]


@settings(max_examples=30, deadline=None)
@given(chosen=requests, config=sizes, steps=st.integers(0, 10), drain=st.booleans())
def test_every_request_ends_exactly_once_when_the_engine_closes(
    chosen: list[tuple[tuple[int, ...], SamplingParams]], config: EngineConfig, steps: int, drain: bool
) -> None:
    clients, observer = make_clients(chosen), Ends()
    engine = Engine(FakeDecoder(max_length=MAX_LENGTH, exact=config.exact), letters, config, observer)
    for client in clients:
        engine.submit(client.request)
    for _ in range(steps):
        engine.step()
    engine.close(drain=drain)
    engine.check_books()
    assert observer.reasons == Counter(client.finish_reason for client in clients)
    allowed = {"stop", "length"} if drain else {"stop", "length", "abort"}
    assert {client.finish_reason for client in clients} <= allowed


def test_logits_depend_on_every_token_of_the_prefix() -> None:
    """Else the laws above would be easy to hold."""
    assert (hash_logits((1, 2, 3)) != hash_logits((2, 1, 3))).all()
