//! One stage done wrong in a known way, and the signature that names it.

use llorch_trace::{Dtype, Stage};
use ndarray::{Array1, Array2, Array3, s};

use super::Site;
use super::testing::{D, E, F, FED, H, IDS, Model, U};
use crate::compare::round;
use crate::oracle::replay::keys;
use crate::oracle::{Job, gelu_new, ops};

/// Which row of a cache stands at a place; none is a row of zeros.
type Rows<'a> = &'a dyn Fn(usize) -> Option<usize>;

fn split(x: &Array2<f64>) -> Array3<f64> {
    ops::split_heads(x.view(), H)
}

#[test]
fn linear_layers() {
    let m = Model::new();
    let (x, w, b) = (
        m.rows(0, "h.1.attn.context"),
        m.weight("h.1.attn.c_proj.weight"),
        m.vector("h.1.attn.c_proj.bias"),
    );
    let out = "h.1.attn.out";
    m.expect(0, out, x.dot(&w.t()) + &b, "transposed");
    m.expect(0, out, x.dot(&w), "bias_missing");
    let mut one = b.clone();
    one[5] = 0.0;
    m.expect(0, out, x.dot(&w) + &one, "bias_element_missing");
    let (v, c) = (m.weight("h.2.attn.c_proj.weight"), m.vector("h.2.attn.c_proj.bias"));
    m.expect(0, out, x.dot(&v) + &c, "other_layer");
    m.expect(0, out, x.dot(&v) + &b, "other_layer");
    m.expect(0, out, x.dot(&w) + &c, "other_layer");
    let bf16 = |x: &Array2<f64>| x.mapv(|v| round(v, Dtype::BF16));
    let f16 = |x: &Array2<f64>| x.mapv(|v| round(v, Dtype::F16));
    m.expect(0, out, bf16(&x).dot(&w) + &b, "rounded_bf16");
    m.expect(0, out, x.dot(&f16(&w)) + &b, "rounded_f16");
    m.expect(0, out, f16(&(x.dot(&w) + &b)), "rounded_f16");
    m.expect(0, out, f16(&(f16(&x).dot(&f16(&w)) + &b)), "rounded_f16");
    m.expect(0, out, (x.dot(&w) + &b) * 1.001, "scaled");
    m.expect_none(0, out, x.dot(&w) + &(&b * 2.0));
    m.expect_none(0, out, (x.dot(&w) + &b).mapv(|v| v + 0.01));
    // A weight that is not square, in a layout that has as many numbers.
    let (x, w, b) =
        (m.rows(0, "h.0.ln_2"), m.weight("h.0.mlp.c_fc.weight"), m.vector("h.0.mlp.c_fc.bias"));
    let flat: Vec<f64> = w.iter().copied().collect();
    let turned = Array2::from_shape_vec((F, E), flat).unwrap();
    m.expect(0, "h.0.mlp.fc", x.dot(&turned.t()) + &b, "transposed");
    m.expect(0, "h.0.mlp.fc", m.rows(0, "h.0.resid_mid").dot(&w) + &b, "post_norm");
}

#[test]
fn sums_of_reduced_precision() {
    let m = Model::new();
    let (x, w, b) = (
        m.rows(0, "h.1.mlp.act"),
        m.weight("h.1.mlp.c_proj.weight"),
        m.vector("h.1.mlp.c_proj.bias"),
    );
    for to in [Dtype::F16, Dtype::BF16] {
        let mut y = Array2::<f64>::zeros((x.nrows(), E));
        for k in 0..F {
            let terms = x
                .column(k)
                .to_owned()
                .insert_axis(ndarray::Axis(1))
                .dot(&w.slice(s![k..k + 1, ..]));
            y = (y + terms).mapv(|v| round(v, to));
        }
        m.expect(0, "h.1.mlp.out", y + &b, "reduced_sum");
    }
    // As large, and alike in all rows: no matter of rounding.
    let honest = m.rows(0, "h.1.mlp.out");
    let off = Array2::from_shape_fn(honest.dim(), |(_, j)| 1e-3 * ((j * 7 % 5) as f64 - 2.0));
    m.expect_none(0, "h.1.mlp.out", honest + off);
    // One column alone.
    let mut one = m.rows(0, "h.1.mlp.out");
    one.column_mut(3).mapv_inplace(|v| v + 1e-3);
    m.expect_none(0, "h.1.mlp.out", one);
}

