"""One run: upstream's forward passes over its own key/value cache, seen from its eval callback.

Before each node of the graph upstream asks whether anybody wants to see it, and after it has computed
one that somebody does, it shows it. What is written into its memory then is what later nodes read. A run
in which nothing is captured or injected has no callback.
"""

import difflib

import ggml
import llama_cpp
import nodes
import numpy as np

from llorch_adapter.adapter import Session
from llorch_adapter.errors import AdapterError, ResourceError, UpstreamError
from llorch_adapter.points import shape_of

_F32 = 0  # ggml's number of the type


class FastSession(Session):
    """One run as llama.cpp's own programs make it: nobody looks at the graph on its way."""

    def __init__(self, model, dims, positions):
        self._model, self._dims, self._positions = model, dims, positions
        self._context = None

    def __enter__(self):
        params = llama_cpp.llama_context_default_params()
        # All tokens of a step in one pass, and no more places than the run needs.
        params.n_ctx = params.n_batch = params.n_ubatch = self._positions
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = self._model.threads
        params.no_perf = True
        self._set(params)
        self._context = llama_cpp.llama_init_from_model(self._model.handle, params)
        if not self._context:
            raise ResourceError(
                f"llama.cpp made no context for {self._positions} tokens: {self._model.log.last()}"
            )
        return self

    def __exit__(self, *_):
        if self._context:
            llama_cpp.llama_free(self._context)
        self._context = None

    def _set(self, params):
        """What else the context is to be like."""

    def forward(self, ids):
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        # Places go on from the last, and the last token alone has logits.
        return self._decode(llama_cpp.llama_batch_get_one(tokens, len(ids)))

    def _decode(self, batch):
        """One pass; the last row of its logits."""
        code = llama_cpp.llama_decode(self._context, batch)
        self._seen()
        if code:
            raise AdapterError(f"llama_decode returned {code}: {self._model.log.last()}")
        row = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(row, (self._dims.vocab_size,)).copy()

    def _seen(self):
        """Raises what went wrong for who looked on."""


