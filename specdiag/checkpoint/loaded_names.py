"""Names of files that `from_pretrained` of transformers looks for."""

from __future__ import annotations

LOADED = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""In its order: the first that is there is loaded, a whole file before an index."""
