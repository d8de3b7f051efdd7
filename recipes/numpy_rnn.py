"""Backpropagation through time written out: RNN, LSTM and GRU as character models, and their gradients.

Question: why was the LSTM needed? The three cells get the same loop, `backpropagate`: forward from the
first character to the last, backward from the last to the first, no engine involved. Two numbers tell them
apart: how well they predict the next character, and what is left of a gradient after k steps back in time.

    python -m recipes.numpy_rnn --backend numpy                              # Python's own documentation
    python -m recipes.numpy_rnn --backend numpy --dataset tiny_shakespeare   # by TensorFlow Datasets

Expected: test losses of 1.91, 1.89 and 1.59 nats a character by RNN, LSTM and GRU, with NumPy in 98 s
(results/numpy/README.md). Before training
the RNN's orthogonal kernel carries gradients furthest; after training it is the RNN that has lost them.

`--find-lr` tests the first of the `--cells`: of all of them the RNN, which bears the smallest rates.

Figures: learning_curves (against the entropy of single characters and of pairs), gradient_norms
(|dL/dstate| k steps back, before and after training). Text: samples.txt, written by each cell.

References:
    Werbos, 1990, Backpropagation through time: what it does and how to do it.
    Bengio, Simard and Frasconi, 1994, Learning long-term dependencies with gradient descent is difficult.
    Hochreiter and Schmidhuber, 1997, Long short-term memory.
    Cho et al., 2014, Learning phrase representations using RNN encoder-decoder (GRU).
    Karpathy, 2015, The unreasonable effectiveness of recurrent neural networks (the task).

Differences from Karpathy:
    1. One layer instead of two or three, no dropout.
    2. Adam with a falling rate instead of RMSprop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from layers.autograd import Tensor, by_hand
from layers.autograd.nn.initializers import glorot_uniform, orthogonal
from layers.autograd.optim import Adam, clip_by_global_norm
from layers.autograd.schedules import cosine_decay
from recipes.engine import figures, launch, learning_rates, writing
from recipes.engine.config import ResumableConfig
from recipes.engine.data import text as texts
from recipes.engine.errors import usage_error
from recipes.engine.parts import Part
from recipes.engine.progress import Progress
from recipes.engine.tracking import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config(ResumableConfig):
    """Settings of the cells and their training."""

    PARTS = True

    backend: Literal["numpy"] = "numpy"
    """Only NumPy: this recipe needs no framework."""
    precision: Literal["float32"] = "float32"
    """Type of weights and activations."""
    dataset: Literal["python_docs", "tiny_shakespeare"] = "python_docs"
    """Text: Python's own documentation (built in), or Shakespeare by TensorFlow Datasets."""
    epochs: int = 6
    """Passes over the training text."""
    batch_size: int = 32
    """Stretches of text read side by side."""
    learning_rate: float = 5e-3
    """Step size at the start; it falls to 0 along a cosine."""
    cells: Literal["all", "rnn", "lstm", "gru"] = "all"
    """Which cells to train."""
    hidden: int = 128
    """Units of the state."""
    length: int = 64
    """Characters through which gradients flow back."""
    characters: int = 500_000
    """Length of the text that is used, from its beginning."""
    clip_norm: float = 5.0
    """Largest norm of the gradient; longer ones are shortened to it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # The validation text, a twentieth, must hold one stretch, and sixteen rows to follow gradients in.
        least = 20 * max(self.length + 2, 64)
        if self.length < 1 or self.hidden < 1 or self.characters < least:
            raise usage_error(f"--length and --hidden must be positive, --characters at least {least}")

    @classmethod
    def small(cls, **changes: Any) -> Config:
        """A short text, a few seconds."""
        tiny = {"epochs": 3, "hidden": 24, "length": 16, "characters": 30_000, "batch_size": 16}
        return cls(**{**tiny, "learning_rate": 1e-2, **changes})


REACH = 1e-4  # a gradient's reach is the number of steps after which less than this share of it is left


class Cell(NamedTuple):
    """One step of a recurrent cell, forward and back, and how many gates and states it has."""

    forward: Callable[..., tuple]
    backward: Callable[..., tuple]
    gates: int
    states: int


CELLS = {
    "rnn": Cell(by_hand.rnn_step_forward, by_hand.rnn_step_backward, 1, 1),
    "lstm": Cell(by_hand.lstm_step_forward, by_hand.lstm_step_backward, 4, 2),
    "gru": Cell(by_hand.gru_step_forward, by_hand.gru_step_backward, 3, 1),
}


def build_model(config: Config, cell: Cell, characters: int) -> list[np.ndarray]:
    """The weights [W, U, b, V, c]: input, state, bias, and the readout from the state."""
    rng = np.random.default_rng(config.seed)
    width = cell.gates * config.hidden
    bias = np.zeros((2, width) if cell is CELLS["gru"] else width)
    if cell is CELLS["lstm"]:
        bias[config.hidden : 2 * config.hidden] = 1  # the memory starts by keeping
    weights = [
        glorot_uniform((characters, width), rng),
        orthogonal((config.hidden, width), rng),
        bias,
        glorot_uniform((config.hidden, characters), rng),
        np.zeros(characters),
    ]
    return [w.astype(np.float32) for w in weights]


def run_forward(
    cell: Cell, weights: list[np.ndarray], x: np.ndarray, states: list[np.ndarray]
) -> tuple[np.ndarray, list[np.ndarray], list[tuple]]:
    """The cell along time.

    Args:
        cell: what one step is.
        weights: [W, U, b, V, c].
        x: characters as numbers (N, T).
        states: the state before the first character, each (N, hidden).

    Returns:
        All states h (N, T, hidden), the last state, and what every step keeps for its backward.
    """
    kernel = weights[0]
    one_hot = np.eye(len(kernel), dtype=kernel.dtype)
    outputs, kept = [], []
    for t in range(x.shape[1]):
        *states, cache = cell.forward(one_hot[x[:, t]], *states, *weights[:3])
        outputs.append(states[0])
        kept.append(cache)
    return np.stack(outputs, axis=1), states, kept


def run_backward(
    cell: Cell, dh: np.ndarray, kept: list[tuple]
) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Backpropagation through time.

    Args:
        cell: what one step is.
        dh: the direct gradient of every state (N, T, hidden), through the readout of its own step.
        kept: what `run_forward` kept.

    Returns:
        Gradients of W, U, b, and the full gradient of the state after every step: direct plus through the
        future.
    """
    steps = dh.shape[1]
    future = [np.zeros_like(dh[:, 0]) for _ in range(cell.states)]
    totals: list[np.ndarray] = []
    along: list[list[np.ndarray]] = [[]] * steps
    for t in reversed(range(steps)):
        # This step's own error, and all that comes back from later ones.
        along[t] = [dh[:, t] + future[0], *future[1:]]
        _, *rest = cell.backward(*along[t], kept[t])
        future, gradients = rest[: cell.states], rest[cell.states :]
        totals = [a + b for a, b in zip(totals, gradients, strict=True)] if totals else gradients
    return totals, along


