"""The C++ core of gr2: codebooks and per-request candidate tries."""

import os
from collections.abc import Sequence
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

@final
class CodebookBuilder:
    """Writes a codebook file of any number of items in bounded memory. Thread-safe."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        levels: int,
        level_size: int,
        id_type: Literal["int64", "string"],
        memory_bytes: int = 268435456,
        scratch: str | os.PathLike[str] | None = None,
    ) -> None:
        """Items that about `memory_bytes` do not hold are sorted in files without a name in the folder `scratch`.

        By default that is the folder of `path`. Raises ValueError on levels that are not 1 to 8, and a level size that
        is not 1 to 65536.
        """

    @property
    def size(self) -> int: ...
    def add(self, item_ids: NDArray[np.int64] | Sequence[str], codes: NDArray[np.uint16]) -> None:
        """Take items with their `codes` (n, L), in any order and any number of parts.

        Raises ValueError on codes out of range and TypeError on wrong dtypes, before anything is taken; OSError if the
        scratch folder cannot be written, after which a new builder is needed; RuntimeError then, and after `finish`.
        """

    def finish(self) -> None:
        """Write the file atomically; its bytes depend on the set of items alone.

        Raises ValueError on duplicate IDs, OSError if the file cannot be written, RuntimeError the second time.
        """

@final
class Codebook:
    """The map between item IDs and codes, in a file mapped read-only and shared between processes. Thread-safe."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map the file and check all of it. Raises ValueError with the reason if damaged, OSError if unreadable."""

    @property
    def size(self) -> int: ...
    @property
    def levels(self) -> int: ...
    @property
    def level_size(self) -> int: ...
    @property
    def id_type(self) -> Literal["int64", "string"]: ...
    @property
    def fingerprint(self) -> str:
        """32 hex digits that identify the set of items with their codes."""

    def __len__(self) -> int: ...
    def lookup(self, ids: NDArray[np.int64] | Sequence[str]) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Codes (n, L), 0 for unknown items, and known (n,). Raises TypeError if `ids` are of another type."""

    def items(self, codes: NDArray[np.uint16]) -> tuple[NDArray[np.int64], NDArray[np.int64] | list[str]]:
        """The items of each row of `codes` (n, L), as offsets (n + 1,) and IDs.

        Row i's are ids[offsets[i]:offsets[i + 1]], in the order of their hashes; a row that no item has is empty.
        Raises ValueError on an ID that is not UTF-8, which only a forged file has.
        """

@final
class CandidateTrie:
    """The trie of one request's candidates. Inner nodes are numbered breadth-first, within a depth by code path.

    Node 0 is the root. Candidates with equal codes share a leaf; unknown ones are left out, and their codes not read.
    """

    def __init__(self, codes: NDArray[np.uint16], known: NDArray[np.bool_], level_size: int) -> None:
        """`codes` (K, L) and `known` (K,), K from 0 to 1024. Raises ValueError on a code that is not below the size."""

    @property
    def size(self) -> int: ...
    @property
    def node_count(self) -> int: ...
    def nodes(self, depth: int) -> NDArray[np.int64]:
        """(n_d,) codes of the inner nodes at depth 1 to L - 1."""

    def mask(self) -> NDArray[np.float32]:
        """(n, n): 0 where the row's node sees the column's, that is itself and its ancestors, and -1e9 elsewhere."""

    def parents(self) -> NDArray[np.int32]:
        """(n,) parent of each inner node, -1 for the root."""

    def score(
        self,
        logits: NDArray[np.float32],
        prior: NDArray[np.float32] | None = None,
        *,
        normalization: Literal["raw", "local"] = "raw",
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Order (K,), best first, and scores (K,) by candidate, from `logits` (n, V) at the inner nodes.

        score = sum over the path of log softmax(logits[node])[code] + prior. `raw` normalises over all V codes, `local`
        over the node's children. Ties keep the incoming order; unknown candidates come last with -inf. Raises
        ValueError on a NaN or infinite value, naming its row and column.
        """
