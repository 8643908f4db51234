"""Every adapter through the whole protocol, on nano."""

import os
import subprocess
import unittest

import numpy as np

from llorch_adapter.folder import read_dims
from llorch_adapter.points import Globs, all_points, shape_of

from .client import ADAPTERS, NANO, Client, interpreter, load_checked

PROMPT = [15496, 13]  # "Hello."


class Adapter:
    """An adapter with nano in it."""

    name = ""
    arguments = ()

    @classmethod
    def setUpClass(cls):
        if interpreter(cls.name) is None:
            raise unittest.SkipTest(
                f"no interpreter has the packages of {cls.name}; set LLORCH_{cls.name.upper()}_PYTHON"
            )
        cls.client = Client(cls.name, *cls.arguments)
        cls.claims = cls.client.hello()
        cls.before_load = cls.client.run(PROMPT)[1]
        cls.client.load()
        cls.dims = read_dims(NANO)
        beyond = Globs([entry["point"] for entry in cls.claims["unsupported"]])
        cls.points = [point for point in all_points(cls.dims.n_layer) if point not in beyond]

    @classmethod
    def tearDownClass(cls):
        if hasattr(cls, "client"):
            code = cls.client.close()
            assert code == 0, f"exit code {code} at the end of stdin"


class Protocol(Adapter):
    """What every adapter is held to. The library does it for all of them, so that these few stand for it;
    `llorch-diff adapter check` holds each of them to it."""

    def error(self, kind, message, run_id=None):
        self.assertEqual((message["type"], message.get("class")), ("error", kind), message)
        self.assertEqual(message["id"], run_id)
        self.assertNotIn("\n", message["message"])
        return message["message"]

    def alive(self):
        self.assertEqual(self.client.run(PROMPT)[1]["type"], "done")

    def test_hello_says_who_it_is(self):
        self.assertEqual(self.claims["name"].split(":")[0], self.name)
        self.assertIn("capture", self.claims["capabilities"])
        self.assertTrue(self.claims["recipes"])

    def test_another_protocol_is_refused(self):
        self.error("unsupported", self.client.ask({"type": "hello", "protocol": 2}))

    def test_a_run_before_load_is_an_error(self):
        self.assertEqual(self.before_load["class"], "input")

    def test_all_points_have_the_contracts_shapes_and_order(self):
        tensors, done = self.client.run(PROMPT, ["*"], max_new_tokens=3)
        self.assertEqual(list(tensors), [(step, p) for step in range(3) for p in self.points])
        for (step, point), array in tensors.items():
            t = len(PROMPT) if step == 0 else 1
            expected = shape_of(point, self.dims, t, len(PROMPT) + step)
            self.assertEqual(array.shape, expected, point)
            kind = "i" if point in ("tokens", "argmax") else "f"
            self.assertEqual(array.dtype.kind, kind, point)
            if not point.endswith(".scores"):
                self.assertTrue(np.isfinite(array).all(), point)
        self.assertEqual(len(done["generated"]), 3)
        for step in range(3):
            last = tensors[step, "logits.last"]
            np.testing.assert_array_equal(tensors[step, "logits"][-1], last)
            self.assertEqual(tensors[step, "argmax"], np.argmax(last))
            self.assertEqual(done["generated"][step], np.argmax(last))
            if step:
                self.assertEqual(tensors[step, "tokens"].tolist(), [done["generated"][step - 1]])
            for part in "kv":
                if f"h.1.attn.cache.{part}" in self.points:
                    cache = tensors[step, f"h.1.attn.cache.{part}"]
                    new = tensors[step, f"h.1.attn.{part}"]
                    np.testing.assert_array_equal(cache[:, -new.shape[1] :], new)
            if "h.1.attn.probs" in self.points:
                probs = tensors[step, "h.1.attn.probs"]
                t, s = probs.shape[-2:]
                masked = np.arange(s) > np.arange(s - t, s)[:, None]
                self.assertTrue((probs[:, masked] == 0).all())

    def test_each_point_has_a_recipe_or_a_reason(self):
        for point in all_points(self.dims.n_layer):
            told = any(point in Globs([glob]) for glob in self.claims["recipes"])
            self.assertTrue(told or point not in self.points, point)
        for entry in self.claims["unsupported"]:
            self.assertGreater(len(entry["reason"].split()), 4, entry)

    def test_globs_choose(self):
        tensors, _ = self.client.run(PROMPT, ["h.*.ln_1", "logits.last", "no.such.*"])
        names = [f"h.{i}.ln_1" for i in range(self.dims.n_layer)] + ["logits.last"]
        self.assertEqual(list(tensors), [(0, name) for name in names if name in self.points])
        tensors, done = self.client.run(PROMPT)
        self.assertEqual((tensors, done["generated"]), ({}, []))

    def test_prompts_of_one_token_and_of_many(self):
        for ids in ([0], list(range(500, 570))):
            tensors, _ = self.client.run(ids, ["*"])
            for (_, point), array in tensors.items():
                self.assertEqual(array.shape, shape_of(point, self.dims, len(ids), len(ids)), point)

    def test_a_full_context_fits_and_one_more_does_not(self):
        ids = [i % 1000 for i in range(self.dims.n_positions)]
        point = "h.0" if "h.0" in self.points else "logits"
        tensors, done = self.client.run(ids, [point], max_new_tokens=1)
        self.assertEqual(tensors[0, point].shape[0], len(ids))
        self.assertEqual(len(done["generated"]), 1)
        self.error("input", self.client.run(ids, max_new_tokens=2, id="x")[1], "x")
        self.error("input", self.client.run([*ids, 1], id="y")[1], "y")

    def test_forced_ids_are_fed_and_come_back(self):
        forced = [262, 995, 13]
        tensors, done = self.client.run(PROMPT, ["tokens", "argmax"], max_new_tokens=3, forced_ids=forced)
        self.assertEqual(done["generated"], forced)
        self.assertEqual([tensors[s, "tokens"].tolist() for s in (0, 1, 2)], [PROMPT, [262], [995]])

    def test_two_cases_in_one_process_do_not_mix(self):
        first, _ = self.client.run(PROMPT, ["h.*", "logits.last"], max_new_tokens=3)
        self.client.run(list(range(300, 340)), ["h.*"], max_new_tokens=5)
        again, _ = self.client.run(PROMPT, ["h.*", "logits.last"], max_new_tokens=3)
        self.assertEqual(first.keys(), again.keys())
        for key in first:
            np.testing.assert_array_equal(first[key], again[key])

    def test_decode_is_prefill_token_by_token(self):
        ids = [15496, 13, 314, 716, 257, 1310]
        whole, _ = self.client.run(ids, ["h.*", "ln_f", "logits.last"])
        steps, _ = self.client.run(
            ids[:1], ["h.*", "ln_f", "logits.last"], max_new_tokens=len(ids), forced_ids=[*ids[1:], 0]
        )
        for (_, point), array in whole.items():
            if point.endswith((".scores", ".probs")) or ".cache." in point:
                continue  # their key axis grows; the caches are compared below
            rows = [steps[n, point] for n in range(len(ids))]
            if point == "logits.last":
                array, rows = array[None], [rows[-1][None]]
            joined = np.concatenate(rows, axis=1 if array.ndim == 3 else 0)
            np.testing.assert_allclose(joined, array, rtol=1e-4, atol=1e-5, err_msg=point)
        last = len(ids) - 1
        if "h.1.attn.cache.k" not in self.points:
            return
        np.testing.assert_allclose(steps[last, "h.1.attn.cache.k"], whole[0, "h.1.attn.cache.k"], rtol=1e-4, atol=1e-5)

    def test_sampling_follows_the_seed(self):
        settings = {"temperature": 0.9, "top_k": 20, "top_p": 0.95, "seed": 7}
        first = self.client.run(PROMPT, ["next.probs"], max_new_tokens=8, sampling=settings)
        again = self.client.run(PROMPT, ["next.probs"], max_new_tokens=8, sampling=settings)
        self.assertEqual(first[1]["generated"], again[1]["generated"])
        other = [
            self.client.run(PROMPT, max_new_tokens=8, sampling={**settings, "seed": s})[1]["generated"]
            for s in range(4)
        ]
        self.assertTrue(any(ids != first[1]["generated"] for ids in other))
        for step, token in enumerate(first[1]["generated"]):
            probs = first[0][step, "next.probs"]
            self.assertGreater(probs[token], 0)
            self.assertLessEqual(np.count_nonzero(probs), 20)
            self.assertAlmostEqual(float(probs.sum(dtype=np.float64)), 1, places=5)

    def draw(self, row, sampling, draws=1000, **fields):
        """The last message, and the tokens drawn."""
        file = self.client.out_dir / "logits.npy"
        np.save(file, row)
        self.client.send(
            {
                "type": "draw",
                "id": "d",
                "logits": {"file": str(file), "key": None},
                "sampling": sampling,
                "draws": draws,
                "out_dir": str(self.client.out_dir / "drawn"),
                **fields,
            }
        )
        message, drawn = self.client.receive(), None
        if message["type"] == "tensor":
            self.assertEqual((message["point"], message["dtype"], message["step"]), ("draws", "i64", 0))
            drawn, message = load_checked(message), self.client.receive()
        return message, drawn

    def test_draws_follow_the_probabilities_and_the_seed(self):
        logits = np.log(np.array([0.5, 0.25, 0.15, 0.1]), dtype=np.float32)
        settings = {"temperature": 1, "top_k": 3, "seed": 7}
        reply, drawn = self.draw(logits, settings, 20_000)
        if "draw" not in self.claims["capabilities"]:
            return self.error("unsupported", reply, "d")
        self.assertEqual((reply["type"], drawn.shape), ("done", (20_000,)))
        shares = np.bincount(drawn, minlength=4) / len(drawn)
        np.testing.assert_allclose(shares, [5 / 9, 2.5 / 9, 1.5 / 9, 0], atol=0.02)  # 5 standard deviations
        np.testing.assert_array_equal(self.draw(logits, settings, 20_000)[1], drawn)
        self.assertFalse(np.array_equal(self.draw(logits, {**settings, "seed": 8}, 20_000)[1], drawn))
        # Fewer are the first of many, and the first is that of a run.
        np.testing.assert_array_equal(self.draw(logits, settings, 5)[1], drawn[:5])
        tensors, done = self.client.run(PROMPT, ["logits.last"], max_new_tokens=1, sampling=settings)
        first = self.draw(tensors[0, "logits.last"], settings, 1)[1]
        self.assertEqual(first.tolist(), done["generated"])

    def test_bad_draws_are_answered_and_survived(self):
        if "draw" not in self.claims["capabilities"]:
            return
        row, warm = np.zeros(4, np.float32), {"temperature": 1}
        for logits, sampling, fields in (
            (row, {"temperature": 0}, {}),
            (row, {"temperature": 1, "top_p": 2}, {}),
            (row[None], warm, {}),
            (row.astype(np.int64), warm, {}),
            (row[:0], warm, {}),
            (row, warm, {"draws": -1}),
            (row, warm, {"draws": 2.5}),
            (row, warm, {"out_dir": None}),
            (row, warm, {"logits": {"file": "/nonexistent.npy"}}),
            (row, warm, {"logits": None}),
        ):
            with self.subTest(logits=logits, sampling=sampling, fields=fields):
                self.error("input", self.draw(logits, sampling, **{"draws": 10, **fields})[0], "d")
        self.alive()

    def test_bad_lines_are_answered_and_survived(self):
        for line in (b"garbage", b"[1,2]", b'{"type":"run"', b"\xff\xfe", b'{"type":"run","id":NaN}', b"[" * 100000):
            self.client.send_raw(line)
            self.error("input", self.client.receive())
        self.client.send_raw(b"   ")  # blank lines aren't messages
        for message in ({"type": "dance"}, {"type": 3}, {}):
            self.error("unsupported", self.client.ask(message))
        self.alive()

    def test_bad_requests_are_answered_and_survived(self):
        size = self.dims.vocab_size
        cases = [
            {"ids": []},
            {"ids": [size]},
            {"ids": [-1]},
            {"ids": [1.5]},
            {"ids": [True]},
            {"ids": "Hello"},
            {"max_new_tokens": -1},
            {"max_new_tokens": 10**9},
            {"max_new_tokens": 2, "forced_ids": [1]},
            {"max_new_tokens": 1, "forced_ids": [size]},
            {"sampling": {"temperature": -1}},
            {"sampling": {"temperature": 1, "top_p": 0}},
            {"sampling": {"temperature": 1, "top_k": -3}},
            {"sampling": {"temperature": 1, "seed": 2**64}},
            {"points": "h.0"},
            {"points": ["h.0"], "out_dir": None},
            {"inject": [{"point": "h.99", "step": 0, "file": "x.npy"}]},
            {"inject": [{"point": "h.0", "step": 1, "file": "x.npy"}]},
        ]
        for fields in cases:
            message = self.client.ask({"type": "run", "id": "bad", "ids": [1], "out_dir": "/nonexistent", **fields})
            with self.subTest(fields=fields):
                self.error("input", message, "bad")
        self.error("input", self.client.ask({"type": "run", "id": 5, "ids": [1]}))
        self.alive()

    def test_bad_models_are_refused(self):
        for folder in ("/nonexistent", str(NANO / "config.json"), "/"):
            message = self.client.ask({"type": "load", "model_dir": folder, "dtype": "f32", "threads": 1})
            self.error("input", message)
        message = self.client.ask({"type": "load", "model_dir": str(NANO), "dtype": "bf16", "threads": 1})
        self.error("unsupported", message)
        message = self.client.ask({"type": "load", "model_dir": str(NANO), "dtype": "f32", "threads": 0})
        self.error("input", message)
        # A load that fails leaves none, however early it fails.
        self.client.load()
        message = self.client.ask({"type": "load", "model_dir": "/nonexistent", "dtype": "f32", "threads": 1})
        self.error("input", message)
        self.assertEqual(self.client.run(PROMPT)[1]["class"], "input")
        self.client.load()
        self.alive()

    def test_unknown_fields_are_ignored(self):
        _, done = self.client.run(PROMPT, colour="blue", sampling={"temperature": 0, "mood": 3})
        self.assertEqual(done["type"], "done")

    def test_cancel_stops_a_run(self):
        new = self.dims.n_positions - len(PROMPT)
        self.client.send({"type": "run", "id": "long", "ids": PROMPT, "max_new_tokens": new})
        self.client.send({"type": "cancel", "id": "long"})
        self.assertEqual(self.error("resource", self.client.receive(), "long"), "cancelled")
        self.client.send({"type": "cancel", "id": "never"})
        self.alive()

    def test_cancel_stops_a_run_between_its_steps(self):
        new = self.dims.n_positions - len(PROMPT)
        self.client.send(
            {
                "type": "run",
                "id": "going",
                "ids": PROMPT,
                "max_new_tokens": new,
                "points": ["argmax"],
                "out_dir": str(self.client.out_dir / "going"),
            }
        )
        self.assertEqual(self.client.receive()["step"], 0)
        self.client.send({"type": "cancel", "id": "going"})
        steps = 1
        while (message := self.client.receive())["type"] == "tensor":
            steps += 1
        self.assertEqual(self.error("resource", message, "going"), "cancelled")
        self.assertLess(steps, new)

    def test_what_is_not_claimed_is_unsupported(self):
        if "tokenize" in self.claims["capabilities"]:
            reply = self.client.ask({"type": "tokenize", "id": "t", "text": "Hello."})
            self.assertEqual(reply["ids"], PROMPT)
            self.error("input", self.client.ask({"type": "tokenize", "id": "t", "text": "\ud800"}), "t")
        else:
            self.error("unsupported", self.client.ask({"type": "tokenize", "id": "t", "text": "Hello."}), "t")
        if "inject" not in self.claims["capabilities"]:
            entry = {"point": "h.0", "step": 0, "file": "x.npy"}
            self.error("unsupported", self.client.run(PROMPT, id="i", inject=[entry])[1], "i")
        if "batch" not in self.claims["capabilities"]:
            self.error("unsupported", self.client.run(PROMPT, id="b", beside=[PROMPT])[1], "b")

    def test_who_wants_no_text_gets_none(self):
        _, done = self.client.run(PROMPT, max_new_tokens=2, text=False)
        self.assertEqual((done["type"], done["text"], len(done["generated"])), ("done", None, 2))
        self.error("input", self.client.run(PROMPT, id="t", text="no")[1], "t")


