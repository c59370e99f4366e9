"""All tasks, the most valuable first."""

import fnmatch
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.parts import beside_pytorch, experiments, smoke, steps, trace
from benchmarks.parts.smoke import Case
from benchmarks.settings import Settings
from benchmarks.task import Result, Run, Task, Work
from train.benchmark import workload as workloads
from train.experiments.paper import controls, presets
from train.markdown import counted
from train.run_config import RunConfig

# For the estimates: a round has at least one call, of 20 steps on an accelerator.
_ROUND_STEPS = 20
_WARM_UP_ROUNDS = 3

PARTS = {
    "a": "Smoke test of strategies, networks and optimizers",
    "b": "Step time, memory and FLOP utilization",
    "c": "Full training of ResNet-20",
    "d": "PyTorch's SGD compared with ours",
    "e": "Tables 6 and 7 of the paper, with controls",
    "f": "Usable learning rates on ResNet-20",
}


def tasks(settings: Settings, out: Path, wanted: Sequence[str] = ()) -> list[Task]:
    """The tasks of a folder of results, in their order.

    Args:
        settings: settings of the folder.
        out: absolute path of the folder.
        wanted: letters of parts, or patterns of names; empty for all.
    """
    makers = (_smoke, _profiles, _steps, _resnet20, _pytorch, _tables, _rates)
    found = [task for make in makers for task in make(settings, out)]
    if not wanted:
        return found
    return [task for task in found if any(matches(task, one) for one in wanted)]


def matches(task: Task, wanted: str) -> bool:
    """Whether a task belongs to a part, such as "b", or its name fits a pattern."""
    return task.part == wanted or fnmatch.fnmatchcase(task.name, wanted)


def _smoke(settings: Settings, out: Path) -> list[Task]:
    chunk_steps = settings.sizes.chunk_steps
    return [
        Task(
            f"a-{case.name.replace('+', '-')}",
            f"Smoke test: {_words(case)}",
            _without_stopped(functools.partial(smoke.check, case, chunk_steps)),
            Work(programs=1, optimizers=(case.optimizer,)),
        )
        for case in smoke.cases(settings.sizes)
    ]


def _profiles(settings: Settings, out: Path) -> list[Task]:
    sizes = settings.sizes
    (workload,) = workloads.parse(sizes.strategy_network, (), sizes.dtype)
    side = min(side for _, side in sizes.networks)
    found = []
    for optimizer in sizes.profiled:
        case = Case(f"profile-{optimizer}", workload, side, optimizer, "jit")
        run = functools.partial(trace.profile, case, sizes.chunk_steps)
        title = f"Profile of a chunk: {_words(case)}"
        work = Work(programs=1, optimizers=(case.optimizer,))
        found.append(Task(f"a-{case.name}", title, _without_stopped(run), work))
    return found


def _words(case: Case) -> str:
    network, batch = case.workload.network, case.workload.batch_size
    parts = (network, f"batch {batch}", case.workload.dtype, case.optimizer)
    return ", ".join([*parts, case.strategy])


def _steps(settings: Settings, out: Path) -> list[Task]:
    networks = settings.sizes.steps
    return [
        *(_steps_of(*network, "", steps.OPTIMIZERS) for network in networks),
        _steps_of(*networks[0], "-whitened", steps.WHITENED),
    ]


def _steps_of(
    network: str,
    side: int,
    dtype: str,
    rounds: int,
    suffix: str,
    optimizers: tuple[str, ...],
) -> Task:
    (workload,) = workloads.parse(network, (), dtype)
    name = f"b-{workload.model}-{dtype}-batch{workload.batch_size}{suffix}"
    run = functools.partial(steps.measure_all, workload, side, rounds, optimizers)
    programs = len(optimizers)  # The control shares SGD's program.
    num_steps = _ROUND_STEPS * (rounds + _WARM_UP_ROUNDS) * (programs + 1)
    work = Work(
        programs,
        num_steps,
        workload=workload,
        image_size=side,
        optimizers=optimizers,
    )
    title = (
        f"Step of {workload.network}, batch {workload.batch_size}, {dtype}, "
        f"{side}x{side}, {', '.join(optimizers)}"
    )
    return Task(name, title, _without_stopped(run), work)


