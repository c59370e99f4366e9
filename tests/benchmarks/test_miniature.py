"""All of `python -m benchmarks gpu` at tiny sizes: killed, stopped, and resumed."""

import importlib.util
import signal
import time

import pytest

from benchmarks import pieces, plan
from benchmarks.results import Results
from benchmarks.settings import Settings
from tests.train import processes


@pytest.mark.slow
def test_the_miniature_resumes_after_sigkill_and_sigterm(tmp_path):
    out = tmp_path / "out"
    store = Results(out)
    command = ["benchmarks", "gpu", "--miniature", "--out", str(out)]

    def interrupt(number, happened):
        with processes.started([command], tmp_path) as (process,):
            while not happened():
                assert process.poll() is None, (tmp_path / "0.log").read_text()
                time.sleep(0.2)
            process.send_signal(number)
            return process.wait(100)

    assert interrupt(signal.SIGKILL, lambda: len(store.all()) > 1) == -signal.SIGKILL
    done = {record["name"]: record for record in store.all()}
    began = time.time()

    def trains():
        # The worker of the killed command exits by itself; then another one starts.
        current = pieces.current(out)
        begun = current.exists() and current.stat().st_mtime > began
        return begun and list(out.glob("runs/*/metrics.jsonl"))

    status = interrupt(signal.SIGTERM, trains)
    assert status == 128 + signal.SIGTERM
    statuses, (output,) = processes.finish([command], tmp_path, timeout=1500)
    assert statuses == [0], output

    records = {record["name"]: record for record in store.all()}
    tasks = plan.tasks(Settings(True, None), out)
    assert records.keys() == {task.name for task in tasks}
    for name, record in records.items():
        skipped = record["part"] == "d" and not importlib.util.find_spec("torch")
        expected = "skipped" if skipped else "finished"
        assert record["status"] == expected, f"{name}: {record['reason']}"
        environment = record["environment"]
        assert environment["devices"]
        assert environment["versions"]["optax"]
        assert environment["command"].startswith("python -m benchmarks gpu")
        assert environment["settings"]["miniature"]
        assert record["date"]
    # Finished tasks are not repeated.
    assert {name: records[name] for name in done} == done
    values = records["e-table6-1seed"]["result"]["values"]
    assert [row["control"] for row in values["rows"]] == [
        "",
        "SGD at INSGD's effective rate",
        "scope layer",
        "normalizer log1p",
    ]
    assert all(row["measured"] for row in values["rows"])
    assert len(records["c-resnet20-sgd"]["result"]["test_top1"]) == 2

    report = ["benchmarks", "report", "--out", str(out)]
    statuses, (output,) = processes.finish([report], tmp_path)
    assert statuses == [0], output
    assert (out / "report.md").read_text().strip() in output
    for title in plan.PARTS.values():
        assert title in output
