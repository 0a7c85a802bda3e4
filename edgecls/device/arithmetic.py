"""How fast a core computes: float32 products of matrices, in a process of its own.

    python -m edgecls.device.arithmetic SECONDS

prints GFLOP/s of every half second as a JSON list. A process, because NumPy's library takes all cores otherwise, which
only an environment variable that is there before its start forbids.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Final

import numpy as np

from edgecls.errors import RunError
from edgecls.processor import core_flops

_SIDE: Final = 512  # three matrices of it fit a second-level cache or nearly, as a layer of a small network does
_WINDOW_SECONDS: Final = 0.5
_ONE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_OF_PEAK: Final = 0.5  # what OpenBLAS reaches at least: 70 to 95 % on idle cores, less beside a busy hyper-thread


def measured_gflops(n_processes: int, seconds: float) -> list[list[float]]:
    """GFLOP/s of every half second of processes that compute at the same time.

    Raises:
        RunError: one of them ended otherwise.
    """
    command = [sys.executable, "-m", __spec__.name, str(seconds)]
    started = [
        subprocess.Popen(
            command, env={**os.environ, **_ONE_THREAD}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(n_processes)
    ]
    ends = [(*each.communicate(), each.returncode) for each in started]
    for _, said, code in ends:
        if code:
            raise RunError(
                f"measuring arithmetic ended with code {code}: {said.strip().splitlines()[-1:] or ['no word']}"
            )
    return [json.loads(out) for out, _, _ in ends]


def expected_gflops(core: str, features: tuple[str, ...], clock_mhz: float | None) -> float | None:
    """What one core does at least, by its instructions and its clock; None where either is not known."""
    flops = core_flops(core, features)
    return None if flops is None or clock_mhz is None else _OF_PEAK * flops * clock_mhz / 1000


def _windows(seconds: float) -> list[float]:
    a, b = np.random.default_rng(0).random((2, _SIDE, _SIDE), dtype=np.float32)
    out = np.empty_like(a)
    np.matmul(a, b, out=out)
    found: list[float] = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end or not found:
        n = 0
        while (now := time.perf_counter()) < start + _WINDOW_SECONDS:
            np.matmul(a, b, out=out)
            n += 1
        found.append(n * 2 * _SIDE**3 / (now - start) / 1e9)
    return found


if __name__ == "__main__":
    print(json.dumps(_windows(float(sys.argv[1]))))
