//! What kind of mistake a stage makes: the stage is recomputed with each hypothesis from what the
//! implementation itself had captured, and one that arrives at its output within rounding is named.
//!
//! Reading order: [`site`] is a stage at one place and what it means to explain it; then a file for
//! each family of hypotheses. Those that recompute exactly come first ([`linear`], [`norm`], …), then
//! a constant [`factor`], then [`rounding`] on the way, then sums of [`reduced`] precision, which only
//! say how large the error is, not which.

mod activation;
mod attention;
mod cache;
mod context;
mod embedding;
mod factor;
mod head;
mod heads;
mod keys;
mod linear;
mod norm;
mod probs;
mod reduced;
mod residual;
mod rounding;
pub mod site;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use llorch_trace::Stage;

pub use cache::is_carried_over;
pub use site::{Explanation, Site};

use site::Found;

/// Everything that explains the site, the likeliest first. With `only`, nothing else is tested.
pub fn explanations(site: &Site<'_>, only: Option<&Explanation>) -> Vec<Explanation> {
    let mut found = Found::only(only);
    if site.beyond().any(|i| site.given.values[i].is_nan()) {
        return found.all;
    }
    match site.point.stage {
        Stage::Embeddings => embedding::test(site, &mut found),
        Stage::Ln1 | Stage::Ln2 | Stage::LnF => norm::test(site, &mut found),
        Stage::Q | Stage::K | Stage::V => {
            heads::test(site, &mut found);
            linear::test(site, &mut found);
        }
        Stage::CacheK | Stage::CacheV => cache::test(site, &mut found),
        Stage::Scores => attention::test(site, &mut found),
        Stage::Probs => probs::test(site, &mut found),
        Stage::Context => {
            heads::test(site, &mut found);
            context::test(site, &mut found);
        }
        Stage::AttnOut | Stage::Fc | Stage::MlpOut => linear::test(site, &mut found),
        Stage::Act => activation::test(site, &mut found),
        Stage::ResidMid | Stage::Block => residual::test(site, &mut found),
        Stage::Logits | Stage::LogitsLast => head::test(site, &mut found),
        Stage::NextProbs => {}
        Stage::Tokens | Stage::Argmax | Stage::Generated => return found.all,
    }
    factor::test(site, &mut found);
    rounding::output(site, &mut found);
    if found.all.is_empty() {
        reduced::test(site, &mut found);
    }
    found.all
}
