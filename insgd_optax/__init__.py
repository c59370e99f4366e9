"""Input Normalized SGD: NLMS for deep networks, as Optax transformations."""

from insgd_optax._adaptive_filter import FilterResult as FilterResult
from insgd_optax._adaptive_filter import lms_filter as lms_filter
from insgd_optax._adaptive_filter import nlms_filter as nlms_filter
from insgd_optax._capture import capture_input_norms as capture_input_norms
from insgd_optax._capture import input_norm_shapes as input_norm_shapes
from insgd_optax._capture import sow_input_norm as sow_input_norm
from insgd_optax._covariance import InputCovariance as InputCovariance
from insgd_optax._covariance_capture import (
    capture_input_covariances as capture_input_covariances,
)
from insgd_optax._covariance_capture import (
    input_covariance_shapes as input_covariance_shapes,
)
from insgd_optax._covariance_capture import (
    sow_input_covariance as sow_input_covariance,
)
from insgd_optax._covariance_state import LayerCovariance as LayerCovariance
from insgd_optax._covariance_state import (
    ScaleByInputCovarianceState as ScaleByInputCovarianceState,
)
from insgd_optax._diagnostics import (
    covariance_condition_numbers as covariance_condition_numbers,
)
from insgd_optax._diagnostics import covariance_cosines as covariance_cosines
from insgd_optax._diagnostics import input_powers as input_powers
from insgd_optax._diagnostics import (
    learning_rate_multipliers as learning_rate_multipliers,
)
from insgd_optax._diagnostics import warn_at_floor as warn_at_floor
from insgd_optax._input_covariance import (
    scale_by_input_covariance as scale_by_input_covariance,
)
from insgd_optax._input_power import ScaleByInputPowerState as ScaleByInputPowerState
from insgd_optax._input_power import scale_by_input_power as scale_by_input_power
from insgd_optax._insgd import insgd as insgd
from insgd_optax._insgd import nlms as nlms
from insgd_optax._lms_newton import lms_newton as lms_newton
from insgd_optax._lsalr import lsalr as lsalr
from insgd_optax._lsalr import scale_by_lsalr as scale_by_lsalr
from insgd_optax._momentum import DampenedTraceState as DampenedTraceState
from insgd_optax._momentum import dampened_trace as dampened_trace
from insgd_optax._multi_steps import MultiSteps as MultiSteps
from insgd_optax._norms import input_norm as input_norm
from insgd_optax._output_layer import inverse_leaky_relu as inverse_leaky_relu
from insgd_optax._output_layer import inverse_relu as inverse_relu
from insgd_optax._output_layer import inverse_sigmoid as inverse_sigmoid
from insgd_optax._output_layer import inverse_tanh as inverse_tanh
from insgd_optax._output_layer import projection_loss as projection_loss
from insgd_optax._polyak import ClipByPolyakState as ClipByPolyakState
from insgd_optax._polyak import clip_by_polyak as clip_by_polyak
from insgd_optax._polyak import polyak_scale as polyak_scale
from insgd_optax._recursive_filters import (
    affine_projection_filter as affine_projection_filter,
)
from insgd_optax._recursive_filters import rls_filter as rls_filter
from insgd_optax._released import (
    capture_released_norms as capture_released_norms,
)
from insgd_optax._released import insgd_as_released as insgd_as_released
from insgd_optax._train_state import TrainState as TrainState
from insgd_optax._value_and_grad import (
    value_and_grad_with_input_covariances as value_and_grad_with_input_covariances,
)
from insgd_optax._value_and_grad import (
    value_and_grad_with_input_norms as value_and_grad_with_input_norms,
)
from insgd_optax._whiten_inputs import WhitenInputsState as WhitenInputsState
from insgd_optax._whiten_inputs import whiten_inputs as whiten_inputs

__version__ = "0.1.0"
