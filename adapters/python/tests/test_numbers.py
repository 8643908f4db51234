"""What the adapters compute: against each other, and against injected values."""

import json
import re
import shutil
import tempfile
import unittest
from pathlib import Path

import numpy as np

from llorch_adapter.points import Globs, all_points
from llorch_adapter.tensors import SafetensorsFile

from .client import NANO, Client, causal, interpreter
from .models import write_safetensors

LONG = [(i * 7919) % 50257 for i in range(64)]
FORCED = [262, 1110, 373, 257, 1310]

SOME_POINTS = ("ctranslate2", "hf:sdpa")  # those that don't capture all of them
OTHERS = ("onnxruntime", "openvino", "ctranslate2", "flax")

# The classes of docs/TOLERANCES.md: |a - b| <= class * max(1, |a|, |b|).
CLASSES = [
    (r"tokens|argmax|embeddings", 0),
    (r".*\.ln_1", 1e-5),
    (r"h\.[1-9].*|ln_f|logits.*", 1e-3),
    (r"next\.probs", 1e-6),
    (r".*", 1e-4),
]


def tolerance(point):
    return next(value for pattern, value in CLASSES if re.fullmatch(pattern, point))


def worst(point, a, b):
    a, b = causal(point, a).astype(np.float64), causal(point, b).astype(np.float64)
    assert a.shape == b.shape, point
    return float(np.max(np.abs(a - b) / np.maximum(1, np.maximum(np.abs(a), np.abs(b)))))


class Pairs(unittest.TestCase):
    """Every adapter against hf at every point, prompts of 2 and of 64 tokens, with decode steps."""

    @classmethod
    def setUpClass(cls):
        cls.captured = {}
        for name, variant in (
            ("hf", ()),
            ("hf", ("--variant", "f64")),
            ("hf", ("--variant", "sdpa")),
            ("numpy", ()),
            ("numpy", ("--variant", "f64")),
            ("numpy", ("--variant", "sequential")),
            ("tinygrad", ()),
            *((name, ()) for name in OTHERS),
            ("llamacpp", ("--variant", "exact-gelu")),
        ):
            if interpreter(name) is None:
                continue
            client = Client(name, *variant)
            client.load()
            key = ":".join((name, *variant[1:]))
            cls.captured[key] = [
                client.run(ids, ["*"], max_new_tokens=5, forced_ids=FORCED)[0] for ids in ([15496, 13], LONG)
            ]
            client.close()

    def pair(self, a, b):
        for name in (a, b):
            if name not in self.captured:
                self.skipTest(f"{name} isn't installed here")
        for left, right in zip(self.captured[a], self.captured[b]):
            self.assertTrue(left.keys() >= right.keys())
            if b not in SOME_POINTS:
                self.assertEqual(left.keys(), right.keys())
            for step, point in right:
                yield step, point, left[step, point], right[step, point]

    def test_numpy_agrees_with_hf(self):
        for step, point, a, b in self.pair("hf", "numpy"):
            self.assertLessEqual(worst(point, a, b), tolerance(point), f"{point} at step {step}")

    def test_sequential_sums_agree_with_hf_and_are_others_than_blas_makes(self):
        for step, point, a, b in self.pair("hf", "numpy:sequential"):
            self.assertLessEqual(worst(point, a, b), tolerance(point), f"{point} at step {step}")
        apart = {point for _, point, a, b in self.pair("numpy", "numpy:sequential") if worst(point, a, b) > 0}
        self.assertTrue({"h.0.ln_1", "h.0.attn.q", "h.0.attn.out", "logits"} <= apart, apart)

    def test_tinygrad_agrees_with_hf(self):
        for step, point, a, b in self.pair("hf", "tinygrad"):
            self.assertLessEqual(worst(point, a, b), tolerance(point), f"{point} at step {step}")

    def test_the_others_agree_with_hf(self):
        for name in (*OTHERS, "hf:sdpa"):
            with self.subTest(name=name):
                for step, point, a, b in self.pair("hf", name):
                    self.assertLessEqual(worst(point, a, b), tolerance(point), f"{point} at step {step}")

    def test_llamacpp_agrees_with_hf_but_for_its_gelu(self):
        for step, point, a, b in self.pair("hf", "llamacpp:exact-gelu"):
            self.assertLessEqual(worst(point, a, b), tolerance(point), f"{point} at step {step}")

    def test_float64_agrees_to_ten_digits(self):
        for step, point, a, b in self.pair("hf:f64", "numpy:f64"):
            if point in ("tokens", "argmax"):
                np.testing.assert_array_equal(a, b)
                continue
            a, b = causal(point, a), causal(point, b)
            self.assertEqual((a.dtype, b.dtype), (np.float64, np.float64), point)
            self.assertLessEqual(np.max(np.abs(a - b)) / np.max(np.abs(a)), 1e-10, f"{point} at step {step}")

    def test_float32_is_off_float64_by_rounding_only(self):
        differ = 0
        for _, point, a, b in self.pair("hf", "hf:f64"):
            difference = worst(point, a, b)
            self.assertLessEqual(difference, max(tolerance(point), 1e-7), point)
            differ += difference > 0
        self.assertGreater(differ, 50)  # else one of the two isn't what it says


