"""Peak FLOP/s of devices, for model FLOP utilization."""

# Dense TFLOP/s from data sheets, by prefix of JAX's device kind; the first match
# counts. For float32 on GPUs with TF32 this is the peak of TF32, which JAX uses.
_TERA: dict[str, dict[str, float]] = {
    "NVIDIA H100 PCIe": {"bfloat16": 756, "float32": 378},
    "NVIDIA H100 NVL": {"bfloat16": 835, "float32": 417},
    "NVIDIA H100": {"bfloat16": 989, "float32": 495},
    "NVIDIA H200 NVL": {"bfloat16": 835, "float32": 417},
    "NVIDIA H200": {"bfloat16": 989, "float32": 495},
    "NVIDIA A100": {"bfloat16": 312, "float32": 156},
    "Tesla V100-PCIE": {"float32": 14},
    "Tesla V100": {"float32": 15.7},
    "TPU v4": {"bfloat16": 275},
    "TPU v5 lite": {"bfloat16": 197},
    "TPU v5": {"bfloat16": 459},
    "TPU v6 lite": {"bfloat16": 918},
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Returns the peak FLOP/s of a device; None if unknown.

    Args:
        device_kind: `jax.Device.device_kind`.
        dtype: dtype of the computation.
    """
    for kind, peaks in _TERA.items():
        if device_kind.startswith(kind):
            tera = peaks.get(dtype)
            return None if tera is None else tera * 1e12
    return None
