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
        scratch folder cannot be written; RuntimeError after `finish`.
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

@final
class CatalogTrie:
    """The trie of a whole catalogue; items are the rows of its sorted codes. Immutable and thread-safe."""

    def __init__(self, codes: NDArray[np.uint16], level_size: int) -> None:
        """`codes` (N, L), L from 1 to 8, its rows in lexicographic order; equal rows share a leaf.

        Raises ValueError that names the row and level of a code that is out of order or not below `level_size`, which
        is 1 to 65536.
        """

    @staticmethod
    def open(path: str | os.PathLike[str]) -> CatalogTrie:
        """Map the file and check all of it. Raises ValueError with the reason if damaged, OSError if unreadable."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file atomically; its bytes depend on the codes alone. Raises OSError if it cannot be written."""

    @property
    def size(self) -> int: ...
    @property
    def levels(self) -> int: ...
    @property
    def level_size(self) -> int: ...
    @property
    def byte_size(self) -> int:
        """Bytes of the whole index, which are also the file's."""

    def __len__(self) -> int: ...
    def level(self, level: int) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        """Offsets (n + 1,) and codes (e,) of the edges that leave the n nodes at depth `level`, 0 to L - 1.

        Edge i leads to node i of the next depth; those of node j are offsets[j] to offsets[j + 1], their codes ascend.
        """

    def item_offsets(self) -> NDArray[np.int64]:
        """(leaves + 1,): leaf i holds the items offsets[i] to offsets[i + 1]."""

@final
class ItemFilter:
    """Which items of a catalogue a search may return, in memory of the size of the sets. Immutable and thread-safe."""

    def __init__(
        self, trie: CatalogTrie, *, allow: NDArray[np.int64] | None = None, deny: NDArray[np.int64] | None = None
    ) -> None:
        """Sets of item rows, in any order, repeated or not; with `allow`, all other items are denied.

        Raises ValueError that names a row that the catalogue does not have.
        """

    @property
    def size(self) -> int: ...
    def __len__(self) -> int: ...

@final
class Retriever:
    """Beam search over a catalogue's trie that owns its state. Calls from several threads wait for each other.

    At each level each search keeps the M children with the highest scores among those that lead to a permitted item.
    `raw` adds log softmax over the whole level, `local` over the node's permitted children. A child whose logit is -inf
    is masked. Equal scores are ordered by the parent's rank, then by code. With fewer than M children the last beams
    are dead. `gr2.decoding.reference_retrieve` computes the same, readably.
    """

    def __init__(self, beams: int, *, normalization: Literal["raw", "local"] = "raw") -> None:
        """`beams`, M, is 1 to 4096. Raises ValueError."""

    @property
    def beams(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def level(self) -> int: ...
    def start(
        self,
        trie: CatalogTrie,
        batch: int = 1,
        *,
        filters: ItemFilter | Sequence[ItemFilter | None] | None = None,
    ) -> None:
        """Begin `batch` searches, 1 to 65536, on a trie that they keep until the next start.

        `filters` is one for all, or a list or tuple with one for each. Raises ValueError on a filter of another trie.
        """

    def step(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Parents, codes and scores, each (B, M), of the new beams, best first, from the logits (B, M, V) at the old.

        Before the first step there is one beam: (B, 1, V). Parents are ranks among the old beams. A dead beam has
        parent 0, code 0 and score -inf, and its logits are not read. Raises ValueError on other shapes and on logits
        that are NaN or +inf, naming batch, beam and column, and the search is then where it was; RuntimeError after the
        last level.
        """

    def finish(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The M best items of each search and their scores, (B, M); -1 and -inf where there are fewer.

        Items of one leaf have its score and keep row order. Raises RuntimeError before the last level is done.
        """

    def paths(self) -> NDArray[np.uint16]:
        """(B, M, level) codes on the beams' paths so far, zeros of dead ones."""

    def nodes(self) -> NDArray[np.int64]:
        """(B, M), (B, 1) before the first step: the beams' nodes, breadth-first over the whole trie; -1 if dead."""
