"""Rotary position embeddings that the attention operator computes itself: recognised by what they do, not by name.

Nearly every architecture of transformers turns queries and keys in a function of its module, `apply_rotary_pos_emb(q, k,
cos, sin)`, in one of a few forms: halves or interleaved pairs, all of a head or its first dimensions, tables of full or
half width. The survey runs the model with real numbers, compares what the function returned with what the operator
would, and looks whether the attention gets it as it is. Where both agree, tracing leaves queries and keys as they are,
and the operator turns them; elsewhere the rotation stays in the graph.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

_FUNCTION = "apply_rotary_pos_emb"
# Of a component of the largest magnitude; the two only round differently.
_TOLERANCE = 1e-5
_MULTIPLE = 8  # of which the operator wants the number of pairs


@dataclass(frozen=True, slots=True)
class Rotary:
    """A rotation that the operator can do.

    Attributes:
        interleaved: pairs are neighbours, not halves.
        columns: of the model's cosines and sines `[..., width]` that are the operator's table, one a pair.
    """

    interleaved: bool
    columns: slice

    def table(self, values: torch.Tensor) -> torch.Tensor:
        """The model's cosines or sines `[1, tokens, width]` as the operator wants them, `[tokens, pairs]`."""
        return values[0, :, self.columns]

    def turn(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """What the operator computes: x `[1, heads, tokens, head_dim]`, its first `2 * pairs` dimensions turned."""
        cos, sin = self.table(cos), self.table(sin)  # [tokens, pairs]
        pairs = cos.shape[-1]
        turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
        if self.interleaved:
            first, second = turned[..., 0::2], turned[..., 1::2]
        else:
            first, second = turned[..., :pairs], turned[..., pairs:]
        out = (first * cos - second * sin, second * cos + first * sin)
        joined = torch.stack(out, dim=-1).flatten(-2) if self.interleaved else torch.cat(out, dim=-1)
        return torch.cat([joined, rest], dim=-1)


Function = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def recognise(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, turned: tuple[torch.Tensor, torch.Tensor]
) -> Rotary | None:
    """The operator's rotation that gives `turned` too, at positions that are not all 0; None if there is none."""
    if cos.ndim != 3 or cos.shape[0] != 1 or q.ndim != 4:
        return None
    width = cos.shape[-1]
    for interleaved in (False, True):
        for columns in (slice(0, width // 2), slice(0, width, 2), slice(0, width)):
            form = Rotary(interleaved, columns)
            pairs = form.table(cos).shape[-1]
            if 2 * pairs > q.shape[-1] or pairs % _MULTIPLE:
                continue
            if all(_close(form.turn(x, cos, sin), y) for x, y in zip((q, k), turned, strict=True)):
                return form
    return None


def _close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return got.shape == expected.shape and bool(
        (got - expected).abs().max() <= _TOLERANCE * expected.abs().max().clamp(min=1e-20)
    )


@contextmanager
def replaced(model: torch.nn.Module, make: Callable[[Function], Function]) -> Iterator[None]:
    """Within it, the model's modules call `make(function)` instead of their rotary functions."""
    modules = {type(module).__module__ for module in model.modules()}
    found: list[tuple[Any, Function]] = []
    for name in sorted(modules):
        module = sys.modules[name]
        function = getattr(module, _FUNCTION, None)
        if function is not None and list(inspect.signature(function).parameters)[:4] == ["q", "k", "cos", "sin"]:
            found.append((module, function))
    try:
        for module, function in found:
            setattr(module, _FUNCTION, make(function))
        yield
    finally:
        for module, function in found:
            setattr(module, _FUNCTION, function)
