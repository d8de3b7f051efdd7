"""The fields that every recipe has, and turning words of a command line into values of fields."""

import dataclasses
import os
import types
import typing
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from recipes.engine.backend import DEFAULT
from recipes.engine.errors import unknown, usage_error


def _backend() -> str:
    return os.environ.get("KERAS_BACKEND", DEFAULT)


def _data_dir() -> Path | None:
    return Path(os.environ["TFDS_DATA_DIR"]) if os.environ.get("TFDS_DATA_DIR") else None


def _tracking_uri() -> str | None:
    return os.environ.get("MLFLOW_TRACKING_URI")


@dataclass(frozen=True)
class RunConfig:
    """What every recipe can be told. A recipe's own Config adds its fields and may change defaults."""

    VALUES: ClassVar[frozenset[str]] = frozenset(
        {"seed", "learning_rate", "experiment", "tracking_uri", "resume"}
    )
    """Fields that change numbers but not what is computed with them: see `engine.programs`."""

    backend: Literal["jax", "torch", "tensorflow"] = field(default_factory=_backend)
    """Framework that computes; default: KERAS_BACKEND, else jax."""
    dataset: str = ""
    """Data to learn from."""
    data_dir: Path | None = field(default_factory=_data_dir)
    """Folder of TensorFlow Datasets; default: TFDS_DATA_DIR, else TFDS' own."""
    epochs: int = 1
    """Passes over the training data."""
    batch_size: int = 128
    """Examples in one optimizer step."""
    learning_rate: float = 1e-3
    """Step size; the peak, where a schedule varies it."""
    seed: int = 0
    """Fixes initial weights, data order, augmentation and dropout."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Keras' dtype policy: what the layers compute in; the weights stay float32."""
    deterministic: bool = False
    """Have GPUs repeat a run bit for bit, at the cost of speed; CPUs do so anyway."""
    experiment: str = ""
    """MLflow experiment; default: the recipe's name."""
    tracking_uri: str | None = field(default_factory=_tracking_uri)
    """MLflow store or server; default: MLFLOW_TRACKING_URI, else sqlite:///mlruns/mlflow.db."""
    resume: str | None = None
    """Identifier of a killed run to go on with, as it was set up: no other flags are needed."""

    def __post_init__(self) -> None:
        _at_least(self, epochs=1, batch_size=1)
        # A recipe may leave the learning rate open, to be chosen by its optimizer.
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise usage_error(f"--learning-rate must be positive, not {self.learning_rate}")
        if not 0 <= self.seed < 2**32:
            raise usage_error(f"--seed must lie in 0 ... 2**32 - 1, not {self.seed}")
        for name, kind in typing.get_type_hints(type(self)).items():
            if typing.get_origin(kind) is Literal and getattr(self, name) not in typing.get_args(kind):
                raise unknown(f"value of {_flag(name)}", str(getattr(self, name)), typing.get_args(kind))
        if self.resume is not None and not isinstance(self, ResumableConfig):
            raise usage_error(
                "this recipe trains no network and writes no checkpoints: start it anew, without --resume"
            )

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """A configuration that ends in seconds, for smoke tests; recipes override it."""
        return cls(**changes)


