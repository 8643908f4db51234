//! Names of loose tensor files: `checkpoint_NN_NAME[_lLL][_sSS]_IMPL.npy`.
//!
//! NAME is that of existing Candle reference generators where they write the tensor
//! (`checkpoint_01_ln1_output_candle`, `_05_output_`, `_06_ffn_`), else the last parts of the point.
//! Without `_l` it is layer 0, without `_s` the prefill.

use llorch_trace::{Point, Stage};

/// What a file's stem says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileName {
    pub point: Point,
    pub step: usize,
    pub implementation: String,
}

/// Checkpoint number, stage, the NAME that is written, other NAMEs that are read.
static NAMES: [(u8, Stage, &str, &[&str]); 25] = [
    (0, Stage::Tokens, "tokens", &[]),
    (0, Stage::Embeddings, "embeddings", &[]),
    (1, Stage::Ln1, "ln1_output", &["ln_1", "ln1"]),
    (2, Stage::Q, "q", &["attn_q"]),
    (2, Stage::K, "k", &["attn_k"]),
    (2, Stage::V, "v", &["attn_v"]),
    (3, Stage::CacheK, "cache_k", &["attn_cache_k", "k_cache"]),
    (3, Stage::CacheV, "cache_v", &["attn_cache_v", "v_cache"]),
    (4, Stage::Scores, "scores", &["attn_scores"]),
    (4, Stage::Probs, "probs", &["attn_probs"]),
    (5, Stage::Context, "context", &["attn_context"]),
    (5, Stage::AttnOut, "output", &["attn_out", "attn_output", "out"]),
    (5, Stage::ResidMid, "resid_mid", &[]),
    (6, Stage::Ln2, "ln_2", &["ln2_output", "ln2"]),
    (6, Stage::Fc, "mlp_fc", &["fc"]),
    (6, Stage::Act, "mlp_act", &["act"]),
    (6, Stage::MlpOut, "ffn", &["mlp_out", "ffn_output"]),
    (7, Stage::Block, "block", &["output", "block_output"]),
    (8, Stage::Block, "block", &["block_output"]),
    (8, Stage::LnF, "ln_f", &["lnf_output"]),
    (8, Stage::Logits, "logits", &[]),
    (9, Stage::LogitsLast, "logits_last", &["last", "selected_logits"]),
    (10, Stage::Argmax, "argmax", &[]),
    (11, Stage::NextProbs, "next_probs", &["probs", "softmax"]),
    (12, Stage::Generated, "generated", &["tokens"]),
];

/// The stem under which a tensor is written.
pub fn file_stem(point: Point, step: usize, implementation: &str) -> String {
    let number = point.checkpoint().number;
    let name = NAMES
        .iter()
        .find(|row| row.0 == number && row.1 == point.stage)
        .map_or("tensor", |row| row.2);
    let mut stem = format!("checkpoint_{number:02}_{name}");
    if let Some(layer) = point.layer.filter(|layer| *layer > 0) {
        stem.push_str(&format!("_l{layer:02}"));
    }
    if step > 0 {
        stem.push_str(&format!("_s{step:02}"));
    }
    format!("{stem}_{implementation}")
}

/// Reads a stem. `None`: it has another form. An error is a sentence: the form is right, but no
/// tensor has that name.
pub fn parse_stem(stem: &str) -> Option<Result<FileName, String>> {
    let rest = stem.strip_prefix("checkpoint_")?;
    let (number, rest) = rest.split_once('_')?;
    if number.is_empty() || number.len() > 2 {
        return None;
    }
    let number: u8 = number.parse().ok()?;
    Some(parse_rest(number, rest))
}

