"""The items that have an ID before a job begins, which keeps it: those of `tokenize`, of `--add`, of an earlier job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gr2.artifact import Artifact
from gr2.errors import ArtifactError
from gr2.tokenizer.add import STAGE as ADD
from gr2.tokenizer.add import ids_before
from gr2.tokenizer.bulk.buckets import lists

__all__ = ["Known"]

ROWS = 1 << 18


@dataclass(frozen=True)
class Known:
    """IDs in the artefact `source`, of the stage `tokenize`, `tokenize-add` or `encode`; `parents` say what it was.

    `items` is the file with the IDs of a `tokenize`'s items, in the order of its codes; an `encode` has none.
    """

    source: Artifact
    items: Path | None
    parents: dict[str, str]

    @classmethod
    def find(cls, prepare: Artifact, base: Artifact, out: Path) -> Known:
        """What is known beside the items of `base`: all that the job in `out` gave IDs to, or all that `--add` did.

        Raises ArtifactError where both did, and the job in `out` has not seen the items that were added.
        """
        added = _made_from(base.path.with_name(ADD), ADD, base)
        parents = {} if added is None else {ADD: added.digest}
        earlier = _made_from(out, "encode", base)
        if earlier is not None:
            if earlier.parents.get(ADD) != parents.get(ADD):
                raise ArtifactError(
                    f"{base.path.with_name(ADD)}: items were added since {out} was made, and an ID of one may be taken "
                    "in the other; give --out a new folder to number the items of both"
                )
            return cls(earlier, None, parents | {"earlier": earlier.digest})
        source = base if added is None else added
        return cls(source, (prepare if added is None else added).file("items.parquet"), parents)

    @property
    def codebook(self) -> Path:
        """The codebook file of the items."""
        return self.source.file("codebook.bin")

    def parts(self, kind: Any) -> Iterator[tuple[Any, NDArray[np.uint16]]]:
        """The IDs, pa.Array of the type `kind`, and codes (n, L) of some items after the other."""
        if self.items is not None:
            try:
                ids = pq.read_table(self.items, columns=["item_id"]).column(0).combine_chunks().cast(kind)
            except (OSError, pa.ArrowException) as error:
                raise ArtifactError(f"{self.items}: cannot be read: {error}") from error
            yield ids, self.source.array("codes.npy")
            return
        for path in sorted((self.source.path / "codes").iterdir()):
            for batch in pq.ParquetFile(path).iter_batches(ROWS, columns=["item_id", "codes"]):
                yield batch.column(0).cast(kind), lists(batch.column(1))


def _made_from(folder: Path, stage: str, base: Artifact) -> Artifact | None:
    """The artefact of the stage in the folder, if it continues the IDs of `base`."""
    found = ids_before(folder)
    return (
        found if found is not None and found.stage == stage and found.parents.get("tokenize") == base.digest else None
    )
