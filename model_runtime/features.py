"""Item content -> hashed feature bags, a batch at a time and without a Python loop over words or characters.

Every item has one bag of tokens per *group* (title words, title character trigrams, ..., attributes). Tokens
are hashed into the rows of one embedding table; a bag is pooled as sum / sqrt(tokens), so that neither an
item with three features is drowned nor one with three thousand drowns its other groups. Title and text share
tokens (a word means the same in both) but not bags. All other fields are salted apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from model_runtime.hashing import (
    BASE,
    JOIN,
    U64Array,
    buckets_of,
    prefix_hashes,
    salt,
    span_hashes,
    splitmix64,
)
from model_runtime.text import Strings, lay_out, word_mask
from schemas.dead_letters import Reason
from schemas.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.artifact import FeatureSpec
    from schemas.events import ItemContent

# Salts: changing one changes what every model means.
_WORD, _CHAR, _CATEGORY, _TAG, _LANGUAGE, _CREATOR, _ATTRIBUTE, _ID = range(1, 9)
_LABELS: Final = ("category", "tag", "language", "creator", "attribute")
_MAX_CHARS: Final = 1 << 18  # of one pass: bounds memory, keeps the arrays in cache
_DENSE_BITS: Final = 20

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FeatureBatch:
    """Features of n items in G groups.

    Attributes:
        tokens: (t,) int32 rows of the embedding table, ordered by group, then item.
        offsets: (G * n + 1,) int64, bag ``g * n + i`` is ``tokens[offsets[b]:offsets[b + 1]]``.
        scale: (G, n) float32, 1 / sqrt(tokens in the bag), 0 for an empty bag.
        dense: (n, dense_dim) float64, unit length on a grid of 2^-20, zero rows for items without one.
        ids: (n,) uint64, hash of each item's identifier (:func:`hash_ids`), 0 where none is known.
    """

    tokens: npt.NDArray[np.int32]
    offsets: Int64Array
    scale: npt.NDArray[np.float32]
    dense: npt.NDArray[np.float64]
    ids: U64Array

    def __len__(self) -> int:
        return int(self.scale.shape[1])

    def take(self, rows: Int64Array) -> FeatureBatch:
        """The features of some items, in the given order; repetitions are fine."""
        groups, items = self.scale.shape
        bags = (np.arange(groups)[:, None] * items + rows).ravel()
        lengths = self.offsets[bags + 1] - self.offsets[bags]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        source = np.arange(offsets[-1]) + np.repeat(self.offsets[bags] - offsets[:-1], lengths)
        return FeatureBatch(self.tokens[source], offsets, self.scale[:, rows], self.dense[rows], self.ids[rows])


def group_names(spec: FeatureSpec) -> tuple[str, ...]:
    """Name of each group, in the order of a batch: ``title.word1`` ... ``attribute``."""
    grams = [f"word{n}" for n in spec.word_ngrams] + [f"char{n}" for n in spec.char_ngrams]
    return (*(f"{field}.{gram}" for field in ("title", "text") for gram in grams), *_LABELS)


def check_embedding(content: ItemContent, spec: FeatureSpec) -> None:
    """Refuse a dense vector that does not fit the spec; an item without one always fits.

    Raises:
        RecordError: reason ``wrong_dimension``; also when the model takes no dense vectors at all, because an item
            whose vector is dropped silently would be indexed by half of what its producer sent.
    """
    if content.embedding is None or len(content.embedding) == spec.dense_dim:
        return
    takes = f"takes {spec.dense_dim} dimensions" if spec.dense_dim else "takes no embeddings (dense_dim 0)"
    raise RecordError(
        Reason.WRONG_DIMENSION,
        f"embedding has {len(content.embedding)} dimensions, the model {takes}; send what it was trained with",
    )


def extract(
    contents: Sequence[ItemContent], spec: FeatureSpec, item_ids: Sequence[str | None] | None = None
) -> FeatureBatch:
    """Features of a batch; an item's features do not depend on the rest of its batch.

    Args:
        contents: n items.
        spec: what to take of them.
        item_ids: (n,) their identifiers, None for an item without; left out, none is known.

    Raises:
        RecordError: an item's dense vector does not fit the spec (:func:`check_embedding`) or is not finite.
    """
    cut = spec.max_text_chars
    titles = [c.title[:cut] if c.title else "" for c in contents]
    texts = [c.text[:cut] if c.text else "" for c in contents]
    for content in contents:
        if content.embedding is not None:
            check_embedding(content, spec)
    dense = _dense(contents, spec)
    passes = _cut_into_passes(titles, texts)
    parts = [_bags(contents[a:b], titles[a:b], texts[a:b], spec) for a, b in passes]
    groups = [
        (
            np.concatenate([part[g][0] for part in parts]),
            np.concatenate([part[g][1] for part in parts]),
        )
        for g in range(len(group_names(spec)))
    ]
    counts = np.stack([count for _, count in groups])
    offsets = np.zeros(counts.size + 1, np.int64)
    np.cumsum(counts.ravel(), out=offsets[1:])
    roots = np.sqrt(np.maximum(counts, 1).astype(np.float32))
    scale = np.where(counts > 0, np.float32(1) / roots, np.float32(0))
    ids = np.zeros(len(contents), np.uint64) if item_ids is None else hash_ids(item_ids)
    return FeatureBatch(np.concatenate([tokens for tokens, _ in groups]), offsets, scale, dense, ids)


def hash_ids(item_ids: Sequence[str | None]) -> U64Array:
    """(n,) uint64, never 0 for an identifier; 0 for None. Unlike labels, identifiers are not folded."""
    joined = "\0".join(item_id or "" for item_id in item_ids)
    code_points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = np.fromiter((len(item_id or "") for item_id in item_ids), np.int64, len(item_ids))
    ends = np.cumsum(lengths + 1) - 1
    hashes = splitmix64(span_hashes(prefix_hashes(code_points), ends - lengths, ends) ^ salt(_ID))
    return np.where(lengths > 0, np.maximum(hashes, np.uint64(1)), np.uint64(0))


def _cut_into_passes(titles: list[str], texts: list[str]) -> list[tuple[int, int]]:
    """Slices of the batch with at most about _MAX_CHARS of title and text each; at least one slice."""
    lengths = [len(title) + len(text) for title, text in zip(titles, texts, strict=True)]
    passes = np.cumsum(np.array(lengths, np.int64)) // _MAX_CHARS
    cuts = [0, *(np.flatnonzero(np.diff(passes)) + 1).tolist(), len(titles)]
    return list(pairwise(cuts))


_Bags = list[tuple[npt.NDArray[np.int32], Int64Array]]


def _bags(contents: Sequence[ItemContent], titles: list[str], texts: list[str], spec: FeatureSpec) -> _Bags:
    """For each group the tokens in item order and (n,) how many each item has."""
    n = len(contents)
    categories = list(chain.from_iterable([c.categories for c in contents]))
    tags = list(chain.from_iterable([c.tags for c in contents]))
    languages = [c.language or "" for c in contents]
    creators = [c.creator_id or "" for c in contents]
    keys = list(chain.from_iterable([c.attributes for c in contents]))
    values = list(chain.from_iterable([c.attributes.values() for c in contents]))
    strings = lay_out([*titles, *texts, *categories, *tags, *languages], [*creators, *keys, *values])
    prefix = prefix_hashes(strings.code_points)
    hashes = span_hashes(prefix, strings.starts, strings.ends)
    bags = _text_bags(strings, prefix, n, 2, spec)

    ones = np.ones(n, np.int64)
    present = strings.ends > strings.starts
    at = 2 * n
    for kind, labels, per_item in (
        (_CATEGORY, categories, np.fromiter([len(c.categories) for c in contents], np.int64, n)),
        (_TAG, tags, np.fromiter([len(c.tags) for c in contents], np.int64, n)),
        (_LANGUAGE, languages, ones),
        (_CREATOR, creators, ones),
    ):
        here = slice(at, at + len(labels))
        bags.append(_label_bag(hashes[here], present[here], per_item, salt(kind), spec.buckets))
        at += len(labels)
    pair = splitmix64(hashes[at : at + len(keys)])
    pair *= JOIN
    pair += hashes[at + len(keys) : at + 2 * len(keys)]
    per_item = np.fromiter([len(c.attributes) for c in contents], np.int64, n)
    bags.append((buckets_of(pair, salt(_ATTRIBUTE), spec.buckets), per_item))
    return bags


def _label_bag(
    hashes: U64Array, present: npt.NDArray[np.bool_], per_item: Int64Array, of_kind: np.uint64, buckets: int
) -> tuple[npt.NDArray[np.int32], Int64Array]:
    if not present.all():  # an empty label says nothing
        seen = np.concatenate(([0], np.cumsum(present)))
        ends = np.cumsum(per_item)
        per_item = seen[ends] - seen[ends - per_item]
        hashes = hashes[present]
    return buckets_of(hashes, of_kind, buckets), per_item


def _text_bags(strings: Strings, prefix: U64Array, n: int, fields: int, spec: FeatureSpec) -> _Bags:
    """Word and character n-grams of the first ``fields * n`` strings, as ``fields`` times the grams of the spec."""
    count = fields * n
    if not n:
        empty = (np.zeros(0, np.int32), np.zeros(0, np.int64))
        return [empty] * (fields * (len(spec.word_ngrams) + len(spec.char_ngrams)))
    mask = word_mask(strings, count)
    starts = strings.starts[:count]
    grams = [
        *_word_grams(prefix, mask, starts, spec),
        *_char_grams(strings.code_points[: len(mask)], mask, starts - 1, spec),
    ]
    bags: _Bags = []
    for field in range(fields):
        for tokens, bounds in grams:
            first, last = bounds[field * n], bounds[(field + 1) * n]
            bags.append((tokens[first:last], np.diff(bounds[field * n : (field + 1) * n + 1])))
    return bags


def _word_grams(prefix: U64Array, mask: npt.NDArray[np.bool_], starts: Int64Array, spec: FeatureSpec) -> _Bags:
    """For each n the word n-grams inside one string, and (k + 1,) where each string's begin."""
    # A separator stands at both ends of the mask, so every edge is a start or an end, in turn.
    edges = np.flatnonzero(mask[1:] != mask[:-1]) + 1
    word_starts, word_ends = edges[::2], edges[1::2]
    bounds = np.append(np.searchsorted(word_starts, starts), len(word_starts))
    string = np.repeat(np.arange(len(starts)), np.diff(bounds))
    words = splitmix64(span_hashes(prefix, word_starts, word_ends))
    grams: _Bags = []
    for n in spec.word_ngrams:
        length = max(len(words) - n + 1, 0)
        hashes = words[:length].copy()
        for following in range(1, n):
            hashes *= JOIN
            hashes += words[following : following + length]
        inside = np.flatnonzero(string[:length] == string[n - 1 : n - 1 + length])
        tokens = buckets_of(hashes[inside], salt(_WORD, n), spec.buckets)
        grams.append((tokens, np.searchsorted(inside, bounds)))
    return grams


