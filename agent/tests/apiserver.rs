//! Wrong manifests get the API server's own sentences. What it says to each document of apiserver/*.yaml is in apiserver/said.txt, written
//! by Kubernetes' own code (`make oracle`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nodeagent::model::{Defaults, load};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apiserver")
}

/// A document of a file, from 1.
type Place = (String, usize);

/// By document, the sentences that it got: `spec.containers: Required value`.
fn said() -> BTreeMap<Place, Vec<String>> {
    sentences(&std::fs::read_to_string(folder().join("said.txt")).unwrap())
}

/// Lines `FILE#DOCUMENT: sentence`, in no order.
fn sentences(text: &str) -> BTreeMap<Place, Vec<String>> {
    let mut said: BTreeMap<Place, Vec<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (place, sentence) = line.split_once(": ").unwrap();
        let (file, document) = place.split_once('#').unwrap();
        said.entry((file.into(), document.parse().unwrap())).or_default().push(sentence.into());
    }
    said.values_mut().for_each(|all| all.sort());
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
    let said = said();
    let ours = sentences(&std::fs::read_to_string(folder().join("here.txt")).unwrap());
    let documents = documents();
    let mut differ = Vec::new();
    for (place, text) in &documents {
        let loaded = load(Path::new(&place.0), text.as_bytes(), &Defaults { node_name: "node1".into() });
        let mut here: Vec<String> = loaded.errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
        here.sort();
        let there = ours.get(place).or_else(|| said.get(place)).cloned().unwrap_or_default();
        if here != there {
            differ.push(format!("{}#{}: {text}   here:  {here:#?}\n   there: {there:#?}", place.0, place.1));
        }
        for error in &loaded.errors {
            assert!(error.line > 0 && error.column > 0, "{error} has no place in {text}");
        }
    }
    assert!(differ.is_empty(), "{} of {}:\n{}", differ.len(), documents.len(), differ.join("\n"));
    assert!(documents.len() > 300 && said.len() + 20 > documents.len(), "{} sentences, {} documents", said.len(), documents.len());
}
