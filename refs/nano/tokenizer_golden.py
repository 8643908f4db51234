"""Write golden/tokenizer/gpt2.jsonl: 10,000 strings and their ids by tiktoken, a
tokenizer of other hands than the one under test, given the same vocabulary and merges.

    python tokenizer_golden.py TOKENIZER_DIR OUT_FILE

TOKENIZER_DIR holds vocab.json and merges.txt (golden/models/nano will do). The strings
come from a seeded generator, so the file is the same every time. Afterwards Hugging
Face's `tokenizers` is asked for the ids of every string, and any difference is printed.
"""

import json
import os
import sys
from pathlib import Path

os.environ["TIKTOKEN_CACHE_DIR"] = ""  # nothing of an earlier run may be read

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tokenizers import Tokenizer

from strings import strings

COUNT, SEED = 10_000, 20_190_214
END_OF_TEXT = "<|endoftext|>"

# OpenAI's pattern, encoder.py of GPT-2.
PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: python tokenizer_golden.py TOKENIZER_DIR OUT_FILE")
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    ranks = data_gym_to_mergeable_bpe_ranks(
        vocab_bpe_file=str(folder / "merges.txt"), encoder_json_file=str(folder / "vocab.json"))
    reference = tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks,
                                  special_tokens={END_OF_TEXT: 50256}, explicit_n_vocab=50257)
    other = Tokenizer.from_file(str(folder / "tokenizer.json"))

    lines, different = [], []
    for text in strings(COUNT, SEED):
        line = {"text": text, "ids": reference.encode(text, allowed_special="all")}
        if END_OF_TEXT in text:
            line["ids_as_text"] = reference.encode(text, allowed_special=set(), disallowed_special=())
        if reference.decode(line["ids"]) != text:
            sys.exit(f"failed to decode {text!r}: not what was encoded")
        if other.encode(text, add_special_tokens=False).ids != line["ids"]:
            different.append((text, line["ids"], other.encode(text, add_special_tokens=False).ids))
        lines.append(json.dumps(line, separators=(",", ":")))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="ascii")
    print(f"{len(lines)} strings, {sum(len(json.loads(l)['ids']) for l in lines)} ids, {out.stat().st_size} bytes")
    print(f"tokenizers differs on {len(different)}")
    for text, a, b in different[:40]:
        print(f"  {ascii(text)}\n    tiktoken {a}\n    tokenizers {b}")


if __name__ == "__main__":
    main()
