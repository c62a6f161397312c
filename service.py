"""What `bentoml serve` and `bentoml build` take in this folder: the packaged service.

`examples/` has services of one's own.
"""

from bento_kv import LanguageModel

__all__ = ["LanguageModel"]
