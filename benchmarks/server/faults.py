"""What callers of the server notice of faults: `make server-faults` stores docs/results/server.faults.json.

Every scenario runs under a steady load, by the service config that `gr2.client` publishes, whose answers are compared
with the engine's.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.results import Figure, Record, store
from benchmarks.server.bundles import arithmetic
from benchmarks.server.faults_bench import QUICK, SETTLE, Bench, Outcome, Sizes, reload
from benchmarks.server.faults_callers import half_open, malformed, slow_callers
from benchmarks.server.faults_load import Replica, make_questions
from benchmarks.server.processes import free_port
from gr2.bundle import Bundle
from gr2.client import Client
from gr2.export.random_bundle import write_random_bundle
from gr2.v1 import management_pb2

__all__ = ["faults", "main"]

CLOCK = Path(__file__).with_name("shifted_clock.c")
DIM = 64
HOUR = 3_600_000_000_000  # nanoseconds


def nothing(bench: Bench) -> Outcome:
    """The load alone, to compare with."""
    with bench.serve() as one, bench.serve() as two, bench.load(one, two) as load:
        time.sleep(4 * SETTLE)
    return Outcome("none", load.tally, True, "two replicas")


def ended(number: signal.Signals, expected: int, bench: Bench) -> Outcome:
    """One of two replicas ends by a signal, and comes back on its port, again and again."""
    codes: list[int] = []
    with bench.serve() as steady:
        replica = bench.serve()
        with bench.load(steady, replica) as load:
            for _ in range(bench.sizes.kills):
                time.sleep(SETTLE)
                codes.append(replica.stop(number))
                time.sleep(SETTLE)
                replica = bench.serve(port=replica.port)
            time.sleep(SETTLE)
        replica.stop()
    note = f"{len(codes)} times; exit codes {sorted(set(codes))}"
    return Outcome(f"{number.name} of one of two replicas", load.tally, set(codes) == {expected}, note)


def swapped(bench: Bench) -> Outcome:
    """Two versions take turns."""
    with bench.serve() as replica:
        for label in ("2", "1"):
            bench.pin(label)
            reload(replica)
        with bench.load(replica) as load:
            time.sleep(SETTLE)
            before = replica.resident()
            for swap in range(bench.sizes.swaps):
                bench.pin("21"[swap % 2])
                info = reload(replica)
            time.sleep(SETTLE)
            grown = replica.resident() - before
        bench.pin("1")
    done = info.swaps == bench.sizes.swaps + 2 and not info.refusals and len(load.tally.answers) == len(bench.bundles)
    note = f"both versions answered; memory {grown:+.1f} MiB from {before:.0f}"
    return Outcome(f"bundle swapped {bench.sizes.swaps} times", load.tally, done and grown < before / 10, note)


def shadowed(bench: Bench) -> Outcome:
    """Every answer is compared with a candidate's."""
    pair = bench.folder / "pair"
    for name, bundle in zip(("shop", "next"), bench.bundles, strict=True):
        (pair / name).mkdir(parents=True)
        (pair / name / "1").symlink_to(bundle)
    arguments = ("--default", "shop", "--shadow", "next", "--shadow-share", "1.0")
    with Replica(pair, *arguments) as replica:
        with bench.load(replica) as load:
            time.sleep(4 * SETTLE)
        time.sleep(SETTLE)
        with Client(replica.address) as client:
            shadow = client.server_info().shadow
    other, tau = shadow.top1_disagreement, shadow.kendall_tau
    note = (
        f"{shadow.compared} compared, {shadow.dropped} dropped: {other:.0%} another first item, Kendall's tau {tau:.2f}"
    )
    whole = 0 < shadow.compared <= load.tally.calls and not shadow.failed
    return Outcome("candidate in the shadow", load.tally, whole, note)


def corrupt(bench: Bench) -> Outcome:
    """Broken versions are dropped in, and none is served."""
    (bench.shop / "current").unlink()
    good = Bundle.load(bench.shop / "2").version
    broken: dict[str, Callable[[Path], object]] = {
        "truncated graph": lambda folder: _truncate(_largest(folder)),
        "flipped bit in the codebook": lambda folder: _flip(folder / "codebook.bin"),
        "no manifest": lambda folder: (folder / "manifest.json").unlink(),
        "garbage for a manifest": lambda folder: (folder / "manifest.json").write_bytes(random.Random(0).randbytes(99)),
    }
    refused = []
    with bench.serve() as replica, bench.load(replica) as load:
        time.sleep(SETTLE)
        for number, damage in enumerate(broken.values(), start=3):
            info = _drop_in(bench, str(number), damage, replica)
            refused.append(info.version == good and bool(info.reason))
        time.sleep(SETTLE)
    bench.pin("1")
    note = f"{', '.join(broken)}: {sum(refused)} of {len(broken)} refused with a reason"
    return Outcome("corrupt bundle dropped in", load.tally, all(refused), note)


