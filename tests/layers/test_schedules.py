"""Schedules: the curves of Keras and torch, their own corners, serialisation, no recompilation."""

import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layers import optimizers, schedules

KERAS_TWINS = [
    ("ExponentialDecay", {"initial_learning_rate": 0.5, "decay_steps": 7, "decay_rate": 0.3}),
    (
        "ExponentialDecay",
        {"initial_learning_rate": 0.5, "decay_steps": 7, "decay_rate": 0.3, "staircase": True},
    ),
    ("PiecewiseConstantDecay", {"boundaries": [3, 10], "values": [1.0, 0.5, 0.1]}),
    ("PolynomialDecay", {"initial_learning_rate": 0.5, "decay_steps": 10}),
    (
        "PolynomialDecay",
        {
            "initial_learning_rate": 0.5,
            "decay_steps": 4,
            "end_learning_rate": 0.1,
            "power": 2.0,
            "cycle": True,
        },
    ),
    ("CosineDecay", {"initial_learning_rate": 0.5, "decay_steps": 10}),
    (
        "CosineDecay",
        {
            "initial_learning_rate": 0.1,
            "decay_steps": 8,
            "alpha": 0.2,
            "warmup_target": 0.9,
            "warmup_steps": 4,
        },
    ),
    ("CosineDecayRestarts", {"initial_learning_rate": 0.5, "first_decay_steps": 3}),
    (
        "CosineDecayRestarts",
        {"initial_learning_rate": 0.5, "first_decay_steps": 5, "t_mul": 1.0, "m_mul": 0.7, "alpha": 0.1},
    ),
]

ONE_OF_EACH = [
    schedules.Constant(0.3),
    schedules.StepDecay(0.3, 5),
    schedules.OneCycle(1.0, 10),
    schedules.Cyclical(0.1, 1.0, 3, mode="exp_range", gamma=0.9),
    schedules.LinearWarmup(schedules.CosineDecay(0.5, 10), 3, 0.01),
    *(getattr(schedules, name)(**arguments) for name, arguments in KERAS_TWINS[::2]),
]


def at(schedule, steps):
    """The rates at these steps, an int tensor as an optimizer passes it; computed all at once."""
    return keras.ops.convert_to_numpy(schedule(keras.ops.convert_to_tensor(np.asarray(steps, "int32"))))


@pytest.mark.parametrize(("name", "arguments"), KERAS_TWINS)
def test_curve_config_and_name_equal_keras(name, arguments):
    ours = getattr(schedules, name)(**arguments)
    theirs = getattr(keras.optimizers.schedules, name)(**arguments)
    # Past the end, and at a restart; Keras' conditions take one step at a time.
    steps = [0, 1, 3, 4, 8, 11, 21]
    expected = [float(theirs(keras.ops.convert_to_tensor(step, "int32"))) for step in steps]
    np.testing.assert_allclose(at(ours, steps), expected, rtol=2e-6, atol=1e-8)
    assert ours.get_config() == theirs.get_config()


# From torch.optim.lr_scheduler.OneCycleLR(sgd, 1.0, 10), and (sgd, 1.0, 9, 0.4, "linear", div_factor=10,
# final_div_factor=100), torch 2.13.
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {"total_steps": 10},
            [0.04, 0.52, 1.0, 0.9504846, 0.8117457, 0.611262, 0.388742, 0.1882583, 0.04951937, 4e-06],
        ),
        (
            {
                "total_steps": 9,
                "pct_start": 0.4,
                "div_factor": 10.0,
                "final_div_factor": 100.0,
                "anneal_strategy": "linear",
            },
            [0.1, 0.4461538, 0.7923077, 0.926, 0.741, 0.556, 0.371, 0.186, 0.001],
        ),
    ],
)
def test_one_cycle_equals_torch(arguments, expected):
    schedule = schedules.OneCycle(1.0, **arguments)
    np.testing.assert_allclose(at(schedule, np.arange(len(expected))), expected, rtol=1e-5, atol=1e-7)
    assert at(schedule, [500])[0] == pytest.approx(expected[-1], abs=1e-7)


def test_one_cycle_shorter_than_its_rise_starts_at_the_peak():
    np.testing.assert_allclose(at(schedules.OneCycle(1.0, 2), [0, 1]), [1.0, 4e-6], atol=1e-7)


# From torch.optim.lr_scheduler.CyclicLR(sgd, 0.1, 1.0, step_size_up=3, mode=..., gamma=...), torch 2.13.
@pytest.mark.parametrize(
    ("mode", "gamma", "expected"),
    [
        ("triangular", 1.0, [0.1, 0.4, 0.7, 1.0, 0.7, 0.4, 0.1, 0.4, 0.7, 1.0, 0.7, 0.4, 0.1]),
        ("triangular2", 1.0, [0.1, 0.4, 0.7, 1.0, 0.7, 0.4, 0.1, 0.25, 0.4, 0.55, 0.4, 0.25, 0.1]),
        (
            "exp_range",
            0.9,
            [
                *(0.1, 0.37, 0.586, 0.7561, 0.49366, 0.277147, 0.1),
                *(0.2434891, 0.3582803, 0.4486784, 0.3092071, 0.1941432, 0.1),
            ],
        ),
    ],
)
def test_cyclical_equals_torch(mode, gamma, expected):
    schedule = schedules.Cyclical(0.1, 1.0, 3, mode=mode, gamma=gamma)
    np.testing.assert_allclose(at(schedule, np.arange(13)), expected, rtol=1e-5)


