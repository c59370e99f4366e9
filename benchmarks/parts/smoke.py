"""(a) Whether every optimizer, network and strategy trains on the device.

Each case takes chunks of steps as `python -m train run` does, on random images. It
passes if the loss stays finite, the parameters are float32, no step is lost, the input
state is donated, and nothing is moved between host and device after the first chunk.
"""

import dataclasses
import itertools
import math
import time

import jax
import numpy as np

from benchmarks.settings import Sizes
from benchmarks.task import Failed, Result
from train.benchmark import workload as workloads
from train.benchmark.workload import Workload
from train.data.images.augment import Augmentation
from train.data.types import ImageDataset, Preprocessing, Split
from train.run.experiment import Experiment
from train.run_config import RunConfig
from train.training import optimizers, parallel

STRATEGIES = tuple(name for name in parallel.NAMES if name != "auto")
_CHUNKS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """One combination to try.

    Attributes:
        name: name of its file, without the part.
        workload: the network, its batch and its dtype.
        image_size: side of an image.
        optimizer: name of the optimizer.
        strategy: how the program is spread over devices.
    """

    name: str
    workload: Workload
    image_size: int
    optimizer: str
    strategy: str


def cases(sizes: Sizes) -> list[Case]:
    """All cases: strategies first, then networks, then optimizers.

    Each is tried with every dtype. In miniature, there is one case per optimizer:
    strategies and dtypes alternate, and the first cases go through the networks.
    """
    side = min(side for _, side in sizes.networks)
    found = []
    if sizes.separate_cases:
        for strategy, optimizer in itertools.product(
            STRATEGIES, sizes.strategy_optimizers
        ):
            name = f"strategy-{strategy}-{optimizer}"
            found.append((name, sizes.strategy_network, side, optimizer, strategy))
        for network, its_side in sizes.networks:
            name = f"network-{workloads.parse(network, (), '')[0].model}"
            found.append((name, network, its_side, "insgd-l2", "jit"))
        for optimizer in optimizers.NAMES:
            name = f"optimizer-{optimizer}"
            found.append((name, sizes.optimizer_network, side, optimizer, "jit"))
        turns = [(one, dtype) for one in found for dtype in sizes.dtypes]
    else:
        rest = itertools.repeat((sizes.optimizer_network, side))
        found = [
            (f"{optimizer}-{strategy}", network, its_side, optimizer, strategy)
            for optimizer, strategy, (network, its_side) in zip(
                optimizers.NAMES,
                itertools.cycle(STRATEGIES),
                itertools.chain(sizes.networks, rest),
                strict=False,
            )
        ]
        turns = list(zip(found, itertools.cycle(sizes.dtypes), strict=False))
    return [
        Case(
            f"{name}-{dtype}",
            workloads.parse(network, (), dtype)[0],
            its_side,
            optimizer,
            strategy,
        )
        for (name, network, its_side, optimizer, strategy), dtype in turns
    ]


def create(case: Case, chunk_steps: int) -> Experiment:
    """Creates the experiment of a case, as `python -m train run` does."""
    config = RunConfig(
        model=case.workload.model,
        model_options=case.workload.model_options,
        dtype=case.workload.dtype,  # type: ignore[arg-type]
        optimizer=case.optimizer,
        # So small that no network diverges within a few steps.
        learning_rate=1e-4,
        batch_size=case.workload.batch_size,
        parallel=case.strategy,
        chunk_steps=chunk_steps,
    )
    samples = _CHUNKS * chunk_steps * case.workload.batch_size
    return Experiment(config, _random_images(samples, case.image_size))


def check(case: Case, chunk_steps: int) -> Result:
    """Runs three chunks of a case, and watches the second and third for transfers.

    Returns:
        What was seen.

    Raises:
        Failed: if a check fails.
    """
    began = time.perf_counter()
    experiment = create(case, chunk_steps)
    loop_state = experiment.start()
    loop_state = experiment.train_chunk(loop_state, 0, chunk_steps)
    jax.block_until_ready(loop_state)
    first = time.perf_counter() - began
    given = jax.tree.leaves(loop_state.state)
    try:
        with jax.transfer_guard("disallow_explicit"):
            for number in range(1, _CHUNKS):
                # The last chunk is timed: the others may compile a program.
                jax.block_until_ready(loop_state)
                began = time.perf_counter()
                step = number * chunk_steps
                loop_state = experiment.train_chunk(loop_state, step, chunk_steps)
    except Exception as error:  # JAX's error, whose type depends on the version.
        moved = _first_line(error)
        raise Failed(f"within a chunk: {moved}", {"moved": moved}) from error
    jax.block_until_ready(loop_state)
    seconds = time.perf_counter() - began
    found: Result = {
        "network": case.workload.network,
        "batch_size": case.workload.batch_size,
        "dtype": case.workload.dtype,
        "optimizer": case.optimizer,
        "strategy": case.strategy,
        "seconds_to_first_chunk": first,
        "seconds_per_step": seconds / chunk_steps,
        "loss": float(loop_state.metric_sums["loss"]) / (_CHUNKS * chunk_steps),
        "test_loss": float(experiment.evaluate(loop_state.state)["loss"]),
        "steps": int(loop_state.state.step),
        # Scalars that a step writes but does not read are not passed to its program.
        "donated": all(leaf.is_deleted() for leaf in given if leaf.ndim),
        "parameter_dtypes": sorted(
            {str(leaf.dtype) for leaf in jax.tree.leaves(loop_state.state.params)}
        ),
    }
    wrong = [
        words
        for words, right in {
            "the loss is not finite": math.isfinite(found["loss"])
            and math.isfinite(found["test_loss"]),
            "the state was copied, not donated": found["donated"],
            "parameters are not float32": found["parameter_dtypes"] == ["float32"],
            "steps were lost": found["steps"] == _CHUNKS * chunk_steps,
        }.items()
        if not right
    ]
    if wrong:
        raise Failed("; ".join(wrong), found)
    return found


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:500]


def _random_images(samples: int, side: int) -> ImageDataset:
    rng = np.random.default_rng(0)

    def split(samples: int) -> Split:
        shape = (samples, side, side, 3)
        labels = rng.integers(0, 10, samples).astype(np.int32)
        return Split(rng.integers(0, 256, shape).astype(np.uint8), labels)

    return ImageDataset(
        name="random",
        train=split(samples),
        test=split(max(1, samples // _CHUNKS)),
        class_names=tuple("0123456789"),
        preprocessing=Preprocessing(
            (0.5,) * 3, (0.25,) * 3, Augmentation(padding=side // 8, flip=True)
        ),
        fingerprint="random",
    )
