"""What a decoder is compared with: the model that it was made from, seen through a protocol that needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

LayerArrays = list[tuple[NDArray[np.float32], NDArray[np.float32]]]


class NumericReference(Protocol):
    """The numbers of the model that the decoder was made from.

    Every method that computes something raises SourceError where the model itself cannot: for more positions or other
    tokens than it has.
    """

    @property
    def max_length(self) -> int | None:
        """Positions that the model was made for; None where it does not say."""
        ...

    def logits(
        self, ids: Sequence[int], *, at: Sequence[int] | None = None, past: LayerArrays | None = None
    ) -> NDArray[np.float32]:
        """`[tokens, vocab_size]`, computed at once.

        Args:
            ids: the tokens.
            at: indices of the tokens whose logits are wanted; all unless given.
            past: keys and values that stand before them, as `keys_values` gives them; without it, no cache is used.
        """
        ...

    def at_offsets(self, ids: Sequence[int], firsts: Sequence[int]) -> NDArray[np.float32]:
        """`[places, tokens, vocab_size]`: the tokens with nothing before them, as if they began at each position."""
        ...

    def keys_values(self, ids: Sequence[int]) -> LayerArrays:
        """By layer, `[kv_heads, tokens, head_dim]`."""
        ...

    def operations(self, tokens: int) -> float:
        """Floating-point operations of a pass over so many tokens, roughly."""
        ...


class WeightReference(Protocol):
    """The model that the decoder was made from, by its parameters."""

    def weight(self, name: str) -> NDArray[np.float32]:
        """A matrix of a linear layer or an embedding, as `[out_features, in_features]`.

        Raises:
            VerificationError: there is none of that name.
        """
        ...


class Truth:
    """A sequence, and the reference's logits after some of its prefixes, all from one pass without a cache.

    A causal model's logits do not depend on what follows: one pass over the longest prompt has those of every shorter
    one. (Where rotary frequencies change with the length, an exported decoder is limited to lengths where they do not.)

    Args:
        reference: computes the pass.
        ids: the sequence.
        lengths: of the prefixes, each at least 1.
    """

    def __init__(self, reference: NumericReference, ids: Sequence[int], lengths: Sequence[int]) -> None:
        self.ids = ids
        wanted = sorted(set(lengths))
        self._row = {length: row for row, length in enumerate(wanted)}
        self._logits = reference.logits(ids, at=[length - 1 for length in wanted])

    def after(self, first: int, last: int | None = None) -> NDArray[np.float32]:
        """Logits after every prefix of `first` to `last` tokens, both included: `[lengths, vocab_size]`."""
        return self._logits[[self._row[length] for length in range(first, (last or first) + 1)]]