@dataclass(frozen=True)
class ResumableConfig(RunConfig):
    """What every recipe can be told that goes on after a kill, with `engine.progress` or `engine.parts`."""

    VALUES = RunConfig.VALUES | {
        "early_stopping",
        "checkpoint_every",
        "keep_checkpoints",
        "checkpoint_dir",
        "find_lr",
    }
    PARTS: ClassVar[bool] = False
    """Whether a run trains networks one after the other: then its epochs are none of the run's own."""

    early_stopping: int = 0
    """Epochs without a better val/loss after which to stop and take the best weights; 0: never."""
    checkpoint_every: str = "60s"
    """Optimizer steps, or seconds (60s), between checkpoints; 0: none."""
    keep_checkpoints: int = 2
    """Checkpoints to keep beside the best one, until the run is finished."""
    checkpoint_dir: Path = Path("mlruns/checkpoints")
    """Folder of the runs' checkpoints."""
    find_lr: bool = False
    """Instead of training, raise the learning rate step by step, and suggest one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, keep_checkpoints=1, early_stopping=0)
        self.checkpoint_interval()

    def checkpoint_interval(self) -> tuple[int, float]:
        """`checkpoint_every` as (optimizer steps, seconds), of which one is 0, or both for none."""
        word = self.checkpoint_every
        number, seconds = word.removesuffix("s"), word.endswith("s")
        if not number.isdigit() or (seconds and int(number) == 0):
            raise usage_error(f"--checkpoint-every takes steps (500), seconds (60s) or 0, not '{word}'")
        return (0, float(number)) if seconds else (int(number), 0.0)


@dataclass(frozen=True)
class TrainingConfig(ResumableConfig):
    """What every recipe can be told that trains a network with `engine.training`."""

    VALUES = ResumableConfig.VALUES | {"probe"}

    accumulate: int = 1
    """Parts that a batch is cut into; their gradients are averaged before the update."""
    clip_norm: float | None = None
    """Largest norm of all gradients together; longer ones are scaled down."""
    ema: float | None = None
    """Momentum of an exponential moving average of the weights, which is what is evaluated and kept."""
    probe: int = 0
    """Optimizer steps between looks at every layer's gradients, weights and activations; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, accumulate=1, probe=0)
        # A recipe may leave the batch size open: all examples, whose number the data tell.
        if self.batch_size is not None and self.batch_size % self.accumulate:
            raise usage_error(
                f"--accumulate {self.accumulate} does not divide --batch-size {self.batch_size}: "
                "choose a divisor of it, or another batch size"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise usage_error(f"--clip-norm must be positive, not {self.clip_norm}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise usage_error(f"--ema must lie between 0 and 1, not {self.ema}")


@dataclass(frozen=True)
class BlocksConfig(TrainingConfig):
    """What every recipe can be told whose network is a row of blocks, layers with layers within."""

    remat: bool = False
    """Keep no activations inside of blocks for the backward pass, but compute them again: less memory."""


def refuse(config: RunConfig, names: Collection[str], why: str) -> None:
    """Refuse the flags that a recipe cannot honour: fields of these names must have their default values.

    Raises:
        RecipeError: one has not.
    """
    for one in dataclasses.fields(config):
        if one.name in names and getattr(config, one.name) != one.default:
            raise usage_error(f"{_flag(one.name)} is refused: {why}")


def field_types(config_class: type[RunConfig]) -> dict[str, Any]:
    """The type of every field of a recipe's Config."""
    hints = typing.get_type_hints(config_class)
    return {f.name: hints[f.name] for f in dataclasses.fields(config_class)}


def value_of(config_class: type[RunConfig], name: str, word: str) -> Any:
    """One word of a command line as a value of a field.

    Args:
        config_class: the recipe's Config.
        name: a field's name; dashes and underscores are the same.
        word: what was written.

    Returns:
        The value, of the field's type.

    Raises:
        RecipeError: no such field, or no such value; the nearest valid one is named.
    """
    kinds = field_types(config_class)
    name = name.replace("-", "_")
    if name not in kinds:
        raise unknown("field", name, kinds)
    return _parsed(kinds[name], _flag(name), word)


def check_words(config_class: type[RunConfig], words: list[str]) -> dict[str, Any]:
    """Refuse a command line with unknown flags or impossible values in one sentence.

    tyro would refuse the same words with a page of help; what passes here, it parses.

    Returns:
        The fields that the command line gives, and their values.
    """
    given = {}
    kinds = field_types(config_class)
    flags = {_flag(name): name for name in kinds}
    switches = {flag: (name, True) for flag, name in flags.items() if kinds[name] is bool}
    switches |= {f"--no-{flag[2:]}": (name, False) for flag, (name, _) in switches.items()}
    rest = iter(words)
    for word in rest:
        flag, joined, value = word.partition("=")
        flag = flag.replace("_", "-")
        if flag in ("-h", "--help"):
            continue
        if flag in switches:
            name, value = switches[flag]
            given[name] = value
            continue
        if flag not in flags:
            raise unknown("flag" if word.startswith("-") else "argument", flag, {*flags, *switches})
        if not joined:
            value = next(rest, None)
        if value is None:
            raise usage_error(f"{flag} needs a value")
        given[flags[flag]] = value_of(config_class, flags[flag], value)
    return given


def _at_least(config: RunConfig, **least: int) -> None:
    for name, number in least.items():
        value = getattr(config, name)
        if value is not None and value < number:
            raise usage_error(f"{_flag(name)} must be at least {number}, not {value}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _parsed(kind: Any, flag: str, word: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        by_name = {str(value): value for value in arguments}
        if word not in by_name:
            raise unknown(f"value of {flag}", word, by_name)
        return by_name[word]
    if origin in (typing.Union, types.UnionType):
        if word == "None" and type(None) in arguments:
            return None
        return _parsed(next(a for a in arguments if a is not type(None)), flag, word)
    if kind is bool:
        if word.lower() not in ("true", "false"):
            raise unknown(f"value of {flag}", word, ("true", "false"))
        return word.lower() == "true"
    try:
        return kind(word)
    except ValueError:
        raise usage_error(f"{flag} takes {_article(kind)}, not '{word}'") from None


def _article(kind: type) -> str:
    return {int: "a whole number", float: "a number"}.get(kind, f"a {kind.__name__}")
