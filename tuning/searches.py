"""What Ray Tune tries next and what it stops: searches and schedulers by the names of the command line."""

import argparse
import logging
import math
from typing import Any

from tuning import population
from tuning.comparison import smaller_is_better
from tuning.space import Space


def mode(metric: str) -> str:
    """A metric's sense, in Ray's word."""
    return "min" if smaller_is_better(metric) else "max"


def worst(metric: str) -> float:
    """What a failed trial is told to have reached."""
    return math.inf if smaller_is_better(metric) else -math.inf


def search(options: argparse.Namespace, seed: int) -> Any:
    """What draws settings near those that were good; None where all are drawn beforehand."""
    if options.search == "all":
        return None
    from ray.tune.search.optuna import OptunaSearch

    logging.getLogger("optuna").setLevel(logging.WARNING)
    if len(options.metrics) == 1:
        return OptunaSearch(metric=options.metric, mode=mode(options.metric), seed=seed)
    return OptunaSearch(metric=options.metrics, mode=[mode(metric) for metric in options.metrics], seed=seed)


def scheduler(options: argparse.Namespace, epochs: int, axes: Space, seed: int) -> Any:
    """What stops trials that do not promise much, or gives them better weights; None for neither."""
    from ray.tune import schedulers

    if options.scheduler == "none":
        return None
    common = {"metric": options.metric, "mode": mode(options.metric), "time_attr": "epoch"}
    if options.scheduler == "pbt":
        return population.scheduler(axes, options.interval, seed, **common)
    if options.scheduler == "median":
        return schedulers.MedianStoppingRule(
            grace_period=options.grace, min_samples_required=2, hard_stop=True, **common
        )
    return schedulers.ASHAScheduler(
        max_t=max(epochs, options.grace + 1), grace_period=options.grace, reduction_factor=3, **common
    )
