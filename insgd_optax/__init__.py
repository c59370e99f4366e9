"""Input Normalized SGD: NLMS for deep networks, as Optax transformations."""

from insgd_optax._capture import capture_input_norms as capture_input_norms
from insgd_optax._capture import input_norm_shapes as input_norm_shapes
from insgd_optax._capture import sow_input_norm as sow_input_norm
from insgd_optax._diagnostics import input_powers as input_powers
from insgd_optax._diagnostics import (
    learning_rate_multipliers as learning_rate_multipliers,
)
from insgd_optax._input_power import ScaleByInputPowerState as ScaleByInputPowerState
from insgd_optax._input_power import scale_by_input_power as scale_by_input_power
from insgd_optax._insgd import insgd as insgd
from insgd_optax._momentum import DampenedTraceState as DampenedTraceState
from insgd_optax._momentum import dampened_trace as dampened_trace
from insgd_optax._multi_steps import MultiSteps as MultiSteps
from insgd_optax._norms import input_norm as input_norm
from insgd_optax._train_state import TrainState as TrainState
from insgd_optax._value_and_grad import (
    value_and_grad_with_input_norms as value_and_grad_with_input_norms,
)

__version__ = "0.1.0"
