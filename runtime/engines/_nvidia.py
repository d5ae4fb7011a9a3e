"""Ask the NVIDIA driver why a provider does not start, and which GPU the machine has.

ONNX Runtime only logs the reason and continues without the provider. So this module loads the same libraries in the
same order until one fails. It calls the CUDA driver API through ctypes. These functions are stable since CUDA 2.0.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Load = Callable[..., Any]

NO_GPU = "no-gpu"

# CUDA driver API, cuda.h, enum CUresult: errors that a user can fix.
_INIT_ERRORS = {
    3: "the driver could not be initialized",
    35: "the driver is older than this CUDA",
    100: "no GPU is visible",
    101: "the GPU number is not valid",
    802: "the system is not ready yet",
    803: "the driver and the kernel module have different versions",
    999: "unknown error",
}
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_INSTALL_LIBRARIES = (
    "pip install 'onnxruntime-gpu[cuda,cudnn]' brings CUDA and cuDNN; TensorRT: pip install tensorrt, "
    "with its folder on LD_LIBRARY_PATH"
)


def explain(provider: str, libraries: Path, load: Load = ctypes.CDLL) -> tuple[str, str] | None:
    """Find out why the provider ``"cuda"`` or ``"tensorrt"`` does not start: return reason and fix, or None.

    Parameters
    ----------
    libraries
        Folder ``capi`` of the installed onnxruntime.
    """
    try:
        driver = load(_DRIVER)
    except OSError:
        return (
            f"no NVIDIA driver ({_DRIVER} cannot be loaded)",
            "Install the driver; in a container, start it with the NVIDIA runtime (docker run --gpus all)",
        )
    code = driver.cuInit(0)
    if code:
        reason = _INIT_ERRORS.get(code, "see cuda.h")
        return f"the NVIDIA driver answers {code}: {reason}", "Check with nvidia-smi, and CUDA_VISIBLE_DEVICES"
    prefix, suffix = ("", ".dll") if sys.platform == "win32" else ("lib", ".so")
    for name in ("shared", provider):
        try:
            load(str(libraries / f"{prefix}onnxruntime_providers_{name}{suffix}"), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            return f"a library is missing: {error}", _INSTALL_LIBRARIES
    return None


def gpu_name() -> str:
    """Return name and compute capability of the first GPU for a file name, ``"NVIDIA-Orin-sm87"``, or ``NO_GPU``."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return NO_GPU
    device, name, major, minor = ctypes.c_int(), ctypes.create_string_buffer(100), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return NO_GPU
    driver.cuDeviceGetName(name, len(name), device)
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    words = re.findall(r"\w+", name.value.decode("ascii", errors="ignore"))
    return "-".join([*words, f"sm{major.value}{minor.value}"])
