"""`python -m benchmarks report`: a folder of results as Markdown."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plan, results
from benchmarks.parts.steps import CONTROL
from benchmarks.results import Record, Results
from train import files, markdown
from train.errors import UserError

_MEBI = 2**20


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Print and write the tables of a folder of results."""

    out: Path
    """Folder of the results; report.md is written to it."""


def report(config: ReportConfig) -> int:
    """Prints the tables, and writes them.

    Raises:
        UserError: if there are no results.
    """
    out = config.out.expanduser().absolute()
    records = Results(out).all()
    if not records:
        raise UserError(
            f"{out} has no results. Run: python -m benchmarks gpu --out {out}"
        )
    text = to_markdown(records)
    files.write(out / "report.md", text.encode())
    print(text)
    return 0


def to_markdown(records: Sequence[Record]) -> str:
    """Formats the origin of the results, and a section with those of each part."""
    sections = [_origin(records)]
    for part, title in plan.PARTS.items():
        of_part = [record for record in records if record["part"] == part]
        if not of_part:
            continue
        sections.append(f"## ({part}) {title}")
        done = [r for r in of_part if r["status"] == results.FINISHED]
        shown = _TABLES[part](of_part)
        sections += [shown] * bool(shown)
        sections += [_not_finished(of_part)] * (len(done) < len(of_part))
    return "\n\n".join(sections) + "\n"


def _origin(records: Sequence[Record]) -> str:
    environments = [record["environment"] for record in records]

    def all_of(of_each: Callable[[Any], Any]) -> str:
        return "; ".join(sorted({str(of_each(each)) for each in environments}))

    versions = all_of(
        lambda e: ", ".join(f"{k} {v}" for k, v in e["versions"].items() if v)
    )
    dates = [record["date"] for record in records]
    lines = [
        f"Devices: {all_of(lambda e: ', '.join(e['devices']))}.",
        f"Commit: {all_of(lambda e: e['commit'])}.",
        f"Python {all_of(lambda e: e['python'])}, {versions}.",
        f"Dates: {min(dates)} to {max(dates)}.",
    ]
    miniature = any(each["settings"]["miniature"] for each in environments)
    warning = "These are --miniature results: they test the code and measure nothing."
    return "\n".join(["# Results of `python -m benchmarks gpu`", "", *lines]) + (
        f"\n\n**{warning}**" * miniature
    )


def _with_result(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record["result"]]


def _not_finished(records: Sequence[Record]) -> str:
    rows = [
        (r["name"], r["status"], " ".join((r["reason"] or "").split())[:300])
        for r in records
        if r["status"] != results.FINISHED
    ]
    cells = [[cell.replace("|", "/") for cell in row] for row in rows]
    return markdown.table(("Task", "Status", "Reason"), cells)


def _smoke(records: Sequence[Record]) -> str:
    header = ["Case", "Network", "Batch", "Status", "First chunk, s", "Step, ms"]
    rows = []
    for record in _with_result(records):
        found = record["result"]
        if "seconds_per_step" not in found:
            continue
        rows.append(
            [
                record["name"].removeprefix("a-"),
                found["network"],
                str(found["batch_size"]),
                record["status"],
                f"{found['seconds_to_first_chunk']:.1f}",
                f"{1000 * found['seconds_per_step']:.2f}",
            ]
        )
    parts = [markdown.table(header, rows)] * bool(rows)
    # Also those that crashed, which have no result.
    cases = [r["status"] for r in records if not r["name"].startswith("a-profile-")]
    passed, failed = cases.count(results.FINISHED), cases.count(results.FAILED)
    if passed + failed:
        parts.append(
            f"{passed} of {passed + failed} cases pass: the loss is finite, the state "
            "is donated, and nothing is moved between host and device while two "
            "chunks run."
        )
    profiles = [r for r in _with_result(records) if "busy" in r["result"]]
    if profiles:
        parts.append(_profiles(profiles))
    return "\n\n".join(parts)