# Softmaxes that are off by more than the class, as their adapters declare.
DEVIATIONS = {"openvino": 4e-4}


class Sampling(unittest.TestCase):
    """next.probs against transformers' own warpers, settings and ties included."""

    SETTINGS = [
        {"temperature": 0},
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 40},
        {"temperature": 1, "top_p": 0.9},
        {"temperature": 0.8, "top_k": 50, "top_p": 0.8},
        {"temperature": 1, "top_k": 1},
        {"temperature": 1, "top_k": 10**6, "top_p": 0.001},
    ]

    def test_all_adapters_filter_alike(self):
        found = {}
        # With its own GELU llamacpp's logits lie on the other side of a cut here and there.
        for name in ("hf", "numpy", "tinygrad", "llamacpp:exact-gelu", *OTHERS):
            reference, *variant = name.split(":")
            if interpreter(reference) is None:
                continue
            client = Client(reference, *(word for v in variant for word in ("--variant", v)))
            client.load()
            found[name] = [client.run(LONG, ["logits.last", "next.probs"], sampling=s)[0] for s in self.SETTINGS]
            client.close()
        if len(found) < 2:
            self.skipTest("only one adapter is installed here")
        for name, runs in found.items():
            for settings, ours, theirs in zip(self.SETTINGS, runs, found["hf"]):
                with self.subTest(name=name, settings=settings):
                    self.compare(settings["temperature"] or 1, ours, theirs, DEVIATIONS.get(name, 1e-6))

    def compare(self, temperature, ours, theirs, softmax):
        """Against the own logits within the class; across, what the logits' difference explains more."""
        probs, reference = ours[0, "next.probs"], theirs[0, "next.probs"]
        logits = ours[0, "logits.last"].astype(np.float64) / temperature
        kept = probs > 0
        np.testing.assert_array_equal(kept, reference > 0)
        exact = np.where(kept, np.exp(logits - logits[kept].max()), 0)
        exact /= exact.sum()
        rounded = 2 * exact * 2.0**-24 * np.abs(logits).max() if temperature != 1 else 0  # logits / temperature
        self.assertTrue((np.abs(probs - exact) <= softmax + rounded).all())
        apart = np.abs(ours[0, "logits.last"] - theirs[0, "logits.last"]).max()
        allowed = softmax + 2 * np.maximum(probs, reference) * apart / temperature
        self.assertTrue((np.abs(probs - reference) <= allowed + rounded).all())

    def test_ties_follow_transformers(self):
        try:
            import torch
            from transformers import TopKLogitsWarper
        except ImportError:
            self.skipTest("transformers isn't installed here")
        from llorch_adapter.requests import Sampling as Settings
        from llorch_adapter.sampling import filter_logits

        logits = np.array([1, 3, 3, 2, 3, 0, 2], np.float32)
        for k in range(1, 8):
            theirs = TopKLogitsWarper(k)(None, torch.from_numpy(logits)[None])[0].numpy()
            np.testing.assert_array_equal(filter_logits(logits, Settings(1.0, k)), theirs)


