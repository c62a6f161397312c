"""Laws 1 and 3 with guesses: what is looked up and checked changes how fast an answer comes, and nothing of it."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bento_kv.contract.decoder import Decoder
from bento_kv.contract.plan import Exactness, StepPlan
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.engine import Engine
from bento_kv.engine.request import Detokenize, SamplingParams
from bento_kv.runtime.decoder import OnnxDecoder
from bento_kv.text.tokenizer import Tokenizer
from tests.decoders import exported, source
from tests.engine.fakes import VOCAB_SIZE, Client, FakeDecoder, copying, letters, run_to_end

ids = st.integers(0, VOCAB_SIZE - 1)
prompts = st.lists(st.lists(ids, min_size=1, max_size=8).map(lambda part: tuple(part * 3)), min_size=1, max_size=4)
params = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 40),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_p=st.sampled_from([1.0, 0.8]),
    seed=st.integers(0, 2**64),
    repetition_penalty=st.sampled_from([1.0, 1.1]),
    frequency_penalty=st.sampled_from([0.0, 0.3]),
    stop=st.lists(st.text("abc", min_size=1, max_size=2), max_size=2).map(tuple),
    stop_token_ids=st.frozensets(ids, max_size=2),
    logprobs=st.none() | st.integers(0, 2),
)


class Watched:
    """A decoder, and what it was asked to check."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.drafts, self.steps = decoder, 0, 0
        self.slots, self.max_length, self.vocab_size = decoder.slots, decoder.max_length, decoder.vocab_size
        self.chunk_exact = decoder.chunk_exact
        self.tokens_in_pairs, self.draft_exact = decoder.tokens_in_pairs, decoder.draft_exact
        self.copy, self.save, self.restore, self.release = decoder.copy, decoder.save, decoder.restore, decoder.release

    def step(self, plan: StepPlan) -> NDArray[np.float32]:
        self.drafts += sum(row.drafts for row in plan.rows)
        self.steps += 1
        return self.decoder.step(plan)


def answers(
    decoder: Decoder,
    detokenize: Detokenize,
    speculation: int,
    asked: Sequence[tuple[Sequence[int], SamplingParams]],
    exact: Exactness = "batch",
    *,
    spare: bool = False,
) -> tuple[list[tuple[object, ...]], Watched]:
    """All that the clients hear, served together."""
    watched = Watched(decoder)
    engine = Engine(watched, detokenize, EngineConfig(exact=exact, speculation=speculation, spare_guess=spare))
    clients = [Client(str(i), tuple(prompt_ids), own) for i, (prompt_ids, own) in enumerate(asked)]
    for client in clients:
        engine.submit(client.request)
    run_to_end(engine)
    return [client.result for client in clients], watched


@settings(max_examples=80, deadline=None)
@given(
    asked=prompts.flatmap(lambda them: st.tuples(*(st.tuples(st.just(p), params) for p in them))),
    most=ids,
    exact=st.sampled_from(["batch", "full"]),
)
def test_an_answer_is_the_same_with_and_without_guesses(
    asked: tuple[tuple[tuple[int, ...], SamplingParams], ...], most: int, exact: Exactness
) -> None:
    with_guesses, _ = answers(FakeDecoder(max_length=65, logits=copying, exact=exact), letters, most, asked, exact)
    without, watched = answers(FakeDecoder(max_length=65, logits=copying, exact=exact), letters, 0, asked, exact)
    assert with_guesses == without
    assert watched.drafts == 0


def test_guesses_save_steps() -> None:
    """Else the law above would be easy to hold."""
    asked = [((*range(10),) * 2, SamplingParams(temperature=0, max_tokens=40))]
    _, without = answers(FakeDecoder(logits=copying), letters, 0, asked)
    _, watched = answers(FakeDecoder(logits=copying), letters, 8, asked)
    assert without.steps == 40
    assert watched.steps < 20
    off = [(prompt_ids, replace(own, speculation=0)) for prompt_ids, own in asked]
    assert answers(FakeDecoder(logits=copying), letters, 8, off)[1].drafts == 0


def conversations(tokenizer: Tokenizer) -> list[list[int]]:
    """Copying to do, and none; the last copy is cut short by the end of the sentence."""
    alphabet = " ".join(a + b for a, b in zip(string.ascii_lowercase, string.ascii_lowercase[3:], strict=False))
    said = (
        "Repeat after me: the quick brown fox and the quick brown dog",
        f"Repeat after me: {alphabet[:60]}",
        "What is 17 + 25?",
        "Copy this: red stone, red river, red stone.",
        "hello",
    )
    return [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in said]


