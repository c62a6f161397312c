"""Loops that are wrong, each in one way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bento_kv.runtime.graph import Cache, CachedGraph, GraphOutput, cache_length
from tests.mutants.printing import Fields, Ids, Lines, Make, Printer, best, row, run, two
from tests.mutants.right_loops import greedy

# Wrong loops: those that feed the wrong past or the wrong tokens.


def no_cache(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
    """Step 0 skips the extraction; then the whole sequence is fed at each step."""
    printer, text = Printer(fields), list(prompt)
    for _ in range(steps):
        past, ids = graph.empty_cache(1), row(text)
        output = run(graph, ids, past)
        token = best(output)
        printer.step(ids, past, output, token, taken=past)
        text.append(int(token[0]))
    return printer.lines


def step0_skipped(*, whole: bool) -> Make:
    """What step 0 cached is not taken; from step 1 on the cache is passed on."""

    def make(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
        printer, ids, past = Printer(fields), row(prompt), graph.empty_cache(1)
        for number in range(steps):
            output = run(graph, ids, past)
            token = best(output)
            taken = output.present if number else graph.empty_cache(1)
            printer.step(ids, past, output, token, taken=taken)
            ids = row([*prompt, int(token[0])]) if whole and number == 0 else token[:, None]
            past = taken
        return printer.lines

    return make


def past_from(pick: Callable[[CachedGraph, list[Cache]], Cache], *, counted: bool = False) -> Make:
    """Feeds the past that `pick` takes of all presents so far.

    Args:
        counted: the loop counts lengths, and positions, as if its past were right.
    """

    def make(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
        printer, ids, past = Printer(fields), row(prompt), graph.empty_cache(1)
        presents: list[Cache] = []
        count = 0
        for _ in range(steps):
            length = count if counted else cache_length(past)
            positions = np.arange(length, length + ids.shape[1])[None]
            output = run(graph, ids, past, positions)
            token = best(output)
            printer.step(ids, past, output, token, past_length=length)
            presents.append(output.present)
            count += ids.shape[1]
            ids, past = token[:, None], pick(graph, presents)
        return printer.lines

    return make


def drop_from(step: int) -> Callable[[CachedGraph, list[Cache]], Cache]:
    return lambda graph, presents: presents[-1] if len(presents) < step else graph.empty_cache(1)


def double_once(graph: CachedGraph, presents: list[Cache]) -> Cache:
    if len(presents) != 2:
        return presents[-1]
    joined = [
        (np.concatenate((a[0], b[0]), axis=2), np.concatenate((a[1], b[1]), axis=2))
        for a, b in zip(presents[0], presents[1], strict=True)
    ]
    return joined


def late(graph: CachedGraph, presents: list[Cache]) -> Cache:
    return presents[-2] if len(presents) > 1 else presents[-1]


def empty(graph: CachedGraph, presents: list[Cache]) -> Cache:
    return graph.empty_cache(1)


def lost_and_redone(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
    """From step 3 on the cache is lost, and everything is computed again each time."""
    printer, ids, past, text = Printer(fields), row(prompt), graph.empty_cache(1), list(prompt)
    for number in range(steps):
        output = run(graph, ids, past)
        token = best(output)
        text.append(int(token[0]))
        printer.step(ids, past, output, token)
        ids, past = token[:, None], output.present
        if number >= 2:
            ids, past = row(text), graph.empty_cache(1)
    return printer.lines


def not_truncated(last: int | None) -> Make:
    """Feeds the past and, with it, the whole sequence, or its last tokens."""

    def make(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
        printer, ids, past, text = Printer(fields), row(prompt), graph.empty_cache(1), list(prompt)
        for _ in range(steps if last else 3):
            output = run(graph, ids, past)
            token = best(output)
            printer.step(ids, past, output, token)
            text.append(int(token[0]))
            ids, past = row(text if last is None else text[-last:]), output.present
        return printer.lines

    return make


def capacity_printed(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
    lines = greedy(graph, prompt, steps, fields)
    return [{**line, "past_length": 64} for line in lines]


def wrong_token(pick: Callable[[Sequence[int], list[int], GraphOutput], int]) -> Make:
    """Feeds a token that `pick` takes of the prompt, the tokens chosen so far and the step's output."""

    def make(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
        printer, ids, past, chosen = Printer(fields), row(prompt), graph.empty_cache(1), list[int]()
        for _ in range(steps):
            output = run(graph, ids, past)
            token = best(output)
            printer.step(ids, past, output, token)
            chosen.append(int(token[0]))
            ids, past = row([pick(prompt, chosen, output)]), output.present
        return printer.lines

    return make


def prompt_again(prompt: Sequence[int], chosen: list[int], output: GraphOutput) -> int:
    return prompt[-1] if len(chosen) == 1 else chosen[-1]


def one_late(prompt: Sequence[int], chosen: list[int], output: GraphOutput) -> int:
    return chosen[-2] if len(chosen) > 1 else chosen[-1]


def first_logits(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
    """Takes the first position's logits where it should take the last one's."""
    printer, ids, past = Printer(fields), row(prompt), graph.empty_cache(1)
    for _ in range(steps):
        output = run(graph, ids, past)
        token = output.logits[:, 0].argmax(axis=-1)
        printer.step(ids, past, output, token, logits=output.logits[:, 0])
        ids, past = token[:, None], output.present
    return printer.lines


# Those that feed the right past and tokens with wrong positions, a wrong mask, or in a wrong order.


def position(of: Callable[[int, int], int]) -> Make:
    """Decodes with the position `of(past length, prompt length)`."""

    def make(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
        printer, ids, past = Printer(fields), row(prompt), graph.empty_cache(1)
        positions = np.arange(len(prompt))[None]
        for _ in range(steps):
            output = run(graph, ids, past, positions)
            token = best(output)
            printer.step(ids, past, output, token, positions=positions)
            ids, past = token[:, None], output.present
            positions = np.array([[of(cache_length(past), len(prompt))]])
        return printer.lines

    return make


def mask(of: Callable[[int, int], Ids], printed: Callable[[int, int], int]) -> Make:
    """Decodes with the mask `of(past length, prompt length)`, and prints a length."""

    def make(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
        printer, ids, past = Printer(fields), row(prompt), graph.empty_cache(1)
        for number in range(steps):
            length = cache_length(past)
            seen = of(length, len(prompt))[None] if number else None
            output = run(graph, ids, past, None, seen)
            token = best(output)
            mask_length = printed(length, len(prompt)) if number else len(prompt)
            printer.step(ids, past, output, token, mask_length=mask_length)
            ids, past = token[:, None], output.present
        return printer.lines

    return make


def new_only(past: int, prompt: int) -> Ids:
    return np.array([0] * past + [1])


def prompt_only(past: int, prompt: int) -> Ids:
    return np.array([1] * prompt + [0] * (past - prompt) + [1])


def shuffled(order: Callable[[Cache], Cache], rows: int = 1) -> Make:
    """Feeds the cache in another order."""

    def make(graph: CachedGraph, prompt: Sequence[int], steps: int, fields: Fields) -> Lines:
        ids = row(prompt) if rows == 1 else two(prompt)
        printer, past = Printer(fields), graph.empty_cache(rows)
        for _ in range(steps):
            output = run(graph, ids, past)
            token = best(output)
            printer.step(ids, past, output, token)
            ids, past = token[:, None], order(output.present)
        return printer.lines

    return make


def keys_first(cache: Cache) -> Cache:
    flat = [k for k, _ in cache] + [v for _, v in cache]
    return list(zip(flat[::2], flat[1::2], strict=True))
