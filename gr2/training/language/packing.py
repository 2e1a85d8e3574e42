"""Rows of tokens packed side by side into sequences of one length, so that batches carry next to no padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from gr2.training.language.token_rows import TokenRows

__all__ = ["Batch", "packed_batches", "sequences"]

# Rows packed together: many enough to fill sequences, few enough that epochs still differ in what lies side by side.
PACKED_TOGETHER = 2000


@dataclass(frozen=True)
class Batch:
    """Row numbers (R,) int64, and the sequence (R,) int64, ascending from 0, that each lies in; None: one for each."""

    rows: NDArray[np.int64]
    sequence: NDArray[np.int64] | None = None

    def tensors(self, table: TokenRows) -> tuple[Tensor, ...]:
        """Token IDs (B, T) int64, padded with 0 at the end, and (B, T) bool, which of them are learnt.

        Of a packed batch also the positions (B, T) int64, which start from 0 with every row: by them, models of
        `transformers` keep rows apart that lie side by side.
        """
        if self.sequence is None:
            return table.batch(self.rows)
        lengths = table.lengths[self.rows]
        ends = np.cumsum(lengths)
        position = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        first = np.flatnonzero(np.diff(self.sequence, prepend=-1))
        before = np.repeat((ends - lengths)[first], np.diff(np.append(first, len(self.rows))))
        sequence = np.repeat(self.sequence, lengths)
        column = np.arange(ends[-1]) - np.repeat(before, lengths)
        place = np.repeat(table.offsets[self.rows], lengths) + position
        shape = (len(first), int(column.max()) + 1)
        arrays = []
        for values in (table.tokens[place].astype(np.int64), table.learnt[place], position):
            array = np.zeros(shape, dtype=values.dtype)
            array[sequence, column] = values
            arrays.append(torch.from_numpy(array))
        return tuple(arrays)


def packed_batches(
    table: TokenRows, rows: NDArray[np.int64], tokens: int, generator: np.random.Generator
) -> list[Batch]:
    """`rows` (row numbers) in batches of at most `tokens` tokens, padding included, or one row; in random order.

    Sequences are as long as the longest row of the table.
    """
    if not len(rows):
        return []
    order = generator.permutation(rows)
    width = int(table.lengths.max())
    found = sequences(table.lengths[order], width)
    count = max(1, tokens // width)
    drawn = [found[number] for number in generator.permutation(len(found))]
    parts = [drawn[first : first + count] for first in range(0, len(drawn), count)]
    return [
        Batch(order[np.concatenate(part)], np.repeat(np.arange(len(part)), [len(each) for each in part]))
        for part in parts
    ]


def sequences(lengths: NDArray[np.int64], width: int) -> list[NDArray[np.int64]]:
    """The rows in each of as few sequences of at most `width` tokens as best-fit-decreasing packing finds.

    `lengths` (R,) are those of the rows, none above `width`. The algorithm is that of "Fewer Truncations Improve
    Language Modeling" (arXiv 2404.10830), as TRL has it.
    """
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled
    from trl.data_utils import pack_dataset

    # TRL packs lists of tokens; lists of the row's own number tell afterwards which row went where.
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    numbers = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    table = Dataset(pa.table({"row": pa.LargeListArray.from_arrays(offsets, numbers)}))
    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        packed = pack_dataset(table, width, strategy="bfd", map_kwargs={"batch_size": PACKED_TOGETHER})
    finally:
        if shown:
            enable_progress_bar()
    made = packed.with_format("arrow")[:]
    row, held = (made[name].combine_chunks() for name in ("row", "seq_lengths"))
    inside = held.flatten().to_numpy()
    first = row.flatten().to_numpy()[np.cumsum(inside) - inside].astype(np.int64)
    return np.split(first, np.cumsum(held.value_lengths().to_numpy())[:-1])
