"""The shared library's parts, and the compiler wrapper's translation, without a model."""

import errno
import importlib.util
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np

from llorch_adapter.errors import InputError, ResourceError, classify
from llorch_adapter.points import Globs, all_points
from llorch_adapter.sampling import draw
from llorch_adapter.tensors import SafetensorsFile, read_tensor, write_npy

from .client import ADAPTERS, SCHEMA, validator
from .models import write_safetensors


class Points(unittest.TestCase):
    def test_globs(self):
        self.assertIn("h.3.attn.cache.k", Globs(["h.*.k"]))
        self.assertIn("h.3", Globs(["h.*"]))
        self.assertIn("h.3.ln_1", Globs(["h.*"]))
        self.assertNotIn("h.3.ln_1", Globs(["h.*.ln_2", "logits"]))
        self.assertNotIn("hx3", Globs(["h.3"]))  # a dot is a dot
        self.assertNotIn("h.3\n", Globs(["h.3"]))
        self.assertNotIn("h.3", Globs([]))
        self.assertNotIn("h.3", Globs(["[h].3", "h.?"]))  # only * is special

    def test_every_point_is_in_the_schema(self):
        valid = validator("point")
        for point in all_points(13):
            self.assertTrue(valid.is_valid(point), point)
        for point in ("h", "h.1.attn", "h.x.ln_1", "logits.first"):
            self.assertFalse(valid.is_valid(point), point)


class Schema(unittest.TestCase):
    def test_it_is_a_schema(self):
        type(validator("request")).check_schema(SCHEMA)

    def test_the_examples_of_the_documentation_are_valid(self):
        text = (ADAPTERS.parent / "PROTOCOL.md").read_text()
        blocks = [b.split("```")[0] for b in text.split("```\n")[1::2]]
        found = 0
        for block in blocks:
            for arrow, part in (("→ ", "request"), ("← ", "response")):
                for message in block.split(arrow)[1:]:
                    message = (
                        message.split("\n→")[0].split("\n←")[0].split("\n  …")[0].replace(",…", "").replace("…", "")
                    )
                    validator(part).validate(json.loads(" ".join(message.split("\n"))))
                    found += 1
        self.assertGreaterEqual(found, 10)


class Tensors(unittest.TestCase):
    def setUp(self):
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)

    def tearDown(self):
        self._folder.cleanup()

    def test_npy_keeps_scalars_and_order(self):
        for array in (np.int64(3), np.zeros((0, 4), np.float32), np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)):
            write_npy(self.folder / "a.npy", array)
            back = np.load(self.folder / "a.npy")
            np.testing.assert_array_equal(back, array)
            self.assertEqual(back.shape, np.shape(array))
            self.assertTrue(back.ndim == 0 or back.flags.c_contiguous)

    def test_half_precision_is_widened_exactly(self):
        values = np.array([0.1, -65504, 6e-8, 1.5], np.float16)
        path = self.folder / "t.safetensors"
        write_safetensors(path, {"half": values})
        np.testing.assert_array_equal(SafetensorsFile(path).read("half"), values.astype(np.float32))
        bits = np.array([0x3F80, 0xC040, 0x0001], np.uint16)  # 1, -3, the smallest subnormal
        header = json.dumps({"b": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bits.tobytes())
        np.testing.assert_array_equal(SafetensorsFile(path).read("b"), np.array([1, -3, 2.0**-133], np.float32))

    def test_lying_safetensors_are_refused(self):
        def entry(**fields):
            return {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **fields}}

        bad = [
            entry(shape=[2**40], data_offsets=[0, 2**42]),
            entry(shape=[3]),
            entry(shape=[-2]),
            entry(shape=["2"]),
            entry(data_offsets=[-8, 0]),
            entry(data_offsets=[8, 0]),
            entry(dtype="F8_E4M3"),
            {"t": 5},
            [1],
        ]
        path = self.folder / "t.safetensors"
        for header in bad:
            text = json.dumps(header).encode()
            path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
            with self.subTest(header=header), self.assertRaises(InputError):
                SafetensorsFile(path)
        for blob in (b"", b"\x01", (2**60).to_bytes(8, "little") + b"{}", (4).to_bytes(8, "little") + b"\xff{}{"):
            path.write_bytes(blob)
            with self.subTest(blob=blob), self.assertRaises(InputError):
                SafetensorsFile(path)

    def test_injected_files_are_checked(self):
        path = self.folder / "x.npy"
        for blob in (b"", b"\x93NUMPY", b"no numpy file"):
            path.write_bytes(blob)
            with self.assertRaises(InputError):
                read_tensor(path)
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
        with self.assertRaises(InputError):
            read_tensor(path)


