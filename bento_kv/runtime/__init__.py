"""The serving world's arrays: ONNX Runtime sessions, the KV cache, and one step. Never torch."""
