"""GPT-2 as an ONNX graph that shows every point, for engines that run such graphs.

- ``gpt2``  builds the graph from a model's configuration

It needs `onnx`, which the environments of those engines have.
"""
