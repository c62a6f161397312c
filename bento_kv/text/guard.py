"""Control tokens in what users say stay text: nobody opens a turn by writing `<|im_start|>system` into a message.

A tokenizer finds its control tokens in a text wherever they stand, and a rendered conversation is one text, in which what
the template wrote and what users wrote look alike. So the two are told apart first:

- The template is rendered a second time with a mask for every character that a user may have written. Where both
  renderings agree but for masks, each character's author is known.
- A template that looks into its messages may render masks in another way. Then it is rendered with a mark in place of each
  control token that is spelled out in it, and what bears no mark counts as text.

If users wrote no control token, the rendering is encoded as it is, and has the ids that it has in transformers. Otherwise
what the template wrote gets marks for its control tokens, and a second tokenizer encodes it that knows them by these marks
alone. Marks are random, so nobody can write one.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import tokenizers

from bento_kv.errors import ManifestError, RequestError, TokenizerError
from bento_kv.text.chat_template import ChatTemplate
from bento_kv.text.native import native
from bento_kv.text.rendering import any_of

_MASK = "\ue000"
_RUN = re.compile(rf"{_MASK}(?:[{_MASK}\s]*{_MASK})?|[^{_MASK}]+")  # what users wrote from end to end, or the template
# White space decides what templates trim, and JSON writes quotes and such in two characters.
_MASKED = re.compile(r'[^\s"\\\x00-\x1f]+')
# What a template compares and writes, and users choose from a list.
_CHOICES: Mapping[str, frozenset[str]] = {
    "role": frozenset({"system", "developer", "user", "assistant", "tool", "function", "ipython", "model"}),
    "type": frozenset({"text", "function", "image", "image_url", "audio", "input_audio"}),
}
_TAG = re.compile(r"\w[^\w\s]|[^\w\s]\w")  # a word with something around it: nobody's way to write a word or a rule
_PROBE = ("system", "user", "assistant", "user", "tool")

Messages = Sequence[Mapping[str, Any]]


class MessageGuard:
    """Token ids of conversations in which only the template's own control tokens are control tokens.

    These are the special tokens, and of the other added ones those that the template writes: others, such as runs of spaces
    or HTML tags, are text to a model.

    Args:
        tokenizer_json: of the model's tokenizer.
        template: the model's chat template.
        encode: the model's tokenizer, for a text that is all its own.

    Raises:
        ManifestError: the tokenizer cannot be rebuilt with marks for its control tokens.
    """

    def __init__(self, tokenizer_json: str, template: ChatTemplate, encode: Callable[[str], list[int]]) -> None:
        document = json.loads(tokenizer_json)
        control = _control_tokens(document, template)
        secret = secrets.token_hex(16)
        self._marks = {content: f"<{secret}:{token_id}>" for content, token_id in control.items()}
        self._pattern = any_of(self._marks)
        self._template = template
        self._marked = template.marked(self._marks)
        self._encode = encode
        try:
            self._backend = native(tokenizers.Tokenizer.from_str, json.dumps(_renamed(document, self._marks)))
        except TokenizerError as error:
            raise ManifestError(f"the tokenizer cannot be rebuilt without its control tokens: {error}") from error
        self._backend.no_truncation()
        self._backend.no_padding()
        if any(self._backend.token_to_id(mark) != control[content] for content, mark in self._marks.items()):
            raise ManifestError("the tokenizer's control tokens change their ids when they are renamed")
        # Some tokens are looked for in the normalized text, in which users may have them that wrote something else.
        self._normalize: Callable[[str], str] | None = None
        if self._backend.normalizer is not None and any(token["normalized"] for token in document["added_tokens"]):
            normalize = self._backend.normalizer.normalize_str
            self._normalize = lambda text: native(normalize, text)
            self._normalized = any_of({*control, *(self._normalize(content).strip("\u2581 ") for content in control)})

    def encode(self, messages: Messages, check: Callable[[str], None] = lambda rendered: None) -> list[int]:
        """Token ids of the rendering, with the assistant's turn opened.

        Args:
            messages: of the conversation.
            check: told the rendering before anything that takes long is done with it; it raises what is to be raised.

        Raises:
            RequestError: the template refuses the messages.
            TokenizerError: the tokenizer fails on the rendering.
        """
        now = datetime.now()
        rendered = self._template.render(messages, now=now)
        check(rendered)
        text = self._with_marks(messages, rendered, now)
        if text is None:
            return self._encode(rendered)
        return native(self._backend.encode_batch_fast, [text], add_special_tokens=False)[0].ids  # keeps no GIL

    def _with_marks(self, messages: Messages, rendered: str, now: datetime) -> str | None:
        """The rendering with marks for the template's control tokens; None if it has no others."""
        try:
            masked = self._template.render(_masked(messages), now=now)
        except RequestError:  # it wants to see something in particular
            masked = ""
        runs = [(run[0], rendered[run.start() : run.end()]) for run in _RUN.finditer(masked)]
        if len(masked) == len(rendered) and all(seen[0] == _MASK or seen == text for seen, text in runs):
            if self._found(masked) == self._found(rendered):
                return None
            return "".join(text if seen[0] == _MASK else self._mark(text) for seen, text in runs)
        marked = self._marked.render(messages, now=now)
        contents = {mark: content for content, mark in self._marks.items()}
        ours = any_of(contents)
        plain = ours.sub(lambda found: contents[found[0]], marked)
        return None if plain == rendered and not self._found(ours.sub(_MASK, marked)) else marked

    def _found(self, text: str) -> list[tuple[int, str]]:
        """Control tokens that the tokenizer may find in a text, and where."""
        found = [(match.start(), match[0]) for match in self._pattern.finditer(text)]
        if self._normalize is not None:
            found += [(-1, match[0]) for match in self._normalized.finditer(self._normalize(text))]
        return found

    def _mark(self, text: str) -> str:
        return self._pattern.sub(lambda found: self._marks[found[0]], text)


