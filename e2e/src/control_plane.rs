//! A real control plane on the host that is wired to a node: etcd, API server, controller manager and scheduler, as `e2e/kubernetes`
//! runs them for people.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::{NodeBox, OUTSIDE, Output, eventually, run, workspace};

/// The cluster; it ends with this value.
#[derive(Debug)]
pub struct ControlPlane<'a> {
    node: &'a NodeBox,
    folder: PathBuf,
}

impl<'a> ControlPlane<'a> {
    /// Starts one on the host outside of the node, reachable from there.
    #[track_caller]
    pub fn beside(node: &'a NodeBox) -> Self {
        Self::with(node, &[])
    }

    /// The same with more words for `e2e/kubernetes up`.
    #[track_caller]
    pub fn with(node: &'a NodeBox, words: &[&str]) -> Self {
        let plane = Self { node, folder: node.folder().join("cluster") };
        plane.script(&[&["up", "--address", OUTSIDE], words].concat()).ok();
        plane
    }

    /// `e2e/kubernetes WORDS`, on its host.
    pub fn script(&self, words: &[&str]) -> Output {
        run(self.command().args(words))
    }

    fn command(&self) -> Command {
        let script = workspace().join("e2e/kubernetes");
        let mut command = self.node.outside().command(script.to_str().expect("a path in UTF-8"));
        command.arg("--folder").arg(&self.folder);
        command
    }

    /// The kubeconfig of the node that is called `name`.
    #[track_caller]
    pub fn node_kubeconfig(&self, name: &str) -> PathBuf {
        PathBuf::from(self.script(&["node", name]).ok().trim())
    }

    /// Where the cluster keeps its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The administrator's kubectl.
    pub fn kubectl(&self, words: &[&str]) -> Output {
        run(self.command().arg("kubectl").args(words))
    }

    /// `kubectl apply` of this text.
    #[track_caller]
    pub fn apply(&self, yaml: &str) {
        let file = self.folder.join("applied.yaml");
        std::fs::write(&file, yaml).expect("the folder can be written");
        self.kubectl(&["apply", "-f", file.to_str().expect("a path in UTF-8")]).ok();
    }

    /// An object as the API server has it; none: it has none of that name.
    pub fn get(&self, kind: &str, name: &str) -> Option<Value> {
        let output = self.kubectl(&["get", kind, name, "-o", "json", "--ignore-not-found"]).ok();
        (!output.trim().is_empty()).then(|| serde_json::from_str(&output).expect("kubectl prints JSON"))
    }

    /// Waits until an object is as it should be, and gives what `look` found in it.
    #[track_caller]
    pub fn until<T>(&self, kind: &str, name: &str, what: &str, look: impl Fn(&Value) -> Option<T>) -> T {
        eventually(&format!("{kind} {name}: {what}"), || {
            let object = self.get(kind, name).ok_or_else(|| "it isn't there".to_owned())?;
            look(&object).ok_or_else(|| format!("{:#}\nThe agent says:\n{}", object["status"], self.node.agent_output()))
        })
    }

    /// Waits until the API server has no such object any more.
    #[track_caller]
    pub fn is_gone(&self, kind: &str, name: &str) {
        eventually(&format!("{kind} {name} is gone"), || match self.get(kind, name) {
            None => Ok(()),
            Some(object) => Err(format!("{object:#}\nThe agent says:\n{}", self.node.agent_output())),
        });
    }
}

impl Drop for ControlPlane<'_> {
    fn drop(&mut self) {
        let _ = self.script(&["down"]);
    }
}
