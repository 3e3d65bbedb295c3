"""What a run uses: of this process and its children, those that are gone included, and rarely enough."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import psutil
import pytest

from prefect_dlt.usage import MEBIBYTE, SHORTEST_PERIOD, UsageMeter


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A child process that has used CPU and 200 MiB of memory, and waits to be told to end."""
    program = textwrap.dedent(
        """
        import time

        block = bytearray(b"x") * (200 << 20)
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass
        print("ready", flush=True)
        input()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process
        process.kill()


def test_children_count_while_they_live_and_their_cpu_after(child: subprocess.Popen[str]) -> None:
    clock = Clock()
    meter = UsageMeter(clock)
    alone = meter.usage
    assert child.stdout is not None
    child.stdout.readline()
    clock.now += 1.0

    with_child = meter.measure()
    child.communicate("end\n")
    clock.now += 1.0
    after = meter.measure()

    assert with_child.memory >= alone.memory + 150.0
    assert with_child.cpu_seconds >= 0.25
    assert with_child.cpu >= 25.0
    assert after.memory <= with_child.memory - 150.0
    assert after.memory_peak >= with_child.memory
    assert after.cpu_seconds >= with_child.cpu_seconds - 0.001
    assert after.cpu_peak >= with_child.cpu


def test_memory_is_told_in_mebibytes_of_this_process() -> None:
    own = psutil.Process().memory_info().rss / MEBIBYTE

    usage = UsageMeter().usage

    assert 0.5 * own <= usage.memory <= usage.memory_peak


def test_the_peak_between_two_measurements_is_not_missed() -> None:
    # More than this process ever had, so that the system's own mark moves.
    meter = UsageMeter()
    size = int(meter.usage.memory_peak) + 50
    before = meter.measure().memory_peak

    block = bytearray(b"x") * (size << 20)
    del block

    assert meter.measure().memory_peak >= before + 40


def test_it_is_measured_once_a_period_however_often_it_is_asked() -> None:
    clock = Clock()
    meter = UsageMeter(clock)
    first = meter.usage

    assert meter.measure_if_due() is first
    clock.now += SHORTEST_PERIOD
    assert meter.measure_if_due() is not first


def test_the_beginning_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[psutil.Process] = []

    def children(process: psutil.Process, **_options: object) -> list[psutil.Process]:
        looked.append(process)
        return []

    monkeypatch.setattr(psutil.Process, "children", children)

    usage = UsageMeter(Clock()).usage

    assert len(looked) == 1
    assert (usage.cpu, usage.cpu_seconds) == (0.0, 0.0)
    assert usage.memory > 0


def test_measuring_takes_a_small_share_of_the_time_where_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    meter = UsageMeter(clock)

    def slow(*_args: object, **_options: object) -> list[psutil.Process]:
        clock.now += 0.1
        return []

    monkeypatch.setattr(psutil.Process, "children", slow)
    clock.now += 10.0
    usage = meter.measure()
    clock.now += 95.0

    assert meter.measure_if_due() is usage
    clock.now += 10.0
    assert meter.measure_if_due() is not usage


def test_cpu_over_no_time_at_all_is_not_told_as_a_rate() -> None:
    clock = Clock()
    meter = UsageMeter(clock)
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass

    assert meter.measure().cpu == 0.0
