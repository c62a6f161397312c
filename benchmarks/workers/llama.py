"""llama.cpp: weights as its own quantizer makes them, through its C API with one batch for all sequences.

With flash attention, which it would choose, prompts are faster, and without it decode is; both take part. Defaults besides,
a float16 cache among them. Sampling is an arg-max.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from benchmarks.workers.protocol import argument, prompt_of, serve

BATCH = 2048  # tokens of one call; it computes 512 of them at a time, which is its default
FILE_TYPES = {
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "q5_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
}


class Llama:
    """A model and a context with a stream of the cache for each sequence."""

    def __init__(self) -> None:
        threads, rows = argument("threads"), argument("rows")
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(_file()).encode(), settings)
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {_file()}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = rows * argument("max_length")
        params.n_seq_max = rows
        params.n_batch = BATCH
        params.flash_attn_type = int(argument("flash_attention"))  # 0: off, 1: on
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp refuses the context")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._saved: tuple[int, int, ctypes.Array[ctypes.c_uint8]] | None = None  # context, next token, state
        self._next: NDArray[np.int64] = np.zeros(0, np.int64)
        self._position = 0

    def prefill(self, prompt: list[int]) -> float:
        llama_cpp.llama_memory_clear(self._memory, True)
        began = time.perf_counter()
        self._prompt(prompt)
        return time.perf_counter() - began

    def fill(self, rows: int, context: int, room: int) -> None:
        llama_cpp.llama_memory_clear(self._memory, True)
        if self._saved is None or self._saved[0] != context:
            token = self._prompt(prompt_of(0, context, self._vocab))
            size = llama_cpp.llama_state_seq_get_size(self._context, 0)
            state = (ctypes.c_uint8 * size)()
            llama_cpp.llama_state_seq_get_data(self._context, state, size, 0)
            self._saved = context, token, state
            llama_cpp.llama_memory_clear(self._memory, True)
        _, token, state = self._saved
        for row in range(rows):
            if not llama_cpp.llama_state_seq_set_data(self._context, state, len(state), row):
                raise RuntimeError(f"llama.cpp does not restore sequence {row}")
        self._next = np.full(rows, token)
        self._position = context

    def decode(self, steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            step = [(int(token), self._position, row, True) for row, token in enumerate(self._next)]
            self._next = self._step(step).argmax(-1)
            self._position += 1
        return time.perf_counter() - began

    def logits(self, ids: list[int], prompt: int) -> NDArray[np.float32]:
        llama_cpp.llama_memory_clear(self._memory, True)
        tokens = [(token, place, 0, True) for place, token in enumerate(ids)]
        parts = (tokens[:prompt], *([each] for each in tokens[prompt:]))
        return np.concatenate([self._step(part).copy() for part in parts])

    def _prompt(self, prompt: list[int]) -> int:
        """Compute a prompt in sequence 0: the token after it."""
        last = len(prompt) - 1
        return int(self._step([(token, place, 0, place == last) for place, token in enumerate(prompt)])[0].argmax())

    def _step(self, tokens: list[tuple[int, int, int, bool]]) -> NDArray[np.float32]:
        """Compute tokens (id, position, sequence, whether its logits are wanted): those logits, `[wanted, vocab_size]`."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, (token, position, sequence, logits) in enumerate(tokens):
            batch.token[index], batch.pos[index], batch.logits[index] = token, position, logits
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
        if status := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {status}")
        wanted = sum(logits for *_, logits in tokens)
        # llama.cpp's own memory, which the next step overwrites.
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), (wanted, self._vocab))


def _file() -> Path:
    return Path(argument("target")) / f"model-{argument('type')}.gguf"


def prepare() -> None:
    """Write float32 and let llama.cpp's quantizer choose the types.

    A tied head of 576 or 896 columns becomes Q8_0. Of a Q4_K or Q5_K file a matrix whose columns are no multiple of 256
    becomes Q5_0 or Q5_1, which most of these models' matrices are.
    """
    from benchmarks.workers.gguf_model import write_gguf

    whole = _file().with_name("model-f32.gguf")
    whole.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(Path(argument("source")), whole)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[argument("type")]
    params.nthread = argument("threads")
    status = llama_cpp.llama_model_quantize(str(whole).encode(), str(_file()).encode(), params)
    whole.unlink()
    if status:
        raise RuntimeError(f"llama_model_quantize returned {status}")


if __name__ == "__main__":
    serve(prepare, Llama, ["llama-cpp-python", "gguf"])
