"""What the recipes share: command line, data, differentiation, training, tracking, figures.

Submodules load on first use (`engine.training.fit`), so that naming the engine costs nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={
        "backend",
        "checkpoints",
        "config",
        "data",
        "errors",
        "figures",
        "gradients",
        "launch",
        "learning_rates",
        "models",
        "parts",
        "probes",
        "programs",
        "progress",
        "projections",
        "store",
        "tracking",
        "training",
        "writing",
    },
)
