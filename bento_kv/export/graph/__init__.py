"""Passes over the traced graph: small, named, and none changes what is computed by more than the proof allows."""

from __future__ import annotations

from functools import partial

import onnx_ir as ir
from onnx_ir.passes import common

from bento_kv.export.graph.activations import fuse_silu
from bento_kv.export.graph.layout import address_cells, choose_tokens_once
from bento_kv.export.graph.norms import skip_norms
from bento_kv.export.graph.origins import Origins
from bento_kv.export.graph.projections import fold_transposes, pack_attention_inputs, plain_products
from bento_kv.export.graph.rotary import rotate_in_attention, tabulate_rotary
from bento_kv.export.graph.rotation import rotate_residual, spread_inputs


def optimize(
    model: ir.Model, max_length: int, buffer: int, origins: Origins, *, rotate: bool = False
) -> dict[str, int]:
    """The passes over a graph of floats, in order. Returns how often each of them found what it looks for.

    Args:
        model: changed in place.
        max_length: positions of a row.
        buffer: positions of a row's buffer in the cache.
        origins: what is known of the weights.
        rotate: spread what is large in few channels over all, for weights and activations of few bits.
    """
    done: dict[str, int] = {}
    spreading = (
        ("fold_transposes", fold_transposes),
        ("rotate_residual", partial(rotate_residual, origins=origins)),
        ("spread_inputs", partial(spread_inputs, origins=origins)),
    )
    for name, step in (
        ("rotate_in_attention", partial(rotate_in_attention, length=buffer)),
        ("tabulate_rotary", partial(tabulate_rotary, max_length=max_length)),
        ("plain_products", plain_products),
        *(spreading if rotate else ()),
        ("pack_attention_inputs", partial(pack_attention_inputs, origins=origins)),
        ("address_cells", address_cells),
        ("choose_tokens_once", choose_tokens_once),
        ("skip_norms", skip_norms),
        ("fuse_silu", fuse_silu),
    ):
        done[name] = step(model)
        clean_up(model)
    return done


def clean_up(model: ir.Model) -> None:
    """Merge what is computed twice, drop what nobody reads and what only a debugger of the exporter would."""
    for step in (
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.ClearMetadataAndDocStringPass(),
    ):
        step(model)
