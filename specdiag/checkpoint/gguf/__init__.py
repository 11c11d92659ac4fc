"""GGUF files: the header by hand, codes through the gguf package."""
