"""The `gr2` command: one file a group of commands; anything heavy is imported inside the command that needs it."""

from gr2.cli.app import main

__all__ = ["main"]