@pytest.mark.usefixtures("all_cpus")
@pytest.mark.parametrize("exact", ["full", "batch"])
def test_a_real_decoder_answers_the_same_with_and_without_guesses(demo_decoder: Path, exact: Exactness) -> None:
    """In mode `full` to the last bit of every log-probability; in mode `batch`, in which a token that is checked meets
    other arithmetic than one that decodes, the tokens of an answer that is not on the edge."""
    tokenizer = Tokenizer(demo_decoder)
    end = frozenset(tokenizer.encode("<|end|>", add_special_tokens=False)[:1])
    greedy = SamplingParams(temperature=0, max_tokens=70, logprobs=3, stop_token_ids=end)
    asked = [(prompt, greedy) for prompt in conversations(tokenizer)]
    if exact == "full":
        asked += [(prompt, replace(greedy, temperature=1.0, top_p=0.95, seed=5)) for prompt, _ in asked]

    def run(speculation: int) -> tuple[list[tuple[object, ...]], Watched]:
        decoder = OnnxDecoder(demo_decoder, slots=3, exact=exact, threads=2, max_length=256)
        return answers(decoder, tokenizer.decode, speculation, asked, exact)

    (without, plain), (with_guesses, watched) = run(0), run(8)
    assert watched.drafts > 50
    assert watched.steps < plain.steps
    if exact == "full":
        assert with_guesses == without
    else:
        assert [result[:2] for result in with_guesses] == [result[:2] for result in without]


@pytest.mark.usefixtures("all_cpus")
@pytest.mark.parametrize("exact", ["full", "batch"])
def test_law_2_holds_for_guesses(demo_decoder: Path, exact: Exactness) -> None:
    """Alone equals together, bit for bit, where some rows are checked and others decode."""
    tokenizer = Tokenizer(demo_decoder)
    own = SamplingParams(temperature=0.8, seed=3, max_tokens=40, logprobs=3)
    asked = [(prompt, own) for prompt in conversations(tokenizer)]

    def decoder() -> OnnxDecoder:
        return OnnxDecoder(demo_decoder, slots=5, exact=exact, threads=2, max_length=256)

    together, watched = answers(decoder(), tokenizer.decode, 8, asked, exact)
    assert watched.drafts
    assert together == [answers(decoder(), tokenizer.decode, 8, [one], exact)[0][0] for one in asked]


@settings(max_examples=80, deadline=None)
@given(
    asked=prompts.flatmap(lambda them: st.tuples(*(st.tuples(st.just(p), params) for p in them))),
    exact=st.sampled_from(["batch", "full"]),
)
def test_an_answer_is_the_same_with_and_without_a_spare_guess(
    asked: tuple[tuple[tuple[int, ...], SamplingParams], ...], exact: Exactness
) -> None:
    def run(spare: bool) -> list[tuple[object, ...]]:
        decoder = FakeDecoder(max_length=65, logits=copying, exact=exact, tokens_in_pairs=True, draft_exact=True)
        return answers(decoder, letters, 0, asked, exact, spare=spare)[0]

    assert run(True) == run(False)


@pytest.mark.usefixtures("all_cpus")
@pytest.mark.parametrize("exact", ["full", "batch"])
def test_a_spare_guess_changes_no_bit(exact: Exactness) -> None:
    """Alone with a guess, alone without, and together, where there is none: to the last bit of every log-probability."""
    # Six heads a group: in mode `batch` they are grouped, so that a row of one token is computed as those of several.
    directory = exported(
        source("qwen2", hidden_size=192, num_attention_heads=12, num_key_value_heads=2), precision="int4"
    )
    # Of few tokens, answers of random weights repeat themselves, too.
    few = {token_id: 1000.0 for token_id in (7, 8, 9)}
    own = SamplingParams(temperature=0, max_tokens=60, logprobs=3, logit_bias=few)
    prompts = [(*range(5, 25),) * 2, (7, 8, 9) * 4, (40, 41)]
    asked = [(prompt, how) for prompt in prompts for how in (own, replace(own, temperature=0.3, seed=1))]

    def words(ids: Sequence[int]) -> str:
        return "".join(f" {token_id}" for token_id in ids)

    def run(them: Sequence[tuple[Sequence[int], SamplingParams]], *, spare: bool) -> tuple[list[object], Watched]:
        decoder = OnnxDecoder(directory, slots=6, exact=exact, threads=2, max_length=128)
        heard, watched = answers(decoder, words, 0, them, exact, spare=spare)
        return [*heard], watched

    together, _ = run(asked, spare=True)
    drafts = saved = 0
    for one, heard in zip(asked, together, strict=True):
        (guessed, watched), (plain, unwatched) = run([one], spare=True), run([one], spare=False)
        assert guessed == plain == [heard]
        assert unwatched.drafts == 0
        drafts, saved = drafts + watched.drafts, saved + unwatched.steps - watched.steps
    assert drafts > saved > 20  # right ones and wrong ones


def test_no_spare_guess_where_it_could_change_a_bit_or_costs() -> None:
    asked = [((*range(10),) * 2, SamplingParams(temperature=0, max_tokens=40))]

    def drafts(slots: int, *, pairs: bool, same: bool) -> int:
        decoder = FakeDecoder(slots=slots, logits=copying, tokens_in_pairs=pairs, draft_exact=same)
        return answers(decoder, letters, 0, asked, spare=True)[1].drafts

    assert drafts(2, pairs=True, same=True) > 10
    assert drafts(1, pairs=True, same=False) > 10  # whoever decodes is alone
    assert drafts(2, pairs=True, same=False) == drafts(2, pairs=False, same=True) == 0