def test_step_decay_by_hand():
    np.testing.assert_allclose(
        at(schedules.StepDecay(0.8, 4, 0.5), [0, 3, 4, 7, 8, 12]), [0.8, 0.8, 0.4, 0.4, 0.2, 0.1], rtol=1e-6
    )


def test_linear_warmup_around_any_schedule():
    inner = schedules.CosineDecay(0.8, 10, alpha=0.1)
    warm = schedules.LinearWarmup(inner, 4, initial_learning_rate=0.2)
    np.testing.assert_allclose(at(warm, [0, 1, 2, 3]), [0.2, 0.35, 0.5, 0.65], rtol=1e-6)
    np.testing.assert_allclose(at(warm, np.arange(4, 17)), at(inner, np.arange(13)), rtol=1e-6)
    np.testing.assert_allclose(at(schedules.LinearWarmup(0.5, 2), [0, 1, 2, 9]), [0, 0.25, 0.5, 0.5])
    np.testing.assert_allclose(at(schedules.LinearWarmup(inner, 0), [0, 5]), at(inner, [0, 5]))
    theirs = schedules.LinearWarmup(keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.25), 2)
    np.testing.assert_allclose(
        [float(theirs(keras.ops.convert_to_tensor(t))) for t in (1, 2, 4)], [0.25, 0.5, 0.125], rtol=1e-6
    )


@pytest.mark.parametrize("schedule", ONE_OF_EACH, ids=lambda s: type(s).__name__)
def test_config_round_trip_through_json_and_an_optimizer(schedule):
    optimizer = optimizers.SGD(schedule)
    described = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    again = keras.optimizers.deserialize(described)
    steps = np.arange(0, 13)
    np.testing.assert_array_equal(at(again._learning_rate, steps), at(schedule, steps))
    assert type(again._learning_rate) is type(schedule)


def test_an_optimizer_follows_its_schedule():
    weight = keras.Variable([0.0])
    optimizer = optimizers.SGD(schedules.LinearWarmup(schedules.StepDecay(1.0, 2, 0.5), 2))
    seen = []
    for _ in range(6):
        before = float(weight.numpy()[0])
        optimizer.apply([keras.ops.ones((1,))], [weight])
        seen.append(before - float(weight.numpy()[0]))
    np.testing.assert_allclose(seen, [0.0, 0.5, 1.0, 1.0, 0.5, 0.5], rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(
    total=st.integers(2, 500),
    start=st.floats(0.05, 0.95),
    strategy=st.sampled_from(["cos", "linear"]),
)
def test_one_cycle_stays_between_its_ends_and_its_peak(total, start, strategy):
    schedule = schedules.OneCycle(0.7, total, pct_start=start, anneal_strategy=strategy)
    rates = at(schedule, np.linspace(0, total + 10, 16).astype("int32"))
    assert (rates <= 0.7 * (1 + 1e-6)).all()
    assert (rates >= 0.7 / 25 / 1e4 * (1 - 1e-2)).all()


@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.StepDecay(0.1, 0), "`decay_steps` must be > 0"),
        (lambda: schedules.ExponentialDecay(0.1, -1, 0.5), "`decay_steps` must be > 0"),
        (lambda: schedules.PolynomialDecay(0.1, 0), "`decay_steps` must be > 0"),
        (lambda: schedules.CosineDecay(0.1, 0), "`decay_steps` must be > 0"),
        (lambda: schedules.CosineDecayRestarts(0.1, 0), "`first_decay_steps` must be > 0"),
        (lambda: schedules.PiecewiseConstantDecay([1], [0.1]), "1 less than the length of values"),
        (lambda: schedules.OneCycle(0.1, 1), "`total_steps` must be >= 2"),
        (lambda: schedules.OneCycle(0.1, 10, pct_start=1.0), "`pct_start` must be in"),
        (lambda: schedules.OneCycle(0.1, 10, anneal_strategy="cosine"), "`anneal_strategy` must be one of"),
        (lambda: schedules.Cyclical(0.1, 1.0, 0), "`step_size` must be > 0"),
        (lambda: schedules.Cyclical(0.1, 1.0, 3, mode="square"), "`mode` must be one of"),
        (lambda: schedules.LinearWarmup(0.1, -1), "`warmup_steps` must be >= 0"),
    ],
)
def test_errors_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
