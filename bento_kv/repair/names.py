"""The names that loops expect."""

from __future__ import annotations

import onnx_ir as ir

from bento_kv.contract.graph_io import ATTENTION_MASK, INPUT_IDS, LOGITS, POSITION_IDS, past_name, present_name
from bento_kv.repair.interface import interface_of, rename_ends
from bento_kv.repair.records import Change
from bento_kv.runtime.interface import Interface


def normalize(model: ir.Model) -> list[Change]:
    """Give a decoder that was found to be right the names that most loops expect, in place.

    Only of what it was driven by is it known what it is for, and only where an input has the shape that goes with a name
    does a loop that feeds by that name fit. So nothing is renamed where a past lacks its present, where keys and values
    are stacked, or where layers are not counted from the first.
    """
    interface = interface_of(model)
    paired = all(pair.past and pair.present and pair.side != "both" for pair in interface.caches)
    if not paired or [pair.layer for pair in interface.caches[::2]] != list(range(interface.layers)):
        return []
    names = {}
    for pair in interface.caches:
        if pair.past and pair.present:
            names[pair.past.name] = past_name(pair.layer, pair.side)
            names[pair.present.name] = present_name(pair.layer, pair.side)
    for spec, name in (
        (interface.ids, INPUT_IDS),
        (interface.mask, ATTENTION_MASK),
        (interface.positions, POSITION_IDS),
    ):
        if spec is not None and len(spec.shape) == 2:
            names[spec.name] = name
    if interface.logits.shape[-1] in _vocabularies(model, interface):
        names[interface.logits.name] = LOGITS  # and not, say, hidden states
    names = {old: new for old, new in names.items() if old != new}
    if not names:
        return []
    rename_ends(model, names)
    text = f"{len(names)} inputs and outputs have the names that most loops expect; a loop that feeds by the old names "
    shown = ", ".join(f"{old} is now {new}" for old, new in list(names.items())[:4])
    return [Change("names", shown, text + "has to use the new ones")]


def _vocabularies(model: ir.Model, interface: Interface) -> set[object]:
    """Rows of the tables that token ids are looked up in."""
    ids = next(value for value in model.graph.inputs if value.name == interface.ids.name)
    readers = ids.consumers()
    for node in readers:
        if node.op_type in ("Cast", "Reshape"):
            readers = [*readers, *node.outputs[0].consumers()]
    tables = [node.inputs[0] for node in readers if node.op_type == "Gather"]
    return {table.const_value.shape[0] for table in tables if table is not None and table.const_value is not None}
