"""What a figure depends on beside the code: versions and hardware."""

import os
import platform

import numpy as np
import torch


def environment(device: str = "cpu") -> dict[str, str]:
    """What a figure depends on beside the code."""
    cpu = platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "hardware": f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, device "
        f"{device}",
    }
