"""Layout and record of a run folder."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from train import files, json_fields, own_code, provenance
from train.command_line import option_file
from train.data.types import Dataset, Preprocessing, RecordedDataset
from train.errors import UserError, print_warning
from train.run import lock, record
from train.run_config import RunConfig
from train.training import parallel

RECORD = "record.json"
# The run's options, in a file for `--config`.
CONFIG = "config.yaml"


class RunFolder:
    """A run folder.

    Attributes:
        path: absolute path of the folder.
        record: contents of its record: "config", "dataset" and "preprocessing" (see
            `Dataset.describe` and `Dataset.describe_preprocessing`), "own_code" (see
            `RunConfig.own_code`), "environment" and, after a resume in a different
            environment, "resumed" (see `environments`).
    """

    def __init__(self, path: Path, record: dict[str, Any]):
        self.path = path
        self.record = record

    @property
    def metrics(self) -> Path:
        """File of metrics, with one line of JSON per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def plot(self) -> Path:
        """Plot of the test error over epochs."""
        return self.path / "test_error.png"

    @property
    def multipliers_plot(self) -> Path:
        """Plot of INSGD's learning rate multipliers by weight over epochs."""
        return self.path / "multipliers.png"

    @property
    def checkpoints(self) -> Path:
        """Folder of the latest checkpoints and the best."""
        return self.path / "checkpoints"

    @property
    def config(self) -> RunConfig:
        """The options of the run."""
        return RunConfig.from_json(self.record["config"])

    def record_options(self, config: RunConfig) -> None:
        """Records the options that `--resume` changed.

        `runs_dir` and `run_dir` keep their recorded values.

        Args:
            config: all options; only those in `FREE_ON_RESUME` may differ.
        """
        places = {name: getattr(self.config, name) for name in ("runs_dir", "run_dir")}
        options = dataclasses.replace(config, resume=None, **places).to_json()
        if options != self.config.to_json():
            self._write(config=options)
            self.write_config()
        # The run may have been killed before this, or started by an earlier version.
        elif not (self.path / CONFIG).exists():
            self.write_config()

    def write_config(self) -> None:
        """Writes the options to a file that repeats the run."""
        text = option_file.to_text(self.record["config"], str(self.path / CONFIG))
        files.write(self.path / CONFIG, text.encode())

    def record_preprocessing(self, dataset: Dataset) -> None:
        """Records how images are normalized, which earlier versions did not."""
        if "preprocessing" not in self.record:
            self._write(preprocessing=dataset.describe_preprocessing())

    def _write(self, **parts: Any) -> None:
        self.record |= parts
        files.write(self.path / RECORD, record.encode(self.record))

    def recorded_dataset(self) -> RecordedDataset:
        """Returns the description of the run's dataset.

        Raises:
            UserError: if the record lacks a field of the dataset, or if an earlier
                version wrote it, without the normalization of images, and the dataset
                cannot be loaded to compute it.
        """
        recorded = self.record["dataset"]
        try:
            return RecordedDataset(
                name=recorded["name"],
                train=recorded["train_images"],
                test=recorded["test_images"],
                class_names=tuple(recorded["class_names"]),
                shape=tuple(recorded["image_shape"]),
                preprocessing=self._preprocessing(),
            )
        except KeyError as error:
            raise UserError(
                f"{self.path / RECORD} is damaged or of another version: its 'dataset' "
                f"has no {error}. Restore it from a backup, or start a new run."
            ) from error

    def _preprocessing(self) -> Preprocessing:
        if "preprocessing" in self.record:
            recorded = self.record["preprocessing"]
            return Preprocessing(
                mean=tuple(recorded["mean"]),
                std=tuple(recorded["std"]),
                shorter_side=recorded.get("shorter_side"),
            )
        try:
            dataset = self.config.load_dataset()
            self.check_dataset(dataset.describe())
        except (UserError, OSError) as error:
            raise UserError(
                f"{self.path / RECORD} was written by an earlier version, without the "
                "mean and standard deviation of the images, which cannot be computed "
                f"from the dataset: {str(error).removesuffix('.')}. Once the dataset "
                f"can be loaded, --resume {self.path} records them."
            ) from error
        return dataset.preprocessing

    @property
    def has_fingerprint(self) -> bool:
        """Whether the record has a fingerprint; earlier versions wrote none."""
        return "fingerprint" in self.record["dataset"]

    def check_dataset(self, description: dict[str, Any]) -> None:
        """Raises unless the dataset is that of the run.

        The fingerprint is not compared if an earlier version did not record it.
        """
        recorded = self.record["dataset"]
        if "files" in description and "files" not in recorded and self.has_fingerprint:
            # Earlier versions recorded only the hash of a folder's files.
            description = description | {"fingerprint": description["files"]}
            del description["files"]
        for name, value in description.items():
            if name == "fingerprint" and not self.has_fingerprint:
                continue
            if recorded.get(name) != value:
                what = (
                    "images, labels or file names have changed: fingerprint"
                    if name == "fingerprint"
                    else name
                )
                raise UserError(
                    f"The dataset does not match that of the run {self.path}: {what} "
                    f"was {recorded.get(name)}, is {value}. Restore the original data, "
                    "or start a new run."
                )

    def changed_code(self) -> list[str]:
        """Returns references, MODULE:NAME, to the user's own code that has changed.

        Records of earlier versions have no checksums, so no change is found.
        """
        recorded = self.record.get("own_code", {})
        return [
            name
            for name, checksum in self.config.own_code().items()
            if recorded.get(name) not in (None, checksum)
        ]

    @property
    def code_warning(self) -> str | None:
        """A warning if the user's own code has changed since the run was started."""
        if not (changed := self.changed_code()):
            return None
        return (
            f"the code of {' and '.join(changed)} has changed since the run "
            f"{self.path} was started."
        )

    @property
    def environments(self) -> list[dict[str, Any]]:
        """The environments, see `provenance.describe`, in which the run was trained."""
        first = self.record.get("environment")
        resumed = self.record.get("resumed", [])
        return [each for each in (first, *resumed) if each is not None]

    def record_environment(self, environment: dict[str, Any]) -> None:
        """Records a resumed run's environment; warns if it may change the results."""
        if self.code_warning is not None:
            print_warning(self.code_warning)
        last = self.environments[-1] if self.environments else {}
        changes = provenance.changes(last, environment)
        if changes:
            print_warning(
                f"{'; '.join(changes)}. From here on, the last bits of the "
                "results may differ from those of an uninterrupted "
                f"run.{_masks(last, environment)}"
            )
        if {**last, "command": None} != {**environment, "command": None}:
            self._write(resumed=[*self.record.get("resumed", []), environment])

    def warn_without_fingerprint(self) -> None:
        """Warns if the record cannot reveal replaced images."""
        if not self.has_fingerprint:
            print_warning(
                f"{self.path / RECORD} was written by an earlier version "
                "without a fingerprint of the data, so replaced images go unnoticed."
            )


