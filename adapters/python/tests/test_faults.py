"""Known failures stay known: where upstream no longer has what an adapter looks at, the adapter says
what it expected, and where. A table that is silently smaller would look like agreement.

`faults/adapter.py` is each adapter with something of upstream's renamed or gone.
"""

import unittest

from .client import ADAPTERS, NANO, Client, interpreter

# Adapter, fault, and what the error has to name.
FAULTS = [
    ("hf", "softmax", "failed to capture h.0.attn.scores"),
    ("hf", "module", "ln_2"),
    ("tinygrad", "gelu", "gelu"),
    ("onnxruntime", "output", "no output `h.1.attn.scores`"),
    ("openvino", "output", "no output `h.1.mlp.act`"),
    ("ctranslate2", "field", "has no `logits`"),
    ("ctranslate2", "logits", "GenerationStepResult.logits"),
    ("flax", "softmax", "failed to capture h.0.attn.scores"),
    ("flax", "method", "failed to capture h.0.attn.cache.k"),
]


class Faults(unittest.TestCase):
    def test_what_upstream_has_lost_is_an_error_by_name(self):
        tried = 0
        for name, fault, expected in FAULTS:
            if interpreter(name) is None:
                continue
            with self.subTest(name=name, fault=fault):
                client = Client(name, name, fault, folder=ADAPTERS / "tests" / "faults")
                try:
                    message = client.ask({"type": "load", "model_dir": str(NANO), "dtype": "f32", "threads": 1})
                    if message["type"] == "loaded":
                        _, message = client.run([15496, 13], ["*"], max_new_tokens=2)
                    self.assertEqual((message["type"], message.get("class")), ("error", "internal"), message)
                    self.assertIn(expected, message["message"])
                finally:
                    client.close()
                tried += 1
        self.assertGreater(tried, 0)
