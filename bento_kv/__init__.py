"""Export, prove and serve language models from ONNX on BentoML.

The public surface is `__all__` and `bento_kv.errors`, whose classes are public under their names there. Its parts are
imported when they are first used, so that `import bento_kv` costs nothing and the serving path never meets the export
world.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bento_kv import errors

__version__ = "0.1.0"

_HOME = {
    "EngineConfig": "bento_kv.engine.config",
    "EngineMetrics": "bento_kv.server.metrics",
    "LanguageModel": "bento_kv.bento.service",
    "OnnxDecoderRunnable": "bento_kv.bento.runnable",
    "RequireApiKey": "bento_kv.server.app",
    "SamplingParams": "bento_kv.engine.request",
    "VerifiedDecoder": "bento_kv.bento.build",
    "get": "bento_kv.bento.store",
    "load_model": "bento_kv.bento.runnable",
    "openai_app": "bento_kv.server.app",
    "save_model": "bento_kv.bento.store",
}

__all__ = [
    "EngineConfig",
    "EngineMetrics",
    "LanguageModel",
    "OnnxDecoderRunnable",
    "RequireApiKey",
    "SamplingParams",
    "VerifiedDecoder",
    "__version__",
    "errors",
    "get",
    "load_model",
    "openai_app",
    "save_model",
]

if TYPE_CHECKING:
    from bento_kv.bento.build import VerifiedDecoder
    from bento_kv.bento.runnable import OnnxDecoderRunnable, load_model
    from bento_kv.bento.service import LanguageModel
    from bento_kv.bento.store import get, save_model
    from bento_kv.engine.config import EngineConfig
    from bento_kv.engine.request import SamplingParams
    from bento_kv.server.app import RequireApiKey, openai_app
    from bento_kv.server.metrics import EngineMetrics


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bento_kv' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
