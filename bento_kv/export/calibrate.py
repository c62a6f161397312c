"""Weights in blocks, rounded with a look at what they are multiplied with: one pass of some text through the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bento_kv.contract.quantization import BlockWeights
from bento_kv.contract.rotation import Rotated, rotate
from bento_kv.errors import ExportError, first_line

Floats = NDArray[np.float32]
Quantize = Callable[[Floats, NDArray[np.float64]], BlockWeights]


def calibrated_blocks(
    model: Any, sequences: Sequence[Sequence[int]], wanted: Mapping[str, Rotated], quantize: Quantize
) -> dict[str, BlockWeights]:
    """Quantize parameters of linear layers by the inputs that they meet.

    Inputs are the float model's: a layer's error is not made up for by the next. Each layer is done when its inputs are
    there, so that no more than one layer's moments are in memory.

    Args:
        model: as transformers loads it; its attention function is left at another one.
        sequences: token ids, all of one length.
        wanted: what to quantize, by a name for it: a parameter, rotated or as it is.
        quantize: from a weight `[N, K]` and the second moments of its inputs `[K, K]`.

    Returns:
        By name; without those that are no weights of a `torch.nn.Linear`, or that the text did not reach.

    Raises:
        ExportError: the model does not run.
    """
    model.set_attn_implementation("eager")
    parameters = dict(model.named_parameters())
    owners = {f"{name}.weight": each for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)}
    found: dict[str, BlockWeights] = {}
    hooks = []
    seen = _Inputs(parameters)
    by_owner: dict[str, dict[str, Rotated]] = {}
    for name, how in wanted.items():
        if how.parameter in owners:
            by_owner.setdefault(how.parameter, {})[name] = how

    def hook(own: Mapping[str, Rotated]) -> Callable[[Any, tuple[Any, ...]], None]:
        def quantize_now(_: Any, inputs: tuple[Any, ...]) -> None:
            for name, how in own.items():
                gain = None if how.gain is None else _array(parameters[how.gain])
                found[name] = quantize(how.apply(_array(parameters[how.parameter]), gain), seen.moments(inputs[0], how))

        return quantize_now

    for parameter, own in by_owner.items():
        hooks.append(owners[parameter].register_forward_pre_hook(hook(own)))
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor(sequences), use_cache=False, logits_to_keep=1)
    except ExportError:
        raise
    except Exception as error:  # the model's own code raises what it likes
        raise ExportError(f"the model does not run on the calibration text ({first_line(error)})") from error
    finally:
        for each in hooks:
            each.remove()
    return found


class _Inputs:
    """Second moments of inputs, which neighbouring layers share."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self._parameters = parameters
        self._inputs: Any = None
        self._known: dict[tuple[str | None, float, int], NDArray[np.float64]] = {}

    def moments(self, inputs: Any, how: Rotated) -> NDArray[np.float64]:
        """Of `[..., K]`, as a weight that was rotated so meets them."""
        if inputs is not self._inputs:
            self._inputs, self._known = inputs, {}
        key = (how.gain, how.gain_offset, how.inputs)
        if key not in self._known:
            values: Floats = _array(inputs).reshape(-1, inputs.shape[-1])
            if how.gain is not None:
                values = _over(values, _array(self._parameters[how.gain]) + np.float32(how.gain_offset))
            if how.inputs:
                values = rotate(values, how.inputs)
            self._known[key] = (values.T @ values).astype(np.float64) / len(values)
        return self._known[key]


def _over(values: Floats, gain: Floats) -> Floats:
    """The values before a norm's gain; 0 where that left nothing of them."""
    quotient: Floats = np.divide(values, gain, out=np.zeros_like(values), where=gain != 0)
    return quotient


def _array(tensor: Any) -> Floats:
    array: Floats = tensor.detach().float().numpy()
    return array
