//! Keeps Secrets' values out of what is shown: `command: [client, --password=$(PASSWORD)]` has one in the process list, and in the
//! error when it can't be executed. Pure.

use crate::model::{ObjectKind, ValidPod, references};

use super::recipe::env::Objects;

/// What stands for a value.
const HIDDEN: &str = "<redacted>";
/// Shorter values would hide half of every sentence, and are no secrets.
const SHORTEST: usize = 4;

/// The values that a pod's Secrets have now. Shows none.
#[derive(Clone, Default)]
pub struct Redaction {
    /// The longest first: one may be a part of another.
    values: Vec<String>,
}

impl std::fmt::Debug for Redaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} values", self.values.len())
    }
}

impl Redaction {
    /// Of all Secrets that the pod refers to.
    pub fn of(pod: &ValidPod, objects: &dyn Objects) -> Self {
        let secrets = references::of(pod).into_iter().filter(|key| key.kind == ObjectKind::Secret);
        let secrets = secrets.filter_map(|key| objects.secret(&key.namespace, &key.name));
        let mut values: Vec<String> = secrets
            .flat_map(|secret| secret.data.iter().flatten().map(|(_, v)| v.0.clone()).collect::<Vec<_>>())
            .filter_map(|bytes| String::from_utf8(bytes).ok())
            .flat_map(|value| [shown(&value), value.trim().to_owned()])
            .filter(|value| value.len() >= SHORTEST)
            .collect();
        values.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        values.dedup();
        Self { values }
    }

    /// The text without the values.
    pub fn hide(&self, text: String) -> String {
        self.values
            .iter()
            .fold(text, |text, value| if text.contains(value.as_str()) { text.replace(value, HIDDEN) } else { text })
    }
}

/// As a process list shows it.
fn shown(value: &str) -> String {
    value.trim().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::model::Origin;
    use crate::runtime::known::Known;

    #[rstest]
    #[case("client --password=hunter22!", "client --password=<redacted>")]
    #[case("hunter2", "<redacted>")]
    #[case("a key: one?two.", "a key: <redacted>.")]
    #[case("an abc of nothing", "an abc of nothing")]
    #[case("", "")]
    fn no_value_is_left(#[case] text: &str, #[case] expected: &str) {
        let values = [("a", "hunter2"), ("b", "hunter22!\n"), ("c", "abc"), ("d", "one\ntwo"), ("e", "")];
        let data: serde_json::Map<_, _> =
            values.map(|(key, value)| (key.to_owned(), STANDARD.encode(value).into())).into_iter().collect();
        let objects = Known(vec![json!({"kind": "Secret", "metadata": {"name": "login"}, "data": data})]);
        let env = json!([{"name": "X", "valueFrom": {"secretKeyRef": {"name": "login", "key": "a"}}}]);
        let pod = json!({"metadata": {"name": "web", "uid": "u"}, "spec": {"containers": [{"name": "main", "env": env}]}});
        let pod = ValidPod::trusted(serde_json::from_value(pod).unwrap(), Origin::Stdin);
        assert_eq!(Redaction::of(&pod, &objects).hide(text.into()), expected);
    }
}
