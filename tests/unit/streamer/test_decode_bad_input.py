"""Every kind of bad record becomes a dead letter with its reason; nothing a record holds stops the stream."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_runtime.runtime import FrozenModel
from schemas.artifact import FeatureSpec
from schemas.config import LimitsConfig
from schemas.dead_letters import Reason
from schemas.events import Engagement, ItemCreated, ItemDeleted, ItemUpdated
from streamer.decode import Decoded, Decoder
from streamer.sources.base import Partition, Records, Stream

NOW_MS = 1_700_000_000_000
ITEM = {"type": "item.created", "item_id": "a", "occurred_at": NOW_MS, "title": "t"}
CLICK = {"type": "engagement", "item_id": "a", "occurred_at": NOW_MS, "user_id": "u", "kind": "click"}
LIMITS = LimitsConfig(max_record_bytes=4_096, max_future_s=60)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """Of a model that takes dense vectors of three numbers."""
    model = FrozenModel.untrained(
        facets=1, layers=1, codewords=4, dim=4, token_dim=4, hidden=(4,), features=FeatureSpec(buckets=256, dense_dim=3)
    )
    return Decoder(LIMITS, model.check, clock=lambda: NOW_MS / 1_000)


def decode(
    decoder: Decoder,
    *values: bytes | dict[str, Any] | None,
    stream: Stream = Stream.ITEMS,
    keys: list[bytes | None] | None = None,
    timestamps: list[int] | None = None,
) -> Decoded:
    encoded = [json.dumps(value).encode() if isinstance(value, dict) else value for value in values]
    records = Records(
        Partition(stream, stream.value, 0),
        range(10, 10 + len(encoded)),
        [None] * len(encoded) if keys is None else keys,
        encoded,
        10 + len(encoded),
        timestamps,
    )
    return decoder.decode(records)


def without(event: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in names}


BAD_ITEMS = {
    "nothing": (b"", Reason.UNPARSEABLE),
    "no JSON": (b"{", Reason.UNPARSEABLE),
    "two documents": (json.dumps(ITEM).encode() * 2, Reason.UNPARSEABLE),
    "not UTF-8": (json.dumps(ITEM).encode().replace(b'"t"', b'"\xff\xfe"'), Reason.UNPARSEABLE),
    "UTF-16": (json.dumps(ITEM).encode("utf-16"), Reason.UNPARSEABLE),
    "half of a surrogate pair": (json.dumps(ITEM).encode().replace(b'"t"', b'"\\ud800"'), Reason.UNPARSEABLE),
    "nested without end": (b"[" * 4_000, Reason.UNPARSEABLE),
    "a list": (b"[]", Reason.INVALID),
    "null": (b"null", Reason.INVALID),
    "a number": (b"1e999", Reason.INVALID),
    "oversized": (ITEM | {"text": "x" * 4_096}, Reason.OVERSIZED),
    "oversized and no JSON": (b"x" * 4_097, Reason.OVERSIZED),
    "no type": (without(ITEM, "type"), Reason.UNKNOWN_TYPE),
    "unknown type": (ITEM | {"type": "item.renamed"}, Reason.UNKNOWN_TYPE),
    "type of another kind": (ITEM | {"type": 7}, Reason.UNKNOWN_TYPE),
    "an engagement": (CLICK, Reason.UNKNOWN_TYPE),
    "no id": (without(ITEM, "item_id"), Reason.INVALID),
    "empty id": (ITEM | {"item_id": ""}, Reason.INVALID),
    "id is a number": (ITEM | {"item_id": 7}, Reason.INVALID),
    "id of 257 bytes": (ITEM | {"item_id": "x" * 257}, Reason.INVALID),
    "id of 129 characters and 258 bytes": (ITEM | {"item_id": "é" * 129}, Reason.INVALID),
    "id of 65 characters and 260 bytes": (ITEM | {"item_id": "🎬" * 65}, Reason.INVALID),
    "no time": (without(ITEM, "occurred_at"), Reason.INVALID),
    "time before 1970": (ITEM | {"occurred_at": -1}, Reason.INVALID),
    "time after 9999": (ITEM | {"occurred_at": 10**15}, Reason.INVALID),
    "time beyond 64 bits": (ITEM | {"occurred_at": 10**30}, Reason.INVALID),
    "time with a fraction": (ITEM | {"occurred_at": 1.5}, Reason.INVALID),
    "time is true": (ITEM | {"occurred_at": True}, Reason.INVALID),
    "time without an offset": (ITEM | {"occurred_at": "2023-11-14T22:13:20"}, Reason.INVALID),
    "time is prose": (ITEM | {"occurred_at": "yesterday"}, Reason.INVALID),
    "time before the year 1 in UTC": (ITEM | {"occurred_at": "0001-01-01T00:00:00+23:59"}, Reason.INVALID),
    "time after 9999 in UTC": (ITEM | {"occurred_at": "9999-12-31T23:59:59-23:59"}, Reason.INVALID),
    "far future": (ITEM | {"occurred_at": NOW_MS + 60_001}, Reason.FUTURE),
    "far future in words": (ITEM | {"occurred_at": "2999-01-01T00:00:00Z"}, Reason.FUTURE),
    "deleted in the far future": (
        without(ITEM, "title") | {"type": "item.deleted", "occurred_at": NOW_MS + 60_001},
        Reason.FUTURE,
    ),
    "no content": (without(ITEM, "title"), Reason.INVALID),
    "only empty content": (ITEM | {"title": "", "tags": [], "attributes": {}}, Reason.INVALID),
    "updated without content": (without(ITEM, "title") | {"type": "item.updated"}, Reason.INVALID),
    "schema version 2": (ITEM | {"schema_version": 2}, Reason.INVALID),
    "tags are no list": (ITEM | {"tags": "x"}, Reason.INVALID),
    "a tag too long": (ITEM | {"tags": ["x" * 1_025]}, Reason.INVALID),
    "embedding too short": (ITEM | {"embedding": [1.0, 2.0]}, Reason.WRONG_DIMENSION),
    "embedding too long": (ITEM | {"embedding": [1.0] * 4}, Reason.WRONG_DIMENSION),
    "embedding of another length in an update": (
        ITEM | {"type": "item.updated", "embedding": [1.0]},
        Reason.WRONG_DIMENSION,
    ),
    "empty embedding": (ITEM | {"embedding": []}, Reason.INVALID),
    "NaN in the embedding": (ITEM | {"embedding": [1.0, float("nan"), 3.0]}, Reason.INVALID),
    "infinity in the embedding": (ITEM | {"embedding": [1.0, float("inf"), 3.0]}, Reason.INVALID),
    "minus infinity in the embedding": (ITEM | {"embedding": [1.0, float("-inf"), 3.0]}, Reason.INVALID),
    "NaN as a word": (ITEM | {"embedding": [1.0, "NaN", 3.0]}, Reason.INVALID),
    "a number beyond float64": (json.dumps(ITEM)[:-1].encode() + b',"embedding":[1e999,1,1]}', Reason.INVALID),
    "nulls in the embedding": (ITEM | {"embedding": [1.0, None, 3.0]}, Reason.INVALID),
}

BAD_ENGAGEMENTS = {
    "an item": (ITEM, Reason.UNKNOWN_TYPE),
    "a delete": (without(ITEM, "title") | {"type": "item.deleted"}, Reason.UNKNOWN_TYPE),
    "no type": (without(CLICK, "type"), Reason.UNKNOWN_TYPE),
    "no id": (without(CLICK, "item_id"), Reason.INVALID),
    "no user": (without(CLICK, "user_id"), Reason.INVALID),
    "user of 257 bytes": (CLICK | {"user_id": "x" * 257}, Reason.INVALID),
    "no kind": (without(CLICK, "kind"), Reason.INVALID),
    "NaN value": (CLICK | {"value": float("nan")}, Reason.INVALID),
    "infinite value": (CLICK | {"value": float("inf")}, Reason.INVALID),
    "value is prose": (CLICK | {"value": "much"}, Reason.INVALID),
    "far future": (CLICK | {"occurred_at": NOW_MS + 60_001}, Reason.FUTURE),
    "schema version 2": (CLICK | {"schema_version": 2}, Reason.INVALID),
    "no JSON": (b"\x00", Reason.UNPARSEABLE),
    "oversized": (CLICK | {"extra": "x" * 4_096}, Reason.OVERSIZED),
    "no value": (None, Reason.INVALID),
}


@pytest.mark.parametrize(
    ("stream", "value", "reason"),
    [
        pytest.param(stream, value, reason, id=f"{stream}: {what}")
        for stream, cases in ((Stream.ITEMS, BAD_ITEMS), (Stream.ENGAGEMENTS, BAD_ENGAGEMENTS))
        for what, (value, reason) in cases.items()
    ],
)
def test_a_bad_record_becomes_a_letter_with_its_reason_and_the_rest_goes_on(
    decoder: Decoder, stream: Stream, value: Any, reason: Reason
) -> None:
    good = ITEM if stream is Stream.ITEMS else CLICK
    found = decode(decoder, good, value, good, stream=stream)
    assert [event.item_id for event in found.events] == ["a", "a"]
    assert found.offsets.tolist() == [10, 12]
    assert found.next_offset == 13
    [letter] = found.letters
    assert letter.reason == reason
    assert letter.detail
    assert len(letter.detail) <= 600
    assert (letter.topic, letter.partition, letter.offset) == (stream.value, 0, 11)
    assert letter.value == (json.dumps(value).encode() if isinstance(value, dict) else value)
    assert type(letter).model_validate_json(letter.model_dump_json()) == letter


@pytest.mark.parametrize(
    "event",
    [
        ITEM | {"item_id": "x" * 256},
        ITEM | {"item_id": "é" * 128},
        ITEM | {"item_id": "🎬" * 64},
        ITEM | {"item_id": "\0"},
        ITEM | {"occurred_at": NOW_MS + 60_000},
        ITEM | {"occurred_at": 0},
        ITEM | {"occurred_at": "2023-11-14T22:13:20Z"},
        ITEM | {"occurred_at": "2023-11-15T04:13:20.000+06:00"},
        ITEM | {"unknown": {"kept": "out"}},
        ITEM | {"embedding": [1e300, -1e300, 0]},
        ITEM | {"embedding": [0, 0, 0]},
        without(ITEM, "title") | {"embedding": [1, 2, 3]},
        ITEM | {"type": "item.updated"},
        without(ITEM, "title") | {"type": "item.deleted"},
    ],
    ids=lambda event: json.dumps(event)[:60],
)
def test_what_is_just_allowed_is_an_event(decoder: Decoder, event: dict[str, Any]) -> None:
    found = decode(decoder, event)
    assert not found.letters
    assert found.events[0].item_id == event["item_id"]
    assert found.times.tolist() == [event["occurred_at"] if type(event["occurred_at"]) is int else NOW_MS]


def test_an_embedding_of_huge_numbers_can_be_encoded() -> None:
    model = FrozenModel.untrained(
        facets=1, layers=1, codewords=4, dim=4, token_dim=4, hidden=(4,), features=FeatureSpec(buckets=256, dense_dim=3)
    )
    event = ItemCreated.model_validate(ITEM | {"embedding": [1e300, -1e300, 1e-300]})
    model.check(event)
    encoded = model.encode([event])
    assert abs(float((encoded.vectors.astype(float) ** 2).sum()) - 1) < 0.01


def test_times_are_told_to_the_millisecond(decoder: Decoder) -> None:
    found = decode(decoder, ITEM | {"occurred_at": "2001-09-09T01:46:40.1239Z"})
    assert found.times.tolist() == [1_000_000_000_123]


def test_a_record_key_must_be_the_item_id_where_there_is_one(decoder: Decoder) -> None:
    found = decode(decoder, ITEM, ITEM, ITEM, ITEM, keys=[None, b"a", b"b", b"\xff"])
    assert [letter.reason for letter in found.letters] == [Reason.KEY_MISMATCH] * 2
    assert [letter.key for letter in found.letters] == [b"b", b"\xff"]
    assert len(found.events) == 2


def test_a_tombstone_deletes_its_keys_item_at_the_records_time(decoder: Decoder) -> None:
    found = decode(decoder, None, None, keys=[b"a", b"a"], timestamps=[NOW_MS - 5, -1])
    assert found.events == [
        ItemDeleted(type="item.deleted", item_id="a", occurred_at=NOW_MS - 5),
        ItemDeleted(type="item.deleted", item_id="a", occurred_at=NOW_MS),  # a record without a time
    ]
    assert found.values == [b"", b""]


@pytest.mark.parametrize("key", [None, b"", b"\xff", b"x" * 257], ids=str)
def test_a_tombstone_without_a_usable_key_is_a_letter(decoder: Decoder, key: bytes | None) -> None:
    found = decode(decoder, None, keys=[key], timestamps=[NOW_MS])
    assert [letter.reason for letter in found.letters] == [Reason.KEY_MISMATCH]
    assert found.letters[0].value is None


@pytest.mark.parametrize("when", [NOW_MS + 60_001, 10**17])
def test_a_tombstone_of_the_far_future_does_not_delete_for_ever(decoder: Decoder, when: int) -> None:
    found = decode(decoder, None, keys=[b"a"], timestamps=[when])
    assert [letter.reason for letter in found.letters] == [Reason.FUTURE]


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
FIELDS = st.sampled_from(
    [
        "type",
        "item_id",
        "occurred_at",
        "schema_version",
        "title",
        "tags",
        "embedding",
        "attributes",
        "kind",
        "value",
        "user_id",
    ]
)
MUTATED = st.builds(
    lambda base, changes: json.dumps(base | changes).encode(),
    st.sampled_from([ITEM, CLICK]),
    st.dictionaries(FIELDS, JSONISH, max_size=3),
)


@given(
    values=st.lists(st.one_of(st.none(), st.binary(max_size=60), MUTATED), max_size=8),
    keys=st.lists(st.one_of(st.none(), st.just(b"a"), st.binary(max_size=5)), min_size=8, max_size=8),
    stream=st.sampled_from(Stream),
    timestamps=st.one_of(st.none(), st.lists(st.integers(-1, 2**63 - 1), min_size=8, max_size=8)),
)
def test_whatever_comes_each_record_becomes_an_event_or_a_letter(
    decoder: Decoder,
    values: list[bytes | None],
    keys: list[bytes | None],
    stream: Stream,
    timestamps: list[int] | None,
) -> None:
    found = decode(
        decoder,
        *values,
        stream=stream,
        keys=keys[: len(values)],
        timestamps=None if timestamps is None else timestamps[: len(values)],
    )
    seen = sorted(found.offsets.tolist() + [letter.offset for letter in found.letters])
    assert seen == list(range(10, 10 + len(values)))
    assert found.offsets.tolist() == sorted(found.offsets.tolist())
    assert len(found.events) == len(found.times) == len(found.values)
    kinds = (Engagement,) if stream is Stream.ENGAGEMENTS else (ItemCreated, ItemUpdated, ItemDeleted)
    assert all(isinstance(event, kinds) for event in found.events)
    assert all(0 <= time <= NOW_MS + 60_000 for time in found.times.tolist())
