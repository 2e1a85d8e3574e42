"""Items with their semantic IDs, a Parquet file a bucket."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gr2.errors import ArtifactError
from gr2.tokenizer.bulk.buckets import list_column, lists, replacing

__all__ = ["LARGEST", "CodeTable", "Facts", "read_facts"]

LARGEST = 20
GROUP_ROWS = 1 << 16
FACTS = b"gr2.facts"


@dataclass(frozen=True)
class Facts:
    """What a bucket's table says of itself.

    `added` of the `items` are new; `prefixes` and `distinct` count different first L - 1 codes and different IDs.
    `measured` is the sum of the new items' errors, `crowded` how many prefixes are undecided. `moved` items were given
    another prefix; `moved_from` has the 20 prefixes that lost most, with how many.
    """

    items: int = 0
    added: int = 0
    prefixes: int = 0
    distinct: int = 0
    measured: float = 0.0
    crowded: int = 0
    moved: int = 0
    moved_from: list[tuple[list[int], int]] = field(default_factory=list)


@dataclass(frozen=True)
class CodeTable:
    """`ids` (pa.Array), `codes` (n, L) uint16, and `errors` (n,) float32: NaN for the items known before."""

    ids: Any
    codes: NDArray[np.uint16]
    errors: NDArray[np.float32]

    def with_items(self, ids: Any, codes: NDArray[np.uint16], errors: NDArray[np.float32]) -> CodeTable:
        """The table with more items."""
        ids = pa.concat_arrays([self.ids, ids])
        return CodeTable(ids, np.concatenate([self.codes, codes]), np.concatenate([self.errors, errors]))

    def save(self, path: Path, *, measured: float, crowded: int = 0, moved: NDArray[np.uint16] | None = None) -> None:
        """Write the items in the order of their codes, and what `read_facts` reads; `moved` (m, L - 1) are prefixes."""
        order = np.lexsort(self.codes.T[::-1])
        codes = self.codes[order]
        left = np.empty((0, codes.shape[1] - 1), np.uint16) if moved is None else moved
        prefixes, counts = np.unique(left, axis=0, return_counts=True)
        largest = np.argsort(-counts, kind="stable")[:LARGEST]
        facts = Facts(
            items=len(codes),
            added=int(np.isfinite(self.errors).sum()),
            prefixes=_runs(codes[:, :-1]),
            distinct=_runs(codes),
            measured=measured,
            crowded=crowded,
            moved=len(left),
            moved_from=[(prefixes[row].tolist(), int(counts[row])) for row in largest],
        )
        table = pa.table(
            {
                "item_id": self.ids.take(pa.array(order)),
                "codes": list_column(codes),
                "error": pa.array(self.errors[order], from_pandas=True),
            }
        )
        table = table.replace_schema_metadata({FACTS: json.dumps(asdict(facts))})
        with replacing(path) as temporary:
            pq.write_table(table, temporary, row_group_size=GROUP_ROWS, use_dictionary=["codes.list.element"])

    @classmethod
    def load(cls, path: Path) -> CodeTable:
        """The table that `save` wrote, in the order of its codes."""
        table = pq.read_table(path)
        ids, codes, errors = (table.column(name).combine_chunks() for name in ("item_id", "codes", "error"))
        return cls(ids, lists(codes), errors.to_numpy(zero_copy_only=False).astype(np.float32))


def read_facts(path: Path) -> Facts:
    """What the table at `path` says of itself. Raises ArtifactError if it is none."""
    try:
        return Facts(**json.loads(pq.read_schema(path).metadata[FACTS]))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: not a table of codes: {error}; delete it to make it again") from error


def _runs(rows: NDArray[np.uint16]) -> int:
    """How many different rows there are; equal ones are neighbours."""
    return int((rows[1:] != rows[:-1]).any(axis=1).sum()) + bool(len(rows))