class Errors(unittest.TestCase):
    def test_classes(self):
        self.assertEqual(classify(InputError("a\n b"))[0:2], ("input", "a b"))
        self.assertEqual(classify(ResourceError("cancelled")), ("resource", "cancelled"))
        self.assertEqual(classify(MemoryError())[0], "resource")
        self.assertEqual(classify(OSError(errno.ENOSPC, "full"))[0], "resource")
        self.assertEqual(classify(OSError(errno.EACCES, "no"))[0], "internal")
        self.assertEqual(classify(KeyError("x"))[0], "internal")
        self.assertLessEqual(len(classify(ValueError("x" * 10000))[1]), 400)


class Draws(unittest.TestCase):
    def test_frequencies_follow_the_probabilities(self):
        probabilities = np.array([0.5, 0, 0.25, 0.125, 0.125, 0], np.float32)
        generator = np.random.default_rng(5)
        counts = np.bincount([draw(probabilities, generator) for _ in range(20000)], minlength=6)
        self.assertEqual((counts[1], counts[5]), (0, 0))
        np.testing.assert_allclose(counts / 20000, probabilities, atol=0.02)


class Guard(unittest.TestCase):
    def test_noise_stays_off_the_protocol(self):
        """Printing, native writes to descriptor 1, and a child that reads stdin."""
        script = """
import os, subprocess, sys
sys.path.append(sys.argv[1])
from llorch_adapter import stdio
requests, replies = stdio.guard()
print("noise"); os.write(1, b"native noise\\n"); os.system("echo child noise; cat")
subprocess.run(["cat"])
replies.write(b"answer to " + requests.readline()); replies.flush()
"""
        done = subprocess.run(
            [sys.executable, "-c", script, str(ADAPTERS)], input=b"question\n", capture_output=True, timeout=60
        )
        self.assertEqual(done.stdout, b"answer to question\n")
        self.assertEqual(sorted(done.stderr.split()), sorted(b"noise native noise child noise".split()))


class Zigcc(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        spec = importlib.util.spec_from_file_location("zigcc", ADAPTERS / "tinygrad" / "zigcc.py")
        cls.zigcc = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(cls.zigcc)

    def test_tinygrads_command_line_is_translated(self):
        line = "-c -x c -O2 -fPIC -nostdlib --target=x86_64-none-unknown-elf -march=native - -o -"
        self.assertEqual(
            self.zigcc.translate(line.split(), "k.c", "k.o"),
            "-c -x c -O2 -fPIC -nostdlib -target x86_64-linux-musl -mcpu=native "
            "-g0 -fno-sanitize=all -fno-stack-protector k.c -o k.o".split(),
        )
        self.assertIn("aarch64-linux-musl", self.zigcc.translate(["--target=arm64-none-unknown-elf"], "a", "b"))

    def test_the_launcher_passes_everything_on(self):
        """A stand-in for zig shows what arrives, through paths with spaces and quotes."""
        with tempfile.TemporaryDirectory(prefix="it's a folder ") as folder:
            fake = Path(folder) / "zig"
            # Its last three arguments are: source -o target.
            fake.write_text('#!/bin/sh\necho "$@" >&2\nshift $(($# - 3))\ntr a-z A-Z < "$1" > "$3"\n')
            fake.chmod(0o755)
            launcher = self.zigcc.launcher(folder, fake)
            done = subprocess.run([launcher, "-x", "c", "-", "-o", "-"], input=b"abc", capture_output=True, timeout=60)
            self.assertIn(b"cc -x c -g0", done.stderr)
            self.assertEqual(done.stdout, b"ABC")

    def test_a_failed_compilation_is_reported(self):
        with tempfile.TemporaryDirectory() as folder:
            fake = Path(folder) / "zig"
            fake.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
            fake.chmod(0o755)
            done = subprocess.run(
                [self.zigcc.launcher(folder, fake), "-c", "-", "-o", "-"],
                input=b"int x;",
                capture_output=True,
                timeout=60,
            )
            self.assertEqual((done.returncode, done.stdout), (3, b""))
            self.assertIn(b"broken", done.stderr)
