"""Decoders whose cache cannot be cut by position: states of one size, static caches, and whatever grows beside them.

What a step returns is fed to the next as it is. Nothing is known of what stands in it, so nothing is read out of it here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bento_kv.contract.graph_io import TensorSpec
from bento_kv.errors import DecoderError, GraphLimitError, first_line
from bento_kv.runtime.feeds import NUMPY, step_feeds
from bento_kv.runtime.interface import Interface
from bento_kv.runtime.limits import run

# What the mask spans: the whole static cache, all tokens until now, those that a sliding cache kept, or the new ones.
MaskSpan = Literal["capacity", "total", "kept", "tokens"]
Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Carried:
    """What one step hands to the next.

    Attributes:
        held: tokens that were fed until now.
        arrays: by the names of the graph's inputs.
    """

    held: int
    arrays: Arrays


@dataclass(frozen=True, slots=True)
class Link:
    """An input, the output that it becomes, and the axis that grows, if one does."""

    past: TensorSpec
    present: TensorSpec
    grows: int | None
    state: bool


class CarriedGraph:
    """One graph, driven by what it returns.

    Args:
        session: of the graph.
        interface: its inputs and outputs.
        heads_dim: key and value heads and head size, where the graph does not declare them.
        span: what the mask spans.

    Attributes:
        links: by the order of the graph.
        capacity: tokens that a static cache has room for; None where there is none.
        rows: the one number of rows that it takes; None where that varies.

    Raises:
        DecoderError: nothing says how large something is that is carried.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        interface: Interface,
        *,
        heads_dim: tuple[int, int] | None = None,
        span: MaskSpan = "total",
    ) -> None:
        self._session = session
        self.interface = interface
        self._heads_dim = heads_dim
        self.span = span
        self.links = tuple(_links(interface))
        static = [pair.size("time") for pair in interface.caches] if interface.static else []
        self.capacity = min((size for size in static if size is not None), default=None)
        self.rows = _fixed_rows(interface, self.links)
        self.takes_positions = interface.positions is not None
        self.empty(self.rows or 1)

    def spans(self) -> Iterator[CarriedGraph]:
        """The same graph with every span that its mask may have, the likeliest first."""
        for span in get_args(MaskSpan) if self.interface.mask is not None else ("total",):
            if span != "capacity" or self._width is not None:
                yield CarriedGraph(self._session, self.interface, heads_dim=self._heads_dim, span=span)

    @property
    def _width(self) -> int | None:
        """Columns of a mask that spans the whole cache."""
        mask = self.interface.mask
        declared = mask.shape[-1] if mask is not None else None
        return declared if isinstance(declared, int) else self.capacity

    def empty(self, rows: int) -> Carried:
        """Before the first token: zeros, or nothing along an axis that grows."""
        arrays: dict[str, NDArray[np.generic]] = {
            link.past.name: np.zeros(self._shape(link, rows), NUMPY[link.past.dtype]) for link in self.links
        }
        return Carried(0, arrays)

    def _shape(self, link: Link, rows: int) -> list[int]:
        spec = link.past
        pair = next((pair for pair in self.interface.caches if pair.past is spec), None)
        shape = []
        for at, size in enumerate(spec.shape):
            axis = pair.axes[at] if pair else "rows" if at == _rows_axis(spec) else "dim"
            if isinstance(size, int):
                shape.append(size)
            elif axis == "rows":
                shape.append(rows)
            elif at == link.grows:
                shape.append(0)
            elif pair and self._heads_dim and axis in ("heads", "dim"):
                shape.append(self._heads_dim[axis == "dim"])
            else:
                raise DecoderError(
                    f"{spec.name} {list(spec.shape)} does not say how large its axis {at} is, so nobody knows what the "
                    "first step is fed"
                )
        return shape

    def run(
        self, ids: NDArray[np.int64], before: Carried, *, positions: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], Carried]:
        """One step: logits `[rows, tokens or 1, vocab_size]`, and what the next step is fed.

        Raises:
            DecoderError: the runtime refuses, or fails.
        """
        feeds = step_feeds(self.interface, ids, before.held, self._seen(ids, before), positions)
        names = [self.interface.logits.name, *(link.present.name for link in self.links)]
        try:
            logits, *presents = run(self._session, names, {**feeds, **before.arrays})
        except GraphLimitError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise DecoderError(
                f"the runtime failed on {ids.shape[1]} tokens of {ids.shape[0]} rows behind {before.held}: "
                f"{first_line(error)}"
            ) from error
        arrays: dict[str, NDArray[np.generic]] = {
            link.past.name: array for link, array in zip(self.links, presents, strict=True)
        }
        scores = np.asarray(logits, np.float32)
        return scores[:, None] if scores.ndim == 2 else scores, Carried(before.held + ids.shape[1], arrays)

    def _seen(self, ids: NDArray[np.int64], before: Carried) -> NDArray[np.int64]:
        """Ones for all that there is until now, of the mask's span."""
        rows, tokens = ids.shape
        end = before.held + tokens
        if self.span == "tokens":
            return np.ones((rows, tokens), np.int64)
        if self.span == "kept":
            growing = [before.arrays[link.past.name].shape[link.grows] for link in self.links if link.grows is not None]
            return np.ones((rows, min(growing, default=before.held) + tokens), np.int64)
        width = self._width if self.span == "capacity" and self._width is not None else end
        return np.broadcast_to((np.arange(width) < end).astype(np.int64), (rows, width))


def replaced(before: Carried, arrays: Arrays) -> Carried:
    """With some arrays exchanged."""
    return replace(before, arrays={**before.arrays, **arrays})


def _links(interface: Interface) -> Iterator[Link]:
    for pair in interface.caches:
        if pair.past is None or pair.present is None:
            there = pair.past or pair.present
            raise DecoderError(
                f"{there.name if there else 'a cache'} has no counterpart: nobody knows what becomes of it"
            )
        time = pair.axes.index("time")
        grows = None if isinstance(pair.past.shape[time], int) else time
        yield Link(pair.past, pair.present, grows, state=False)
    for state in interface.states:
        yield Link(state.past, state.present, None, state=True)


def _rows_axis(spec: TensorSpec) -> int | None:
    """Of a state: the first axis that varies; states of all layers in one tensor have the layers before the rows."""
    return next((at for at, size in enumerate(spec.shape) if not isinstance(size, int)), None)


def _fixed_rows(interface: Interface, links: tuple[Link, ...]) -> int | None:
    declared = interface.ids.shape[0]
    if isinstance(declared, int):
        return declared
    return 1 if any(all(isinstance(size, int) for size in link.past.shape) for link in links) else None
