"""A question answered from readers of all shards, whichever they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError

from indexer import report
from indexer.labels import Filter
from indexer.retrieval.readers import IndexReader
from indexer.retrieval.request import Request
from indexer.retrieval.retrieve import fan_out_request
from schemas.config import RetrievalConfig
from schemas.errors import RecordError, UsageError
from schemas.events import ItemContent
from schemas.queries import Question, wrong
from schemas.replies import QueryReply

if TYPE_CHECKING:
    from model_runtime.runtime import Encoded  # loads torch, which questions without contents do without

Encode = Callable[[Sequence[ItemContent]], "Encoded"]


def settings(question: Question, configured: RetrievalConfig) -> RetrievalConfig:
    """The configuration with what the question says instead.

    Raises:
        UsageError: if that is out of range.
    """
    names = ("k", "indices", "selection", "hot_share")
    given = {name: value for name in names if (value := getattr(question, name)) is not None}
    try:
        return RetrievalConfig.model_validate(configured.model_dump() | given)
    except ValidationError as error:
        raise wrong(error) from None


def ask(
    readers: Mapping[int, IndexReader], question: Question, wanted: RetrievalConfig, now_ms: int, encode: Encode
) -> QueryReply:
    """Candidates from several shards.

    Args:
        readers: shard number -> index; at least one.
        question: triggers, and what the answer may not hold.
        wanted: see :func:`settings`.
        now_ms: time at which engagements and ages count.
        encode: of the model that the index was made with; called where the question has contents.

    Raises:
        UsageError: as :func:`indexer.retrieval.retrieve.retrieve_many`, or if a content does not fit the model.
    """
    try:
        encoded = encode(question.contents) if question.contents else None
    except RecordError as error:
        raise UsageError(f"contents: {error}") from None
    request = Request(
        question.items,
        None if encoded is None else encoded.vectors,
        None if encoded is None else encoded.raw,
        question.exclude,
        question.max_age_s,
        Filter(frozenset(question.categories), frozenset(question.not_categories), frozenset(question.languages)),
        question.seed,
    )
    return report.query_reply(question.items, fan_out_request(readers, request, wanted, now_ms))
