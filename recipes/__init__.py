"""Deep-learning recipes: one topic, one module, one command (`python -m recipes.cnn_cifar`).

Importing the package chooses the backend and loads no framework. Keras itself is bound lazily: a recipe
says `import keras` as usual and pays for it at the first use, so that --help and a mistyped flag are
answered at once. (Recipes postpone their annotations for the same reason.)
"""

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from typing import Any

from recipes.engine.backend import choose_at_start, hidden

# Keras imports these in case a program uses its scikit-learn wrappers, image galleries or data frames; no
# recipe does, and they take as long as Keras itself.
NOT_FOR_KERAS = ("sklearn", "matplotlib", "pandas")


class _LazyKeras:
    """Finds Keras for its first import, as a module that loads when it is first asked for something."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            load = spec.loader.exec_module

            def load_without(module: Any) -> None:
                # For a checkpoint format that no recipe uses. Where nothing is chosen Keras may choose JAX.
                other = () if os.environ.get("KERAS_BACKEND", "jax") == "jax" else ("jax",)
                with hidden((*NOT_FOR_KERAS, *other)):
                    load(module)

            spec.loader.exec_module = load_without
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


choose_at_start()
if "keras" not in sys.modules:
    sys.meta_path.insert(0, _LazyKeras())
