"""Other people's decoders: a past goes in, and the past with the new keys and values behind it comes out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bento_kv.contract.graph_io import TensorSpec
from bento_kv.errors import DecoderError, GraphLimitError, first_line
from bento_kv.runtime.feeds import NUMPY, step_feeds
from bento_kv.runtime.graph import Cache, GraphOutput, cache_length
from bento_kv.runtime.interface import Interface, recognize
from bento_kv.runtime.limits import run
from bento_kv.runtime.pairing import Axis, CachePair, Side
from bento_kv.runtime.session import open_session

FIRST, WITH_PAST, MERGED = "decoder_model.onnx", "decoder_with_past_model.onnx", "decoder_model_merged.onnx"
_ORDER: tuple[Axis, ...] = ("rows", "heads", "time", "dim")


def graph_files(target: Path) -> tuple[Path, ...]:
    """The graphs of a decoder that a user names by a file or a directory: one, or step 0's and that of the others.

    Raises:
        DecoderError: there is none, or several and nothing tells which.
    """
    if target.is_file():
        pair = (target.with_name(FIRST), target.with_name(WITH_PAST))
        return pair if target in pair and all(file.is_file() for file in pair) else (target,)
    if not target.is_dir():
        raise DecoderError(f"{target} does not exist; give an ONNX file, or a directory that has one")
    named = _named_by_genai(target)
    if named is not None:
        return (named,)
    for folder in (target, target / "onnx"):  # where model hubs keep it
        files = sorted(folder.glob("*.onnx"))
        by_name = {file.name: file for file in files}
        if MERGED in by_name:
            return (by_name[MERGED],)
        if FIRST in by_name and WITH_PAST in by_name:
            return (by_name[FIRST], by_name[WITH_PAST])
        for name in ("model.onnx", FIRST, WITH_PAST):
            if name in by_name:
                return (by_name[name],)
        if len(files) == 1:
            return (files[0],)
        if files:
            raise DecoderError(
                f"{folder} has {len(files)} ONNX files ({files[0].name}, {files[1].name}, ...); name one"
            )
    raise DecoderError(f"{target} has no ONNX file; give the file, or the folder that has it")


def _named_by_genai(directory: Path) -> Path | None:
    """The decoder that onnxruntime-genai's configuration names."""
    path = directory / "genai_config.json"
    if not path.is_file():
        return None
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["model"]["decoder"]["filename"]
    except (ValueError, KeyError, TypeError) as error:
        raise DecoderError(f"{path} does not name a decoder at model.decoder.filename: {error}") from error
    file = directory / str(name)
    if not file.is_file():
        raise DecoderError(f"{path} names {name}, which is not there")
    return file


@dataclass(frozen=True, slots=True)
class _Part:
    """One session and what its inputs and outputs are for."""

    session: ort.InferenceSession
    interface: Interface


