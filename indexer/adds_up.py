"""Whether what was loaded is one whole: every family as of the same batch.

RocksDB writes a batch to all families or none, and its checksums tell damaged blocks. A table or log that is missing
altogether, because the file that lists them was cut, it cannot tell: each family would then be of another time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from indexer.keys import ItemState
from indexer.view import FacetView, LiveView
from schemas.errors import StoreCorruptError


def check_adds_up(view: LiveView, path: Path) -> None:
    """Compare the counts of what was loaded with the running totals.

    Raises:
        StoreCorruptError: naming what is missing.
    """
    totals, states = view.totals, view.items["state"]
    counts = [
        ("items", view.ids.distinct, totals.next_ordinal),
        ("live items", int(np.count_nonzero(states == ItemState.LIVE)), totals.items_live),
        ("deleted items", int(np.count_nonzero(states == ItemState.DELETED)), totals.items_deleted),
        *(
            (f"postings of facet {number}", int(facet.sizes().sum()), totals.items_live)
            for number, facet in enumerate(view.facets)
        ),
    ]
    for number, facet in enumerate(view.facets):
        alive, sizes = facet.leaves["alive"], facet.sizes()
        counts += [
            (f"items in leaves of facet {number} that are there", int(sizes[alive].sum()), totals.items_live),
            (f"leaves of facet {number} with a route", *_routed(facet)),
        ]
    wrong = [f"{found} {what} where {told} were counted" for what, found, told in counts if found != told]
    if wrong:
        raise StoreCorruptError(
            f"{path} is damaged: it holds {', '.join(wrong)}: a file of it is missing or was cut; restore a checkpoint "
            "or replay"
        )


def _routed(facet: FacetView) -> tuple[int, int]:
    """How many of the live leaves some raw index leads to, and how many there are."""
    alive = facet.alive()
    return int(np.count_nonzero(facet.raws.lengths[alive])), len(alive)
