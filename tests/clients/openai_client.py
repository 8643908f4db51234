"""Asks a running daemon through OpenAI's own client: whole, streamed, by ids, with logprobs, many at once, errors.

Usage: openai_client.py BASE_URL [KEY]. Prints one JSON object; any surprise is an exception.
"""

import asyncio
import json
import sys

import openai

BASE_URL = sys.argv[1] + "/v1"
KEY = sys.argv[2] if len(sys.argv) > 2 else None
IDENTITY = dict(base_url=BASE_URL, api_key=KEY or "none", max_retries=0)
client = openai.OpenAI(**IDENTITY)
(model,) = [m.id for m in client.models.list()]
assert client.models.retrieve(model).id == model
ask = dict(model=model, prompt="Hello.", max_tokens=10, temperature=0)
# Not OpenAI's: through the client's own door for such fields.
IDS = {"return_token_ids": True, "ignore_eos": True}


def create(**fields):
    return client.completions.create(**{**ask, **fields})


def refused(kind, asked=client, **fields):
    try:
        asked.completions.create(**{**ask, **fields})
    except kind as e:
        assert e.request_id, "an error without an id"
        return {"status": e.status_code, "code": e.code, "param": e.param, "type": e.type}
    raise AssertionError(f"{fields} was not refused")


def parts(stream):
    """The choices of a stream as they are when whole, and its usage."""
    choices, usage = {}, None
    for chunk in stream:
        assert chunk.object == "text_completion" and chunk.model == model
        if chunk.usage:
            assert chunk.choices == [] and usage is None
            usage = chunk.usage
        for choice in chunk.choices:
            whole = choices.setdefault(choice.index, {"text": "", "finish": None, "logprobs": {}})
            assert whole["finish"] is None, "more after the end"
            whole["text"] += choice.text
            whole["finish"] = choice.finish_reason
            for name, more in (choice.logprobs.model_dump() if choice.logprobs else {}).items():
                whole["logprobs"].setdefault(name, []).extend(more)
    return [choices[i] for i in sorted(choices)], usage


def answers_to_several_prompts():
    one = create(seed=5, temperature=1)
    three = create(seed=5, temperature=1, n=3)
    assert [c.index for c in three.choices] == [0, 1, 2]
    assert three.choices[0].text == one.choices[0].text
    assert len({c.text for c in three.choices}) == 3, "three draws gave one text"
    assert three.usage.prompt_tokens == 2 and three.usage.completion_tokens == 30

    prompts = ["Hello.", "The LORD", "Ça va? 東京"]
    alone = [create(prompt=p).choices[0].text for p in prompts]
    together = create(prompt=prompts)
    assert [c.text for c in together.choices] == alone
    assert [c.index for c in together.choices] == [0, 1, 2]
    twice = create(prompt=prompts, n=2)
    assert [c.text for c in twice.choices] == [t for t in alone for _ in range(2)]
    echo = create(prompt=prompts, max_tokens=0, echo=True, extra_body=IDS)
    ids = create(prompt=[c.token_ids for c in echo.choices])
    assert [c.text for c in ids.choices] == alone

    drawn = dict(prompt=prompts, n=2, seed=3, temperature=1, logprobs=1)
    streamed, usage = parts(create(**drawn, stream=True, stream_options={"include_usage": True}))
    whole = create(**drawn)
    assert [s["text"] for s in streamed] == [c.text for c in whole.choices]
    assert [s["finish"] for s in streamed] == [c.finish_reason for c in whole.choices]
    assert [s["logprobs"] for s in streamed] == [c.logprobs.model_dump() for c in whole.choices]
    assert usage == whole.usage


def echo_with_logprobs():
    prompt = "It was a bright morning in the early spring."
    only = create(prompt=prompt, max_tokens=0, echo=True, logprobs=3)
    (choice,) = only.choices
    l = choice.logprobs
    assert choice.text == prompt == "".join(l.tokens)
    assert l.token_logprobs[0] is None and l.top_logprobs[0] is None
    assert all(p < 0 for p in l.token_logprobs[1:])
    offsets = [len("".join(l.tokens[:i])) for i in range(len(l.tokens))]
    assert l.text_offset == offsets, (l.text_offset, offsets)
    assert only.usage.completion_tokens == 0 and only.usage.prompt_tokens == len(l.tokens)
    for token, p, top in list(zip(l.tokens, l.token_logprobs, l.top_logprobs))[1:]:
        assert 3 <= len(top) <= 4 and p <= max(top.values()) and top[token] == p, (token, p, top)

    # What follows has the same logprobs with the prompt before it as without.
    longer = create(prompt=prompt, max_tokens=6, echo=True, logprobs=3).choices[0]
    new = create(prompt=prompt, max_tokens=6, logprobs=3).choices[0]
    assert longer.text == prompt + new.text
    n = len(l.tokens)
    assert longer.logprobs.tokens == l.tokens + new.logprobs.tokens
    assert longer.logprobs.token_logprobs == l.token_logprobs + new.logprobs.token_logprobs
    assert longer.logprobs.text_offset[n:] == [len(prompt) + o for o in new.logprobs.text_offset]
    assert create(prompt=prompt, max_tokens=0, echo=True).choices[0].text == prompt

    # Characters that are several tokens: as many entries as tokens, offsets within the text.
    other = "naïve 東京 🦀"
    split = create(prompt=other, max_tokens=0, echo=True, logprobs=0).choices[0]
    offsets = split.logprobs.text_offset
    assert split.text == other and offsets == sorted(offsets) and offsets[-1] < len(other)
    assert any(t.startswith("bytes:") for t in split.logprobs.tokens)


