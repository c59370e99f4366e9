"""Random edits of a run folder give an error and a status, never a traceback."""

import collections
import gc
import json
import shutil

import numpy as np
import pytest

from train import cli

EDITS = 100


def edit(path, rng):
    """Makes one random edit in a folder; returns its description."""
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not file.name.endswith(".png")
    )
    # Half of the edits are in files that this project writes.
    own = [path / "record.json", path / "metrics.jsonl"]
    file = (
        own[rng.integers(2)] if rng.random() < 0.5 else files[rng.integers(len(files))]
    )
    content = file.read_bytes()
    kind = list(_KINDS)[rng.integers(len(_KINDS))]
    edited = _KINDS[kind](content, rng)
    if edited is None:
        file.unlink()
    elif edited is OTHER_KIND:
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(edited)
    return f"{kind}: {file.relative_to(path)}"


OTHER_KIND = object()


def _overwrite(content, rng):
    start = int(rng.integers(max(1, len(content) - 8)))
    return content[:start] + rng.bytes(8) + content[start + 8 :]


def _other_value(content, rng):
    """Replaces the JSON value on a random line by one of another type."""
    lines = content.splitlines()
    for number in rng.permutation(len(lines)):
        name, colon, _ = lines[number].partition(b": ")
        if colon:
            values = (b"null", b"[]", b"{}", b'"word"', b"-1", b"1e999", b"true", b"0")
            lines[number] = name + b": " + values[rng.integers(len(values))] + b","
            break
    return b"\n".join(lines)


def _other_json(content, rng):
    """Replaces a random JSON value; the result is still JSON."""
    try:
        value = json.loads(content)
    except ValueError:
        return _other_value(content, rng)
    at = value
    while isinstance(at, dict) and at:
        name = sorted(at)[rng.integers(len(at))]
        if not isinstance(at[name], dict) or rng.random() < 0.2:
            others = (None, [], {}, "word", -1, 1e300, True, 0, [[]], {"a": 1})
            at[name] = others[rng.integers(len(others))]
            break
        at = at[name]
    return json.dumps(value).encode()


_KINDS = {
    "cut": lambda content, rng: content[: int(rng.integers(len(content) + 1))],
    "bytes": _overwrite,
    "value": _other_value,
    "json": _other_json,
    "removed": lambda content, rng: None,
    "folder": lambda content, rng: OTHER_KIND,
    "binary": lambda content, rng: rng.bytes(100),
    "empty": lambda content, rng: b"",
    "null": lambda content, rng: b"null",
    "list": lambda content, rng: b"[1, 2]",
    "nested": lambda content, rng: b"[" * 100_000,
    "twice": lambda content, rng: content + content,
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_no_edit_of_a_run_folder_causes_a_traceback(copy, cases, report, capsys):
    counts, failures = collections.Counter(), []
    for seed in range(cases(EDITS)):
        path = copy()
        rng = np.random.default_rng(seed)
        what = edit(path, rng)
        if rng.random() < 0.3:
            what += f", {edit(path, rng)}" if path.exists() else ""
        for name, command in (
            ("eval", ["eval", str(path)]),
            ("resume", ["--resume", str(path), "--epochs", "5"]),
        ):
            capsys.readouterr()
            try:
                status = cli.main(command)
            except SystemExit:
                status = "exit"
            except Exception as error:  # noqa: BLE001
                # What the command line would show as a traceback.
                status = "traceback"
                failures.append(
                    f"{seed} {name} {what}: {type(error).__name__}: {error}"
                )
            err = capsys.readouterr().err
            errors = [line for line in err.splitlines() if line.startswith("Error: ")]
            if status not in (0, 2) or (status == 2 and len(errors) != 1):
                failures.append(f"{seed} {name} {what}: {status}: {err[-300:]}")
            counts[f"{name} {status}"] += 1
    shutil.rmtree(path, ignore_errors=True)
    report(f"{cases(EDITS)} edits: {dict(sorted(counts.items()))}")
    gc.collect()
    assert not failures, "\n".join(failures)
