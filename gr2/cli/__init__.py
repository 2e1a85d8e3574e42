"""The `gr2` command: one file a group of commands; anything heavy is imported inside the command that needs it."""

import sys

from gr2.interrupts import interrupts_wait

__all__ = ["main"]


def main() -> None:
    """Run the command line (see `gr2.cli.app.main`). Ctrl-C before it has begun exits with 130, too."""
    try:
        with interrupts_wait():
            from gr2.cli.app import main as begin
    except KeyboardInterrupt:
        sys.exit(130)
    begin()
