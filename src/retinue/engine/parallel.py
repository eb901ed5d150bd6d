"""The same function over many items: one after the other, on processes, or on a Ray cluster."""

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import torch

from retinue.errors import ArgumentError, need, unknown

Item = TypeVar("Item")
Result = TypeVar("Result")
BACKENDS = ("processes", "ray", "serial")


def map(function: Callable[[Item], Result], items: Iterable[Item], workers: int = 0, backend: str | None = None) -> list[Result]:
    """Return `[function(item) for item in items]`, in order.

    Args:
        function: must be importable (defined in a module) unless it runs serially.
        items: what it is applied to.
        workers: how many run at once; each has an equal share of this process's threads, at least one. 0 or 1: serial.
        backend: "serial", "processes" or "ray"; by default processes when there is more than one worker.

    Raises:
        ArgumentError: if `workers` is negative or there is no such backend.
    """
    if workers < 0:
        raise ArgumentError(f"map: `workers` must be 0 or more, got {workers}.")
    backend = backend or ("processes" if workers > 1 else "serial")
    items = list(items)
    if backend == "serial":
        return [function(item) for item in items]
    threads = max(1, torch.get_num_threads() // max(workers, 1))
    if backend == "processes":
        context = multiprocessing.get_context("spawn")  # fork would copy torch's thread pool in an unusable state
        with ProcessPoolExecutor(max(workers, 1), mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            return list(pool.map(function, items))
    if backend == "ray":
        ray = need("ray", "cluster")
        started = not ray.is_initialized()
        if started:
            ray.init(num_cpus=max(workers, 1), include_dashboard=False, log_to_driver=False)
        try:
            remote: Any = ray.remote(function)
            return ray.get([remote.remote(item) for item in items])
        finally:
            if started:
                ray.shutdown()
    raise unknown("map", "backend", backend, BACKENDS)