def what_is_chosen():
    whole = create(max_tokens=24).choices[0].text
    middle = whole[10:14]
    for stop in (middle, ["never in it", middle]):
        stopped = create(max_tokens=24, stop=stop).choices[0]
        assert stopped.text == whole[: whole.find(middle)] and stopped.finish_reason == "stop"
        (streamed,), _ = parts(create(max_tokens=24, stop=stop, stream=True))
        assert (streamed["text"], streamed["finish"]) == (stopped.text, "stop")

    a, b = (create(temperature=1, seed=11, max_tokens=24) for _ in range(2))
    assert a.choices[0].text == b.choices[0].text
    texts = {create(temperature=1, max_tokens=24).choices[0].text for _ in range(4)}
    assert len(texts) > 1, "no seed is some seed each time"

    forced = create(logit_bias={"262": 100}, max_tokens=4).choices[0]
    assert forced.text == " the" * 4, forced.text
    banned = create(logit_bias={"198": -100}, extra_body=IDS)
    assert 198 in create(extra_body=IDS).choices[0].token_ids
    assert 198 not in banned.choices[0].token_ids

    # nano repeats itself under greedy choice; penalties are there to end that.
    plain, *others = (
        create(prompt="Once upon a time", max_tokens=40, extra_body=IDS, **penalty).choices[0].token_ids
        for penalty in ({}, {"presence_penalty": 2}, {"frequency_penalty": 2})
    )
    for other in others:
        assert len(set(other)) > len(set(plain)), (plain, other)


async def at_once(prompts):
    async with openai.AsyncOpenAI(**IDENTITY) as many:
        asked = [many.completions.create(**{**ask, **p}) for p in prompts]
        return [a.choices[0].model_dump() for a in await asyncio.gather(*asked)]


def eight_at_once():
    starts = ["Hello.", "The", "A man", "I", "King", "In the beginning", "x = 1\n", "Where is"]
    kinds = [dict(temperature=0), dict(temperature=0.8, top_p=0.9), dict(temperature=1, logprobs=2)]
    prompts = [dict(prompt=p, seed=i, max_tokens=8 + 3 * i, **kinds[i % 3]) for i, p in enumerate(starts)]
    alone = [create(**p).choices[0].model_dump() for p in prompts]
    for _ in range(3):
        assert asyncio.run(at_once(prompts)) == alone


def clients_that_go_away():
    impatient = client.with_options(timeout=0.005)
    try:
        impatient.completions.create(**{**ask, "max_tokens": 200}, extra_body=IDS)
    except openai.APITimeoutError:
        pass
    with create(max_tokens=200, stream=True, extra_body=IDS) as stream:
        next(iter(stream))
    assert create().choices[0].text == whole.choices[0].text


def wrong_requests():
    for fields, param in [
        ({"temperature": 3}, "temperature"),
        ({"logprobs": 6}, "logprobs"),
        ({"n": 0}, "n"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"logit_bias": {"50257": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"prompt": [50257]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["1", "2", "3", "4", "5"]}, "stop"),
        ({"stream": True, "max_tokens": 10**6}, "max_tokens"),
    ]:
        found = refused(openai.BadRequestError, **fields)
        assert found["param"] == param and found["type"] == "invalid_request_error", (fields, found)
    for fields in ({"suffix": " and so on"}, {"best_of": 2}):
        found = refused(openai.UnprocessableEntityError, **fields)
        assert found["param"] in fields and found["code"] == "unsupported", found
    try:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello."}])
    except openai.NotFoundError as e:
        assert e.code == "not_found", e
    else:
        raise AssertionError("GPT-2 chats")


def keys():
    """None without a key: then any will do."""
    if KEY is None:
        return None
    for wrong in (KEY + "x", KEY[:-1], "none"):
        other = client.with_options(api_key=wrong)
        found = refused(openai.AuthenticationError, other)
        assert found["type"] == "authentication_error", found
        assert refused(openai.AuthenticationError, other, stream=True) == found
    return found


whole = create()
by_ids = create(prompt=[15496, 13])
(streamed,), usage = parts(create(stream=True, stream_options={"include_usage": True}))
assert usage == whole.usage and whole._request_id
logprobs = create(logprobs=2).choices[0].logprobs
error = refused(openai.BadRequestError, max_tokens=10**6)
missing = refused(openai.NotFoundError, model="another")

answers_to_several_prompts()
echo_with_logprobs()
what_is_chosen()
eight_at_once()
clients_that_go_away()
wrong_requests()

print(json.dumps({
    "text": whole.choices[0].text,
    "by_ids": by_ids.choices[0].text,
    "streamed": streamed["text"],
    "usage": whole.usage.model_dump(exclude_none=True),
    "finish": whole.choices[0].finish_reason,
    "tokens": logprobs.tokens,
    "top": [len(t) for t in logprobs.top_logprobs],
    "error": {k: error[k] for k in ("status", "code", "param")},
    "missing": missing["code"],
    "key": keys(),
}))
