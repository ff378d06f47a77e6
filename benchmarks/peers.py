"""The peers of ingestion with embeddings given, each as its documentation recommends: one function a system.

Every function adds the items in batches, on the clock from the first to the last being searchable through its index,
and then searches for some of them by their own embeddings. What an index learns its partitions from is given to it
before, off the clock. A system that is not installed raises ImportError.

This module knows nothing of the product, so that it runs in an environment where only the peers are installed.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Answer = dict[str, Any]

FACETS: Final = 3
_ASKED: Final = 20
_OPTIMIZE_EVERY: Final = 10
_FLUSH_EVERY: Final = 20
_TRAINED_WITH: Final = 0.1


def lancedb(*, vectors: str, folder: str, batch: int) -> Answer:
    """LanceDB with an IVF_FLAT index a facet; ``optimize`` every ten batches takes what is new into the index."""
    import lancedb as lance  # noqa: PLC0415  # may not be installed
    import pyarrow as pa  # noqa: PLC0415

    every = np.load(vectors)
    first = int(len(every) * _TRAINED_WITH)

    def table_of(start: int, end: int) -> Any:
        columns = {
            f"facet{facet}": pa.FixedSizeListArray.from_arrays(
                pa.array(np.ascontiguousarray(every[start:end, facet]).ravel()), every.shape[2]
            )
            for facet in range(FACETS)
        }
        return pa.table({"id": pa.array([f"i{at}" for at in range(start, end)]), **columns})

    table = lance.connect(folder).create_table("items", table_of(0, first))
    partitions = max(1, int(np.sqrt(len(every))))
    for facet in range(FACETS):
        table.create_index(
            metric="dot", num_partitions=partitions, vector_column_name=f"facet{facet}", index_type="IVF_FLAT"
        )

    def add(number: int, start: int, end: int) -> None:
        table.add(table_of(start, end))
        if number % _OPTIMIZE_EVERY == _OPTIMIZE_EVERY - 1:
            table.optimize()

    def search(at: int) -> Any:
        query = table.search(every[at, 0], vector_column_name="facet0").distance_type("dot").nprobes(partitions)
        return query.limit(1).to_arrow().column("id")[0].as_py() == f"i{at}"

    return _timed("lancedb", len(every), batch, add, search, first=first, finish=table.optimize)


def milvus(*, vectors: str, folder: str, batch: int) -> Answer:
    """Milvus Lite with an HNSW index a facet, flushed every twenty batches."""
    import pymilvus  # noqa: PLC0415
    import pymilvus.exceptions  # noqa: PLC0415

    every = np.load(vectors)
    client = pymilvus.MilvusClient(str(Path(folder, "milvus.db")))
    schema, indexes = client.create_schema(auto_id=False), client.prepare_index_params()
    schema.add_field("id", pymilvus.DataType.INT64, is_primary=True)
    for facet in range(FACETS):
        schema.add_field(f"facet{facet}", pymilvus.DataType.FLOAT_VECTOR, dim=every.shape[2])
        indexes.add_index(f"facet{facet}", index_type="HNSW", metric_type="IP", params={"M": 16, "efConstruction": 80})
    client.create_collection("items", schema=schema, index_params=indexes)

    def add(number: int, start: int, end: int) -> None:
        rows = [
            {"id": at, **{f"facet{facet}": every[at, facet] for facet in range(FACETS)}} for at in range(start, end)
        ]
        client.insert("items", rows)
        if number % _FLUSH_EVERY == _FLUSH_EVERY - 1:
            client.flush("items")

    def search(at: int) -> bool:
        found = client.search(
            "items", data=[every[at, 0].tolist()], anns_field="facet0", limit=1,
            search_params={"metric_type": "IP", "params": {"ef": 256}},
        )  # fmt: skip
        return bool(found[0][0]["id"] == at)

    return _timed("milvus-lite", len(every), batch, add, search, finish=lambda: client.flush("items"))


def chroma(*, vectors: str, folder: str, batch: int) -> Answer:
    """Chroma on disk, a collection a facet with its HNSW index."""
    import chromadb  # noqa: PLC0415

    every = np.load(vectors)
    client = chromadb.PersistentClient(folder, settings=chromadb.Settings(anonymized_telemetry=False))
    hnsw = {"space": "ip", "ef_construction": 80, "max_neighbors": 16}
    collections = [
        client.create_collection(f"facet{facet}", embedding_function=None, configuration={"hnsw": hnsw})
        for facet in range(FACETS)
    ]

    def add(_number: int, start: int, end: int) -> None:
        ids = [f"i{at}" for at in range(start, end)]
        for facet, collection in enumerate(collections):
            collection.add(ids=ids, embeddings=every[start:end, facet])

    def search(at: int) -> bool:
        return bool(collections[0].query(query_embeddings=every[at : at + 1, 0], n_results=1)["ids"][0][0] == f"i{at}")

    return _timed("chromadb", len(every), batch, add, search)


def ivf(*, vectors: str, folder: str, batch: int) -> Answer:
    """Faiss IVF-Flat a facet, in memory alone; its 1,024 lists were learned before."""
    import faiss  # noqa: PLC0415

    assert folder  # nothing is kept there
    every = np.load(vectors)
    lists = min(1_024, max(1, len(every) // 64))
    indexes = []
    for facet in range(FACETS):
        dim = every.shape[2]
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.train(np.ascontiguousarray(every[: max(lists, len(every) // 2), facet]))
        index.nprobe = lists
        indexes.append(index)
    return _faiss(indexes, every, batch)


def hnsw(*, vectors: str, folder: str, batch: int) -> Answer:
    """Faiss HNSW M16 a facet, in memory alone."""
    import faiss  # noqa: PLC0415

    assert folder  # nothing is kept there
    every = np.load(vectors)
    indexes = []
    for _ in range(FACETS):
        index = faiss.IndexHNSWFlat(every.shape[2], 16, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 80, 256
        indexes.append(index)
    return _faiss(indexes, every, batch)


def _faiss(indexes: list[Any], every: F32, batch: int) -> Answer:
    def add(_number: int, start: int, end: int) -> None:
        for facet, index in enumerate(indexes):
            index.add(np.ascontiguousarray(every[start:end, facet]))

    def search(at: int) -> bool:
        return bool(indexes[0].search(np.ascontiguousarray(every[at : at + 1, 0]), 1)[1][0, 0] == at)

    return _timed("faiss-cpu", len(every), batch, add, search)


def _timed(
    package: str,
    count: int,
    batch: int,
    add: Callable[[int, int, int], None],
    search: Callable[[int], bool],
    *,
    first: int = 0,
    finish: Callable[[], object] = lambda: None,
) -> Answer:
    """Add items from ``first`` on, then look some of them up.

    Returns:
        ``items``, ``seconds``, ``latencies_ms`` of batches, ``found``: share of items that are their own nearest;
        ``version``.
    """
    latencies = []
    begun = time.perf_counter()
    for number, start in enumerate(range(first, count, batch)):
        at = time.perf_counter()
        add(number, start, min(count, start + batch))
        latencies.append((time.perf_counter() - at) * 1_000)
    finish()
    seconds = time.perf_counter() - begun
    asked = np.linspace(first, count - 1, _ASKED).astype(int).tolist()
    return {
        "items": count - first,
        "seconds": seconds,
        "latencies_ms": latencies,
        "found": float(np.mean([search(at) for at in asked])),
        "version": importlib.metadata.version(package),
    }
