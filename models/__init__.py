"""The paper's networks in Flax Linen, created by name.

Images have shape (batch, height, width, channels); `__call__(x, train)` returns float32
logits. Parameters are in the collection "params", and the running statistics of batch
normalization in "batch_stats". Dropout uses the rng "dropout" when `train` is true.
"""

from models.errors import NetworkError as NetworkError
from models.errors import OptionError as OptionError
from models.registry import check_options as check_options
from models.registry import create as create
from models.registry import names as names
from models.registry import tiny as tiny
