"""Spans of real requests, under the HTTP request's as BentoML's middleware makes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

from bento_kv.bento.tracing import RequestSpans, bentoml_tracer
from tests.engine.faulty import FaultyDecoder, nan_for
from tests.server.test_life import ENDLESS
from tests.server.world import MODEL, World, serving

GENERATION = f"text_completion {MODEL}"


@contextmanager
def traced(sampler: Sampler = ALWAYS_ON, **world: Any) -> Iterator[tuple[World, InMemorySpanExporter]]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans = RequestSpans(provider.get_tracer("test"), MODEL)

    def middleware(app: Any) -> Any:
        return OpenTelemetryMiddleware(app, tracer_provider=provider, exclude_spans=["send", "receive"])

    with serving(recorders=[spans], middleware=middleware, **world) as running:
        yield running, exporter
    assert not spans._traced


def tree(exporter: InMemorySpanExporter) -> dict[str | None, list[ReadableSpan]]:
    """Finished spans by the name of their parent, in the order of their begin."""
    spans = exporter.get_finished_spans()
    names = {span.context.span_id: span.name for span in spans}
    children: dict[str | None, list[ReadableSpan]] = {}
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        children.setdefault(names[span.parent.span_id] if span.parent else None, []).append(span)
    return children


@pytest.mark.parametrize("n", [1, 2])
def test_the_spans_of_an_answer(n: int) -> None:
    with traced() as (world, exporter), world.client() as client:
        reply = client.completions.create(model=MODEL, prompt="say:abc|", n=n, seed=7, max_tokens=20)
        world.wait_until_idle()
    spans = tree(exporter)
    (http,) = spans[None]
    assert "/v1/completions" in http.name
    generations = spans[http.name]
    assert [span.name for span in generations] == [GENERATION] * n
    span = generations[0]
    assert span.attributes is not None
    assert {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.id": f"{reply.id}-0",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 8,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.request.seed": 7,
        "gen_ai.request.max_tokens": 20,
    }.items() <= dict(span.attributes).items()
    phases = [phase for phase in spans[GENERATION] if phase.parent and phase.parent.span_id == span.context.span_id]
    assert [phase.name for phase in phases] == ["queue", "prefill", "decode"]
    edges = [moment for phase in phases for moment in (phase.start_time, phase.end_time)]
    assert edges[1:-1:2] == edges[2::2]  # one begins where the other ends
    assert (edges[0], edges[-1]) == (span.start_time, span.end_time)
    assert [(event.name, dict(event.attributes or {})) for event in phases[1].events] == [
        ("chunk", {"tokens": 8, "computed": 8})
    ]


def test_a_request_that_fails_has_a_span_with_an_error() -> None:
    with (
        traced(wrap=lambda decoder: FaultyDecoder(decoder, nan_for(ord("Z")))) as (world, exporter),
        world.client() as client,
        pytest.raises(openai.InternalServerError),
    ):
        client.completions.create(model=MODEL, prompt="Z")
    spans = tree(exporter)
    (span,) = spans[spans[None][0].name]
    assert not span.status.is_ok
    assert [phase.name for phase in spans[GENERATION]] == ["queue", "prefill"]


def test_a_request_that_never_left_the_queue_has_the_span_of_its_wait() -> None:
    with traced(slots=1) as (world, exporter), world.client() as client:
        with client.completions.create(**ENDLESS, stream=True) as taking:
            next(iter(taking))
            with pytest.raises(openai.InternalServerError):
                client.completions.create(**ENDLESS, extra_body={"max_queue_time": 0.05})
        world.wait_until_idle()
    spans = exporter.get_finished_spans()
    (span,) = [span for span in spans if (span.attributes or {}).get("error.type") == "queue"]
    assert [it.name for it in spans if it.parent and it.parent.span_id == span.context.span_id] == ["queue"]


def test_what_is_not_sampled_costs_nothing() -> None:
    with traced(ALWAYS_OFF) as (world, exporter), world.client() as client:
        assert client.completions.create(model=MODEL, prompt="say:abc|").choices[0].text == "abc"
    assert not exporter.get_finished_spans()


def test_without_an_exporter_there_is_no_tracer() -> None:
    assert bentoml_tracer() is None


def test_with_an_exporter_the_tracer_is_bentomls() -> None:
    from bentoml._internal.configuration.containers import BentoMLContainer

    provider = TracerProvider()
    BentoMLContainer.tracing.exporter_type.set("in_memory")
    BentoMLContainer.tracer_provider.set(provider)
    try:
        tracer = bentoml_tracer()
        assert tracer is not None
        assert tracer.resource is provider.resource  # type: ignore[attr-defined] # the SDK's has one
    finally:
        BentoMLContainer.tracing.exporter_type.set(None)
        BentoMLContainer.tracer_provider.reset()
