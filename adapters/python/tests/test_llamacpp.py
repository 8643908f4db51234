"""What is peculiar to llama.cpp: nodes that go by upstream's names, and a GELU from a table."""

import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import numpy as np

from llorch_adapter.points import all_points

from .client import ADAPTERS, NANO, Client, interpreter

PROMPT = [15496, 13]
LONG = [(i * 7919) % 50257 for i in range(200)]

# An adapter whose table of nodes names one that upstream's graph hasn't.
RENAMED = """
import sys
sys.path[:0] = [{real!r}, {shared!r}]
import nodes
for table in (nodes.FIRST, nodes.LAYER, nodes.LAST):
    renamed = {{({new!r} if node == {old!r} else node): points for node, points in table.items()}}
    table.clear()
    table.update(renamed)
import adapter
sys.exit(adapter.main())
"""


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def off_by(given, exact):
    """In the form of the tolerance classes."""
    return np.abs(given - exact) / np.maximum(1, np.maximum(np.abs(given), np.abs(exact)))


class LlamaCpp(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if interpreter("llamacpp") is None:
            raise unittest.SkipTest("llamacpp isn't installed here; set LLORCH_LLAMACPP_PYTHON")

    def client(self, *arguments, folder=None, load=True):
        client = Client("llamacpp", *arguments, folder=folder)
        self.addCleanup(client.close)
        if load:
            client.load()
        return client

    def test_a_node_that_upstream_renames_is_an_error_that_names_it(self):
        names = {
            "inpL": ("inpL_gone", "inpL_gone", "embeddings"),
            "kqv_out-{i}": ("kqv_result-{i}", "kqv_result-0", "h.0.attn.context"),
            "ADD blk.{i}.attn_output.bias": ("ADD blk.{i}.wo.bias", "ADD blk.0.wo.bias", "h.0.attn.out"),
            "SET_ROWS cache_v_l{i}": ("SET_ROWS cache_value_l{i}", "SET_ROWS cache_value_l0", "h.0.attn.cache.v"),
            "result_output": ("result_logits", "result_logits", "logits"),
        }
        for old, (new, node, point) in names.items():
            with self.subTest(node=old), tempfile.TemporaryDirectory() as folder:
                text = RENAMED.format(real=str(ADAPTERS / "llamacpp"), shared=str(ADAPTERS), old=old, new=new)
                (Path(folder) / "adapter.py").write_text(text)
                client = self.client(folder=Path(folder))
                _, message = client.run(PROMPT, ["*"])
                self.assertEqual((message["type"], message.get("class")), ("error", "internal"), message)
                self.assertIn(f"expected node {node} ({point}) in llama.cpp's graph; found ", message["message"])
                found = message["message"].split("found ")[1]
                self.assertIn(old.format(i=0).split(" ")[-1].split("_")[0], found)
                # Whoever doesn't ask for it doesn't miss it.
                tensors, done = client.run(PROMPT, ["h.1.ln_2"])
                self.assertEqual((list(tensors), done["type"]), ([(0, "h.1.ln_2")], "done"))

    def test_the_gelu_is_off_as_declared_and_nothing_else_is(self):
        plain, exact = self.client(), self.client("--variant", "exact-gelu")
        (declared,) = plain.hello()["deviations"]
        self.assertEqual(declared["point"], "h.*.mlp.act")
        self.assertEqual(exact.hello()["deviations"], [])
        points = ["h.*.mlp.fc", "h.*.mlp.act"]
        table, own = (client.run(LONG, points)[0] for client in (plain, exact))
        worst = 0
        for (step, point), fc in table.items():
            if not point.endswith(".fc"):
                continue
            act = point.replace(".fc", ".act")
            off = off_by(table[step, act].astype(np.float64), gelu(fc.astype(np.float64)))
            self.assertLessEqual(off.max(), declared["bound"])
            worst = max(worst, off.max())
            expected = gelu(own[step, point].astype(np.float64)).astype(np.float32)
            np.testing.assert_array_equal(own[step, act], expected)
        # Else upstream has another GELU now, and nothing is to be declared.
        self.assertGreater(worst, 2e-4)

    def test_the_declared_bound_is_that_of_a_table_in_f16(self):
        """Every f16 between -10 and 10, and what rounds to it, at its farthest."""
        inputs = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
        inputs = np.unique(inputs[np.abs(inputs.astype(np.float64)) <= 10].astype(np.float64))
        table = gelu(inputs).astype(np.float16).astype(np.float64)
        middle = (inputs[1:] + inputs[:-1]) / 2
        worst = max(off_by(table[:-1], gelu(middle)).max(), off_by(table[1:], gelu(middle)).max())
        bound = self.client(load=False).hello()["deviations"][0]["bound"]
        self.assertLessEqual(worst, 1e-3)
        self.assertLessEqual(worst + 1e-4, bound)  # and the class, for what comes in

    def test_a_run_without_points_gives_what_one_with_all_gives(self):
        client = self.client()
        tensors, shown = client.run(PROMPT, ["*"], max_new_tokens=6)
        self.assertEqual(len(tensors), 6 * len(all_points(4)))
        _, plain = client.run(PROMPT, max_new_tokens=6)
        self.assertEqual((plain["generated"], plain["text"]), (shown["generated"], shown["text"]))

    def test_without_a_converter_loading_says_what_is_needed(self):
        load = {"type": "load", "model_dir": str(NANO), "dtype": "f32", "threads": 1}
        for named, told in (("", "name it in LLORCH_DIFF"), ("/nonexistent", "failed to start /nonexistent")):
            with mock.patch.dict(os.environ, {"LLORCH_DIFF": named, "PATH": ""}):
                client = self.client(load=False)
            message = client.ask(load)
            self.assertEqual((message["type"], message.get("class")), ("error", "internal"), message)
            self.assertIn(told, message["message"])

    def test_no_file_stays_behind(self):
        with tempfile.TemporaryDirectory() as scratch, mock.patch.dict(os.environ, {"TMPDIR": scratch}):
            client = self.client()
            self.assertEqual(client.run(PROMPT)[1]["type"], "done")
            self.assertEqual([p for p in Path(scratch).iterdir() if "gguf" in p.name], [])