class LlamaCppSession(FastSession):
    """One run of which every node may be looked at, in float32 throughout."""

    def __init__(self, model, dims, probe, positions, exact_gelu):
        super().__init__(model, dims, positions)
        self._probe, self._exact_gelu = probe, exact_gelu
        self._nodes = nodes.all_nodes(dims.n_layer)
        self._fed = 0
        self._batch = None
        self._checked = False

    def __enter__(self):
        super().__enter__()
        self._batch = llama_cpp.llama_batch_init(self._positions, 0, 1)
        return self

    def __exit__(self, *_):
        if self._context:
            llama_cpp.llama_batch_free(self._batch)
        super().__exit__()

    def _set(self, params):
        params.type_k = params.type_v = _F32
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._callback = llama_cpp.ggml_backend_sched_eval_callback(self._evaluated)  # must outlive the context
        watched = [point for points in self._nodes.values() for point in points]
        if self._exact_gelu or any(map(self._probe.ever_active, watched)):
            params.cb_eval = self._callback

    def forward(self, ids):
        batch = self._batch
        batch.n_tokens = len(ids)
        for n, token in enumerate(ids):
            batch.token[n], batch.pos[n] = token, self._fed + n
            batch.n_seq_id[n], batch.seq_id[n][0] = 1, 0
            batch.logits[n] = 1  # or the last block would lose rows
        self._t, self._fed = len(ids), self._fed + len(ids)
        self._wanted = self._wanted_now()
        self._met, self._shown, self._inputs, self._error = set(), set(), {}, None
        row = self._decode(batch)
        self._nothing_missing()
        return row

    def _seen(self):
        if self._error:
            raise self._error

    def _wanted_now(self):
        """The nodes to look at in this step."""
        wanted = {node for node, points in self._nodes.items() if any(map(self._probe.active, points))}
        if self._exact_gelu:
            layers = range(self._dims.n_layer)
            wanted |= {f"{node}-{i}" for i in layers for node in ("ffn_up_b", "ffn_gelu")}
        return wanted

    def _evaluated(self, pointer, asking, _data):
        """Upstream's callback: whether to see a node; then, whether to go on. Raises nothing: what goes
        wrong ends the pass and is raised behind it."""
        try:
            return self._ask(pointer) if asking else self._show(pointer)
        except BaseException as error:
            self._error = self._error or error
            # False ends the pass only where a node is shown.
            return bool(asking)

    def _ask(self, pointer):
        if self._error:
            return True
        if not self._checked:
            ggml.check_layout(pointer)
            self._checked = True
        return self._name(pointer) in self._wanted

    def _name(self, pointer):
        """The name in the table of nodes, or upstream's."""
        all_names = list(nodes.names(ggml.at(pointer), ggml.name_of, ggml.operation(pointer)))
        self._met.update(all_names)
        return next((name for name in all_names if name in self._nodes), all_names[0])

    def _show(self, pointer):
        if self._error:
            return False
        node, tensor = self._name(pointer), ggml.at(pointer)
        self._shown.add(node)
        cache = node.startswith("SET_ROWS")
        memory = ggml.array(tensor.view_src.contents if cache else tensor)
        if self._exact_gelu and node.startswith("ffn_gelu-"):
            memory[...] = gelu(self._inputs.pop(node.removeprefix("ffn_gelu-")))
        for point in self._nodes[node]:
            if self._probe.active(point):
                self._visit(node, point, memory)
        if self._exact_gelu and node.startswith("ffn_up_b-"):
            # A copy: the GELU may be computed in place.
            self._inputs[node.removeprefix("ffn_up_b-")] = memory.copy()
        return True

    def _visit(self, node, point, memory):
        """Shows a node's memory as a point, and writes back what was injected."""
        expected = shape_of(point, self._dims, self._t, self._fed)
        try:
            part = self._part(point, memory)
        except (ValueError, IndexError):
            part = memory
        if part.shape != expected:
            raise UpstreamError(f"node {node} is {list(memory.shape)}, which gives no {point} {list(expected)}")
        if point.endswith(".scores"):
            scale = np.float32(1) / np.sqrt(np.float32(self._dims.head_dim))
            shown = part * scale
            value = self._probe.visit(point, shown)
            if value is not shown:
                part[...] = unscaled(value, scale)
            return
        value = self._probe.visit(point, part)
        if value is not part:
            part[...] = value

    def _part(self, point, memory):
        """A view of the memory in the point's shape."""
        heads, width, seen = self._dims.n_head, self._dims.head_dim, self._fed
        if point.endswith((".q", ".k", ".v")) and ".cache" not in point:
            third = "qkv".index(point[-1])
            return memory.reshape(self._t, 3, heads, width)[:, third].transpose(1, 0, 2)
        if point.endswith(".cache.k"):
            return memory[:seen].reshape(seen, heads, width).transpose(1, 0, 2)
        if point.endswith(".cache.v"):
            # Kept transposed, a row of places for each element.
            return memory.reshape(heads, width, -1)[:, :, :seen].transpose(0, 2, 1)
        if point.endswith((".scores", ".probs")):
            return memory.reshape(heads, self._t, -1)[:, :, :seen]
        return memory

    def _nothing_missing(self):
        """Every point that was asked for has been seen: a node that upstream renamed is an error."""
        for node, points in self._nodes.items():
            if node in self._wanted and node not in self._shown:
                near = difflib.get_close_matches(node, sorted(self._met), 6, 0.5)
                found = ", ".join(near) or f"{len(self._met)} others"
                raise UpstreamError(f"expected node {node} ({', '.join(points)}) in llama.cpp's graph; found {found}")


def unscaled(scores, scale):
    """What upstream's product with the scale turns into the scores: exactly where there is such a number
    (as for scores that were captured here), else to the last bit but one."""
    middle = scores / scale
    for other in (np.nextafter(middle, np.float32(-np.inf)), np.nextafter(middle, np.float32(np.inf))):
        middle = np.where(np.abs(other * scale - scores) < np.abs(middle * scale - scores), other, middle)
    return middle


def gelu(x):
    """The tanh form in f64, rounded to f32."""
    x = x.astype(np.float64)
    return (0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))).astype(np.float32)
