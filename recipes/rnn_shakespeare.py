"""Recurrent networks that write Shakespeare: RNN, LSTM, peephole LSTM and GRU as character models.

The network reads a text character by character and says what comes next. Gradients flow back through
`--length` characters, but what is remembered goes further: the layers are stateful, and every row of a batch
goes on where the same row of the batch before stopped (truncated backpropagation through time). The carried
state is part of a checkpoint, so that a killed run goes on as if it had not been. With `--accumulate` a step
reads its rows in parts, each of which goes on from its own state.

    python -m recipes.rnn_shakespeare --backend jax                          # two LSTMs of 256 units
    python -m recipes.rnn_shakespeare --cell gru --layers 1 --parameters 150000 --epochs 2 --dropout 0
    python -m recipes.rnn_shakespeare --dataset python_docs --epochs 4       # built in, no download

Expected: 1.425 nats a character of the validation text and 1.546 of the test text by two LSTMs of 256
units, on JAX at 0.34 s a step (results/rnn_shakespeare.md).

Loss: nats a character; bits a character are that over log 2. Validation and test text are read once, in 16
rows that each start from an empty memory. `baseline/characters` and `baseline/pairs` are what the
frequencies of characters, and of a character after another, would give on the test text. `reach` is the
number of steps back in time after which less than a ten-thousandth of the gradient is left.

Figures: learning curves; gradient_norms (what is left of the gradient of one character's loss k steps back
in time, for the four cells before training and for this one after); hidden_units (the units that follow the
place in the line, in the word and in the paragraph best, over a piece of validation text). Text:
samples.txt, written in several ways. The trained model is stored with the run, stateless.

References:
    Karpathy, 2015, The unreasonable effectiveness of recurrent neural networks (the text and the task).
    Karpathy, Johnson and Fei-Fei, 2015, Visualizing and understanding recurrent networks, arXiv:1506.02078.
    Williams and Peng, 1990, An efficient gradient-based algorithm for on-line training of recurrent network
    trajectories (truncated backpropagation through time).
    Zaremba, Sutskever and Vinyals, 2014, Recurrent neural network regularization, arXiv:1409.2329 (dropout
    between the layers alone).
    Gers, Schraudolph and Schmidhuber, 2002, Learning precise timing with LSTM recurrent networks (peepholes).

Differences from Karpathy's char-rnn:
    1. Adam with warm-up and a cosine instead of RMSprop with an exponential decay.
    2. The gradient's norm is clipped, not each of its numbers.
    3. Characters come in through an embedding, not as unit vectors.
    4. The text's parts are TFDS' 90, 5 and 5 %, in the order of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import keras
import numpy as np
from keras import ops

import layers
from recipes import engine
from recipes.engine import gradients, launch, writing
from recipes.engine.data import text as texts
from recipes.engine.errors import usage_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELLS = {
    "rnn": layers.SimpleRNN,
    "lstm": layers.LSTM,
    "peephole": layers.PeepholeLSTM,
    "gru": layers.GRU,
}
# Columns of a cell's kernels, and numbers beside the kernels, in units.
GATES = {"rnn": 1, "lstm": 4, "peephole": 4, "gru": 3}
OTHERS = {"rnn": 1, "lstm": 4, "peephole": 7, "gru": 6}

EMBEDDING = 64  # width of a character's vector
ROWS = 16  # rows that validation and test text are read in
REACH = 1e-4  # a gradient's reach is the number of steps after which less than this share of it is left


@dataclass(frozen=True)
class Config(writing.WritingConfig):
    """Settings of the network and its training."""

    dataset: Literal["tiny_shakespeare", "python_docs"] = "tiny_shakespeare"
    """Text to learn from: Shakespeare by TensorFlow Datasets, or Python's own documentation (built in)."""
    epochs: int = 6
    """Passes over the training text."""
    batch_size: int = 32
    """Rows of text read side by side."""
    learning_rate: float = 3e-3
    """Peak step size, reached in a twentieth of the run; it falls to 0 along a cosine."""
    clip_norm: float | None = 1.0
    """Largest norm of all gradients together; longer ones are scaled down."""
    cell: Literal["rnn", "lstm", "peephole", "gru"] = "lstm"
    """What one layer does in one step."""
    layers: int = 2
    """Recurrent layers, one on top of the other."""
    units: int = 256
    """Size of a layer's state."""
    parameters: int = 0
    """In place of --units: as many units as give about so many weights in all."""
    length: int = 64
    """Characters through which gradients flow back."""
    dropout: float = 0.1
    """Share of each layer's outputs dropped in training."""
    bidirectional: bool = False
    """Refused: a model that reads backwards too would be shown what it is to predict."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bidirectional:
            raise usage_error(
                "--bidirectional is refused: a layer that also reads from the end sees the very character "
                "that the model is to predict: the loss would fall to nothing, and nothing could be written"
            )
        if min(self.layers, self.units, self.length) < 1 or self.parameters < 0 or not 0 <= self.dropout < 1:
            raise usage_error("--layers, --units and --length must be positive, --dropout lie in [0, 1)")

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """A few seconds on a part of the documentation's text."""
        tiny = {"dataset": "python_docs", "epochs": 1, "units": 32, "layers": 1, "length": 32, "dropout": 0.0}
        return cls(**{**tiny, "written": 50, "learning_rate": 1e-2, **changes})


