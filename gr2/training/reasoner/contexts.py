"""Contexts that a compressor made of histories, kept so that no stage makes them again, and how stages find them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gr2.artifact import MANIFEST, Artifact, write_atomic
from gr2.data.candidates import CandidateLists
from gr2.errors import ConfigError, DataError
from gr2.prompts.render import PromptConfig, Slate

__all__ = [
    "CONTEXTS",
    "STAGE",
    "Context",
    "Contexts",
    "Place",
    "context_sources",
    "context_stages",
    "load_contexts",
    "places_of",
]

STAGE, CONTEXTS = "compress", "contexts.parquet"
Place = tuple[int, int]


@dataclass(frozen=True)
class Context:
    """A context's lines, oldest first, and the tokens of the history `before` and of the context `after`.

    `refused` says that the compressor's own could not be used.
    """

    lines: tuple[str, ...]
    before: int
    after: int
    refused: bool = False


@dataclass(frozen=True)
class Contexts:
    """The context of the history before each (user, position)."""

    found: Mapping[Place, Context]

    def slates(self, slates: Sequence[Slate], places: Sequence[Place]) -> list[Slate]:
        """The slates with the contexts of their places. Raises DataError on a place that there is none for."""
        missing = [place for place in places if place not in self.found]
        if missing:
            user, position = missing[0]
            raise DataError(
                f"the compressor has made no context of the {position} events of user {user} ({len(missing):,} are "
                "missing): it makes those of the lists that its `lists` and `list_size` name; give both stages the same"
            )
        return [replace(slate, context=self.found[place].lines) for slate, place in zip(slates, places, strict=True)]

    def cost(self, places: Sequence[Place]) -> dict[str, float]:
        """Mean tokens of the histories and of the contexts of places, of which there must be one, and their ratio.

        `refused` is the share of contexts that could not be used.
        """
        chosen = [self.found[place] for place in places]
        before, after = sum(each.before for each in chosen), sum(each.after for each in chosen)
        return {
            "history_tokens": before / len(chosen),
            "context_tokens": after / len(chosen),
            "share": after / max(1, before),
            "refused": sum(each.refused for each in chosen) / len(chosen),
        }

    def save(self, path: Path) -> None:
        """Write a row a context, atomically."""
        columns: dict[str, Any] = {
            "user": pa.array([user for user, _ in self.found], pa.int32()),
            "position": pa.array([position for _, position in self.found], pa.int32()),
            "lines": pa.array([list(each.lines) for each in self.found.values()], pa.list_(pa.string())),
            "before": pa.array([each.before for each in self.found.values()], pa.int32()),
            "after": pa.array([each.after for each in self.found.values()], pa.int32()),
            "refused": pa.array([each.refused for each in self.found.values()], pa.bool_()),
        }
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer)
        write_atomic(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Contexts:
        """The contexts that `save` wrote. Raises DataError if the file is missing or damaged."""
        try:
            rows = pq.read_table(path).to_pylist()
            found = {
                (row["user"], row["position"]): Context(
                    tuple(row["lines"]), row["before"], row["after"], row["refused"]
                )
                for row in rows
            }
        except (OSError, pa.ArrowException, KeyError, TypeError) as error:
            raise DataError(f"not contexts written by gr2: {error}", path=path) from error
        return cls(found)


def places_of(lists: CandidateLists) -> list[Place]:
    """The user and position of each list."""
    return list(zip(lists.user.tolist(), lists.position.tolist(), strict=True))


def context_stages(config: PromptConfig) -> tuple[str, ...]:
    """The stage whose contexts a configuration asks for, if it is one of its run."""
    return (STAGE,) if config.compressor == STAGE else ()


def context_sources(config: PromptConfig) -> dict[str, Path]:
    """The files of another run's contexts. Raises ConfigError if the folder that is named holds none."""
    if config.compressor in ("", STAGE):
        return {}
    folder = Path(config.compressor)
    files = {f"compressor:{name}": folder / name for name in (MANIFEST, CONTEXTS)}
    if not all(path.is_file() for path in files.values()):
        raise ConfigError(
            f"compressor: {folder} holds no artefact of compress; give {STAGE!r} for this run's, or a folder such as "
            "runs/other/compress"
        )
    return files


def load_contexts(config: PromptConfig, artifacts: Mapping[str, Artifact]) -> Contexts | None:
    """The contexts that a configuration asks for, None where it asks for none.

    Raises ConfigError if they are of other histories than those of `prepare`, or of other semantic IDs.
    """
    if not config.compressor:
        return None
    made = artifacts[STAGE] if config.compressor == STAGE else Artifact.load(config.compressor, STAGE)
    for name in ("prepare", "tokenize"):
        if made.parents.get(name) != artifacts[name].digest:
            raise ConfigError(f"compressor: {made.path} was made from another {name}; run compress again")
    return Contexts.load(made.file(CONTEXTS))
