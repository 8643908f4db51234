"""What every Python adapter of llorch shares. The protocol is in ../../PROTOCOL.md.

In reading order:

- ``stdio``     keeps the protocol's stdin and stdout away from everybody else
- ``errors``    the four classes of error a message may carry
- ``points``    names, order and shapes of the points; globs
- ``tensors``   .npy and .safetensors files
- ``folder``    a model folder: config.json and one model.safetensors
- ``requests``  a request, checked
- ``probe``     capture and injection, for one run
- ``sampling``  next-token probabilities and the draw
- ``run``       the step loop: prefill, decode, choice of the token
- ``draws``     tokens drawn from logits that were given
- ``adapter``   what an adapter supplies
- ``serve``     the loop over requests

Only the standard library and NumPy are needed. An adapter's file starts with::

    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from llorch_adapter import stdio
    stdio.guard()            # before any heavy import
"""
