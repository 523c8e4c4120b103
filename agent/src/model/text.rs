//! YAML that every reader reads alike: YAML 1.1's, as kubectl's, for whom `yes` is true and `0400` a number, and YAML 1.2's. Pure.

use serde_json::Value;

/// An object or a list as a document; a string is plain only where nobody could take it for something else.
pub fn write(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

fn block(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                text.push_str(&indent);
                text.push_str(&string(key));
                text.push(':');
                beside(value, depth + usize::from(value.is_object()), text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                text.push_str(&indent);
                text.push('-');
                if is_block(item) {
                    // Its first line stands beside the dash.
                    let mut inner = String::new();
                    block(item, depth + 1, &mut inner);
                    text.push(' ');
                    text.push_str(inner.trim_start_matches(' '));
                } else {
                    beside(item, depth, text);
                }
            }
        }
        other => {
            text.push_str(&indent);
            text.push_str(&scalar(other));
            text.push('\n');
        }
    }
}

/// What follows a key or a dash.
fn beside(value: &Value, depth: usize, text: &mut String) {
    if is_block(value) {
        text.push('\n');
        block(value, depth, text);
    } else if let Some(lines) = lines(value) {
        text.push_str(if lines.ends_with('\n') { " |\n" } else { " |-\n" });
        for line in lines.lines() {
            if !line.is_empty() {
                text.push_str(&"  ".repeat(depth + 1));
                text.push_str(line);
            }
            text.push('\n');
        }
    } else {
        text.push(' ');
        text.push_str(&scalar(value));
        text.push('\n');
    }
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

/// A string that is best read as it is, line by line: nothing of it is lost so.
fn lines(value: &Value) -> Option<&str> {
    let text = value.as_str()?;
    let inner = text.strip_suffix('\n').unwrap_or(text);
    let plain = inner.chars().all(|c| matches!(c, ' '..='~' | '\t' | '\n' | '\u{a1}'..='\u{ff}'));
    (inner.contains('\n') && plain && !inner.starts_with([' ', '\t', '\n']) && !inner.ends_with([' ', '\t', '\n']))
        .then_some(text)
}

/// JSON's form is YAML's, too.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => string(text),
        other => other.to_string(),
    }
}

fn string(text: &str) -> String {
    const WORDS: [&str; 11] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"];
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'/');
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
    let word = WORDS.iter().any(|word| text.eq_ignore_ascii_case(word));
    if first && plain && !word { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn blocks_as_people_write_them() {
        let value = json!({"kind": "Pod", "spec": {"containers": [{"args": ["a b", "yes", "if a\n\n  b\n"], "name": "x", "ports": []}, {"name": "y"}], "v": {}, "w": "1\n2"}});
        let text = "kind: Pod\nspec:\n  containers:\n  - args:\n    - \"a b\"\n    - \"yes\"\n    - |\n      if a\n\n        b\n    name: x\n    ports: []\n  - name: \"y\"\n  v: {}\n  w: |-\n    1\n    2\n";
        assert_eq!(write(&value), text);
    }

    fn values() -> impl Strategy<Value = Value> {
        let words = prop::sample::select(vec![
            "",
            "yes",
            "0400",
            "1e3",
            "12:30",
            "~",
            "a: b",
            "- a",
            "#",
            "line\nline\n",
            "- a\n  b: c\n\n# d",
            "---\n...\n",
            "a \n b\n\n",
            "\ta\nb",
            "ä\u{7}",
            ".5",
            "=",
            "null",
        ]);
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            words.prop_map(Value::from),
            "[ -~]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[ -~]{1,6}", inner, 0..4).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(value in values()) {
            let text = write(&value);
            let read: Value = serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{e}:\n{text}"));
            prop_assert_eq!(read, value, "{}", text);
        }
    }
}
