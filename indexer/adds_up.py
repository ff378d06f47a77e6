"""Whether what was loaded is one whole: every family as of the same batch.

RocksDB writes a batch to all families or none, and its checksums tell damaged blocks. A table or log that is missing
altogether, because the file that lists them was cut, it cannot tell: each family would then be of another time.

What is not loaded, ids, content and postings, is not read here either: of postings there is only told when too few were
ever written. ``verify`` compares each with its item.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from indexer import keys
from indexer.keys import ItemState
from indexer.store import Store
from indexer.view import FacetView, LiveView
from schemas.errors import StoreCorruptError


def check_adds_up(view: LiveView, store: Store) -> None:
    """Compare the counts of what was loaded with the running totals and with the stored sizes of leaves.

    Raises:
        StoreCorruptError: naming what is missing.
    """
    totals, states = view.totals, view.items["state"]
    counts = [
        ("items", view.ids.distinct, totals.next_ordinal),
        ("live items", int(np.count_nonzero(states == ItemState.LIVE)), totals.items_live),
        ("deleted items", int(np.count_nonzero(states == ItemState.DELETED)), totals.items_deleted),
    ]
    postings = totals.items_live * len(view.facets)
    counts.append(("postings at most", min(store.most("postings"), postings), postings))
    for number, facet in enumerate(view.facets):
        alive, sizes = facet.leaves["alive"], facet.sizes()
        stored = _stored_sizes(store, number, len(sizes))
        other = np.flatnonzero(sizes != stored)[:1]
        counts += [
            (f"items in leaves of facet {number} that are there", int(sizes[alive].sum()), totals.items_live),
            (f"leaves of facet {number} with a route", *_routed(facet)),
            *((f"items in leaf {leaf} of facet {number}", int(sizes[leaf]), int(stored[leaf])) for leaf in other),
        ]
    wrong = [f"{found} {what} where {told} were counted" for what, found, told in counts if found != told]
    if wrong:
        raise StoreCorruptError(
            f"{store.path} is damaged: it holds {', '.join(wrong)}: a file of it is missing or was cut; restore a "
            "checkpoint or replay"
        )


def _routed(facet: FacetView) -> tuple[int, int]:
    """How many of the live leaves some raw index leads to, and how many there are."""
    alive = facet.alive()
    return int(np.count_nonzero(facet.raws.lengths[alive])), len(alive)


def _stored_sizes(store: Store, facet: int, leaves: int) -> npt.NDArray[np.int64]:
    """(leaves,) how many items each leaf of a facet was said to hold when it last changed."""
    sizes = np.zeros(-(-leaves // keys.PAGE) * keys.PAGE, np.int64)
    for key, value in store.scan("sizes", bytes([facet])):
        at, page = keys.numbered(key, "sizes") * keys.PAGE, keys.u32_values(value, "sizes")
        sizes[at : at + len(page)] = page[: len(sizes) - at] if at < len(sizes) else page[:0]
    return sizes[:leaves]