def weights_of(config: Config, units: int, characters: int) -> int:
    """How many weights a network has: embedding, layers and readout."""
    total, inputs = characters * EMBEDDING, EMBEDDING
    for _ in range(config.layers):
        total += GATES[config.cell] * units * (inputs + units) + OTHERS[config.cell] * units
        inputs = units
    return total + (units + 1) * characters


def units_of(config: Config, characters: int) -> int:
    """Units of a layer: as given, or as many as bring the network nearest to the given number of weights."""
    if not config.parameters:
        return config.units
    units = 1
    while weights_of(config, units + 1, characters) <= config.parameters:
        units += 1
    missing, over = (abs(weights_of(config, u, characters) - config.parameters) for u in (units, units + 1))
    return units if missing <= over else units + 1


def build_model(
    config: Config,
    characters: int,
    batch_size: int | None = None,
    length: int | None = None,
    stateful: bool = False,
    parts: int = 1,
) -> keras.Model:
    """The network: numbers of characters in, (batch, length), one logit a character out.

    The recurrent layers are named `cell1`, `cell2`, ... Networks built with different `batch_size`,
    `length`, `stateful` and `parts` have the same weights. With several `parts`, every one of so many calls
    goes on from a state of its own: see `InTurns`.
    """
    inputs = keras.Input(batch_shape=(batch_size, length), dtype="int32", name="characters")
    x = layers.Embedding(characters, EMBEDDING, name="embedding")(inputs)  # (batch, length, EMBEDDING)
    for number in range(1, config.layers + 1):
        x = CELLS[config.cell](
            units_of(config, characters), return_sequences=True, stateful=stateful, name=f"cell{number}"
        )(x)  # (batch, length, units)
        x = layers.Dropout(config.dropout)(x)
    # Logits and loss in float32: a softmax in 16 bits loses the small probabilities.
    logits = layers.Dense(characters, dtype="float32", name="readout")(x)
    if parts == 1:
        return keras.Model(inputs, logits, name=config.cell)
    return InTurns(inputs, logits, parts, name=config.cell)


