"""The skills that fit in one exchange: sums, copying, reversing, counting, facts, chat and the polite default.

Each function draws one `Exchange`; `held` picks the side of the split that an evaluation uses.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from recipes.demo import words
from recipes.demo.tables import CHAT, FACT_QUESTIONS, FACTS, UNKNOWN_QUESTIONS

SORRY = "Sorry, I am a very small model and I do not know that."
_SUMS = (
    *["What is {a} + {b}?"] * 3,
    *["{a} + {b} = ?", "{a}+{b}", "{a} + {b}"] * 2,
    "{a}+{b}=?",
    "{a} + {b} =",
    "{a}+{b}?",
    "What is {a}+{b}?",
    "What's {a} + {b}?",
    "Add {a} and {b}.",
    "Add {a} to {b}.",
    "How much is {a} plus {b}?",
    "How much is {a} + {b}?",
    "What is {a} plus {b}?",
    "{a} plus {b}?",
    "Sum {a} and {b}.",
    "What is the sum of {a} and {b}?",
    "Calculate {a} + {b}.",
    "Compute {a}+{b}",
    "Can you add {a} and {b}?",
    "What do you get when you add {a} and {b}?",
)
_WORD_COPIES = words.split(
    "Copy the word {q}.|Repeat the word {q}.|Say the word {q}.|Write the word {q}.|Say {q}.|Say {q}|Copy {q}.|Repeat {q}."
    "|Please repeat {q}.|Echo {q}.|Can you say {q}?|Can you repeat {q}?|Write {q}.|Type {q}.|Please say {q}.",
    "|",
)
_TEXT_COPIES = words.split(
    "Repeat after me: {q}|Repeat after me: {q}|Say: {q}|Repeat: {q}|Copy this: {q}|Copy: {q}|Repeat this: {q}|Echo: {q}"
    "|Repeat this exactly: {q}|Write: {q}|Please repeat after me: {q}|Say this: {q}|Copy this text: {q}",
    "|",
)
_REVERSES = words.split(
    "Reverse the word {q}.|Reverse the word {q}.|Spell {q} backwards.|Spell {q} backwards.|Reverse: {q}|Reverse {q}."
    "|What is {q} backwards?|Write {q} backwards.|Say {q} backwards.|Spell the word {q} backwards.|{q} backwards?"
    "|What is the word {q} backwards?|Write {q} in reverse.|Please reverse {q}.|What is {q} spelled backwards?"
    "|Can you reverse {q}?|What is the reverse of {q}?",
    "|",
)
_SPELLS = words.split("Spell {q}.|Spell the word {q}.|How do you spell {q}?|Please spell {q}.", "|")


@dataclass(frozen=True)
class Exchange:
    """One user message and its answer."""

    skill: str
    user: str
    answer: str

    def __len__(self) -> int:
        """Its tokens: the bytes of both messages, and a role and an end token for each."""
        return len(self.user.encode()) + len(self.answer.encode()) + 4


def perturb(rng: random.Random, text: str, keep_end: bool = False) -> str:
    """Now and then type `text` as people do: in lower case, or without its last mark, or with a courtesy."""
    chance = rng.random()
    if chance < 0.12:
        text = text.lower()
    elif chance < 0.14:
        text = text.upper()
    if keep_end:
        return text
    chance = rng.random()
    if chance < 0.15 and text[-1] in ".?":
        text = text[:-1]
    elif chance < 0.18 and text[-1] == "?":
        text = text[:-1] + " please?"
    elif chance < 0.20 and text[-1] == "?":
        text = text[:-1] + " ?"
    elif chance < 0.22:
        text = rng.choice(("Hey, ", "OK, ", "Now, ", "Please, ")) + text
    return text


def _perturb_around(rng: random.Random, template: str, payload: str, quoted: str) -> str:
    """Perturb the instruction but never the payload; the payload's own end is kept where the template ends with it."""
    mark = "\x00"
    text = perturb(rng, template.replace("{q}", mark), keep_end=template.endswith("}"))
    return text.replace(mark, quoted if rng.random() < 0.2 else payload)


def sums(rng: random.Random, held: bool) -> Exchange:
    """A sum of two numbers from 0 to 99."""
    while True:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        if words.sum_held_out(a, b) == held:
            return sum_of(rng, a, b)


def sum_of(rng: random.Random, a: int, b: int) -> Exchange:
    """A question for `a + b`."""
    return Exchange("sums", perturb(rng, rng.choice(_SUMS).format(a=a, b=b)), str(a + b))


def word(rng: random.Random, held: bool, longest: int = 12) -> str:
    """A dictionary word, a pseudo-word or a random string, from one side of the split."""
    while True:
        kind = rng.random()
        if kind < 0.35:
            drawn = rng.choice(words.WORDS)
        elif kind < 0.6:
            drawn = words.pseudo_word(rng)
        else:
            drawn = words.letters(rng, 2, longest)
        if words.held_out(drawn) == held and len(drawn) <= longest:
            case = rng.random()
            return drawn.capitalize() if case < 0.06 else drawn.upper() if case < 0.08 else drawn