def _char_grams(
    code_points: npt.NDArray[np.uint32], mask: npt.NDArray[np.bool_], before: Int64Array, spec: FeatureSpec
) -> _Bags:
    """For each n the character n-grams of words with one boundary mark on each side, and (k + 1,) bounds.

    ``before`` (k,) is the position of the separator in front of each string: the first window may start
    there.
    """
    marked = code_points.astype(np.uint64)
    marked += np.uint64(1)
    marked *= mask  # whatever parts words becomes one boundary mark, 0
    before = np.append(before, len(mask))
    grams: _Bags = []
    for n in spec.char_ngrams:
        length = max(len(mask) - n + 1, 0)
        if n >= 3:
            inside = mask[1 : 1 + length].copy()
            for middle in range(2, n - 1):
                inside &= mask[middle : middle + length]
        else:
            inside = mask[:length] | mask[n - 1 : n - 1 + length]
        at = np.flatnonzero(inside)
        hashes = marked[at]
        for following in range(1, n):
            hashes *= BASE
            hashes += marked[at + following]
        tokens = buckets_of(hashes, salt(_CHAR, n), spec.buckets)
        grams.append((tokens, np.searchsorted(at, before)))
    return grams


def _dense(contents: Sequence[ItemContent], spec: FeatureSpec) -> npt.NDArray[np.float64]:
    """Dense vectors at unit length, rounded to the grid: (n, dense_dim) float64."""
    dense = np.zeros((len(contents), spec.dense_dim))
    rows = [row for row, content in enumerate(contents) if content.embedding is not None]
    if not rows:
        return dense
    given = np.array([contents[row].embedding for row in rows], np.float64)
    if not np.isfinite(given).all():
        raise RecordError(Reason.INVALID, "embedding has a component that is not finite; send finite numbers")
    _, exponent = np.frexp(np.abs(given).max(axis=1, keepdims=True))
    given = np.rint(np.ldexp(given, _DENSE_BITS - exponent))  # whole numbers: exact sums in any order
    norms = np.sqrt((given * given).sum(axis=1, keepdims=True))
    dense[rows] = np.rint(np.ldexp(given / np.maximum(norms, 1), _DENSE_BITS)) * 2.0**-_DENSE_BITS
    return dense
