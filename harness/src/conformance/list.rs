//! All checks, in the order in which they are made: one process as far as it goes, then a second one.

use super::check::{Check, Needs};
use super::{flow, greeting, loading, optional, refusals, repeat, running};

macro_rules! checks {
    ($($slug:literal $needs:ident $section:literal $test:path: $says:literal, $mend:literal;)*) => {
        &[$(Check {
            slug: $slug, says: $says, section: $section, mend: $mend, needs: Needs::$needs, test: $test,
        }),*]
    };
}

pub static CHECKS: &[Check] = checks! {
    "hello" Nothing "hello" greeting::hello:
        "says hello before anything else",
        "Answer {\"type\":\"hello\",\"protocol\":1} at once, before heavy imports, with one line on the real stdout, and flush it.";
    "before_load" Hello "error" loading::before_load:
        "a run without a model is an error of class input",
        "Keep whether a model is loaded, and refuse `run` until it is.";
    "load" Hello "load" loading::load:
        "loads a model, and loads it again",
        "Read config.json and model.safetensors (F16 or F32, keys with or without `transformer.`) from model_dir; answer `loaded`.";
    "run" Load "run" running::plain:
        "a run of the prefill alone ends with done",
        "Feed `ids` and answer {\"type\":\"done\",\"id\":…,\"generated\":[],\"text\":null,\"seconds\":{}}.";
    "defaults" Run "run" running::defaults:
        "a run with nothing but id and ids is the prefill alone",
        "points, max_new_tokens, forced_ids, sampling, inject and out_dir may be absent: the table of `run` has their defaults.";
    "points" Run "Points" running::points:
        "every point comes once a step, unless it is unsupported",
        "Send each point under its canonical name; list in `unsupported` of hello, with the reason, what can't be captured.";
    "shapes" Run "Points" running::shapes:
        "every point has the shape of the contract",
        "Drop the batch axis; heads come first ([H,T,D]); T is the tokens of this step, S the keys it sees.";
    "dtypes" Run "Points" running::dtypes:
        "every point has its dtype",
        "Write tokens and argmax as i64, everything else as the dtype that is computed in.";
    "files" Run "Tensor files" running::files:
        "every file is whole, in out_dir, and what its message says",
        "Close the file before its message is sent; C order, little endian; a file of its own for each point and step, below out_dir.";
    "finite" Run "Tensor files" running::finite:
        "values are finite, but for masked scores",
        "Look for values that are never written, an overflow, or -inf in causal cells of scores.";
    "steps" Run "run" running::step_order:
        "tensors of a step come before those of the next",
        "Send a step's tensors when the step is done, not at the end of the run in some other order.";
    "consistent" Run "run" running::consistent:
        "tokens, caches, argmax and generated tell one story",
        "Step n is fed the n-th token generated; cache.k ends with this step's k; argmax is the lowest id of the largest of logits.last.";
    "prefill" Run "run" running::prefill_only:
        "N = 0 and N = 1 are one step, and choose 0 and 1 tokens",
        "There are max(N, 1) steps; `generated` holds N ids; the last token chosen is not fed.";
    "one_token" Run "run" running::one_token:
        "a prompt of one token",
        "Keep the axis T where T is 1: [H,1,D], not [H,D].";
    "full_context" Run "run" running::full_context:
        "a prompt as long as the model's context, with its largest tensor",
        "len(ids) + max(N, 1) − 1 positions must fit, and exactly n_positions do. Tensors travel by file, whatever their size.";
    "globs" Run "run" running::globs:
        "globs choose the points; one that matches nothing is fine",
        "`*` is any run of characters, dots included; a pattern that matches no point is no error.";
    "out_dir" Run "run" running::out_dir:
        "out_dir is made, and nothing is written beside it",
        "Make out_dir with its parents before the first tensor, and write below it only.";
    "forced_ids" Run "run" running::forced:
        "forced ids are fed and come back; argmax stays the model's own",
        "With forced_ids, feed forced_ids[n−1] at step n, return them as `generated`, and leave argmax and next.probs alone.";
    "probabilities" Run "Sampling" optional::probabilities:
        "next.probs at temperature 0 is softmax(logits.last)",
        "No temperature and no filter at temperature 0: softmax of the last row, over the whole vocabulary.";
    "sample" Run "Sampling" optional::sample:
        "temperature, top_k, top_p and seed are heeded",
        "In this order: logits / temperature, top_k, top_p, softmax; draw from that, with a generator seeded by `seed` for each run.";
    "draw" Run "draw" optional::draw:
        "draws follow the given logits, and the seed",
        "Seed the run's own generator once with `seed` and draw `draws` tokens one after another; write them as i64 `draws`.";
    "inject" Run "run" running::inject:
        "an injected value is captured there and read by what follows",
        "Replace the value before anything reads it, at that step alone; a file of another shape is an error of class input.";
    "tokenize" Load "tokenize" optional::tokenize:
        "text becomes GPT-2's tokens, and generated ids become text",
        "Add no tokens; <|endoftext|> in the text is token 50256; `text` of done is the decoded `generated`.";
    "undeclared" Run "hello" greeting::undeclared:
        "what isn't declared is refused, not passed over",
        "Answer requests for a capability that hello doesn't declare with an error of class unsupported.";
    "empty_prompt" Run "error" refusals::empty_prompt:
        "an empty prompt is refused",
        "`ids` holds one token at least: check it before anything is computed.";
    "bad_ids" Run "error" refusals::bad_ids:
        "ids outside the vocabulary, or no ids, are refused",
        "Check that `ids` is a list of whole numbers from 0 to vocab_size − 1 before anything is computed; -1 is no last row.";
    "too_long" Run "run" refusals::too_long:
        "what doesn't fit into the context is refused",
        "Check len(ids) + max(N, 1) − 1 against n_positions before anything is computed; never cut the prompt.";
    "bad_forced" Run "error" refusals::bad_forced:
        "forced ids of the wrong number, or outside the vocabulary, are refused",
        "`forced_ids` holds max_new_tokens ids of the vocabulary.";
    "bad_fields" Run "error" refusals::bad_fields:
        "a run with fields that make no sense is refused",
        "Check each field's type; a request whose id isn't a string is answered without one.";
    "unknown_type" Run "Transport" greeting::unknown_type:
        "an unknown type of message is answered by unsupported",
        "Answer an unknown `type` with an error of class unsupported, and go on.";
    "bad_lines" Run "Transport" greeting::bad_lines:
        "a line that is no JSON object is answered by an error without id",
        "Catch what the JSON parser throws, answer with class input and id null, and read the next line; pass over blank lines.";
    "in_turn" Run "Transport" flow::in_turn:
        "requests that wait are answered one after another",
        "Keep requests in a queue; end one with done or error before the next one's first message.";
    "ends_once" Run "run" flow::ends_once:
        "a run ends with exactly one done",
        "Send done once, last, and nothing of this run after it.";
    "cancel" Run "cancel" flow::cancel:
        "a cancelled run ends with class resource and message cancelled",
        "Read stdin in a thread of its own, note the ids of `cancel`, and look at them before each step. `cancel` itself isn't answered.";
    "leftovers" Run "Transport" repeat::leftovers:
        "nothing of a run is left over for the next",
        "Make the key/value cache, the positions and the generator anew for each run.";
    "f64" Run "load" optional::f64:
        "f64 where it is declared; else it is refused",
        "Compute in the dtype that `load` asks for, or answer with an error of class unsupported.";
    "no_such_model" Run "load" loading::no_such_model:
        "a folder that isn't there is refused, and leaves no model",
        "Drop the old model before the new one is read; answer with class input when it can't be.";
    "damaged_model" Run "load" loading::damaged_model:
        "a missing or misshapen tensor is refused",
        "Check name and shape of every tensor against config.json; nothing is initialised at random.";
    "second_load" Run "load" loading::second_load:
        "a second load replaces the model, sizes included",
        "Take every size from the config.json of the latest load; keep no table of the model before.";
    "end_of_stdin" Run "Transport" flow::end_of_stdin:
        "at the end of stdin it finishes what was asked, and exits with 0",
        "When stdin ends, answer what was read, then exit with code 0 and end what you started.";
    "other_protocol" Hello "Transport" greeting::another_protocol:
        "another protocol number is refused",
        "Answer a hello whose `protocol` isn't 1 with an error of class unsupported.";
    "unknown_fields" Run "Transport" greeting::unknown_fields:
        "unknown fields are ignored",
        "Read the fields that you know and leave the rest alone.";
    "deterministic" Run "hello" repeat::deterministic:
        "the same request gives the same bytes, here and in another process",
        "Fix the order of sums (threads, atomics, timing), or take `deterministic` out of capabilities.";
    "idle_end" Load "Transport" flow::idle_end:
        "at the end of stdin it exits with 0 when there is nothing to do",
        "Leave the loop when stdin ends, and exit with code 0.";
    "stdout" Hello "Transport" optional::stdout:
        "stdout holds nothing but messages",
        "Keep a duplicate of descriptor 1 for messages, and point 1 at stderr before anything else is imported.";
};
