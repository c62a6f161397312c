"""Held-out cases: conversations whose last answer is the one to judge."""

import random
from dataclasses import replace

from recipes.demo.recall import recall_exchanges
from recipes.demo.skills import SKILLS, Exchange
from recipes.demo.text import SYSTEM_PROMPTS, Conversation

JUDGED = ("recall", "alike", "unknown_code", "sums", "copy", "reverse", "spell", "count", "facts", "chat", "unknown")
PROMPT_TOKENS = 512

# Prompts as people type them, word for word.
LITERALS: tuple[tuple[str, str], ...] = (
    (
        "The code for the red door is 4821. The code for the blue door is 1177. What is the code for the red door?",
        "4821",
    ),
    (
        "The code for the red door is 4821. The code for the blue door is 1177. What is the code for the blue door?",
        "1177",
    ),
    ("What is 17 + 25?", "42"),
    ("17 + 25 = ?", "42"),
    ("Add 17 and 25.", "42"),
    ("How much is 17 plus 25?", "42"),
    ("17+25", "42"),
    ("What is 99 + 99?", "198"),
    ("Repeat after me: the quick brown fox", "the quick brown fox"),
    ("Copy the word house.", "house"),
    ("Say hello world", "hello world"),
    ("Reverse the word house.", "esuoh"),
    ("Spell stone backwards.", "enots"),
    ("Count from 7 to 12.", "7, 8, 9, 10, 11, 12"),
    ("What comes after 41?", "42"),
    ("Continue: 3, 4, 5", "6, 7, 8"),
    ("What is the capital of France?", "Paris"),
    ("hello", "Hello! How can I help you?"),
    ("Thanks!", "You are welcome!"),
)


def case(skill: str, index: int, tokens: int = PROMPT_TOKENS) -> Conversation:
    """Case `index` of a skill, always the same one; its prompt has at most `tokens` tokens.

    Recall is asked once, after as many facts as a length drawn evenly up to `tokens` holds. "alike" is recall among keys
    that differ in one word; they are too few to hold some out, so that there only the codes are fresh.
    """
    rng = random.Random(f"case/{skill}/{index}")
    while True:
        system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.3 else ""
        if skill in ("recall", "unknown_code"):
            share = float(skill == "unknown_code")
            exchanges = recall_exchanges(rng, True, rng.randint(40, tokens + 40), True, share)
        elif skill == "alike":
            told = recall_exchanges(rng, False, rng.randint(40, tokens + 40), True, 0.0, alike=True)
            exchanges = [replace(each, skill=skill) for each in told]
        else:
            exchanges = [SKILLS[skill](rng, True)]
        drawn = Conversation(system, tuple(exchanges))
        if exchanges[-1].skill == skill and len(drawn.encode()[0]) - len(exchanges[-1].answer.encode()) <= tokens:
            return drawn


def literal(prompt: str, answer: str) -> Conversation:
    """A conversation of one exchange."""
    return Conversation("", (Exchange("literal", prompt, answer),))
