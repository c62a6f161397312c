"""What an engine is allowed to use, and how exact it has to be."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bento_kv.contract.plan import Exactness
from bento_kv.contract.settings import Bounds, out_of_range, setting

_COUNT = Bounds(ge=0)
_POSITIVE = Bounds(ge=1)
_CONTEXT = Bounds(ge=2)  # one position of a prompt, one of an answer
_CHUNK = Bounds(ge=3)  # a chunk has at least two tokens, and never leaves one
_TIME = Bounds(gt=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Limits and modes of an engine. `bento_kv.contract.settings.settings(EngineConfig)` lists them with range and words.

    Raises:
        ValueError: a value is out of range.
    """

    slots: int = setting(16, "requests that decode at the same time; each has a row of the KV cache", bounds=_POSITIVE)
    exact: Exactness = setting(
        "batch",
        "`batch`: a request's logits do not depend on its neighbours, bit for bit. `full`: also, any split of a sequence "
        "into steps gives the bits of one pass over the whole, at a price in decode speed",
    )
    max_length: int | None = setting(
        None,
        "positions of a slot, prompt and answer together; the decoder's own limit unless set",
        bounds=_CONTEXT,
    )
    max_queue: int = setting(
        256,
        "requests that may wait for a slot; one more is refused with 429, and so is one of a client that has most of them",
        bounds=_COUNT,
    )
    max_tokens: int | None = setting(
        None, "cap on the tokens that one request may generate; none unless set", bounds=_POSITIVE
    )
    threads: int | None = setting(
        None, "threads of the model; as many as this process has CPUs unless set", bounds=_POSITIVE
    )
    prefill_tokens: int = setting(
        256,
        "prompt tokens that share one step while nobody decodes; longer prompts are computed in chunks",
        bounds=_CHUNK,
    )
    prefill_chunk: int = setting(
        256,
        "the same while somebody decodes, `prefill_tokens` at most: between two tokens of an answer stand one decode step "
        "and at most so many prompt tokens. Lower is smoother, higher is sooner at the first token",
        bounds=_CHUNK,
    )
    priority_places: int = setting(
        32, "places in the queue that a level of a request's `priority` is worth", bounds=_COUNT
    )
    kv_tokens: int | None = setting(
        None,
        "positions of the KV cache that may be in memory, by what running requests may use (each its prompt and its "
        "`max_tokens`, or the rest of the context if it does not say) and cached prefixes together; unless set, as many "
        "as fit in most of the free memory, those of all slots at most",
        bounds=_CONTEXT,
    )
    prefix_cache: bool = setting(
        True,
        "whether prompts take over the keys and values of prompts before them that begin alike. Answers are the same bit "
        "for bit either way",
    )
    prefix_cache_tokens: int | None = setting(
        None,
        "positions that cached prefixes may take beyond the slots; what `kv_tokens` leaves unless set",
        bounds=_COUNT,
    )
    speculation: int = setting(
        0,
        "guesses of the next tokens that a request may have checked in a step, at most; 0 guesses nothing. They are looked "
        "up in the prompt and the output, which makes answers that repeat these faster and changes none in mode `full`. "
        "In mode `batch` a checked token has the low bits of a prefilled one. There are never more than "
        "`prefill_chunk // slots - 1`, so that a step of all slots has no more tokens than a chunk",
        bounds=_COUNT,
    )
    spare_guess: bool = setting(
        True,
        "where the model computes tokens two by two (int4), whether a request that decodes alone has a guess of its next "
        "token checked in the place that a copy would take, if the prompt or the answer has one. In mode `batch` with more "
        "than one slot only where that changes no bit. It does nothing where `speculation` is on",
    )
    max_queue_seconds: float | None = setting(
        None,
        "a request that has waited longer than this for its first step ends without an answer (503); a request may ask for "
        "less. No limit unless set",
        bounds=_TIME,
        unit="seconds",
    )
    max_seconds: float | None = setting(
        None,
        "an answer that is not complete this long after its request came is cut; a request may ask for less. No limit "
        "unless set",
        bounds=_TIME,
        unit="seconds",
    )
    step_timeout: float = setting(
        300.0,
        "seconds after which a step counts as hanging, and the engine as not alive: /livez fails",
        bounds=_TIME,
        unit="seconds",
    )

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
        for _, sentence in out_of_range(self):
            raise ValueError(sentence)
