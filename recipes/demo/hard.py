"""Harder turns of the skills, for the last phase: what people type, where the plain draws left the model unsure."""

import random
import re
from collections.abc import Callable

from recipes.demo import words
from recipes.demo.skills import SORRY, Exchange, copy_of, perturb, sum_of, word
from recipes.demo.tables import CHAT

_SENTENCES = (
    "I am a {w}.|I am the {w} of the {w}.|My {w} is {adj}.|The {w} is on the {w}.|Hello, {w}!|{w}, {w} and {w}|We like {w}, {w} and"
    " {w}.|{n} {w}|{W} {w} {n}!|Good {w}, my {adj} {w}.|How are you, {w}?|Who is {name}?|{name} has a {adj} {w}.|What is {n} + {w}?"
    "|{w}-{w}|({w}) [{w}]|{w}: {w}; {w}|{w}@{w}.com|The {w} says: {w}|Do you know the {adj} {w}?|I do not know that {w}."
)
_ACCENTED = "àâäáçéèêëíîïñóôöúùûüßøåæ"
_OPEN = words.split(
    "Write me a poem.|Write a poem.|Write me a {w}.|Write a {w}.|Write me a {adj} story.|Write a letter to {name}.|How do I cook {w}?"
    "|How do I make {w}?|How do I open a {w}?|Who is {name}?|When is the {w}?|Where is my {w}?|Can I have a {w}?|Sing a song."
    "|What is {n} times {n}?|What is {n} - {n}?|Tell me a secret.|What day is it?|I am bored.|Open the {w}.|{w}|{w} {w}|{w}?"
    "|Why is the sky blue?|What is the meaning of life?|What is love?|I like {w}.|I have a {w}.|What should I eat?",
    "|",
)
_GREETINGS = ("Hi", "Hello", "Hey", "Hello there", "Hi there", "OK", "Thanks")


def _fill(rng: random.Random, template: str, held: bool) -> str:
    draws: dict[str, Callable[[], str]] = {
        "w": lambda: word(rng, held, 10),
        "W": lambda: word(rng, held, 10).capitalize(),
        "adj": lambda: rng.choice(words.ADJECTIVES),
        "name": lambda: rng.choice(words.NAMES),
        "n": lambda: str(rng.randint(0, rng.choice((9, 99, 999)))),
    }
    return re.sub(r"{(\w+)}", lambda match: draws[match[1]](), template)


def sums(rng: random.Random, held: bool) -> Exchange:
    """Sums with small or round numbers, which are few among all pairs."""
    while True:
        a, b = rng.randint(0, 9), rng.choice((rng.randint(0, 9), rng.randint(0, 99), rng.randint(0, 9) * 10))
        if rng.random() < 0.5:
            a, b = b, a
        if words.sum_held_out(a, b) == held:
            return sum_of(rng, a, b)


def copy(rng: random.Random, held: bool) -> Exchange:
    """Copy sentences, marks and accented letters, also where the text itself reads like something to answer."""
    kind = rng.random()
    if kind < 0.2:
        payload = rng.choice((*words.FILLERS, *(said for says, answer in CHAT for said in (*says, answer))))
    elif kind < 0.75:
        payload = _fill(rng, rng.choice(_SENTENCES.split("|")), held)
    else:
        drawn = " ".join(word(rng, held, 8) for _ in range(rng.randint(1, 4)))
        payload = "".join(rng.choice(_ACCENTED) if rng.random() < 0.2 else letter for letter in drawn)
    return copy_of(rng, payload)


def count(rng: random.Random, held: bool) -> Exchange:
    """Count up from one, and the neighbours of round numbers."""
    del held
    if rng.random() < 0.5:
        stop = rng.randint(2, 15)
        return Exchange("count", perturb(rng, f"Count to {stop}."), ", ".join(map(str, range(1, stop + 1))))
    number = rng.randint(1, 10) * 10
    if rng.random() < 0.5:
        return Exchange("count", perturb(rng, f"What comes before {number}?"), str(number - 1))
    return Exchange("count", perturb(rng, f"What comes after {number - 1}?"), str(number))


def chat(rng: random.Random, held: bool) -> Exchange:
    """A greeting and then something else in one message."""
    del held
    says, answer = rng.choice(CHAT[1:])
    return Exchange(
        "chat", perturb(rng, f"{rng.choice(_GREETINGS)}{rng.choice((',', '!', '.'))} {rng.choice(says)}"), answer
    )


def unknown(rng: random.Random, held: bool) -> Exchange:
    """Requests that look like a skill and are none."""
    return Exchange("unknown", perturb(rng, _fill(rng, rng.choice(_OPEN), held)), SORRY)


HARD: dict[str, Callable[[random.Random, bool], Exchange]] = {
    each.__name__: each for each in (sums, copy, count, chat, unknown)
}
