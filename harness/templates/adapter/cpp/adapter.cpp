// @NAME@: an adapter for llorch-diff. One file, C++17 on POSIX, nothing but the standard library.
//
//     make            # c++ -std=c++17 -O2 -pthread -o @NAME@ adapter.cpp
//
// It speaks the adapter protocol, version 1 (adapters/PROTOCOL.md), on stdin and stdout. In order:
//
//   1. what it says of itself,
//   2. JSON, model.safetensors and .npy, as far as they are needed here,
//   3. the engine: a STUB, which computes nothing real, until you put yours there,
//   4. the protocol, which can stay as it is.
//
//     llorch-diff adapter check ./@NAME@        # the protocol is kept
//     llorch-diff run --subject ./@NAME@        # the numbers are compared
//     llorch-diff bisect --subject ./@NAME@     # the first wrong stage

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

using Shape = std::vector<size_t>;
using Ids = std::vector<int64_t>;

// --- 1. What the adapter says of itself ------------------------------------------------------------

const char* const NAME = "@NAME@";
const char* const VERSION = "0.1.0 (stub)";  // of what does the computing
// `kernels`: this graph was written for llorch. `semantics`: the engine's own graph runs.
const char* const WORTH = "kernels";
// `deterministic` promises the same bytes for the same request, run after run: drop it if that isn't so.
const std::vector<std::string> CAPABILITIES = {"capture", "generate", "deterministic"};

// Every point there is, `i` for the layer. Delete what your engine can't show; it is then declared as
// unsupported, and the rest is compared. A first day's engine may show logits.last alone.
const std::vector<std::string> SHOWN = {
    "tokens", "embeddings", "h.i.ln_1", "h.i.attn.q", "h.i.attn.k", "h.i.attn.v", "h.i.attn.cache.k",
    "h.i.attn.cache.v", "h.i.attn.scores", "h.i.attn.probs", "h.i.attn.context", "h.i.attn.out",
    "h.i.resid_mid", "h.i.ln_2", "h.i.mlp.fc", "h.i.mlp.act", "h.i.mlp.out", "h.i",
    "ln_f", "logits", "logits.last", "argmax", "next.probs",
};
const char* const WHY_NOT = "not shown by this adapter";

// Where the native tensor is and how it becomes ours, by point: told in reports.
const char* const RECIPE = "made up by a stub";

// --- 2. JSON, model.safetensors and .npy -----------------------------------------------------------

// An `error` of this class: unsupported, input, resource or internal.
struct Refusal {
  std::string kind, message;
};

struct Json {
  enum Kind { Null, Bool, Int, Float, String, Array, Object } kind = Null;
  double number = 0;
  std::string text;
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> fields;

  const Json* find(const std::string& key) const {
    for (const auto& field : fields)
      if (field.first == key) return field.second.kind == Null ? nullptr : &field.second;
    return nullptr;
  }
};

// A reader of one JSON value. Throws an input refusal.
class JsonReader {
 public:
  explicit JsonReader(const std::string& text) : at_(text.data()), end_(at_ + text.size()) {}

  Json whole() {
    Json value = read(0);
    space();
    if (at_ != end_) fail();
    return value;
  }

 private:
  const char *at_, *end_;

  [[noreturn]] void fail() { throw Refusal{"input", "bad JSON"}; }

  void space() {
    while (at_ != end_ && std::strchr(" \t\r\n", *at_) && *at_) ++at_;
  }

  bool eat(const char* word) {
    size_t n = std::strlen(word);
    if (size_t(end_ - at_) < n || std::memcmp(at_, word, n) != 0) return false;
    at_ += n;
    return true;
  }

  Json read(int depth) {
    if (depth > 100) fail();
    space();
    Json value;
    if (at_ == end_) fail();
    if (eat("null")) return value;
    if (eat("true") || eat("false")) {
      value.kind = Json::Bool;
      value.number = at_[-2] == 'u';
    } else if (*at_ == '"') {
      value.kind = Json::String;
      value.text = string();
    } else if (eat("[")) {
      value.kind = Json::Array;
      for (space(); !eat("]"); space()) {
        if (!value.items.empty() && !eat(",")) fail();
        value.items.push_back(read(depth + 1));
      }
    } else if (eat("{")) {
      value.kind = Json::Object;
      for (space(); !eat("}"); space()) {
        if (!value.fields.empty() && !eat(",")) fail();
        space();
        std::string key = string();
        space();
        if (!eat(":")) fail();
        value.fields.emplace_back(key, read(depth + 1));
      }
    } else {
      value = number();
    }
    return value;
  }