class GrowingGraph:
    """A decoder with a growing cache, in one graph or two.

    Args:
        sessions: one; or step 0's, which takes no past, and that of all other steps.
        heads_dim: key and value heads and head size, for graphs that do not declare them.

    Raises:
        DecoderError: a graph is not a causal decoder with a cache that can be driven.
    """

    def __init__(self, sessions: Sequence[ort.InferenceSession], *, heads_dim: tuple[int, int] | None = None) -> None:
        self._parts = [_Part(session, recognize(*specs(session))) for session in sessions]
        self.interface = self._parts[-1].interface  # of the steps that take a past
        self.takes_mask = self.interface.mask is not None
        self.takes_positions = self.interface.positions is not None
        # Where a second graph takes the later steps, it was traced with one token, and has a mask for no more.
        self.one_token_steps = len(self._parts) > 1 or self.interface.branch is not None
        self._heads_dim = heads_dim
        for part in self._parts:
            if part.interface.foreign:
                raise DecoderError(
                    f"the graph has {part.interface.foreign}: only caches that grow by a position a token are served and "
                    "proven; `bento-kv doctor` judges it"
                )
            for spec in part.interface.fed:
                if spec.dtype not in NUMPY:
                    raise DecoderError(f"{spec.name} is {spec.dtype}, which cannot be fed from here")

    @classmethod
    def open(cls, target: Path, *, threads: int | None = None) -> GrowingGraph:
        """Load the decoder of a file or a directory.

        Raises:
            DecoderError, IntegrityError: as `graph_files`, `open_session` and the constructor.
        """
        files = graph_files(target)
        return cls([open_session(file, threads=threads) for file in files], heads_dim=geometry(files[0].parent))

    def empty_cache(self, rows: int) -> Cache:
        """A past of length 0: `[rows, kv_heads, 0, head_dim]` by layer and side."""
        cache: Cache = []
        for pairs in self._by_layer():
            sides = [self._empty(pair, rows) for pair in pairs]
            cache.append((sides[0], sides[-1]))
        return cache

    def _empty(self, pair: CachePair, rows: int) -> NDArray[np.generic]:
        spec = pair.past or pair.present
        if spec is None:
            raise DecoderError(f"layer {pair.layer} has neither a past nor a present")
        heads, dim = pair.size("heads"), pair.size("dim")
        if pair.axes[0] == "rows" and "heads" not in pair.axes:
            heads = 1
        if heads is None or dim is None:
            if self._heads_dim is None:
                raise DecoderError(
                    f"{spec.name} {list(spec.shape)} does not say how many heads of which size it has, and there is no "
                    "config.json beside the graph that does, or it is damaged; put the model's config.json there"
                )
            heads, dim = heads or self._heads_dim[0], dim or self._heads_dim[1]
        return np.zeros((rows, heads, 0, dim), NUMPY[spec.dtype])

    def _by_layer(self) -> list[list[CachePair]]:
        layers: dict[int, list[CachePair]] = {}
        for pair in self.interface.caches:
            layers.setdefault(pair.layer, []).append(pair)
        return [layers[layer] for layer in sorted(layers)]

    def run(
        self,
        ids: NDArray[np.int64],
        past: Cache,
        *,
        mask: NDArray[np.int64] | None = None,
        positions: NDArray[np.int64] | None = None,
    ) -> GraphOutput:
        """One step; see `CachedGraph.run`."""
        interface = self._part(past).interface
        _, results = self.run_by_name(ids, past, mask=mask, positions=positions)
        logits = np.asarray(results[interface.logits.name], np.float32)
        if logits.ndim == 2:
            logits = logits[:, None]
        return GraphOutput(logits, _presents(interface, results, len(ids)))

    def run_by_name(
        self,
        ids: NDArray[np.int64],
        past: Cache,
        *,
        mask: NDArray[np.int64] | None = None,
        positions: NDArray[np.int64] | None = None,
    ) -> tuple[dict[str, NDArray[np.generic]], dict[str, NDArray[np.generic]]]:
        """One step as the graph sees it: what went in and all that came out, in its own names and orders of axes."""
        part, held = self._part(past), cache_length(past)
        feeds = step_feeds(part.interface, ids, held, mask, positions)
        if part.interface.has_past:
            feeds.update(_past_feeds(part.interface, past))
        names = [output.name for output in part.session.get_outputs()]
        try:
            return feeds, dict(zip(names, run(part.session, names, feeds), strict=True))
        except GraphLimitError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise DecoderError(
                f"the runtime failed on {ids.shape[1]} tokens of {ids.shape[0]} rows with a past of {held}: "
                f"{first_line(error)}"
            ) from error

    def _part(self, past: Cache) -> _Part:
        return self._parts[-1] if cache_length(past) else self._parts[0]


