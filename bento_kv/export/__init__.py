"""The export world: a Hugging Face causal LM becomes a decoder directory. Needs the `export` extra (torch, onnx)."""
