"""What the daemon promises of every answer beyond its schema, and bounds for what generated requests may cost."""

import functools
import json
import re
import zlib

import jsonschema_rs
import schemathesis
from schemathesis.core.failures import Failure

# nano has 256 positions and 50,257 tokens. A generated request is answered in a moment, whatever it asks.
POSITIONS = 256
VOCABULARY = 50257
MOST_TOKENS = 8
MOST_ANSWERS = 4
POINTS = ["tokens", "h.0.ln_1", "h.*.attn.probs", "h.3", "*.q", "logits.last", "argmax", "next.probs"]

# Why a request that fits the schema may be refused all the same, by status: what no schema can say.
REASONS = {
    400: [
        r"^\d+ prompt tokens and max_tokens \d+ do not fit the context of \d+$",
        r"^(prompt|ids|forced_ids) has token id \d+; expected ids below \d+$",
        r"^prompt has no tokens; expected one or more$",
        r"^max_tokens is 0; expected 1 or more, or echo$",
        r"^\d+ prompts with n \d+ are too many; expected up to 128 answers in all$",
        r"^logit_bias gives \"\d+\" \S+; expected a token id below \d+",
        r"^forced_ids has \d+; expected max_new_tokens of them, \d+$",
        r"^points: .* matches none; llorch-diff points lists them$",
        # Whole numbers beyond 64 bits: JSON Schema has no such bounds, and 1e30 is an integer there.
        r"^\w+ is .*(e\+?\d+|\d{16,})\b.*; expected a whole number",
    ],
    404: [r"^the model .* is not here; this daemon serves \"nano\"$"],
    409: [r"^store: there is a .* already; expected another name$"],
    422: [
        r"^best_of is not offered: expected it absent or n, which is \d+$",
        r"^store: this daemon keeps no bundles; start it with --store DIR, or leave it out$",
        r"^the tensors take more than --max-capture of this daemon; ask for a shorter prompt, or for fewer points or steps$",
    ],
}


def whole(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1


def known_ids(value):
    """The same lists of numbers, of which all are tokens."""
    if isinstance(value, list):
        return [known_ids(v) for v in value]
    return int(value) % VOCABULARY if whole(value) else value


def make_answerable(body, salt):
    """Generated names and numbers are hardly ever those that there are: valid data is given some that are."""
    if isinstance(body.get("model"), str):
        body["model"] = "nano"
    for field in ("prompt", "ids", "forced_ids"):
        if isinstance(body.get(field), list):
            body[field] = known_ids(body[field])
    if isinstance(body.get("points"), list):
        body["points"] = [POINTS[(salt + i) % len(POINTS)] for i in range(min(len(body["points"]), 3))]
    if isinstance(body.get("logit_bias"), dict):
        bias = body["logit_bias"].items()
        body["logit_bias"] = {str(zlib.crc32(k.encode(errors="replace")) % VOCABULARY): v for k, v in bias}
    for field in ("max_tokens", "max_new_tokens"):
        if whole(body.get(field)) and body[field] > POSITIONS:
            body[field] = MOST_TOKENS
    if isinstance(body.get("forced_ids"), list):
        body["forced_ids"] = body["forced_ids"][:MOST_TOKENS]
        body["max_new_tokens"] = len(body["forced_ids"])
    if body.get("best_of") is not None:
        body["best_of"] = body.get("n") or 1


@schemathesis.hook
def before_call(context, case, kwargs):
    """Makes a costly request a cheap one of the same kind: valid stays valid, invalid stays invalid."""
    body = case.body
    if not isinstance(body, dict):
        return
    for field, most in (("max_tokens", MOST_TOKENS), ("max_new_tokens", MOST_TOKENS), ("n", MOST_ANSWERS)):
        if whole(body.get(field)) and most < body[field] <= POSITIONS:
            body[field] = most
    salt = zlib.crc32(json.dumps(body, sort_keys=True, default=str).encode())
    # Three of four: the fourth shows how what is not there is refused.
    if case.meta is not None and case.meta.generation.mode.is_positive and salt % 4:
        make_answerable(body, salt >> 2)


def failure(case, title, message):
    return Failure(operation=case.operation.label, title=title, message=message)


@schemathesis.check
def errors_have_openais_form(ctx, response, case):
    """`error` with message, type, param and code, and nothing else; an id on every answer."""
    ids = response.headers.get("x-request-id") or []
    if len(ids) != 1 or not re.fullmatch(r"[\x21-\x7e]{1,128}", ids[0]):
        raise failure(case, "No x-request-id", f"x-request-id: {ids}")
    if response.status_code < 400 or case.method.upper() == "HEAD":
        return
    kinds = response.headers.get("content-type") or []
    if kinds != ["application/json"]:
        raise failure(case, "An error that is not JSON", f"content-type: {kinds}")
    body = response.json()
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or set(body) != {"error"} or set(error) != {"message", "type", "param", "code"}:
        raise failure(case, "An error of another form", f"{body}")
    kinds = {"invalid_request_error", "authentication_error", "rate_limit_error", "server_error"}
    if not isinstance(error["message"], str) or not 0 < len(error["message"]) < 1000 or error["type"] not in kinds:
        raise failure(case, "An error that doesn't say what is wrong", f"{error}")
    for name in (error["param"], error["code"]):
        if name is not None and not re.fullmatch(r"[a-z_]+", name):
            raise failure(case, "An error that no program can read", f"{error}")
    if response.status_code in (429, 503) and not response.headers.get("retry-after"):
        raise failure(case, "No retry-after", f"{error}")


@schemathesis.check
def a_refusal_has_its_reason(ctx, response, case):
    """What fits the schema is answered, or refused for a reason that a schema can't tell."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    status = response.status_code
    if status < 400 or status >= 500 or status in (401, 405):
        return
    message = response.json()["error"]["message"]
    if not any(re.search(reason, message, re.DOTALL) for reason in REASONS.get(status, [])):
        raise failure(case, f"Valid data refused with {status}", message)


@functools.cache
def validator(document):
    return jsonschema_rs.validator_for(json.loads(document))


def completion_of(case):
    components = case.operation.schema.raw_schema["components"]
    return validator(json.dumps({"$ref": "#/components/schemas/Completion", "components": components}))


@schemathesis.check
def a_stream_has_its_form(ctx, response, case):
    """Each event is a line with a completion by the schema; every choice ends once; then comes the end."""
    kinds = response.headers.get("content-type") or [""]
    if response.status_code != 200 or not kinds[0].startswith("text/event-stream"):
        return
    text = response.content.decode()
    # Lines with a colon first are comments, which keep a connection open.
    events = [e for e in text.split("\n\n") if e and not e.startswith(":")]
    if not text.endswith("\n\n") or any(not e.startswith("data: ") or "\n" in e for e in events):
        raise failure(case, "Not server-sent events", text[-300:])
    *chunks, last = [e.removeprefix("data: ") for e in events]
    if last != "[DONE]":
        raise failure(case, "A stream without an end", text[-300:])
    ends = {}
    for chunk in map(json.loads, chunks):
        if not completion_of(case).is_valid(chunk):
            raise failure(case, "An event that is no completion", f"{chunk}")
        for choice in chunk["choices"]:
            if ends.get(choice["index"]):
                raise failure(case, "A choice that goes on after its end", text[-300:])
            ends[choice["index"]] = choice["finish_reason"]
    if not ends or not all(ends.values()):
        raise failure(case, "A choice without an end", f"{ends}")
