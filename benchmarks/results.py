"""A folder of results: one JSON file per task, written atomically."""

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

from benchmarks.task import Task
from train import files, strict_json
from train.errors import UserError

# Status of a task. Finished and failed tasks are done; the others are tried again.
FINISHED, FAILED, SKIPPED, STOPPED = "finished", "failed", "skipped", "stopped"
_FOLDER = "results"
_KEYS = {"name", "part", "status", "reason", "result", "seconds", "date", "environment"}

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Results:
    """The results in a folder.

    Attributes:
        folder: folder of `--out`; the files are in its subfolder.
    """

    folder: Path

    def path(self, name: str) -> Path:
        """The file of a task."""
        return self.folder / _FOLDER / f"{name}.json"

    def read(self, name: str) -> Record | None:
        """The record of a task; None if it has none yet.

        Raises:
            UserError: if the file was damaged.
        """
        path = self.path(name)
        try:
            record = json.loads(files.read(path))
        except FileNotFoundError:
            return None
        except ValueError:
            record = None
        if not (isinstance(record, dict) and record.keys() >= _KEYS):
            raise UserError(
                f"{path} is damaged. Remove it, so that the task is run again."
            )
        return record

    def is_done(self, name: str) -> bool:
        """Whether nothing is left to do."""
        record = self.read(name)
        return record is not None and record["status"] in (FINISHED, FAILED)

    def write(
        self,
        task: Task,
        status: str,
        *,
        seconds: float,
        environment: dict[str, Any],
        result: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> None:
        """Writes the record of a task atomically.

        Args:
            task: the task.
            status: status of the task.
            seconds: time of this attempt. If the previous one was stopped, its recorded
                time is added.
            environment: device, versions, commit, command and settings.
            result: what was measured.
            reason: why the task is not finished.
        """
        before = self.read(task.name)
        if before is not None and before["status"] == STOPPED:
            seconds += before["seconds"]
        record = {
            "name": task.name,
            "part": task.part,
            "title": task.title,
            "status": status,
            "reason": reason,
            "result": result,
            "seconds": round(seconds, 3),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "environment": environment,
        }
        path = self.path(task.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, strict_json.encode(record))

    def all(self) -> list[Record]:
        """All records, sorted by name."""
        paths = sorted((self.folder / _FOLDER).glob("*.json"))
        records = [self.read(path.stem) for path in paths]
        return [record for record in records if record is not None]

    def times(self) -> dict[str, int]:
        """Returns when each record was written, by name, in nanoseconds."""
        paths = (self.folder / _FOLDER).glob("*.json")
        return {path.stem: path.stat().st_mtime_ns for path in paths}

    def forget_failures(self) -> None:
        """Lets failed tasks be tried again."""
        for record in self.all():
            if record["status"] == FAILED:
                self.path(record["name"]).unlink()