#[test]
fn q_k_and_v_and_their_heads() {
    let m = Model::new();
    let (x, w, b) = (
        m.rows(0, "h.2.ln_1"),
        m.weight("h.2.attn.c_attn.weight"),
        m.vector("h.2.attn.c_attn.bias"),
    );
    let third = |i: usize| {
        (w.slice(s![.., i * E..(i + 1) * E]).to_owned(), b.slice(s![i * E..(i + 1) * E]).to_owned())
    };
    let (wq, bq) = third(0);
    m.expect(0, "h.2.attn.q", split(&(x.dot(&wq.t()) + &bq)), "transposed");
    m.expect(0, "h.2.attn.q", m.honest(0, "h.2.attn.k"), "qkv_swapped");
    m.expect(0, "h.2.attn.v", m.honest(0, "h.2.attn.q"), "qkv_swapped");
    m.expect(0, "h.2.attn.k", split(&x.dot(&third(1).0)), "bias_missing");
    let whole = x.dot(&w) + &b;
    let read = Array3::from_shape_fn((H, IDS.len(), D), |(h, t, d)| whole[[t, (h * 3) * D + d]]);
    m.expect(0, "h.2.attn.q", read, "heads_interleaved");
    let q = m.heads(0, "h.2.attn.q");
    let rolled = Array3::from_shape_fn(q.dim(), |(h, t, d)| q[[(h + 1) % H, t, d]]);
    m.expect(0, "h.2.attn.q", rolled, "heads_permuted");
    let merged = ops::merge_heads(q.view());
    let interleaved = Array3::from_shape_fn(q.dim(), |(h, t, d)| merged[[t, d * H + h]]);
    m.expect(0, "h.2.attn.q", interleaved, "heads_interleaved");
    let mut one = q.clone();
    one.slice_mut(s![2, .., ..]).mapv_inplace(|v| v * 0.999);
    m.expect(0, "h.2.attn.q", one, "scaled");
    let mut row = q;
    row.slice_mut(s![2, 3, ..]).mapv_inplace(|v| v * 2.0);
    m.expect(0, "h.2.attn.q", row, "scaled");
}

#[test]
fn norms() {
    let m = Model::new();
    let name = "h.1.ln_1";
    let (x, w, b) = (m.rows(0, "h.0"), m.vector("h.1.ln_1.weight"), m.vector("h.1.ln_1.bias"));
    let norm = |x: &Array2<f64>, eps: f64| ops::layer_norm(x.view(), w.view(), b.view(), eps);
    for (eps, told) in [(1e-3, "with eps 1e-3"), (0.05, "with eps 0.05"), (1e-4, "with eps 1e-4")] {
        let found = m.signature(0, name, norm(&x, eps).into_iter().collect());
        assert_eq!((found.0, found.1.as_str()), (Some("eps"), told));
    }
    let unbiased = Array2::from_shape_fn(x.dim(), |(t, j)| {
        let row = x.row(t);
        let mean = row.mean().unwrap();
        let variance = row.mapv(|v| (v - mean).powi(2)).sum() / (E as f64 - 1.0);
        (x[[t, j]] - mean) / (variance + 1e-5).sqrt() * w[j] + b[j]
    });
    m.expect(0, name, unbiased, "unbiased_variance");
    m.expect(0, name, norm(&x, 1e-5) - &b, "bias_missing");
    m.expect(0, name, x.clone(), "post_norm");
    m.expect(0, name, norm(&m.rows(0, "h.0.mlp.out"), 1e-5), "post_norm");
    m.expect(0, name, norm(&x, 1e-5).mapv(|v| round(v, Dtype::F16)), "rounded_f16");
    let other = (m.vector("h.2.ln_1.weight"), m.vector("h.2.ln_1.bias"));
    m.expect(
        0,
        name,
        ops::layer_norm(x.view(), other.0.view(), other.1.view(), 1e-5),
        "other_layer",
    );
    let uncentred = Array2::from_shape_fn(x.dim(), |(t, j)| {
        let square = x.row(t).mapv(|v| v * v).mean().unwrap();
        x[[t, j]] / (square + 1e-5).sqrt() * w[j] + b[j]
    });
    m.expect_none(0, name, uncentred);
}

