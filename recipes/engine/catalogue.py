"""Which recipes there are: the modules of the package, and the first line of each."""

import ast
import re
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
    return _docstring(name).split("\n", 1)[0]


def expected(name: str) -> str:
    """What a recipe was measured to give: the first sentence after `Expected:` in its docstring."""
    found = re.search(r"^Expected: (.*?\.)(?=\s|\Z)", _docstring(name), flags=re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def table() -> str:
    """All recipes as a Markdown table: name, question and what was measured, with a link to the record."""
    rows = ["| recipe | in one line | measured |", "|---|---|---|"]
    for name in names():
        measured = re.sub(r"results/[\w/]+\.md", r"[\g<0>](\g<0>)", expected(name))
        rows.append(f"| [`{name}`](recipes/{name}.py) | {summary(name)} | {measured} |")
    return "\n".join(rows)


def _docstring(name: str) -> str:
    return ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or ""


def require(name: str) -> None:
    """Refuse a recipe that does not exist, naming the nearest one that does."""
    if name not in names():
        raise unknown("recipe", name, names())
