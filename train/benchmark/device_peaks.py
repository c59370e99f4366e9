"""What devices can compute at most, for model FLOP utilisation."""

# Dense TFLOP/s from the makers' data sheets, by the start of the device's kind as JAX
# names it; the first that fits counts. JAX multiplies float32 in TF32 on the GPUs
# that have it, so that is their peak.
_TERA: dict[str, dict[str, float]] = {
    "NVIDIA H100 PCIe": {"bfloat16": 756, "float32": 378},
    "NVIDIA H100 NVL": {"bfloat16": 835, "float32": 417},
    "NVIDIA H100": {"bfloat16": 989, "float32": 495},
    "NVIDIA H200": {"bfloat16": 989, "float32": 495},
    "NVIDIA A100": {"bfloat16": 312, "float32": 156},
    "Tesla V100": {"float32": 15.7},
    "TPU v4": {"bfloat16": 275},
    "TPU v5 lite": {"bfloat16": 197},
    "TPU v5": {"bfloat16": 459},
    "TPU v6 lite": {"bfloat16": 918},
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """The most floating-point operations a second.

    Args:
        device_kind: as in `jax.Device.device_kind`.
        dtype: of the computation.

    Returns:
        The peak of one device; None where it is not known.
    """
    for kind, peaks in _TERA.items():
        if device_kind.startswith(kind):
            tera = peaks.get(dtype)
            return None if tera is None else tera * 1e12
    return None
