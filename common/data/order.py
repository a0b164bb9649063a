"""Which records make up the batch of a step: a pure function of (seed, step).

Every pass over a source is a keyed permutation, computed per position (a Feistel network with cycle
walking: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002), so any step can be asked
for at once and nothing has to be stored to resume. The hash is spelt out here because the random
streams of numpy's generators may change between its versions, and a resumed run must not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.errors import UserError

MIXING_BLOCK = 1000  # draws after which a mixture has kept its weights, if none is below 1/500
_LEAST_SHARE = 1e-6  # of a source in a mixture
_ROUNDS = 6  # of the Feistel network; four are the textbook's minimum


class Order:
    """The sequence in which the records of one or several sources are drawn.

    Draw number ``g = step * batch_size + position`` belongs to one source and one record of it. In
    a mixture, the first n blocks of `mixing_block` draws together give every source its share to
    within one draw, for every n. Each source is walked pass by pass, every pass visiting each of
    its records once in another order.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        batch_size: int,
        seed: int,
        block_size: int = 1,
        reserves: int = 4,
    ):
        """Takes records per source, their weights and the global batch size.

        Args:
            sizes: number of records of each source, at least 1.
            weights: share of each source in the draws; they need not sum to 1.
            batch_size: draws per step over all processes.
            seed: any integer.
            block_size: this many neighbouring records are drawn one after the other.
            reserves: columns of `batch`, the record itself and its stand-ins.

        Raises:
            UserError: an empty source or batch, or a weight that is not positive or next to none.
        """
        if not sizes or min(sizes) < 1 or batch_size < 1:
            raise UserError(
                f"Nothing to draw: sources of {list(sizes)} records, batch_size {batch_size}."
            )
        if len(weights) != len(sizes) or not all(0 < weight < np.inf for weight in weights):
            raise UserError(f"Every source needs a weight above 0; the weights are {weights}.")
        if block_size < 1 or reserves < 1:
            raise UserError(f"data.block_size must be at least 1; it is {block_size}.")
        self.batch_size, self.seed, self.reserves = batch_size, seed, reserves
        self._sizes = np.asarray(sizes, np.int64)
        shares = np.asarray(weights, np.float64) / np.sum(weights)
        if shares.min() < _LEAST_SHARE:
            raise UserError(
                f"The weights are {list(weights)}: a source that is drawn less than once in a "
                "million draws is as good as none. Give it more weight, or leave it out."
            )
        # Two draws of the lightest source: with less than one, rounding could take a draw back.
        self.mixing_block = max(MIXING_BLOCK, int(np.ceil(2 / shares.min())))
        self._shares = np.cumsum(shares)
        self._shares[-1] = 1.0  # whatever the rounding of the sum
        self._block_sizes = np.minimum(block_size, self._sizes)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns what step `step` draws, over all processes.

        Returns:
            ``source_B`` and ``record_BK``, both int64. Column 0 holds the record that belongs
            there; the others are those that take its place, in turn, where it cannot be read. They
            are of the same source, and differ from each other where it has as many records.
        """
        return self.draws(np.arange(step * self.batch_size, (step + 1) * self.batch_size))

    def draws(self, numbers_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns ``source_B`` and ``record_BK`` of any draw numbers (see `batch`)."""
        source_B, turn_B = self._mix(numbers_B)
        size_B = self._sizes[source_B]
        first_B = self._record(source_B, turn_B // size_B, turn_B % size_B)
        others_B = np.maximum(size_B - 1, 1)
        # Far apart, because what spoils one record (a damaged shard) often spoils its neighbours.
        stride_B = np.maximum(others_B // self.reserves, 1)
        begin_B = (_hash(self.seed, 2, numbers_B) % others_B.astype(np.uint64)).astype(np.int64)
        columns = [first_B]
        for k in range(self.reserves - 1):
            away_B = 1 + (begin_B + k * stride_B) % others_B
            columns.append((first_B + away_B) % size_B)
        return source_B, np.stack(columns, axis=1)

    def _mix(self, numbers_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source of each draw and which draw of that source it is."""
        source_B, turn_B = np.zeros_like(numbers_B), numbers_B.copy()
        if len(self._sizes) == 1:
            return source_B, turn_B
        for block in np.unique(numbers_B // self.mixing_block):
            inside = numbers_B // self.mixing_block == block
            positions = numbers_B[inside] - block * self.mixing_block
            before = self._drawn(block)
            counts = self._drawn(block + 1) - before
            sources = np.repeat(np.arange(len(counts)), counts)
            keys = _hash(self.seed, 1, block * self.mixing_block + np.arange(self.mixing_block))
            sources = sources[np.argsort(keys, kind="stable")]
            turns = np.zeros_like(sources)
            for source in range(len(counts)):
                mine = sources == source
                turns[mine] = before[source] + np.arange(counts[source])
            source_B[inside], turn_B[inside] = sources[positions], turns[positions]
        return source_B, turn_B

    def _drawn(self, blocks: int) -> np.ndarray:
        """Returns how often each source is drawn in the first `blocks` blocks."""
        ends = np.floor(self._shares * (int(blocks) * self.mixing_block) + 0.5).astype(np.int64)
        return np.diff(ends, prepend=0)

    def _record(self, source_B: np.ndarray, epoch_B: np.ndarray, at_B: np.ndarray) -> np.ndarray:
        """Returns the record at place `at_B` of pass `epoch_B` over each source.

        The records, turned by a random offset as if on a ring, are cut into blocks of neighbours;
        the whole blocks are permuted, and the rest, other records in every pass, comes last.
        """
        size_B, block_B = self._sizes[source_B], self._block_sizes[source_B]
        whole_B = size_B // block_B
        key_B = _hash(self.seed, 3, source_B, epoch_B)
        place_B = at_B // block_B
        permuted_B = _permute(np.minimum(place_B, whole_B - 1), whole_B, key_B)
        place_B = np.where(place_B < whole_B, permuted_B, place_B)
        offset_B = (_hash(key_B) % size_B.astype(np.uint64)).astype(np.int64)
        return (place_B * block_B + at_B % block_B + offset_B) % size_B


def _permute(x_B: np.ndarray, size_B: np.ndarray, key_B: np.ndarray) -> np.ndarray:
    """Maps each ``x < size`` to its image under the permutation of ``range(size)`` named by key."""
    bits_B = np.ceil(np.log2(np.maximum(size_B, 2)) / 2).astype(np.uint64)  # of one half
    mask_B = (np.uint64(1) << bits_B) - np.uint64(1)
    keys = [_hash(key_B, round_) for round_ in range(_ROUNDS)]
    y_B = x_B.astype(np.uint64)
    outside = np.ones(x_B.shape, bool)
    while outside.any():  # the network permutes a power of four; walk on until back inside
        left, right = y_B[outside] >> bits_B[outside], y_B[outside] & mask_B[outside]
        for key in keys:
            left, right = right, left ^ (_hash(key[outside], right) & mask_B[outside])
        y_B[outside] = (left << bits_B[outside]) | right
        outside = y_B >= size_B.astype(np.uint64)
    return y_B.astype(np.int64)


def _hash(*parts: int | np.ndarray) -> np.ndarray:
    """Hashes integers (broadcast against each other) to uint64 by chained SplitMix64."""
    h = np.zeros(1, np.uint64)
    for part in parts:
        if isinstance(part, int):
            part = part & 0xFFFFFFFFFFFFFFFF
        z = (h ^ np.asarray(part).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        h = z ^ (z >> np.uint64(31))
    return h
