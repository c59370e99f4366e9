"""Plain NumPy float64 forms of the networks' parts, written for clarity.

Parameters are the nested dicts of the corresponding module. Batch normalization
uses the batch's own statistics, as in training.
"""

import math

import numpy as np


def convolution(x, parameters, stride=1):
    """Output pixel by output pixel; padded by half the kernel, groups by its shape."""
    kernel = np.asarray(parameters["kernel"], np.float64)
    size, _, inputs, outputs = kernel.shape
    groups = x.shape[-1] // inputs
    half = size // 2
    padded = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    rows = range(0, x.shape[1], stride)
    columns = range(0, x.shape[2], stride)
    y = np.zeros((len(x), len(rows), len(columns), outputs))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            window = padded[:, row : row + size, column : column + size]
            for o in range(outputs):
                group = o // (outputs // groups)
                seen = window[..., group * inputs : (group + 1) * inputs]
                y[:, i, j, o] = (seen * kernel[..., o]).sum(axis=(1, 2, 3))
    return y + np.asarray(parameters.get("bias", 0.0), np.float64)


def linear(x, parameters):
    y = x @ np.asarray(parameters["kernel"], np.float64)
    return y + np.asarray(parameters.get("bias", 0.0), np.float64)


def normalize(x, parameters, axes, epsilon):
    mean = x.mean(axis=axes, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=axes, keepdims=True)
    y = (x - mean) / np.sqrt(variance + epsilon)
    return y * np.asarray(parameters["scale"]) + np.asarray(parameters["bias"])


def batch_norm(x, parameters, epsilon=1e-5):
    return normalize(x, parameters, (0, 1, 2), epsilon)


def layer_norm(x, parameters):
    return normalize(x, parameters, -1, 1e-5)


def relu(x):
    return np.maximum(x, 0)


def hard_sigmoid(x):
    return np.clip(x / 6 + 0.5, 0, 1)


def hard_swish(x):
    return x * hard_sigmoid(x)


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def custom_cnn(x, parameters):
    """Table 2, without dropout; also the input of each batch normalization."""
    norm_inputs = []
    for layer, stride in enumerate((1, 2, 2, 2)):
        x = convolution(x, parameters[f"Conv_{layer}"], stride)
        norm_inputs.append(x)
        if f"BatchNorm_{layer}" in parameters:
            x = batch_norm(x, parameters[f"BatchNorm_{layer}"])
        x = relu(x)
    return linear(x.reshape(len(x), -1), parameters["Dense_0"]), norm_inputs


def bottleneck(x, parameters, stride):
    """1x1, 3x3 with the stride, 1x1; the shortcut a 1x1 with the stride."""
    y = relu(
        batch_norm(convolution(x, parameters["Conv_0"]), parameters["BatchNorm_0"])
    )
    y = convolution(y, parameters["Conv_1"], stride)
    y = relu(batch_norm(y, parameters["BatchNorm_1"]))
    y = batch_norm(convolution(y, parameters["Conv_2"]), parameters["BatchNorm_2"])
    x = convolution(x, parameters["Conv_3"], stride)
    return relu(batch_norm(x, parameters["BatchNorm_3"]) + y)


def inverted_residual(x, parameters, stride):
    """Expansion, depthwise with the stride, gate, projection; with hard-swish."""

    def norm(y, layer):
        return batch_norm(y, parameters[f"BatchNorm_{layer}"], epsilon=1e-3)

    y = hard_swish(norm(convolution(x, parameters["Conv_0"]), 0))
    y = hard_swish(norm(convolution(y, parameters["Conv_1"], stride), 1))
    gate = parameters["SqueezeExcite_0"]
    seen = relu(linear(y.mean(axis=(1, 2)), gate["Dense_0"]))
    y = y * hard_sigmoid(linear(seen, gate["Dense_1"]))[:, None, None, :]
    y = norm(convolution(y, parameters["Conv_2"]), 2)
    return x + y if x.shape == y.shape else y


def encoder_block(x, parameters, heads):
    """One head at a time."""
    qkv = linear(layer_norm(x, parameters["LayerNorm_0"]), parameters["Dense_0"])
    width = x.shape[-1]
    size = width // heads
    attended = np.zeros_like(x)
    for head in range(heads):
        q, k, v = (
            qkv[..., part * width + head * size : part * width + (head + 1) * size]
            for part in range(3)
        )
        weights = softmax(q @ k.swapaxes(1, 2) / math.sqrt(size))
        attended[..., head * size : (head + 1) * size] = weights @ v
    x = x + linear(attended, parameters["Dense_1"])
    hidden = gelu(
        linear(layer_norm(x, parameters["LayerNorm_1"]), parameters["Dense_2"])
    )
    return x + linear(hidden, parameters["Dense_3"])
