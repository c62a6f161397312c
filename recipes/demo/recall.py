"""Key recall: codes told in a conversation, and questions about them."""

import random
from dataclasses import dataclass, field

from recipes.demo import words
from recipes.demo.skills import Exchange, perturb

UNKNOWN_ANSWER = "I do not know that code."
NOTED = "Noted."
_MINE = words.split(
    "PIN|password|locker number|phone number|lucky number|bank code|house number|secret code|door code|access code", "|"
)

# `{the}` is the key as a noun phrase, `{bare}` without its article, `{n}` the noun of the secret, `{v}` its value.
_THING_FACTS = (
    *["The {n} for {the} is {v}."] * 7,
    "The {n} of {the} is {v}.",
    "The {n} to {the} is {v}.",
    "The {bare} {n} is {v}.",
    "{the} has the {n} {v}.",
    "{the} has {n} {v}.",
    "{the} opens with {v}.",
    "{the}: {v}.",
    "{the} = {v}.",
    "{n} for {the}: {v}.",
    "{v} is the {n} for {the}.",
    "My {n} for {the} is {v}.",
    "Remember that the {n} for {the} is {v}.",
)
_THING_QUESTIONS = (
    *["What is the {n} for {the}?"] * 7,
    "What is the {n} of {the}?",
    "What is the {n} to {the}?",
    "What is the {bare} {n}?",
    "What's the {n} for {the}?",
    "Tell me the {n} for {the}.",
    "Give me the {n} for {the}.",
    "Which {n} opens {the}?",
    "Which {n} is for {the}?",
    "{the}?",
    "{n} for {the}?",
    "{bare} {n}?",
    "What {n} does {the} have?",
    "I forgot the {n} for {the}.",
    "I need the {n} for {the}.",
    "Do you remember the {n} for {the}?",
    "Can you tell me the {n} for {the}?",
    "How do I open {the}?",
    "And {the}?",
    "What about {the}?",
    "What was the {n} for {the}?",
    "What {n} do I need for {the}?",
)
_PERSON_FACTS = (
    *["{the}'s {n} is {v}."] * 4,
    "The {n} of {the} is {v}.",
    "The {n} for {the} is {v}.",
    "{the} has the {n} {v}.",
    "{the} uses {v}.",
    "{the}: {v}.",
    "{v} is {the}'s {n}.",
)
_PERSON_QUESTIONS = (
    *["What is {the}'s {n}?"] * 4,
    "What is the {n} of {the}?",
    "What is the {n} for {the}?",
    "What's {the}'s {n}?",
    "Tell me {the}'s {n}.",
    "Which {n} does {the} have?",
    "{the}'s {n}?",
    "{the}?",
    "What about {the}?",
    "And {the}?",
    "I forgot {the}'s {n}.",
    "Do you remember {the}'s {n}?",
)
_MINE_FACTS = (*["{the} is {v}."] * 4, "{the}: {v}.", "Remember that {the} is {v}.", "{v} is {the}.")
_MINE_QUESTIONS = (
    *["What is {the}?"] * 4,
    "What's {the}?",
    "Tell me {the}.",
    "What was {the}?",
    "Do you remember {the}?",
    "{the}?",
    "I forgot {the}.",
)
_TERSE_FACTS = ("{bare}: {v}.", "{bare} = {v}.", "{bare} {v}.", "{bare} is {v}.")
_TERSE_QUESTIONS = (*["{bare}?"] * 4, "{bare} {n}?", "{the}?", "What is {bare}?")
_FACTS = {"thing": _THING_FACTS, "person": _PERSON_FACTS, "mine": _MINE_FACTS}
_QUESTIONS = {"thing": _THING_QUESTIONS, "person": _PERSON_QUESTIONS, "mine": _MINE_QUESTIONS}
_INTROS = words.split(
    "Here are some codes.|Please remember these codes.|Remember this:|Please remember:|Keep this in mind."
    "|I will tell you some codes.|Listen.|Here is a list:",
    "|",
)


@dataclass(frozen=True)
class Key:
    """What a code belongs to: a thing ("the red door"), a person ("Anna") or the user ("my PIN")."""

    kind: str
    bare: str
    article: str

    @property
    def phrase(self) -> str:
        """The key as a noun phrase."""
        return f"{self.article}{self.bare}"


