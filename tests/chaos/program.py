"""Plan the trials, do them a few at a time, and say what came of them."""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.chaos.cases import DESTINATIONS, DISPOSITIONS, LOADS, Case, all_cases
from tests.chaos.children import share_out, warm_up
from tests.chaos.moments import KINDS, PHASES, Moment, Span
from tests.chaos.trials import (
    Kill,
    Place,
    environment,
    measured_name,
    prepare,
    prepare_shared,
    scout_name,
    scout_run,
    try_out,
)
from tests.postgres import postgres_server

# Of ten trials, so many each. Random moments hardly ever hit what takes microseconds, and that is where it hurts.
KINDS_OF_TEN = ("clock",) * 4 + ("commit",) * 3 + ("file",) * 2 + ("step",)
# One in so many trials kills the run that would finish it too.
TWICE = 5
COMBINATIONS = len(LOADS) * len(DISPOSITIONS) * len(DESTINATIONS)


def plan(kills: int, seed: int, kinds_of_ten: Sequence[str] = KINDS_OF_TEN) -> list[Kill]:
    """Return as many trials as it takes for so many kills: the same ones for the same arguments."""
    trials = next(trials for trials in itertools.count() if trials + trials // TWICE >= kills)
    chance = random.Random(seed)  # noqa: S311 - no secret depends on it
    kinds = [kinds_of_ten[number % len(kinds_of_ten)] for number in range(trials)]
    chance.shuffle(kinds)
    # One moment in each of as many equal stretches of a run as there are moments of a kind.
    shares: dict[str, list[float]] = {}
    for kind in sorted(set(kinds)):
        count = kinds.count(kind)
        shares[kind] = [(number + chance.random()) / count for number in range(count)]
        chance.shuffle(shares[kind])
    cases = all_cases(seed)
    # With few trials, measuring every case would take longer than killing it.
    cases = cases[: max(trials // 4 // COMBINATIONS, 1) * COMBINATIONS]
    planned: list[Kill] = []
    for number, kind in enumerate(kinds):
        moments = [Moment(kind, shares[kind].pop())]
        if number % TWICE == TWICE - 1:
            moments.append(Moment(chance.choice(("clock", "commit", "file")), chance.random()))
        turn, at = divmod(number, len(cases))
        planned.append(Kill(number, cases[at], tuple(moments), finalizes=(turn + at) % 2 == 0))
    return planned


def table(planned: Sequence[Kill], results: dict[int, dict[str, Any]]) -> str:
    """Return as text, for each combination, where the kills hit and what came of them."""
    titles = ["kills", *PHASES, "interrupted jobs", "lost", "doubled", "stuck"]
    figures: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(titles, 0))
    for kill in planned:
        result = results[kill.number]
        for row in (figures[kill.case.combination], figures["total"]):
            row["kills"] += len(result["phases"])
            for phase in result["phases"]:
                row[phase] += 1
            row["interrupted jobs"] += result["interrupted"]
            row["lost"] += result["lost"]
            row["doubled"] += result["surplus"]
            row["stuck"] += bool(result["stuck"])
    figures["total"] = figures.pop("total")
    lines = [["combination", *titles], *([name, *map(str, row.values())] for name, row in figures.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles) + 1)]
    return "\n".join(
        line[0].ljust(widths[0])
        + "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )


def is_wrong(result: dict[str, Any]) -> bool:
    """Tell whether a trial lost or doubled a row, or got stuck."""
    return bool(result["lost"] or result["surplus"] or result["stuck"])


def describe(kill: Kill, result: dict[str, Any]) -> str:
    """Return what happened in a trial that went wrong."""
    moments = ", then ".join(
        f"by {moment.kind} {moment.share:.3f} in {phase}, leaving [{left}]"
        for moment, phase, left in zip(kill.moments, result["phases"], result["left"], strict=True)
    )
    after = "finalised, then run" if kill.finalizes else "run"
    what = "; ".join(filter(None, (result["stuck"] and f"stuck: {result['stuck']}", result["detail"])))
    return f"trial {kill.number}, {kill.case.combination} {kill.case.variant}, killed {moments}; {after}: {what}"


def main(description: str, root: Path) -> int:
    """Run the program; return its exit code.

    Args:
        description: What it says of itself.
        root: Where it works.
    """
    parser = argparse.ArgumentParser(
        "python -m tests.chaos", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000, help="how many to plan, 1000 by default")
    parser.add_argument("--seed", type=int, help="plan the same trials as an earlier run")
    parser.add_argument("--only", type=int, nargs="+", help="do these trials only, of those planned")
    parser.add_argument("--matching", default="", help="do only trials with this in their combination or variant")
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=KINDS_OF_TEN, help="kill at such moments only")
    parser.add_argument("--workers", type=int, default=2, help="how many trials to do at a time, 2 by default")
    parser.add_argument("--plain", action="store_true", help="let dlt finish by itself, without the runner")
    parser.add_argument("--keep", type=Path, help="folder to keep what went wrong in")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    planned = [
        kill
        for kill in plan(options.kills, seed, options.kinds)
        if options.matching in f"{kill.case.combination} {kill.case.variant}"
        and (not options.only or kill.number in options.only)
    ]
    started = time.monotonic()
    print(f"{len(planned)} trials, seed {seed}", flush=True)
    results: dict[int, dict[str, Any]] = {}
    with postgres_server() as make_database:
        place = Place(root, make_database("admin"))
        spans = prepare_all(place, planned, options.workers, plain=options.plain)
        print(f"prepared after {time.monotonic() - started:.0f} s", flush=True)
        by_number = {kill.number: kill for kill in planned}

        def work(kill: Kill) -> dict[str, Any]:
            return try_out(place, kill, spans[measured_name(kill.case)], plain=options.plain, keep=options.keep)

        for result in share_out(planned, work, options.workers, root):
            results[result["number"]] = result
            if is_wrong(result):
                print(describe(by_number[result["number"]], result), flush=True)
    print(table(planned, results))
    outcomes = results.values()
    print(
        f"{sum(len(kill.moments) for kill in planned)} kills in {len(planned)} trials, "
        f"{time.monotonic() - started:.0f} s, seed {seed}: "
        f"trials with rows lost {sum(bool(outcome['lost']) for outcome in outcomes)}, "
        f"with rows doubled {sum(bool(outcome['surplus']) for outcome in outcomes)}, "
        f"stuck {sum(bool(outcome['stuck']) for outcome in outcomes)}"
    )
    return 1 if any(map(is_wrong, outcomes)) else 0


def prepare_all(place: Place, planned: Sequence[Kill], workers: int, *, plain: bool) -> dict[str, Span]:
    """Make the datasets that the trials begin with, and measure how long such runs are, by name."""
    scouts = [Case(destination, "merge", "first", kind) for destination in DESTINATIONS for kind in ("rows", "arrow")]
    warm_up(lambda: [scout_run(place, scout) for scout in scouts], place.root, environment(place.root))
    for scout in scouts:
        place.remove(scout, scout_name(scout))
    for destination in DESTINATIONS:
        prepare_shared(place, Case(destination, "append", "shared", "rows"))
    cases = list(dict.fromkeys(kill.case for kill in planned))
    prepared = share_out(cases, lambda case: prepare(place, case, plain=plain), workers, place.root)
    return {each["name"]: Span(**each["span"]) for each in prepared}
