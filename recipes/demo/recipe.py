"""The recipe in numbers: the model's shape, and the phases of its training, in the order they run."""

from dataclasses import dataclass, field

# How often each skill is drawn.
EARLY = {
    "recall": 8.0,
    "sums": 3.0,
    "copy": 2.5,
    "reverse": 2.0,
    "spell": 0.2,
    "count": 0.8,
    "facts": 0.6,
    "chat": 0.6,
    "unknown": 0.8,
}
MIDDLE = EARLY | {"recall": 14.0, "copy": 3.0, "count": 1.5}
LATE = EARLY | {"recall": 14.0, "copy": 6.0, "reverse": 3.0, "count": 2.5, "chat": 0.8}
FINAL = LATE | {"sums": 6.0, "copy": 7.0, "reverse": 4.0, "chat": 1.2, "unknown": 1.2}

POLISH = FINAL | {"recall": 20.0}


@dataclass(frozen=True)
class Shape:
    """The Llama shape; the vocabulary is the tokenizer's and the embeddings are tied."""

    hidden: int = 192
    layers: int = 4
    feed_forward: int = 512
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    positions: int = 1024


@dataclass(frozen=True)
class Phase:
    """`steps` steps on conversations of up to `longest` tokens, the learning rate going linearly from one value to another.

    `crowded` is the share of recall that tells as many codes as fit, `untold` that of its questions about a code that
    was never told, `hard` that of every skill's draws that are replaced by harder ones (`hard.py`); `tokens` is the size
    of a step.
    """

    steps: int
    longest: int
    lr_from: float
    lr_to: float
    tokens: int = 4096
    crowded: float = 0.0
    untold: float = 0.07
    hard: float = 0.0
    mixture: dict[str, float] = field(default_factory=lambda: EARLY)


SHAPE = Shape()
PHASES = (
    Phase(100, 160, 0.0, 3e-3),
    Phase(1200, 160, 3e-3, 3e-3),
    Phase(1000, 288, 3e-3, 3e-3, crowded=0.7, mixture=MIDDLE),
    Phase(400, 560, 3e-3, 3e-3, tokens=6144, crowded=0.5, mixture=LATE),
    Phase(500, 960, 3e-3, 1.125e-3, tokens=6144, crowded=0.4, untold=0.12, mixture=LATE),
    Phase(500, 960, 1.125e-3, 0.0, tokens=6144, crowded=0.4, untold=0.12, hard=0.35, mixture=FINAL),
    Phase(50, 720, 0.0, 1.2e-3, tokens=6144, crowded=0.35, untold=0.25, hard=0.5, mixture=POLISH),
    Phase(800, 720, 1.2e-3, 0.0, tokens=6144, crowded=0.35, untold=0.25, hard=0.5, mixture=POLISH),
)


def phase_at(phases: tuple[Phase, ...], step: int) -> tuple[Phase, float]:
    """The phase that step `step` belongs to, and the step's learning rate."""
    for phase in phases:
        if step < phase.steps:
            return phase, phase.lr_from + (phase.lr_to - phase.lr_from) * (step + 1) / phase.steps
        step -= phase.steps
    raise IndexError("the recipe has no such step")
