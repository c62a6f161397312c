"""Fields that say what they take: each has its range and its words once, beside its name.

Checks, the service's arguments, the fields of requests, options of commands and pages of the docs derive from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Ends of a range; an end that is None is open to infinity, and infinity itself is never inside.

    Attributes:
        gt, ge: the least value, without itself and with it; one of them at most.
        le: the greatest value, with itself.
    """

    gt: float | None = None
    ge: float | None = None
    le: float | None = None

    @property
    def given(self) -> dict[str, float]:
        """The ends that there are, under the names that pydantic's `Field` has for them."""
        return {name: end for name in ("gt", "ge", "le") if (end := getattr(self, name)) is not None}

    def __contains__(self, value: float) -> bool:
        # Each comparison is true of what is inside, so that NaN is outside.
        return (
            (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.le is None or value <= self.le)
            and (isinstance(value, int) or math.isfinite(value))
        )

    def __str__(self) -> str:
        if self.ge is not None and self.le is not None:
            return f"between {self.ge} and {self.le}"
        least = f"above {self.gt}" if self.gt is not None else f"of at least {self.ge}" if self.ge is not None else ""
        return " and ".join(part for part in (least, f"at most {self.le}" if self.le is not None else "") if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A field of a record.

    Attributes:
        name: of the field.
        type: its annotation, resolved; `int | None` and the like where leaving it unset means something of its own.
        default: its value unless set.
        words: what it is, as sentences that may follow the name and a colon.
        bounds: of its number; None if it has no range, or is no number.
        unit: what the number counts, if it is a measure.
    """

    name: str
    type: Any
    default: Any
    words: str
    bounds: Bounds | None = None
    unit: str | None = None

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values it may have when it is set, if they can be listed."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def kind(self) -> Any:
        """Its type when it is set."""
        union = get_args(self.type) if get_origin(self.type) in (Union, UnionType) else (self.type,)
        kinds = [kind for kind in union if kind is not NoneType]
        return kinds[0] if len(kinds) == 1 else self.type

    @property
    def expected(self) -> str:
        """What completes the sentence "it must be ..."; empty if its type says it all."""
        if self.choices:
            return " or ".join(map(repr, self.choices))
        return "" if self.bounds is None else expectation(self.type, self.bounds, self.unit)

    def admits(self, value: Any) -> bool:
        """Whether the value is in range; None always is, where the type allows it."""
        if self.choices:
            return value in self.choices or (value is None and self.kind is not self.type)
        return value is None or self.bounds is None or value in self.bounds


def expectation(kind: Any, bounds: Bounds, unit: str | None = None) -> str:
    """A number's type and range in words: `an integer of at least 1`, `a finite number of seconds above 0`."""
    if kind is int or int in get_args(kind):
        noun = "an integer"
    else:
        noun = "a number" if bounds.ge is not None and bounds.le is not None else "a finite number"
    return " ".join(part for part in (noun, f"of {unit}" if unit else "", str(bounds)) if part)


def setting(
    default: Any = MISSING,
    words: str = "",
    *,
    default_factory: Callable[[], Any] | Any = MISSING,
    bounds: Bounds | None = None,
    unit: str | None = None,
) -> Any:
    """A dataclass's field with its words and its range, as `settings` gives them back."""
    metadata = {"words": words, "bounds": bounds, "unit": unit}
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@cache
def settings(record: type) -> tuple[Setting, ...]:
    """The fields of a dataclass that `setting` made, in order."""
    types = get_type_hints(record)
    return tuple(
        Setting(
            name=each.name,
            type=types[each.name],
            default=each.default if each.default_factory is MISSING else each.default_factory(),
            **each.metadata,
        )
        for each in fields(record)
        if "words" in each.metadata
    )


def named(record: type, name: str) -> Setting:
    """The setting of that name.

    Raises:
        KeyError: the record has none.
    """
    return {each.name: each for each in settings(record)}[name]


def out_of_range(record: object) -> Iterator[tuple[str, str]]:
    """The name of each field whose value is out of range, and a sentence that says what it must be."""
    for each in settings(type(record)):  # type: ignore[arg-type] # mypy sees the hash of the instance
        value = getattr(record, each.name)
        if not each.admits(value):
            yield each.name, f"{each.name} is {value!r}; it must be {each.expected}"