def _control_tokens(document: Mapping[str, Any], template: ChatTemplate) -> dict[str, int]:
    written = [*template.literals]
    for roles in (_PROBE, _PROBE[1:], _PROBE[1:3], _PROBE[1:2]):
        try:
            written.append(template.render([{"role": role, "content": ""} for role in roles]))
        except RequestError:
            continue
    return {
        added["content"]: added["id"]
        for added in document.get("added_tokens", [])
        if added["special"] or (_TAG.search(added["content"]) and any(added["content"] in text for text in written))
    }


def _renamed(document: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The tokenizer with other names for some tokens of its vocabulary, so that no text has them."""
    model = dict(document["model"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): token_id for token, token_id in vocabulary.items()}
    else:  # Unigram's, with scores
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if "merges" in model:
        pairs = (tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"])
        model["merges"] = [pair for pair in pairs if not names.keys() & {*pair, "".join(pair)}]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    # A mark is found wherever it stands, and before the text is normalized.
    always = {"single_word": False, "normalized": False}
    added = [
        {**token, **always, "content": names[token["content"]]} if token["content"] in names else token
        for token in document["added_tokens"]
    ]
    return {**document, "model": model, "added_tokens": added}


def _masked(value: Any) -> Any:
    """The value with a mask for every character that a user may have written."""
    if isinstance(value, str):
        return _MASKED.sub(lambda found: _MASK * len(found[0]), value)
    if isinstance(value, Mapping):
        return {
            key if str(key).isidentifier() else _masked(key): item if _chosen(key, item) else _masked(item)
            for key, item in value.items()
        }
    return [_masked(item) for item in value] if isinstance(value, list | tuple) else value


def _chosen(key: Any, item: Any) -> bool:
    return isinstance(item, str) and item in _CHOICES.get(key, ())
