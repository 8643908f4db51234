//! What other programs' tensor names mean, from the table `aliases.toml`.

use std::sync::LazyLock;

use llorch_trace::Point;
use serde::Deserialize;

/// How a tensor lies in memory where it isn't as we name it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum Layout {
    #[default]
    #[serde(rename = "ours")]
    Ours,
    /// Heads after tokens: `[T,H,D]`.
    #[serde(rename = "t h d")]
    TokensHeads,
    /// Query, key and value side by side: `[T,3E]`.
    #[serde(rename = "qkv")]
    Merged,
    /// `hidden_states.N`: the block before, or `ln_f` if it is the last.
    #[serde(rename = "state")]
    State,
    /// A layer norm's output, before or after its gain and bias: the content tells.
    #[serde(rename = "norm")]
    Norm,
}

/// What a name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// Our points; three for a merged query, key and value. `ggml`: the shape may be in ggml's order.
    Points {
        points: Vec<Point>,
        layout: Layout,
        family: &'static str,
        ggml: bool,
    },
    /// `hidden_states.N`, N ≥ 1.
    State {
        index: usize,
    },
    /// Our point, if the layer norm's gain and bias are in it; else `reason` says what it is.
    Norm {
        point: Point,
        reason: String,
    },
    /// A known name that is none of our points.
    NotOurs {
        family: &'static str,
        reason: String,
    },
    Unknown,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    family: Vec<Family>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Family {
    name: String,
    /// For readers of the table.
    #[allow(dead_code)]
    source: String,
    alias: Vec<Alias>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Alias {
    name: String,
    #[serde(default)]
    to: Vec<String>,
    #[serde(default)]
    layout: Layout,
    #[serde(default)]
    reason: Option<String>,
}

// The table travels in the binary and a test reads it whole, so a failure here can't reach a user.
static TABLE: LazyLock<Table> =
    LazyLock::new(|| toml::from_str(include_str!("aliases.toml")).expect("aliases.toml is sound"));

/// Looks a tensor's name up: our own names first, then the table.
pub fn meaning(name: &str) -> Meaning {
    let plain = normal(name);
    for candidate in spellings(&plain) {
        if let Ok(point) = candidate.parse::<Point>() {
            let (points, layout) = (vec![point], Layout::Ours);
            return Meaning::Points { points, layout, family: "llorch", ggml: false };
        }
    }
    for candidate in spellings(&plain) {
        if let Some(meaning) = look_up(candidate) {
            return meaning;
        }
    }
    if let Some((node, _)) = plain.split_once(" (")
        && plain.ends_with(')')
    {
        let reason =
            "a view or copy of another node, in the layout that the next one reads".to_string();
        let known = !matches!(meaning(node), Meaning::Unknown);
        return if known { Meaning::NotOurs { family: "ggml", reason } } else { Meaning::Unknown };
    }
    if plain.ends_with(".weight") || plain.ends_with(".bias") {
        let reason = "a weight of the model, no activation".to_string();
        return Meaning::NotOurs { family: "weights", reason };
    }
    Meaning::Unknown
}

/// `hidden_states[3]` is `hidden_states.3`; an `.output` at the end says what is meant anyway.
fn normal(name: &str) -> String {
    let name = name.replace('[', ".").replace(']', "");
    let name = name.strip_suffix(".output").or(name.strip_suffix(".out.0")).unwrap_or(&name);
    name.to_string()
}

/// The name, and what is left when the wrapping modules are taken off its front.
fn spellings(name: &str) -> impl Iterator<Item = &str> {
    let bare = name.strip_prefix("model.").unwrap_or(name);
    let bare = bare.strip_prefix("transformer.").unwrap_or(bare);
    [name].into_iter().chain((bare != name).then_some(bare))
}

fn look_up(name: &str) -> Option<Meaning> {
    for family in &TABLE.family {
        for alias in &family.alias {
            let Some(layer) = fit(&alias.name, name) else { continue };
            return Some(match (&alias.reason, alias.layout) {
                (Some(reason), Layout::Norm) => {
                    let point = fill(alias.to.first()?, layer)?.parse().ok()?;
                    Meaning::Norm { point, reason: reason.clone() }
                }
                (Some(reason), _) => {
                    let reason = fill(reason, layer).unwrap_or_else(|| reason.clone());
                    Meaning::NotOurs { family: &family.name, reason }
                }
                (None, Layout::State) => Meaning::State { index: layer? },
                (None, layout) => {
                    let point = |to: &String| fill(to, layer)?.parse::<Point>().ok();
                    let points: Option<Vec<Point>> = alias.to.iter().map(point).collect();
                    let ggml = family.name == "ggml";
                    Meaning::Points { points: points?, layout, family: &family.name, ggml }
                }
            });
        }
    }
    None
}

/// Whether `name` has the form of `pattern`, and with which number in the place of `{i}`.
fn fit(pattern: &str, name: &str) -> Option<Option<usize>> {
    let Some((before, after)) = pattern.split_once("{i}") else {
        return (pattern == name).then_some(None);
    };
    let digits = name.strip_prefix(before)?.strip_suffix(after)?;
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten().map(Some)
}

/// Puts the layer into `h.{i}.ln_1`, the one before into `h.{i-1}`.
fn fill(template: &str, layer: Option<usize>) -> Option<String> {
    let mut text = template.to_string();
    if text.contains("{i-1}") {
        text = text.replace("{i-1}", &layer?.checked_sub(1)?.to_string());
    }
    match layer {
        Some(layer) => Some(text.replace("{i}", &layer.to_string())),
        None => Some(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(name: &str) -> String {
        match meaning(name) {
            Meaning::Points { points, .. } => {
                points.iter().map(Point::to_string).collect::<Vec<_>>().join(" ")
            }
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn every_row_of_the_table_leads_to_points_or_says_why_not() {
        for family in &TABLE.family {
            for alias in &family.alias {
                let name = alias.name.replace("{i}", "3");
                match meaning(&name) {
                    Meaning::Points { points, layout, .. } => {
                        assert_eq!(points.len(), if layout == Layout::Merged { 3 } else { 1 });
                    }
                    Meaning::State { index } => assert_eq!(index, 3),
                    Meaning::Norm { reason, .. } => assert!(reason.contains("gain"), "{name}"),
                    Meaning::NotOurs { reason, .. } => {
                        assert!(alias.to.is_empty() && !reason.is_empty(), "{name}");
                    }
                    Meaning::Unknown => panic!("{name} means nothing"),
                }
            }
        }
    }

    #[test]
    fn modules_hooks_and_nodes_name_our_points() {
        let expected = [
            ("transformer.h.3.ln_1", "h.3.ln_1"),
            ("model.transformer.h.11", "h.11"),
            ("transformer.h.3.attn.c_attn", "h.3.attn.q h.3.attn.k h.3.attn.v"),
            ("transformer.h.3.attn.c_attn.output", "h.3.attn.q h.3.attn.k h.3.attn.v"),
            ("h.3.attn", "h.3.attn.out"),
            ("lm_head", "logits"),
            ("hidden_states[0]", "embeddings"),
            ("past_key_values.10.key", "h.10.attn.cache.k"),
            ("blocks.0.hook_resid_pre", "embeddings"),
            ("blocks.7.hook_resid_pre", "h.6"),
            ("blocks.3.attn.hook_pattern", "h.3.attn.probs"),
            ("Qcur-0", "h.0.attn.q"),
            ("kqv_out-2", "h.2.attn.context"),
            ("result_output", "logits"),
            ("h.3.attn.cache.k", "h.3.attn.cache.k"),
        ];
        for (name, point) in expected {
            assert_eq!(points(name), point, "{name}");
        }
    }

    #[test]
    fn what_is_not_ours_says_why_and_what_is_unknown_is_not_guessed() {
        let Meaning::NotOurs { reason, .. } = meaning("norm-2") else { panic!() };
        assert!(reason.contains("before the layer norm's gain and bias"), "{reason}");
        assert!(matches!(meaning("transformer.h.0.ln_1.weight"), Meaning::NotOurs { .. }));
        for name in ["", "q", "h.3.attn.query", "blocks.x.attn.hook_q", "Qcur-", "Qcur-1x"] {
            assert_eq!(meaning(name), Meaning::Unknown, "{name:?}");
        }
        assert_eq!(meaning("hidden_states.12"), Meaning::State { index: 12 });
    }
}
