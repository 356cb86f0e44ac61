//! The `WWW-Authenticate` header: how a registry wants us to prove who we are (RFC 9110 §11.3).

/// Longest header looked at.
const MAX_HEADER: usize = 8 << 10;
/// Parameters of one challenge.
const MAX_PARAMS: usize = 16;

/// A way to authenticate that we can follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User name and password with every request.
    Basic,
    /// A token from another server (distribution specification, "token authentication").
    Bearer {
        /// Where to get the token.
        realm: String,
        /// Name of the registry towards the token server.
        service: Option<String>,
        /// What the token must allow.
        scope: Option<String>,
    },
}

/// Every challenge of a header that we understand, in its order.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut rest = &header[..floor(header, MAX_HEADER)];
    let mut challenges = Vec::new();
    while let Some((scheme, after)) = token(rest) {
        rest = after;
        let mut params = Vec::new();
        while let Some((name, value, after)) = param(rest) {
            if params.len() < MAX_PARAMS {
                params.push((name.to_ascii_lowercase(), value));
            }
            rest = after;
        }
        let get = |name: &str| {
            params
                .iter()
                .find(|(n, _)| n == name)
                .map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            challenges.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = get("realm")
        {
            challenges.push(Challenge::Bearer {
                realm,
                service: get("service"),
                scope: get("scope"),
            });
        }
    }
    challenges
}

fn floor(text: &str, limit: usize) -> usize {
    (0..=limit.min(text.len()))
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0)
}

fn skip(text: &str) -> &str {
    text.trim_start_matches([' ', '\t', ','])
}

/// A word and what follows it. Characters that fit nowhere end the parsing.
fn token(text: &str) -> Option<(&str, &str)> {
    let text = skip(text);
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)))
        .unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// `name=value` or `name="quoted \" value"`, and what follows.
fn param(text: &str) -> Option<(&str, String, &str)> {
    let (name, rest) = token(text)?;
    let rest = rest.trim_start().strip_prefix('=')?.trim_start();
    let Some(quoted) = rest.strip_prefix('"') else {
        let (value, rest) = token(rest)?;
        return Some((name, value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((name, value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        }
    }

    #[test]
    fn challenges_of_real_registries_are_understood() {
        let hub = r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:library/x:pull""#;
        assert_eq!(
            parse(hub),
            [bearer(
                "https://auth.example/token",
                Some("registry.example"),
                Some("repository:library/x:pull")
            )]
        );
        assert_eq!(parse(r#"Basic realm="basic-realm""#), [Challenge::Basic]);
        assert_eq!(
            parse(
                r#"Negotiate, BEARER Realm = "a\"b" , Basic realm=x, Digest qop="auth, auth-int""#
            ),
            [bearer("a\"b", None, None), Challenge::Basic]
        );
        for nothing in [
            "",
            ",,,",
            "Bearer",
            "Bearer realm",
            "Bearer realm=\"open",
            "=",
            "Bearer =x",
        ] {
            assert!(parse(nothing).is_empty(), "{nothing:?}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_parsed_or_ignored(text in r#"(Bearer|Basic|[a-z]{1,3}|=|"|\\|,| |realm="x"|\PC){0,30}"#) {
            crate::fuzzing::auth_challenge(text.as_bytes());
        }
    }
}
