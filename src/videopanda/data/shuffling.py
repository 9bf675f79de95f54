"""Shuffling and subsets that depend on (id, seed) alone: the same on every rank and machine.

Every sample has a 64-bit key, a hash of its id. Hashed again with a seed, the keys give the order, and the smallest
ones the subset.
"""

import hashlib

import numpy as np


def key_of(*names: str) -> int:
    """A 64-bit hash of names, such as a source and an id."""
    return int.from_bytes(hashlib.blake2b("\0".join(names).encode(), digest_size=8).digest(), "little")


def hash_keys(keys: np.ndarray, *seeds: int) -> np.ndarray:
    """Hash keys, uint64 (N,), with seeds to uniformly distributed uint64 (N,); distinct keys stay distinct."""
    values = keys.astype(np.uint64)
    for seed in seeds:
        values = _mixed(values ^ np.uint64(key_of(str(seed))))
    return values


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64, a bijection on 64 bits."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def disambiguate_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make duplicate keys, uint64 (N,), unique; also return how often each occurred before, int64 (N,)."""
    by_key = np.argsort(keys, kind="stable")
    ordered = keys[by_key]
    first = np.searchsorted(ordered, ordered, side="left")
    before = np.empty(len(keys), np.int64)
    before[by_key] = np.arange(len(keys)) - first
    return np.where(before > 0, _mixed(keys + before.astype(np.uint64)), keys), before


def hold_out(media: np.ndarray, counts: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are for training and which for validation, two bool (R,). A row with files of both kinds is in
    neither.

    `num` of the files, at most a tenth, are held out, chosen by their keys alone, so all stages agree.

    Args:
        media: keys of the files of all rows, uint64, row after row.
        counts: how many files each row has, (R,). Rows without any are for training.
    """
    files = np.unique(media.astype(np.uint64))
    chosen = files[np.argsort(hash_keys(files, 0))[: min(num, len(files) // 10)]]
    held = np.bincount(np.repeat(np.arange(len(counts)), counts), np.isin(media, chosen), minlength=len(counts))
    return held == 0, (held == counts) & (held > 0)


def subset(keys: np.ndarray, seed: int, share: float) -> np.ndarray:
    """Which keys belong to the subset, bool (N,): exactly `share` of the distinct ones, rounded to a whole number."""
    distinct = np.unique(keys)
    first = np.argsort(hash_keys(distinct, seed), kind="stable")[: round(share * len(distinct))]
    return np.isin(keys, distinct[first])


def shuffled(keys: np.ndarray, seed: int, epoch: int = 0) -> np.ndarray:
    """Indices, int64 (N,), in the order of an epoch. In epoch 0 the subset of a share comes first."""
    hashed = hash_keys(keys, seed) if epoch == 0 else hash_keys(keys, seed, epoch)
    return np.argsort(hashed, kind="stable")
