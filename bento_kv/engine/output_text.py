"""From chosen tokens to text that is final: the detokenizer, then the search for stop texts."""

from __future__ import annotations

from collections.abc import Sequence

from bento_kv.engine.detokenizer import Detokenizer
from bento_kv.engine.request import Detokenize


class StopSearch:
    """Finds the first of some texts in a stream of pieces, and holds back what may turn out to be the start of one.

    The match that ends first wins, and of those that end together the longest, so the result does not depend on where the
    pieces were cut. Each text is followed by a Knuth-Morris-Pratt automaton, so the cost is linear in what is pushed,
    whatever the texts are and however long.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._automata = [_Automaton(stop) for stop in stops]
        self._held = ""  # not final: the start of a stop text, perhaps

    def push(self, piece: str) -> tuple[str, str | None]:
        """Returns the text that is final now, and the stop text found, if one is; nothing may be pushed after it."""
        if not self._automata:
            return piece, None
        text = self._held + piece
        for end, character in enumerate(piece, start=len(self._held) + 1):
            found = [automaton.text for automaton in self._automata if automaton.feed(character)]
            if found:
                stop = max(found, key=len)
                self._held = ""
                return text[: end - len(stop)], stop
        final = len(text) - max(automaton.matched for automaton in self._automata)
        self._held = text[final:]
        return text[:final], None

    def finish(self) -> str:
        """The text held back: it will not become a stop text any more."""
        held, self._held = self._held, ""
        return held


class OutputText:
    """The text of one output, piece by piece, cut before the first stop text.

    Args:
        detokenize: token ids to text.
        stops: texts that end the output.
        prompt_ids: what the output continues.
    """

    def __init__(self, detokenize: Detokenize, stops: Sequence[str], prompt_ids: Sequence[int] = ()) -> None:
        self._detokenizer = Detokenizer(detokenize, prompt_ids)
        self._search = StopSearch(stops)

    @property
    def offset(self) -> int:
        """Where the text of the last token begins in the output's, in characters."""
        return self._detokenizer.offset

    def push(self, token_id: int) -> tuple[str, str | None]:
        """Returns the text that is final now, and the stop text that ends the output, if one does."""
        return self._search.push(self._detokenizer.push(token_id))

    def finish(self) -> tuple[str, str | None]:
        """The rest, when no token will follow; a stop text may be found in it still."""
        text, stop = self._search.push(self._detokenizer.finish())
        return (text, stop) if stop is not None else (text + self._search.finish(), None)


class _Automaton:
    """How much of a text the characters fed so far end with.

    The table of borders is as long as the longest match so far, and not as the text: a stop text costs nothing until an
    output begins like it, and then no more than that output.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._borders = [0]  # [i]: longest proper prefix of text[: i + 1] that is also its suffix

    def feed(self, character: str) -> bool:
        """Whether the text ends here. Nothing may be fed after that."""
        self.matched = self._longer(self.matched, character)
        if self.matched > len(self._borders):
            self._borders.append(self._longer(self._borders[-1], character))
        return self.matched == len(self.text)

    def _longer(self, length: int, character: str) -> int:
        """The longest prefix that `character` ends, after one of `length` characters."""
        while length and self.text[length] != character:
            length = self._borders[length - 1]
        return length + (self.text[length] == character)
