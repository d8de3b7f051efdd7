"""Datasets as NumPy arrays, the same for every backend, deterministic by seed."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"batches": ["Batches"], "datasets": ["Dataset", "Split", "load"]}
)
