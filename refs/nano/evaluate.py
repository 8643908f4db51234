"""Judge a nano on the held-out text: its loss against a unigram and smoothed bigrams
on the very same tokens, the margins of its first choices, and its greedy text after the
prompts of a suite.

    python evaluate.py DATA_DIR MODEL_DIR [--suite FILE] [--json FILE]
"""

import argparse
import json
import tomllib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

VOCABULARY = 50257


def unigram(train, held_out):
    """Additive smoothing (1/2 a token)."""
    counts = np.bincount(train, minlength=VOCABULARY) + 0.5
    return -np.log(counts / counts.sum())[held_out[1:]]


def discounts(counts):
    """Chen and Goodman's three discounts from the counts of counts."""
    n = [np.count_nonzero(counts == k) for k in range(1, 5)]
    y = n[0] / (n[0] + 2 * n[1])
    return np.array([0, 1 - 2 * y * n[1] / n[0], 2 - 3 * y * n[2] / n[1], 3 - 4 * y * n[3] / n[2]])


def bigram(train, held_out, kneser_ney):
    """Interpolated: modified Kneser-Ney, or absolute discounting with the unigram below."""
    pairs = train[:-1].astype(np.int64) * VOCABULARY + train[1:]
    keys, counts = np.unique(pairs, return_counts=True)
    first, second = keys // VOCABULARY, keys % VOCABULARY
    d = discounts(counts)
    if not kneser_ney:
        d = np.full(4, d[1])
        d[0] = 0
    kinds = np.minimum(counts, 3)
    total = np.bincount(first, weights=counts, minlength=VOCABULARY)
    kept = np.bincount(first, weights=d[kinds], minlength=VOCABULARY)  # mass given to the lower order
    if kneser_ney:
        lower = np.bincount(second, minlength=VOCABULARY).astype(np.float64)  # in how many contexts
        e = discounts(lower[lower > 0].astype(np.int64))
        kinds_lower = np.minimum(lower.astype(np.int64), 3)
        freed = e[kinds_lower].sum()
        lower = (lower - e[kinds_lower] + freed / VOCABULARY) / lower.sum()
    else:
        lower = np.bincount(train, minlength=VOCABULARY) + 0.5
        lower = lower / lower.sum()
    assert abs(lower.sum() - 1) < 1e-9
    v, w = held_out[:-1].astype(np.int64), held_out[1:].astype(np.int64)
    wanted = v * VOCABULARY + w
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    count = np.where(keys[at] == wanted, counts[at], 0)
    seen = total[v] > 0
    safe = np.where(seen, total[v], 1)
    p = (count - d[np.minimum(count, 3)]) / safe + np.where(seen, kept[v] / safe, 1.0) * lower[w]
    return -np.log(p)


@torch.no_grad()
def model_losses(model, held_out, length=256):
    """Nats for each token but the first, in windows of `length` that don't overlap; and
    the margin between the first and the second choice."""
    losses, margins, right = [], [], []
    for start in range(0, len(held_out) - 1, length):
        window = torch.from_numpy(held_out[start:start + length + 1].astype(np.int64))[None]
        logits = model(window[:, :-1]).logits[0].float()
        losses.append(F.cross_entropy(logits, window[0, 1:], reduction="none").numpy())
        best = logits.topk(2).values
        margins.append((best[:, 0] - best[:, 1]).numpy())
        right.append((logits.argmax(-1) == window[0, 1:]).numpy())
    return np.concatenate(losses), np.concatenate(margins), np.concatenate(right)


@torch.no_grad()
def greedy(model, ids, count):
    ids, margins = list(ids), []
    for _ in range(count):
        logits = model(torch.tensor([ids])).logits[0, -1].float()
        best = logits.topk(2)
        margins.append(float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    return ids[-count:], margins


def losses_report(data, model):
    train = np.fromfile(data / "train.u16", dtype="<u2")
    held_out = np.fromfile(data / "heldout.u16", dtype="<u2")
    sources = np.fromfile(data / "heldout_sources.u8", dtype="u1")[1:]
    names = list(json.loads((data / "corpus.json").read_text())["sources"])
    losses, margins, right = model_losses(model, held_out)
    columns = {"nano": losses, "unigram": unigram(train, held_out),
               "bigram_absolute_discounting": bigram(train, held_out, False),
               "bigram_kneser_ney": bigram(train, held_out, True)}
    report = {"held_out_tokens": int(losses.size),
              "loss": {k: round(float(v.mean()), 4) for k, v in columns.items()}}
    best_bigram = min(report["loss"]["bigram_absolute_discounting"], report["loss"]["bigram_kneser_ney"])
    report["below_better_bigram"] = round(best_bigram - report["loss"]["nano"], 4)
    report["by_source"] = {n: {k: round(float(v[sources == i].mean()), 3) for k, v in columns.items()}
                           | {"tokens": int((sources == i).sum())} for i, n in enumerate(names)}
    report["top1_right"] = round(float(right.mean()), 4)
    report["margin"] = {f"p{q}": round(float(np.percentile(margins, q)), 3) for q in (5, 25, 50, 75, 95)}
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--suite", type=Path, default=Path(__file__).parents[2] / "golden/suites/canonical.toml")
    parser.add_argument("--greedy-only", action="store_true", help="no losses, only the text")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = GPT2LMHeadModel.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    report = {} if args.greedy_only else losses_report(args.data, model)
    report["greedy"] = {}
    for case in tomllib.loads(args.suite.read_text(encoding="utf-8"))["case"]:
        name, text, ids = case["name"], case["prompt"], case["ids"]
        generated, steps = greedy(model, ids, 40)
        report["greedy"][name] = {
            "prompt": text, "prompt_tokens": len(ids), "generated": generated, "text": tokenizer.decode(generated),
            "distinct_of_first_10": len(set(generated[:10])), "end_of_text": 50256 in generated,
            "margin_min_of_10": round(min(steps[:10]), 4), "margin_median": round(float(np.median(steps)), 3)}
    text = json.dumps(report, indent=1, ensure_ascii=False)
    if args.json:
        args.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
