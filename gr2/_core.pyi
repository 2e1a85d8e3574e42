"""The C++ core of gr2: codebooks and per-request candidate tries and decoders."""

import os
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, final

import numpy as np
from numpy.typing import NDArray

_Port = tuple[str, int, list[int]]

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
class CandidateDecoder:
    """Emits a request's candidates one after the other, each once, under a model that sees what was emitted.

    A loop over a model is

        append, allowed = decoder.next()
        while not decoder.done:
            context += append
            decoder.push(logits of the next code, given context)
            append, allowed = decoder.next()

    Between decisions the decoder walks on by itself while only one code is allowed, through any number of items: those
    codes are forced, and are appended to the context together with the code that was chosen.
    """

    def __init__(
        self,
        trie: CandidateTrie,
        *,
        mode: Literal["greedy", "sample"] = "greedy",
        seed: int = 0,
        temperature: float = 1.0,
        top_n: int | None = None,
    ) -> None:
        """`greedy` takes the largest logit, ties by the lowest position that a code still leads to.

        `sample` draws from softmax(logits / temperature) over the codes allowed: decision d takes the largest
        logit / temperature + g, where g is the Gumbel draw of (seed, d, code) that csrc/core/sampling.h defines, equal
        on every platform. `top_n` ends generation after so many items. Raises ValueError on a temperature that is not
        0.001 to 1000 and on `top_n` below 1.
        """

    @property
    def done(self) -> bool:
        """True if no decision is due: all was emitted, or `top_n` items, or nothing could be chosen."""

    @property
    def node(self) -> int:
        """The inner node of the coming decision, -1 if none is due."""

    @property
    def forced_count(self) -> int:
        """How many of the codes to append are forced; they are its end."""

    @property
    def nbytes(self) -> int:
        """Bytes of the state that generation changes, beside the record of codes."""

    @property
    def remaining(self) -> int:
        """How many known candidates were not emitted."""

    @property
    def order(self) -> NDArray[np.int32]:
        """(m,) the emitted candidates."""

    @property
    def codes(self) -> NDArray[np.uint16]:
        """(s,) every code since the start, L an item."""

    @property
    def forced(self) -> NDArray[np.bool_]:
        """(s,) True where the code was no decision."""

    def next(self) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """Codes to append to the context since the last decision, its own first, and the codes allowed to the next.

        Changes nothing. Codes are in order of the ranking, L an item. Nothing is allowed once the decoder is done.
        """

    def push(self, logits: NDArray[np.float32], *, row: int = 0) -> int:
        """The code chosen by the next code's `logits` (V,), of which -inf masks a code.

        If all allowed codes are masked it is -1, nothing is emitted, and the decoder is done. Raises ValueError on NaN
        and +inf, naming `row` and the column, and if the decoder is done.
        """

    def accept(self, code: int, logits: NDArray[np.float32] | None = None) -> None:
        """Take a choice made elsewhere; with `logits` (V,) its log-probabilities are recorded, else NaN.

        Raises ValueError as `push` does, and on a code that is not allowed or is masked.
        """

    def score_forced(self, logits: NDArray[np.float32]) -> None:
        """Record the raw log-probabilities of the forced codes to append, from the logits (f, V) that predict them."""

    def stop(self) -> None:
        """Emit nothing more."""

    def reset(self, seed: int = 0) -> None:
        """Back to the start, with another seed."""

    def log_probs(self, normalization: Literal["raw", "local"] = "local") -> NDArray[np.float32]:
        """(s,) log-probability of every code under logits / temperature.

        `local` is over the codes allowed, the policy that was followed: 0 for forced ones. `raw` is over all V codes:
        NaN for forced ones without `score_forced`.
        """

    def item_log_probs(self, normalization: Literal["raw", "local"] = "local") -> NDArray[np.float32]:
        """(m,) for each emitted candidate the sum over its codes."""

    def ranking(self, scores: NDArray[np.float32] | None = None) -> NDArray[np.int32]:
        """(K,) the emitted candidates, the other known ones by `scores` (K,), best first, and then the unknown.

        Ties and the unknown are in incoming order. Raises ValueError on NaN, and if several known candidates are left
        and there are no scores.
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
    def levels(self) -> int: ...
    @property
    def level_size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def node_count(self) -> int: ...
    def nodes(self, depth: int) -> NDArray[np.int64]:
        """(n_d,) codes of the inner nodes at depth 1 to L - 1."""

    def mask(self) -> NDArray[np.float32]:
        """(n, n): 0 where the row's node sees the column's, that is itself and its ancestors, and -1e9 elsewhere."""

    def parents(self) -> NDArray[np.int32]:
        """(n,) parent of each inner node, -1 for the root."""

    def tokens(self) -> NDArray[np.int64]:
        """(n - 1,) level_size * (depth - 1) + code of the inner nodes below the root."""

    def counts(self) -> NDArray[np.int64]:
        """(L - 1,) how many inner nodes each depth below the root has."""

    def ancestors(self) -> NDArray[np.int64]:
        """(n - 1, L - 1): the node's own number, its parent's and so on, counted without the root; -1 from there on."""

    def sample(
        self, scores: NDArray[np.float32], *, seed: int, temperature: float = 1.0
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Order (K,) as drawn without replacement by Gumbel-top-k, and log-probabilities (K,) by candidate.

        The next candidate is of path p with probability proportional to exp(score / temperature) of the best candidate
        that p still has; `scores` (K,) are those of `score`. A log-probability is that of the draw given those before:
        their sum is the ranking's. -inf masks a candidate: like the unknown it comes last, undrawn, with -inf. Raises
        ValueError on NaN and +inf, naming the row, and on a temperature that is not 0.001 to 1000.
        """

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
class ItemMemory:
    """What is known of pairs of items, looked up for candidates against a history, in a mapped file. Thread-safe.

    `gr2.models.memory` defines the columns, `gr2.export.memory` writes the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map the file. Raises ValueError with the reason if it is no memory file, OSError if unreadable."""

    @property
    def items(self) -> int: ...
    @property
    def levels(self) -> int: ...
    def find(self, codes: NDArray[np.uint16]) -> NDArray[np.int64]:
        """(n,) row of the first item that has each of `codes` (n, L), `items` where none has."""

    def columns(
        self,
        past: NDArray[np.int64],
        past_codes: NDArray[np.uint16],
        own: NDArray[np.int64],
        own_codes: NDArray[np.uint16],
    ) -> NDArray[np.float32]:
        """(K, 25) of candidates with rows `own` (K,) and their codes (K, L) after a history, oldest first, of rows
        `past` (T,) and their codes (T, L). Raises ValueError on a row that is not 0 to `items`.
        """