def full_disk(bench: Bench) -> Outcome:
    """Nothing that the server writes finds room, and a version arrives that was cut off by the full disk."""
    (bench.shop / "current").unlink()
    with bench.serve("--log-level", "debug", port=free_port(), output=Path("/dev/full")) as replica:
        subprocess.run(["prlimit", f"--pid={replica.process.pid}", "--fsize=0"], check=True)
        with bench.load(replica) as load:
            time.sleep(SETTLE)
            info = _drop_in(bench, "3", lambda folder: _truncate(_largest(folder)), replica)
            time.sleep(SETTLE)
        code = replica.stop()
    bench.pin("1")
    note = f"no room for its log, its output or any file; a version that was cut off is refused; exit code {code}"
    return Outcome("disk full", load.tally, bool(info.reason) and code == 0, note)


def clock_jump(bench: Bench) -> Outcome:
    """The wall clock jumps to and fro under the server."""
    library, shift = bench.folder / "clock.so", bench.folder / "shift"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(CLOCK), "-ldl"], check=True)
    shift.write_bytes(bytes(8))
    with bench.serve(env={"LD_PRELOAD": str(library), "GR2_CLOCK": str(shift)}) as replica:
        with bench.load(replica) as load:
            for hours in (1, -1, 24 * 365, -24 * 365, 0):
                time.sleep(SETTLE)
                with shift.open("r+b") as file:
                    file.write((hours * HOUR).to_bytes(8, "little", signed=True))
            bench.pin("2")
            info = reload(replica)
            time.sleep(SETTLE)
        code = replica.stop()
    bench.pin("1")
    note = f"an hour and a year forth and back; a new version is taken up afterwards; exit code {code}"
    return Outcome("clock jump", load.tally, info.label == "2" and code == 0, note)


SCENARIOS = (
    nothing,
    partial(ended, signal.SIGTERM, 0),
    partial(ended, signal.SIGKILL, -signal.SIGKILL),
    swapped,
    shadowed,
    corrupt,
    full_disk,
    clock_jump,
    slow_callers,
    half_open,
    malformed,
)


def faults(sizes: Sizes = QUICK) -> Record:
    """The figures of every scenario."""
    with tempfile.TemporaryDirectory() as folder:
        bench = _prepare(Path(folder), sizes)
        outcomes = []
        for scenario in SCENARIOS:
            outcomes.append(scenario(bench))
            sys.stderr.write(f"{outcomes[-1].fault}: {outcomes[-1].tally.errors} {outcomes[-1].note}\n")
    title = "Faults under load, as callers see them"
    # At another size it is another record.
    name = "server.faults" if sizes == Sizes() else "server.faults-quick"
    return Record(name, title, "make server-faults", [_figure(each) for each in outcomes[1:]], [_table(outcomes)])


def _prepare(folder: Path, sizes: Sizes) -> Bench:
    options = {"dim": DIM, "arithmetic": arithmetic(DIM), "batched": False}
    bundles = [write_random_bundle(folder / f"bundle-{seed}", seed=seed, **options) for seed in (0, 1)]
    bench = Bench(folder, bundles, make_questions(bundles), sizes)
    for label, bundle in enumerate(bundles, start=1):
        shutil.copytree(bundle, bench.shop / str(label))
    bench.pin("1")
    return bench


def _figure(outcome: Outcome) -> Figure:
    tally = outcome.tally
    counts = f"{sum(tally.errors.values())} errors and {tally.wrong} wrong of {tally.calls}"
    value = f"{counts}, worst {tally.quantile(1):.1f} ms; {outcome.note}"
    good = tally.calls > 0 and not tally.failed and outcome.holds
    return Figure(outcome.fault, value, "0 errors and 0 wrong", "ok" if good else "short")


def _table(outcomes: list[Outcome]) -> dict[str, object]:
    rows = [
        [
            each.fault, each.tally.calls, _said(each.tally.errors), each.tally.wrong,
            *(f"{each.tally.quantile(share):.1f}" for share in (0.5, 0.99, 1.0)),
        ]
        for each in outcomes
    ]  # fmt: skip
    columns = ["fault", "calls", "errors", "wrong answers", "p50 ms", "p99 ms", "worst ms"]
    return {"title": "calls at a steady rate, timed from when each was due", "columns": columns, "rows": rows}


def _said(errors: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in errors.items()) or "0"


def _drop_in(bench: Bench, label: str, damage: Callable[[Path], object], replica: Replica) -> management_pb2.BundleInfo:
    """Add a damaged copy of a bundle as a version, have the server look, and remove it."""
    shutil.copytree(bench.bundles[0], bench.shop / ".partial")
    damage(bench.shop / ".partial")
    (bench.shop / ".partial").rename(bench.shop / label)
    info = reload(replica)
    shutil.rmtree(bench.shop / label)
    return info


def _largest(folder: Path) -> Path:
    return max(folder.glob("*.onnx"), key=lambda path: path.stat().st_size)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def main() -> None:
    """Run every scenario at full size and store the figures; exit code 1 if one is short."""
    parser = argparse.ArgumentParser(description="faults under load")
    parser.add_argument("--quick", action="store_true", help="each fault less often; nothing is stored")
    quick = parser.parse_args().quick
    record = faults(QUICK if quick else Sizes())
    if not quick:
        store(record)
    for figure in record.figures:
        print(f"{figure.what}: {figure.value} {figure.status}")
    for row in record.tables[0]["rows"]:
        print(*row, sep=" | ")
    sys.exit(any(figure.status == "short" for figure in record.figures))


if __name__ == "__main__":
    main()
