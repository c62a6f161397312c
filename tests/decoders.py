"""Models and decoders that tests share: each is made once, by whichever process asks first, and kept for the next run.

They lie in `build/test-cache` under a key of everything that they are made of: the code that makes them, the versions of
the packages that it stands on, the model. What is returned is read only: a test that damages a decoder copies it first.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import cache, wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "build" / "test-cache"
DEMO = "demo"
_KEPT_DAYS = 3
_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy", "tokenizers")
# What exporting and proving run through, as paths below the root.
_MADE_BY = tuple(
    f"bento_kv/{room}" for room in ("contract", "demo", "disk.py", "errors.py", "export", "onnx_file.py", "source.py")
)
_PROVEN_BY = tuple(f"bento_kv/{room}" for room in ("doctor", "host.py", "proof", "runtime", "text"))


def source(architecture: str = "llama", *, seed: int = 0, **changes: Any) -> Path:
    """A random model of the zoo, in Hugging Face's format.

    Args:
        architecture: a key of `zoo.CONFIGS`.
        seed: of its weights.
        changes: of its configuration.
    """
    from tests.zoo import configuration, save_model

    config = sorted(configuration(architecture, **changes).items())
    return _kept(
        f"{architecture}-source",
        (_code(("tests/zoo.py",)), config, seed),
        lambda directory: save_model(directory, architecture, seed, **changes),
    )


def exported(model: str | Path = "llama", **options: Any) -> Path:
    """A decoder directory; the torch model is traced once for all options.

    Args:
        model: an architecture of the zoo, the directory of a `source`, or `demo`.
        options: of the export.
    """
    from bento_kv.export import exporter

    place = _place(model)
    return _kept(
        f"{_stem(place)}-decoder",
        (_code(_MADE_BY), place, tuple(sorted(options.items()))),
        lambda directory: exporter.export(place, directory, **options),
    )


def proven(model: str | Path = "llama", **options: Any) -> Path:
    """The same with the record of its proof, which passed."""
    place = _place(model)

    def prove_copy(directory: Path) -> None:
        from bento_kv.proof.report import render

        shutil.copytree(made, directory)
        record = prove(directory, place)
        assert record.passed, render(record)

    made = exported(model, **options)
    return _kept(f"{_stem(place)}-proven", (_code(_MADE_BY + _PROVEN_BY), made.name), prove_copy)


def growing(model: str | Path = "llama", **options: Any) -> Path:
    """An ONNX file as other exporters write it: a past goes in, and comes out grown.

    Args:
        model: as for `exported`.
        options: of the export.
    """
    from bento_kv.export.growing import export_growing

    place = _place(model)

    def make(directory: Path) -> None:
        directory.mkdir()
        export_growing(place, directory / "model.onnx", **options)

    key = (_code(_MADE_BY), place, tuple(sorted(options.items())))
    return _kept(f"{_stem(place)}-growing", key, make) / "model.onnx"


def stored(model: str | Path = DEMO, **options: Any) -> Any:
    """A proven decoder in the model store, where a service finds it instead of making it."""
    from bento_kv.bento.build import VerifiedDecoder
    from bento_kv.bento.store import save_model

    place = _place(model)
    reference = VerifiedDecoder(place, **options)
    return save_model(str(reference.tag), proven(model, **options), metadata=reference.asked.facts())


def prove(directory: Path, place: str | Path) -> Any:
    """Prove a decoder against the model that it was made from, and write the record into its directory."""
    from bento_kv.proof import proof
    from bento_kv.proof.parity import TorchReference

    return proof.prove(directory, lambda manifest: TorchReference(str(place), manifest))


def forget_old() -> None:
    """Remove what no run has asked for lately."""
    for entry in CACHE.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - entry.stat().st_mtime > _KEPT_DAYS * 86400:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _place(model: str | Path) -> str:
    if isinstance(model, Path) or model == DEMO:
        return str(model)
    return str(source(model))


def _stem(place: str) -> str:
    return Path(place).name.partition("-source")[0]


_traces: dict[object, Any] = {}


@contextlib.contextmanager
def traced_once() -> Iterator[None]:
    """Within, torch does not trace again what it has traced in this process: the same model, for the same interface."""
    from bento_kv.export import exporter, growing

    with (
        mock.patch.object(exporter, "to_onnx", _once(exporter.to_onnx)),
        mock.patch.object(growing, "_trace", _once(growing._trace)),
    ):
        yield


def trace(model: Any, layers: Any, opset: int, rotations: Any) -> Any:
    """The graph of a model as `bento_kv.export.tracing.to_onnx` gives it; the caller's to change."""
    from bento_kv.export.tracing import to_onnx

    return _once(to_onnx)(model, layers, opset, rotations)


def _once(trace: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(trace)
    def traced(module: Any, *options: Any) -> Any:
        key = trace.__name__, _identity(module), repr(options)
        if key not in _traces:
            _traces[key] = trace(module, *options)
        return _traces[key].clone()

    return traced


def _identity(module: Any) -> object:
    """What a trace depends on: weights, configuration, and the settings of a module around the model."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    config = (module if hasattr(module, "config") else module.model).config
    settings = {name: value for name, value in vars(module).items() if isinstance(value, bool)}
    return digest.hexdigest(), config.to_json_string(), repr(sorted(settings.items()))


def _kept(name: str, key: object, make: Callable[[Path], object]) -> Path:
    """What `make` writes to the directory that it is given, made unless it is there."""
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
    target = CACHE / f"{name}-{digest}"
    with _locked(target.with_name(f"{target.name}.lock")):
        if not target.exists():
            unfinished = target.with_name(f"{target.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            with traced_once():
                make(unfinished)
            unfinished.rename(target)
    os.utime(target)
    return target


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Alone among processes; a lock goes with the process that holds it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@cache
def _code(paths: tuple[str, ...]) -> str:
    """A digest of files, of all files below folders, and of the packages they stand on."""
    digest = hashlib.sha256(repr([version(name) for name in _PACKAGES]).encode())
    for path in paths:
        below = ROOT / path
        for file in [below] if below.is_file() else sorted(p for p in below.rglob("*") if p.is_file()):
            if "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()
