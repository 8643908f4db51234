"""The graph in OpenVINO: weights put in, results chosen, compiled for the CPU in float32."""

from functools import cached_property

import numpy as np
import openvino as ov
from openvino import opset13

from llorch_adapter.errors import UpstreamError
from llorch_graph.gpt2 import LAST, build_model, build_softmax, cache_names, point_names


class Engine:
    """One model, compiled when it is first asked for: with every point, or with the last row alone."""

    def __init__(self, config, weights, threads):
        self._core = ov.Core()
        self._settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
            "KV_CACHE_PRECISION": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": "1",
            "ENABLE_CPU_PINNING": False,  # others share the processors
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        }
        self._config = config
        self._weights = {name: np.ascontiguousarray(array) for name, array in weights.items()}
        self._softmax = self._compile(read(self._core, build_softmax()), ["probs"])
        self._check()

    def every_point(self, feeds):
        return self._run(self._whole, feeds)

    def last_row(self, feeds):
        return self._run(self._bare, feeds)

    def softmax(self, logits):
        return self._run(self._softmax, {"logits": logits})["probs"]

    @cached_property
    def _whole(self):
        return self._compile(self._model(), point_names(self._config.dims.n_layer))

    @cached_property
    def _bare(self):
        return self._compile(self._model(), [*cache_names(self._config.dims.n_layer), LAST])

    def _model(self):
        """The graph with this model's weights as constants, in the memory where they are."""
        shapes = {name: array.shape for name, array in self._weights.items()}
        model = read(self._core, build_model(self._config, shapes, external_weights=False))
        for parameter in model.get_parameters():
            if parameter.friendly_name in self._weights:
                value = opset13.constant(self._weights[parameter.friendly_name], shared_memory=True)
                parameter.output(0).replace(value.output(0))
                model.remove_parameter(parameter)
        return model

    def _check(self):
        """A point whose result OpenVINO's reader has lost is an error by name, not a smaller table."""
        given = {name for output in self._model().outputs for name in output.get_names()}
        lost = [name for name in [*point_names(self._config.dims.n_layer), LAST] if name not in given]
        if lost:
            raise UpstreamError(
                f"OpenVINO's model has no output `{lost[0]}` ({len(lost)} are missing), expected every point"
            )

    def _compile(self, model, wanted):
        for output in list(model.outputs):
            if not output.get_names() & set(wanted):
                model.remove_result(output.node)
        model.validate_nodes_and_infer_types()
        return self._core.compile_model(model, "CPU", self._settings)

    def _run(self, compiled, feeds):
        request = compiled.create_infer_request()
        result = request.infer(feeds, share_inputs=True, share_outputs=False)
        return {name: array for output, array in result.items() for name in output.get_names()}


def read(core, model):
    return core.read_model(model.SerializeToString())
