"""The forms that are timed: other graphs and other kernels than those that show their points, and the same model."""

import unittest

import numpy as np

from .client import NANO, Client, interpreter

# Engine and dtype, and how far its logits may be from those of NumPy in f64, whose largest is 30. For f32: rounding, and
# what llama.cpp declares. Narrower: twice what was measured.
FORMS = (
    ("onnxruntime", "fast", "f32", 1e-4),
    ("onnxruntime", "fast", "int8", 0.4),
    ("openvino", "fast", "f32", 1e-4),
    ("openvino", "fast", "bf16", 0.2),
    ("openvino", "fast", "int8", 0.4),
    ("ctranslate2", "fast", "f32", 1e-4),
    ("ctranslate2", "fast", "int8", 0.5),
    ("llamacpp", "fast", "f32", 2e-2 * 30),
    ("llamacpp", "fast", "bf16", 2e-2 * 30),
    ("llamacpp", "fast", "int8", 2e-2 * 30),
    ("hf", "sdpa", "f32", 1e-4),
    ("hf", "sdpa", "bf16", 0.5),
)
PROMPT = [15496, 13, 770, 318, 257, 1332, 286, 262, 5726, 1366]
FORCED = [383, 1110, 318, 3734]


class TestFast(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if interpreter("numpy") is None:
            raise unittest.SkipTest("numpy isn't installed here")
        client = Client("numpy", "--variant", "f64")
        client.hello()
        client.load()
        cls.expected, _ = client.run(PROMPT, ["logits.last"], max_new_tokens=4, forced_ids=FORCED)
        client.close()

    def test_the_form_that_is_timed_computes_the_same_model(self):
        for name, variant, dtype, bound in FORMS:
            if interpreter(name) is None:
                continue
            with self.subTest(engine=name, dtype=dtype):
                client = Client(name, "--variant", variant)
                hello = client.hello()
                self.assertIn("bench", hello["capabilities"])
                self.assertEqual(client.load(dtype=dtype)["dtype"], dtype)
                found, _ = client.run(PROMPT, ["logits.last"], max_new_tokens=4, forced_ids=FORCED)
                self.assertEqual(found.keys(), self.expected.keys())
                for at, expected in self.expected.items():
                    self.assertLess(np.abs(found[at] - expected).max(), bound, at)
                # Nothing captured, as it is timed: the same again, and a clock.
                _, done = client.run(PROMPT, max_new_tokens=3)
                _, again = client.run(PROMPT, max_new_tokens=3)
                self.assertEqual(done["generated"], again["generated"])
                self.assertEqual(done["generated"][0], int(np.argmax(self.expected[0, "logits.last"])))
                self.assertTrue(done["seconds"]["prefill"] > 0 and done["seconds"]["decode"] > 0)
                self.assertEqual(client.close(), 0)

    def test_a_dtype_that_it_has_not_is_unsupported_and_the_next_load_goes_well(self):
        for name in ("onnxruntime", "ctranslate2", "llamacpp"):
            if interpreter(name) is None:
                continue
            with self.subTest(engine=name):
                client = Client(name, "--variant", "fast")
                client.hello()
                # CTranslate2 has no bf16 for every CPU; nobody has f64.
                load = {"type": "load", "model_dir": str(NANO), "dtype": "f64", "threads": 1}
                answer = client.ask(load)
                self.assertEqual((answer["type"], answer.get("class")), ("error", "unsupported"))
                client.load()
                self.assertEqual(client.close(), 0)


if __name__ == "__main__":
    unittest.main()