  Json number() {
    const char* begin = at_;
    while (at_ != end_ && (std::isdigit(static_cast<unsigned char>(*at_)) || std::strchr("+-.eE", *at_)) && *at_) ++at_;
    std::string text(begin, at_);
    char* rest = nullptr;
    Json value;
    value.number = std::strtod(text.c_str(), &rest);
    if (text.empty() || *rest || !std::isfinite(value.number)) fail();
    value.kind = text.find_first_of(".eE") == std::string::npos ? Json::Int : Json::Float;
    return value;
  }

  std::string string() {
    if (!eat("\"")) fail();
    std::string out;
    while (at_ != end_ && *at_ != '"') {
      if (*at_ != '\\') {
        out += *at_++;
        continue;
      }
      if (++at_ == end_) fail();
      char c = *at_++;
      if (c == 'u') {
        uint32_t code = hex();
        if (code >= 0xD800 && code < 0xDC00 && eat("\\u")) code = 0x10000 + ((code - 0xD800) << 10) + (hex() - 0xDC00);
        utf8(code, out);
      } else {
        const char *from = "\"\\/bfnrt", *to = "\"\\/\b\f\n\r\t", *found = std::strchr(from, c);
        if (!found || !c) fail();
        out += to[found - from];
      }
    }
    if (!eat("\"")) fail();
    return out;
  }

  uint32_t hex() {
    if (end_ - at_ < 4) fail();
    std::string digits(at_, at_ + 4);
    if (digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) fail();
    at_ += 4;
    return uint32_t(std::stoul(digits, nullptr, 16));
  }

  static void utf8(uint32_t code, std::string& out) {
    if (code < 0x80) {
      out += char(code);
    } else if (code < 0x800) {
      out += char(0xC0 | code >> 6), out += char(0x80 | (code & 63));
    } else if (code < 0x10000) {
      out += char(0xE0 | code >> 12), out += char(0x80 | (code >> 6 & 63)), out += char(0x80 | (code & 63));
    } else {
      out += char(0xF0 | code >> 18), out += char(0x80 | (code >> 12 & 63));
      out += char(0x80 | (code >> 6 & 63)), out += char(0x80 | (code & 63));
    }
  }
};

std::string quote(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 32) {
      out += c;
    } else {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", c);
      out += escaped;
    }
  }
  return out + '"';
}

template <class List>
std::string listed(const List& values) {
  std::string out = "[";
  for (auto value : values) out += (out.size() > 1 ? "," : "") + std::to_string(value);
  return out + "]";
}

std::string whole_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) throw Refusal{"input", "failed to read " + path};
  return text;
}

// What of config.json shapes are made of.
struct Sizes {
  size_t layers = 0, heads = 0, width = 0, inner = 0, vocab = 0, positions = 0, depth = 0;
  double epsilon = 1e-5;
  bool tied = true;

  explicit Sizes(const std::string& path) {
    Json config = JsonReader(whole_file(path)).whole();
    auto size = [&](const char* key, size_t otherwise) {
      const Json* value = config.find(key);
      if (!value && otherwise) return otherwise;
      if (!value || value->kind != Json::Int || value->number < 1 || value->number > 1e9)
        throw Refusal{"input", path + ": " + key + " isn't a whole number from 1"};
      return size_t(value->number);
    };
    layers = size("n_layer", 0), heads = size("n_head", 0), width = size("n_embd", 0);
    inner = size("n_inner", 4 * width), vocab = size("vocab_size", 0), positions = size("n_positions", 0);
    if (width % heads) throw Refusal{"input", path + ": n_embd isn't a multiple of n_head"};
    depth = width / heads;
    if (const Json* value = config.find("layer_norm_epsilon")) epsilon = value->number;
    if (const Json* value = config.find("tie_word_embeddings")) tied = value->number != 0;
    // Other mathematics is refused, not ignored.
    const Json* act = config.find("activation_function");
    if (act && act->text != "gelu_new") throw Refusal{"unsupported", path + ": activation_function " + act->text};
    const Json *scaled = config.find("scale_attn_weights"), *by_layer = config.find("scale_attn_by_inverse_layer_idx");
    if ((scaled && !scaled->number) || (by_layer && by_layer->number))
      throw Refusal{"unsupported", path + ": attention isn't scaled by 1/sqrt(D) alone"};
  }