#[test]
fn activations() {
    let m = Model::new();
    let x = m.honest(0, "h.0.mlp.fc");
    let name = "h.0.mlp.act";
    let erf = super::activation::erf;
    m.expect(0, name, x.iter().map(|x| 0.5 * x * (1.0 + erf(x / 2f64.sqrt()))), "gelu_erf");
    m.expect(0, name, x.iter().map(|x| x / (1.0 + (-1.702 * x).exp())), "gelu_sigmoid");
    m.expect(0, name, x.iter().map(|x| gelu_new(round(*x, Dtype::BF16))), "rounded_bf16");
    m.expect_none(0, name, x.iter().map(|x| x.max(0.0)));
}

#[test]
fn scores_and_masks() {
    let m = Model::new();
    let name = "h.1.attn.scores";
    let scores = m.honest(0, name);
    let root = (D as f64).sqrt();
    m.expect(0, name, scores.iter().map(|s| s * root), "scale_missing");
    m.expect(0, name, scores.iter().map(|s| s / root), "scale_doubled");
    m.expect(0, name, scores.iter().map(|s| s * root / (E as f64).sqrt()), "scale_by_width");
    m.expect(0, name, scores.iter().map(|s| s * 1.01), "scaled");
    let n = IDS.len();
    let masked = scores.iter().enumerate().map(|(i, v)| {
        let (row, key) = (i / n % n, i % n);
        if key > 0 && key == row { f64::NEG_INFINITY } else { *v }
    });
    m.expect(0, name, masked, "mask_shifted");
    let q = m.heads(0, "h.1.attn.q").mapv(|v| round(v, Dtype::F16));
    let job = Job { step: 0, inputs: &m.captured, u: U };
    let k = keys(&job, Stage::CacheK, 1).unwrap();
    m.expect(0, name, ops::scores(q.view(), k.view(), 1.0 / root), "rounded_f16");

    let scores = m.heads(0, name);
    let wide = |seen: &dyn Fn(usize) -> usize| {
        let all = Array3::from_shape_fn(scores.dim(), |(h, t, s)| {
            let q = m.heads(0, "h.1.attn.q");
            q.slice(s![h, t, ..]).dot(&k.slice(s![h, s, ..])) / root
        });
        let mut probs = Array3::<f64>::zeros(scores.dim());
        for h in 0..H {
            for t in 0..n {
                let seen = seen(t).clamp(1, n);
                let row = ops::softmax(&all.slice(s![h, t, ..seen]).to_vec());
                probs.slice_mut(s![h, t, ..seen]).assign(&Array1::from(row));
            }
        }
        probs
    };
    m.expect(0, "h.1.attn.probs", wide(&|t| t + 2), "mask_shifted");
    m.expect(0, "h.1.attn.probs", wide(&|t| t), "mask_shifted");
    m.expect(0, "h.1.attn.probs", wide(&|_| n), "mask_shifted");
    let probs = m.honest(0, "h.1.attn.probs");
    m.expect(0, "h.1.attn.probs", probs.iter().map(|p| round(*p, Dtype::BF16)), "rounded_bf16");
}