class Injection:
    """A value put in place is read by everything after it, at every point."""

    name = ""
    # The second block, and what is beside it on either side: writing all points takes most of the time.
    around = ["tokens", "embeddings", "h.0.ln_1", "h.0.resid_mid", "h.1*", "h.2.ln_1", "h.2.resid_mid"]
    around += ["ln_f", "logits*", "argmax", "next.probs"]

    @classmethod
    def setUpClass(cls):
        if interpreter(cls.name) is None:
            raise unittest.SkipTest(f"{cls.name} isn't installed here")
        cls.client = Client(cls.name)
        cls.client.load()
        cls.ids, cls.other = [15496, 13, 314, 716], [464, 2068, 7586, 21831]
        cls.points = ["*"]
        cls.base, _ = cls.client.run(cls.ids, ["*"], max_new_tokens=3, forced_ids=FORCED[:3])
        cls.strange, _ = cls.client.run(cls.other, ["*"], max_new_tokens=3, forced_ids=[9, 8, 7])

    @classmethod
    def tearDownClass(cls):
        cls.client.close()

    def inject(self, point, step, array):
        file = self.client.out_dir / "injected.npy"
        np.save(file, array)
        return {"point": point, "step": step, "file": str(file)}

    def test_what_was_captured_changes_nothing(self):
        """All of a run's own tensors put back in: bit for bit the same run."""
        entries = []
        for index, ((step, point), array) in enumerate(self.base.items()):
            file = self.client.out_dir / f"own-{index}.npy"
            np.save(file, array)
            entries.append({"point": point, "step": step, "file": str(file)})
        again, done = self.client.run(self.ids, ["*"], max_new_tokens=3, forced_ids=FORCED[:3], inject=entries)
        self.assertEqual(done["type"], "done", done)
        for key, array in self.base.items():
            np.testing.assert_array_equal(array, again[key], err_msg=str(key))

    def test_every_point_is_replaced_before_it_is_read(self):
        """What was upstream stays, the point shows the value, and the next point moves."""
        layers = 1 + max(int(m[1]) for _, p in self.base if (m := re.match(r"h\.(\d+)$", p)))
        watched = Globs(self.around)
        order = [point for point in all_points(layers) if point in watched]
        for step in (0, 2):
            for point in order:
                if point in ("next.probs", "argmax") or (point.startswith("h.") and not point.startswith("h.1")):
                    continue
                value = self.strange[step, point]
                tensors, done = self.client.run(
                    self.ids,
                    self.around,
                    max_new_tokens=3,
                    forced_ids=FORCED[:3],
                    inject=[self.inject(point, step, value)],
                )
                with self.subTest(point=point, step=step):
                    self.assertEqual(done["type"], "done", done)
                    np.testing.assert_array_equal(tensors[step, point], value)
                    for earlier in order[: order.index(point)]:
                        np.testing.assert_array_equal(tensors[step, earlier], self.base[step, earlier], err_msg=earlier)
                    changed = [p for p in order if not np.array_equal(tensors[step, p], self.base[step, p])]
                    self.assertTrue(set(changed) >= set(self.readers(point)), (point, changed))

    @staticmethod
    def readers(point):
        """Points whose value must change with this one."""
        part = point.removeprefix("h.1").lstrip(".")
        nearest = {
            "tokens": ["embeddings"],
            "embeddings": ["h.0.ln_1", "h.0.resid_mid"],
            "ln_1": ["h.1.attn.q", "h.1.attn.k", "h.1.attn.v"],
            "attn.q": ["h.1.attn.scores"],
            "attn.k": ["h.1.attn.cache.k", "h.1.attn.scores"],
            "attn.v": ["h.1.attn.cache.v", "h.1.attn.context"],
            "attn.cache.k": ["h.1.attn.scores"],
            "attn.cache.v": ["h.1.attn.context"],
            "attn.scores": ["h.1.attn.probs"],
            "attn.probs": ["h.1.attn.context"],
            "attn.context": ["h.1.attn.out"],
            "attn.out": ["h.1.resid_mid"],
            "resid_mid": ["h.1.ln_2", "h.1"],
            "ln_2": ["h.1.mlp.fc"],
            "mlp.fc": ["h.1.mlp.act"],
            "mlp.act": ["h.1.mlp.out"],
            "mlp.out": ["h.1"],
            "": ["h.2.ln_1", "h.2.resid_mid"],
            "ln_f": ["logits"],
            "logits": ["logits.last", "next.probs"],
            "logits.last": ["next.probs"],
        }[part]
        return [*nearest, "next.probs"] if part != "logits.last" else nearest

    def test_an_injected_residual_is_read_twice(self):
        """With mlp.out known, the block's output is the injected residual + mlp.out."""
        value = self.strange[0, "h.1.resid_mid"]
        tensors, _ = self.client.run(self.ids, ["h.1", "h.1.mlp.out"], inject=[self.inject("h.1.resid_mid", 0, value)])
        np.testing.assert_allclose(tensors[0, "h.1"], value + tensors[0, "h.1.mlp.out"], atol=1e-6)

    def test_injected_keys_stay_in_the_cache(self):
        value = self.strange[0, "h.1.attn.k"]
        tensors, _ = self.client.run(
            self.ids, ["*"], max_new_tokens=2, forced_ids=FORCED[:2], inject=[self.inject("h.1.attn.k", 0, value)]
        )
        np.testing.assert_array_equal(tensors[1, "h.1.attn.cache.k"][:, : len(self.ids)], value)

    def test_wrong_injections_are_refused(self):
        cases = [
            self.inject("h.1", 0, np.zeros((1, 2), np.float32)),
            {"point": "h.1", "step": 0, "file": "/nonexistent.npy"},
            {"point": "h.1", "step": 0, "file": str(NANO / "config.json")},
        ]
        for entry in cases:
            _, message = self.client.run(self.ids, inject=[entry])
            self.assertEqual((message["type"], message["class"]), ("error", "input"), message)


