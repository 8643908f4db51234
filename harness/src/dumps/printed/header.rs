//! The line above a node's elements:
//! `common_debug_cb_eval: attn_norm-0 = (f32) ADD(norm_w-0{128, 2, 1, 1}, …}) = {128, 2, 1, 1}`,
//! with `ggml_debug:` in front in older versions.

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub name: String,
    /// ggml's name of the elements' type.
    pub kind: String,
    /// The operation that made it.
    pub op: String,
    /// The name of the operation's first source.
    pub source: String,
    /// As it is claimed; four axes, the fastest first.
    pub ne: [usize; 4],
}

const FRONTS: [&str; 2] = ["common_debug_cb_eval:", "ggml_debug:"];

/// `None` where the line is no header; the error is a sentence.
pub fn parse(line: &str) -> Option<Result<Header, String>> {
    let front = FRONTS.iter().find_map(|front| line.find(front).map(|at| at + front.len()))?;
    let rest = &line[front..];
    Some(fields(rest).ok_or_else(|| {
        let shown: String = rest.trim().chars().take(80).collect();
        format!("expected `NAME = (TYPE) OP(…) = {{a, b, c, d}}`, found {shown:?}")
    }))
}

fn fields(text: &str) -> Option<Header> {
    let (name, rest) = text.split_once(" = (")?;
    let (kind, rest) = rest.split_once(')')?;
    let (made, shape) = rest.rsplit_once(" = {")?;
    let (op, sources) = made.split_once('(')?;
    let source = sources.split('{').next().unwrap_or_default();
    let shape = shape.trim_end().strip_suffix('}')?;
    let sizes: Vec<usize> =
        shape.split(',').map(|n| n.trim().parse().ok()).collect::<Option<_>>()?;
    let ne: [usize; 4] = sizes.try_into().ok()?;
    // Places are counted in whole numbers; no tensor comes near.
    ne.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| *n <= 1 << 48)?;
    let word = |text: &str| text.trim().to_string();
    Some(Header { name: word(name), kind: word(kind), op: word(op), source: word(source), ne })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_fronts_and_names_with_spaces() {
        let line = "common_debug_cb_eval:         Qcur-0 (view) = (f32)       VIEW(wqkv_b-0{384, 2, 1, 1}, }) = {32, 4, 2, 1}";
        let header = parse(line).unwrap().unwrap();
        assert_eq!((header.name.as_str(), header.op.as_str()), ("Qcur-0 (view)", "VIEW"));
        assert_eq!((header.source.as_str(), header.ne), ("wqkv_b-0", [32, 4, 2, 1]));
        let old = "0.00.1 ggml_debug:  inp_embd = (f32)   GET_ROWS(token_embd.weight{2560, 51200, 1, 1}, inp_tokens{1, 1, 1, 1}}) = {2560, 1, 1, 1}";
        assert_eq!(parse(old).unwrap().unwrap().name, "inp_embd");
        assert_eq!(parse("llama_model_loader: loaded"), None);
    }

    #[test]
    fn what_is_no_header_after_its_front_says_what_was_expected() {
        for rest in [
            "",
            " x = (f32) ADD(",
            " x = (f32) ADD(y{1}) = {1, 2}",
            " x = (f32) A() = {1, -2, 1, 1}",
        ] {
            let error = parse(&format!("ggml_debug:{rest}")).unwrap().unwrap_err();
            assert!(error.contains("expected `NAME"), "{error}");
        }
        let huge =
            "ggml_debug: x = (f32) A(y{1, 1, 1, 1}, }) = {4294967296, 4294967296, 4294967296, 9}";
        assert!(parse(huge).unwrap().is_err());
    }
}
