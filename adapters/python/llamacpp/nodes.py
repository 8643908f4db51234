"""Which node of llama.cpp's graph is which point.

A node goes by its name; where upstream gives it none, or one that tells nothing, by its operation and
the tensor that it works on. `{i}` is the layer.
"""

from llorch_adapter.points import layer_point

# In the order of the graph. One node may hold several points.
FIRST = {"inpL": ("embeddings",)}
LAYER = {
    "attn_norm-{i}": ("ln_1",),
    "wqkv_b-{i}": ("attn.q", "attn.k", "attn.v"),
    "SET_ROWS cache_k_l{i}": ("attn.cache.k",),
    "SET_ROWS cache_v_l{i}": ("attn.cache.v",),
    "kq-{i}": ("attn.scores",),
    "kq_soft_max-{i}": ("attn.probs",),
    "kqv_out-{i}": ("attn.context",),
    "ADD blk.{i}.attn_output.bias": ("attn.out",),
    "ffn_inp-{i}": ("resid_mid",),
    "ffn_norm-{i}": ("ln_2",),
    "ffn_up_b-{i}": ("mlp.fc",),
    "ffn_gelu-{i}": ("mlp.act",),
    "ffn_out-{i}": ("mlp.out",),
    "l_out-{i}": ("",),
}
LAST = {"result_norm": ("ln_f",), "result_output": ("logits",)}


def all_nodes(n_layer):
    """`{node: points}` of a model."""
    nodes = dict(FIRST)
    for i in range(n_layer):
        for node, parts in LAYER.items():
            nodes[node.format(i=i)] = tuple(layer_point(i, part) for part in parts)
    return nodes | LAST


def names(tensor, name_of, operation):
    """What a node of the graph may go by."""
    yield name_of(tensor)
    if operation == "SET_ROWS" and tensor.view_src:
        yield f"SET_ROWS {name_of(tensor.view_src.contents)}"
    if operation == "ADD" and tensor.src[1]:
        yield f"ADD {name_of(tensor.src[1].contents)}"