  // Name and shape of every tensor. Weights of linear layers are [in, out].
  std::map<std::string, Shape> weights() const {
    std::map<std::string, Shape> all = {{"wte.weight", {vocab, width}}, {"wpe.weight", {positions, width}},
                                        {"ln_f.weight", {width}}, {"ln_f.bias", {width}}};
    if (!tied) all["lm_head.weight"] = {vocab, width};
    for (size_t i = 0; i < layers; ++i) {
      std::string h = "h." + std::to_string(i) + ".";
      for (std::string norm : {"ln_1", "ln_2"}) all[h + norm + ".weight"] = all[h + norm + ".bias"] = {width};
      auto linear = [&](const char* name, size_t in, size_t out) {
        all[h + name + ".weight"] = {in, out};
        all[h + name + ".bias"] = {out};
      };
      linear("attn.c_attn", width, 3 * width), linear("attn.c_proj", width, width);
      linear("mlp.c_fc", width, inner), linear("mlp.c_proj", inner, width);
    }
    return all;
  }
};

// model.safetensors: a length, a header in JSON, then the data.
class Weights {
 public:
  Weights(const std::string& path, const Sizes& sizes) : path_(path), data_(whole_file(path)) {
    uint64_t length = 0;
    if (data_.size() >= 8) std::memcpy(&length, data_.data(), 8);
    if (data_.size() < 8 || length > data_.size() - 8) fail("its header is cut");
    base_ = 8 + length;
    header_ = JsonReader(data_.substr(8, length)).whole();
    for (const auto& [name, shape] : sizes.weights()) {
      const Json& entry = find(name);
      Shape found;
      if (const Json* axes = entry.find("shape"))
        for (const Json& n : axes->items) found.push_back(size_t(n.number));
      if (found != shape) fail(name + " is " + listed(found) + ", expected " + listed(shape));
    }
  }

  // Widened to float32, which is exact.
  std::vector<float> read(const std::string& name) const {
    const Json& entry = find(name);
    const Json *dtype = entry.find("dtype"), *offsets = entry.find("data_offsets");
    if (!dtype || !offsets || offsets->items.size() != 2) fail(name + " has no dtype or offsets");
    size_t begin = size_t(offsets->items[0].number), end = size_t(offsets->items[1].number);
    if (begin > end || end > data_.size() - base_) fail("it ends in the middle of " + name);
    const char* bytes = data_.data() + base_ + begin;
    std::vector<float> values;
    if (dtype->text == "F32") {
      values.resize((end - begin) / 4);
      std::memcpy(values.data(), bytes, values.size() * 4);
    } else if (dtype->text == "F16") {
      values.resize((end - begin) / 2);
      for (size_t i = 0; i < values.size(); ++i) {
        uint16_t half;
        std::memcpy(&half, bytes + 2 * i, 2);
        values[i] = widen(half);
      }
    } else {
      fail(name + " is " + dtype->text + ", expected F32 or F16");
    }
    return values;
  }

 private:
  std::string path_, data_;
  size_t base_ = 0;
  Json header_;

  [[noreturn]] void fail(const std::string& what) const { throw Refusal{"input", "failed to read " + path_ + ": " + what}; }

  const Json& find(const std::string& name) const {
    const Json* entry = header_.find(name);
    if (!entry) entry = header_.find("transformer." + name);
    if (!entry) fail("no tensor " + name);
    return *entry;
  }

  static float widen(uint16_t half) {
    int exponent = half >> 10 & 31, fraction = half & 1023;
    float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                 : exponent     ? std::ldexp(float(fraction | 1024), exponent - 25)
                                : std::ldexp(float(fraction), -24);
    return half & 0x8000 ? -size : size;
  }
};

bool matches(const char* glob, const char* name) {
  if (*glob == '*') return matches(glob + 1, name) || (*name && matches(glob, name + 1));
  return *glob == *name && (!*glob || matches(glob + 1, name + 1));
}