def _profiles(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        found = record["result"]
        busy = found["busy"]
        rows.append(
            [
                found["optimizer"],
                found["network"],
                str(found["steps"]),
                str(found["events"]),
                "" if busy is None else f"{100 * busy:.1f} %",
                str(sum(found["copies_with_host"].values())),
            ]
        )
    header = ["Profile", "Network", "Steps", "Kernels and copies", "Device busy"]
    return markdown.table([*header, "Copies with the host"], rows)


def _steps(records: Sequence[Record]) -> str:
    tables = []
    for record in _with_result(records):
        found = record["result"]
        sgd = found["optimizers"].get("sgd", {})
        rows = [_step(name, one, sgd) for name, one in found["optimizers"].items()]
        header = ["Optimizer", "ms", "Over SGD (95 %)", "Images/s", "Temporary, MiB"]
        header += ["Extra state, bytes", "FLOP utilization"]
        header += ["Kernels and copies", "Kernels and copies, ms"]
        title = (
            f"{found['network']}, batch {found['batch_size']}, {found['dtype']}, "
            f"{found['image_size']}x{found['image_size']}, {found['rounds']} rounds:"
        )
        tables.append(f"{title}\n\n{markdown.table(header, rows)}")
        errors = [f"- {name}: {text}" for name, text in found["errors"].items()]
        tables += ["\n".join(errors)] * bool(errors)
    return "\n\n".join(tables)


def _step(name: str, found: dict[str, Any], sgd: dict[str, Any]) -> list[str]:
    memory, more, kernels, kernel_time = "", "", "", ""
    # Results of earlier versions have no profile, and those on CPUs no kernels.
    if (profile := found.get("profile")) and profile["events"]:
        kernels = f"{profile['events'] / profile['steps']:.0f}"
        kernel_time = f"{1000 * profile['device_seconds'] / profile['steps']:.3g}"
    if name != CONTROL:
        memory = f"{found['memory']['temporary'] / _MEBI:.1f}"
    if name != CONTROL and sgd:
        more = str(found["state_bytes"] - sgd["state_bytes"])
    share = found["utilization"]
    return [
        name,
        f"{1000 * found['seconds']:.3f}",
        _ratio(found["over_sgd"]),
        f"{found['images_per_second']:.0f}",
        memory,
        more,
        "" if share is None else f"{100 * share:.1f} %",
        kernels,
        kernel_time,
    ]


def _ratio(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    low, high = found["interval"]
    return f"{found['of_medians']:.3f} ({low:.3f} to {high:.3f})"


def _trained(records: Sequence[Record]) -> str:
    rows = []
    for record in _with_result(records):
        found = record["result"]
        if "last_top1" not in found:  # Stopped before the end.
            continue
        rows.append(
            [
                found["optimizer"],
                f"{found['learning_rate']:g}",
                found["dtype"],
                str(found["epochs"]),
                _seconds(found["train_and_test_seconds"]),
                _seconds(found["seconds_at_median"]),
                f"{100 * found['last_top1']:.2f}",
                f"{100 * found['best_top1']:.2f}",
            ]
        )
    header = ["Optimizer", "Learning rate", "Dtype", "Epochs", "Seconds"]
    header += ["At the median epoch", "Last epoch", "Best epoch"]
    note = (
        "Seconds of training and testing, including compilation; unknown if an epoch "
        "was resumed midway. At the median epoch: the median epoch's seconds times the "
        "number of epochs. Top-1 on the test images in percent, one seed; the best "
        "epoch is selected on the same images."
    )
    return f"{markdown.table(header, rows)}\n\n{note}" if rows else ""


def _seconds(found: float | None) -> str:
    return "" if found is None else f"{found:.1f}"


def _pytorch(records: Sequence[Record]) -> str:
    parts = []
    for record in _with_result(records):
        found = record["result"]
        if "steps" not in found:
            continue
        rows = [
            [
                name,
                f"{1000 * one['seconds']:.3f}",
                _ratio(one["over_pytorch"]),
                f"{one['images_per_second']:.0f}",
            ]
            for name, one in found["steps"].items()
        ]
        title = (
            f"{found['network']}, batch {found['batch_size']}, {found['dtype']}, "
            f"PyTorch {found['versions']['torch']}:"
        )
        header = ["Step", "ms", "Over PyTorch's fastest (95 %)", "Images/s"]
        parts.append(f"{title}\n\n{markdown.table(header, rows)}")
        parts += ["\n".join(f"- {text}" for text in found["errors"])] * bool(
            found["errors"]
        )
    trained = _trained(records)
    return "\n\n".join([*parts, *[trained] * bool(trained)])


def _reports(records: Sequence[Record]) -> str:
    # A table is made with more and more seeds; the last includes the earlier runs.
    last = {r["name"].rpartition("-")[0]: r for r in _with_result(records)}
    return "\n\n".join(r["result"]["markdown"].strip() for r in last.values())


_TABLES: dict[str, Callable[[Sequence[Record]], str]] = {
    "a": _smoke,
    "b": _steps,
    "c": _trained,
    "d": _pytorch,
    "e": _reports,
    "f": _reports,
}
