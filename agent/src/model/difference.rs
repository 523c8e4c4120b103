//! What differs between two objects, field by field, with paths as the API server writes them. Pure.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One field that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Such as `spec.containers[0].image`.
    pub path: String,
    /// As it is; null where it isn't there.
    #[serde(default)]
    pub old: Value,
    /// As it would be; null where it wouldn't be there.
    #[serde(default)]
    pub new: Value,
}

/// All fields that differ, in the order of the paths' parents.
pub fn between(old: &Value, new: &Value) -> Vec<Field> {
    let mut fields = Vec::new();
    compare(String::new(), old, new, &mut fields);
    fields
}

fn compare(path: String, old: &Value, new: &Value, fields: &mut Vec<Field>) {
    match (old, new) {
        _ if old == new || (is_nothing(old) && is_nothing(new)) => {}
        (Value::Object(a), Value::Object(b)) => maps(&path, a, b, fields),
        (Value::Array(a), Value::Array(b)) => lists(&path, a, b, fields),
        _ => fields.push(Field { path, old: old.clone(), new: new.clone() }),
    }
}

/// An empty list is as good as none.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn maps(path: &str, old: &Map<String, Value>, new: &Map<String, Value>, fields: &mut Vec<Field>) {
    let mut keys: Vec<&String> = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key))).collect();
    keys.sort();
    for key in keys {
        let at = |key: &str| {
            // Keys that are data, such as labels, could be mistaken for a path.
            let plain = key.bytes().all(|b| b.is_ascii_alphanumeric());
            match (plain, path.is_empty()) {
                (true, true) => key.to_owned(),
                (true, false) => format!("{path}.{key}"),
                (false, _) => format!("{path}[{key}]"),
            }
        };
        compare(at(key), old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null), fields);
    }
}

/// Elements that have names are the same when their names are; others when their places are.
fn lists(path: &str, old: &[Value], new: &[Value], fields: &mut Vec<Field>) {
    let Some(key) = ["name", "key", "containerPort"].into_iter().find(|key| are_named(old, key) && are_named(new, key)) else {
        for index in 0..old.len().max(new.len()) {
            let (a, b) = (old.get(index).unwrap_or(&Value::Null), new.get(index).unwrap_or(&Value::Null));
            compare(format!("{path}[{index}]"), a, b, fields);
        }
        return;
    };
    let before = fields.len();
    for (index, item) in new.iter().enumerate() {
        let counterpart = old.iter().find(|other| other[key] == item[key]).unwrap_or(&Value::Null);
        compare(format!("{path}[{index}]"), counterpart, item, fields);
    }
    for (index, item) in old.iter().enumerate() {
        if !new.iter().any(|other| other[key] == item[key]) {
            compare(format!("{path}[{index}]"), item, &Value::Null, fields);
        }
    }
    if fields.len() == before {
        let names = |list: &[Value]| Value::Array(list.iter().map(|item| item[key].clone()).collect());
        fields.push(Field { path: format!("{path} (order)"), old: names(old), new: names(new) });
    }
}

fn are_named(list: &[Value], key: &str) -> bool {
    let named = |item: &Value| item.get(key).is_some_and(|name| name.is_string() || name.is_number());
    let unique = list.iter().enumerate().all(|(i, item)| list[..i].iter().all(|other| other[key] != item[key]));
    list.iter().all(named) && unique
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::same(json!({"a": 1}), json!({"a": 1}), &[])]
    #[case::nothing_is_nothing(json!({"a": [], "b": null}), json!({}), &[])]
    #[case::value(json!({"a": {"b": 1}}), json!({"a": {"b": 2}}), &["a.b"])]
    #[case::added_and_removed(json!({"a": 1}), json!({"b": 1}), &["a", "b"])]
    #[case::label(json!({"labels": {"example.com/a": "1"}}), json!({"labels": {"example.com/a": "2"}}), &["labels[example.com/a]"])]
    #[case::by_place(json!({"args": ["a", "b"]}), json!({"args": ["a", "c", "d"]}), &["args[1]", "args[2]"])]
    #[case::by_name(
        json!({"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}),
        json!({"containers": [{"name": "b", "image": "z"}]}),
        &["containers[0].image", "containers[0]"]
    )]
    #[case::order(json!({"e": [{"name": "a"}, {"name": "b"}]}), json!({"e": [{"name": "b"}, {"name": "a"}]}), &["e (order)"])]
    #[case::another_kind(json!({"a": [1]}), json!({"a": {"b": 1}}), &["a"])]
    fn fields(#[case] old: Value, #[case] new: Value, #[case] expected: &[&str]) {
        let paths: Vec<String> = between(&old, &new).into_iter().map(|f| f.path).collect();
        assert_eq!(paths, expected);
    }

    fn any_value() -> impl proptest::strategy::Strategy<Value = Value> {
        use proptest::prelude::*;
        let leaf = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), "[a-c]{0,2}".prop_map(Value::from)];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c/]|name", inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest::proptest! {
        #[test]
        fn no_difference_to_itself_and_one_to_another(a in any_value(), b in any_value()) {
            proptest::prop_assert!(between(&a, &a).is_empty());
            if between(&a, &b).is_empty() {
                proptest::prop_assert!(between(&b, &a).is_empty());
            }
        }
    }
}
