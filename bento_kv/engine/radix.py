"""A radix tree over token ids: which of many sequences shares the longest prefix with a given one."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Generic, TypeVar

V = TypeVar("V", bound=Hashable)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first elements two sequences of one type share; by halving, so that the work is done by slices."""
    low, high = 0, min(len(a), len(b))  # equal up to `low`, nothing shared behind `high`
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class _Node(Generic[V]):
    """The prefix that the edges down to here spell. A leaf has values, and so there are values below every node."""

    __slots__ = ("children", "edge", "parent", "values")

    def __init__(self, edge: tuple[int, ...], parent: _Node[V] | None) -> None:
        self.edge = edge
        self.parent = parent
        self.children: dict[int, _Node[V]] = {}  # by the first token of their edge
        self.values: dict[V, None] = {}  # of the sequences that end here, oldest first


class RadixTree(Generic[V]):
    """Values by sequences of token ids; the same sequence may have several. Costs go by lengths, not by how many there are.

    (Morrison, "PATRICIA", 1968; as a prefix cache in SGLang's RadixAttention, arXiv 2312.07104.)
    """

    def __init__(self) -> None:
        self._root: _Node[V] = _Node((), None)
        self._ends: dict[V, _Node[V]] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[V]:
        return iter(self._ends)

    def add(self, tokens: tuple[int, ...], value: V) -> None:
        """Put a value, which must not be in the tree, at the end of a sequence."""
        assert value not in self._ends
        node, depth = self._root, 0
        while depth < len(tokens):
            child = node.children.get(tokens[depth])
            if child is None:
                child = node.children[tokens[depth]] = _Node(tokens[depth:], node)
                node, depth = child, len(tokens)
                break
            shared = common_prefix(child.edge, tokens[depth : depth + len(child.edge)])
            node = child if shared == len(child.edge) else self._split(child, shared)
            depth += shared
        node.values[value] = None
        self._ends[value] = node

    def remove(self, value: V) -> None:
        """Take a value out."""
        node = self._ends.pop(value)
        del node.values[value]
        while node.parent is not None and not node.values and len(node.children) < 2:
            parent = node.parent
            if node.children:  # one child: it takes the node's place
                (child,) = node.children.values()
                child.edge, child.parent = node.edge + child.edge, parent
                parent.children[child.edge[0]] = child
                return
            del parent.children[node.edge[0]]
            node = parent

    def find(self, tokens: tuple[int, ...]) -> tuple[int, list[V]]:
        """The longest prefix of `tokens` that a sequence of the tree begins with.

        Returns its length, and values of sequences that begin with it: all that end just there, or if none does, those of
        one that goes on. No values if the tree is empty.
        """
        node, depth = self._root, 0
        while depth < len(tokens) and (child := node.children.get(tokens[depth])) is not None:
            shared = common_prefix(child.edge, tokens[depth : depth + len(child.edge)])
            node, depth = child, depth + shared
            if shared < len(child.edge):
                break
        while not node.values and node.children:
            node = next(iter(node.children.values()))
        return depth, list(node.values)

    def covered(self, value: V) -> bool:
        """Whether another value's sequence is, or begins with, this value's."""
        node = self._ends[value]
        return len(node.values) > 1 or bool(node.children)

    def prefixes(self, value: V) -> Iterator[V]:
        """The other values whose sequences are this value's, or the beginning of it."""
        node: _Node[V] | None = self._ends[value]
        while node is not None:
            yield from [other for other in node.values if other != value]
            node = node.parent

    def _split(self, node: _Node[V], length: int) -> _Node[V]:
        """Make a node of the first `length` tokens of a node's edge, and return it."""
        assert node.parent is not None
        upper: _Node[V] = _Node(node.edge[:length], node.parent)
        node.parent.children[upper.edge[0]] = upper
        node.edge, node.parent = node.edge[length:], upper
        upper.children[node.edge[0]] = node
        return upper
