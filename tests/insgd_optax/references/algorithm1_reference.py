"""Algorithm 1 in NumPy float64, as plainly as it can be written.

Loops over samples, entries and weights; nothing is shared with the library.
"""

import math

import numpy as np


def norm_to_the_p(x, p):
    """||x||_p^p of one sample; the largest magnitude for p = inf."""
    total = 0.0
    for entry in np.asarray(x, np.float64).ravel():
        magnitude = abs(float(entry))
        if p == math.inf:
            total = max(total, magnitude)
        else:
            total += magnitude**p
    return total


def batch_norm_to_the_p(batch, p):
    """The mean over the samples of a mini-batch."""
    return sum(norm_to_the_p(sample, p) for sample in batch) / len(batch)


def divisor(power, normalizer, eps):
    if power == 0:
        return 1.0
    if normalizer == "log":
        return max(math.log(power), eps)
    if normalizer == "power":
        return eps + power
    if normalizer == "log1p":
        return 1 + math.log(1 + power)
    raise AssertionError(normalizer)


class Algorithm1:
    """The optimizer for a dict of weights, with the layer of each scaled weight."""

    def __init__(
        self,
        weights,
        layer_of,
        *,
        learning_rate,
        decay,
        momentum,
        dampening,
        nesterov,
        weight_decay,
        normalizer,
        eps,
    ):
        self.weights = {k: np.array(v, np.float64) for k, v in weights.items()}
        self.layer_of = layer_of  # weight name -> layer name; absent: not scaled
        self.learning_rate = learning_rate
        self.decay = decay
        self.momentum = momentum
        self.dampening = dampening
        self.nesterov = nesterov
        self.weight_decay = weight_decay
        self.normalizer = normalizer
        self.eps = eps
        self.t = 0
        self.power = {}
        self.buffer = {}

    def step(self, grads, norms):
        """One pass of the loop, with the gradients and each layer's input norm."""
        self.t += 1
        for layer, norm in norms.items():
            if self.t > 1:
                previous = self.decay * self.power[layer]
                self.power[layer] = previous + (1 - self.decay) * norm
            else:
                self.power[layer] = norm
        for name, w in self.weights.items():
            g = np.array(grads[name], np.float64)
            if name in self.layer_of:
                power = self.power[self.layer_of[name]]
                g = g / divisor(power, self.normalizer, self.eps)
            g = g + self.weight_decay * w
            if self.t > 1:
                b = self.momentum * self.buffer[name] + (1 - self.dampening) * g
            else:
                b = g
            self.buffer[name] = b
            if self.nesterov:
                b = g + self.momentum * b
            self.weights[name] = w - self.learning_rate * b
