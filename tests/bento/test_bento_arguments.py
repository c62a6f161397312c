"""What a bento was built with, and what the command line of `bentoml serve` may change of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.utils.args import set_arguments
from bentoml.exceptions import InvalidArgument

from bento_kv import save_model
from bento_kv.bento.arguments import BUILT_IN, Arguments, forget_path, pass_arguments_on, read_arguments
from bento_kv.bento.asked import DECODER_ALIAS
from bento_kv.contract.weight_options import NAMES
from tests import decoders
from tests.contract.test_weight_options import VALUES

BUILT = {"model": "pinned", "slots": "3", "kv_cache": "int8", "rotate": "true"}


@pytest.fixture(scope="module")
def packed() -> str:
    """The tag of the decoder that the bento has."""
    return str(save_model("pinned-in-a-bento", decoders.proven(kv_cache="int8")).tag)


@pytest.fixture
def in_bento(monkeypatch: pytest.MonkeyPatch, packed: str) -> Iterator[Any]:
    """As BentoML leaves it when it has loaded a bento and imports its service; called with the words of the command line."""
    BentoMLContainer.model_aliases.set({DECODER_ALIAS: packed})
    set_arguments(dict(BUILT))

    def serve(*words: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["bentoml", "serve", "bento_kv:abc", *words])
        return read_arguments()

    yield serve
    BentoMLContainer.model_aliases.set({})
    set_arguments({})


def test_what_it_was_built_with_holds_where_nothing_is_said(in_bento: Any) -> None:
    service, engine = in_bento("--port", "3000")
    assert (service.model, service.kv_cache, engine.slots) == ("pinned", "int8", 3)


def test_what_can_change_does_and_reaches_the_workers(in_bento: Any) -> None:
    service, engine = in_bento(
        "--arg", "slots=5", "--arg=threads=2", "--arg", "max_length=64", "--arg", "model_id=mine"
    )
    assert (service.model, service.model_id) == ("pinned", "mine")
    assert (engine.slots, engine.threads, engine.max_length) == (5, 2, 64)
    set_arguments(dict(BUILT))  # BentoML loads a bento again before it starts workers
    pass_arguments_on()
    merged = BentoMLContainer.bento_arguments.get()
    set_arguments(dict(BUILT))  # as a worker finds it
    assert in_bento("--args", json.dumps(merged)) == (service, engine)


def test_a_file_of_arguments_counts_below_single_ones(in_bento: Any, tmp_path: Path) -> None:
    file = tmp_path / "arguments.yaml"
    file.write_text("slots: 7\nmax_queue: 9\n")
    _, engine = in_bento("--arg-file", str(file), "--arg", "slots=5")
    assert (engine.slots, engine.max_queue) == (5, 9)


def test_every_argument_but_what_is_built_in_can_be_given(in_bento: Any) -> None:
    for name in Arguments.model_fields.keys() - {*BUILT_IN}:
        default = Arguments.model_fields[name].default
        if default is not None:
            in_bento("--arg", f"{name}={default}")
    in_bento("--arg", "model=pinned", "--arg", "kv_cache=int8", "--arg", "rotate=True")  # as it was built
    in_bento("--arg", "precision=fp32")  # as it came to be, where nothing was said


@pytest.mark.parametrize(
    "word",
    [
        "model=demo",
        "model=/elsewhere/pinned",
        "precision=int8",
        "precision=auto",
        "kv_cache=fp32",
        *(f"{name}={VALUES[name]}" for name in NAMES if name != "rotate"),
        "rotate=false",
    ],
)
def test_what_is_built_in_cannot_change(word: str, in_bento: Any) -> None:
    with pytest.raises(InvalidArgument, match=rf"--arg {word}: .* is built in.*bentoml build --arg {word}"):
        in_bento("--arg", word)


def test_what_was_chosen_in_the_build_may_be_named(in_bento: Any) -> None:
    for same in ("auto", "fp32"):
        set_arguments({"model": "pinned", "precision": "auto"})
        assert in_bento("--arg", f"precision={same}")[0].precision == same
    set_arguments({"model": "pinned", "precision": "auto"})
    with pytest.raises(InvalidArgument, match="this one with precision=auto"):
        in_bento("--arg", "precision=int4")
    with pytest.raises(InvalidArgument, match="this one without block_size"):
        in_bento("--arg", "block_size=64")


def test_what_is_unknown_is_named(in_bento: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"--arg slotz: .* is slots meant"):
        in_bento("--arg", "slotz=5")
    with pytest.raises(InvalidArgument, match="slots"):
        in_bento("--arg", "slots=none")


def test_outside_of_a_bento_the_command_line_is_bentomls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bentoml", "serve", "--arg", "slots=5"])
    set_arguments({"slots": "3"})
    assert read_arguments()[1].slots == 3
    set_arguments({"slotz": "3"})
    with pytest.raises(InvalidArgument, match="slotz"):
        read_arguments()
    set_arguments({})


@pytest.mark.parametrize("building", [True, False])
def test_a_bento_that_is_built_does_not_learn_where_its_model_stands(building: bool, tmp_path: Path) -> None:
    (tmp_path / "pinned").mkdir()
    (tmp_path / "text.txt").touch()
    given = {"model": str(tmp_path / "pinned"), "slots": "3", "calibration": str(tmp_path / "text.txt")}
    set_arguments(dict(given))
    importer = {"__name__": "bentoml._internal.bento.bento" if building else "loader", "forget_path": forget_path}
    FunctionType((lambda: forget_path()).__code__, importer)()
    found = BentoMLContainer.bento_arguments.get()
    set_arguments({})
    assert found == (given | {"model": "pinned", "calibration": "text.txt"} if building else given)
