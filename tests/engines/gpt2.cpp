// GPT-2 in plain C++: one loop for each sum, float32, a key/value cache.
//
// T tokens of this step, S keys seen so far, E width, H heads, D = E/H, F inner width. Row-major.
class Engine {
 public:
  Engine(const Sizes& sizes, const Weights& weights, size_t /*threads*/) : z_(sizes) {
    for (const auto& named : sizes.weights()) w_[named.first] = weights.read(named.first);
    reset();
  }

  void reset() { keys_.assign(z_.layers, {}), values_.assign(z_.layers, {}), past_ = 0; }

  std::vector<float> forward(const Ids& ids, Show& show) {
    const size_t t = ids.size(), e = z_.width;
    Floats x(t * e);  // [T,E]
    const Floats &wte = w_.at("wte.weight"), &wpe = w_.at("wpe.weight");
    for (size_t r = 0; r < t; ++r)
      for (size_t c = 0; c < e; ++c) x[r * e + c] = wte[size_t(ids[r]) * e + c] + wpe[(past_ + r) * e + c];
    show("embeddings", x, {t, e});
    for (size_t i = 0; i < z_.layers; ++i) {
      const std::string h = "h." + std::to_string(i);
      Floats normed = layer_norm(h + ".ln_1", x);
      show(h + ".ln_1", normed, {t, e});
      x = sum(x, attention(i, normed, t, show));
      show(h + ".resid_mid", x, {t, e});
      normed = layer_norm(h + ".ln_2", x);
      show(h + ".ln_2", normed, {t, e});
      Floats inner = linear(h + ".mlp.c_fc", normed, t, z_.inner);
      show(h + ".mlp.fc", inner, {t, z_.inner});
      for (float& v : inner) v = gelu(v);
      show(h + ".mlp.act", inner, {t, z_.inner});
      Floats out = linear(h + ".mlp.c_proj", inner, t, e);
      show(h + ".mlp.out", out, {t, e});
      x = sum(x, out);
      show(h, x, {t, e});
    }
    past_ += t;
    x = layer_norm("ln_f", x);
    show("ln_f", x, {t, e});
    // The other rows of logits are made only where somebody looks.
    const size_t rows = show.wants("logits") ? t : 1;
    const Floats& head = z_.tied ? wte : w_.at("lm_head.weight");
    Floats logits(rows * z_.vocab);
    for (size_t r = 0; r < rows; ++r)
      for (size_t v = 0; v < z_.vocab; ++v) logits[r * z_.vocab + v] = dot(&x[(t - rows + r) * e], &head[v * e], e);
    if (rows == t) show("logits", logits, {t, z_.vocab});
    return Floats(logits.end() - std::ptrdiff_t(z_.vocab), logits.end());
  }

 private:
  using Floats = std::vector<float>;
  Sizes z_;
  std::map<std::string, Floats> w_;
  std::vector<Floats> keys_, values_;  // by layer, [S,H,D]
  size_t past_ = 0;

  static float dot(const float* a, const float* b, size_t n) {
    float total = 0;
    for (size_t i = 0; i < n; ++i) total += a[i] * b[i];
    return total;
  }

  static Floats sum(Floats a, const Floats& b) {
    for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
    return a;
  }