#[test]
fn caches_and_what_is_read_from_them() {
    let m = Model::new();
    let v = m.heads(2, "h.0.attn.cache.v");
    let n = v.dim().1;
    let with = |v: &Array3<f64>, from: Rows<'_>| {
        Array3::from_shape_fn(v.dim(), |(h, s, d)| from(s).map_or(0.0, |s| v[[h, s, d]]))
    };
    let stale = |s: usize| Some(if s == n - 1 { s - 1 } else { s });
    let gone = |s: usize| (s != 3).then_some(s);
    let rolled = |s: usize| Some((s + n - 1) % n);
    let ways: [(Rows<'_>, &str); 3] =
        [(&stale, "cache_stale"), (&gone, "cache_row_missing"), (&rolled, "cache_shifted")];
    for (from, slug) in ways {
        m.expect(2, "h.0.attn.cache.v", with(&v, from), slug);
        // The cache that is shown is right, and another is read.
        let k = m.heads(2, "h.0.attn.cache.k");
        let scores = ops::scores(
            m.heads(2, "h.0.attn.q").view(),
            with(&k, from).view(),
            1.0 / (D as f64).sqrt(),
        );
        m.expect(2, "h.0.attn.scores", scores, slug);
        let probs = m.heads(2, "h.0.attn.probs");
        m.expect(2, "h.0.attn.context", ops::context(probs.view(), with(&v, from).view()), slug);
    }
    m.expect(2, "h.0.attn.cache.v", v.mapv(|v| round(v, Dtype::F16)), "rounded_f16");
    m.expect(2, "h.0.attn.cache.v", m.honest(2, "h.1.attn.cache.v"), "other_layer");
    m.expect(2, "h.0.attn.cache.v", m.honest(2, "h.0.attn.cache.k"), "qkv_swapped");
    let probs = m.heads(2, "h.0.attn.probs");
    let k = m.heads(2, "h.0.attn.cache.k");
    m.expect(2, "h.0.attn.context", ops::context(probs.view(), k.view()), "qkv_swapped");
}

#[test]
fn residuals_embeddings_and_the_head() {
    let m = Model::new();
    let (a, b) = (m.rows(0, "h.0"), m.rows(0, "h.1.attn.out"));
    let name = "h.1.resid_mid";
    m.expect(0, name, b.clone(), "residual_missing");
    m.expect(0, name, m.rows(0, "h.1.ln_1") + &b, "post_norm");
    m.expect(0, name, (&a + &b).mapv(|v| round(v, Dtype::BF16)), "rounded_bf16");
    m.expect_none(0, name, a);
    let (wte, wpe) = (m.weight("wte.weight"), m.weight("wpe.weight"));
    let embed = |position: &dyn Fn(usize) -> usize| {
        let sum = |(t, j): (usize, usize)| wte[[IDS[t] as usize, j]] + wpe[[position(t), j]];
        Array2::from_shape_fn((IDS.len(), E), sum)
    };
    m.expect(0, "embeddings", embed(&|t| t + 1), "positions_shifted");
    m.expect(0, "embeddings", embed(&|t| t.saturating_sub(1)), "positions_shifted");
    let restarted = Array2::from_shape_fn((1, E), |(_, j)| wte[[FED[1] as usize, j]] + wpe[[0, j]]);
    m.expect(2, "embeddings", restarted, "positions_shifted");
    let x = m.rows(0, "ln_f");
    let rounded = wte.mapv(|v| round(v, Dtype::BF16));
    m.expect(0, "logits", x.dot(&rounded.t()), "rounded_bf16");
    m.expect(0, "logits", m.rows(0, "h.2").dot(&wte.t()), "post_norm");
    let mut one = x.dot(&wte.t());
    one.row_mut(2).mapv_inplace(|v| v * 1.01);
    m.expect(0, "logits", one, "scaled");
}

/// The rounding that an honest engine does is nothing to explain.
#[test]
fn an_honest_stage_is_no_site() {
    let m = Model::new();
    for ((step, point), given) in &m.captured.0 {
        let job = Job { step: *step, inputs: &m.captured, u: U };
        let honest = m.oracle.replay(*point, job).unwrap().unwrap();
        let sizes = if *step == 0 { (IDS.len(), IDS.len()) } else { (1, IDS.len() + step) };
        let site = Site::new(&m.oracle, &m.captured, (*step, *point), sizes, given.clone(), honest);
        assert!(site.is_none(), "{point} at step {step}");
    }
}
