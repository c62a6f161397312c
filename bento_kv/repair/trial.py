"""Does a graph hold at other sizes? It is run against itself: rows alone, padded, and cached against uncached."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from bento_kv.errors import BentoKVError
from bento_kv.onnx_file import nested_graphs
from bento_kv.repair.files import read
from bento_kv.runtime.graph import Cache, GraphOutput
from bento_kv.runtime.growing import GrowingGraph, geometry
from bento_kv.runtime.session import open_session

BATCHES, SEQUENCES, PASTS = (1, 2, 3), (1, 2, 3, 7), (0, 1, 2, 3, 7)
# Of the largest logit: what rounding may do, with room to spare; a wrong axis does far more. Activations that are
# quantized by tensor depend on what else is in the tensor.
_LIMIT, _HALF, _QUANTIZED = 1e-3, 3e-2, 0.3
_BY_TENSOR = {"MatMulInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulNBits", "QAttention"}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one step."""

    batch: int
    sequence: int
    past: int

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.sequence} tokens, past {self.past}"


@dataclass(frozen=True, slots=True)
class Failure:
    """Sizes that a graph does not survive, and how it fails; `ran` if it runs, and the numbers are wrong."""

    sizes: Sizes
    reason: str
    ran: bool = False


@dataclass(frozen=True, slots=True)
class Use:
    """What a graph has to survive.

    Attributes:
        text: in words.
        chunks: several tokens behind a past.
        empty: an empty past.
    """

    text: str
    chunks: bool
    empty: bool

    def has(self, sizes: Sizes) -> bool:
        if sizes.past == 0:
            return self.empty
        return self.chunks or sizes.sequence == 1

    @property
    def least(self) -> int:
        return 0 if self.empty else 1


EVERYTHING = Use("any number of tokens behind any past", chunks=True, empty=True)
LOOP = Use("prompts behind an empty past, and single tokens behind any", chunks=False, empty=True)
NOT_EMPTY = Use("any number of tokens behind any past but an empty one", chunks=True, empty=False)
LATER = Use("single tokens behind any past but an empty one", chunks=False, empty=False)


