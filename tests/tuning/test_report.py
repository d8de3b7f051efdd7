"""Reports: all that MLflow has of a sweep or a study, on a page without links and four to eight of paper."""

import argparse
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from recipes.engine import store, tracking
from tuning import document, figures, paper, records, report

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of two fields and three seeds, of which one setting failed, as `tuning.sweep` leaves it."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    tags = {
        "recipe": "mlp_fashion",
        "kind": "sweep",
        "backend": "torch",
        "command": "python -m tuning.sweep ...",
    }
    run = tracking.start(uri, "mlp", "sweep mlp_fashion", {"epochs": 2, "seeds": 3}, tags)
    for activation, bonus in (("relu", 0.0), ("tanh", 0.05)):
        for rate in (0.001, 0.003, 0.01, 0.03, 0.1):
            for seed in range(3):
                label = f"activation={activation} learning_rate={rate}"
                params = {"activation": activation, "learning_rate": rate, "seed": seed, "data_dir": seed}
                tags = {"mlflow.parentRunId": run.id, "setting": label, "version.keras": "3.15.1"}
                child = tracking.start(uri, "mlp", label, params, tags)
                if activation == "relu" and rate == 0.1:
                    child.end("FAILED", error="the loss is nan at step 3 <&>")
                    continue
                value = 0.6 + bonus + 0.1 * rate + 0.01 * seed
                for step in (1, 2):
                    child.metrics({"val/accuracy": value * step / 2, "train/loss": 1 / step}, step)
                child.end("FINISHED")
    run.metrics({"best/val/accuracy": 0.67, "duration_seconds": 61.0}, 0)
    run.end("FINISHED")
    return uri, run.id


def test_a_report_tells_what_mlflow_has(swept, tmp_path, capsys):
    uri, run_id = swept
    report.main([run_id, "--tracking-uri", uri, "--folder", str(tmp_path / "new")])
    page, printed = capsys.readouterr().out.split()
    text = Path(page).read_text(encoding="utf-8")
    # Self-contained: no address of anything, and every picture within.
    assert not re.search(r"(?:src|href)=\"(?!data:image/png;base64,|#)|https?://|@import|url\(", text)
    assert text.count("data:image/png;base64,") >= 4
    values = 0.6 + 0.05 + 0.01 + 0.01 * np.arange(3)
    assert f"<td>{values.mean():.4g}</td><td>{values.std(ddof=1):.2g}</td>" in text
    assert (
        "3 of 30 training runs did not finish" in text and "the loss is nan at step 3 &lt;&amp;&gt;" in text
    )
    for words in (
        "KERAS_BACKEND=torch python -m tuning.sweep ...",
        f"python -m tuning.report {run_id}",
        "3.15.1",
        "61 s",
    ):
        assert words in text
    assert "predicts val/accuracy" in text  # importance
    assert 4 <= pages(printed) <= 8
    client, _ = store.connect(uri)
    kept = {file.path for file in client.list_artifacts(run_id, "report")}
    assert kept == {f"report/report-{run_id}.html", f"report/report-{run_id}.pdf"}


def pages(path):
    return len(re.findall(rb"/Type\s*/Page\b", Path(path).read_bytes()))


def test_only_what_varies_is_called_varied(swept):
    record = records.read(*swept)
    assert record.varied == ["activation", "learning_rate"] and record.metric == "val/accuracy"
    values, smaller = record.quantities["val/accuracy"]
    assert not smaller and len(values) == 9
    assert values["activation=relu learning_rate=0.001"] == pytest.approx([0.6001, 0.6101, 0.6201])


