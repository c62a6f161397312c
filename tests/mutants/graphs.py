"""Seeded faults in graphs: what was done to which decoder, who ran into it, and what has to be said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from tests.mutants import cache_faults as cache
from tests.mutants import file_faults as files
from tests.mutants import genai
from tests.mutants import number_faults as numbers
from tests.mutants import packed_faults as packed
from tests.mutants.decoders import LAYOUTS, Decoders
from tests.mutants.surgery import tidy

Fault = Callable[[onnx.ModelProto], None]


@dataclass(frozen=True)
class Mutant:
    """One fault in one decoder.

    Attributes:
        what: was done.
        ids: of the findings, the expected one first; the others are companions that follow from it.
        fault: done to the graph in the common layout.
        base, layout: of the decoder.
        damage: done to the folder that was written.
        origin: project and issue where somebody ran into it.
        note: why this id, where another could be defended.
        reference: the torch model is given.
    """

    name: str
    what: str
    ids: tuple[str, ...]
    fault: Fault | None = None
    base: str = "llama"
    layout: str = "common"
    damage: Callable[[Path], None] | None = None
    origin: str = ""
    note: str = ""
    reference: bool = False

    def write(self, decoders: Decoders, folder: Path) -> None:
        """The faulty decoder's files."""
        model = decoders.model(self.base)
        if self.fault is not None:
            self.fault(model)
            model = tidy(model)
        LAYOUTS[self.layout](model, folder)
        if self.damage is not None:
            self.damage(folder)


def _mutant(name: str, id: str, what: str, fault: Fault | None = None, *also: str, **more: Any) -> Mutant:
    return Mutant(name, what, (id, *also), fault, **more)


