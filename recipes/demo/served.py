"""The demo's answers from an exported decoder, greedy, as the service computes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bento_kv.contract.manifest import Manifest
from bento_kv.contract.plan import StepPlan, StepRow
from bento_kv.runtime.open import open_decoder
from bento_kv.text.tokenizer import Tokenizer

MAX_NEW_TOKENS = 128


class DecoderAnswerer:
    """A decoder directory, for greedy answers to batches of chats.

    Args:
        directory: of the decoder.
        rows: the largest batch.
    """

    def __init__(self, directory: Path, rows: int) -> None:
        self._ends = set(Manifest.read(directory).token_ids.eos)
        self._tokenizer = Tokenizer(directory)
        self._decoder = open_decoder(directory, slots=rows)

    def answers(self, chats: Sequence[Sequence[Mapping[str, str]]]) -> list[tuple[str, int]]:
        """For each chat the answer, and how many tokens its prompt has."""
        prompts = [self._tokenizer.encode_chat(chat) for chat in chats]
        said: list[list[int]] = [[] for _ in prompts]
        rows = [StepRow(slot, prompt, 0) for slot, prompt in enumerate(prompts)]
        while rows:
            following = []
            for row, logits in zip(rows, self._decoder.step(StepPlan(rows)), strict=True):
                token, at = int(logits.argmax()), row.start + len(row.tokens)
                said[row.slot].append(token)
                room = min(len(prompts[row.slot]) + MAX_NEW_TOKENS - 1, self._decoder.max_length)
                if token not in self._ends and at < room:
                    following.append(StepRow(row.slot, [token], at))
            rows = following
        texts = [self._tokenizer.decode(ids, skip_special_tokens=True) for ids in said]
        return list(zip(texts, map(len, prompts), strict=True))
