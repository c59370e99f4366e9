"""The scripts of docs/examples: each starts as documented."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from train.training import optimizers

from ..insgd_optax import docs_examples
from . import processes

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
LOAD = """
import runpy, sys
from pathlib import Path
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(sys.argv[2])]
for path in sorted(Path(sys.argv[1]).glob("*.py")):
    before = list(sys.path)
    # Like `python PATH`: only the script's own path may find what it imports.
    for name in [m for m in sys.modules if m.partition(".")[0] in ("models", "train")]:
        del sys.modules[name]
    runpy.run_path(str(path))
    print(path.stem)
    sys.path[:] = before
"""


def test_every_example_finds_its_modules_from_anywhere(tmp_path):
    command = ["-P", "-c", LOAD, str(EXAMPLES), str(EXAMPLES.parents[1])]
    result = processes.python(*command, cwd=tmp_path)
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert set(result.stdout.split()) >= scripts


def test_the_step_bounds_are_optimizers_that_measure_the_inputs(monkeypatch):
    script = docs_examples.load("step_bounds")
    commands = []
    monkeypatch.setattr("train.cli.main", commands.append)
    monkeypatch.setattr("sys.argv", ["step_bounds.py"])
    known = dict(optimizers._OPTIMIZERS)
    monkeypatch.setattr(optimizers, "_OPTIMIZERS", known)
    script.main()
    [[command, _, *names]] = commands
    assert command == "compare" and len(names) == sum(map(len, script.SIZES.values()))
    model, x = nn.Dense(2), jnp.ones((3, 4))
    variables = model.init(jax.random.key(0), x)
    for name in names[:1] + names[-1:]:
        optimizer = optimizers.create(name, lambda _: 1.0, optimizers.OptimizerConfig())
        with optimizer.capture(jnp.int32(0)):
            _, sown = model.apply(variables, x, mutable=["intermediates"])
        grads = jax.tree.map(jnp.ones_like, variables["params"])
        updates, _ = optimizer.tx.update(
            grads,
            optimizer.tx.init(grads),
            variables["params"],
            value=jnp.float32(1),
            input_norms=sown,
        )
        assert float(updates["kernel"][0, 0]) < 0
