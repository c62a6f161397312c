"""Loops that are right, each in its own way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bento_kv.runtime.graph import Cache, CachedGraph, cache_length
from tests.mutants.printing import PAD, Fields, Ids, Lines, Make, Printer, best, cut, row, run, two


def greedy(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
    return decode(graph, row(prompt), steps, fields)


def decode(graph: CachedGraph, ids: Ids, steps: int, fields: Fields) -> Lines:
    printer, past = Printer(fields), graph.empty_cache(len(ids))
    for _ in range(steps):
        output = run(graph, ids, past)
        token = best(output)
        printer.step(ids, past, output, token)
        ids, past = token[:, None], output.present
    return printer.lines


def chunked(size: int) -> Make:
    def make(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
        printer, past = Printer(fields), graph.empty_cache(1)
        chunks = [row(prompt[at : at + size]) for at in range(0, len(prompt), size)]
        for number, chunk in enumerate(chunks):
            output = run(graph, chunk, past)
            token = best(output) if number == len(chunks) - 1 else None
            printer.step(chunk, past, output, token)
            past = output.present
        for _ in range(steps):
            assert token is not None
            ids = token[:, None]
            output = run(graph, ids, past)
            token = best(output)
            printer.step(ids, past, output, token)
            past = output.present
        return printer.lines

    return make


def speculative(*, roll_back: bool) -> Make:
    """Drafts of three, of which the loop's own decoder gives the first ones and chance the last."""

    def make(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
        printer, ids, past = Printer(fields), row(prompt), graph.empty_cache(1)
        for number in range(steps):
            output = run(graph, ids, past)
            chosen = output.logits[0].argmax(axis=-1)  # [tokens]
            accepted = 0 if number > 1 else ids.shape[1] - 1
            while accepted < ids.shape[1] - 1 and chosen[accepted] == ids[0, accepted + 1]:
                accepted += 1
            at = accepted - ids.shape[1]
            token = np.array([chosen[at]])
            printer.step(ids, past, output, token, logits=output.logits[:, at])
            kept = cache_length(past) + accepted + 1
            past = cut(output.present, kept) if roll_back else output.present
            ids = token[:, None] if number == 0 else draft(graph, int(token[0]), past, good=number % 3)
        return printer.lines

    return make


def draft(graph: CachedGraph, token: int, past: Cache, good: int) -> Ids:
    ids = [token]
    for number in range(3):
        output = run(graph, row(ids[-1:]), past)
        past = output.present
        # The second likeliest is a draft to be rejected.
        ids.append(int(np.argsort(-output.logits[0, -1])[0 if number < good else 1]))
    return row(ids)


def batch(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
    return decode(graph, two(prompt), steps, fields)


def left_padded(*, positions_count_padding: bool) -> Make:
    def make(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
        short = list(prompt)[2:]
        ids = np.array([list(prompt), [PAD] * (len(prompt) - len(short)) + short], dtype=np.int64)
        mask = (np.arange(len(prompt)) >= np.array([[0], [len(prompt) - len(short)]])).astype(np.int64)
        printer, past = Printer(fields), graph.empty_cache(2)
        for number in range(steps):
            positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
            if positions_count_padding and number:
                positions = np.full((2, 1), cache_length(past))
            output = run(graph, ids, past, positions, mask)
            token = best(output)
            printer.step(ids, past, output, token, positions=positions)
            ids, past = token[:, None], output.present
            mask = np.concatenate((mask, np.ones((2, 1), np.int64)), axis=1)
        return printer.lines

    return make


def ended_row(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
    """Row 1 has its answer after three tokens and is fed padding until row 0 is done."""
    printer, ids, past = Printer(fields), two(prompt), graph.empty_cache(2)
    for number in range(steps):
        output = run(graph, ids, past)
        token = best(output)
        printer.step(ids, past, output, token)
        fed = token.copy()
        if number >= 3:
            fed[1] = PAD
        ids, past = fed[:, None], output.present
    return printer.lines


def sampled(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
    printer, ids, past = Printer(fields), row(prompt), graph.empty_cache(1)
    random = np.random.default_rng(7)
    for _ in range(steps):
        output = run(graph, ids, past)
        noise = random.gumbel(size=output.logits[0, -1].shape)
        token = np.array([int((output.logits[0, -1] / 1.5 + noise).argmax())])
        printer.step(ids, past, output, token)
        ids, past = token[:, None], output.present
    return printer.lines


def one_token(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
    return decode(graph, row(prompt[:1]), steps, fields)


def long_run(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
    return decode(graph, row(prompt), max(steps, 40), fields)


def last_again(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
    """As with a prefix that is cached in full: the last token of the prompt is fed again for its logits."""
    printer, ids = Printer(fields), row(prompt)
    output = run(graph, ids, graph.empty_cache(1))
    printer.step(ids, graph.empty_cache(1), output, None)
    ids, past = ids[:, -1:], cut(output.present, len(prompt) - 1)
    for _ in range(steps):
        output = run(graph, ids, past)
        token = best(output)
        printer.step(ids, past, output, token)
        ids, past = token[:, None], output.present
    return printer.lines


def preempted(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
    """Gives its cache up at step 4 and computes it again."""
    printer, ids, past, text = Printer(fields), row(prompt), graph.empty_cache(1), list(prompt)
    for number in range(steps):
        if number == 4:
            ids, past = row(text), graph.empty_cache(1)
        output = run(graph, ids, past)
        token = best(output)
        text.append(int(token[0]))
        printer.step(ids, past, output, token)
        ids, past = token[:, None], output.present
    return printer.lines
