"""Asks a running daemon through OpenAI's own client: whole, streamed, by ids, with logprobs, errors.

Usage: openai_client.py BASE_URL. Prints one JSON object; any surprise is an exception.
"""

import json
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
(model,) = [m.id for m in client.models.list()]
ask = dict(model=model, prompt="Hello.", max_tokens=10, temperature=0)

whole = client.completions.create(**ask)
by_ids = client.completions.create(**{**ask, "prompt": [15496, 13]})
streamed = "".join(c.choices[0].text for c in client.completions.create(**ask, stream=True))
logprobs = client.completions.create(**ask, logprobs=2).choices[0].logprobs

try:
    client.completions.create(**{**ask, "max_tokens": 10**6})
    error = None
except openai.BadRequestError as e:
    error = {"status": e.status_code, "code": e.code, "param": e.param}

try:
    client.completions.create(**{**ask, "model": "another"})
    missing = None
except openai.NotFoundError as e:
    missing = e.code

print(json.dumps({
    "text": whole.choices[0].text,
    "by_ids": by_ids.choices[0].text,
    "streamed": streamed,
    "usage": whole.usage.model_dump(exclude_none=True),
    "finish": whole.choices[0].finish_reason,
    "tokens": logprobs.tokens,
    "top": [len(t) for t in logprobs.top_logprobs],
    "error": error,
    "missing": missing,
}))
