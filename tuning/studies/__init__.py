"""Which studies there are: the modules of this package; the docstring of each opens with its question.

A study is a module with
    investigate(seeds) -> Evidence   its own measurements and small trainings, on the process' backend
    FIELDS                           values by field of a recipe that `--recipe` compares, all combinations;
                                     empty where no recipe field says what the study is about
    TUNED (optional)                 values by field among which every setting first finds its own best
"""

import ast
import importlib
from pathlib import Path
from types import ModuleType

from recipes.engine.errors import unknown

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The names of all studies, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def question(name: str) -> str:
    """The first line of a study's docstring, read without running it."""
    text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or ""
    return text.split("\n", 1)[0]


def require(name: str) -> None:
    """Refuse a study that does not exist, naming the nearest one that does."""
    if name not in names():
        raise unknown("study", name, names())


def load(name: str) -> ModuleType:
    """The module of a study."""
    return importlib.import_module(f"tuning.studies.{name}")
