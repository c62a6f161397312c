"""What inputs and outputs are for, in the spellings of exporters that share none."""

from __future__ import annotations

import pytest

from bento_kv.contract.graph_io import STEP_INPUTS, TensorSpec
from bento_kv.errors import DecoderError
from bento_kv.runtime.interface import Interface, recognize


def _spec(name: str, *shape: int | str, dtype: str = "float") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


IDS = _spec("input_ids", "b", "s", dtype="int64")
LOGITS = _spec("logits", "b", "s", 300)


def _with(pasts: list[TensorSpec], presents: list[TensorSpec], *more: TensorSpec) -> Interface:
    return recognize([IDS, *more, *pasts], [LOGITS, *presents])


@pytest.mark.parametrize(
    ("past", "present"),
    [
        ("past_key_values.{}.{}", "present.{}.{}"),
        ("past_key_values.{}.decoder.{}", "present_key_values.{}.decoder.{}"),
        ("past.{}.{}", "present.{}.{}"),
        ("past_{1}_{0}", "present_{1}_{0}"),
        ("pastKV_{}_{}", "presentKV_{}_{}"),
        ("cache_in.{}.{}", "cache_out.{}.{}"),
        ("kv_{}_{}_in", "kv_{}_{}_out"),
    ],
)
@pytest.mark.parametrize("sides", [("key", "value"), ("k", "v"), ("keys", "values")])
def test_layer_and_side_are_read_from_names(past: str, present: str, sides: tuple[str, str]) -> None:
    places = [(layer, side) for layer in range(12) for side in sides]
    pasts = [_spec(past.format(*place), "b", 2, "p", 16) for place in places]
    # In another order than the inputs, as graphs have them after a round through an optimizer.
    presents = [_spec(present.format(*place), "b", 2, "p + s", 16) for place in reversed(places)]
    interface = _with(pasts, presents)
    assert interface.layers == 12
    for index, pair in enumerate(interface.caches):
        assert (pair.layer, pair.side) == (index // 2, ("key", "value")[index % 2])
        assert pair.past == pasts[index]
        assert pair.present is not None
        assert pair.present.name == present.format(*places[index])


def test_layers_may_be_counted_from_one() -> None:
    interface = _with([_spec(f"past_{n}", 2, "b", 4, "p", 8) for n in (1, 2)], [])
    assert [pair.layer for pair in interface.caches] == [0, 1]


def test_a_missing_present_leaves_a_hole_in_its_own_layer() -> None:
    pasts = [_spec(f"past.{n}.{side}", "b", 2, "p", 16) for n in range(3) for side in ("key", "value")]
    presents = [_spec(s.name.replace("past", "present"), "b", 2, "t", 16) for s in pasts if s.name != "past.1.value"]
    holes = [(pair.layer, pair.side) for pair in _with(pasts, presents).caches if pair.present is None]
    assert holes == [(1, "value")]


def test_a_missing_first_past_does_not_shift_the_others() -> None:
    pasts = [_spec(f"past.{n}.key", "b", 2, "p", 16) for n in (1, 2)]
    presents = [_spec(f"present.{n}.key", "b", 2, "t", 16) for n in (0, 1, 2)]
    assert [pair.layer for pair in _with(pasts, presents).caches if pair.past is None] == [0]


@pytest.mark.parametrize(
    ("past", "present", "axes"),
    [
        (("b", 2, "p", 16), ("b", 2, "t", 16), ("rows", "heads", "time", "dim")),
        (("b", 2, 16, "p"), ("b", 2, 16, "t"), ("rows", "heads", "dim", "time")),
        (("b", "p", 2, 16), ("b", "t", 2, 16), ("rows", "time", "heads", "dim")),
        (("b", 2, 7, 16), ("b", 2, 8, 16), ("rows", "heads", "time", "dim")),
        ((1, 2, 16, 7), (1, 2, 16, 8), ("rows", "heads", "dim", "time")),
        (("b", 2, "p", "d"), ("b", 2, "t", "d"), ("rows", "heads", "time", "dim")),
        (("b x heads", 16, "p"), ("b x heads", 16, "t"), ("rows_heads", "dim", "time")),
        (("b", "p", 32), ("b", "t", 32), ("rows", "time", "dim")),
    ],
)
def test_the_axis_that_grows_is_time(
    past: tuple[int | str, ...], present: tuple[int | str, ...], axes: tuple[str, ...]
) -> None:
    interface = _with([_spec("past.0.key", *past)], [_spec("present.0.key", *present)])
    assert interface.caches[0].axes == axes


def test_masks_positions_and_switches_are_told_apart() -> None:
    interface = _with(
        [_spec("past.0.key", "b", 2, "p", 16)],
        [_spec("present.0.key", "b", 2, "t", 16)],
        _spec("attention_mask", "b", "t", dtype="int64"),
        _spec("position_ids", "b", "s", dtype="int64"),
        _spec("token_type_ids", "b", "s", dtype="int64"),
        _spec("use_cache_branch", 1, dtype="bool"),
    )
    assert interface.ids == IDS
    assert interface.logits == LOGITS
    roles = (interface.mask, interface.positions, *interface.zeros, interface.branch)
    assert [spec.name if spec else None for spec in roles] == [
        "attention_mask",
        "position_ids",
        "token_type_ids",
        "use_cache_branch",
    ]


def test_an_input_that_nobody_can_fill_is_named() -> None:
    with pytest.raises(DecoderError, match="encoder_hidden_states"):
        _with([], [], _spec("encoder_hidden_states", "b", "e", 64))


def test_what_is_no_decoder_is_refused() -> None:
    with pytest.raises(DecoderError, match="no token ids"):
        recognize([_spec("pixels", "b", 3, 224, 224)], [LOGITS])
    with pytest.raises(DecoderError, match="no logits"):
        recognize([IDS], [_spec("embedding", "b", 3, 4, 5)])


def test_only_our_own_layout_may_keep_its_cache_as_integers() -> None:
    past = _spec("past_key_values.0.key", "rows", 2, "max_length", 16, dtype="int8")
    present = past.model_copy(update={"name": "present.0.key"})
    logits = _spec("logits", "logit_rows", 32)
    packed = recognize((*STEP_INPUTS, past), [logits, present])
    assert [pair.past for pair in packed.caches] == [past]
    with pytest.raises(DecoderError, match="past_key_values"):
        recognize([_spec("input_ids", "b", "s", dtype="int64"), past], [logits, present])
