//! The five GPT-2s that the world knows, and how their weights are recognised.

use crate::ModelKind;

/// One published GPT-2.
#[derive(Debug)]
pub struct Published {
    /// The name as it is typed; also the hub's old id of the same repository.
    pub name: &'static str,
    /// Its repository on the hub.
    pub repo: &'static str,
    /// sha256 of `model.safetensors` as the repository's own LFS pointer records it, where that is known here.
    pub weights_sha256: Option<&'static str>,
}

/// gpt2 as of revision 607a30d783dfa663caf39e06633721c8d4cfcd7e (548,105,171 bytes), distilgpt2 as of
/// 2290a62682d06624634c1f46a6ad5be0f47f38aa (352,824,413 bytes).
pub const PUBLISHED: [Published; 5] = [
    Published {
        name: "gpt2",
        repo: "openai-community/gpt2",
        weights_sha256: Some("248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"),
    },
    Published { name: "gpt2-medium", repo: "openai-community/gpt2-medium", weights_sha256: None },
    Published { name: "gpt2-large", repo: "openai-community/gpt2-large", weights_sha256: None },
    Published { name: "gpt2-xl", repo: "openai-community/gpt2-xl", weights_sha256: None },
    Published {
        name: "distilgpt2",
        repo: "distilbert/distilgpt2",
        weights_sha256: Some("e1ff18884359fe8beb795a5f414feb85a6ce3d929ad019c0d958c039d2b94a1b"),
    },
];

/// The published model that a hub id (new or old) stands for.
pub fn by_repo(repo: &str) -> Option<&'static Published> {
    PUBLISHED.iter().find(|known| known.repo == repo || known.name == repo)
}

/// The published model that a name asks for: `gpt2`, `openai-community/gpt2`, `gpt2@main`.
pub fn by_name(name: &str) -> Option<&'static Published> {
    by_repo(name.split_once('@').map_or(name, |(id, _)| id))
}

/// What weights of this hash are. Where the published hash is known, it alone decides, wherever the file
/// came from. Where it isn't, `trusted_repo` does: the repository that vouches for the bytes.
pub(crate) fn kind(weights_sha256: &str, trusted_repo: Option<&str>) -> ModelKind {
    let known = PUBLISHED.iter().any(|published| published.weights_sha256 == Some(weights_sha256));
    let vouched =
        trusted_repo.and_then(by_repo).is_some_and(|published| published.weights_sha256.is_none());
    if known || vouched { ModelKind::Real } else { ModelKind::Trained }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_hash_decides_alone_and_an_unknown_one_leaves_it_to_the_repository() {
        let gpt2 = PUBLISHED[0].weights_sha256.unwrap();
        assert_eq!(kind(gpt2, None), ModelKind::Real);
        assert_eq!(
            kind("0", Some("openai-community/gpt2")),
            ModelKind::Trained,
            "not gpt2's weights, whatever the name"
        );
        assert_eq!(kind("0", Some("openai-community/gpt2-xl")), ModelKind::Real);
        assert_eq!(kind("0", Some("someone/gpt2-xl")), ModelKind::Trained);
        assert_eq!(kind("0", None), ModelKind::Trained);
    }
}
