"""Generative reasoning re-ranking: from interaction logs to a served re-ranker."""

from gr2.version import __version__

__all__ = ["__version__"]
