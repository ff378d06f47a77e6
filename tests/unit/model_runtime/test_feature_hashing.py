"""The vectorised features against a plain implementation, one character at a time."""

from __future__ import annotations

import itertools
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_runtime import hashing
from model_runtime.features import check_embedding, extract, group_names
from schemas.artifact import FeatureSpec
from schemas.errors import RecordError
from schemas.events import ItemContent

SPEC = FeatureSpec(buckets=1 << 20)
MASK = (1 << 64) - 1


def plain_hash(characters: list[int]) -> int:
    value = power = 0
    power = 1
    for character in characters:
        value = (value + character * power) & MASK
        power = power * int(hashing.BASE) & MASK
    return value


def plain_mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


def plain_bucket(value: int, *salt: int) -> int:
    state = 0
    for part in salt:
        state = plain_mix(state ^ part)
    return (plain_mix(value ^ state) >> 32) * SPEC.buckets >> 32


def is_word(character: str) -> bool:
    if ord(character) >= 0x3FFFF:
        return False
    return unicodedata.category(character)[0] in "LNMS" or ord(character) in {0x200C, 0x200D}


def plain_words(text: str) -> list[list[int]]:
    folded = unicodedata.normalize("NFC", text).lower()
    words: list[list[int]] = [[]]
    for character in folded:
        if is_word(character):
            words[-1].append(ord(character) + 1)
        elif words[-1]:
            words.append([])
    words = [word for word in words if word]
    return words or ([[ord(c) + 1 for c in folded]] if folded else [])


def plain_text_groups(text: str) -> list[list[int]]:
    words = plain_words(text)
    hashes = [plain_mix(plain_hash(word)) for word in words]
    groups = [
        [plain_bucket(h, 1, 1) for h in hashes],
        [plain_bucket((a * int(hashing.JOIN) + b) & MASK, 1, 2) for a, b in itertools.pairwise(hashes)],
    ]
    for n in (3, 4):
        grams = []
        for word in words:
            marked = [0, *word, 0]
            for at in range(len(marked) - n + 1):
                value = 0
                for character in marked[at : at + n]:
                    value = (value * int(hashing.BASE) + character) & MASK
                grams.append(plain_bucket(value, 2, n))
        groups.append(grams)
    return groups


def groups_of(content: ItemContent, batch: list[ItemContent] | None = None) -> dict[str, list[int]]:
    contents = batch if batch is not None else [content]
    features = extract(contents, SPEC)
    n, at = len(contents), contents.index(content)
    return {
        name: features.tokens[features.offsets[g * n + at] : features.offsets[g * n + at + 1]].tolist()
        for g, name in enumerate(group_names(SPEC))
    }


def title(text: str) -> ItemContent:
    return ItemContent(title=text)


def bare(**fields: object) -> ItemContent:
    """Content that the schema would refuse or change: the features must not crash on it either."""
    return ItemContent.model_construct(**fields)


ODD = [
    "Toy Story (1995)",
    "L'été 1985: À bout de souffle",
    "İstanbul DİYARBAKIR ΟΔΟΣ ΣΑΣ",
    "e\u0301te\u0301",
    "東京物語 とうきょう",
    "🔥🔥 fire 👨\u200d👩\u200d👧",
    "...!?",
    "   ",
    "\n\n a\nb\t",
    "nul\x00inside \x00",
    "\x00",
    "a",
    "ab",
    "\u0301\u0301",
    "\u2028x\u2028",
    "\U000e0100\U0010ffff",
    "ß ẞ straße",
    "x" * 3000,
]


@pytest.mark.parametrize("text", ODD)
def test_text_has_the_same_tokens_as_the_plain_implementation(text):
    found = groups_of(title(text))
    expected = plain_text_groups(text[: SPEC.max_text_chars])
    for name, tokens in zip(("title.word1", "title.word2", "title.char3", "title.char4"), expected, strict=True):
        assert found[name] == tokens, name


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=8))
def test_any_unicode_has_the_same_tokens_as_the_plain_implementation_in_any_batch(texts):
    contents = [bare(title=t, text=t[::-1]) for t in texts]
    features = extract(contents, SPEC)
    n = len(contents)
    for at, text in enumerate(texts):
        expected = [*plain_text_groups(text), *plain_text_groups(text[::-1])]
        for g, tokens in enumerate(expected):
            bag = features.tokens[features.offsets[g * n + at] : features.offsets[g * n + at + 1]]
            assert bag.tolist() == tokens


def test_lone_surrogates_are_characters_like_others():
    assert groups_of(bare(title="\ud800"))["title.word1"]
    assert groups_of(bare(title="a\udfffb"))["title.word1"] == plain_text_groups("a\udfffb")[0]


def test_every_odd_item_has_the_same_features_alone_and_among_others():
    batch = [title(text) for text in ODD]
    for content in batch:
        assert groups_of(content) == groups_of(content, batch)


def test_an_item_has_the_same_features_across_the_cut_between_passes():
    batch = [ItemContent(text=f"{i} " + "wörd " * 390) for i in range(300)]
    assert groups_of(batch[250], batch) == groups_of(batch[250])


def test_composed_and_decomposed_spelling_and_case_are_the_same():
    assert groups_of(title("Été")) == groups_of(title("e\u0301TE\u0301"))