def _resnet20(settings: Settings, out: Path) -> list[Task]:
    epochs = settings.sizes.epochs
    return [
        Task(
            f"c-resnet20-{optimizer}",
            f"ResNet-20, {optimizer}, {epochs} epochs, {settings.sizes.dtype}",
            _without_stopped(
                functools.partial(experiments.train_resnet20, settings, out, optimizer)
            ),
            _runs(settings, 1, epochs, "resnet20", (optimizer,), settings.sizes.dtype),
            resumable=True,
        )
        for optimizer in experiments.RESNET20_RATES
    ]


def _pytorch(settings: Settings, out: Path) -> list[Task]:
    sizes = settings.sizes
    first, side, _, rounds = sizes.steps[0]
    batch = first.partition("@")[2]
    network = workloads.network_text("resnet20", sizes.resnet20)
    (workload,) = workloads.parse(f"{network}@{batch}", (), sizes.dtype)
    steps_run = functools.partial(beside_pytorch.measure_steps, workload, side, rounds)
    training_run = functools.partial(beside_pytorch.train_resnet20, settings, out)
    programs = 4  # SGD and INSGD in JAX, and PyTorch's SGD in two compiled modes.
    num_steps = _ROUND_STEPS * (rounds + _WARM_UP_ROUNDS) * programs
    return [
        Task(
            "d-pytorch-steps",
            f"Step of PyTorch's SGD and ours, {network}, {sizes.dtype}",
            _without_stopped(steps_run),
            Work(programs, num_steps, workload=workload, image_size=side),
        ),
        Task(
            "d-pytorch-resnet20",
            f"ResNet-20, PyTorch's SGD, {sizes.epochs} epochs, {sizes.dtype}",
            training_run,
            _runs(settings, 1, sizes.epochs, "resnet20", ("sgd",), sizes.dtype),
            resumable=True,
        ),
    ]


def _tables(settings: Settings, out: Path) -> list[Task]:
    sizes = settings.sizes
    found, done = [], 0
    for seeds in sizes.table_seeds:
        for number, rows in ((6, sizes.table6_rows), (7, sizes.table7_rows)):
            chosen = presets.TABLES[number].rows
            chosen = tuple(chosen[row - 1] for row in rows) if rows else chosen
            names = [str(row.options["optimizer"]) for row in chosen]
            num_rows = len(chosen) + sum(len(controls.names(name)) for name in names)
            run = functools.partial(
                experiments.paper_table, settings, out, number, rows, seeds
            )
            some = f", rows {' '.join(map(str, rows))}" if rows else ""
            title = f"Table {number}{some}, with controls, {counted(seeds, 'seed')}"
            work = _runs(
                settings,
                num_rows * (seeds - done),
                sizes.epochs,
                "custom_cnn",
                ("insgd-l2",),
                "float32",
            )
            name = f"e-table{number}-{seeds}seed{'s' * (seeds > 1)}"
            found.append(Task(name, title, _without_stopped(run), work, resumable=True))
        done = seeds
    return found


def _rates(settings: Settings, out: Path) -> list[Task]:
    rates = settings.sizes.rates
    # The learning rates of the grid, and one more at each end of the usable range.
    per_optimizer = rates.get("decades", 5) * rates["per_decade"] + 2
    num_runs = per_optimizer * len(rates["optimizers"])
    run = functools.partial(experiments.learning_rates, settings, out)
    work = _runs(
        settings,
        num_runs,
        rates["epochs"],
        "resnet20",
        ("insgd-l2",),
        settings.sizes.dtype,
    )
    title = f"Learning rates of {len(rates['optimizers'])} optimizers on ResNet-20"
    return [
        Task("f-learning-rates", title, _without_stopped(run), work, resumable=True)
    ]


def _runs(
    settings: Settings,
    runs: int,
    epochs: int,
    model: str,
    optimizers: tuple[str, ...],
    dtype: str,
) -> Work:
    """Returns the work of training runs at batch size 128."""
    batch = RunConfig.batch_size
    options = settings.sizes.resnet20 if model == "resnet20" else ()
    network = workloads.network_text(model, options)
    (workload,) = workloads.parse(f"{network}@{batch}", (), dtype)
    steps = runs * epochs * (settings.sizes.num_train // batch)
    side = 8 if settings.miniature else 32
    return Work(runs, steps, runs * epochs, workload, side, optimizers)


def _without_stopped(run: Callable[[], Result]) -> Run:
    """Makes a `Run` of a function that does not ask whether to stop."""
    return lambda stopped: run()