class InTurns(keras.Model):
    """A stateful network that reads its batches in parts, each of them going on from its own rows' state.

    The parts' states stand in line: after a call the one that was used goes to the end, and the next comes to
    the front, into the layers. Like those in the layers, they are part of `variables`, not of `weights`.

    Args:
        inputs, outputs: as `keras.Model` takes them; the batch is a part.
        parts: how many there are, at least 2.
    """

    line: Sequence[tuple[keras.Variable, keras.Variable]] = ()  # Keras asks for `variables` while it builds

    def __init__(self, inputs: Any, outputs: Any, parts: int, **named: Any) -> None:
        super().__init__(inputs, outputs, **named)
        states = [state for layer in self.layers for state in getattr(layer, "states", None) or []]
        shapes = [((parts - 1) * batch_size, units) for batch_size, units in (s.shape for s in states)]
        waiting = [
            keras.Variable(np.zeros(shape), dtype=state.dtype, trainable=False, name="waiting")
            for state, shape in zip(states, shapes, strict=True)
        ]
        # Past Keras' tracking, which would make weights of them.
        object.__setattr__(self, "line", list(zip(states, waiting, strict=True)))

    @property
    def variables(self) -> list[keras.Variable]:
        """The network's variables and the states that wait for their turn."""
        return [*super().variables, *(waiting for _, waiting in self.line)]

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Read on with the part whose turn it is, then have the next part's state ready."""
        outputs = super().call(inputs, training=training, mask=mask)
        for state, waiting in self.line:
            rows = ops.concatenate([waiting.value, state.value])  # (batch, units)
            state.assign(rows[: state.shape[0]])
            waiting.assign(rows[state.shape[0] :])
        return outputs


def cross_entropy(following: Any, logits: Any) -> Any:
    """Nats that each following character costs, (batch, length)."""
    return layers.losses.sparse_categorical_crossentropy(following, logits, from_logits=True)


def measured(reader: keras.Model, numbers: np.ndarray) -> float:
    """Mean nats a character of a text, read in `ROWS` rows from an empty memory."""
    x, y = texts.rows(numbers, ROWS)
    logits = reader.predict(x, batch_size=ROWS, verbose=0)  # (ROWS, length, characters)
    return float(np.mean(ops.convert_to_numpy(cross_entropy(y, logits))))