@final
class EncodedHistory:
    """What a student makes of a history: keys and values of every layer, and what follows from the history alone."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Raises TypeError: `CoreStudent.encode` makes them."""

    @property
    def nbytes(self) -> int: ...

@final
class CoreStudent:
    """The student, computed from its weights in a mapped file. Thread-safe.

    `gr2.models.student` defines the model, `gr2.export.weights_file` writes the file.
    """

    MEMORY_COLUMNS: ClassVar[int]

    def __init__(self, path: str | os.PathLike[str], arithmetic: str = "fp32", encoding: str = "item") -> None:
        """Map the file. The arithmetic is "fp32" or "int8", which rounds the transformer's rows to 8 bits, each by its
        own range, and its weights to 7, each column by its own. A token of the history is an "item" or a "code".
        Raises ValueError with the reason if it is no weights file, OSError if unreadable.
        """

    @property
    def levels(self) -> int: ...
    @property
    def level_size(self) -> int: ...
    @property
    def max_history(self) -> int: ...
    @property
    def features(self) -> int: ...
    @property
    def items(self) -> int: ...
    def encode(self, codes: NDArray[np.uint16], rows: NDArray[np.int64]) -> EncodedHistory:
        """The history of `codes` (T, L) and `rows` (T,), as `ItemMemory.find` gives them. Raises ValueError on codes
        beyond the levels' size, and on more than `max_history` items.
        """

    def score(
        self,
        encoded: EncodedHistory,
        trie: CandidateTrie,
        codes: NDArray[np.uint16],
        rows: NDArray[np.int64],
        features: NDArray[np.float32],
        memory: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits (n, V) at the trie's inner nodes and prior (K,), of candidates with `codes` (K, L), `rows` (K,),
        `features` (K, F - 25) and what the memory knows of them, `memory` (K, 25).
        """

@final
class PrefixCache:
    """Values by key in bounded memory; the least recently used go first. Thread-safe.

    Keys are compared whole. An entry takes its value's bytes, its key's and 192 more.
    """

    def __init__(self, capacity: int) -> None:
        """Holds `capacity` bytes at most; with 0 it keeps nothing. Raises ValueError if it is negative."""

    @property
    def capacity(self) -> int: ...
    def find(self, key: bytes) -> Any:
        """The value of `key`, now the most recently used; None if there is none."""

    def insert(self, key: bytes, value: object, size: int) -> None:
        """Keep a value of `size` bytes, unless it alone is beyond the capacity; it replaces the key's older one."""

    def clear(self) -> None:
        """Drop every entry; the counts go on."""

    def counts(self) -> dict[str, int]:
        """`hits`, `misses`, `evicted`, `entries` and `bytes`."""

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
        """Begin `batch` searches, 1 to 65536 and with M times that at most 2^24, on a trie that they keep.

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

def simd_levels() -> list[str]:
    """The generations of vector instructions that this processor has, lowest first: "base" to "x86-64-v4"."""

def simd_level() -> str:
    """The generation in use: the highest, unless another was chosen."""

def use_simd_level(level: str) -> None:
    """Use another generation from now on, in all threads. Raises ValueError on one that the processor lacks."""

class OnnxError(RuntimeError):
    """What onnxruntime said, or why a library is not the onnxruntime that is expected."""

@final
class OnnxRuntime:
    """onnxruntime, loaded from its shared library through the C API. Thread-safe."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Load the library and run a model of its own on it. Raises OnnxError if it cannot be used."""

    @property
    def version(self) -> str: ...

@final
class ParsedRequest:
    """A serialised gr2.v1.RerankRequest, parsed as the official parser does."""

    def __init__(self, data: bytes) -> None: ...
    @property
    def bundle(self) -> str | None:
        """The name of the bundle that the request is for, empty for the default; None if the bytes are no request."""

    @property
    def fallback(self) -> bool:
        """Whether the request asks for the incoming order in place of a refusal."""

    def fields(self) -> dict[str, Any]:
        """The fields by name; item IDs as integers and strings. Raises ValueError if the bytes are no request."""

@final
class Call:
    """One call's place in an admission."""

    def __init__(self) -> None: ...
    @property
    def cancelled(self) -> bool:
        """Whether the caller has gone."""

@final
class ServiceTimes:
    """How long the requests of one bundle took of late, by their size."""

    def __init__(self) -> None: ...

@final
class Admission:
    """Which requests work now, which wait, and which are refused; and what became of them. Thread-safe.

    Outcomes are those of `gr2.serving.models.outcomes.Outcome`, as numbers.
    """

    def __init__(self, workers: int, queue: int) -> None:
        """At most `workers` requests work at once, and at most `queue` wait. Raises ValueError without any worker."""

    def enter(
        self,
        call: Call,
        *,
        seconds: float | None = None,
        low: bool = False,
        size: int = 1,
        times: ServiceTimes | None = None,
    ) -> int | None:
        """Wait for a worker. None once the call may work, and `leave` must follow; else the outcome.

        A call that has `seconds` left is refused at once if its time would not suffice, going by how long requests of
        about its `size` took of late, of those that had the same `times`. Those of `low` priority come after all
        others.
        """

    def leave(self, call: Call, *, done: bool) -> None:
        """End the work; `done` says that it took the time that such work takes. Raises ValueError if there is none."""

    def cancel(self, call: Call) -> None:
        """The caller has gone: a call that waits, or enters later, is refused."""

    def count(self, outcome: int, timings: Sequence[int] | None = None) -> None:
        """Count a request that was handled in Python; an answered one with its timings, in ns and in their order."""

    def stats(self) -> dict[str, Any]:
        """Counts since the start, and the load now.

        `outcomes`: how many requests each outcome had. `phases`: for parse, lookup, trie, model, rank, total and queue
        a pair, of counts in the buckets of `gr2.serving.observing.histogram` and of the sum in ns. `working`, `waiting`
        (high, low), `expected_wait_ns`.
        """

@final
class StartedRequest:
    """A request that has a worker or waits for one. Dropped before it is finished, it gives its place up."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Raises TypeError: `RequestEngine.start` makes them."""

    def finish(self) -> tuple[int, bytes]:
        """Wait for the worker: the outcome, and the serialised reply, or the reason for none. Once only."""

@final
class RequestEngine:
    """One bundle, answering requests without Python. Thread-safe."""

    def __init__(
        self,
        runtime: OnnxRuntime,
        scorer: bytes,
        encoder: bytes,
        codebook: Codebook,
        items: ItemMemory | None,
        student: CoreStudent | None,
        *,
        max_history: int,
        columns: int,
        normalization: Literal["raw", "local"],
        takes_candidates: bool,
        most_history: int,
        most_candidates: int,
        feature_width: int,
        uses_scores: bool,
        rank_features: NDArray[np.float32],
        version: str,
        memory: tuple[int, int, int, int, int, int],
        one_layer: bool,
        tokens: int,
        threads: int = 1,
        cache_bytes: int = 0,
    ) -> None:
        """`scorer` is the whole graph, or, after an `encoder`, the rest; encoded histories take up to `cache_bytes`.
        `items` is the memory that the two need; a `student`, which needs it too, is computed instead of graphs.
        `rank_features` (most_candidates, columns - feature_width) are what scores say of a candidate, by its rank.
        `memory` is what a run takes, in bytes (see `gr2.serving.models.memory`): a cell of attention, of the causal
        mask, of a position and of a candidate with an event, and then beyond what a request runs alone, and what it is
        refused. `tokens` are those of the history that an item has.
        Raises OnnxError if the graph cannot be loaded, ValueError on sizes that do not fit.
        """

    @property
    def scorer(self) -> tuple[list[_Port], list[_Port]] | None:
        """Inputs and outputs: names, element types as ONNX numbers them, shapes with -1 for what varies; None for a
        student.
        """

    @property
    def encoder(self) -> tuple[list[_Port], list[_Port]] | None:
        """The encoder's, likewise; None without one."""

    def cache_counts(self) -> dict[str, int]:
        """Of the encoded histories: `hits`, `misses`, `evicted`, `entries` and `bytes`."""

    def clear_cache(self) -> None:
        """Forget the encoded histories."""

    def score(
        self,
        past: NDArray[np.uint16],
        codes: NDArray[np.uint16],
        known: NDArray[np.bool_],
        features: NDArray[np.float32],
    ) -> tuple[NDArray[np.int32], NDArray[np.float32], int, int]:
        """Order (K,), scores (K,) by candidate, and when the model began and ended, in ns of a monotonic clock.

        `past` (T, L), `codes` (K, L) and `known` (K,), one of them at least, and `features` (K, columns). Raises
        ValueError if the model gives a value that is not finite, naming its row, and OnnxError if it fails.
        """

    def start(
        self,
        request: ParsedRequest,
        admission: Admission,
        call: Call,
        *,
        seconds: float | None = None,
        times: ServiceTimes | None = None,
    ) -> StartedRequest | tuple[int, bytes]:
        """Ask for a worker, without waiting, for a request that has `seconds` left; see `Admission.enter`.

        Returns the request if it has a worker or waits for one; else the outcome, with the reply or with b"".
        """