  // gelu_new: the tanh form.
  static float gelu(float x) { return 0.5f * x * (1 + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x))); }

  // x W + b, W [in,out]: the terms of each sum in order, all outputs of a row at once.
  Floats linear(const std::string& name, const Floats& x, size_t t, size_t out) const {
    const Floats &w = w_.at(name + ".weight"), &b = w_.at(name + ".bias");
    const size_t in = x.size() / t;
    Floats y(t * out);
    for (size_t r = 0; r < t; ++r) {
      float* row = &y[r * out];
      for (size_t k = 0; k < in; ++k)
        for (size_t c = 0; c < out; ++c) row[c] += x[r * in + k] * w[k * out + c];
      for (size_t c = 0; c < out; ++c) row[c] += b[c];
    }
    return y;
  }

  // Mean 0 and (biased) variance 1 over the width, then gain and bias.
  Floats layer_norm(const std::string& name, const Floats& x) const {
    const Floats &gain = w_.at(name + ".weight"), &bias = w_.at(name + ".bias");
    const size_t e = z_.width;
    Floats y(x.size());
    for (size_t row = 0; row < x.size(); row += e) {
      float mean = 0, variance = 0;
      for (size_t c = 0; c < e; ++c) mean += x[row + c];
      mean /= float(e);
      for (size_t c = 0; c < e; ++c) variance += (x[row + c] - mean) * (x[row + c] - mean);
      variance /= float(e);
      const float scale = 1 / std::sqrt(variance + float(z_.epsilon));
      for (size_t c = 0; c < e; ++c) y[row + c] = (x[row + c] - mean) * scale * gain[c] + bias[c];
    }
    return y;
  }

  Floats attention(size_t i, const Floats& x, size_t t, Show& show) {
    const std::string h = "h." + std::to_string(i) + ".attn";
    const size_t e = z_.width, d = z_.depth, s = past_ + t;
    const Floats qkv = linear(h + ".c_attn", x, t, 3 * e);  // [T,3E]
    Floats q(t * e), k(t * e), v(t * e);                    // [T,H,D]
    for (size_t r = 0; r < t; ++r)
      for (size_t c = 0; c < e; ++c) {
        q[r * e + c] = qkv[r * 3 * e + c];
        k[r * e + c] = qkv[r * 3 * e + e + c];
        v[r * e + c] = qkv[r * 3 * e + 2 * e + c];
      }
    keys_[i].insert(keys_[i].end(), k.begin(), k.end());
    values_[i].insert(values_[i].end(), v.begin(), v.end());
    heads_first(h + ".q", q, t, show), heads_first(h + ".k", k, t, show), heads_first(h + ".v", v, t, show);
    heads_first(h + ".cache.k", keys_[i], s, show), heads_first(h + ".cache.v", values_[i], s, show);

    const float scale = 1 / std::sqrt(float(d));
    Floats scores(z_.heads * t * s, -std::numeric_limits<float>::infinity()), probs(z_.heads * t * s), context(t * e);
    for (size_t head = 0; head < z_.heads; ++head)
      for (size_t r = 0; r < t; ++r) {
        float *score = &scores[(head * t + r) * s], *prob = &probs[(head * t + r) * s], *mixed = &context[r * e + head * d];
        const size_t seen = past_ + r + 1;  // keys up to the query's own
        for (size_t key = 0; key < seen; ++key)
          score[key] = dot(&q[r * e + head * d], &keys_[i][key * e + head * d], d) * scale;
        const float top = *std::max_element(score, score + seen);
        float total = 0;
        for (size_t key = 0; key < seen; ++key) total += prob[key] = std::exp(score[key] - top);
        for (size_t key = 0; key < seen; ++key) {
          prob[key] /= total;
          for (size_t c = 0; c < d; ++c) mixed[c] += prob[key] * values_[i][key * e + head * d + c];
        }
      }
    show(h + ".scores", scores, {z_.heads, t, s});
    show(h + ".probs", probs, {z_.heads, t, s});
    show(h + ".context", context, {t, e});
    Floats out = linear(h + ".c_proj", context, t, e);
    show(h + ".out", out, {t, e});
    return out;
  }

  // [N,H,D] -> [H,N,D]
  void heads_first(const std::string& point, const Floats& x, size_t n, Show& show) const {
    if (!show.wants(point)) return;
    Floats turned;
    for (size_t head = 0; head < z_.heads; ++head)
      for (size_t r = 0; r < n; ++r) {
        const float* from = &x[(r * z_.heads + head) * z_.depth];
        turned.insert(turned.end(), from, from + z_.depth);
      }
    show(point, turned, {z_.heads, n, z_.depth});
  }
};
