"""The adapter of tinygrad's own GPT-2, on a stand-in for a checkout and the installed tinygrad.

Set LLORCH_TINYGRAD_SRC to run the same against the real one.
"""

import os
import unittest
from pathlib import Path
from unittest.mock import patch

import numpy as np

from .client import ADAPTERS, Client, causal, interpreter
from .test_numbers import tolerance, worst

STAND_IN = Path(__file__).resolve().parent / "tinygrad_checkout"
PROMPT = [15496, 13, 314, 716]
FORCED = [262, 1110]


def client(source, broken=""):
    named = {"LLORCH_TINYGRAD_SRC": str(source or ""), "LLORCH_TEST_BROKEN": broken}
    with patch.dict(os.environ, named):
        return Client("tinygrad", folder=ADAPTERS / "tinygrad_upstream")


class Upstream(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        for name in ("tinygrad", "numpy"):
            if interpreter(name) is None:
                raise unittest.SkipTest(f"{name} isn't installed here")

    def test_every_point_agrees_with_numpy_but_the_one_that_upstream_has_not(self):
        found = {}
        source = os.environ.get("LLORCH_TINYGRAD_SRC") or STAND_IN
        for who in (client(source), Client("numpy")):
            claims = who.hello()
            who.load()
            runs = [who.run(ids, ["*"], max_new_tokens=2, forced_ids=FORCED) for ids in (PROMPT, [13])]
            found[claims["name"]] = [tensors for tensors, _ in runs]
            self.assertEqual(who.close(), 0)
        for left, right in zip(found["tinygrad-upstream"], found["numpy"]):
            right = {key: value for key, value in right.items() if key[1] != "next.probs"}
            self.assertEqual(list(left), list(right))
            for step, point in left:
                a, b = left[step, point], right[step, point]
                self.assertLessEqual(worst(point, a, b), tolerance(point), f"{point} at step {step}")
                self.assertTrue(np.isfinite(causal(point, a)).all(), point)

    def test_without_a_checkout_it_takes_part_in_nothing_and_says_why(self):
        who = client(None)
        claims = who.hello()
        self.assertEqual([entry["point"] for entry in claims["unsupported"]], ["*"])
        self.assertIn("set LLORCH_TINYGRAD_SRC", claims["unsupported"][0]["reason"])
        who.load()
        self.assertEqual(who.run(PROMPT)[1]["class"], "unsupported")
        self.assertEqual(who.close(), 0)

    def test_a_folder_that_is_no_checkout_is_an_error(self):
        who = client(ADAPTERS)
        who.hello()
        reply = who.ask({"type": "load", "model_dir": str(ADAPTERS.parents[1] / "golden/models/nano"), "dtype": "f32", "threads": 1})
        self.assertIn("holds no examples/gpt2.py", reply["message"])
        who.close()

    def refused(self, broken):
        who = client(STAND_IN, broken)
        who.hello()
        folder = str(ADAPTERS.parents[1] / "golden/models/nano")
        reply = who.ask({"type": "load", "model_dir": folder, "dtype": "f32", "threads": 1})
        if reply["type"] == "loaded":
            _, reply = who.run(PROMPT, ["*"])
        self.assertEqual((reply["type"], reply["class"]), ("error", "internal"), reply)
        who.close()
        return reply["message"]

    def test_a_point_that_upstream_no_longer_comes_by_is_an_error_that_names_it(self):
        self.assertIn("expected examples/gpt2.py to come by Tensor.gelu", self.refused("gelu"))

    def test_a_class_that_is_gone_is_an_error_that_names_it(self):
        self.assertIn("expected it to have `TransformerBlock`", self.refused("block"))

    def test_a_parameter_that_gpt2_has_not_is_an_error_that_names_it(self):
        self.assertIn("scale [128]", self.refused("parameter"))
