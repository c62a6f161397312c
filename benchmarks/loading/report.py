"""What the records of many requests say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

Record = dict[str, Any]


def percentiles(values: Iterable[float]) -> dict[str, float] | None:
    """Milliseconds."""
    ordered = sorted(values)
    if not ordered:
        return None
    at = {
        name: ordered[math.ceil(part * len(ordered)) - 1] for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
    }
    return {name: round(1000 * value, 2) for name, value in {**at, "max": ordered[-1]}.items()}


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Speed and latencies of the requests that have a whole answer, and how the others ended."""
    whole = [record for record in records if record["status"] == 200 and record["error"] is None and not record["left"]]
    span = max((record["end"] for record in records), default=0.0)
    other: dict[str, int] = {}
    for record in records:
        if record not in whole and not record["left"]:
            name = f"{record['status']}: {record['error']}"
            other[name] = other.get(name, 0) + 1
    return {
        "requests": len(records),
        "whole": len(whole),
        "left": sum(record["left"] for record in records),
        "other": other,
        "seconds": round(span, 2),
        "requests_per_second": round(len(whole) / span, 2) if span else 0.0,
        "tokens_per_second": round(sum(record["tokens"] for record in whole) / span, 1) if span else 0.0,
        "first_token_ms": percentiles(record["first"] - record["due"] for record in whole),
        "inter_token_ms": percentiles(b - a for record in whole for a, b in pairwise(record["times"])),
        "whole_answer_ms": percentiles(record["end"] - record["due"] for record in whole),
    }


def differences(records: Iterable[Record], references: Sequence[Record]) -> list[str]:
    """Where an answer is not the one that the request alone got; `references` by the request's index."""
    found = []
    for record in records:
        alone = references[record["index"]]
        for name in ("text", "tokens", "finish"):
            if record[name] != alone[name]:
                found.append(
                    f"request {record['index']}: {name} is {record[name]!r:.80}, alone it is {alone[name]!r:.80}"
                )
                break
    return found