def test_title_and_text_share_tokens_but_not_bags():
    in_title, in_text = groups_of(title("some words")), groups_of(ItemContent(text="some words"))
    assert in_title["title.word1"] == in_text["text.word1"]
    assert in_title["text.word1"] == in_text["title.word1"] == []


def test_fields_are_salted_apart():
    found = groups_of(
        ItemContent(title="pt", categories=["pt"], tags=["pt"], creator_id="pt", language="pt", attributes={"pt": ""})
    )
    tokens = [found[name][0] for name in ("title.word1", "category", "tag", "creator", "language", "attribute")]
    assert len(set(tokens)) == 6


def test_labels_are_whole_and_folded_but_creators_and_attributes_are_exact():
    assert groups_of(ItemContent(tags=["Sci Fi"]))["tag"] == groups_of(ItemContent(tags=["sci fi"]))["tag"]
    assert len(groups_of(ItemContent(tags=["Sci Fi"]))["tag"]) == 1
    assert groups_of(ItemContent(creator_id="Ab"))["creator"] != groups_of(ItemContent(creator_id="aB"))["creator"]


def test_attribute_key_and_value_both_count_and_are_not_interchangeable():
    one = groups_of(ItemContent(attributes={"a": "b"}))["attribute"]
    assert one != groups_of(ItemContent(attributes={"b": "a"}))["attribute"]
    assert one != groups_of(ItemContent(attributes={"ab": ""}))["attribute"]
    assert one != groups_of(ItemContent(attributes={"a": "c"}))["attribute"]


def test_empty_labels_add_nothing_and_shift_nothing():
    batch = [ItemContent(tags=["", "x", ""]), ItemContent(tags=["y"]), ItemContent(title="t", tags=[""])]
    assert [len(groups_of(content, batch)["tag"]) for content in batch] == [1, 1, 0]
    assert groups_of(batch[1], batch) == groups_of(batch[1])


def test_pooling_divides_by_the_root_of_the_number_of_tokens():
    features = extract([ItemContent(tags=["a", "b", "c", "d"]), title("x")], SPEC)
    assert features.scale[group_names(SPEC).index("tag")].tolist() == [0.5, 0.0]


def test_an_empty_batch_has_no_features():
    features = extract([], FeatureSpec(dense_dim=3))
    assert len(features) == 0
    assert len(features.tokens) == 0
    assert features.dense.shape == (0, 3)


def test_other_gram_lengths_are_found_too():
    spec = FeatureSpec(char_ngrams=(1, 2, 5), word_ngrams=(3,))
    features = extract([title("ab cde f")], spec)
    counts = dict(zip(group_names(spec), np.diff(features.offsets).tolist(), strict=True))
    assert counts["title.word3"] == 1
    assert counts["title.char1"] == 6
    assert counts["title.char2"] == (2 + 1) + (3 + 1) + (1 + 1)
    assert counts["title.char5"] == 0 + 1 + 0


def test_taking_rows_equals_extracting_those_items():
    batch = [title(text) for text in ODD]
    rows = np.array([3, 0, 3, 17])
    taken, fresh = extract(batch, SPEC).take(rows), extract([batch[i] for i in rows], SPEC)
    assert np.array_equal(taken.tokens, fresh.tokens)
    assert np.array_equal(taken.offsets, fresh.offsets)
    assert np.array_equal(taken.scale, fresh.scale)


def test_dense_vectors_are_brought_to_unit_length_whatever_their_size():
    spec = FeatureSpec(dense_dim=2)
    for size in (1.0, 1e300, 5e-324):
        features = extract([ItemContent(embedding=[3 * size, 4 * size])], spec)
        assert features.dense[0] == pytest.approx([0.6, 0.8], abs=2**-19)
    assert extract([ItemContent(embedding=[0.0, 0.0])], spec).dense.tolist() == [[0.0, 0.0]]


def test_a_dense_vector_that_does_not_fit_is_refused_with_both_dimensions():
    with pytest.raises(RecordError, match=r"3 dimensions.*takes 2 dimensions") as caught:
        check_embedding(ItemContent(embedding=[1.0, 2.0, 3.0]), FeatureSpec(dense_dim=2))
    assert caught.value.reason == "wrong_dimension"
    with pytest.raises(RecordError, match="takes no embeddings"):
        extract([ItemContent(embedding=[1.0])], FeatureSpec())
    check_embedding(title("x"), FeatureSpec(dense_dim=2))


def test_a_dense_vector_with_nan_is_refused():
    with pytest.raises(RecordError, match="not finite") as caught:
        extract([bare(embedding=[float("nan"), 1.0])], FeatureSpec(dense_dim=2))
    assert caught.value.reason == "invalid"


def test_splitmix_gives_its_published_first_value():
    assert int(hashing.splitmix64(np.zeros(1, np.uint64))[0]) == 0xE220A8397B1DCDAF


def test_buckets_cover_the_table_evenly():
    hashes = np.arange(200_000, dtype=np.uint64)
    counts = np.bincount(hashing.buckets_of(hashes, hashing.salt(1), 1_000), minlength=1_000)
    assert counts.min() > 100
    assert counts.max() < 300