def specs(session: ort.InferenceSession) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs as a session declares them; an axis without a name is `?`."""

    def spec(value: ort.NodeArg) -> TensorSpec:
        shape = tuple(size if isinstance(size, int | str) else "?" for size in value.shape)
        return TensorSpec(name=value.name, dtype=value.type.removeprefix("tensor(").removesuffix(")"), shape=shape)

    return [spec(value) for value in session.get_inputs()], [spec(value) for value in session.get_outputs()]


def geometry(directory: Path) -> tuple[int, int] | None:
    """Key and value heads and head size by the configuration in a directory; None if it has none that says."""
    said = genai_geometry(directory)
    if said is not None:
        return said
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        heads = config.get("num_attention_heads") or config.get("n_head")
        hidden = config.get("hidden_size") or config.get("n_embd")
        return int(config.get("num_key_value_heads") or heads), int(config.get("head_dim") or hidden // heads)
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None


def genai_geometry(directory: Path) -> tuple[int, int] | None:
    """The same by onnxruntime-genai's configuration, whose loop allocates the cache by it."""
    try:
        text = (directory / "genai_config.json").read_text(encoding="utf-8")
        decoder = json.loads(text)["model"]["decoder"]
        return int(decoder["num_key_value_heads"]), int(decoder["head_size"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _past_feeds(interface: Interface, past: Cache) -> dict[str, NDArray[np.generic]]:
    feeds: dict[str, NDArray[np.generic]] = {}
    layers = {layer: index for index, layer in enumerate(sorted({pair.layer for pair in interface.caches}))}
    for pair in interface.caches:
        if pair.past is not None:
            key, value = past[layers[pair.layer]]
            array = np.stack([key, value]) if "stack" in pair.axes else value if pair.side == "value" else key
            feeds[pair.past.name] = np.ascontiguousarray(_stored(array, pair.axes))
    return feeds


def _stored(array: NDArray[np.generic], axes: tuple[Axis, ...]) -> NDArray[np.generic]:
    """From `[rows, heads, time, dim]`, or two of them stacked, to the graph's order of axes."""
    own: tuple[Axis, ...] = ("stack", *_ORDER) if array.ndim == 5 else _ORDER
    if axes[0] == "rows_heads":
        rows, heads, time, dim = array.shape
        array, own = array.reshape(rows * heads, time, dim), ("rows_heads", "time", "dim")
    elif "heads" not in axes:
        array, own = array[:, 0], ("rows", "time", "dim")
    return array.transpose([own.index(axis) for axis in axes])


def _canonical(array: NDArray[np.generic], axes: tuple[Axis, ...], rows: int) -> NDArray[np.generic]:
    """The other way round."""
    if "stack" in axes:
        return array.transpose([axes.index(axis) for axis in ("stack", *_ORDER)])
    if axes[0] == "rows_heads":
        array = array.transpose([axes.index(axis) for axis in ("rows_heads", "time", "dim")])
        return array.reshape(rows, -1, *array.shape[1:])
    if "heads" not in axes:
        return array.transpose([axes.index(axis) for axis in ("rows", "time", "dim")])[:, None]
    return array.transpose([axes.index(axis) for axis in _ORDER])


def _presents(interface: Interface, results: dict[str, NDArray[np.generic]], rows: int) -> Cache:
    layers: dict[int, dict[Side, NDArray[np.generic]]] = {}
    for pair in interface.caches:
        if pair.present is None:
            continue
        array = results[pair.present.name]
        if array.ndim != len(pair.axes):
            raise DecoderError(
                f"{pair.present.name} came out as {list(array.shape)}: not of the rank that its past has"
            )
        array = _canonical(array, pair.axes, rows)
        sides = layers.setdefault(pair.layer, {})
        if "stack" in pair.axes:
            sides["key"], sides["value"] = array[0], array[1]
        else:
            sides[pair.side] = array
    return [
        (sides.get("key", sides.get("both", first)), sides.get("value", sides.get("both", first)))
        for sides in (layers[layer] for layer in sorted(layers))
        for first in (next(iter(sides.values())),)
    ]
