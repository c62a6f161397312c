"""What a request may ask for: checked where it enters the engine, before it costs anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bento_kv.contract.settings import out_of_range
from bento_kv.engine.request import SamplingParams
from bento_kv.errors import ContextLengthError, RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What a request is measured against.

    Attributes:
        vocab_size: token ids are below it.
        max_length: positions of the context, prompt and answer together.
        max_tokens: cap on the tokens that one request may generate; none if None.
        memory_bound: the context is as short as it is because there is no memory for more of the KV cache.
        speculation: cap on the drafts that a step may check for one request.
    """

    vocab_size: int
    max_length: int
    max_tokens: int | None
    memory_bound: bool = False
    speculation: int = 0

    def check(self, prompt_ids: Sequence[int], params: SamplingParams) -> int:
        """Check a request. Returns how many tokens it may generate.

        Raises:
            RequestError: a field is out of range; `param` names it.
            ContextLengthError: prompt and answer do not fit in the context.
        """
        self._check_prompt(prompt_ids)
        _check_ranges(params)
        self._check_logit_bias(params)
        self._check_speculation(params.speculation)
        return self._max_tokens(len(prompt_ids), params.max_tokens)

    @property
    def _context(self) -> str:
        why = ", which is what this server has memory for" if self.memory_bound else ""
        return f"the context of {self.max_length} tokens{why}"

    def _check_prompt(self, prompt_ids: Sequence[int]) -> None:
        if not prompt_ids:
            raise RequestError("the prompt is empty; it needs at least one token", param="prompt")
        for token_id in (min(prompt_ids), max(prompt_ids)):
            if not 0 <= token_id < self.vocab_size:
                raise RequestError(
                    f"the prompt has the token id {token_id}; ids go from 0 to {self.vocab_size - 1}", param="prompt"
                )
        if len(prompt_ids) >= self.max_length:
            raise ContextLengthError(
                f"the prompt has {len(prompt_ids)} tokens, which leaves no room for an answer in {self._context}; "
                "shorten it"
            )

    def _check_logit_bias(self, params: SamplingParams) -> None:
        for token_id, bias in params.logit_bias.items():
            if not 0 <= token_id < self.vocab_size:
                raise RequestError(
                    f"logit_bias has the token id {token_id}; ids go from 0 to {self.vocab_size - 1}",
                    param="logit_bias",
                )
            if not math.isfinite(bias):
                raise RequestError(
                    f"logit_bias of token {token_id} is {bias}; it must be a finite number", param="logit_bias"
                )

    def _check_speculation(self, asked: int | None) -> None:
        if asked is not None and asked > self.speculation:
            allowed = f"from 0 to {self.speculation}" if self.speculation else "0, because speculation is off here"
            raise RequestError(f"speculation is {asked}; it must be {allowed}", param="speculation")

    def _max_tokens(self, prompt_length: int, asked: int | None) -> int:
        room = self.max_length - prompt_length
        if asked is None:
            return room if self.max_tokens is None else min(room, self.max_tokens)
        if self.max_tokens is not None and asked > self.max_tokens:
            raise RequestError(f"max_tokens is {asked}; at most {self.max_tokens} may be asked for", param="max_tokens")
        if asked > room:
            raise ContextLengthError(
                f"{prompt_length} tokens of the prompt and {asked} of max_tokens are {prompt_length + asked}, more than "
                f"{self._context}; shorten the prompt or ask for at most {room} tokens",
                param="max_tokens",
            )
        return asked


def _check_ranges(params: SamplingParams) -> None:
    for name, sentence in out_of_range(params):
        raise RequestError(sentence, param=name)
    if not all(params.stop):
        raise RequestError(f"stop is {params.stop!r}; it must be texts that are not empty", param="stop")
