"""The sequential variant adds in the order that it claims."""

import sys
import unittest

import numpy as np

from llorch_adapter.folder import read_config, read_weights

from .client import ADAPTERS, NANO


class Order(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        sys.path.append(str(ADAPTERS / "numpy"))
        from sequential import SequentialGpt2

        config = read_config(NANO)
        cls.model = SequentialGpt2(config, read_weights(NANO, config))
        cls.random = np.random.default_rng(1)

    def numbers(self, *shape):
        return self.random.standard_normal(shape).astype(np.float32)

    def test_products_add_from_the_first_term_to_the_last(self):
        for shape in ((1, 300, 1), (5, 129, 7), (1, 2, 64, 3, 5)):
            *batch, m, k, n = (1, *shape) if len(shape) == 3 else shape
            a, b = self.numbers(*batch, m, k), self.numbers(*batch, k, n)
            expected = np.zeros((*batch, m, n), np.float32)
            for index in np.ndindex(*batch, m, n):
                *at, row, column = index
                total = np.float32(0)
                for term in range(k):
                    total = np.float32(total + np.float32(a[(*at, row, term)] * b[(*at, term, column)]))
                expected[index] = total
            np.testing.assert_array_equal(self.model.product(a, b), expected)

    def test_totals_add_from_the_first_term_to_the_last(self):
        for shape in ((1, 1000), (3, 128), (2, 3, 50)):
            x = self.numbers(*shape)
            expected = np.zeros((*shape[:-1], 1), np.float32)
            for term in range(shape[-1]):
                expected[..., 0] = np.float32(expected[..., 0] + x[..., term])
            np.testing.assert_array_equal(self.model.total(x), expected)
        self.assertFalse(np.array_equal(x.sum(-1, keepdims=True), expected))

    def test_the_head_is_the_transposed_table(self):
        x = self.numbers(2, self.model.dims.n_embd)
        expected = self.model.product(x, self.model.weights["lm_head.weight"].T)
        np.testing.assert_array_equal(self.model.head(x), expected)