bool is_shown(const std::string& point) {
  std::string name = point;
  if (point.rfind("h.", 0) == 0) {
    size_t dot = point.find('.', 2);
    name = "h.i" + (dot == std::string::npos ? "" : point.substr(dot));
  }
  return std::find(SHOWN.begin(), SHOWN.end(), name) != SHOWN.end();
}

FILE* messages = nullptr;  // the real stdout; everything else goes to stderr

void send(const std::string& line) {
  std::fputs((line + "\n").c_str(), messages);
  // Nobody listens any more: there is nothing left to do.
  if (std::fflush(messages) != 0) _exit(0);
}

// Writes what was asked for, step by step.
class Show {
 public:
  size_t step = 0;

  Show(std::string run, std::vector<std::string> globs, std::string out_dir)
      : run_(std::move(run)), globs_(std::move(globs)), out_dir_(std::move(out_dir)) {}

  bool wants(const std::string& point) const {
    return is_shown(point) && std::any_of(globs_.begin(), globs_.end(), [&](const std::string& glob) {
             return matches(glob.c_str(), point.c_str());
           });
  }

  void operator()(const std::string& point, const std::vector<float>& values, const Shape& shape) {
    if (wants(point)) write(point, values.data(), values.size() * sizeof(float), "<f4", "f32", shape);
  }

  void operator()(const std::string& point, const Ids& values, const Shape& shape) {
    if (wants(point)) write(point, values.data(), values.size() * sizeof(int64_t), "<i8", "i64", shape);
  }

 private:
  std::string run_;
  std::vector<std::string> globs_;
  std::string out_dir_;

  void write(const std::string& point, const void* data, size_t bytes, const char* descr, const char* dtype, const Shape& shape) {
    std::string axes;
    for (size_t n : shape) axes += std::to_string(n) + ",";
    std::string header = std::string("{'descr': '") + descr + "', 'fortran_order': False, 'shape': (" + axes + "), }";
    header += std::string(63 - (10 + header.size()) % 64, ' ') + "\n";
    std::filesystem::create_directories(out_dir_);
    char number[24];
    std::snprintf(number, sizeof number, "%04zu_", step);
    std::string path = (std::filesystem::absolute(out_dir_) / (number + point + ".npy")).string();
    std::ofstream file(path, std::ios::binary);
    file.write("\x93NUMPY\x01\x00", 8);
    file.put(char(header.size() & 255)).put(char(header.size() >> 8));
    file.write(header.data(), std::streamsize(header.size()));
    file.write(static_cast<const char*>(data), std::streamsize(bytes));
    file.close();
    if (!file) throw Refusal{"resource", "failed to write " + path};
    send("{\"type\":\"tensor\",\"id\":" + quote(run_) + ",\"point\":" + quote(point) + ",\"step\":" + std::to_string(step) +
         ",\"file\":" + quote(path) + ",\"key\":null,\"dtype\":\"" + dtype + "\",\"shape\":" + listed(shape) + "}");
  }
};

std::vector<float> softmax(const std::vector<float>& values) {
  double top = *std::max_element(values.begin(), values.end()), total = 0;
  for (float v : values) total += std::exp(v - top);
  std::vector<float> out;
  for (float v : values) out.push_back(float(std::exp(v - top) / total));
  return out;
}

// --- 3. The engine ----------------------------------------------------------------------------------
// >>> what is yours

// STUB: PUT YOUR ENGINE HERE. It has the shapes of a GPT-2 and nothing else of one: every value depends
// only on the point, the token and its position, so that caches and steps agree with one another.
class Engine {
 public:
  // `weights` has checked that all tensors are there; keep what your forward pass needs.
  Engine(const Sizes& sizes, const Weights& /*weights*/, size_t /*threads*/) : z_(sizes) {}

  // A new sequence: nothing of the last one may be left, its key/value cache least of all.
  void reset() { fed_.clear(); }

