//! Label and field selectors: parsed from Kubernetes' syntax, matched against labels or any field lookup. Pure.

use std::collections::BTreeMap;

use super::ApiError;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
    Above(i64),
    Below(i64),
}

/// `app=web,tier in (a, b),!canary`: all must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(Vec<(String, Test)>);

impl Labels {
    /// Parses a label selector.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        split_outside_parentheses(text).map(requirement).collect::<Result<_, _>>().map(Self)
    }
    /// Whether these labels fit.
    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.0.iter().all(|(key, test)| {
            let value = labels.and_then(|labels| labels.get(key));
            let number = || value.and_then(|v| v.parse::<i64>().ok());
            match test {
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
                Test::In(set) => value.is_some_and(|v| set.contains(v)),
                Test::NotIn(set) => value.is_none_or(|v| !set.contains(v)),
                Test::Above(limit) => number().is_some_and(|n| n > *limit),
                Test::Below(limit) => number().is_some_and(|n| n < *limit),
            }
        })
    }
}

fn split_outside_parentheses(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    let separator = move |c: char| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    };
    text.split(separator).map(str::trim).filter(|part| !part.is_empty())
}

fn requirement(text: &str) -> Result<(String, Test), ApiError> {
    let wrong = || {
        ApiError::bad_request(format!(
            "unable to parse requirement: {text:?}: write key, !key, key=value, key!=value, key in (a,b) or key notin (a,b)"
        ))
    };
    let one = |value: &str| vec![value.trim().to_owned()];
    let number = |value: &str| value.trim().parse::<i64>().map_err(|_| wrong());
    let (key, test) = if let Some(key) = text.strip_prefix('!') {
        (key, Test::Absent)
    } else if let Some((key, value)) = text.split_once("!=") {
        (key, Test::NotIn(one(value)))
    } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (key, Test::In(one(value)))
    } else if let Some((key, value)) = text.split_once('>') {
        (key, Test::Above(number(value)?))
    } else if let Some((key, value)) = text.split_once('<') {
        (key, Test::Below(number(value)?))
    } else if let Some((head, set)) = text.split_once('(') {
        let set = set.trim().strip_suffix(')').ok_or_else(wrong)?;
        let set = set.split(',').map(|v| v.trim().to_owned()).collect();
        match head.split_whitespace().collect::<Vec<_>>()[..] {
            [key, "in"] => (key, Test::In(set)),
            [key, "notin"] => (key, Test::NotIn(set)),
            _ => return Err(wrong()),
        }
    } else {
        (text, Test::Exists)
    };
    let key = key.trim();
    let valid = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    if valid { Ok((key.to_owned(), test)) } else { Err(wrong()) }
}

/// `metadata.name=web,status.phase!=Running`: all must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(Vec<(String, Equality, String)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Equality {
    Equal,
    Different,
}

impl Fields {
    /// Parses a field selector. `known` are the fields that the resource has.
    pub fn parse(text: &str, known: &[&str]) -> Result<Self, ApiError> {
        let term = |text: &str| {
            let parts = [("!=", Equality::Different), ("==", Equality::Equal), ("=", Equality::Equal)];
            let found = parts.iter().find_map(|(sign, how)| text.split_once(sign).map(|(field, value)| (field, *how, value)));
            let (field, how, value) = found.ok_or_else(|| {
                ApiError::bad_request(format!("invalid field selector: {text:?}: write field=value or field!=value"))
            })?;
            if !known.contains(&field) {
                return Err(ApiError::bad_request(format!(
                    "field label not supported: {field}; supported: {}",
                    known.join(", ")
                )));
            }
            Ok((field.to_owned(), how, value.replace("\\,", ",").replace("\\=", "=")))
        };
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(term).collect::<Result<_, _>>().map(Self)
    }
    /// The one name that is selected, if one is.
    pub fn name(&self) -> Option<&str> {
        self.0
            .iter()
            .find(|(name, how, _)| name == "metadata.name" && *how == Equality::Equal)
            .map(|(_, _, value)| value.as_str())
    }
    /// Whether the object fits of which `field` tells the fields.
    pub fn matches(&self, field: impl Fn(&str) -> String) -> bool {
        self.0.iter().all(|(name, how, value)| (field(name) == *value) == (*how == Equality::Equal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("", true)]
    #[case("app", true)]
    #[case("app=web", true)]
    #[case("app==web", true)]
    #[case("app = web , tier=front", true)]
    #[case("app!=web", false)]
    #[case("app!=db", true)]
    #[case("missing!=x", true)]
    #[case("!missing", true)]
    #[case("!app", false)]
    #[case("app in (db, web)", true)]
    #[case("app in (db,web),tier notin (front)", false)]
    #[case("missing notin (a)", true)]
    #[case("missing in (a)", false)]
    #[case("weight>4", true)]
    #[case("weight<5", false)]
    #[case("app>1", false)]
    #[case("example.com/team=a", true)]
    fn labels(#[case] selector: &str, #[case] expected: bool) {
        let labels = [("app", "web"), ("tier", "front"), ("weight", "5"), ("example.com/team", "a")];
        let labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(Labels::parse(selector).unwrap().matches(Some(&labels)), expected, "{selector}");
    }

    #[rstest]
    #[case("app in web")]
    #[case("app in (web")]
    #[case("=web")]
    #[case("a b")]
    #[case("weight>x")]
    #[case("!")]
    fn wrong_labels(#[case] selector: &str) {
        assert_eq!(Labels::parse(selector).unwrap_err().code(), 400, "{selector}");
    }

    #[rstest]
    #[case("", true)]
    #[case("metadata.name=web", true)]
    #[case("metadata.name==web,status.phase!=Running", false)]
    #[case("status.phase!=Pending", true)]
    fn fields(#[case] selector: &str, #[case] expected: bool) {
        let known = ["metadata.name", "status.phase"];
        let field = |name: &str| if name == "metadata.name" { "web".to_owned() } else { "Running".to_owned() };
        assert_eq!(Fields::parse(selector, &known).unwrap().matches(field), expected);
    }

    #[test]
    fn unknown_field_is_named() {
        let error = Fields::parse("spec.color=red", &["metadata.name"]).unwrap_err();
        assert!(error.to_string().contains("field label not supported: spec.color"), "{error}");
    }
}
