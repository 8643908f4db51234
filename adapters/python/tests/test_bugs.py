"""Each seeded bug is seen first at the point where it was put, and nowhere before."""

import unittest

import numpy as np

from .client import Client, causal

IDS = [(i * 611) % 50257 for i in range(12)]
FORCED = [262, 995, 13]

# bug -> the first (step, point) that differs from the honest model
FIRST = {
    "transposed_c_proj:layer=2": (0, "h.2.attn.out"),
    "eps:value=1e-3": (0, "h.0.ln_1"),
    "eps:layer=1": (0, "h.1.ln_1"),
    "dropped_bias:which=attn.c_attn:layer=1": (0, "h.1.attn.q"),
    "dropped_bias:which=attn.c_proj:layer=1": (0, "h.1.attn.out"),
    "dropped_bias:which=mlp.c_fc": (0, "h.0.mlp.fc"),
    "swap_qk:layer=1": (0, "h.1.attn.q"),
    "position_shift": (0, "embeddings"),
    "restarted_positions": (1, "embeddings"),
    "swapped_norms:layer=1": (0, "h.1.ln_1"),
    "unbiased_variance:layer=2": (0, "h.2.ln_1"),
    "erf_gelu:layer=1": (0, "h.1.mlp.act"),
    "missing_residual:which=attn:layer=1": (0, "h.1.resid_mid"),
    "missing_residual:which=mlp:layer=1": (0, "h.1"),
    "bf16_linear:layer=1": (0, "h.1.mlp.fc"),
    "interleaved_qkv:layer=1": (0, "h.1.attn.q"),
    "missing_scale:layer=1": (0, "h.1.attn.scores"),
    "mask_off": (0, "h.0.attn.probs"),
    "unsplit_merge": (0, "h.0.attn.context"),
    "head_scale:layer=1:head=2": (0, "h.1.attn.context"),
    "stale_cache": (1, "h.0.attn.cache.v"),
    "stale_cache:which=k:layer=1": (1, "h.1.attn.cache.k"),
    "nan:point=h.1.attn.q:step=1": (1, "h.1.attn.q"),
    "scaled:point=h.0.mlp.fc": (0, "h.0.mlp.fc"),
    "shifted_token": (0, "argmax"),
    "shifted_token:point=tokens": (0, "tokens"),
    "wrong_shape": (0, "h.0.mlp.out"),
}


def capture(*arguments, **fields):
    client = Client("bug", *arguments)
    client.load()
    tensors, done = client.run(IDS, ["*"], max_new_tokens=3, forced_ids=FORCED, **fields)
    client.close()
    assert done["type"] == "done", done
    return tensors


def same(point, a, b):
    return a.shape == b.shape and np.array_equal(causal(point, a), causal(point, b))


class Bugs(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.honest = capture()

    def test_each_shows_where_it_is(self):
        for bug, expected in FIRST.items():
            with self.subTest(bug=bug):
                found = capture("--bug", bug)
                first = next((key for key in self.honest if not same(key[1], self.honest[key], found[key])), None)
                self.assertEqual(first, expected)

    def test_sampling_bugs_show_in_the_probabilities_only(self):
        settings = {"temperature": 0.7, "top_k": 5}
        honest = capture(sampling=settings)
        for bug in ("ignored_temperature", "top_k_plus_one"):
            found = capture("--bug", bug, sampling=settings)
            changed = {point for (_, point) in honest if not same(point, honest[_, point], found[_, point])}
            self.assertEqual(changed, {"next.probs"}, bug)

    def test_several_bugs_at_once(self):
        found = capture("--bug", "erf_gelu:layer=2", "--bug", "head_scale:layer=1")
        first = next(key for key in self.honest if not same(key[1], self.honest[key], found[key]))
        self.assertEqual(first, (0, "h.1.attn.context"))

    def test_a_bug_that_does_not_exist_is_refused(self):
        for text in ("typo", "eps:valeu=1", "eps:value=much", "position_shift:layer=1"):
            client = Client("bug", "--bug", text)
            self.assertEqual(client.close(), 2, text)
        client = Client("bug", "--bug", "eps:layer=99")
        with self.assertRaisesRegex(AssertionError, "no layer 99"):
            client.load()
        client.close()
