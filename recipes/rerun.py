"""Repeat a recorded run and say whether it gives the same metrics.

    python -m recipes.rerun RUN_ID [--tracking-uri URI]

The run is repeated as a new one, with the recorded parameters, on the recorded backend; its tag
`rerun.of` names the first. Exit code 0 if every metric is the same, bit for bit, and 1 if one is not; what
differs between the circumstances (versions, commit, device, data) is said.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Any

from recipes.engine import backend, launch, store
from recipes.engine.errors import RecipeError, usage_error

CLOCKED = ("second", "duration")  # parts of names of metrics that are about time, which never repeats
OWN = ("checkpoint_dir", "data_dir", "resume", "tracking_uri")  # where things are, not what is computed
CIRCUMSTANCES = ("version.", "mlflow.source.git.commit", "git.dirty", "device", "dataset.", "data.order")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m recipes.rerun", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", help="identifier of a finished run: in the first line that a run prints")
    parser.add_argument("--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI"))
    options = parser.parse_args()
    try:
        same = rerun(options.run, options.tracking_uri)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(0 if same else 1)


def rerun(run_id: str, tracking_uri: str | None = None) -> bool:
    """Repeat a run; whether all its metrics came out the same.

    Args:
        run_id: a finished run of a recipe.
        tracking_uri: where it is, and where the new one goes.

    Raises:
        RecipeError: no such run, it is not finished, or no run by itself; or the repetition failed.
    """
    client, uri = store.connect(tracking_uri)
    first = store.find(client, uri, run_id)
    name = first.data.tags.get("recipe")
    if first.info.status != "FINISHED" or first.data.tags.get("kind") == "sweep" or not name:
        raise usage_error(f"run {run_id} is not a finished run of a recipe: nothing to compare with")
    if "member" in first.data.tags:
        raise usage_error(f"run {run_id} is a member of a population: it took weights that others trained")
    backend.choose(["--backend", first.data.params["backend"]])
    recipe = importlib.import_module(f"recipes.{name}")
    params = {key: value for key, value in first.data.params.items() if key not in OWN}
    config = recipe.Config(**launch.recorded_fields(recipe.Config, params), tracking_uri=uri)
    launch.run_recipe(
        config, recipe.train, run_name=f"rerun of {first.info.run_name}", tags={"rerun.of": run_id}
    )
    second = client.search_runs(
        [first.info.experiment_id],
        f"tags.`rerun.of` = '{run_id}'",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )[0]
    changed = {
        key: (value, second.data.tags.get(key))
        for key, value in first.data.tags.items()
        if key.startswith(CIRCUMSTANCES) and second.data.tags.get(key) != value
    }
    for key, (was, now) in changed.items():
        print(f"{key}: was {was}, now {now}")
    different = compare(client, first, second)
    for line in different:
        print(line)
    verdict = "different" if different else "the same"
    print(f"run {second.info.run_id} repeats {run_id}: metrics are {verdict}")
    return not different


def compare(client: Any, first: Any, second: Any) -> list[str]:
    """A line for each metric whose curve is not the same in both runs, time apart."""
    lines = []
    for name in sorted({*first.data.metrics, *second.data.metrics}):
        if any(word in name for word in CLOCKED):
            continue
        was, now = (
            {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)}
            for run in (first, second)
        )
        if was != now:
            step = min(step for step in {*was, *now} if was.get(step) != now.get(step))
            lines.append(f"{name} differs from step {step} on: {was.get(step)} was, {now.get(step)} is now")
    return lines


if __name__ == "__main__":
    main()