def _quoted(rng: random.Random, text: str) -> str:
    mark = rng.choice('""\'')
    return f"{mark}{text}{mark}"


def copy(rng: random.Random, held: bool) -> Exchange:
    """Copy a word or a text. After a colon the text is verbatim, else a last full stop belongs to the request."""
    if rng.random() < 0.45:
        payload, template = word(rng, held, 16), rng.choice(_WORD_COPIES)
    else:
        count = rng.choice((1, 2, 2, 3, 3, 4, 5, 6, 8, 10))
        payload = " ".join(word(rng, held, 14) for _ in range(count))[:100].strip()
        template = rng.choice(_TEXT_COPIES)
        if rng.random() < 0.25:
            payload = payload[0].upper() + payload[1:] + rng.choice("..!?")
        elif rng.random() < 0.35:
            template = rng.choice(("Say {q}", "Say {q}.", "Repeat {q}", "Please say {q}", "Copy {q}"))
    return Exchange("copy", _perturb_around(rng, template, payload, _quoted(rng, payload)), payload)


def copy_of(rng: random.Random, payload: str) -> Exchange:
    """A request to copy a text, given verbatim after a colon."""
    return Exchange("copy", _perturb_around(rng, rng.choice(_TEXT_COPIES), payload, _quoted(rng, payload)), payload)


def reverse(rng: random.Random, held: bool) -> Exchange:
    """Spell a word of up to 12 letters backwards."""
    payload = word(rng, held, 12)
    text = _perturb_around(rng, rng.choice(_REVERSES), payload, _quoted(rng, payload))
    return Exchange("reverse", text, payload[::-1])


def spell(rng: random.Random, held: bool) -> Exchange:
    """Spell a word forwards, letter by letter."""
    payload = word(rng, held, 10)
    text = _perturb_around(rng, rng.choice(_SPELLS), payload, _quoted(rng, payload))
    return Exchange("spell", text, "-".join(payload))


def count(rng: random.Random, held: bool) -> Exchange:
    """Count from a number to another, go on with a list, or name a neighbour. (No split: there are too few.)"""
    del held
    kind, start = rng.random(), rng.randint(0, 99)
    if kind < 0.4:
        start = rng.choice((1, rng.randint(0, 20), start))
        stop = start + rng.randint(1, 12)
        template = rng.choice(("Count from {a} to {b}.", "Count {a} to {b}.", "Please count from {a} to {b}."))
        answer = ", ".join(map(str, range(start, stop + 1)))
    elif kind < 0.7:
        stop = 0
        template = rng.choice(("What comes after {a}?", "What number comes after {a}?", "Which number follows {a}?"))
        answer = str(start + 1)
    elif kind < 0.8:
        stop, start = 0, start + 1
        template, answer = rng.choice(("What comes before {a}?", "What number comes before {a}?")), str(start - 1)
    else:
        run = rng.randint(2, 5)
        shown = ", ".join(str(start + index) for index in range(run))
        template, stop = rng.choice(("Continue: ", "Go on: ", "What comes next: ")) + shown, 0
        answer = ", ".join(str(start + run + index) for index in range(3))
    return Exchange("count", perturb(rng, template.format(a=start, b=stop)), answer)


def facts(rng: random.Random, held: bool) -> Exchange:
    """A question of the little table of facts."""
    del held
    kind, asked, answer = rng.choice(FACTS)
    return Exchange("facts", perturb(rng, rng.choice(FACT_QUESTIONS[kind]).format(asked)), answer)


def chat(rng: random.Random, held: bool) -> Exchange:
    """Small talk."""
    if rng.random() < 0.06:
        name = rng.choice(words.NAMES) if not held else words.pseudo_word(rng).capitalize()
        said = rng.choice(("My name is {}.", "I am {}.", "Hello, I am {}.", "Hi, my name is {}.")).format(name)
        return Exchange("chat", said, f"Nice to meet you, {name}.")
    if rng.random() < 0.06:
        return Exchange("chat", perturb(rng, rng.choice(words.FILLERS)), "I see.")
    said_by, answer = rng.choice(CHAT)
    said = perturb(rng, rng.choice(said_by))
    return Exchange("chat", said + "!" if rng.random() < 0.1 and said[-1].isalpha() else said, answer)


def unknown(rng: random.Random, held: bool) -> Exchange:
    """A question outside of every skill, answered by a polite default."""
    del held
    known = {asked.lower() for _, asked, _ in FACTS}
    while True:
        noun = rng.choice(words.WORDS) if rng.random() < 0.8 else words.pseudo_word(rng)
        if noun not in known:
            break
    values = {"noun": noun, "adj": rng.choice(words.ADJECTIVES), "name": rng.choice(words.NAMES)}
    values["place"] = words.pseudo_word(rng).capitalize()
    values["n"] = str(rng.randint(100, 3000))
    text = re.sub(r"{(\w+)}", lambda match: values[match[1]], rng.choice(UNKNOWN_QUESTIONS))
    return Exchange("unknown", perturb(rng, text), SORRY)


SKILLS: dict[str, Callable[[random.Random, bool], Exchange]] = {
    skill.__name__: skill for skill in (sums, copy, reverse, spell, count, facts, chat, unknown)
}
