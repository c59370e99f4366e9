"""The released code's arithmetic in plain NumPy float64, with loops."""

import math

import numpy as np


def kappa(momentum):
    return math.sqrt(1 + 1e-6) / (math.sqrt(1 - momentum) + 1e-6)


def standardized(values):
    """z of the values that share one mean and one std."""
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        std = 0.001
    else:
        std = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return np.array([(v - mean) / max(std, 0.01) for v in values])


def power(values, p):
    return sum(abs(v) ** p for v in values)


def conv_powers(x, p):
    """P_c of each input channel, from x of shape (batch, height, width, channels)."""
    powers = []
    for c in range(x.shape[-1]):
        samples = [power(standardized(sample[..., c].ravel()), p) for sample in x]
        powers.append(sum(samples) / len(samples))
    return np.array(powers)


def dense_power(x, p):
    """P, from x of shape (batch, features)."""
    samples = [power(standardized(sample), p) for sample in x]
    return sum(samples) / len(samples) + 0.1


def tokens_as_is_power(x, p):
    """P, from x of shape (batch, tokens, features), standardized over the tokens."""
    z = np.zeros_like(x)
    for n in range(x.shape[0]):
        for d in range(x.shape[2]):
            z[n, :, d] = standardized(x[n, :, d])
    vectors = z.reshape(-1, x.shape[2])
    return sum(power(vector, p) for vector in vectors) / len(vectors) + 0.1


def factor(power, momentum):
    """kappa / max(log P, 0.01)."""
    log = math.log(power) if power > 0 else -math.inf
    return kappa(momentum) / max(log, 0.01)


def dense_factors(kernel_shape, power, momentum):
    return np.full(kernel_shape, factor(power, momentum))


def conv_factors(kernel_shape, powers, groups, momentum):
    """One factor per kernel entry: that of the input channel the entry multiplies."""
    *_, channels_of_group, features = kernel_shape
    factors = np.zeros(kernel_shape)
    for c in range(channels_of_group):
        for f in range(features):
            group = f // (features // groups)
            channel = group * channels_of_group + c
            factors[..., c, f] = factor(powers[channel], momentum)
    return factors


def step(w, v, g, factors, *, learning_rate, momentum, nesterov, weight_decay):
    """One step of one weight; v is None at the first. Returns w and V."""
    d = g + weight_decay * w
    v = d if v is None else momentum * v + d
    direction = d + momentum * v if nesterov else v
    return w - learning_rate * factors * direction, v
