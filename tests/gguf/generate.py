"""Greedy text by llama-cpp-python's own high-level API, from a GGUF file alone.

    python generate.py FILE.gguf NEW_TOKENS PROMPT...

Prints a line of JSON for each prompt: its ids, and the text that follows.
"""

import json
import sys

from llama_cpp import Llama

F32 = 0


def main():
    file, count, *prompts = sys.argv[1:]
    model = Llama(file, n_ctx=0, n_threads=2, type_k=F32, type_v=F32, verbose=False)
    for prompt in prompts:
        answer = model.create_completion(prompt, max_tokens=int(count), temperature=0)
        ids = model.tokenize(prompt.encode(), add_bos=False, special=True)
        print(json.dumps({"ids": ids, "text": answer["choices"][0]["text"]}))


if __name__ == "__main__":
    main()
