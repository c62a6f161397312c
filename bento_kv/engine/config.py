"""What an engine is allowed to use, and how exact it has to be."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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
    prefill_tokens: int = 2048
    max_queue_seconds: float | None = None
    max_seconds: float | None = None
    step_timeout: float = 300.0

    def share(self, workers: int, cpus: int) -> EngineConfig:
        """What one of several processes takes of these limits: threads are the CPUs' part unless set, slots and waiting
        places are divided, rounded up.

        Args:
            workers: processes that share the machine, at least 1.
            cpus: that they may use, all together.

        Raises:
            ValueError: there is not a process.
        """
        if workers < 1:
            raise ValueError(f"workers is {workers}; it must be at least 1")
        return replace(
            self,
            slots=math.ceil(self.slots / workers),
            max_queue=math.ceil(self.max_queue / workers),
            threads=self.threads or max(1, cpus // workers),
        )

    def __post_init__(self) -> None:
        if self.exact not in get_args(Exactness):
            raise ValueError(f"exact is {self.exact!r}; it must be 'batch' or 'full'")
        for name in ("slots", "max_length", "max_tokens", "threads", "prefill_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.max_queue < 0:
            raise ValueError(f"max_queue is {self.max_queue}; it must be at least 0")
        for name in ("max_queue_seconds", "max_seconds", "step_timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be a number of seconds above 0")