fn parse_rest(number: u8, rest: &str) -> Result<FileName, String> {
    // The longest NAME first: `logits_last` before `logits`.
    let mut known: Vec<(&str, Stage)> = NAMES
        .iter()
        .filter(|row| row.0 == number)
        .flat_map(|row| row.3.iter().copied().chain([row.2]).map(|name| (name, row.1)))
        .collect();
    known.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    let Some((stage, tail)) = known.iter().find_map(|(name, stage)| {
        let tail = rest.strip_prefix(name)?;
        Some((*stage, tail.strip_prefix('_')?))
    }) else {
        let names: Vec<&str> =
            NAMES.iter().filter(|row| row.0 == number).map(|row| row.2).collect();
        return Err(match names.as_slice() {
            [] => format!("there is no checkpoint {number}; the last is 12"),
            _ => format!(
                "checkpoint {number:02} has no tensor of that name; expected {} and then _IMPL",
                names.join(", ")
            ),
        });
    };
    let (layer, tail) = numbered(tail, 'l');
    let (step, implementation) = numbered(tail, 's');
    if implementation.is_empty() {
        return Err("no implementation stands at its end; expected _IMPL".into());
    }
    if layer.is_some() && !stage.has_layer() {
        return Err("it names a layer, which that tensor does not have".into());
    }
    Ok(FileName {
        point: Point::of_layer(stage, layer.unwrap_or(0)),
        step: step.unwrap_or(0),
        implementation: implementation.to_string(),
    })
}

/// Takes `l03_` or `s01_` off the front.
fn numbered(text: &str, letter: char) -> (Option<usize>, &str) {
    let taken = text.strip_prefix(letter).and_then(|rest| rest.split_once('_'));
    match taken {
        Some((digits, rest)) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            match digits.parse() {
                Ok(n) => (Some(n), rest),
                Err(_) => (None, text),
            }
        }
        _ => (None, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use llorch_trace::all_points;

    fn parse(stem: &str) -> (String, usize, String) {
        let name = parse_stem(stem).unwrap().unwrap();
        (name.point.to_string(), name.step, name.implementation)
    }

    #[test]
    fn the_eight_files_of_candle_generators_are_understood() {
        let expected = [
            ("checkpoint_00_embeddings_candle", "embeddings"),
            ("checkpoint_01_ln1_output_candle", "h.0.ln_1"),
            ("checkpoint_02_q_candle", "h.0.attn.q"),
            ("checkpoint_02_k_candle", "h.0.attn.k"),
            ("checkpoint_02_v_candle", "h.0.attn.v"),
            ("checkpoint_04_scores_candle", "h.0.attn.scores"),
            ("checkpoint_05_output_candle", "h.0.attn.out"),
            ("checkpoint_06_ffn_candle", "h.0.mlp.out"),
        ];
        for (stem, point) in expected {
            assert_eq!(parse(stem), (point.into(), 0, "candle".into()), "{stem}");
        }
    }

    #[test]
    fn every_point_goes_there_and_back() {
        for point in all_points(13) {
            for step in [0, 1, 120] {
                for name in ["hf", "candle:upstream", "my_engine", "l3", "llorch-cpud"] {
                    let stem = file_stem(point, step, name);
                    let expected = FileName { point, step, implementation: name.into() };
                    assert_eq!(parse_stem(&stem), Some(Ok(expected)), "{stem}");
                }
            }
        }
        let q: Point = "h.3.attn.q".parse().unwrap();
        assert_eq!(file_stem(q, 1, "hf"), "checkpoint_02_q_l03_s01_hf");
        assert_eq!(
            file_stem(Point::new(Stage::LogitsLast), 0, "hf"),
            "checkpoint_09_logits_last_hf"
        );
    }

    #[test]
    fn what_has_another_form_is_left_to_others() {
        for stem in ["h.3.attn.q", "checkpoint", "checkpoint_x_q_hf", "checkpoint_002_q_hf", "02_q"]
        {
            assert_eq!(parse_stem(stem), None, "{stem}");
        }
    }

    #[test]
    fn names_that_mean_nothing_are_refused_with_what_is_expected() {
        let refused = |stem: &str| parse_stem(stem).unwrap().unwrap_err();
        assert!(refused("checkpoint_02_z_hf").contains("q, k, v"));
        assert!(refused("checkpoint_02_q").contains("q, k, v"));
        assert!(refused("checkpoint_02_q_").contains("_IMPL"));
        assert!(refused("checkpoint_13_q_hf").contains("no checkpoint 13"));
        assert!(refused("checkpoint_08_logits_l03_hf").contains("layer"));
    }
}
