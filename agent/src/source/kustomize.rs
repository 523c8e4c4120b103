//! Folders with a `kustomization.yaml`: what `kustomize build` or `kubectl kustomize` makes of them is one manifest. The programs are
//! the user's own; without them the error says so.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::model::yaml::{self, Node, Value};

/// A folder's own description, by any of its names.
const NAMES: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];
/// The largest manifest that is taken.
const LIMIT: u64 = 64 << 20;
/// A build that takes longer waits for something that won't come.
const TIME: Duration = Duration::from_secs(60);

/// The file that makes a folder one of these.
pub fn description(folder: &Path) -> Option<PathBuf> {
    NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

/// Whether a folder that has an entry of this name is one.
pub fn describes(name: &std::ffi::OsStr) -> bool {
    NAMES.iter().any(|known| name == *known)
}

/// The local folders that the build of this one reads, itself among them.
pub fn folders(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut left = vec![folder.to_path_buf()];
    while let Some(next) = left.pop() {
        if found.insert(next.clone()) {
            left.extend(references(&next));
        }
    }
    found
}

/// The folders that a folder's description names.
pub fn references(folder: &Path) -> Vec<PathBuf> {
    let Some(text) = description(folder).and_then(|path| std::fs::read(path).ok()) else { return Vec::new() };
    let parsed = yaml::parse(&text);
    let lists = parsed
        .documents
        .iter()
        .flat_map(|document| ["resources", "bases", "components"].into_iter().filter_map(|field| document.root.get(field)));
    let words = lists.flat_map(|list| match &list.value {
        Value::List(items) => items.as_slice(),
        _ => &[],
    });
    words.filter_map(Node::text).map(|word| plain(&folder.join(word))).filter(|path| path.is_dir()).collect()
}

/// Without `.` and `..`, so that one folder has one name.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if plain.file_name().is_some() => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

/// The manifest that the folder comes to.
pub fn build(folder: &Path) -> Result<Vec<u8>, String> {
    let programs: [(&str, &[&str]); 2] = [("kustomize", &["build"]), ("kubectl", &["kustomize"])];
    for (program, words) in programs {
        let mut command = Command::new(program);
        command.args(words).arg(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        match command.spawn() {
            Ok(child) => return output(child, program),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(format!("run {program}: {error}")),
        }
    }
    Err("it has a kustomization.yaml, and neither kustomize nor kubectl is installed, one of which is needed to read it".into())
}

/// Both outputs are read by threads: a program that fills one pipe while we wait for the other would stand still.
fn output(mut child: Child, program: &str) -> Result<Vec<u8>, String> {
    let (send, receive) = mpsc::channel();
    let errors = child.stderr.take();
    let text = child.stdout.take();
    let send_errors = send.clone();
    std::thread::spawn(move || send_errors.send((false, read(errors))));
    std::thread::spawn(move || send.send((true, read(text))));
    let (mut manifest, mut complaint) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        match receive.recv_timeout(TIME) {
            Ok((true, bytes)) => manifest = bytes,
            Ok((false, bytes)) => complaint = bytes,
            Err(_) => {
                // Gone already is as good as killed.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{program} did not end within {} s", TIME.as_secs()));
            }
        }
    }
    let status = child.wait().map_err(|error| format!("wait for {program}: {error}"))?;
    if !status.success() {
        return Err(format!("{program}: {}", String::from_utf8_lossy(&complaint).trim()));
    }
    if manifest.len() as u64 > LIMIT {
        Err(format!("it comes to more than {} MiB: no manifest is", LIMIT >> 20))
    } else {
        Ok(manifest)
    }
}

fn read(from: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // What came before an error is what there is.
        let _ = from.take(LIMIT + 1).read_to_end(&mut bytes);
    }
    bytes
}