class HfProtocol(Protocol, unittest.TestCase):
    name = "hf"

    def test_text_comes_back(self):
        _, done = self.client.run(PROMPT, max_new_tokens=5)
        reply = self.client.ask({"type": "tokenize", "id": "t", "text": done["text"]})
        self.assertEqual(reply["ids"], done["generated"])


class HfSdpa(Adapter, unittest.TestCase):
    name, arguments = "hf", ("--variant", "sdpa")

    def test_it_says_what_the_fused_kernel_keeps(self):
        points = [entry["point"] for entry in self.claims["unsupported"]]
        self.assertEqual(points, ["h.*.attn.scores", "h.*.attn.probs"])


class NumpyProtocol(Protocol, unittest.TestCase):
    name = "numpy"


class BugProtocol(Protocol, unittest.TestCase):
    """Without a bug it is honest."""

    name = "bug"


class CTranslate2(Adapter, unittest.TestCase):
    name = "ctranslate2"

    def test_a_token_of_its_own_goes_on_and_another_is_taken_up(self):
        """Its own choice goes on in one decoding, any other begins a new one: the same logits both ways."""
        free, done = self.client.run(PROMPT, ["logits.last"], max_new_tokens=5)
        forced, _ = self.client.run(PROMPT, ["logits.last"], max_new_tokens=5, forced_ids=done["generated"])
        for key in free:
            np.testing.assert_allclose(forced[key], free[key], rtol=1e-5, atol=1e-5)
        drawn, done = self.client.run(
            PROMPT, ["logits.last"], max_new_tokens=5, sampling={"temperature": 2.0, "seed": 3}
        )
        self.assertNotEqual(done["generated"], [int(np.argmax(drawn[n, "logits.last"])) for n in range(5)])
        forced, _ = self.client.run(PROMPT, ["logits.last"], max_new_tokens=5, forced_ids=done["generated"])
        for key in drawn:
            np.testing.assert_allclose(forced[key], drawn[key], rtol=1e-5, atol=1e-5)

    def test_the_end_of_text_ends_nothing(self):
        _, done = self.client.run(PROMPT, max_new_tokens=4, forced_ids=[50256, 50256, 11, 13])
        self.assertEqual(done["generated"], [50256, 50256, 11, 13])


class Processes(unittest.TestCase):
    def test_end_of_stdin_finishes_what_was_asked(self):
        client = Client("numpy")
        client.load()
        client.send({"type": "run", "id": "a", "ids": PROMPT, "max_new_tokens": 5})
        client.process.stdin.close()
        self.assertEqual(client.receive()["type"], "done")
        self.assertEqual(client.close(), 0)

    def test_a_reader_that_goes_away_ends_the_adapter(self):
        reader, writer = os.pipe()
        command = [interpreter("numpy"), str(ADAPTERS / "numpy" / "adapter.py")]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=writer, stderr=subprocess.DEVNULL)
        os.close(writer)
        os.close(reader)
        process.stdin.write(b'{"type":"hello","protocol":1}\n')
        process.stdin.flush()
        self.assertEqual(process.wait(60), 0)
        process.stdin.close()

    def test_an_unknown_variant_is_refused_at_once(self):
        client = Client("numpy", "--variant", "f8")
        self.assertEqual(client.process.wait(30), 2)
        self.assertIn("invalid choice", client.stderr())
        client.close()