  // Feeds `ids` after what was fed before, shows every point, and returns the last row of logits.
  // T is ids.size(), S all that was fed so far. show.wants(point) says whether anybody looks.
  std::vector<float> forward(const Ids& ids, Show& show) {
    size_t start = fed_.size();
    fed_.insert(fed_.end(), ids.begin(), ids.end());
    size_t t = ids.size(), s = fed_.size();
    auto rows = [&](const std::string& point, size_t width) {
      if (show.wants(point)) show(point, noise(point, width, start), {t, width});
    };
    rows("embeddings", z_.width);
    for (size_t i = 0; i < z_.layers; ++i) {
      std::string h = "h." + std::to_string(i);
      rows(h + ".ln_1", z_.width);
      for (const char* part : {".attn.q", ".attn.k", ".attn.v"})
        if (show.wants(h + part)) show(h + part, heads(h + part, start), {z_.heads, t, z_.depth});
      for (const char* part : {"k", "v"})
        if (show.wants(h + ".attn.cache." + part))
          show(h + ".attn.cache." + part, heads(h + ".attn." + part, 0), {z_.heads, s, z_.depth});
      if (show.wants(h + ".attn.scores")) show(h + ".attn.scores", attention(false, start), {z_.heads, t, s});
      if (show.wants(h + ".attn.probs")) show(h + ".attn.probs", attention(true, start), {z_.heads, t, s});
      for (const char* part : {".attn.context", ".attn.out", ".resid_mid", ".ln_2"}) rows(h + part, z_.width);
      rows(h + ".mlp.fc", z_.inner), rows(h + ".mlp.act", z_.inner);
      rows(h + ".mlp.out", z_.width), rows(h, z_.width);
    }
    rows("ln_f", z_.width), rows("logits", z_.vocab);
    return noise("logits", z_.vocab, s - 1);
  }

 private:
  Sizes z_;
  Ids fed_;

  // The rest is the stub's alone. [positions from `start` on, width]
  std::vector<float> noise(const std::string& name, size_t width, size_t start) const {
    std::vector<float> out;
    uint32_t seed = 7;
    for (char c : name) seed = seed * 131 + uint32_t(c);
    for (size_t p = start; p < fed_.size(); ++p) {
      uint32_t state = seed + uint32_t(fed_[p]) * 7919 + uint32_t(p) * 104729;
      for (size_t i = 0; i < width; ++i) {
        state = state * 1664525 + 1013904223;
        out.push_back(float(state >> 8) / float(1 << 24) - 0.5f);
      }
    }
    return out;
  }

  std::vector<float> heads(const std::string& name, size_t start) const {
    std::vector<float> out;
    for (size_t head = 0; head < z_.heads; ++head) {
      std::vector<float> rows = noise(name + "/" + std::to_string(head), z_.depth, start);
      out.insert(out.end(), rows.begin(), rows.end());
    }
    return out;
  }

  // [heads, queries, all]: the future is -inf in the scores and 0 in the probabilities.
  std::vector<float> attention(bool normalised, size_t start) const {
    std::vector<float> out;
    for (size_t head = 0; head < z_.heads; ++head)
      for (size_t q = start; q < fed_.size(); ++q) {
        std::vector<float> seen;
        for (size_t k = 0; k <= q; ++k) seen.push_back(float((head + 5) * (q + k + 7) % 31) / 31);
        if (normalised) seen = softmax(seen);
        seen.resize(fed_.size(), normalised ? 0 : -std::numeric_limits<float>::infinity());
        out.insert(out.end(), seen.begin(), seen.end());
      }
    return out;
  }
};

// <<< what is yours
// --- 4. The protocol --------------------------------------------------------------------------------

class Adapter {
 public:
  void serve() {
    std::thread reader([this] { read(); });
    for (std::optional<std::string> line; (line = next());) {
      std::optional<std::string> id;
      try {
        Json message = JsonReader(*line).whole();
        if (message.kind != Json::Object) throw Refusal{"input", "expected a JSON object"};
        if (const Json* name = message.find("id"); name && name->kind == Json::String) id = name->text;
        send(answer(message));
      } catch (const Refusal& refusal) {
        send(error(id, refusal.kind, refusal.message));
      } catch (const std::bad_alloc&) {
        send(error(id, "resource", "out of memory"));
      } catch (const std::exception& other) {  // whatever went wrong, the next request may go well
        send(error(id, "internal", other.what()));
      }
    }
    reader.join();
  }

 private:
  std::unique_ptr<Sizes> sizes_;
  std::unique_ptr<Engine> engine_;
  std::mutex lock_;
  std::condition_variable came_;
  std::deque<std::string> inbox_;
  std::set<std::string> cancelled_;
  bool ended_ = false;

