//! "Did you mean …?" for names.

use api::client::Client;

use super::{Context, exit::Failure};

/// What a name belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noun {
    /// An instance.
    Instance,
    /// An image.
    Image,
    /// A network.
    Network,
    /// A volume.
    Volume,
}

impl Noun {
    /// The command that lists them.
    const fn list_command(self) -> &'static str {
        match self {
            Self::Instance => "berth list",
            Self::Image => "berth image list",
            Self::Network => "berth network list",
            Self::Volume => "berth volume list",
        }
    }

    /// The names that exist; none when the daemon does not tell.
    pub async fn names(self, client: &Client) -> Vec<String> {
        match self {
            Self::Instance => collect(client.list_instances(None, None).await, |i| i.name),
            Self::Image => collect(client.list_images().await, |i| i.reference),
            Self::Network => collect(client.list_networks().await, |n| n.name),
            Self::Volume => collect(client.list_volumes().await, |v| v.name),
        }
    }
}

fn collect<T>(found: api::client::Result<Vec<T>>, name: fn(T) -> String) -> Vec<String> {
    found.unwrap_or_default().into_iter().map(name).collect()
}

/// Adds to a failure for want of `name` the nearest name there is.
pub async fn on_missing(cx: &Context, noun: Noun, name: &str, failure: Failure) -> Failure {
    if !failure.is_not_found() {
        return failure;
    }
    let names = noun.names(&cx.client).await;
    match nearest(name, &names) {
        Some(near) => failure.advise(format!("did you mean {near:?}?")),
        None if failure.hint().is_some() => failure,
        None => failure.advise(format!("see what there is: {}", noun.list_command())),
    }
}

/// The name nearest to what was written, if one is near enough to be meant.
fn nearest<'n>(wanted: &str, names: &'n [String]) -> Option<&'n str> {
    let allowed = 1 + wanted.chars().count() / 4;
    names
        .iter()
        .map(|name| (strsim::damerau_levenshtein(wanted, name), name))
        .filter(|(distance, name)| {
            *distance <= allowed || (wanted.len() >= 3 && name.starts_with(wanted))
        })
        .min()
        .map(|(_, name)| name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_near_names_are_suggested() {
        let names = ["web", "bold-heron", "database"].map(str::to_owned);
        assert_eq!(nearest("wbe", &names), Some("web"));
        assert_eq!(nearest("bold-haron", &names), Some("bold-heron"));
        assert_eq!(nearest("data", &names), Some("database"));
        assert_eq!(nearest("cache", &names), None);
        assert_eq!(nearest("", &names), None);
    }
}
