"""CPU and memory of this process and its children, measured through psutil."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable

import psutil

from prefect_dlt.record import Usage

SHARE = 0.001
"""Share of the run's time that measuring may take; the more processes there are, the rarer it is done."""

SHORTEST_PERIOD = 1.0
"""Seconds between two measurements, at least."""

MEBIBYTE = 1024 * 1024


class UsageMeter:
    """Measures what one run uses, from its making on.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._now = clock
        self._process = psutil.Process()
        self._cpu_of = dict[psutil.Process, float]()
        self._cpu_gone = 0.0
        self._own_peak_before = own_peak_memory()
        self._cpu_peak = self._memory_peak = 0.0
        began = self._measured_at = self._now()
        cpu_seconds, memory = self._measure()
        self._cpu_before = self._cpu_last = cpu_seconds
        self.usage = self._note(began, cpu_seconds, memory)

    def measure_if_due(self) -> Usage:
        """Return the usage as last measured, a second or more ago; measure anew when that is over."""
        return self.measure() if self._now() >= self._due else self.usage

    def measure(self) -> Usage:
        """Measure now."""
        began = self._now()
        return self._note(began, *self._measure())

    def _note(self, began: float, cpu_seconds: float, memory: float) -> Usage:
        elapsed = began - self._measured_at
        # Over a very short time the clock of the CPU, which ticks a hundred times a second, says nothing.
        cpu = 100.0 * (cpu_seconds - self._cpu_last) / elapsed if elapsed >= SHORTEST_PERIOD / 10 else 0.0
        if elapsed >= SHORTEST_PERIOD / 10:
            self._measured_at, self._cpu_last = began, cpu_seconds
            self._cpu_peak = max(self._cpu_peak, cpu)
        elif self._memory_peak:
            cpu = self.usage.cpu
        own_peak = own_peak_memory()
        # The system's own figure misses no moment; it counts when the peak was in this run and not before it.
        peaks = [self._memory_peak, memory, own_peak if own_peak > self._own_peak_before else 0.0]
        self._memory_peak = max(peaks)
        self.usage = Usage(cpu, self._cpu_peak, memory, self._memory_peak, cpu_seconds - self._cpu_before)
        self._due = self._now() + max(SHORTEST_PERIOD, (self._now() - began) / SHARE)
        return self.usage

    def _measure(self) -> tuple[float, float]:
        """Return CPU seconds so far, of processes that are gone too, and resident memory in MiB."""
        memory = 0.0
        cpu_of = dict[psutil.Process, float]()
        for process in (self._process, *self._children()):
            # It may end in between.
            with contextlib.suppress(psutil.Error), process.oneshot():
                times = process.cpu_times()
                memory += process.memory_info().rss / MEBIBYTE
                cpu_of[process] = times.user + times.system
        self._cpu_gone += sum(seconds for process, seconds in self._cpu_of.items() if process not in cpu_of)
        self._cpu_of = cpu_of
        return sum(cpu_of.values()) + self._cpu_gone, memory

    def _children(self) -> list[psutil.Process]:
        try:
            return self._process.children(recursive=True)
        except psutil.Error:
            return []


def own_peak_memory() -> float:
    """Return the most resident memory this process ever had, in MiB, by the system's own count; 0 where it has none."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / MEBIBYTE
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MEBIBYTE if sys.platform == "darwin" else peak / 1024
