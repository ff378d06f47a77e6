"""Residual assignment against exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch

from model_runtime import fixed_point as fx
from model_runtime.codebook import Codebook, raw_indices, reconstruct, too_long


def grid(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return fx.snap(rng.normal(0, 0.3, shape), fx.CODEWORD_BITS, fx.CODEWORD_LIMIT)


def plain_codes(vector: np.ndarray, book: np.ndarray) -> list[int]:
    residual = [Fraction(float(x)) for x in vector]
    codes = []
    for layer in book:
        distances = [sum((r - Fraction(float(c))) ** 2 for r, c in zip(residual, word, strict=True)) for word in layer]
        codes.append(distances.index(min(distances)))
        residual = [r - Fraction(float(c)) for r, c in zip(residual, layer[codes[-1]], strict=True)]
    return codes


def test_codes_are_those_of_exact_arithmetic():
    rng = np.random.default_rng(0)
    words, vectors = grid(rng, (2, 3, 5, 7)), rng.normal(0, 0.4, (40, 2, 7)).astype(np.float16)
    codes = Codebook(words, torch.device("cpu")).assign(vectors)
    assert codes.dtype == np.int32
    for row, vector in zip(codes, vectors, strict=True):
        assert [plain_codes(vector[f], words[f]) for f in range(2)] == row.tolist()


def test_ties_go_to_the_first_codeword():
    words = np.zeros((1, 2, 4, 2), np.float32)
    words[0, 0] = [[1, 0], [0, 1], [1, 0], [0, 1]]
    codes = Codebook(words, torch.device("cpu")).assign(np.array([[[0.5, 0.5]], [[0, 1]]], np.float16))
    assert codes.tolist() == [[[0, 0]], [[1, 0]]]


def test_raw_index_is_the_mixed_radix_number_with_the_first_layer_foremost():
    codes = np.array([[[1, 2, 3], [0, 0, 9]]], np.int32)
    assert raw_indices(codes, 10).tolist() == [[123, 9]]
    assert raw_indices(codes, 10).dtype == np.uint32


def test_reconstruction_adds_the_picked_codewords():
    rng = np.random.default_rng(1)
    words = grid(rng, (2, 3, 4, 5))
    codes = rng.integers(0, 4, (6, 2, 3)).astype(np.int32)
    expected = words[1, 0, codes[2, 1, 0]] + words[1, 1, codes[2, 1, 1]] + words[1, 2, codes[2, 1, 2]]
    assert np.allclose(reconstruct(codes, words)[2, 1], expected)


def test_codewords_too_long_for_exact_distances_are_told_from_the_longest_allowed():
    almost_two = fx.CODEWORD_LIMIT - 2.0**-fx.CODEWORD_BITS
    assert not too_long(np.full((1, 8, 2, 64), almost_two, np.float32))
    assert too_long(np.full((1, 8, 2, 1024), almost_two, np.float32))


def test_distances_of_the_longest_codewords_are_still_exact():
    rng = np.random.default_rng(2)
    words = np.full((1, 4, 3, 64), fx.CODEWORD_LIMIT, np.float32) * rng.choice([-1, 1], (1, 4, 3, 64))
    words = fx.snap(words - rng.integers(0, 3, words.shape) * 2.0**-16, fx.CODEWORD_BITS, fx.CODEWORD_LIMIT)
    vector = rng.normal(0, 0.125, (1, 1, 64)).astype(np.float16)
    codes = Codebook(words, torch.device("cpu")).assign(vector)
    assert codes[0, 0].tolist() == plain_codes(vector[0, 0], words[0])


def test_no_vectors_have_no_codes():
    codes = Codebook(np.zeros((2, 3, 4, 5), np.float32), torch.device("cpu")).assign(np.zeros((0, 2, 5), np.float16))
    assert codes.shape == (0, 2, 3)
