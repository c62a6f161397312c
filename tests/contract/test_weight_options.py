"""What can be asked of how weights are stored: one list of names, and every wrong value is named."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from bento_kv.contract.precision import EXPORTED, candidates
from bento_kv.contract.settings import settings
from bento_kv.contract.weight_options import NAMES, QuantizationOptions, options_of
from bento_kv.errors import ExportError
from bento_kv.export.forms import FORMS, chosen, in_force
from bento_kv.export.graph.weights import Quantization

VALUES: dict[str, Any] = {
    "bits": 8,
    "block_size": 64,
    "symmetric": False,
    "method": "gptq",
    "calibration": Path("text.txt"),
    "head_bits": 4,
    "edge_layers": 2,
    "reduce_range": False,
    "rotate": True,
}
WRONG: dict[str, tuple[Any, ...]] = {
    "bits": (5, "4", 4.0),
    "block_size": (48, 0, "64", True),
    "symmetric": ("no", 1),
    "method": ("awq", 4),
    "calibration": ("text.txt",),
    "head_bits": (6, True),
    "edge_layers": (-1, 1.5, True, "2"),
    "reduce_range": ("false", 0),
    "rotate": ("yes", 1),
}


def test_the_list_is_whole() -> None:
    assert {*NAMES} == {*VALUES} == {*WRONG} == {each.name for each in fields(Quantization)} | {"calibration"}
    assert [each.name for each in settings(QuantizationOptions)] == list(NAMES)
    assert {*FORMS} == {each for each in EXPORTED if options_of(each)}


@pytest.mark.parametrize("name", NAMES)
def test_wrong_values_are_named(name: str) -> None:
    assert QuantizationOptions(**{name: VALUES[name]}).given == {name: VALUES[name]}
    for value in WRONG[name]:
        with pytest.raises(ExportError, match=f"^{name} is {value!r}; it must be "):
            QuantizationOptions(**{name: value})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", EXPORTED)
def test_an_option_does_something_or_is_refused_by_name(precision: Any, name: str) -> None:
    asked = QuantizationOptions(**{name: VALUES[name]})
    if name in options_of(precision):
        with_method = QuantizationOptions(**{"method": "gptq", **asked.given} if precision == "int4" else asked.given)
        how = chosen(precision, with_method)
        recorded = in_force(precision, with_method, how)
        assert recorded[name] == ("text.txt" if name == "calibration" else VALUES[name])
        assert {*recorded} == options_of(precision) - ({"calibration"} if name != "calibration" else set())
    else:
        with pytest.raises(ExportError, match=rf"^{name} does nothing with precision {precision}.*int4.* can take it"):
            chosen(precision, asked)
    asked.check("auto")  # int4 is among what it tries


def test_the_smallest_comes_first() -> None:
    assert candidates("auto") == ("int4", "int8", "fp32")
    assert candidates("int8") == ("int8",)
    with pytest.raises(ExportError, match="precision 'fp16' is not one of: fp32, int8, int4, auto"):
        candidates("fp16")
