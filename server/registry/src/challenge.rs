//! `WWW-Authenticate` headers (RFC 9110, 11.6.1; distribution's token specification).

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token from the server at `realm`.
    Bearer {
        /// URL of the token server.
        realm: String,
        /// Name of the registry there.
        service: Option<String>,
        /// What the token must allow.
        scopes: Vec<String>,
    },
}

/// The challenge to follow: Bearer before Basic; none where neither is offered.
pub(crate) fn choose(headers: &[String]) -> Option<Challenge> {
    let mut all: Vec<Challenge> = headers.iter().take(16).flat_map(|header| parse(header)).collect();
    let bearer = all.iter().position(|c| matches!(c, Challenge::Bearer { .. }));
    match bearer {
        Some(at) => Some(all.swap_remove(at)),
        None => all.into_iter().next(),
    }
}

/// Every challenge of one header that we know how to follow.
fn parse(header: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = header;
    while let Some((word, after)) = token(rest) {
        let after = after.trim_start();
        match after.strip_prefix('=') {
            Some(value) => {
                let (value, after) = parameter(value.trim_start());
                if let Some((_, parameters)) = found.last_mut() {
                    parameters.push((word.to_ascii_lowercase(), value));
                }
                rest = after;
            }
            None => {
                found.push((word.to_ascii_lowercase(), Vec::new()));
                rest = after;
            }
        }
    }
    found.into_iter().filter_map(|(scheme, parameters)| build(&scheme, parameters)).collect()
}

fn build(scheme: &str, parameters: Vec<(String, String)>) -> Option<Challenge> {
    let value = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: value("realm")?,
            service: value("service").filter(|s| !s.is_empty()),
            scopes: value("scope").unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
        }),
        _ => None,
    }
}

/// The next word and what follows it; blanks and commas before it are skipped.
fn token(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start_matches([' ', '\t', ',']);
    let end = text.find([' ', '\t', ',', '=', '"']).unwrap_or(text.len());
    if end == 0 { None } else { Some(text.split_at(end)) }
}

/// A value, quoted or not, and what follows it.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find([' ', '\t', ',']).unwrap_or(text.len()));
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chosen(header: &str) -> Option<Challenge> {
        choose(&[header.to_owned()])
    }

    #[test]
    fn bearer_is_preferred_and_its_parameters_are_read() {
        let expected = Challenge::Bearer {
            realm: "https://auth.example/t,x".into(),
            service: Some("reg".into()),
            scopes: vec!["repository:a/b:pull".into(), "repository:c:pull,push".into()],
        };
        let text = r#"Basic realm="x", BEARER Realm = "https://auth.example/t,x",service=reg,scope="repository:a/b:pull repository:c:pull,push",error="invalid_token""#;
        assert_eq!(chosen(text), Some(expected));
        assert_eq!(chosen("Basic realm=\"a \\\" b\""), Some(Challenge::Basic));
    }

    #[test]
    fn what_cannot_be_followed_is_no_challenge() {
        for text in ["", "Negotiate", "Bearer", "Bearer service=\"x\"", "===", "\"", "Digest realm=\"x\""] {
            assert_eq!(chosen(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parser_panic_or_hang(text in "[ -~\"=,\\\\é]{0,120}") {
            let _ = chosen(&text);
        }
    }
}
