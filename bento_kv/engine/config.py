"""What an engine is allowed to use, and how exact it has to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from bento_kv.plan import Exactness


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Limits and modes of an engine.

    Attributes:
        slots: requests that decode at the same time; each has a row of the KV cache.
        exact: `batch`: a request's logits do not depend on its neighbours, bit for bit. `full`: also, any split of a
            sequence into steps gives the bits of one pass over the whole, at a price in decode speed.
        max_length: positions of a slot, prompt and answer together; the decoder's own limit unless set.
        max_queue: requests that may wait for a slot; one more is refused.
        max_tokens: cap on the tokens that one request may generate; none unless set.
        threads: threads of the model; as many as this process has CPUs unless set.
        prefill_tokens: prompt tokens that share one prefill step; a longer prompt has a step of its own.
        speculation: guesses of the next tokens that a request may have checked in a step, at most; 0 guesses nothing.
            They are looked up in the prompt and the output, which makes answers that repeat these faster and changes none
            in mode `full`. In mode `batch` a checked token has the low bits of a prefilled one.

    Raises:
        ValueError: a value is out of range.
    """

    slots: int = 16
    exact: Exactness = "batch"
    max_length: int | None = None
    max_queue: int = 256
    max_tokens: int | None = None
    threads: int | None = None
    prefill_tokens: int = 2048
    speculation: int = 0

    def __post_init__(self) -> None:
        if self.exact not in get_args(Exactness):
            raise ValueError(f"exact is {self.exact!r}; it must be 'batch' or 'full'")
        for name in ("slots", "max_length", "max_tokens", "threads", "prefill_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for name in ("max_queue", "speculation"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
