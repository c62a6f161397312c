"""Inputs and outputs as a graph declares them against what they have to be: the one comparison of proof and doctor.

The proof knows every name, type and axis of its layout, and counts all that differs. Of anybody's graph only relations are
known: which axes have to vary, and that a present has to be like its past; the doctor takes from the same faults what
speaks of those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from bento_kv.contract.graph_io import TensorSpec


@dataclass(frozen=True, slots=True)
class IoFault:
    """One thing that is not as it has to be.

    Attributes:
        kind: of what: the name is missing or is not expected, the element type, or the axes.
        text: what is there, and what should be.
        fixed: axes that have a size where they have to vary.
        sizes: axes that have another size than they have to.
        rank: the number of axes is another.
    """

    kind: Literal["name", "dtype", "shape"]
    text: str
    fixed: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    rank: bool = False


def compare_all(
    which: Literal["input", "output"], declared: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec]
) -> Iterator[IoFault]:
    """All inputs, or all outputs, of a graph whose layout is known."""
    for name in sorted(expected.keys() - declared.keys()):
        yield IoFault("name", f"{which} {name} is missing")
    for name in sorted(declared.keys() - expected.keys()):
        yield IoFault("name", f"{which} {name} is not expected")
    for name, spec in declared.items():
        if name in expected:
            yield from compare(spec, expected[name])


def compare(declared: TensorSpec, expected: TensorSpec) -> Iterator[IoFault]:
    """Element type and axes of one tensor; an axis that is expected by a name has to vary."""
    if declared.dtype != expected.dtype:
        yield IoFault("dtype", f"{declared.name} is {declared.dtype}, not {expected.dtype}")
    if declared.shape == expected.shape:
        return
    axes = list(enumerate(zip(declared.shape, expected.shape, strict=False)))
    rank = len(declared.shape) != len(expected.shape)
    yield IoFault(
        "shape",
        f"{declared.name} is {list(declared.shape)}, not {list(expected.shape)}",
        fixed=tuple(at for at, (own, wanted) in axes if isinstance(own, int) and isinstance(wanted, str)),
        sizes=tuple(
            at for at, (own, wanted) in axes if isinstance(own, int) and isinstance(wanted, int) and own != wanted
        ),
        rank=rank,
    )


def show(spec: TensorSpec | None) -> str:
    """Element type and shape, in a word."""
    return f"{spec.dtype}{list(spec.shape)}" if spec else "missing"