def backpropagate(
    cell: Cell, weights: list[np.ndarray], x: np.ndarray, y: np.ndarray, states: list[np.ndarray]
) -> tuple[float, list[np.ndarray], list[np.ndarray]]:
    """Mean loss of predicting y (N, T) from x (N, T), gradients of all weights, and the last state."""
    n, steps = x.shape
    h, states, kept = run_forward(cell, weights, x, states)
    logits, kept_dense = by_hand.dense_forward(h.reshape(n * steps, -1), weights[3], weights[4])
    loss, kept_loss = by_hand.softmax_crossentropy_forward(logits, y.reshape(-1))
    dh, dv, dc = by_hand.dense_backward(by_hand.softmax_crossentropy_backward(kept_loss), kept_dense)
    gradients, _ = run_backward(cell, dh.reshape(h.shape), kept)
    return loss, [*gradients, dv, dc], states


def zero_state(cell: Cell, n: int, hidden: int) -> list[np.ndarray]:
    """The state before anything was read."""
    return [np.zeros((n, hidden), np.float32) for _ in range(cell.states)]


class Stretches:
    """The text cut into `batch` rows, read `length` characters at a time; a row goes on where it stopped."""

    unit, accumulate = "characters", 1

    def __init__(self, numbers: np.ndarray, batch: int, length: int) -> None:
        self.rows = texts.rows(numbers, min(batch, (len(numbers) - 1) // length))
        self.length = length
        self.units = len(self.rows[0]) * length
        self.steps_per_epoch = self.rows[0].shape[1] // length

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch number `step` over all epochs: characters, and those that follow, (batch, length) each."""
        place = step % self.steps_per_epoch * self.length
        x, y = (part[:, place : place + self.length] for part in self.rows)
        return x, y


def evaluate(cell: Cell, weights: list[np.ndarray], numbers: np.ndarray, config: Config) -> float:
    """Mean negative log-likelihood of a character, in nats, the state carried along."""
    text = Stretches(numbers, 16, config.length)
    losses, states = [], zero_state(cell, len(text.rows[0]), config.hidden)
    for x, y in (text[step] for step in range(text.steps_per_epoch)):
        h, states, _ = run_forward(cell, weights, x, states)
        logits = h.reshape(x.size, -1) @ weights[3] + weights[4]
        losses.append(by_hand.softmax_crossentropy_forward(logits, y.reshape(-1))[0])
    return float(np.mean(losses))


def gradient_norms(
    cell: Cell, weights: list[np.ndarray], numbers: np.ndarray, config: Config, steps: int = 100
) -> np.ndarray:
    """|dL/ds_{T-k}| / |dL/ds_T| for k = 0 ... steps - 1, L being the loss of the last character alone.

    s is the whole state, h, or h and c of the LSTM: the share of the error signal that is left k steps
    back, and so what a weight can still learn about the past.
    """
    x = numbers[: 16 * (steps + 1)].reshape(16, steps + 1)
    h, _, kept = run_forward(cell, weights, x[:, :-1], zero_state(cell, 16, config.hidden))
    logits, kept_dense = by_hand.dense_forward(h[:, -1], weights[3], weights[4])
    _, kept_loss = by_hand.softmax_crossentropy_forward(logits, x[:, -1])
    dh = np.zeros_like(h)
    dh[:, -1] = by_hand.dense_backward(by_hand.softmax_crossentropy_backward(kept_loss), kept_dense)[0]
    _, along = run_backward(cell, dh, kept)
    norms = np.array([np.linalg.norm(states) for states in reversed(along)])
    return norms / norms[0]


def sample(cell: Cell, weights: list[np.ndarray], config: Config, alphabet: str, count: int = 400) -> str:
    """Text drawn from the model, one character after the other, a little sharpened."""
    rng = np.random.default_rng(config.seed)
    states, now, written = zero_state(cell, 1, config.hidden), np.array([[alphabet.index("\n")]]), []
    for _ in range(count):
        h, states, _ = run_forward(cell, weights, now, states)
        p = writing.Way(temperature=0.8).probabilities(h[:, -1] @ weights[3] + weights[4])
        now = writing.draw(rng, p)[:, None]
        written.append(alphabet[now[0, 0]])
    return "".join(written)


def train_cell(cell: Cell, config: Config, text: texts.Text, part: Part) -> dict[str, np.ndarray]:
    """Train one cell; returns its weights."""
    weights = [Tensor(w, requires_grad=True) for w in build_model(config, cell, len(text.alphabet))]
    batches = Stretches(text.train, config.batch_size, config.length)
    schedule = cosine_decay(config.learning_rate, config.epochs * batches.steps_per_epoch)
    optimizer = Adam(weights, schedule)
    states = zero_state(cell, len(batches.rows[0]), config.hidden)

    def step(number: int, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        if number % batches.steps_per_epoch == 0:
            for state in states:
                state[...] = 0
        # The state goes on from stretch to stretch, the gradient stops between them: truncated BPTT.
        loss, gradients, after = backpropagate(cell, [w.data for w in weights], x, y, states)
        for state, new in zip(states, after, strict=True):
            state[...] = new
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = Tensor(gradient)
        norm = clip_by_global_norm(weights, config.clip_norm)
        optimizer.step()
        return {"loss": loss, "grad_norm": norm}

    if config.find_lr:
        learning_rates.find_with(optimizer, lambda number: step(number, *batches[number])["loss"], part.run)

    progress = Progress(
        config,
        part,
        batches,
        state={"training": optimizer.arrays, "carried": states},
        evaluate=lambda: {"loss": evaluate(cell, [w.data for w in weights], text.validation, config)},
        schedule=schedule,
    )
    for x, y in progress.batches():
        progress.after_step(step(progress.step, x, y))
    progress.finish()
    return dict(zip("WUbVc", (w.data for w in weights), strict=True))


def train(config: Config, run: Run) -> dict[str, float]:
    """Train the cells and measure how far back their gradients reach; returns the final metrics."""
    text = texts.load(config.dataset, config.data_dir, config.characters)
    names = list(CELLS) if config.cells == "all" else [config.cells]
    single, pair = texts.entropies(text.train, text.validation, len(text.alphabet))
    steps = min(100, len(text.validation) // 16 - 1)
    final = {"baseline/characters": single, "baseline/pairs": pair}
    histories, norms, samples = {}, {}, []
    best = ("", np.inf, np.inf)
    for name in names:
        cell, part = CELLS[name], Part(run, config, name)
        start = build_model(config, cell, len(text.alphabet))
        before = gradient_norms(cell, start, text.validation, config, steps)
        weights = [*part.once(lambda cell=cell, part=part: train_cell(cell, config, text, part)).values()]
        after = gradient_norms(cell, weights, text.validation, config, steps)
        histories[name], norms[name] = part.history, (before, after)
        samples.append(f"===== {name} =====\n{sample(cell, weights, config, text.alphabet)}\n")
        validation, test = (evaluate(cell, weights, split, config) for split in (text.validation, text.test))
        final |= {f"{name}/val_loss": validation, f"{name}/test_loss": test}
        final[f"{name}/reach"] = float(np.argmax(after < REACH) or steps)
        best = min(best, (name, validation, test), key=lambda entry: entry[1])
    final |= {"val/loss": best[1], "test/loss": best[2]}
    run.tags({"best_cell": best[0]})
    run.text("samples.txt", "\n".join(samples))
    run.figure("learning_curves", curves_figure(histories, single, pair))
    run.figure("gradient_norms", norms_figure(norms))
    return final


def curves_figure(histories: dict[str, figures.History], single: float, pair: float) -> Figure:
    """Validation loss of the cells against what counting characters and pairs achieves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axis = figure.subplots()
    for i, (name, history) in enumerate(histories.items()):
        for curve, style, label in (("val/loss", ".-", "validation"), ("train/loss", ":", "training")):
            axis.plot(*zip(*history[curve], strict=True), f"C{i}{style}", label=f"{name.upper()} {label}")
    axis.axhline(single, color="0.5", ls="--", lw=1)
    axis.axhline(pair, color="0.5", ls="--", lw=1)
    right = max(history["val/loss"][-1][0] for history in histories.values())
    axis.text(right, single, "frequencies of characters", ha="right", va="bottom", fontsize=8)
    axis.text(right, pair, "frequencies of pairs", ha="right", va="bottom", fontsize=8)
    axis.set(xlabel="step", ylabel="nats a character", title="Predicting the next character")
    axis.legend(fontsize=8, ncols=len(histories))
    return figure


def norms_figure(norms: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """What is left of the gradient k steps back in time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    for which, (axis, title) in enumerate(
        zip(figure.subplots(1, 2, sharey=True), ("before training", "after training"), strict=True)
    ):
        for name, curves in norms.items():
            axis.semilogy(np.maximum(curves[which], 1e-12), label=name.upper())
        axis.axhline(REACH, color="0.6", lw=0.8, ls=":")
        axis.set(xlabel="steps back in time k", title=f"Gradient {title}")
        axis.legend()
    figure.axes[0].set_ylabel("|dL/ds(T-k)| / |dL/ds(T)|")
    return figure


if __name__ == "__main__":
    launch.main(Config, train)