def code(rng: random.Random) -> str:
    """A code of 3 to 5 digits, mostly 4."""
    return "".join(rng.choices("0123456789", k=rng.choices((3, 4, 5), (10, 80, 10))[0]))


@dataclass
class Memory:
    """The codes told so far in one conversation."""

    held: bool
    families: tuple[int, ...]
    noun: str
    fact_template: str | None
    filler_share: float
    terse: bool = False
    colours: tuple[str, ...] = words.COLOURS
    things: tuple[str, ...] = words.THINGS
    known: dict[Key, str] = field(default_factory=dict)
    unasked: list[Key] = field(default_factory=list)

    @classmethod
    def draw(cls, rng: random.Random, held: bool) -> "Memory":
        """The habits of one conversation: which kinds of key, which noun, one wording for all facts or many."""
        family = rng.choices(range(6), (40, 18, 18, 10, 10, 4))[0]
        mixed = rng.random() < 0.35 or family in (3, 5)
        noun = "code" if rng.random() < 0.55 else rng.choice(words.SECRETS)
        families = (family, *rng.choices(range(6), k=3)) if mixed else (family,)
        template = None
        if not mixed and rng.random() < 0.7:
            template = rng.choice(_FACTS["person" if family == 2 else "thing"])
        filler_share = rng.choice((0.0, 0.0, 0.0, 0.15, 0.4))
        return cls(held, families, noun, template, filler_share)

    @classmethod
    def draw_terse(cls, rng: random.Random, held: bool) -> "Memory":
        """Codes in as few words as there can be, so that many fit: it teaches to match the key, not just to find a code."""
        family = rng.choices(range(5), (30, 20, 25, 10, 15))[0]
        return cls(held, (family,), "code", rng.choice(_TERSE_FACTS), 0.0, terse=True)

    @classmethod
    def draw_alike(cls, rng: random.Random, held: bool) -> "Memory":
        """Keys that differ in one word only: coloured things of one or two kinds, or of one or two colours."""
        template = rng.choice(_THING_FACTS) if rng.random() < 0.7 else None
        noun = "code" if rng.random() < 0.7 else rng.choice(words.SECRETS)
        memory = cls(held, (0,), noun, template, rng.choice((0.0, 0.0, 0.15)))
        few = rng.randint(1, 2)
        if rng.random() < 0.7:
            memory.things = tuple(rng.sample(words.THINGS[:12] if rng.random() < 0.6 else words.THINGS, few))
        else:
            memory.colours = tuple(rng.sample(words.COLOURS, few))
        return memory

    def new_key(self, rng: random.Random) -> Key | None:
        """A key that was not told yet, from the right side of the split; None if none was found."""
        bares = {key.bare.lower() for key in self.known}
        for _ in range(200):
            key = self._draw_key(rng, rng.choice(self.families))
            # "my PIN" and "the code" are too few to split: they are never what held-out recall asks for.
            fits = key.kind != "mine" and words.held_out(key.bare) if self.held else not words.held_out(key.bare)
            if fits and key.bare.lower() not in bares:
                return key
        return None

    def _draw_key(self, rng: random.Random, family: int) -> Key:
        """One key of a family; hard neighbours ("red door", "red box") come from drawing many of the same family."""
        if family == 0:
            return Key("thing", f"{rng.choice(self.colours)} {rng.choice(self.things)}", "the ")
        if family == 1:
            highest = rng.choice((9, 30, 400))
            return Key("thing", f"{rng.choice(words.NUMBERED)} {rng.randint(1, highest)}", "")
        if family == 2:
            return Key(
                "person", rng.choice(words.NAMES) if rng.random() < 0.6 else words.pseudo_word(rng).capitalize(), ""
            )
        if family == 3:
            return Key("thing", rng.choice(words.PLACES), "the ")
        if family == 4:
            return Key("thing", words.pseudo_word(rng), rng.choice(("", "the ")))
        return Key("mine", rng.choice(_MINE), rng.choice(("my ", "the ")))

    def tell(self, rng: random.Random) -> str | None:
        """One new fact, as a sentence."""
        key = self.new_key(rng)
        if key is None:
            return None
        self.known[key] = code(rng)
        self.unasked.insert(rng.randint(0, len(self.unasked)), key)
        template = self.fact_template if self.fact_template and key.kind != "mine" else rng.choice(_FACTS[key.kind])
        if rng.random() < 0.1 and self.fact_template is None:
            template = template.rstrip(".")
        return self._fill(template, key, self.known[key])

    def tell_many(self, rng: random.Random, facts: int) -> str:
        """`facts` sentences with filler between them, as one text."""
        parts = [rng.choice(_INTROS)] if rng.random() < 0.12 else []
        for _ in range(facts):
            sentence = self.tell(rng)
            if rng.random() < self.filler_share:
                parts.append(rng.choice(words.FILLERS))
            if sentence is not None:
                parts.append(sentence)
        if rng.random() < self.filler_share:
            parts.append(rng.choice(words.FILLERS))
        return rng.choices((" ", "\n"), (85, 15))[0].join(parts)

    def ask(self, rng: random.Random, unknown_share: float) -> Exchange | None:
        """A question about a told key not asked yet, or now and then about a key never told; None when none is left."""
        if rng.random() < unknown_share:
            key = self.new_key(rng)
            if key is not None and key.kind != "mine":
                return Exchange("unknown_code", self._question(rng, key), UNKNOWN_ANSWER)
        if not self.unasked:
            return None
        key = self.unasked.pop()
        return Exchange("recall", self._question(rng, key), self.known[key])

    def _question(self, rng: random.Random, key: Key) -> str:
        templates = _TERSE_QUESTIONS if self.terse and rng.random() < 0.7 else _QUESTIONS[key.kind]
        return perturb(rng, self._fill(rng.choice(templates), key, ""))

    def _fill(self, template: str, key: Key, value: str) -> str:
        text = template.format(the=key.phrase, bare=key.bare, n=self.noun, v=value)
        return text[0].upper() + text[1:]


