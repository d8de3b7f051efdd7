"""The building blocks of every recipe, written from scratch on `keras.ops`.

Names resolve on first use (`layers.Conv2D`, `layers.optimizers.Adam`), so that `import layers` costs
nothing and `layers.autograd`, the NumPy engine, works without any framework installed. What is exported
stands in `__init__.pyi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
