"""`make fuzz` with its finding or rounds, stored: `python -m benchmarks.decoding.fuzz --seconds 600`."""

from __future__ import annotations

import argparse
import re
import subprocess

from benchmarks.results import ROOT, Figure, Record, store

__all__ = ["fuzz", "main"]

# What csrc/fuzz/driver.cc prints at the end of a target's time.
ROUNDS = re.compile(r"(\w+)_fuzz: (\d+) rounds, no finding")
TARGETS = {
    "catalog_trie": "catalogue files, opened, searched and filtered",
    "codebook": "codebook files, opened and looked up",
    "request": "requests from the network: read or refused, and the reply read again",
    "decoder": "the decoders' inputs: codes, sets, logits of any bits, choices",
}


def fuzz(seconds: int) -> Record:
    """The targets under the address and undefined-behaviour sanitizers, `seconds` in all."""
    command = ["make", "fuzz", f"FUZZ_SECONDS={seconds}"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    rounds = dict(ROUNDS.findall(done.stderr))
    if done.returncode:
        print(done.stderr[-4000:])
    figures = [
        Figure(
            f"fuzz target {target}: {what}",
            f"{int(rounds[target]):,} rounds in {seconds // len(TARGETS)} s, no finding"
            if target in rounds
            else "ended",
            "no finding",
            "ok" if target in rounds else "short",
        )
        for target, what in TARGETS.items()
    ]
    notes = ["each round damages a valid input; three of four damaged files get checksums that fit"]
    return Record("decoding.fuzz", "Fuzzing", "make decoding-fuzz", figures, notes=notes)


def main() -> None:
    """Store the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=600)
    print(store(fuzz(parser.parse_args().seconds)))


if __name__ == "__main__":
    main()