def recall_exchanges(
    rng: random.Random,
    held: bool,
    budget: int,
    single: bool = False,
    unknown_share: float = 0.07,
    crowded: bool = False,
    alike: bool = False,
) -> list[Exchange]:
    """Exchanges that tell codes and ask for them, in about `budget` tokens.

    If `single`, many facts and one question; if `crowded`, many facts, mostly terse ones, and then questions; if `alike`,
    keys that differ in one word. Half the time the first question stands in the same message as the facts; else they come in turns of their own, answered by
    "Noted." Now and then a question comes before any fact.
    """
    terse = crowded and not alike and rng.random() < 0.7
    draw = Memory.draw_alike if alike else Memory.draw_terse if terse else Memory.draw
    memory = draw(rng, held)
    facts = _how_many(rng, budget, single, crowded, terse)
    exchanges: list[Exchange] = []
    if not single and rng.random() < 0.06 and (too_early := memory.ask(rng, 1.0)):
        exchanges.append(too_early)
    asked = 0
    if rng.random() < 0.45:
        told = rng.randint(1, facts) if rng.random() < 0.4 else facts
        for part in (told, facts - told):
            if part:
                text = perturb(rng, memory.tell_many(rng, part), keep_end=True)
                exchanges.append(Exchange("noted", text, NOTED))
    else:
        text = perturb(rng, memory.tell_many(rng, facts), keep_end=True)
        if first := memory.ask(rng, unknown_share):
            exchanges.append(Exchange(first.skill, f"{text} {first.user}", first.answer))
            asked = 1
    while not (single and asked) and (single or sum(map(len, exchanges)) < budget):
        exchange = memory.ask(rng, unknown_share)
        if exchange is None:
            break
        exchanges.append(exchange)
        asked += 1
    return exchanges


def _how_many(rng: random.Random, budget: int, single: bool, crowded: bool, terse: bool) -> int:
    """How many facts are told, from about how many tokens each takes, alone or with its question."""
    if crowded:
        most = max(1, budget * 6 // 10 // (18 if terse else 36))
        return rng.randint((most + 1) // 2, most)
    most = max(1, budget // (35 if single else 62))
    return rng.randint(most * 2 // 3 or 1, most) if single else round(most ** rng.random())
