//! `WWW-Authenticate`: what a registry wants before it answers. Pure.

/// One way in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Name and password with each request.
    Basic,
    /// A token from elsewhere.
    Bearer {
        /// Where tokens are given out.
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The challenges of one header's value; unknown schemes are skipped.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c.is_whitespace() || c == ',').unwrap_or(rest.len());
        let scheme = &rest[..end];
        let (parameters, after) = parameters(rest[end..].trim_start());
        rest = after;
        let value = |key: &str| parameters.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => challenges.push(Challenge::Basic),
            "bearer" => {
                if let Some(realm) = value("realm") {
                    challenges.push(Challenge::Bearer { realm, service: value("service"), scope: value("scope") });
                }
            }
            _ => {}
        }
    }
    challenges
}

/// `key=value, key="value"` up to the next scheme, which is a word without `=`.
fn parameters(mut text: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    loop {
        text = text.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
        let word_end = text.find(|c: char| c.is_whitespace() || c == ',' || c == '=').unwrap_or(text.len());
        let after_word = text[word_end..].trim_start();
        let Some(value) = after_word.strip_prefix('=').filter(|_| word_end > 0) else { break };
        let key = text[..word_end].to_ascii_lowercase();
        let (value, after) = value_of(value.trim_start());
        found.push((key, value));
        text = after;
    }
    // A stray `=` would otherwise be looked at for ever.
    (found, text.trim_start_matches('='))
}

fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c.is_whitespace() || c == ',').unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &quoted[at + 1..]),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.into(), service: service.map(Into::into), scope: scope.map(Into::into) }
    }

    #[rstest]
    #[case("Basic realm=\"Registry\"", vec![Challenge::Basic])]
    #[case("basic", vec![Challenge::Basic])]
    #[case(
        "Bearer realm=\"https://a/token\",service=\"reg\",scope=\"repository:x:pull,push\"",
        vec![bearer("https://a/token", Some("reg"), Some("repository:x:pull,push"))]
    )]
    #[case("Bearer realm=https://a , service = b", vec![bearer("https://a", Some("b"), None)])]
    #[case("Negotiate, Bearer realm=\"r\", Basic realm=\"q\\\"x\"", vec![bearer("r", None, None), Challenge::Basic])]
    #[case("Bearer", vec![])]
    #[case("", vec![])]
    #[case("=,=,=", vec![])]
    #[case("Bearer realm=\"unclosed", vec![bearer("unclosed", None, None)])]
    fn parses(#[case] header: &str, #[case] want: Vec<Challenge>) {
        assert_eq!(parse(header), want);
    }

    proptest::proptest! {
        #[test]
        fn ends_and_never_panics(header in "[ -~]{0,60}") {
            let _ = parse(&header);
        }
    }
}
