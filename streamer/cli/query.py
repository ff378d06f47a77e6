"""``query``: retrieve, straight from the store or from published snapshots."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from indexer.order import Order
from indexer.retrieval.readers import IndexReader
from indexer.retrieval.store_reader import StoreReader
from indexer.snapshots import SnapshotFollower
from indexer.store import now_ms
from schemas.config import Config, RetrievalConfig
from schemas.errors import NotFoundError, StoreMismatchError
from schemas.events import ItemContent
from schemas.queries import Question, wrong
from streamer.cli._context import AsJson, ConfigFile, DataDir, Verbose, config, grid, moment_ms, show
from streamer.generations import load_model, open_for_reading
from streamer.querying import Encode, ask, settings

if TYPE_CHECKING:
    from model_runtime.runtime import Encoded


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(query)


@contextmanager
def _readers(found: Config, wanted: RetrievalConfig, snapshots: str | None) -> Iterator[Mapping[int, IndexReader]]:
    """Shard number -> what answers."""
    if snapshots is None:
        with open_for_reading(found) as stores:
            yield {shard: StoreReader(store, Order.of(wanted)) for shard, store in stores.items()}
        return
    with tempfile.TemporaryDirectory(prefix="facetstream-snapshots-") as cache:
        follower = SnapshotFollower(snapshots, Path(cache))
        follower.refresh()
        yield follower.readers


def _encoder(found: Config, readers: Mapping[int, IndexReader]) -> Encode:
    """Of the model in the data directory, loaded when it is needed."""

    def encode(contents: Sequence[ItemContent]) -> Encoded:
        model = load_model(found)
        for reader in readers.values():
            if reader.meta.model_hash != model.manifest.model_hash:
                raise StoreMismatchError(
                    f"the snapshots were made with model {reader.meta.model_hash[:12]}, {found.data_dir} has "
                    f"{model.manifest.model_hash[:12]}: give the data directory that they were published from"
                )
        return model.encode(contents)

    return encode


def query(
    item: Annotated[list[str] | None, typer.Option("--item", help="Trigger item; repeatable.")] = None,
    content: Annotated[
        list[str] | None,
        typer.Option("--content", help="Trigger as JSON fields, encoded on the fly: it need not be in the index."),
    ] = None,
    k: Annotated[int | None, typer.Option("-k", help="Results.", show_default="retrieval.k")] = None,
    indices: Annotated[int | None, typer.Option(help="Leaves to read.", show_default="retrieval.indices")] = None,
    multinomial: Annotated[bool, typer.Option("--multinomial", help="Draw the leaves by their votes.")] = False,
    hot_share: Annotated[
        float | None,
        typer.Option(help="Share of the results for what is hot whoever asks.", show_default="retrieval.hot_share"),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the draw.")] = None,
    at: Annotated[
        str | None, typer.Option(help="Time at which engagements and ages count.", show_default="now")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Item that the answer may not hold; repeatable.")] = None,
    max_age_s: Annotated[float | None, typer.Option(min=0, help="Leave out what was created earlier.")] = None,
    category: Annotated[list[str] | None, typer.Option(help="Results have one of these; repeatable.")] = None,
    not_category: Annotated[list[str] | None, typer.Option(help="Results have none of these; repeatable.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Results are in one of these; repeatable.")] = None,
    snapshots: Annotated[
        str | None, typer.Option("--snapshots", help="Answer from the snapshots at this directory or fsspec URL.")
    ] = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Items that go well with the trigger items; works while the daemon runs."""
    found = config(config_file, data_dir, verbose)
    given_ms = moment_ms("--at", at)
    when = now_ms() if given_ms is None else given_ms
    try:
        question = Question(
            items=item or [],
            contents=[ItemContent.model_validate_json(each) for each in content or []],
            k=k,
            indices=indices,
            selection="multinomial" if multinomial else None,
            hot_share=hot_share,
            seed=seed,
            exclude=exclude or [],
            max_age_s=max_age_s,
            categories=category or [],
            not_categories=not_category or [],
            languages=language or [],
        )
    except ValidationError as error:
        raise wrong(error) from None
    wanted = settings(question, found.retrieval)
    with _readers(found, wanted, snapshots) as readers:
        reply = ask(readers, question, wanted, when, _encoder(found, readers))
    if len(reply.missing) == len(question.items) and not question.contents and not reply.results:
        raise NotFoundError(f"none of the trigger items is in the index: {', '.join(reply.missing)}")

    def table() -> Table:
        title = (
            f"{len(reply.results)} of {reply.scored} scored in {len(reply.indices)} leaves, {reply.elapsed_ms:.1f} ms"
        )
        if reply.missing:
            title += f"; not in the index: {', '.join(reply.missing)}"
        out = grid(title, "item", "score", "facet", "leaf", right=("score", "facet", "leaf"))
        for row in reply.results:
            where = ("hot", "") if row.facet < 0 else (str(row.facet), str(row.leaf))
            out.add_row(row.item_id, f"{row.score:.4f}", *where)
        return out

    show(reply, as_json, table)