def create(
    config: RunConfig,
    dataset: dict[str, Any],
    environment: dict[str, Any] | None = None,
    preprocessing: dict[str, Any] | None = None,
) -> RunFolder:
    """Creates the folder of a new run.

    Args:
        config: the run's options.
        dataset: the result of `Dataset.describe`.
        environment: the result of `provenance.describe`.
        preprocessing: the result of `Dataset.describe_preprocessing`.

    Returns:
        The folder, with its record written.

    Raises:
        UserError: if `config.run_dir` exists and is not empty.
    """
    if config.run_dir is not None:
        path = config.run_dir.expanduser().absolute()
        if path.exists() and not (path.is_dir() and _is_new(path)):
            raise _already_exists(path, config)
        make(path, exist_ok=True)
    else:
        path = _make_next(config.runs_dir.expanduser().absolute(), config.readable_name)
    values = {
        "config": config.to_json(),
        "dataset": dataset,
        **({} if preprocessing is None else {"preprocessing": preprocessing}),
        **({"own_code": own} if (own := config.own_code()) else {}),
        "environment": environment or provenance.describe(),
    }
    try:
        files.create(path / RECORD, record.encode(values))
    except FileExistsError as error:  # Another command found the folder empty, too.
        raise _already_exists(path, config) from error
    folder = RunFolder(path, values)
    folder.write_config()
    return folder


def load(path: Path, trusted: Collection[str] | None = ()) -> RunFolder:
    """Opens a run folder.

    Args:
        path: the folder, which may come from an untrusted source.
        trusted: references, MODULE:NAME, to the user's own code that may be imported if
            the record names them; None for all.

    Raises:
        UserError: if it is not a run folder, its record is damaged, or it names code
            that is not trusted.
    """
    path = path.expanduser().absolute()
    try:
        folder = RunFolder(path, record.parse(files.read(path / RECORD)))
        if trusted is not None:
            _check_code(folder, trusted)
        _ = folder.config
        record.verify(folder.record)
    except OSError as error:
        raise UserError(
            f"{path} is not a run folder: {error.strerror}: {path / RECORD}. Pass "
            "the folder that a run printed in its last line, such as runs/NAME."
        ) from error
    except (json_fields.FieldError, ValueError, KeyError) as error:
        raise UserError(
            f"{path / RECORD} is damaged or of another version: {_reason(error)}. "
            "Restore it from a backup, or start a new run."
        ) from error
    return folder


def _check_code(folder: RunFolder, trusted: Collection[str]) -> None:
    """Raises if a record names code that the user did not name."""
    if options := own_code.options(folder.record["config"], trusted):
        raise UserError(
            f"{folder.path / RECORD} names code, which would be run:{options}. If you "
            f"trust it, add{options} to --resume, --trust-code to eval and predict, or "
            "trust_code=True to load_run."
        )


def _already_exists(path: Path, config: RunConfig) -> UserError:
    if not path.is_dir():
        return UserError(
            f"The run folder {path} is a file. Move it away, or use another --run-dir."
        )
    return UserError(
        f"The run folder {path} already exists and was left unchanged. Use --resume "
        f"{config.run_dir or path} to resume the run, or another --run-dir."
    )


def _masks(last: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Explains that dropout masks differ, where random keys depend on the device."""
    num_keys = [
        len(each.get("devices", []))
        if parallel.folds_in_device(each.get("parallel"))
        else None
        for each in (last, now)
    ]
    if num_keys[0] == num_keys[1] or last.get("parallel") is None:
        return ""
    return (
        " Dropout masks differ as well: shard_map and pmap draw them for each device."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return str(error).splitlines()[0].removesuffix(".")


def _make_next(parent: Path, name: str) -> Path:
    """Creates the first of `name`, `name-2`, `name-3`, ... that is new in `parent`."""
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            make(path)
        except FileExistsError:
            number += 1
        else:
            return path


def _is_new(path: Path) -> bool:
    """Returns whether a folder is empty except for leftovers of killed commands."""
    return all(
        entry.name == lock.NAME or files.is_partial(entry.name)
        for entry in path.iterdir()
    )


def make(path: Path, exist_ok: bool = False) -> None:
    """Creates a folder for a run.

    Raises:
        UserError: if it cannot be created.
        FileExistsError: if it exists and `exist_ok` is False.
    """
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        if isinstance(error, FileExistsError) and not exist_ok:
            raise
        raise UserError(
            f"The run folder {path} cannot be created: {error.strerror}. Use another "
            "--run-dir or --runs-dir."
        ) from error
