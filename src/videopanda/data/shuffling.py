"""An order and a subset that depend on (id, seed) alone: the same on every rank, machine and day.

Every sample has a 64-bit key, made from its id. A seed turns keys into evenly spread numbers; sorted by them, samples
are shuffled, and those below a bound are the subset. Whether a sample is in the subset does not depend on the others,
so a stream can decide it row by row.
"""

import hashlib

import numpy as np

_FULL = float(1 << 64)


def key_of(*names: str) -> int:
    """64 bits from names, such as a source and an id."""
    return int.from_bytes(hashlib.blake2b("\0".join(names).encode(), digest_size=8).digest(), "little")


def spread(keys: np.ndarray, *seeds: int) -> np.ndarray:
    """Evenly spread numbers, uint64 (N,), from keys, uint64 (N,), and seeds; equal for equal input only."""
    values = keys.astype(np.uint64)
    for seed in seeds:
        values = _mixed(values ^ np.uint64(key_of(str(seed))))
    return values


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64, a bijection on 64 bits."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def told_apart(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys, uint64 (N,), of which equal ones are made different, and how often each stood before it, int64 (N,)."""
    by_key = np.argsort(keys, kind="stable")
    ordered = keys[by_key]
    first = np.searchsorted(ordered, ordered, side="left")
    before = np.empty(len(keys), np.int64)
    before[by_key] = np.arange(len(keys)) - first
    return np.where(before > 0, _mixed(keys + before.astype(np.uint64)), keys), before


def subset(keys: np.ndarray, seed: int, share: float) -> np.ndarray:
    """Which keys belong to the subset, bool (N,). About `share` of them do; all do for a share of 1."""
    return spread(keys, seed) < share * _FULL if share < 1 else np.ones(len(keys), bool)


def shuffled(keys: np.ndarray, seed: int, epoch: int = 0) -> np.ndarray:
    """Indices, int64 (N,), in the order of an epoch. In epoch 0 the subset of a share comes first."""
    spread_keys = spread(keys, seed) if epoch == 0 else spread(keys, seed, epoch)
    return np.argsort(spread_keys, kind="stable")