# One entry in two lines or three: as a table, not as code.
# fmt: off
LOADING = (
    _mutant("IR version 99", "ir-version-unsupported", "the file says IR version 99", files.ir_version_99,
        origin="onnxruntime #20559, #23602"),
    _mutant("IR version 99, two files", "ir-version-unsupported", "the files say IR version 99", files.ir_version_99,
        layout="two files"),
    _mutant("opset 99", "opset-unsupported", "the standard operator set is number 99", files.opset_99),
    _mutant("opset 99, merged", "opset-unsupported", "the standard operator set is number 99", files.opset_99,
        base="gpt2", layout="merged"),
    _mutant("file cut off", "load-failed", "the second half of the file is missing", damage=files.cut_off),
    _mutant("unknown operator", "load-failed", "token ids go through an operator that no runtime has",
        files.unknown_operator, layout="transposed keys"),
    _mutant("unknown domain", "load-failed", "logits go through an operator of com.example", files.unknown_domain,
        layout="stacked"),
    _mutant("types that do not fit", "load-failed", "logits are multiplied by an integer", files.types_do_not_fit,
        base="qwen2", layout="time-major"),
    _mutant("weights file missing", "external-data-missing", "model.onnx.data is not there", layout="external data",
        damage=files.without_data, origin="onnx #3275"),
    _mutant("weights file short", "external-data-missing", "the second half of model.onnx.data is missing",
        layout="external data", damage=files.short_data),
    _mutant("weights file renamed", "external-data-missing", "model.onnx.data is called weights.bin", base="gpt2",
        layout="external data", damage=files.data_renamed),
)
CACHE_IO = (
    _mutant("no cache", "no-cache-io", "neither past inputs nor present outputs", files.without_cache),
    _mutant("no presents", "no-cache-io", "past inputs without present outputs", files.without_presents, base="gpt2",
        layout="int32 ids"),
    _mutant("second file missing", "no-cache-io", "decoder_model.onnx without decoder_with_past_model.onnx",
        layout="two files", damage=files.without_second_file),
    _mutant("one present dropped", "past-present-unpaired", "present.1.value is no output",
        files.one_present_dropped),
    _mutant("one past dropped", "past-present-unpaired", "past_key_values.0.value is no input",
        files.one_past_dropped, layout="other names", base="gpt2"),
    _mutant("layers swapped", "past-present-unpaired", "present.0 continues the past of layer 1",
        files.presents_of_layers_swapped),
    _mutant("layers swapped, stacked", "past-present-unpaired", "present_0 continues the past of layer 1",
        files.presents_of_layers_swapped, layout="stacked", base="gpt2"),
    _mutant("keys and values swapped, stacked", "past-present-unpaired", "present keys are values",
        files.keys_and_values_swapped, layout="stacked", base="bloom"),
    _mutant("keys and values swapped", "past-present-unpaired", "present keys are values",
        files.keys_and_values_swapped, layout="time-major"),
    _mutant("present of all heads", "kv-shape-mismatch",
        "present repeats keys and values for the 4 query heads, past has 2", files.heads_repeated_in_present),
    _mutant("present of all heads, undeclared", "kv-shape-mismatch",
        "present repeats keys and values, and declares no number", files.heads_repeated_undeclared, base="gpt2",
        layout="stacked"),
    _mutant("past of hidden_size / heads", "kv-shape-mismatch", "past declares a head size of 8, the keys have 16",
        files.past_of_hidden_by_heads, origin="optimum #2379"),
    _mutant("past of all heads", "kv-shape-mismatch", "past declares 4 heads, the keys have 2",
        files.past_of_all_heads, layout="merged"),
    _mutant("present in halves", "dtype-mismatch", "past takes float, present gives float16",
        files.present_in_halves),
    _mutant("present in halves, stacked", "dtype-mismatch", "past takes float, present gives float16",
        files.present_in_halves, layout="stacked"),
    _mutant("one present in doubles", "dtype-mismatch", "present.1.key is double", files.one_present_in_doubles,
        base="bloom", layout="transposed keys"),
)
SIZES = (
    _mutant("batch declared", "dynamic-axis-baked", "the batch axis is declared as 2", files.declared(batch=2),
        origin="optimum #2219"),
    _mutant("sequence declared", "dynamic-axis-baked", "the sequence axis is declared as 3",
        files.declared(sequence=3), layout="time-major"),
    _mutant("past declared", "dynamic-axis-baked", "the past axis is declared as 4", files.declared(past=4),
        layout="stacked"),
    _mutant("all sizes declared", "dynamic-axis-baked", "batch 1, sequence 1 and past 7 are declared",
        files.declared(batch=1, sequence=1, past=7), base="gpt2"),
    _mutant("batch baked within", "dynamic-axis-baked", "shapes inside hold the batch of the example, 2",
        files.traced("batch"), origin="optimum #2219"),
    _mutant("sequence baked within", "dynamic-axis-baked", "shapes inside hold the sequence of the example, 3",
        files.traced("sequence"), base="gpt2"),
    _mutant("past baked within", "dynamic-axis-baked", "shapes inside hold the past of the example, 4",
        files.traced("past", "sequence"), layout="transposed keys"),
    _mutant("traced at batch 1", "dynamic-axis-baked", "shapes inside hold the batch of the example, 1",
        files.traced("batch", batch=1), base="bloom", layout="merged", origin="optimum #2219"),
    _mutant("traced at sequence 1", "dynamic-axis-baked", "shapes inside hold the sequence of the example, 1",
        files.traced("sequence", sequence=1), layout="stacked", origin="optimum #2219"),
    _mutant("batch in a Reshape", "dynamic-axis-baked", "logits are shaped for one row", files.batch_in_a_reshape,
        layout="stacked"),
    _mutant("positions of one row", "dynamic-axis-baked", "position ids are shaped for one row",
        files.positions_of_one_row, base="gpt2"),
    _mutant("mask of fixed length", "dynamic-axis-baked", "the mask's range ends at 7, where it did in the example",
        files.mask_of_fixed_length),
    _mutant("0 copies a dimension", "zero-length-past-rejected",
        "rows and heads of past fused by a Reshape without allowzero", files.zero_copies_a_dimension,
        origin="onnxruntime-genai #1567"),
    _mutant("last position read", "zero-length-past-rejected", "the past's last position is gathered",
        files.last_of_past, layout="time-major"),
    _mutant("largest of nothing", "zero-length-past-rejected", "ArgMax over the mask of the past",
        files.first_column_of_past, base="bloom", layout="transposed keys"),
)
PRESENT = (
    _mutant("new positions only", "present-not-appended", "present has the new positions without the past",
        cache.new_only),
    _mutant("new before past", "present-not-appended", "present has the new positions first", cache.new_before_past,
        layout="stacked"),
    _mutant("past alone", "present-not-appended", "present is the past, without the new positions", cache.past_alone,
        base="gpt2"),
    _mutant("present rounded", "present-not-appended", "present is rounded to eighths", cache.rounded,
        layout="two files"),
    _mutant("new positions zero", "present-not-appended", "behind a past, present has zeros for the new positions",
        cache.new_zeroed_behind_past),
    _mutant("present values zero", "present-not-appended", "present values of the last layer are 0",
        cache.values_zeroed, layout="time-major"),
    _mutant("branches exchanged", "present-not-appended", "use_cache_branch means the opposite", base="gpt2",
        layout="merged", damage=files.branches_exchanged),
    _mutant("first position lost", "present-not-appended", "present loses its oldest position behind a past",
        cache.first_position_lost, layout="merged"),
    _mutant("past times 0", "past-ignored", "attention sees zeros for the past in every layer",
        cache.past_times_zero(0, 1)),
    _mutant("past times 0, merged", "past-ignored", "attention sees zeros for the past in every layer",
        cache.past_times_zero(0, 1), base="gpt2", layout="merged"),
    _mutant("past of layer 1 times 0", "past-ignored", "attention sees zeros for the past in the last layer",
        cache.past_times_zero(1), layout="stacked"),
    _mutant("past of layer 0 times 0", "past-ignored", "attention sees zeros for the past in the first layer",
        cache.past_times_zero(0), base="bloom", layout="transposed keys"),
    _mutant("past keys times 0", "past-ignored", "all of the past is attended to alike, whatever its keys",
        cache.keys_times_zero, layout="fp16"),
    _mutant("past values times 0", "past-ignored", "past keys are attended to, past values are zeros",
        cache.values_times_zero, base="gpt2"),
)
POSITIONS = (
    _mutant("positions restart", "position-ignores-past", "position_ids is not used, positions are counted from 0",
        cache.positions_restart),
    _mutant("positions restart, learned", "position-ignores-past",
        "position_ids is not used, positions are counted from 0", cache.positions_restart, base="gpt2",
        layout="stacked"),
    _mutant("positions restart inside", "position-ignores-past", "no position_ids, positions are counted from 0",
        cache.positions_inside_restart, base="qwen2", layout="two files"),
    _mutant("positions doubled", "position-ignores-past", "the past's length is added to position_ids",
        cache.positions_doubled, base="gpt2"),
    _mutant("positions one behind", "position-ignores-past", "behind a past, positions are one too small",
        cache.positions_one_behind, layout="time-major"),
    _mutant("padding counted", "position-ignores-past", "position_ids is not used, positions are the columns",
        cache.positions_count_padding, base="gpt2", origin="optimum #877"),
)
MASKS = (
    _mutant("causal mask not shifted", "mask-ignores-past", "query i sees keys 0 to i whatever the past",
        cache.causal_not_shifted, origin="transformers #13175"),
    _mutant("causal mask not shifted, alibi", "mask-ignores-past", "query i sees keys 0 to i whatever the past",
        cache.causal_not_shifted, base="bloom", layout="transposed keys"),
    _mutant("not causal behind a past", "mask-ignores-past", "behind a past the causal mask is left out",
        cache.not_causal_behind_a_past, layout="time-major"),
    _mutant("mask stands still", "mask-ignores-past", "right up to a past of 5, then the mask does not grow",
        cache.mask_of_first_step, origin="tinygrad #15949"),
    _mutant("past hidden", "past-ignored", "the mask shows the new positions only", cache.past_hidden, base="gpt2",
        note="from outside, a mask that hides all of the past is a past that is ignored"),
    _mutant("past hidden but the last", "mask-ignores-past", "of the past, only the last position is seen",
        cache.past_masked_but_last, layout="stacked"),
    _mutant("attention_mask ignored", "mask-ignores-past", "attention_mask is read, its values are not",
        cache.padding_mask_ignored),
    _mutant("attention_mask of new only", "mask-ignores-past", "what attention_mask hides of the past is seen",
        cache.padding_mask_of_new_only, base="gpt2", layout="merged"),
)
ROWS = (
    _mutant("mean over rows", "batch-rows-mixed", "a tenth of the rows' mean is added to the logits",
        numbers.mean_over_rows),
    _mutant("softmax over rows", "batch-rows-mixed", "a gate is normalised over the batch", numbers.softmax_over_rows,
        base="gpt2", layout="merged"),
    _mutant("past of row 0", "batch-rows-mixed", "all rows attend to the first row's past", numbers.past_of_row_0,
        layout="stacked"),
    _mutant("rows of present reversed", "batch-rows-mixed", "present has its rows in the opposite order",
        numbers.rows_of_present_reversed, base="gpt2"),
    _mutant("mask of row 0", "batch-rows-mixed", "all rows are given the first row's mask", cache.mask_of_row_0,
        origin="onnxruntime-genai #1639"),
    _mutant("scale shared by rows", "batch-rows-mixed", "activations quantized with one scale for all",
        numbers.scale_shared_by_rows, "numeric-mismatch",
        note="tokens share the scale too, so cached steps differ as well"),
)
NUMBERS = (
    _mutant("logarithm of logits", "nan", "logits go through Log", numbers.log_of_logits),
    _mutant("first token sees nothing", "nan", "Less for LessOrEqual, masked by minus infinity",
        numbers.token_hidden_from_itself, base="gpt2"),
    _mutant("minus infinity over padding", "nan", "rows that see nothing are 0/0", numbers.mask_of_infinity,
        origin="transformers #13175"),
    _mutant("overflow in halves", "nan", "logits beyond what half precision holds", numbers.overflow_in_halves,
        layout="fp16", origin="onnxruntime #32600"),
    _mutant("undefined far in", "nan", "a logarithm of a length, negative from 10 on", numbers.undefined_far_in,
        layout="time-major"),
    _mutant("logits times zero", "logits-constant", "a head whose weights were lost", numbers.logits_times_zero),
    _mutant("logits of a bias", "logits-constant", "a head without its weights: its bias alone", numbers.logits_of_a_bias),
    _mutant("logits averaged", "logits-constant", "the mean over the vocabulary in the place of each",
        numbers.logits_averaged),
    _mutant("causal mask dropped", "numeric-mismatch", "every token sees all of its step", cache.not_causal,
        layout="int32 ids", note="without a past there is no mask that could ignore it: the numbers of step 0 are wrong"),
    _mutant("norm over time", "numeric-mismatch", "the last norm averages over the sequence", numbers.norm_over_time),
    _mutant("scores by length", "numeric-mismatch", "scores divided by the number of new tokens",
        numbers.scale_of_lengths, base="gpt2", layout="two files"),
    _mutant("cached logits scaled", "numeric-mismatch", "one percent larger behind a past",
        numbers.logits_of_cached_steps_scaled, layout="merged"),
    _mutant("dropout left on", "numeric-mismatch", "exported in training mode, a tenth is dropped in each run",
        numbers.dropout_left_on, base="gpt2"),
    _mutant("logits of the first token", "numeric-mismatch",
        "of a step's tokens, the first one's logits are returned", numbers.logits_of_first_token),
    _mutant("keys stored before rotation", "numeric-mismatch",
        "present has the keys unrotated, attention takes the past for rotated", numbers.keys_stored_before_rotation,
        layout="time-major"),
    _mutant("pair of two models", "numeric-mismatch", "decoder_with_past_model.onnx has another matrix",
        layout="two files", damage=files.second_file_of_another_model),
    _mutant("weight doubled", "numeric-mismatch", "one matrix is twice what it was", numbers.weight_changed,
        reference=True),
    _mutant("vocabulary permuted", "numeric-mismatch", "neighbours in the vocabulary changed places",
        numbers.vocabulary_permuted, reference=True, layout="stacked"),
)
OPERATORS = (
    _mutant("lengths of new tokens", "present-not-appended", "seqlens_k counts the new tokens only",
        genai.lengths_of_new_tokens, base="genai", layout="genai"),
    _mutant("layers fed each other's past", "past-present-unpaired",
        "GroupQueryAttention of layer 0 reads the past of layer 1", genai.layers_fed_each_others_past, base="genai",
        layout="genai"),
    _mutant("lengths of columns", "mask-ignores-past", "seqlens_k is the mask's length, not its sum",
        genai.attention_mask_unread, base="genai", layout="genai"),
    _mutant("lengths of row 0", "batch-rows-mixed", "seqlens_k of the first row for all", genai.lengths_of_row_0,
        base="genai", layout="genai", origin="onnxruntime-genai #1639"),
    _mutant("genai_config of all heads", "kv-shape-mismatch", "genai_config.json says 4 heads, the graph has 2",
        base="genai", layout="genai", damage=files.configuration_of(4, 16)),
    _mutant("packed, positions restart", "position-ignores-past",
        "position_ids is not used, positions are counted from 0", packed.positions_restart, "batch-rows-mixed",
        note="rows of a packed step follow each other, so positions run on from row to row", base="packed",
        layout="packed"),
    _mutant("packed, past times 0", "present-not-appended", "the operator is given zeros for the past",
        packed.past_times_zero,
        note="the operator returns what it was given, so the past is lost and not only ignored", base="packed",
        layout="packed"),
    _mutant("packed, width declared", "dynamic-axis-baked", "gather_index is declared with a width of 2",
        packed.width_declared, base="packed", layout="packed"),
    _mutant("packed, weight changed", "numeric-mismatch", "one matrix is a tenth larger", packed.weight_changed,
        base="packed", layout="packed", reference=True),
)
# fmt: on
MUTANTS = (*LOADING, *CACHE_IO, *SIZES, *PRESENT, *POSITIONS, *MASKS, *ROWS, *NUMBERS, *OPERATORS)
