"""Token ids to text, piece by piece, such that prompt and pieces joined are the text of all the ids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from bento_kv.engine.request import Detokenize

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
MAX_PENDING = 16  # tokens; a character has at most 4 bytes, so this many that make none are malformed
MAX_CONTEXT = 32  # tokens of a prompt; what stands before them does not change how the next one reads


class Detokenizer:
    """An incremental detokenizer of linear cost.

    A token alone does not say its text: it may be part of a character, and decoders drop a leading space, so
    `decode([a, b])` is not `decode([a]) + decode([b])`. Decoding everything again for each token would be quadratic. So a
    short window of ids is decoded: the tokens of the last piece as *context*, and after them the *pending* ones. What the
    window's text has beyond what was sent of it is the next piece, and a leading space that the decoder drops is dropped
    from the context, which was sent before. (The idea of the two offsets in vLLM's and text-generation-inference's
    detokenizers.)

    The first context is the end of the prompt: its last tokens that have text, from a whole character on. So an answer
    begins with the space that its first token carries, unless there is no text before it. (transformers' `TextStreamer`
    with `skip_prompt` decodes the answer alone, and loses that space; vLLM begins with the prompt's end, too.) A character
    that the prompt leaves incomplete belongs to the answer if the answer completes it.

    While the text ends in U+FFFD a character may be incomplete, and nothing is sent. Tokens that never complete one
    (malformed UTF-8) are sent as soon as the window can be cut without changing its text.

    The prompt's text and the pieces joined equal `decode(prompt_ids + ids)` if appending a token changes no earlier text but
    a tail of U+FFFD. That holds for byte-level, Metaspace and WordPiece decoders, and for byte-fallback ones on well-formed
    UTF-8; byte-fallback decoders rewrite a whole run of byte tokens once it becomes malformed, and what was sent cannot be
    taken back.

    Args:
        decode: token ids to text.
        prompt_ids: what the ids to come continue.
    """

    def __init__(self, decode: Detokenize, prompt_ids: Sequence[int] = ()) -> None:
        self._decode = decode
        self._prompt_ids: Sequence[int] | None = prompt_ids  # until the first token comes
        self._window: list[int] = []
        self._context = 0  # how many tokens of the window are context
        self._text = ""  # of the window
        self._sent = ""  # what of it was sent, or stands in the prompt
        self._length = 0  # of the pieces so far, in characters
        self._offset = 0

    @property
    def offset(self) -> int:
        """Where the text of the token pushed last begins among the pieces joined, in characters; their end after `finish`.

        Tokens that make a character together begin where it does.
        """
        return self._offset

    def push(self, token_id: int) -> str:
        """The text that is final with this token; often empty, or that of several tokens."""
        if self._prompt_ids is not None:
            self._begin(_context(self._decode, self._prompt_ids))
            self._prompt_ids = None
        self._window.append(token_id)
        self._offset = self._length
        before, self._text = self._text, self._decode(self._window)
        if self._text.endswith(INCOMPLETE):
            return self._give_up() if len(self._window) - self._context >= MAX_PENDING else ""
        if self._text == before and (before or not self._decode([token_id, token_id])):
            # No text of its own, a special token: it would only be in the way. At the very start a space is dropped from
            # the text, too, but two of them show.
            self._window.pop()
            return ""
        piece = self._unsent(self._text)
        self._offset += _common(self._unsent(before), piece)  # behind characters that were never completed
        self._slide()
        return self._counted(piece)

    def finish(self) -> str:
        """The rest, complete or not."""
        piece = self._counted(self._unsent(self._text))
        self._offset = self._length
        self._window, self._context, self._text, self._sent = [], 0, "", ""
        return piece

    def _unsent(self, text: str) -> str:
        """What a text of the window has beyond what was sent; a character that the prompt began is not in it yet."""
        if text.startswith(self._sent):
            return text[len(self._sent) :]
        # Of the tokens in front, up to three begin that character; what stands before it may be malformed itself.
        context = self._window[: self._context]
        fewer = (self._decode(context[: len(context) - left]) for left in range(1, min(3, len(context)) + 1))
        begun = next((part for part in fewer if text.startswith(part)), self._sent.rstrip(INCOMPLETE))
        return text[len(begun) :]

    def _counted(self, piece: str) -> str:
        self._length += len(piece)
        return piece

    def _slide(self) -> None:
        """Make the pending tokens the context. One of them at least has text, so it takes a dropped space upon itself."""
        completes = not self._text.startswith(self._sent)  # what was sent, and so they begin within a character
        self._begin(_context(self._decode, self._window) if completes else self._window[self._context :])

    def _begin(self, context: list[int]) -> None:
        self._window = context
        self._context = len(context)
        self._text = self._decode(context)
        self._sent = self._text

    def _give_up(self) -> str:
        """Send malformed text up to a cut that leaves the last tokens to themselves, if there is one.

        Text on both sides of a cut that, joined, is the text of the whole was not one character. A character spans at most
        four tokens, so a cut is found among the first few places.
        """
        for cut in range(len(self._window) - 4, len(self._window) - 9, -1):
            head, tail = self._decode(self._window[:cut]), self._decode(self._window[cut:])
            if tail and head + tail == self._text and len(head) >= len(self._sent):
                piece = self._unsent(head)
                self._window = self._window[cut:]
                self._context, self._text, self._sent = 0, tail, ""
                return self._counted(piece)
        return ""


def _context(decode: Detokenize, prompt_ids: Sequence[int]) -> list[int]:
    """The last tokens of a prompt that have text. If they are not all, they begin with a whole character: a decoder of
    byte tokens makes no character of a run of them that begins within one."""
    tail = _last_with_text(decode, prompt_ids)
    if len(tail) < MAX_CONTEXT:
        return tail
    starts = (tail[start:] for start in range(4))
    return next((tokens for tokens in starts if _settled(decode, tokens)[:1] not in ("", INCOMPLETE)), tail)


def _settled(decode: Detokenize, tokens: Sequence[int]) -> str:
    """The text of tokens without a character that is incomplete at the end, of three bytes at most."""
    texts = (decode(tokens[: len(tokens) - left]) for left in range(min(4, len(tokens))))
    return next((text for text in texts if not text.endswith(INCOMPLETE)), decode(tokens).rstrip(INCOMPLETE))


def _last_with_text(decode: Detokenize, prompt_ids: Sequence[int]) -> list[int]:
    """The last tokens without those that have no text, the special ones: a decoder does not see them."""
    found: list[int] = []
    silent: set[int] = set()
    for token_id in reversed(prompt_ids):
        if token_id in silent:
            continue
        if decode([token_id, token_id]):  # two, since a decoder may drop the space that is all a token has
            found.append(token_id)
        else:
            silent.add(token_id)
        if len(found) == MAX_CONTEXT:
            break
    return found[::-1]


def _common(left: str, right: str) -> int:
    """How many characters both texts begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
