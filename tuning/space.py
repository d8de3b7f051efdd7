"""What a sweep varies: settings of a recipe's fields, checked against its Config before anything starts."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recipes.engine.config import RunConfig, field_types, value_of
from recipes.engine.errors import unknown, usage_error

Setting = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """The axes of a sweep.

    Args:
        grid: values by field; every combination is run.
        choices: values by field, drawn from.
        uniform: bounds by field, drawn between.
        loguniform: bounds by field, drawn between on a logarithmic scale.
        conditions: fields that vary only where another field has a value: `{field: (other, value)}`.
            Elsewhere they are the recipe's own.
    """

    grid: dict[str, list[Any]]
    choices: dict[str, list[Any]]
    uniform: dict[str, tuple[float, float]]
    loguniform: dict[str, tuple[float, float]]
    conditions: dict[str, tuple[str, Any]] = field(default_factory=dict)

    @property
    def fields(self) -> list[str]:
        """The fields that vary, in the order they were given."""
        return [*self.grid, *self.choices, *self.uniform, *self.loguniform]

    def settings(self, trials: int, seed: int) -> list[Setting]:
        """Every combination of the grid, each with `trials` draws of what is drawn.

        Args:
            trials: draws for each point of the grid; without anything to draw there is one.
            seed: fixes the draws.
        """
        rng = np.random.default_rng(seed)
        points = [
            dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())
        ]
        if self.choices or self.uniform or self.loguniform:
            points = [{**point, **self._draw(rng)} for point in points for _ in range(trials)]
        # Points that differ in what does not apply are one.
        return distinct([self.applicable(point) for point in points])

    def applicable(self, setting: Setting) -> Setting:
        """A setting without the fields whose condition it does not meet."""
        return {
            name: value
            for name, value in setting.items()
            if name not in self.conditions
            or setting.get(self.conditions[name][0]) == self.conditions[name][1]
        }

    def domains(self) -> dict[str, Any]:
        """The axes as Ray Tune's own, for a search algorithm."""
        from ray import tune

        return {
            **{name: tune.choice(values) for name, values in {**self.grid, **self.choices}.items()},
            **{name: tune.uniform(*bounds) for name, bounds in self.uniform.items()},
            **{name: tune.loguniform(*bounds) for name, bounds in self.loguniform.items()},
        }

    def _draw(self, rng: np.random.Generator) -> Setting:
        return {
            **{name: values[rng.integers(len(values))] for name, values in self.choices.items()},
            **{name: float(rng.uniform(*bounds)) for name, bounds in self.uniform.items()},
            **{
                name: math.exp(rng.uniform(math.log(low), math.log(high)))
                for name, (low, high) in self.loguniform.items()
            },
        }


def distinct(settings: Sequence[Setting]) -> list[Setting]:
    """Each setting once, in order; labels do not tell: they round."""
    return [setting for place, setting in enumerate(settings) if setting not in settings[:place]]


def label(setting: Setting) -> str:
    """A setting in a line."""
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in setting.items()
    )


def parse(
    config_class: type[RunConfig],
    grid: Sequence[str] = (),
    choice: Sequence[str] = (),
    uniform: Sequence[str] = (),
    loguniform: Sequence[str] = (),
) -> Space:
    """A space from the words of a command line.

    Args:
        config_class: the recipe's Config.
        grid: `field=value,value,...` for every value in turn.
        choice: `field=value,value,...` for draws among the values.
        uniform: `field=low,high` for draws between two numbers.
        loguniform: the same on a logarithmic scale.

    Each may end in `@other=value`: the field varies only where another field that varies has this value.

    Returns:
        The space.

    Raises:
        RecipeError: an unknown field or value (the nearest valid one is named), a field given twice, or
            bounds that are not two rising numbers.
    """
    words = {"--grid": grid, "--choice": choice, "--uniform": uniform, "--loguniform": loguniform}
    axes, conditions = {}, {}
    for flag, given in words.items():
        parted = [word.partition("@") for word in given]
        axes[flag] = [axis for axis, _, _ in parted]
        conditions |= {axis: condition for axis, at, condition in parted if at}
    space = Space(
        _lists(config_class, "--grid", axes["--grid"]),
        _lists(config_class, "--choice", axes["--choice"]),
        _bounds(config_class, "--uniform", axes["--uniform"]),
        _bounds(config_class, "--loguniform", axes["--loguniform"]),
    )
    fields = space.fields
    if not fields:
        raise usage_error("nothing varies: give at least one --grid, --choice, --uniform or --loguniform")
    twice = {name for name in fields if fields.count(name) > 1}
    if twice:
        raise usage_error(f"field '{min(twice)}' is varied twice")
    for name, (low, _) in space.loguniform.items():
        if low <= 0:
            raise usage_error(f"--loguniform {name} needs positive bounds, not {low}")
    for axis, condition in conditions.items():
        name = axis.partition("=")[0].replace("-", "_")
        (other, values) = next(iter(_lists(config_class, "a condition", [condition]).items()))
        if other not in fields or other == name or len(values) != 1:
            raise usage_error(
                f"'@{condition}' must name one value of another field that varies: {', '.join(fields)}"
            )
        listed = {**space.grid, **space.choices}.get(other, values)
        if values[0] not in listed:
            raise usage_error(f"'@{condition}' never holds: {other} is one of {', '.join(map(str, listed))}")
        space.conditions[name] = other, values[0]
    return space


def _split(config_class: type[RunConfig], flag: str, word: str) -> tuple[str, list[str]]:
    name, joined, values = word.partition("=")
    name = name.replace("-", "_")
    if not joined or not all(values.split(",")):
        raise usage_error(f"{flag} takes field=value,value,..., not '{word}'")
    kinds = field_types(config_class)
    if name not in kinds:
        raise unknown("field", name, kinds)
    if name in ("seed", "backend", "tracking_uri", "experiment", "resume"):
        raise usage_error(
            f"{flag} cannot vary '{name}': it belongs to the sweep as a whole (--seeds, --{name})"
        )
    return name, values.split(",")


def _lists(config_class: type[RunConfig], flag: str, words: Sequence[str]) -> dict[str, list[Any]]:
    result = {}
    for word in words:
        name, values = _split(config_class, flag, word)
        if name in result:
            raise usage_error(f"field '{name}' is varied twice")
        result[name] = [value_of(config_class, name, value) for value in values]
    return result


def _bounds(config_class: type[RunConfig], flag: str, words: Sequence[str]) -> dict[str, tuple[float, float]]:
    result = {}
    for word in words:
        name, values = _split(config_class, flag, word)
        if field_types(config_class)[name] not in (float, float | None):
            raise usage_error(f"{flag} draws numbers, and '{name}' is not a float: use --choice or --grid")
        bounds = tuple(value_of(config_class, name, value) for value in values)
        if len(bounds) != 2 or None in bounds or not -math.inf < bounds[0] < bounds[1] < math.inf:
            raise usage_error(f"{flag} takes {name}=low,high, finite and low below high, not '{word}'")
        result[name] = bounds
    return result
