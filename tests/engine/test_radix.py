from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from bento_kv.engine.radix import RadixTree, common_prefix

sequences = st.lists(st.integers(0, 2), max_size=7).map(tuple)


def plain_common_prefix(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@given(a=sequences, b=sequences)
def test_common_prefix(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    assert common_prefix(a, b) == plain_common_prefix(a, b)
    assert common_prefix(list(a), list(b)) == plain_common_prefix(a, b)


class AgainstAList(RuleBasedStateMachine):
    """The tree and a plain list of sequences answer alike, whatever is added and removed."""

    values = Bundle("values")

    def __init__(self) -> None:
        super().__init__()
        self.tree: RadixTree[int] = RadixTree()
        self.plain: dict[int, tuple[int, ...]] = {}

    @rule(target=values, tokens=sequences)
    def add(self, tokens: tuple[int, ...]) -> int:
        value = len(self.plain) + max(self.plain, default=0) + 1
        self.tree.add(tokens, value)
        self.plain[value] = tokens
        return value

    @rule(value=consumes(values))
    def remove(self, value: int) -> None:
        self.tree.remove(value)
        del self.plain[value]

    @rule(tokens=sequences)
    def find(self, tokens: tuple[int, ...]) -> None:
        length, found = self.tree.find(tokens)
        assert length == max((plain_common_prefix(tokens, other) for other in self.plain.values()), default=0)
        assert bool(found) == bool(self.plain)
        assert all(self.plain[value][:length] == tokens[:length] for value in found)
        exact = {value for value, other in self.plain.items() if other == tokens[:length]}
        assert not exact or set(found) == exact

    @rule(value=values)
    def relations(self, value: int) -> None:
        own = self.plain[value]
        others = {other: tokens for other, tokens in self.plain.items() if other != value}
        assert self.tree.covered(value) == any(tokens[: len(own)] == own for tokens in others.values())
        assert set(self.tree.prefixes(value)) == {
            other for other, tokens in others.items() if own[: len(tokens)] == tokens
        }

    @invariant()
    def holds_the_same(self) -> None:
        assert set(self.tree) == set(self.plain)
        assert len(self.tree) == len(self.plain)


TestAgainstAList = AgainstAList.TestCase
