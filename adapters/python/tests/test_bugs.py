"""The seeded bugs against their data, without the harness: each is seen first where it is said to be.

What the harness makes of them is tested by `tests/bugs.rs`.
"""

import unittest
from functools import cache

import numpy as np

from . import seeded
from .client import Client, causal

U = 2.0**-24
# A change at a point, in units of u times the point's largest element, where rounding makes one of a
# few. The smallest of the bugs that count makes one of 143; the largest of those below the limit one
# of 75, at a norm, or drops a token that lies at the cut of a filter, which no number measures.
LEAST, MOST_BELOW = 100, 100

# Only `llorch-diff` can make this model, so its own suite has to do.
ELSEWHERE = {"synth:tiny"}


@cache
def honest(model, case):
    return seeded.capture(model, case, ())


def change(point, a, b):
    """The largest difference, and where there is any; a number that is infinite in one only is one."""
    a, b = causal(point, a), causal(point, b)
    with np.errstate(invalid="ignore"):
        difference = np.where(a == b, 0, np.abs(a.astype(np.float64) - b))
    difference = np.where(np.isnan(difference), np.inf, difference)
    largest = np.abs(a[np.isfinite(a)]).max(initial=0) if a.size else 0
    return float(difference.max() / max(U * largest, 1e-300)), difference > 0


def first_change(a, b, dims):
    keys = seeded.in_order(a, dims)
    return next((key for key in keys if not np.array_equal(causal(key[1], a[key]), causal(key[1], b[key]))), None)


class Data(unittest.TestCase):
    def each(self, check, applies):
        """Calls `check` with each bug to which it applies, as a test of its own; says how many."""
        chosen = [bug for bug in seeded.listed() if bug.model not in ELSEWHERE and applies(bug)]
        for bug in chosen:
            with self.subTest(bug=bug.inject, case=bug.case):
                check(bug)
        return len(chosen)

    def first(self, bug, inject):
        """Where a bug, or the first of a pair, is seen first: the tensors, and (step, point)."""
        reference = honest(bug.model, bug.case)
        found = seeded.capture(bug.model, bug.case, tuple(inject))
        return found, first_change(reference, found, seeded.model(bug.model)[0].dims)

    def test_each_is_first_seen_where_its_data_says(self):
        def check(bug):
            found, first = self.first(bug, bug.inject)
            key = bug.step, bug.point
            size, where = change(bug.point, honest(bug.model, bug.case)[key], found[key])
            if bug.below_limit:
                self.assertIn(first, (key, None))
                self.assertTrue(size < MOST_BELOW or bug.point == "next.probs", size)
                return
            self.assertEqual(first, key)
            self.assertGreater(size, LEAST)
            dims = seeded.model(bug.model)[0].dims
            self.assertEqual(confined(bug, where, dims), (bug.head, bug.token), "head and token")

        self.assertGreater(self.each(check, lambda bug: bug.point != "generated"), 110)

    def test_of_a_pair_the_second_is_seen_behind_the_first(self):
        def check(bug):
            alone = [self.first(bug, [one])[1] for one in bug.inject]
            expected = [(bug.step, bug.point), (bug.then.get("step", 0), bug.then["point"])]
            self.assertCountEqual(alone, expected)
            dims = seeded.model(bug.model)[0].dims
            self.assertEqual(seeded.in_order(dict.fromkeys(expected), dims), expected, "their order")

        self.assertGreater(self.each(check, lambda bug: bug.then), 10)

    def test_those_of_free_generation_are_seen_there_only(self):
        def check(bug):
            self.assertIsNone(self.first(bug, bug.inject)[1], "where tokens are forced")
            right = seeded.generate(bug.model, bug.case, ())
            found = seeded.generate(bug.model, bug.case, tuple(bug.inject))
            first = next((n for n, (a, b) in enumerate(zip(right, found)) if a != b), None)
            self.assertEqual(first, bug.step)

        self.assertGreater(self.each(check, lambda bug: bug.point == "generated"), 3)

    def test_the_data_covers_what_it_must(self):
        counted = [bug for bug in seeded.listed() if not bug.below_limit]
        self.assertGreaterEqual(len(counted), 110)
        names = {text.split(":")[0] for bug in seeded.listed() for text in bug.inject}
        bugs = seeded.adapter_class().BUGS
        # No run by itself shows these; `invariants` is tested with them.
        of_process = {name for name, (function, _) in bugs.items() if function.__module__.endswith("process")}
        # These break the protocol or the numbers rather than GPT-2; `run` is tested with them.
        self.assertEqual(set(bugs) - names - of_process, {"nan", "wrong_shape"})


def confined(bug, where, dims):
    """The head and the token outside which nothing differs, if the data names them."""
    if bug.point.endswith(".context"):
        where = where.reshape(where.shape[0], dims.n_head, -1).transpose(1, 0, 2)
    heads, tokens = (where.any((1, 2)), where.any((0, 2))) if where.ndim == 3 else (None, where.any(-1))
    only = lambda hits: int(np.argmax(hits)) if hits is not None and np.sum(hits) == 1 else None
    return (
        None if bug.head is None else only(heads),
        None if bug.token is None else only(tokens),
    )


class Adapter(unittest.TestCase):
    """Through the protocol."""

    def capture(self, *arguments):
        client = Client("bug", *arguments)
        client.load()
        tensors, done = client.run([15496, 13, 464], ["*"], max_new_tokens=2, forced_ids=[262, 995])
        client.close()
        self.assertEqual(done["type"], "done", done)
        return tensors

    def test_without_bugs_it_is_honest_and_with_bugs_it_has_all_of_them(self):
        right = self.capture()
        client = Client("numpy")
        client.load()
        same, _ = client.run([15496, 13, 464], ["*"], max_new_tokens=2, forced_ids=[262, 995])
        client.close()
        self.assertTrue(all(np.array_equal(right[key], same[key]) for key in same))
        found = self.capture("--bug", "erf_gelu:layer=2", "--bug", "nan:point=h.1.attn.q:step=1")
        differing = [key for key in right if not np.array_equal(right[key], found[key])]
        self.assertEqual(differing[0], (0, "h.2.mlp.act"))
        self.assertIn((1, "h.1.attn.q"), differing)
        self.assertNotIn((1, "h.1.ln_1"), differing)

    def test_a_wrong_shape_is_shown_and_the_run_goes_on(self):
        right, found = self.capture(), self.capture("--bug", "wrong_shape:point=h.1.mlp.out")
        differing = {point for step, point in right if right[step, point].shape != found[step, point].shape}
        self.assertEqual(differing, {"h.1.mlp.out"})
        self.assertTrue(np.array_equal(right[1, "h.1"], found[1, "h.1"]))

    def test_a_bug_that_does_not_exist_is_refused(self):
        for text in ("typo", "eps:valeu=1", "eps:value=much", "position_shift:layer=1"):
            client = Client("bug", "--bug", text)
            self.assertEqual(client.close(), 2, text)
        refused = {
            "eps:layer=99": "no layer 99",
            "head_scale:head=4": "no head 4",
            "transposed:which=mlp.c_fc": "expected one of attn.c_proj, q, k, v",
            "dropped_bias:which=typo": "expected one of attn.c_attn",
            "zeroed_weight:index=999999": "none at 999999",
            "wpe_row:row=256": "wpe.weight has 256 rows",
            "swapped_qkv:order=qqk": "expected the letters q, k and v",
        }
        for text, reason in refused.items():
            client = Client("bug", "--bug", text)
            with self.subTest(bug=text), self.assertRaisesRegex(AssertionError, reason):
                client.load()
            client.close()
