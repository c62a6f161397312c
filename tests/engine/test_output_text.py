from __future__ import annotations

from typing import SupportsIndex

from hypothesis import example, given, settings
from hypothesis import strategies as st

from bento_kv.engine.output_text import OutputText, StopSearch
from tests.engine.fakes import letters, to_ids

pieces = st.lists(st.text("ab", max_size=4), max_size=8)
stops = st.lists(st.text("ab", min_size=1, max_size=5), max_size=3)


def search(texts: list[str], stop: list[str]) -> tuple[str, str | None]:
    """What is sent of pieces, all together, and the stop text found."""
    finder, sent = StopSearch(stop), ""
    for text in texts:
        final, found = finder.push(text)
        sent += final
        if found is not None:
            return sent, found
    return sent + finder.finish(), None


def slow_search(text: str, stop: list[str]) -> tuple[str, str | None]:
    for end in range(len(text) + 1):
        if found := [s for s in stop if text[:end].endswith(s)]:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=400)
@given(pieces, stops)
@example(["a", "a", "b"], ["aab", "ab"])
@example(["abab", "aba"], ["ababb", "baa"])
def test_the_first_match_is_found_wherever_the_pieces_are_cut(texts: list[str], stop: list[str]) -> None:
    assert search(texts, stop) == slow_search("".join(texts), stop)


@given(pieces, stops)
def test_what_is_sent_is_never_taken_back_and_no_more_is_held_than_needed(texts: list[str], stop: list[str]) -> None:
    finder, text, sent = StopSearch(stop), "", ""
    for piece in texts:
        final, found = finder.push(piece)
        text += piece
        sent += final
        if found is not None:
            return
        beginnings = [s[:n] for s in stop for n in range(len(s)) if text.endswith(s[:n])]
        assert sent == text[: len(text) - max((len(b) for b in beginnings), default=0)]


class Counted(str):
    """A text that counts how often one of its characters is looked at."""

    looks = 0

    def __getitem__(self, place: SupportsIndex | slice) -> str:
        Counted.looks += 1
        return super().__getitem__(place)


@given(st.integers(1, 300), st.integers(0, 300), st.sampled_from(["a", "ab", "aab"]))
def test_a_stop_text_costs_what_is_pushed_and_not_what_it_is_long(pushed: int, more: int, period: str) -> None:
    text = (period * 301)[:pushed]
    Counted.looks = 0
    finder = StopSearch([Counted(period * 100_000 + "!") for _ in range(4)])
    assert Counted.looks == 0
    finder.push(text + "#" * more)
    assert Counted.looks <= 4 * 6 * (pushed + more)


def test_without_stop_texts_nothing_is_held() -> None:
    assert StopSearch([]).push("abc") == ("abc", None)


def test_a_stop_text_that_straddles_tokens() -> None:
    output = OutputText(letters, ["lo w"])
    sent = [output.push(i) for i in to_ids("hello w")]
    assert sent == [("h", None), ("e", None), ("", None), ("l", None), ("", None), ("", None), ("", "lo w")]


def test_finish_gives_the_text_held_back() -> None:
    output = OutputText(letters, ["xyz"])
    assert [output.push(i)[0] for i in to_ids("axy")] == ["a", "", ""]
    assert output.finish() == ("xy", None)


def test_a_stop_text_may_be_found_at_the_end() -> None:
    output = OutputText(lambda ids: "�" * bool(ids), ["�"])
    assert output.push(1) == ("", None)
    assert output.finish() == ("", "�")