  // In a thread, so that a `cancel` is seen while a run is going on.
  void read() {
    for (std::string line; std::getline(std::cin, line);) {
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      std::lock_guard<std::mutex> held(lock_);
      try {
        Json message = JsonReader(line).whole();
        const Json *type = message.find("type"), *id = message.find("id");
        if (type && type->text == "cancel" && id) {
          cancelled_.insert(id->text);
          continue;
        }
      } catch (const Refusal&) {  // told when its turn comes
      }
      inbox_.push_back(line);
      came_.notify_one();
    }
    std::lock_guard<std::mutex> held(lock_);
    ended_ = true;
    came_.notify_one();
  }

  std::optional<std::string> next() {
    std::unique_lock<std::mutex> held(lock_);
    came_.wait(held, [this] { return ended_ || !inbox_.empty(); });
    if (inbox_.empty()) return std::nullopt;
    std::string line = inbox_.front();
    inbox_.pop_front();
    return line;
  }

  static std::string error(const std::optional<std::string>& id, const std::string& kind, const std::string& text) {
    return "{\"type\":\"error\",\"id\":" + (id ? quote(*id) : "null") + ",\"class\":\"" + kind + "\",\"message\":" + quote(text) + "}";
  }

  std::string answer(const Json& message) {
    const Json* type = message.find("type");
    std::string kind = type ? type->text : "";
    if (kind == "hello") return hello(message);
    if (kind == "load") return load(message);
    if (kind == "run") return run(message);
    throw Refusal{"unsupported", std::string(NAME) + " doesn't do that"};
  }

  static std::string hello(const Json& message) {
    const Json* protocol = message.find("protocol");
    if (protocol && protocol->number != 1) throw Refusal{"unsupported", "protocol 1 is spoken here, and no other"};
    std::vector<std::string> all = {"tokens", "embeddings", "ln_f", "logits", "logits.last", "argmax", "next.probs"};
    for (const char* part : {"ln_1", "attn.q", "attn.k", "attn.v", "attn.cache.k", "attn.cache.v", "attn.scores", "attn.probs",
                             "attn.context", "attn.out", "resid_mid", "ln_2", "mlp.fc", "mlp.act", "mlp.out"})
      all.push_back(std::string("h.*.") + part);
    // `*` crosses dots, so that the blocks' own outputs must be named one by one.
    for (int i = 0; i < 100; ++i) all.push_back("h." + std::to_string(i));
    std::string missing, can;
    for (const std::string& point : all)
      if (!is_shown(point))
        missing += (missing.empty() ? "" : ",") + ("{\"point\":" + quote(point) + ",\"reason\":" + quote(WHY_NOT) + "}");
    for (const std::string& capability : CAPABILITIES) can += (can.empty() ? "" : ",") + quote(capability);
    return std::string("{\"type\":\"hello\",\"protocol\":1,\"name\":") + quote(NAME) + ",\"version\":" + quote(VERSION) +
           ",\"worth\":" + quote(WORTH) + ",\"capabilities\":[" + can + "],\"unsupported\":[" + missing +
           "],\"recipes\":{\"*\":" + quote(RECIPE) + "},\"deviations\":[]}";
  }

  std::string load(const Json& message) {
    auto started = std::chrono::steady_clock::now();
    engine_.reset(), sizes_.reset();  // one that fails leaves none
    const Json *folder = message.find("model_dir"), *dtype = message.find("dtype"), *threads = message.find("threads");
    if (!folder || folder->kind != Json::String) throw Refusal{"input", "`model_dir` isn't a path"};
    if (dtype && dtype->text != "f32") throw Refusal{"unsupported", std::string(NAME) + " computes in f32 only"};
    auto sizes = std::make_unique<Sizes>(folder->text + "/config.json");
    Weights weights(folder->text + "/model.safetensors", *sizes);
    engine_ = std::make_unique<Engine>(*sizes, weights, threads ? size_t(std::max(threads->number, 1.0)) : 1);
    sizes_ = std::move(sizes);
    return "{\"type\":\"loaded\",\"seconds\":" + std::to_string(since(started)) + "}";
  }

