"""Token ids to text, piece by piece, such that the pieces joined are the text of all the ids."""

from __future__ import annotations

from bento_kv.engine.request import Detokenize

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
MAX_PENDING = 16  # tokens; a character has at most 4 bytes, so this many that make none are malformed


class Detokenizer:
    """An incremental detokenizer of linear cost.

    A token alone does not say its text: it may be part of a character, and decoders drop a leading space, so
    `decode([a, b])` is not `decode([a]) + decode([b])`. Decoding everything again for each token would be quadratic. So a
    short window of ids is decoded: the tokens of the last piece as *context*, and after them the *pending* ones. What the
    window's text has beyond what was sent of it is the next piece, and a leading space that the decoder drops is dropped
    from the context, which was sent before. (The idea of the two offsets in vLLM's and text-generation-inference's
    detokenizers.)

    While the text ends in U+FFFD a character may be incomplete, and nothing is sent. Tokens that never complete one
    (malformed UTF-8) are sent as soon as the window can be cut without changing its text.

    The pieces joined equal `decode(ids)` if appending a token changes no earlier text but a tail of U+FFFD. That holds for
    byte-level, Metaspace and WordPiece decoders, and for byte-fallback ones on well-formed UTF-8; byte-fallback decoders
    rewrite a whole run of byte tokens once it becomes malformed, and what was sent cannot be taken back.
    """

    def __init__(self, decode: Detokenize) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._context = 0  # how many tokens of the window are context
        self._text = ""  # of the window
        self._sent = 0  # how many characters of it were sent

    def push(self, token_id: int) -> str:
        """The text that is final with this token; often empty, or that of several tokens."""
        self._window.append(token_id)
        before, self._text = self._text, self._decode(self._window)
        if self._text.endswith(INCOMPLETE):
            return self._give_up() if len(self._window) - self._context >= MAX_PENDING else ""
        if self._text == before and (before or not self._decode([token_id, token_id])):
            # No text of its own, a special token: it would only be in the way. At the very start a space is dropped from
            # the text, too, but two of them show.
            self._window.pop()
            return ""
        piece = self._text[self._sent :]
        self._slide()
        return piece

    def finish(self) -> str:
        """The rest, complete or not."""
        piece = self._text[self._sent :]
        self._window, self._context, self._text, self._sent = [], 0, "", 0
        return piece

    def _slide(self) -> None:
        """Make the pending tokens the context. One of them at least has text, so it takes a dropped space upon itself."""
        self._window = self._window[self._context :]
        self._context = len(self._window)
        self._text = self._decode(self._window)
        self._sent = len(self._text)

    def _give_up(self) -> str:
        """Send malformed text up to a cut that leaves the last tokens to themselves, if there is one.

        Text on both sides of a cut that, joined, is the text of the whole was not one character. A character spans at most
        four tokens, so a cut is found among the first few places.
        """
        for cut in range(len(self._window) - 4, len(self._window) - 9, -1):
            head, tail = self._decode(self._window[:cut]), self._decode(self._window[cut:])
            if tail and head + tail == self._text and len(head) >= self._sent:
                piece = head[self._sent :]
                self._window = self._window[cut:]
                self._context, self._text, self._sent = 0, tail, 0
                return piece
        return ""