class Subject:
    """A graph under trial.

    Args:
        graph: to drive.
        limit: how far logits may be apart that have to be equal, of the largest.
    """

    def __init__(self, graph: GrowingGraph, limit: float) -> None:
        self.graph = graph
        self.limit = limit
        self._ids = np.random.default_rng(0).integers(0, 32, (max(BATCHES), 64))

    @classmethod
    def open(cls, file: Path, origin: Path) -> Self:
        """Load a file.

        Args:
            file: the graph; weights beside it.
            origin: the file that it was made from; the config.json beside tells heads, where the graph does not.

        Raises:
            DecoderError, IntegrityError: the runtime does not load it, or it is no decoder.
        """
        graph = GrowingGraph([open_session(file)], heads_dim=geometry(origin.parent))
        return cls(graph, rounding(read(file)))

    def run(self, sizes: Sizes) -> GraphOutput:
        """One step on a past of numbers made up, the same for the same sizes' rows and positions."""
        return self.graph.run(self._tokens(sizes), self._past(sizes))

    def _tokens(self, sizes: Sizes) -> NDArray[np.int64]:
        return np.resize(self._ids, (max(sizes.batch, 3), 64 + sizes.sequence))[: sizes.batch, : sizes.sequence]

    def _past(self, sizes: Sizes) -> Cache:
        rng = np.random.default_rng(1)
        cache = []
        for keys, values in self.graph.empty_cache(1):
            sides = []
            for side in (keys, values):
                drawn = rng.standard_normal((max(sizes.batch, 3), side.shape[1], max(sizes.past, 64), side.shape[3]))
                sides.append(drawn[: sizes.batch, :, : sizes.past].astype(side.dtype))
            cache.append((sides[0], sides[1]))
        return cache

    def failure(self, fixed: dict[str, int], use: Use) -> Failure | None:
        """The first sizes at which it fails, of all that a use has and the axes not fixed allow."""
        for sizes in _sizes(fixed):
            if "past" not in fixed and not use.has(sizes):
                continue
            try:
                reason = self._differs(sizes, fixed, use)
            except BentoKVError as error:
                return Failure(sizes, str(error))
            if reason:
                return Failure(sizes, reason, ran=True)
        return None

    def _differs(self, sizes: Sizes, fixed: dict[str, int], use: Use) -> str | None:
        if sizes.batch > 1 and "batch" not in fixed:
            return self._rows_differ(sizes)
        if not {"sequence", "past"} & set(fixed) and use is not LATER:
            return self._cached_differs(sizes, use.least)
        return self._bad(self.run(sizes), sizes)

    def _rows_differ(self, sizes: Sizes) -> str | None:
        """Rows together and alone; and where there is a mask, the rows padded on the left by 0, 1, 2 positions."""
        together = self.run(sizes)
        bad = self._bad(together, sizes)
        if bad:
            return bad
        ids, past = self._tokens(sizes), self._past(sizes)
        for row in range(sizes.batch):
            alone = self.graph.run(ids[row : row + 1], [(k[row : row + 1], v[row : row + 1]) for k, v in past])
            if self._apart(together.logits[row], alone.logits[0]):
                return f"row {row}'s logits change with the rows beside it"
        if self.graph.takes_mask and sizes.past + sizes.sequence >= sizes.batch:
            return self._padded_rows_differ(sizes)
        return None

    def _padded_rows_differ(self, sizes: Sizes) -> str | None:
        """Rows padded on the left by 0, 1, 2 positions, together and alone."""
        length = sizes.past + sizes.sequence
        ids, past = self._tokens(sizes), self._past(sizes)
        mask = (np.arange(length) >= np.arange(sizes.batch)[:, None]).astype(np.int64)
        together = self.graph.run(ids, past, mask=mask)
        for row in range(sizes.batch):
            one = slice(row, row + 1)
            alone = self.graph.run(ids[one], [(k[one], v[one]) for k, v in past], mask=mask[one])
            seen = min(
                max(0, row - sizes.past), together.logits.shape[1] - 1
            )  # what a padded position itself computes is nobody's business
            if self._apart(together.logits[row, seen:], alone.logits[0, seen:]):
                return f"row {row}, padded on the left by {row}, has other logits beside other rows than alone"
        return None

    def _cached_differs(self, sizes: Sizes, least: int) -> str | None:
        """Past and tokens in one pass, and the tokens behind a cache of the past; both behind the least past."""
        before = sizes.past - least
        ids = self._tokens(Sizes(sizes.batch, before + sizes.sequence, 0))
        start = self._past(Sizes(sizes.batch, 0, least))
        whole = self.graph.run(ids, start)
        past = self.graph.run(ids[:, :before], start).present if before else start
        cached = self.graph.run(ids[:, before:], past)
        bad = self._bad(cached, sizes)
        if bad:
            return bad
        if self._apart(whole.logits[:, -1], cached.logits[:, -1]):
            return "logits behind a cache differ from those without one"
        return None

    def differ(self, one: GraphOutput, other: GraphOutput) -> bool:
        """Whether two steps' logits are further apart than rounding puts them."""
        return self._apart(one.logits, other.logits)

    def _bad(self, output: GraphOutput, sizes: Sizes) -> str | None:
        rows, tokens = output.logits.shape[:2]
        if rows != sizes.batch or tokens not in (1, sizes.sequence):
            return f"logits come out as {list(output.logits.shape)}"
        for layer, sides in enumerate(output.present):
            for side in sides:
                if side.shape[2] != sizes.past + sizes.sequence or side.shape[0] != sizes.batch:
                    return f"layer {layer}'s present comes out as {list(side.shape)}"
        return None if np.isfinite(output.logits).all() else "logits are not numbers"

    def _apart(self, one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
        tokens = min(one.shape[0], other.shape[0])
        one, other = one[-tokens:], other[-tokens:]
        return not float(np.abs(one - other).max()) <= self.limit * float(np.abs(other).max())


def rounding(model: onnx.ModelProto) -> float:
    """How far a graph's logits may be apart that have to be equal, of the largest."""
    graphs = list(nested_graphs(model.graph))
    if any(node.op_type in _BY_TENSOR for graph in graphs for node in graph.node):
        return _QUANTIZED
    narrow = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    halves = any(tensor.data_type in narrow for graph in graphs for tensor in graph.initializer)
    return _HALF if halves else _LIMIT


def _sizes(fixed: dict[str, int]) -> Iterator[Sizes]:
    def of(name: str, usual: tuple[int, ...]) -> tuple[int, ...]:
        return (fixed[name],) if name in fixed else usual

    for batch, sequence, past in itertools.product(of("batch", BATCHES), of("sequence", SEQUENCES), of("past", PASTS)):
        yield Sizes(batch, sequence, past)
