"""Tests of the Python adapters, each run as a subprocess through the whole protocol.

    cd adapters/python && python -m unittest discover -s tests -t .

in an environment with refs/hf/requirements.lock and refs/hf/requirements-test.lock. The other
references have environments of their own: LLORCH_TINYGRAD_PYTHON names tinygrad's interpreter, LLORCH_FLAX_PYTHON
flax's and so on, and without it their tests are skipped and say so. llamacpp also calls llorch-diff, which
LLORCH_DIFF names.
"""
