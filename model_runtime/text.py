"""Many strings as one array of folded code points, and where the words in it are.

Folding is Unicode NFC, then lower case: composed and decomposed spellings of one title are one title. A word
is a run of letters, numbers, marks and symbols (so that an emoji is a word); a text without any is one word
as a whole (so that ``"..."`` still is something). The character tables are those of the running Python.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

SEPARATOR: Final = "\n"  # no word, not cased, does not compose: folding never looks across it
_TABLE_SIZE: Final = 0x40000  # above are only private, unassigned and selector code points
_JOINERS: Final = (0x200C, 0x200D)  # inside words of Persian and Indic scripts, and inside emoji


@dataclass(frozen=True, slots=True)
class Strings:
    """k strings laid one after the other, each with one separator before and one after it.

    Attributes:
        code_points: (n,) uint32.
        starts, ends: (k,) int64, string i is ``code_points[starts[i]:ends[i]]``.
    """

    code_points: npt.NDArray[np.uint32]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]


def _fold(strings: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The folded strings joined, and the strings they are, for their lengths."""
    joined = SEPARATOR.join(strings)
    folded = joined.lower()
    if joined.isascii():
        return folded, strings
    # One call for the batch, unless folding would move the boundaries; lower() never makes a string shorter.
    if len(folded) == len(joined) and unicodedata.is_normalized("NFC", joined):
        return folded, strings
    apart = [s if s.isascii() else unicodedata.normalize("NFC", s) for s in strings]
    apart = [s.lower() for s in apart]
    return SEPARATOR.join(apart), apart


def lay_out(folded: Sequence[str], exact: Sequence[str]) -> Strings:
    """All strings in one array: first those to fold, then those whose case and spelling matter.

    Any ``str`` is accepted: NUL, separators inside strings and lone surrogates are characters like others.
    """
    text, folded = _fold(folded)
    joined = SEPARATOR + text + SEPARATOR + SEPARATOR.join(exact) + SEPARATOR
    lengths = np.fromiter(map(len, (*folded, *exact)), np.int64, len(folded) + len(exact))
    ends = np.cumsum(lengths + 1)
    if not folded:
        ends += 1  # the empty folded part still left its separator
    code_points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4")
    return Strings(code_points.astype(np.uint32, copy=False), ends - lengths, ends)


@cache
def _word_table() -> npt.NDArray[np.bool_]:
    """(0x40000,) which code points belong to words; the last entry speaks for all above."""
    category = unicodedata.category
    table = np.fromiter((category(chr(c))[0] in "LNMS" for c in range(_TABLE_SIZE)), np.bool_, _TABLE_SIZE)
    table[list(_JOINERS)] = True
    table[-1] = False
    return table


def word_mask(strings: Strings, count: int) -> npt.NDArray[np.bool_]:
    """Which characters of the first ``count`` strings belong to words: (m,) bool.

    m is the end of string ``count - 1`` plus its separator. Separators are never words.
    """
    length = int(strings.ends[count - 1]) + 1 if count else 0
    code_points = strings.code_points[:length]
    table = _word_table()
    mask: npt.NDArray[np.bool_] = table[np.minimum(code_points, _TABLE_SIZE - 1)]
    seen = np.zeros(length + 1, np.int32)
    np.cumsum(mask, out=seen[1:])
    starts, ends = strings.starts[:count], strings.ends[:count]
    wordless = np.flatnonzero((seen[ends] == seen[starts]) & (ends > starts))
    for string in wordless:  # rare: a title of punctuation alone counts as one word
        mask[starts[string] : ends[string]] = True
    return mask
