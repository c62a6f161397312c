"""What a request asks for, in the engine's words."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from bento_kv.contract.settings import settings
from bento_kv.engine.request import SamplingParams
from bento_kv.server.protocol import GenerationRequest

# Those whose value is the engine's as it is; some of them are replaced below.
_SAME_NAMES = {each.name for each in settings(SamplingParams)} & GenerationRequest.model_fields.keys()
_SMALLEST_TOP_P = 1e-9  # 0, which OpenAI takes, leaves the one likeliest token, and so does this


def sampling_params(request: GenerationRequest, defaults: SamplingParams, *, choice: int) -> SamplingParams:
    """How to generate the choice of number `choice` of a prompt.

    A field that the request leaves out has the model's default. End-of-sequence ids are among the defaults' stop tokens
    and stay there unless `ignore_eos`.
    """
    asked: dict[str, Any] = {name: getattr(request, name) for name in _SAME_NAMES}
    asked["top_p"] = None if request.top_p is None else max(request.top_p, _SMALLEST_TOP_P)
    asked["top_k"] = None if request.top_k is None else max(request.top_k, 0)
    asked["max_tokens"] = request.token_limit
    asked["seed"] = None if request.seed is None else choice_seed(request.seed, choice)
    asked["stop"] = request.stop or None
    asked["logit_bias"] = request.logit_bias or None
    ends = frozenset(request.stop_token_ids)
    asked["stop_token_ids"] = ends if request.ignore_eos else ends | defaults.stop_token_ids
    asked["logprobs"] = request.likeliest
    return replace(defaults, **{name: value for name, value in asked.items() if value is not None})


def choice_seed(seed: int, choice: int) -> int:
    """The seed of a choice: the request's own for the first, so that asking for more choices does not change it, and
    others that do not meet those of a neighbouring seed."""
    if choice == 0:
        return seed
    digest = hashlib.sha256(f"{seed}/{choice}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # a 64-bit integer that is not negative
