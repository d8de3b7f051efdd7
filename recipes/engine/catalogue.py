"""Which recipes there are: the modules of the package, and the first line of each."""

import ast
from pathlib import Path

from recipes.engine.errors import unknown

FOLDER = Path(__file__).parents[1]
COMMANDS = ("rerun",)  # modules of the package that run recipes and are none


def names() -> list[str]:
    """The names of all recipes, in alphabetical order: the family prefix groups them by topic."""
    stems = (path.stem for path in FOLDER.glob("*.py"))
    return sorted(stem for stem in stems if not stem.startswith("_") and stem not in COMMANDS)


def summary(name: str) -> str:
    """The first line of a recipe's docstring, read without running it."""
    docstring = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or ""
    return docstring.split("\n", 1)[0]


def require(name: str) -> None:
    """Refuse a recipe that does not exist, naming the nearest one that does."""
    if name not in names():
        raise unknown("recipe", name, names())
