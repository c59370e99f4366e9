"""The covariance rule in plain NumPy, for kernels (d, m) and their input vectors."""

import numpy as np


class Reference:
    """One weight. `block` is the inputs per block; `kron` is (taps, channels)."""

    def __init__(self, d, *, decay, damping, eps, preserve_norm, block=None, kron=None):
        self.decay, self.damping, self.eps = decay, damping, eps
        self.preserve_norm, self.block, self.kron = preserve_norm, block, kron
        self.a = np.zeros((d, d))
        self.captures = 0
        self.inverse = np.eye(d)

    def approximated(self, a):
        if self.block is not None:
            index = np.arange(len(a)) // self.block
            return a * (index[:, None] == index[None, :])
        if self.kron is not None:
            t, c = self.kron
            tensor = a.reshape(t, c, t, c)
            taps = np.einsum("icjc->ij", tensor)
            channels = np.einsum("icid->cd", tensor)
            return np.kron(taps, channels) / np.trace(a)
        return a

    def update(self, g, rows=None):
        if rows is not None:
            batch = rows.T @ rows / len(rows)
            self.a = self.decay * self.a + (1 - self.decay) * batch
            self.captures += 1
            mean = self.approximated(self.a / (1 - self.decay**self.captures))
            shift = self.damping * np.trace(mean) / len(mean) + self.eps
            self.inverse = np.linalg.inv(mean + shift * np.eye(len(mean)))
        u = self.inverse @ g
        if self.preserve_norm and np.any(u):
            u = u * np.linalg.norm(g) / np.linalg.norm(u)
        return u
