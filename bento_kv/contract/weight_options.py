"""What can be asked of how weights are stored: the one list from which commands, `--arg` and Python have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from bento_kv.contract.files import sha256
from bento_kv.contract.precision import Precision, candidates
from bento_kv.contract.settings import Bounds, Setting, setting, settings
from bento_kv.errors import ExportError

Method = Literal["gptq", "search", "rtn"]
# Of an option, as records have it.
OptionValue = bool | int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationOptions:
    """How weights are to be stored. What is None is as the precision has it.

    `bento_kv.contract.settings.settings(QuantizationOptions)` lists the fields with range and words.

    Raises:
        ExportError: a value is none that the option may have.
    """

    bits: Literal[4, 8] | None = setting(None, "of a weight in int4's blocks")
    block_size: Literal[16, 32, 64, 128, 256] | None = setting(None, "weights of int4 that share a scale")
    symmetric: bool | None = setting(None, "whether int4's blocks have no zero points")
    method: Method | None = setting(
        None,
        "how weights of int4 are rounded: `gptq` looks at what they are multiplied with, `search` looks for scales, `rtn` "
        "rounds to nearest",
    )
    calibration: Path | None = setting(
        None,
        "a file of UTF-8 text of the kind that the model is for, for `gptq`; documentation of Python's library unless set",
    )
    head_bits: Literal[4, 8] | None = setting(None, "of the weights that make int4's logits")
    edge_layers: int | None = setting(
        None, "so many layers at either end keep 8 bits in int4, where a model is hurt most", bounds=Bounds(ge=0)
    )
    reduce_range: bool | None = setting(
        None, "whether int8 weights, and int4's for prompts, use 7 of 8 bits, which is faster without VNNI"
    )
    rotate: bool | None = setting(
        None, "whether the few large channels of activations are spread over all, in int8 and int4"
    )

    def __post_init__(self) -> None:
        for each in settings(QuantizationOptions):
            value = getattr(self, each.name)
            if value is not None and not (_is_a(value, each) and each.admits(value)):
                raise ExportError(f"{each.name} is {value!r}; it must be {each.expected or _kind(each).__name__}")

    @property
    def given(self) -> dict[str, Any]:
        """What is asked for, by name."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}

    def of(self, precision: Precision) -> dict[str, Any]:
        """What is asked for and means something to a precision, by name."""
        return {name: value for name, value in self.given.items() if name in options_of(precision)}

    def calibration_sha256(self) -> str | None:
        """The hash of the text to calibrate on, if one is given.

        Raises:
            ExportError: it cannot be read.
        """
        try:
            return None if self.calibration is None else sha256(self.calibration)
        except OSError as error:
            raise ExportError(
                f"{self.calibration} cannot be read as UTF-8 text to calibrate on: {error.strerror}"
            ) from error

    def check(self, asked: str) -> None:
        """Refuse by name what does nothing with a precision, or with any that may be taken.

        Raises:
            ExportError: there is such an option.
        """
        for name in self.given:
            if not any(name in options_of(each) for each in candidates(asked)):
                takers = [each for each in candidates("auto") if name in options_of(each)]
                own = " and ".join(sorted(options_of(asked)))
                raise ExportError(
                    f"{name} does nothing with precision {asked}{f', which takes {own}' if own else ''}; "
                    f"{' and '.join(takers)} can take it"
                )


NAMES: tuple[str, ...] = tuple(each.name for each in fields(QuantizationOptions))
_OPTIONS: Mapping[str, frozenset[str]] = {
    "int8": frozenset({"reduce_range", "rotate"}),
    "int4": frozenset(NAMES),
}


def options_of(precision: str) -> frozenset[str]:
    """The options that mean something to a precision; none to what is no precision."""
    return _OPTIONS.get(precision, frozenset())


def _kind(each: Setting) -> type:
    """The class of a setting's values when it is set."""
    kind: type = type(each.choices[0]) if each.choices else each.kind
    return kind


def _is_a(value: Any, each: Setting) -> bool:
    return isinstance(value, _kind(each)) and (isinstance(value, bool) <= (_kind(each) is bool))
