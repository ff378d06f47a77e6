"""Compiled: the hash table of :class:`indexer.ids.Ids`. One thread, no GIL.

A slot is 0, or the 32-bit hash of an id above its ordinal + 1. The hash says where the search for it begins, so that a
larger table is made without reading an id.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from indexer.compiling import njit
from indexer.half import prefetch

A = Any
_BASIS, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_LOW = np.uint64(0xFFFFFFFF)


@njit(cache=True, nogil=True)
def _hash(text: A, begin: int, end: int) -> A:
    """32 bits in a uint64, the same in every process: FNV-1a, its high bits mixed in."""
    out = _BASIS
    for at in range(begin, end):
        out = (out ^ np.uint64(text[at])) * _PRIME
    return ((out ^ (out >> np.uint64(29))) * _MIX) >> np.uint64(32)


@njit(cache=True, nogil=True)
def _slot(table: A, offsets: A, text: A, wanted: A, begin: int, end: int, name: A) -> A:
    """Where an id is in the table, else the free slot for it."""
    mask = table.shape[0] - 1
    slot = np.int64(name) & mask
    while table[slot]:
        if table[slot] >> np.uint64(32) == name:
            ordinal = np.int64(table[slot] & _LOW) - 1
            first, length = offsets[ordinal], end - begin
            if offsets[ordinal + 1] - first == length:
                same = 0
                while same < length and text[first + same] == wanted[begin + same]:
                    same += 1
                if same == length:
                    return slot
        slot = (slot + 1) & mask
    return slot


@njit(cache=True, nogil=True)
def insert(table: A, offsets: A, text: A, first: int, last: int) -> int:
    """Put the ids of ordinals from ``first`` up to ``last`` in, except empty ones and known ones; returns how many."""
    added = 0
    for ordinal in range(first, last):
        begin, end = offsets[ordinal], offsets[ordinal + 1]
        if begin == end:
            continue
        name = _hash(text, begin, end)
        slot = _slot(table, offsets, text, text, begin, end, name)
        if not table[slot]:
            table[slot] = name << np.uint64(32) | np.uint64(ordinal + 1)
            added += 1
    return added


@njit(cache=True, nogil=True)
def find(table: A, offsets: A, text: A, lengths: A, wanted: A, out: A) -> None:
    """Ordinals of n ids that stand one after the other in ``wanted``, -1 of those that are not there."""
    begin = 0
    for at in range(lengths.shape[0]):  # apart, so that memory looks for all of them at once
        name = _hash(wanted, begin, begin + lengths[at])
        out[at] = name
        prefetch(table.ctypes.data + (np.int64(name) & (table.shape[0] - 1)) * table.itemsize)
        begin += lengths[at]
    begin = 0
    for at in range(lengths.shape[0]):
        end = begin + lengths[at]
        slot = _slot(table, offsets, text, wanted, begin, end, np.uint64(out[at]))
        out[at] = np.int64(table[slot] & _LOW) - 1
        begin = end


@njit(cache=True, nogil=True)
def enlarge(table: A, larger: A) -> None:
    """Copy a table into a larger one, which is empty."""
    mask = larger.shape[0] - 1
    for at in range(table.shape[0]):
        if table[at]:
            slot = np.int64(table[at] >> np.uint64(32)) & mask
            while larger[slot]:
                slot = (slot + 1) & mask
            larger[slot] = table[at]


@njit(cache=True, nogil=True)
def gather(offsets: A, text: A, ordinals: A, ends: A, out: A) -> None:
    """Texts of n ordinals one after the other; ``ends`` (n,) says where each ends in ``out``."""
    begin = 0
    for at in range(ordinals.shape[0]):
        first = offsets[ordinals[at]] - begin
        for to in range(begin, ends[at]):
            out[to] = text[first + to]
        begin = ends[at]