class HfInjection(Injection, unittest.TestCase):
    name = "hf"


class NumpyInjection(Injection, unittest.TestCase):
    name = "numpy"


class LlamaCppInjection(Injection, unittest.TestCase):
    name = "llamacpp"


class Storage(unittest.TestCase):
    """The same model stored otherwise is the same model."""

    def test_prefix_and_storage_do_not_matter(self):
        file = SafetensorsFile(NANO / "model.safetensors")
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            shutil.copy(NANO / "config.json", folder)
            prefixed = any(key.startswith("transformer.") for key in file.keys())
            renamed = {
                (key.removeprefix("transformer.") if prefixed else f"transformer.{key}"): np.asarray(
                    file.read(key), np.float32
                )
                for key in file.keys()
            }
            write_safetensors(folder / "model.safetensors", renamed)
            for name in ("hf", "numpy", "tinygrad", "llamacpp", *OTHERS):
                if interpreter(name) is None:
                    continue
                client = Client(name)
                runs = []
                for model in (NANO, folder):
                    client.load(model)
                    runs.append(client.run(LONG[:9], ["*"])[0])
                client.close()
                for key in runs[0]:
                    np.testing.assert_array_equal(runs[0][key], runs[1][key], err_msg=f"{name} {key}")

    def test_a_missing_tensor_is_an_error_not_noise(self):
        file = SafetensorsFile(NANO / "model.safetensors")
        keep = {k: np.asarray(file.read(k)) for k in file.keys() if not k.endswith("h.1.mlp.c_fc.bias")}
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(NANO / "config.json", folder)
            write_safetensors(Path(folder) / "model.safetensors", keep)
            for name in ("hf", "numpy", "tinygrad", "llamacpp", *OTHERS):
                if interpreter(name) is None:
                    continue
                client = Client(name)
                message = client.ask({"type": "load", "model_dir": folder, "dtype": "f32", "threads": 1})
                client.close()
                self.assertEqual((message["type"], message.get("class")), ("error", "input"), f"{name}: {message}")
                self.assertIn("h.1.mlp.c_fc.bias", message["message"])

    def test_another_activation_is_refused_or_honoured(self):
        config = json.loads((NANO / "config.json").read_text()) | {"activation_function": "relu"}
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config))
            (Path(folder) / "model.safetensors").symlink_to((NANO / "model.safetensors").resolve())
            client = Client("numpy")
            message = client.ask({"type": "load", "model_dir": folder, "dtype": "f32", "threads": 1})
            client.close()
            self.assertEqual((message["type"], message.get("class")), ("error", "unsupported"), message)
            self.assertIn("activation_function", message["message"])
