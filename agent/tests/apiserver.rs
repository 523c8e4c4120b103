//! Wrong manifests get the API server's own sentences. What it says to each document of apiserver/*.yaml is in apiserver/said.txt, written
//! by Kubernetes' own code (`make oracle`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nodeagent::model::{Defaults, load};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apiserver")
}

/// A file's document, from 1.
type Place = (String, usize);

/// By document, what it got, in no order.
type Said = BTreeMap<Place, Vec<Sentence>>;

/// A field's path, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Sentence {
    field: String,
    wrong: String,
}

impl Sentence {
    /// The same, at a place that may be told more exactly: the API server leaves out some of the elements on the way.
    fn says(&self, other: &Self) -> bool {
        let steps = |path: &str| path.split(['.', '[', ']']).filter(|s| !s.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        let mut own = steps(&self.field).into_iter();
        self.wrong == other.wrong && steps(&other.field).iter().all(|step| own.any(|own| own == *step))
    }
}

/// Whether each says what one of the others says.
fn same(ours: &[Sentence], theirs: &[Sentence]) -> bool {
    let mut left: Vec<&Sentence> = ours.iter().collect();
    let told = |sentence: &Sentence| left.iter().position(|own| own.says(sentence)).map(|at| left.remove(at)).is_some();
    theirs.iter().all(told) && ours.len() == theirs.len()
}

/// Lines `FILE#DOCUMENT: FIELD: what is wrong`, or without the latter two.
fn read(file: &str) -> Said {
    let mut said = Said::new();
    let text = std::fs::read_to_string(folder().join(file)).unwrap();
    for line in text.lines().filter(|line| !line.starts_with("# ")) {
        let (name, rest) = line.split_once('#').unwrap();
        let (document, sentence) = rest.split_once(':').unwrap();
        let sentences = said.entry((name.into(), document.parse().unwrap())).or_default();
        if let Some((field, wrong)) = sentence.trim_start().split_once(": ") {
            sentences.push(Sentence { field: field.into(), wrong: wrong.into() });
        }
    }
    said
}

/// The manifests, document by document, with the line that each begins on.
fn documents() -> Vec<(Place, String)> {
    let files = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect();
    files.sort();
    let mut documents = Vec::new();
    for path in files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path).unwrap();
        documents.extend(text.split("---\n").enumerate().map(|(i, text)| ((name.clone(), i + 1), text.to_owned())));
    }
    documents
}

#[test]
fn what_is_wrong_gets_the_api_servers_sentences() {
    let (said, here) = (read("said.txt"), read("here.txt"));
    let documents = documents();
    let mut differ = Vec::new();
    for (place, text) in &documents {
        let loaded = load(Path::new(&place.0), text.as_bytes(), &Defaults { node_name: "node1".into() });
        for error in &loaded.errors {
            assert!(error.line > 0 && error.column > 0, "{error} has no place in {text}");
        }
        let ours: Vec<Sentence> =
            loaded.errors.iter().map(|e| Sentence { field: e.field.clone(), wrong: e.message.clone() }).collect();
        let theirs = here.get(place).or_else(|| said.get(place)).cloned().unwrap_or_default();
        if !same(&ours, &theirs) {
            let shown = |all: &[Sentence]| {
                all.iter().map(|s| format!("\n{}#{}: {}: {}", place.0, place.1, s.field, s.wrong)).collect::<String>()
            };
            differ.push(format!("{text}here:{}\nthere:{}\n", shown(&ours), shown(&theirs)));
        }
    }
    assert!(differ.is_empty(), "{} of {} differ:\n{}", differ.len(), documents.len(), differ.join("\n"));
    // The oracle was asked about these documents.
    assert!(documents.len() > 430 && said.len() > 400, "{} documents, {} answers", documents.len(), said.len());
}

/// What an admission controller or the agent itself gives an object: no part of the types' defaults.
fn without_identity(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|key, _| key == "name" || key == "labels");
    }
    for claim in object["spec"]["volumeClaimTemplates"].as_array_mut().into_iter().flatten() {
        claim.as_object_mut().unwrap().retain(|key, _| key != "apiVersion" && key != "kind");
    }
    let is_job = object["kind"] == "Job";
    if let Some(spec) = object["spec"].as_object_mut() {
        spec.remove("nodeName");
        if is_job {
            // Made of its UID.
            spec.remove("selector");
            spec["template"]["metadata"] = Value::Null;
        }
    }
    object
}

/// `null`, `{}` and a creation time that isn't there: as Go writes what isn't set.
fn without_nothing(value: Value) -> Value {
    let nothing = |value: &Value| value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty);
    match value {
        Value::Object(map) => {
            let map = map.into_iter().map(|(key, value)| (key, without_nothing(value)));
            Value::Object(map.filter(|(key, value)| key != "status" && !nothing(value)).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nothing).collect()),
        other => other,
    }
}

#[test]
fn what_is_left_open_is_filled_in_as_the_api_server_does() {
    let given = std::fs::read(folder().join("defaults/given.yaml")).unwrap();
    let loaded = load(Path::new("given.yaml"), &given, &Defaults { node_name: "node1".into() });
    assert_eq!(loaded.errors, []);
    let pods = loaded.pods.iter().map(|pod| serde_json::to_value(&**pod.object()).unwrap());
    let workloads = loaded.workloads.iter().map(|workload| serde_json::to_value(workload.object()).unwrap());
    let ours: BTreeMap<String, Value> = pods.chain(workloads).map(named).collect();
    let filled = std::fs::read_to_string(folder().join("defaults/filled.yaml")).unwrap();
    let theirs = filled.split("---\n").filter(|text| !text.trim().is_empty()).map(|text| serde_yaml::from_str(text).unwrap());
    let theirs: BTreeMap<String, Value> = theirs.map(named).collect();
    let mut differ = Vec::new();
    for (name, expected) in &theirs {
        let Some(own) = ours.get(name) else { continue };
        let differences = nodeagent::model::difference::between(expected, own);
        differ.extend(differences.iter().map(|difference| format!("{name}: {difference:?}")));
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    assert!(ours.keys().all(|name| theirs.contains_key(name)) && ours.len() > 15);
}

fn named(object: Value) -> (String, Value) {
    let name = format!("{} {}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
    (name, without_nothing(without_identity(object)))
}
