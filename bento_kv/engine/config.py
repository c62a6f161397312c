"""What an engine is allowed to use, and how exact it has to be."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import get_args

from bento_kv.contract.plan import Exactness

_AT_LEAST = {
    "slots": 1,
    "max_length": 1,
    "max_queue": 0,
    "max_tokens": 1,
    "threads": 1,
    "prefill_tokens": 3,  # a chunk has at least two tokens, and never leaves one
    "prefill_chunk": 3,
    "priority_places": 0,
    "kv_tokens": 2,  # one of a prompt, one of an answer
    "prefix_cache_tokens": 0,
    "speculation": 0,
}


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
        prefill_tokens: prompt tokens that share one step while nobody decodes; longer prompts are computed in chunks.
        prefill_chunk: the same while somebody decodes, `prefill_tokens` at most: between two tokens of an answer stand one
            decode step and at most so many prompt tokens. Lower is smoother, higher is sooner at the first token.
        priority_places: places in the queue that a level of a request's `priority` is worth.
        kv_tokens: positions of the KV cache that may be in memory, by what running requests may use (each its prompt and
            its `max_tokens`, or the rest of the context if it does not say) and cached prefixes together; those of all
            slots unless set. `OnnxDecoderRunnable` sets it by the memory there is.
        prefix_cache: whether prompts take over the keys and values of prompts before them that begin alike. Answers are the
            same bit for bit either way.
        prefix_cache_tokens: positions that cached prefixes may take beyond the slots; what `kv_tokens` leaves unless set.
        speculation: guesses of the next tokens that a request may have checked in a step, at most; 0 guesses nothing.
            They are looked up in the prompt and the output, which makes answers that repeat these faster and changes none
            in mode `full`. In mode `batch` a checked token has the low bits of a prefilled one. There are never more
            than `prefill_chunk // slots - 1`, so that a step of all slots has no more tokens than a chunk.
        max_queue_seconds: a request that has waited longer than this for its first step ends without an answer; a request
            may ask for less. No limit unless set.
        max_seconds: an answer that is not complete this long after its request came is cut; a request may ask for less.
            No limit unless set.
        step_timeout: seconds after which a step counts as hanging, and the engine as not alive.

    Raises:
        ValueError: a value is out of range.
    """

    slots: int = 16
    exact: Exactness = "batch"
    max_length: int | None = None
    max_queue: int = 256
    max_tokens: int | None = None
    threads: int | None = None
    prefill_tokens: int = 256
    prefill_chunk: int = 256
    priority_places: int = 32
    kv_tokens: int | None = None
    prefix_cache: bool = True
    prefix_cache_tokens: int | None = None
    speculation: int = 0
    max_queue_seconds: float | None = None
    max_seconds: float | None = None
    step_timeout: float = 300.0

    def share(self, workers: int, cpus: int) -> EngineConfig:
        """What one of several processes takes of these limits: threads are the CPUs' part unless set; slots and waiting
        places are divided, rounded up; positions of the KV cache are divided if they are set, rounded down.

        Args:
            workers: processes that share the machine, at least 1.
            cpus: that they may use, all together.

        Raises:
            ValueError: there is not a process, or `kv_tokens` is too few for so many.
        """
        if workers < 1:
            raise ValueError(f"workers is {workers}; it must be at least 1")
        return replace(
            self,
            slots=math.ceil(self.slots / workers),
            max_queue=math.ceil(self.max_queue / workers),
            threads=self.threads or max(1, cpus // workers),
            kv_tokens=None if self.kv_tokens is None else self.kv_tokens // workers,
            prefix_cache_tokens=None if self.prefix_cache_tokens is None else self.prefix_cache_tokens // workers,
        )

    def __post_init__(self) -> None:
        if self.exact not in get_args(Exactness):
            raise ValueError(f"exact is {self.exact!r}; it must be 'batch' or 'full'")
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        for name in ("max_queue_seconds", "max_seconds", "step_timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be a number of seconds above 0")
