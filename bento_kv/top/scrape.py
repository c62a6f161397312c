"""What a server's `/metrics` says at one moment."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client.parser import text_string_to_metric_families

from bento_kv.errors import MetricsError
from bento_kv.server.metric_table import PREFIX, Metric

TIMEOUT = 5.0  # seconds; a server that takes longer to say how it is cannot be watched

Labels = tuple[tuple[str, str], ...]
State = Literal["ready", "not ready", "not alive"]


@dataclass(frozen=True)
class Scrape:
    """Samples by name, the prefix left out, and labels in alphabetical order.

    Attributes:
        at: `time.perf_counter` seconds.
        state: what the probes say.
        samples: as in Prometheus' text format.
    """

    at: float
    state: State
    samples: Mapping[tuple[str, Labels], float]

    def value(self, metric: Metric, **labels: str) -> float:
        """0 where there is no such sample."""
        return self.samples.get((metric.name, tuple(sorted(labels.items()))), 0.0)

    def labelled(self, metric: Metric) -> dict[Labels, float]:
        """All samples of a metric by their labels; of a histogram its buckets."""
        name = f"{metric.name}_bucket" if metric.kind == "histogram" else metric.name
        return {labels: value for (own, labels), value in self.samples.items() if own == name}


def base_url(url: str) -> str:
    """The server that a user means by `localhost:3000` or `http://host/metrics`."""
    url = url.rstrip("/").removesuffix("/metrics")
    return url if "://" in url else f"http://{url}"


def scrape(base: str) -> Scrape:
    """Look at a server, with the key of the environment variable `BENTO_KV_API_KEY` if it is set.

    Raises:
        MetricsError: it is not there, or has no metrics of this engine.
    """
    try:
        text = _get(f"{base}/metrics")
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise MetricsError(f"{base}/metrics cannot be read: {reason}; is the server running there?") from error
    samples: dict[tuple[str, Labels], float] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith(PREFIX):
                    samples[sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items()))] = sample.value
    except ValueError as error:
        raise MetricsError(f"{base}/metrics is not in Prometheus' text format") from error
    if not samples:
        raise MetricsError(f"{base}/metrics has no metric of bento_kv; is it another service?")
    return Scrape(time.perf_counter(), _state(base), samples)


def _state(base: str) -> State:
    probes: tuple[tuple[str, State], ...] = (("livez", "not alive"), ("readyz", "not ready"))
    for probe, otherwise in probes:
        try:
            _get(f"{base}/{probe}")
        except (OSError, ValueError):
            return otherwise
    return "ready"


def _get(url: str) -> str:
    request = urllib.request.Request(url)
    if key := os.environ.get("BENTO_KV_API_KEY", "").split():
        request.add_unredirected_header("authorization", f"Bearer {key[0]}")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        body: bytes = response.read()
    return body.decode("utf-8", errors="replace")
