"""Tests of the Python adapters, each run as a subprocess through the whole protocol.

    cd adapters/python && python -m unittest discover -s tests -t .

in an environment with refs/hf/requirements.lock and refs/hf/requirements-test.lock. tinygrad has an
environment of its own: LLORCH_TINYGRAD_PYTHON names its interpreter, and without it the
tinygrad tests are skipped and say so.
"""
