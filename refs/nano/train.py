"""Train nano: a GPT-2 of 4 layers, 4 heads, 128 wide, over GPT-2's own vocabulary.

    python train.py DATA_DIR OUT_DIR --minutes 75      schedule by wall clock
    python train.py DATA_DIR OUT_DIR --steps 6000      schedule by steps

DATA_DIR is what prepare.py wrote. OUT_DIR gets config.json and model.safetensors
(F16) every few minutes and at the end, and log.jsonl; stderr says how far it is.

Two things make a token cheap enough for one processor core. The loss of most
positions is a sampled softmax: its classes are the batch's own targets and a few
thousand random ones, each weighted by one over its chance of being there, so that
the expected normaliser is the full one. A few positions of each step get the exact
loss over all 50,257 classes, which also pushes down the rows that never occur in
the text; the last part of the training uses the exact loss for more of them.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from progress import Progress

VOCABULARY = 50257


def config(dropout):
    return GPT2Config(
        vocab_size=VOCABULARY, n_positions=256, n_embd=128, n_layer=4, n_head=4, n_inner=None,
        activation_function="gelu_new", layer_norm_epsilon=1e-5, initializer_range=0.02,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=0.0,
        bos_token_id=50256, eos_token_id=50256, tie_word_embeddings=True,
    )


class Loss:
    """Cross-entropy over sampled classes for most positions, exact for `exact` of them."""

    def __init__(self, train, batch_tokens, random_classes, dtype):
        counts = np.bincount(train, minlength=VOCABULARY).astype(np.float64)
        missing = (1 - counts / counts.sum()) ** batch_tokens * (1 - random_classes / VOCABULARY)
        self.minus_log_chance = torch.from_numpy(-np.log1p(-missing)).float()
        self.random_classes = random_classes
        self.position_of = torch.zeros(VOCABULARY, dtype=torch.long)
        self.dtype = dtype

    def __call__(self, hidden, targets, weight, exact):
        """hidden [N,E], targets [N], weight [V,E]; the mean loss of the N positions."""
        n = targets.numel()
        loss = hidden.new_zeros(())
        if exact:
            logits = hidden[:exact].to(self.dtype) @ weight.to(self.dtype).T
            loss = loss + F.cross_entropy(logits.float(), targets[:exact], reduction="sum")
        if exact < n:
            targets, hidden = targets[exact:], hidden[exact:]
            # classes drawn at random may repeat a target: unique() folds them
            classes = torch.cat([targets, torch.randint(VOCABULARY, (self.random_classes,))]).unique()
            self.position_of[classes] = torch.arange(classes.numel())
            at = self.position_of[targets]
            correction = self.minus_log_chance[classes]
            rows = torch.arange(targets.numel())
            logits = hidden.to(self.dtype) @ weight[classes].to(self.dtype).T
            logits = logits.float() + correction
            # a position's own target is there for certain
            logits[rows, at] -= correction[at]
            loss = loss + F.cross_entropy(logits, at, reduction="sum")
        return loss / n


class Muon:
    """Momentum whose update is made orthogonal (Newton-Schulz) for the blocks' matrices,
    all of one shape at once, in f32; q, k and v count as three matrices. The step has the
    size of AdamW's (0.2 a weight)."""

    def __init__(self, matrices, momentum=0.95, weight_decay=0.1):
        self.momentum, self.weight_decay = momentum, weight_decay
        self.param_groups = [{"params": matrices, "lr": 0.0}]
        self.buffers = [torch.zeros_like(p) for p in matrices]

    @torch.no_grad()
    def step(self):
        lr = self.param_groups[0]["lr"]
        by_shape = {}
        for p, buffer in zip(self.param_groups[0]["params"], self.buffers):
            buffer.lerp_(p.grad, 1 - self.momentum)
            update = p.grad.lerp(buffer, self.momentum)
            rows, columns = p.shape
            parts = update.view(rows, 3, columns // 3).unbind(1) if columns == 3 * rows else [update]
            for i, part in enumerate(parts):
                tall = part.shape[0] > part.shape[1]
                part = part.T if tall else part
                by_shape.setdefault(part.shape, []).append((p, i, len(parts), tall, part))
            p.mul_(1 - lr * self.weight_decay)
        for shape, entries in by_shape.items():
            x = torch.stack([e[4] for e in entries])
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):
                a = x @ x.mT
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
            x = x * (-lr * 0.2 * max(shape) ** 0.5)
            for (p, i, parts, tall, _), update in zip(entries, x):
                target = p.view(p.shape[0], parts, p.shape[1] // parts)[:, i] if parts > 1 else p
                target.add_(update.T if tall else update)

    def zero_grad(self, set_to_none=True):
        for p in self.param_groups[0]["params"]:
            p.grad = None


@torch.no_grad()
def held_out_loss(model, tokens, length=256, stride=256, limit=None, tell=lambda fraction: None):
    """Mean nats a token over consecutive windows, every token but the first predicted once."""
    model.eval()
    total = count = 0
    starts = list(range(0, len(tokens) - 1, stride))[:limit]
    for n, start in enumerate(starts):
        tell(n / len(starts))
        window = torch.from_numpy(tokens[start:start + length + 1].astype(np.int64))[None]
        if window.shape[1] < 2:
            break
        logits = model(window[:, :-1]).logits[0].float()
        total += F.cross_entropy(logits, window[0, 1:], reduction="sum").item()
        count += window.shape[1] - 1
    model.train()
    return total / count


def save(model, folder):
    """Hugging Face layout, F16 storage; the tied head is left out as in OpenAI's files."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.to(torch.float16).contiguous() for k, v in model.state_dict().items()
               if k != "lm_head.weight" and not k.endswith((".attn.bias", ".attn.masked_bias"))}
    save_file(tensors, folder / "model.safetensors.part", metadata={"format": "pt"})
    (folder / "model.safetensors.part").rename(folder / "model.safetensors")
    keys = ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "activation_function",
            "layer_norm_epsilon", "initializer_range", "resid_pdrop", "embd_pdrop", "attn_pdrop",
            "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn",
            "bos_token_id", "eos_token_id", "tie_word_embeddings", "use_cache"]
    values = {k: getattr(model.config, k) for k in keys}
    values = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "torch_dtype": "float16",
              "n_ctx": values["n_positions"], **values}
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def batches(train, batch, length, generator):
    """Random windows, each epoch at a new offset and in a new order."""
    while True:
        offset = int(torch.randint(length, (1,), generator=generator))
        count = (len(train) - 1 - offset) // length
        order = torch.randperm(count, generator=generator).numpy()
        for i in range(0, count - batch + 1, batch):
            starts = offset + order[i:i + batch] * length
            windows = np.stack([train[s:s + length + 1] for s in starts]).astype(np.int64)
            windows = torch.from_numpy(windows)
            yield windows[:, :-1].contiguous(), windows[:, 1:].reshape(-1).contiguous()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--muon-lr", type=float, default=3e-3, help="0: AdamW for everything")
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--random-classes", type=int, default=1024)
    parser.add_argument("--exact", type=int, default=128, help="positions a step with the exact loss")
    parser.add_argument("--exact-end", type=int, default=1024, help="the same in the last tenth")
    parser.add_argument("--warmup", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--f32", action="store_true", help="no bfloat16 products")
    args = parser.parse_args()
    if (args.minutes is None) == (args.steps is None):
        parser.error("one of --minutes and --steps")

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    train = np.fromfile(args.data / "train.u16", dtype="<u2")
    held_out = np.fromfile(args.data / "heldout.u16", dtype="<u2")
    model = GPT2LMHeadModel._from_config(config(args.dropout), attn_implementation="sdpa")
    model.train()
    dtype = torch.float32 if args.f32 else torch.bfloat16
    loss_of = Loss(train, args.batch * args.length, args.random_classes, dtype)

    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".h." in n]
    embeddings = [p for n, p in model.named_parameters() if p.ndim == 2 and ".h." not in n]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": embeddings, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
    optimizers = []
    if args.muon_lr:
        optimizers.append((Muon(matrices), args.muon_lr))
    else:
        groups.append({"params": matrices, "weight_decay": 0.1})
    optimizers.append((torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True), args.lr))

    args.out.mkdir(parents=True, exist_ok=True)
    log = (args.out / "log.jsonl").open("a")
    start = last_save = last_log = time.monotonic()
    step = tokens = 0
    running = []
    with Progress("training nano") as shown:
        for inputs, targets in batches(train, args.batch, args.length, generator):
            elapsed = time.monotonic() - start
            progress = step / args.steps if args.steps else elapsed / (args.minutes * 60)
            if progress >= 1:
                break
            scale = min(1.0, progress / args.warmup + 0.01) * (0.5 + 0.5 * math.cos(math.pi * progress))
            for optimizer, rate in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * scale
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not args.f32):
                hidden = model.transformer(inputs, use_cache=False).last_hidden_state
            hidden = hidden.reshape(-1, hidden.shape[-1])
            shuffled = torch.randperm(targets.numel())
            exact = args.exact_end if progress > 0.9 else args.exact
            loss = loss_of(hidden[shuffled], targets[shuffled], model.transformer.wte.weight, exact)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, _ in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            step += 1
            tokens += targets.numel()
            running.append(loss.item())
            shown.tell(progress, f"step {step}, loss {running[-1]:.3f}")
            now = time.monotonic()
            if now - last_log > 30:
                record = {"step": step, "tokens": tokens, "epochs": round(tokens / len(train), 3),
                          "progress": round(progress, 4), "seconds": round(now - start, 1), "loss": round(np.mean(running), 4)}
                running, last_log = [], now
                if now - last_save > 240:
                    record["held_out_sample"] = round(held_out_loss(model, held_out, limit=64), 4)
                    save(model, args.out)
                    last_save = now
                print(json.dumps(record), file=log, flush=True)
    save(model, args.out)
    seconds = round(time.monotonic() - start, 1)
    with Progress("loss on held-out text") as shown:
        loss = held_out_loss(model, held_out, tell=shown.tell)
    record = {"step": step, "tokens": tokens, "epochs": round(tokens / len(train), 3),
              "seconds": seconds, "held_out": round(loss, 4),
              "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()
                            if k not in ("data", "out")}}
    print(json.dumps(record), file=log, flush=True)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