def train(config: Config, run: engine.tracking.Run) -> dict[str, float]:
    """Train, read the test text once, write, draw, store the model."""
    text = texts.load(config.dataset, config.data_dir)
    characters = len(text.alphabet)
    prompt = text.encode(config.prompt)
    run.tags({"dataset.fingerprint": lambda: text.fingerprint})
    batches = texts.Streams(text.train, config.length, config.batch_size, config.seed, config.accumulate)
    model = build_model(
        config, characters, batches.batch_size, config.length, stateful=True, parts=config.accumulate
    )
    reader = build_model(config, characters)
    fresh = gradient_norms(model, text.validation)

    def validation() -> dict[str, float]:
        reader.set_weights(model.get_weights())
        return {"loss": measured(reader, text.validation)}

    steps = batches.steps_per_epoch // config.accumulate * config.epochs
    schedule = layers.schedules.CosineDecay(
        0.0, max(1, steps - steps // 20), warmup_target=config.learning_rate, warmup_steps=steps // 20
    )
    model.compile(
        layers.optimizers.Adam(schedule, **engine.training.optimizer_options(config)), cross_entropy
    )
    try:
        engine.training.fit(model, batches, validation, config, run, schedule)
    finally:
        title = f"{config.layers} x {units_of(config, characters)} {config.cell} on {text.name}"
        run.figure("learning_curves", lambda: engine.figures.learning_curves(run.history, title))
    losses = {"val": validation()["loss"], "test": measured(reader, text.test)}

    norms = {"before training": {config.cell: fresh}, "after training": {}}
    norms["after training"][config.cell] = gradient_norms(reader, text.validation)
    for cell in CELLS.keys() - {config.cell}:
        other = Config(**{**vars(config), "cell": cell})
        norms["before training"][cell] = gradient_norms(build_model(other, characters), text.validation)
    run.figure("gradient_norms", norms_figure(norms))
    run.figure("hidden_units", units_figure(reader, text))
    ways = config.ways()
    written = writing.write(remembering(config, reader, len(ways)), prompt, config.written, ways, config.seed)
    run.text("samples.txt", writing.gallery(ways, config.prompt, [text.decode(row) for row in written]))
    run.model(reader, text.test[None, :32])

    single, pair = texts.entropies(text.train, text.test, characters)
    after = norms["after training"][config.cell]
    return {
        **{f"{part}/loss": loss for part, loss in losses.items()},
        **{f"{part}/bits_per_character": loss / np.log(2) for part, loss in losses.items()},
        "baseline/characters": single,
        "baseline/pairs": pair,
        "reach": float(np.argmax(after < REACH) or len(after)),
        "parameters": model.count_params(),
        "units": units_of(config, characters),
    }


def remembering(config: Config, reader: keras.Model, rows: int) -> Callable[[np.ndarray], np.ndarray]:
    """A network as `writing.write` takes it: stateful, it remembers what it read.

    Args:
        config: the network's.
        reader: where its weights come from.
        rows: texts written side by side.
    """
    model = build_model(config, reader.output.shape[-1], rows, 1, stateful=True)
    model.set_weights(reader.get_weights())
    step = gradients.compiled_step(lambda x: model(x)[:, -1], model.variables)

    def read(numbers: np.ndarray) -> np.ndarray:
        for column in numbers.T:
            logits = step(ops.convert_to_tensor(column[:, None]))
        return ops.convert_to_numpy(logits)

    return read


class Nudged:
    """The cells of a network as one, with something to add to every state after every step.

    The gradient by what is added is the gradient by the state itself. A cell for `layers.RNN`: its inputs are
    (batch, features + states), the nudges last.
    """

    def __init__(self, cells: list[Any]) -> None:
        self.cells = cells
        self.sizes = [size for cell in cells for size in np.atleast_1d(cell.state_size).tolist()]
        self.state_size = self.sizes
        self.output_size = self.sizes[-1]

    def call(self, inputs: Any, states: list) -> tuple[Any, list]:
        """One step: the last cell's output, and all states."""
        x, *nudges = ops.split(
            inputs, np.cumsum([inputs.shape[-1] - sum(self.sizes), *self.sizes])[:-1], axis=-1
        )
        states, nudges, new = list(states), list(nudges), []
        for cell in self.cells:
            count = np.size(cell.state_size)
            _, after = cell(x, states[:count])
            # The nudges are float32, and so are all states: a cell that computes in less casts them.
            after = [
                ops.cast(state, nudge.dtype) + nudge
                for state, nudge in zip(after, nudges[:count], strict=True)
            ]
            states, nudges = states[count:], nudges[count:]
            x = after[0]  # what the next cell, or the readout, sees of this one
            new += after
        return x, new


def gradient_norms(model: keras.Model, numbers: np.ndarray, steps: int = 100) -> np.ndarray:
    """|dL/ds_{T-k}| / |dL/ds_T| for k = 0 ... steps - 1, L being the loss of the last character alone.

    s are all states of all layers: the share of the error signal that is left k steps back, and so what a
    weight can still learn about the past.

    Args:
        model: the network.
        numbers: a text; its beginning is read in 16 rows.
        steps: characters in a row, fewer where the text is short.
    """
    steps = min(steps, len(numbers) // ROWS - 1)
    read = numbers[: ROWS * (steps + 1)].reshape(ROWS, steps + 1)
    nudged = Nudged([layer.cell for layer in model.layers if hasattr(layer, "cell")])
    loop = layers.RNN(nudged, dtype="float32")
    x = model.get_layer("embedding")(ops.convert_to_tensor(read[:, :-1]))  # (ROWS, steps, EMBEDDING)
    readout = model.get_layer("readout")
    last = ops.convert_to_tensor(read[:, -1])

    def loss(nudges: Any, x: Any) -> Any:
        return ops.mean(cross_entropy(last, readout(loop(ops.concatenate([x, nudges], axis=-1)))))

    nudges = ops.zeros((ROWS, steps, sum(nudged.sizes)))
    _, slopes = gradients.compiled(gradients.value_and_grad(loss))(nudges, x)
    norms = np.sqrt(np.square(ops.convert_to_numpy(slopes)).sum(axis=(0, 2)))[::-1]  # from the last step back
    return norms / norms[0]


def norms_figure(norms: dict[str, dict[str, np.ndarray]]) -> Figure:
    """What is left of the gradient k steps back in time: a panel for each of before and after training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, len(norms), sharey=True)
    for axis, (title, curves) in zip(panels, norms.items(), strict=True):
        for number, name in enumerate(CELLS):
            if name in curves:
                axis.semilogy(curves[name], color=f"C{number}", label=name)
        axis.set_ylim(1e-12, 2)
        axis.axhline(REACH, color="0.6", linewidth=0.8, linestyle=":")
        axis.set(xlabel="steps back in time k", title=title)
        axis.grid(alpha=0.3)
        axis.legend()
    panels[0].set_ylabel("|dL/ds(T-k)| / |dL/ds(T)|")
    return figure


def places(words: str) -> dict[str, np.ndarray]:
    """For every character of a text, how many came since its line, its word and its paragraph began."""
    counts: dict[str, list[int]] = {"line": [], "word": [], "paragraph": []}
    line = word = paragraph = 0
    for before, character in zip("\n" + words, words, strict=False):
        line = 0 if before == "\n" else line + 1
        word = 0 if not (before.isalpha() and character.isalpha()) else word + 1
        paragraph = 0 if before == character == "\n" else paragraph + 1
        for name, count in (("line", line), ("word", word), ("paragraph", paragraph)):
            counts[name].append(count)
    return {name: np.array(count) for name, count in counts.items()}


def units_figure(reader: keras.Model, text: texts.Text, lines: int = 9, width: int = 64) -> Figure:
    """The units of the last layer that follow the place in line, word and paragraph best, over some text."""
    from matplotlib.figure import Figure

    numbers = text.validation[:4000]
    words = text.decode(numbers)
    cells = [layer for layer in reader.layers if hasattr(layer, "cell")]
    activity = keras.Model(reader.input, cells[-1].output).predict(numbers[None], verbose=0)[0]  # (n, units)
    shown = []  # (row, column, number of the character)
    row = column = 0
    for place in range(words.find("\n\n", 300) + 2, len(words)):  # from the beginning of a paragraph
        if row == lines:
            break
        shown.append((row, column, place))
        column += 1
        if words[place] == "\n" or column == width:
            row, column = row + 1, 0
    figure = Figure(figsize=(11, 0.72 + 0.2 * lines * 3), layout="constrained")
    panels = figure.subplots(3, 1)
    for axis, (name, count) in zip(panels, places(words).items(), strict=True):
        centred = (activity - activity.mean(axis=0)) / (activity.std(axis=0) + 1e-9)
        correlation = (centred * ((count - count.mean()) / (count.std() + 1e-9))[:, None]).mean(axis=0)
        unit = int(np.abs(correlation).argmax())
        table = np.full((lines, width), np.nan)
        for row, column, place in shown:
            table[row, column] = activity[place, unit]
            glyph = words[place] if words[place] != "\n" else "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"
            axis.text(column, row, glyph, ha="center", va="center", fontsize=7, family="monospace")
        image = axis.imshow(table, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", alpha=0.6)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(
            f"unit {unit}: correlation {correlation[unit]:.2f} with the place in the {name}", fontsize=9
        )
    figure.colorbar(image, ax=panels, label="output of the unit", shrink=0.5)
    return figure


if __name__ == "__main__":
    launch.main(Config, train)
