"""Spans of the engine's work, as children of the HTTP request's, through the tracing that BentoML is configured with.

Names and attributes are OpenTelemetry's for generative AI (https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/).
OpenTelemetry comes with BentoML.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from bento_kv.engine.events import Event
from bento_kv.engine.request import Request

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

OPERATION = "text_completion"


def bentoml_tracer() -> Tracer | None:
    """A tracer of BentoML's provider; None if its configuration names no exporter, so that nothing is recorded."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    if BentoMLContainer.tracing.exporter_type.get() is None:
        return None
    return BentoMLContainer.tracer_provider.get().get_tracer("bento_kv")  # type: ignore[no-any-return] # untyped


@dataclass
class _Progress:
    """A request that is being traced: where it came from, and when what happened."""

    parent: otel.Context
    events: dict[str, float] = field(default_factory=dict)  # by kind, the first of each; perf_counter seconds
    chunks: list[tuple[float, dict[str, Any]]] = field(default_factory=list)


class RequestSpans:
    """A `Recorder` that makes a span of each request, in it those of `queue`, `prefill` and `decode`.

    They are made when the request ends, with the times that were noted: until then a request costs a few numbers, and one
    whose HTTP request is not sampled costs nothing.

    Args:
        tracer: whose spans they are.
        model: the name that clients use.
    """

    def __init__(self, tracer: Tracer, model: str) -> None:
        self._tracer = tracer
        self._model = model
        self._clock = time.time_ns() - time.perf_counter_ns()  # from the engine's clock to Unix time
        self._traced: dict[str, _Progress] = {}

    def record(self, event: Event) -> None:
        """Note an event; the last one of a request makes its spans."""
        if event.kind == "queued":
            parent = event.request.context.run(otel.get_current) if event.request.context else otel.Context()
            if trace.get_current_span(parent).is_recording():
                self._traced[event.request.id] = _Progress(parent)
        progress = self._traced.get(event.request.id)
        if progress is None:
            return
        progress.events.setdefault(event.kind, event.at)
        if event.kind == "chunk":
            progress.chunks.append((event.at, dict(event.details)))
        if event.kind == "finished":
            self._make_spans(self._traced.pop(event.request.id), event)

    def close(self) -> None:
        """Nothing is kept open: spans go to their exporter as they end."""

    def _make_spans(self, progress: _Progress, last: Event) -> None:
        request = last.request
        span = self._start(f"{OPERATION} {self._model}", progress.events["queued"], progress.parent)
        span.set_attributes(self._attributes(request, last, progress.events))
        if (error := last.details.get("error")) is not None:
            span.set_status(Status(StatusCode.ERROR, str(error)))
        inside = trace.set_span_in_context(span, progress.parent)
        for name, begin, end in _phases(progress.events):
            phase = self._start(name, begin, inside)
            if name == "prefill":
                for at, details in progress.chunks:
                    phase.add_event("chunk", details, timestamp=self._unix(at))
            phase.end(self._unix(end))
        span.end(self._unix(last.at))

    def _attributes(self, request: Request, last: Event, at: dict[str, float]) -> dict[str, Any]:
        params = request.params
        optional = {
            "gen_ai.request.max_tokens": params.max_tokens,
            "gen_ai.request.seed": params.seed,
            "gen_ai.request.stop_sequences": params.stop or None,
            "gen_ai.latency.time_in_queue": at["admitted"] - at["queued"] if "admitted" in at else None,
            "gen_ai.latency.time_to_first_token": at["first_token"] - at["queued"] if "first_token" in at else None,
            "error.type": "decoder_error" if "error" in last.details else last.details.get("timeout"),
        }
        return {
            "gen_ai.operation.name": OPERATION,
            "gen_ai.provider.name": "bento_kv",
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.response.id": request.id,
            "gen_ai.response.finish_reasons": (last.details["reason"],),
            "gen_ai.usage.input_tokens": len(request.prompt_ids),
            "gen_ai.usage.output_tokens": last.details["generated"],
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.request.top_k": params.top_k,
            "gen_ai.request.presence_penalty": params.presence_penalty,
            "gen_ai.request.frequency_penalty": params.frequency_penalty,
            "gen_ai.latency.e2e": last.at - at["queued"],
            **{name: value for name, value in optional.items() if value is not None},
        }

    def _start(self, name: str, at: float, parent: otel.Context) -> Span:
        return self._tracer.start_span(name, parent, start_time=self._unix(at))

    def _unix(self, at: float) -> int:
        """Unix nanoseconds of a moment of the engine's clock."""
        return self._clock + int(at * 1e9)


def _phases(at: dict[str, float]) -> Iterator[tuple[str, float, float]]:
    """The phases that a request went through, with begin and end; the last may be cut short."""
    marks = [("queue", "queued"), ("prefill", "admitted"), ("decode", "first_token")]
    reached = [(name, at[kind]) for name, kind in marks if kind in at]
    for (name, begin), end in zip(reached, [*(begin for _, begin in reached[1:]), at["finished"]], strict=True):
        yield name, begin, end
