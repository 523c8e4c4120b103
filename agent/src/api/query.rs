//! The query of a URL. Knows nothing of what its names mean.

use std::fmt::Write;

use super::ApiError;

/// Names and values, decoded, in their order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Takes what stands behind the `?`.
    pub fn parse(text: &str) -> Self {
        let pair = |part: &str| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name, Plus::Space), decode(value, Plus::Space))
        };
        Self(text.split('&').filter(|part| !part.is_empty()).map(pair).collect())
    }
    /// The first value of that name; an empty one counts as none.
    pub fn get(&self, name: &str) -> Option<&str> {
        let first = self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        first.filter(|value| !value.is_empty())
    }
    /// As it is called elsewhere: names by their new ones, from these pairs; the first value of `name` is `value`.
    #[must_use]
    pub fn translated(self, names: &[(&str, &str)], (name, value): (&str, &str)) -> Self {
        let new = |old: String| names.iter().find(|(from, _)| *from == old).map_or(old, |(_, to)| (*to).to_owned());
        let first = (name.to_owned(), value.to_owned());
        Self([first].into_iter().chain(self.0.into_iter().map(|(name, value)| (new(name), value))).collect())
    }
    /// All but that name.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.0.retain(|(n, _)| n != name);
        self
    }
    /// All values of that name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }
    /// A switch: as the API server reads them, everything but `0` and `false` is on.
    pub fn flag(&self, name: &str) -> bool {
        self.all(name).next().is_some_and(|value| !matches!(value, "0" | "false" | "False" | "FALSE" | "f" | "F"))
    }
    /// A number.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, ApiError> {
        self.get(name)
            .map(|text| text.parse().map_err(|_| ApiError::bad_request(format!("{name}: {text:?} is not a number that fits"))))
            .transpose()
    }
}

/// What `+` stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Plus {
    /// A space, as in queries.
    Space,
    /// Itself, as in paths.
    Itself,
}

/// Undoes percent-encoding. What isn't a valid escape stays; what isn't UTF-8 becomes U+FFFD.
pub fn decode(text: &str, plus: Plus) -> String {
    let hex = |byte: Option<&u8>| byte.and_then(|b| char::from(*b).to_digit(16));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, hex(tail.first()), hex(tail.get(1))) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &tail[2..];
            }
            (b'+', ..) if plus == Plus::Space => bytes.push(b' '),
            _ => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Escapes all but RFC 3986's unreserved characters.
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn repeated_names_and_escapes() {
        let query = Query::parse("command=sh&command=-c&command=echo+a%2Bb%26&stdin=true&tty=&x");
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["sh", "-c", "echo a+b&"]);
        assert!(query.flag("stdin") && !query.flag("nothing"));
        assert_eq!(query.get("tty"), None);
        assert_eq!(decode("100%", Plus::Itself), "100%");
        assert_eq!(decode("a+b%zz", Plus::Itself), "a+b%zz");
    }

    #[test]
    fn translation() {
        let query = Query::parse("input=1&tty=1&container=other").translated(&[("input", "stdin")], ("container", "app"));
        assert!(query.flag("stdin") && query.flag("tty") && !query.flag("input"));
        assert_eq!(query.get("container"), Some("app"));
        assert_eq!(query.without("container").get("container"), None);
    }

    proptest! {
        #[test]
        fn encoding_comes_back(text in ".*") {
            prop_assert_eq!(decode(&encode(&text), Plus::Space), text);
        }
    }
}
