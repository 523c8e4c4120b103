//! Manifests of which something is not as its author meant: whatever it is, reading them ends in a pod or in an error with a place. The
//! text is mutated by the byte, and the tree that it stands for by the value.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use nodeagent::model::{Defaults, Loaded, load, yaml};
use proptest::prelude::*;
use serde_json::{Value, json};

/// What users would begin from: all examples, and what the API server was asked about.
static TEXTS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in [here.join("../manifests"), here.join("tests/apiserver")] {
        below(&folder, &mut files);
    }
    files.sort();
    let texts: Vec<String> = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    assert!(texts.len() > 20);
    texts
});

/// The same as trees, a document each.
static TREES: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let documents = TEXTS.iter().flat_map(|text| text.split("---\n"));
    documents.map(|text| serde_yaml::from_str(text).unwrap()).filter(Value::is_object).collect()
});

fn below(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            below(&path, files);
        } else if path.extension().is_some_and(|e| e == "yaml") {
            files.push(path);
        }
    }
}

fn read(bytes: &[u8]) -> Loaded {
    let loaded = load(Path::new("m.yaml"), bytes, &Defaults { node_name: "node1".into() });
    for error in loaded.errors.iter().take(100) {
        assert!(error.line > 0 && error.column > 0 || error.message.ends_with("more errors"), "{error} has no place");
        assert!(!error.message.is_empty() && error.message.len() < 4096, "{error}");
    }
    loaded
}

/// A value that is no answer to what was asked.
fn odd() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop_oneof![Just(0), Just(-1), Just(65536), Just(i64::MAX), Just(i64::MIN), any::<i64>()].prop_map(Value::from),
        any::<f64>().prop_map(|x| json!(x)),
        prop_oneof![
            "[a-z]{0,3}",
            "\\PC{0,12}",
            "[$({/.]{1,6}",
            "[-+]?[0-9]{1,40}[eE.]?[0-9]{0,9}(Ki|Ei|m|n)?",
            "[./]{1,9}",
            "x{300}"
        ]
        .prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!([null])),
        Just(json!([{}, {}])),
        Just(json!({"": ""})),
        Just(json!([["a"]])),
    ]
}

/// The places of a tree, in its order.
fn places(tree: &Value, at: String, found: &mut Vec<String>) {
    let child = |key: &str| format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
    match tree {
        Value::Array(items) => items.iter().enumerate().for_each(|(i, item)| places(item, child(&i.to_string()), found)),
        Value::Object(map) => map.iter().for_each(|(key, item)| places(item, child(key), found)),
        _ => {}
    }
    found.push(at);
}

#[derive(Debug, Clone)]
enum Mutation {
    Replace(Value),
    Remove,
    /// Once more under another key, or once more in the list.
    Double,
    /// What stands elsewhere in the tree.
    Elsewhere(prop::sample::Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        4 => odd().prop_map(Mutation::Replace),
        1 => Just(Mutation::Remove),
        1 => Just(Mutation::Double),
        2 => any::<prop::sample::Index>().prop_map(Mutation::Elsewhere),
    ]
}

fn mutate(tree: &mut Value, at: prop::sample::Index, mutation: Mutation) {
    let mut all = Vec::new();
    places(tree, String::new(), &mut all);
    let place = all[at.index(all.len())].clone();
    let double = matches!(mutation, Mutation::Double);
    let value = match mutation {
        Mutation::Replace(value) => Some(value),
        Mutation::Elsewhere(other) => tree.pointer(&all[other.index(all.len())]).cloned(),
        Mutation::Remove | Mutation::Double => None,
    };
    if let Some(value) = value {
        *tree.pointer_mut(&place).unwrap() = value;
        return;
    }
    let Some((parent, key)) = place.rsplit_once('/') else { return };
    match tree.pointer_mut(parent).unwrap() {
        Value::Array(items) => {
            let item = items.remove(key.parse().unwrap());
            if double {
                items.extend([item.clone(), item]);
            }
        }
        Value::Object(map) => {
            let key = key.replace("~1", "/").replace("~0", "~");
            let item = map.remove(&key).unwrap();
            if double {
                map.insert(format!("{key}x"), item.clone());
                map.insert(key, item);
            }
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_that_are_others(which: prop::sample::Index, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = which.get(&TEXTS).clone().into_bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        read(&bytes);
    }

    /// A file that ends early, has a part twice, or lost one.
    #[test]
    fn parts_that_are_elsewhere(which: prop::sample::Index, a: prop::sample::Index, b: prop::sample::Index, to: prop::sample::Index) {
        let bytes = which.get(&TEXTS).as_bytes();
        let (a, b) = (a.index(bytes.len()), b.index(bytes.len()));
        let (part, to) = (&bytes[a.min(b)..a.max(b)], to.index(bytes.len()));
        read(part);
        read(&[&bytes[..to], part, &bytes[to..]].concat());
        read(&[&bytes[..a.min(b)], &bytes[a.max(b)..]].concat());
    }

    /// What is valid is valid again as the agent shows it, and the same: defaults add nothing the second time.
    #[test]
    fn values_that_are_others(which: prop::sample::Index, changes in prop::collection::vec((any::<prop::sample::Index>(), mutation()), 0..4)) {
        let mut tree = which.get(&TREES).clone();
        for (at, change) in changes {
            mutate(&mut tree, at, change);
        }
        let loaded = read(serde_yaml::to_string(&tree).unwrap().as_bytes());
        for pod in &loaded.pods {
            let again = read(yaml::to_yaml(&**pod.object()).unwrap().as_bytes());
            prop_assert_eq!(&again.errors, &[]);
            prop_assert_eq!(again.pods[0].object(), pod.object());
        }
        for workload in &loaded.workloads {
            let again = read(yaml::to_yaml(&workload.object()).unwrap().as_bytes());
            prop_assert_eq!(&again.errors, &[]);
            prop_assert_eq!(again.workloads[0].object(), workload.object());
        }
    }
}
