"""The conversations that the demo model is trained on, drawn from a seeded generator; no outside text.

A conversation is one system prompt at most, then exchanges. Held-out sums, keys and words are never drawn for training.
"""

import random
from dataclasses import dataclass

from recipes.demo.hard import HARD
from recipes.demo.recall import recall_exchanges
from recipes.demo.recipe import Phase
from recipes.demo.skills import SKILLS, Exchange
from recipes.demo.tokenizer import END_ID, ROLE_IDS

SHORTEST = 24  # tokens that a conversation may take, at least
SYSTEM_SHARE = 0.3
SYSTEM_PROMPTS = (
    *["You are a helpful assistant."] * 4,
    "You are a friendly assistant.",
    "You are a helpful AI.",
    "You are the bento demo.",
    "Be brief.",
    "Be concise.",
    "Answer the question.",
    "Answer briefly and politely.",
    "You are a helpful, honest and harmless assistant.",
    "You help people remember their codes.",
    "Please answer in English.",
)


@dataclass(frozen=True)
class Conversation:
    """A system prompt, empty if there is none, and the exchanges."""

    system: str
    exchanges: tuple[Exchange, ...]

    def messages(self) -> list[dict[str, str]]:
        """The chat messages, in the form that a chat template takes."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for exchange in self.exchanges:
            messages.append({"role": "user", "content": exchange.user})
            messages.append({"role": "assistant", "content": exchange.answer})
        return messages

    def encode(self) -> tuple[list[int], list[bool]]:
        """Token ids as the chat template gives them, and for each whether it belongs to an answer (its end included)."""
        ids: list[int] = []
        answered: list[bool] = []
        for message in self.messages():
            content = [*message["content"].encode(), END_ID]
            ids += [ROLE_IDS[message["role"]], *content]
            answered += [False, *[message["role"] == "assistant"] * len(content)]
        return ids, answered


def conversation(rng: random.Random, phase: Phase, budget: int, held: bool = False) -> Conversation:
    """A conversation of about `budget` tokens, never more; its skills are drawn with the weights of the phase's mixture."""
    system = rng.choice(SYSTEM_PROMPTS) if rng.random() < SYSTEM_SHARE and budget > 80 else ""
    left = budget - (len(system) + 2 if system else 0)
    chosen = rng.choices(list(phase.mixture), list(phase.mixture.values()), k=rng.choice((1, 1, 2, 4)))
    recalled: list[Exchange] = []
    if "recall" in chosen:
        # One set of codes at most: a second could contradict the first.
        chosen = [name for name in chosen if name != "recall"]
        share = rng.uniform(0.4, 1.0) if chosen else 1.0
        single, crowd = rng.random() < 0.25, phase.crowded > 0 and rng.random() < phase.crowded
        alike = phase.hard > 0 and rng.random() < phase.hard
        told = recall_exchanges(rng, held, round(left * share), single and not crowd, phase.untold, crowd, alike)
        recalled = _fitting(told, left)
        left -= sum(map(len, recalled))
    others: list[Exchange] = []
    while chosen and left > 16:
        name = rng.choice(chosen)
        hard = phase.hard > 0 and name in HARD and rng.random() < phase.hard
        drawn = (HARD if hard else SKILLS)[name](rng, held)
        if len(drawn) > left:
            break
        others.append(drawn)
        left -= len(drawn)
    exchanges = _interleaved(rng, recalled, others) or [_short(rng, held)]
    return Conversation(system, tuple(exchanges))


def _fitting(exchanges: list[Exchange], left: int) -> list[Exchange]:
    """The first exchanges, as many as fit into `left` tokens."""
    while exchanges and sum(map(len, exchanges)) > left:
        exchanges = exchanges[:-1]
    return exchanges


def _interleaved(rng: random.Random, first: list[Exchange], second: list[Exchange]) -> list[Exchange]:
    """Both lists as one, each in its own order, so that other talk comes between a code and the question about it."""
    if rng.random() < 0.4:
        return first + second
    turns = [True] * len(first) + [False] * len(second)
    rng.shuffle(turns)
    sources = {True: iter(first), False: iter(second)}
    return [next(sources[turn]) for turn in turns]


def _short(rng: random.Random, held: bool) -> Exchange:
    """What fits where nothing else does."""
    return min((SKILLS["sums"](rng, held) for _ in range(3)), key=len)


def training_batch(seed: int, step: int, phase: Phase) -> list[Conversation]:
    """The conversations of training step `step`, a function of the arguments alone: about `phase.tokens` tokens in all.

    Lengths are log-uniform, with a tilt to the long, up to `phase.longest`, so that short prompts, which people type,
    are well covered.
    """
    rng = random.Random(f"{seed}/{step}")
    batch: list[Conversation] = []
    total = 0
    while total < phase.tokens:
        budget = round(SHORTEST * (phase.longest / SHORTEST) ** (rng.random() ** 0.6))
        drawn = conversation(rng, phase, budget)
        batch.append(drawn)
        total += len(drawn.encode()[0])
    return batch
