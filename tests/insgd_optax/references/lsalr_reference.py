"""Eq. 18 in plain NumPy, on nested dicts {layer: {name: array}}."""

import numpy as np


def factor(arrays):
    norm = np.sqrt(sum(np.sum(np.abs(g) ** 2) for g in arrays))
    return 1 + np.log(1 + 1 / norm)


def scaled(grads):
    return {
        layer: {name: factor(arrays.values()) * g for name, g in arrays.items()}
        for layer, arrays in grads.items()
    }


def step(params, grads, buffers, learning_rate, momentum, weight_decay):
    """One step with momentum and weight decay; returns parameters and buffers."""
    updates = scaled(grads)
    new_params, new_buffers = {}, {}
    for layer, arrays in params.items():
        new_params[layer], new_buffers[layer] = {}, {}
        for name, w in arrays.items():
            g = updates[layer][name] + weight_decay * w
            b = momentum * buffers[layer][name] + g
            new_buffers[layer][name] = b
            new_params[layer][name] = w - learning_rate * b
    return new_params, new_buffers
