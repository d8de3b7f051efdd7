"""The exceptions that end a recipe with a sentence instead of a traceback, or before its end."""

import difflib
from collections.abc import Iterable


class RecipeError(Exception):
    """Something the user can put right: one sentence that says what is wrong and what to do.

    Args:
        message: the sentence.
        exit_code: 2 where the command line is wrong, 1 where the run failed.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Finished(Exception):
    """Ends a run before its recipe's own end, as finished: what was asked for is there.

    Args:
        metrics: the run's final metrics.
    """

    def __init__(self, metrics: dict[str, float]) -> None:
        super().__init__(metrics)
        self.metrics = metrics


class Stopped(RecipeError):
    """The user ended a run."""


def usage_error(message: str) -> RecipeError:
    """The error for a command line that cannot be carried out."""
    return RecipeError(message, exit_code=2)


def unknown(kind: str, name: str, known: Iterable[str]) -> RecipeError:
    """The error for a name that does not exist, naming the nearest one that does."""
    known = sorted(known)
    # What holds the name (float16: mixed_float16) is nearer than what has as many letters (float32).
    near = sorted((one for one in known if len(name) > 2 and name in one), key=len)
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return usage_error(f"unknown {kind} '{name}': {hint}choose from {', '.join(known)}")