def test_a_forest_that_predicts_nothing_weighs_nothing(swept):
    record = records.read(*swept)
    noise = np.random.default_rng(0).normal(size=len(record.trials))
    trials = [
        dataclasses.replace(trial, metrics={**trial.metrics, "val/accuracy": value})
        for trial, value in zip(record.trials, noise, strict=True)
    ]
    understood, puzzled = (
        report.importance(each) for each in (record, dataclasses.replace(record, trials=trials))
    )
    assert "does not predict" in puzzled[0].text and "does not predict" not in understood[0].text
    assert len(puzzled) == len(understood) - 1 == 2  # without the picture of the importances


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["0" * 32], "there is no run '000"),
        (["CHILD"], "run CHILD is neither a sweep nor a study"),
        (
            ["RUN", "--metric", "val/acuracy"],
            "unknown value of --metric 'val/acuracy': did you mean 'val/accuracy'?",
        ),
        ([], "the following arguments are required: run_id"),
    ],
)
def test_what_cannot_be_reported_is_said_in_a_sentence(words, sentence, swept, tmp_path, capsys):
    uri, run_id = swept
    child = records.read(uri, run_id).trials[0].id
    given = [{"RUN": run_id, "CHILD": child}.get(word, word) for word in words]
    with pytest.raises(SystemExit) as stop:
        report.main([*given, "--tracking-uri", uri, "--folder", str(tmp_path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence.replace('CHILD', child)}")
    assert not list(tmp_path.iterdir())


def test_long_tables_are_divided_and_nothing_is_lost(tmp_path):
    rows = [(f"setting {k}", "1.0", "0.1", "0.9 ... 1.1", "3") for k in range(150)]
    table = document.Table(("setting", "mean", "std", "95 % interval", "seeds"), rows, "many")
    sections = [document.Section("Results", [table])]
    path = tmp_path / "long.pdf"
    count = paper.write(path, "Question?", "subtitle", sections)
    assert count == pages(path) and 3 <= count <= 5


def test_a_thousand_settings_are_a_table_of_the_best():
    values = {f"setting {k}": [float(k)] for k in range(1000)}
    table, more, *_ = report.results(argparse.Namespace(quantities={"val/accuracy": (values, False)}))
    assert len(table.rows) == report.LISTED and table.rows[0][0] == "setting 999"
    assert more.text == f"{1000 - report.LISTED} more settings follow, down to 0."


@pytest.mark.parametrize("end", ["FAILED", None])
def test_a_sweep_that_failed_or_is_under_way_tells_what_it_has(end, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tags = {"recipe": "mlp_fashion", "kind": "sweep", "metric": "val/loss", "backend": "torch"}
    run = tracking.start(uri, "mlp", "sweep mlp_fashion", {}, tags)
    child_tags = {"mlflow.parentRunId": run.id, "setting": "units=4"}
    tracking.start(uri, "mlp", "units=2", {"units": 2}, child_tags).end("FAILED", "the loss is nan")
    child = tracking.start(uri, "mlp", "units=4", {"units": 4, "seed": 0}, child_tags)
    child.metrics({"val/loss": 0.25}, 1)
    child.end("FINISHED")
    if end:
        run.end(end, "the server went away")
    page, _ = report.write(run.id, uri, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "How does val/loss of mlp_fashion depend" in text and "<td>0.25</td>" in text
    assert ("The sweep: the server went away" in text) == ("The sweep: " in text) == bool(end)
    assert "<td>duration</td>" in text if end else "duration unknown" in text
    if not end:
        run.end("KILLED")


def test_a_tables_header_stays_with_its_first_row():
    table = document.Table(("setting", "mean"), [("a", "1"), ("b", "2")], "accuracy")
    first, second, _ = paper._table(table)
    assert first.height > 2 * second.height
    (alone, _) = paper._table(document.Table(("setting", "mean"), []))
    assert alone.height == pytest.approx(second.height)


def test_what_is_at_the_foot_of_a_page_leaves_room_for_its_number(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(paper, "_text", lambda figure, x, y, text, *rest, **more: drawn.append((y, text)))
    section = document.Section("Results", [document.Text("nothing")])
    paper.write(tmp_path / "report.pdf", "What?", "sweep of " + "field, " * 40, [section])
    texts = [text for y, text in drawn if not text.endswith(" / 1")]
    assert len(texts) > 4 and max(map(len, texts)) <= 105


def test_labels_too_long_for_a_legend_stand_below_the_curves():
    curve = [[(1, 0.1), (2, 0.2)]]
    assert figures.bands({"short": curve}, "loss").axes[0].get_legend() is not None
    below = figures.bands({"optimizer=nesterov learning_rate=0.01": curve}, "loss")
    assert below.axes[0].get_legend() is None and len(below.legends) == 1


def test_sections_begin_a_page_only_where_pages_are_few(tmp_path):
    sections = [document.Section(f"part {k}", [document.Text("words " * 40)]) for k in range(12)]
    assert paper.write(tmp_path / "many.pdf", "Question?", "subtitle", sections) == 2
    assert paper.write(tmp_path / "few.pdf", "Question?", "subtitle", sections[:5]) == 5


def test_bands_take_the_steps_that_all_seeds_have():
    figure = figures.bands({"a": [[(0, 1.0), (1, 2.0), (2, 3.0)], [(0, 3.0), (2, 5.0)]]}, "loss")
    (line,) = figure.axes[0].lines
    assert line.get_xdata().tolist() == [0, 2] and line.get_ydata().tolist() == [2.0, 4.0]


def test_parallel_coordinates_spread_orders_of_magnitude():
    heights, ticks = figures._scaled([0.001, 0.01, 0.1])
    np.testing.assert_allclose(heights, [0, 0.5, 1])
    assert [text for _, text in ticks] == ["0.001", "0.01", "0.1"]
    heights, ticks = figures._scaled(["relu", "gelu", "relu"])
    assert heights[0] == heights[2] != heights[1] and {text for _, text in ticks} == {"relu", "gelu"}