  std::string run(const Json& message) {
    const Json* name = message.find("id");
    if (!name || name->kind != Json::String) throw Refusal{"input", "`id` isn't a string"};
    if (!engine_) throw Refusal{"input", "no model is loaded"};
    Ids ids = tokens(message.find("ids"), "ids");
    if (ids.empty()) throw Refusal{"input", "`ids` is empty"};
    size_t n = 0;
    if (const Json* wanted = message.find("max_new_tokens")) {
      if (wanted->kind != Json::Int || wanted->number < 0 || wanted->number > 1e15)
        throw Refusal{"input", "`max_new_tokens` isn't a whole number from 0"};
      n = size_t(wanted->number);
    }
    size_t needed = ids.size() + std::max<size_t>(n, 1) - 1;
    if (needed > sizes_->positions)
      throw Refusal{"input", "context overflow: " + std::to_string(needed) + " positions, the model has " + std::to_string(sizes_->positions)};
    std::optional<Ids> forced;
    if (const Json* given = message.find("forced_ids")) {
      forced = tokens(given, "forced_ids");
      if (forced->size() != n) throw Refusal{"input", "`forced_ids` doesn't have max_new_tokens entries"};
    }
    if (const Json* inject = message.find("inject"); inject && !inject->items.empty())
      throw Refusal{"unsupported", std::string(NAME) + " can't inject"};
    if (const Json* sampling = message.find("sampling"))
      if (const Json* temperature = sampling->find("temperature"); temperature && temperature->number != 0)
        throw Refusal{"unsupported", std::string(NAME) + " can't sample"};
    std::vector<std::string> globs;
    if (const Json* points = message.find("points")) {
      if (points->kind != Json::Array) throw Refusal{"input", "`points` isn't a list"};
      for (const Json& glob : points->items) globs.push_back(glob.text);
    }
    const Json* out_dir = message.find("out_dir");
    Show show(name->text, globs, out_dir ? out_dir->text : "");
    if (!out_dir || out_dir->kind != Json::String)
      for (size_t i = 0; i < sizes_->layers; ++i)
        for (std::string point : SHOWN) {
          if (point.rfind("h.i", 0) == 0) point.replace(2, 1, std::to_string(i));
          if (show.wants(point)) throw Refusal{"input", "`out_dir` is missing: there is nowhere to put the tensors"};
        }

    engine_->reset();
    Ids generated;
    double seconds[2] = {0, 0};
    for (size_t step = 0; step < std::max<size_t>(n, 1); ++step) {
      {
        std::lock_guard<std::mutex> held(lock_);
        if (cancelled_.count(name->text)) throw Refusal{"resource", "cancelled"};
      }
      auto started = std::chrono::steady_clock::now();
      show.step = step;
      show("tokens", ids, {ids.size()});
      std::vector<float> last = engine_->forward(ids, show);
      show("logits.last", last, {last.size()});
      int64_t best = std::max_element(last.begin(), last.end()) - last.begin();  // the first of equals
      show("argmax", Ids{best}, {});
      if (show.wants("next.probs")) show("next.probs", softmax(last), {last.size()});
      ids = {forced && n ? (*forced)[step] : best};
      if (step < n) generated.push_back(ids[0]);
      seconds[step > 0] += since(started);
    }
    return "{\"type\":\"done\",\"id\":" + quote(name->text) + ",\"generated\":" + listed(generated) +
           ",\"text\":null,\"seconds\":{\"prefill\":" + std::to_string(seconds[0]) + ",\"decode\":" + std::to_string(seconds[1]) + "}}";
  }

  Ids tokens(const Json* list, const char* field) const {
    Ids ids;
    if (!list || list->kind != Json::Array) throw Refusal{"input", std::string("`") + field + "` isn't a list"};
    for (const Json& id : list->items) {
      if (id.kind != Json::Int || id.number < 0 || id.number >= double(sizes_->vocab))
        throw Refusal{"input", std::string("`") + field + "` holds something else than token ids of this vocabulary"};
      ids.push_back(int64_t(id.number));
    }
    return ids;
  }

  static double since(std::chrono::steady_clock::time_point started) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  }
};

int main() {
  // Messages get the real stdout; whatever else prints goes to stderr.
  messages = fdopen(dup(1), "w");
  dup2(2, 1);
  std::signal(SIGPIPE, SIG_IGN);
  Adapter().serve();
}
