//! A real control plane on the host that is wired to a node: etcd, API server, controller manager and scheduler, as `e2e/kubernetes`
//! runs them for people.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::{NodeBox, OUTSIDE, Output, Running, eventually, run, workspace};

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

    /// `e2e/kubernetes` on its host, for words of which the first is what to do.
    pub fn command(&self) -> Command {
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

    /// Starts the agent of a node that is of this cluster, whether the API server is there or not.
    #[track_caller]
    pub fn starts(&self, node: &NodeBox) {
        let mut command = node.agent_command();
        command.arg("--kubeconfig").arg(self.folder.join(format!("{}.kubeconfig", node.name())));
        node.start_agent_with(command, "");
    }

    /// Makes the node one of this cluster: its agent answers, it is Ready, and the cluster has signed its kubelet API's certificate
    /// (`serverTLSBootstrap: true` in its configuration).
    #[track_caller]
    pub fn joins(&self, node: &NodeBox) {
        self.node_kubeconfig(node.name());
        self.starts(node);
        self.until("node", node.name(), "is Ready", |node| is_true(node, "Ready").then_some(()));
        self.approves(node);
    }

    /// Approves the certificate of the node's kubelet API until that port has it.
    #[track_caller]
    pub fn approves(&self, node: &NodeBox) {
        let pair = node.root().join("var/lib/nodeagent/pki/kubelet-server-current.pem");
        eventually("the cluster has signed the kubelet API's certificate", || {
            if pair.exists() {
                return Ok(());
            }
            self.script(&["approve"]).ok();
            Err(node.agent_output())
        });
    }

    /// kube-proxy on a node, as long as the value lives.
    #[track_caller]
    pub fn proxies(&self, node: &NodeBox) -> Running {
        let kubeconfig = self.script(&["user", "system:kube-proxy"]).ok();
        let program = workspace().join("target/e2e/controlplane/kube-proxy");
        let mut command = node.command(program.to_str().expect("a path in UTF-8"));
        command.arg("--kubeconfig").arg(kubeconfig.trim()).args(["--hostname-override", node.name(), "--proxy-mode", "nftables"]);
        // What is the machine's, of which the node is a part, stays as it is.
        command.args([
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
        ]);
        Running::start(&mut command)
    }

    /// From now on nothing that a node sends to the API server arrives, and nobody tells it so.
    #[track_caller]
    pub fn falls_silent(&self) {
        let chain = "add chain inet silent in { type filter hook input priority 0; }";
        let rule = "add rule inet silent in iifname != lo tcp dport 6443 drop";
        run(self.node.outside().command("nft").arg(format!("add table inet silent; {chain}; {rule}"))).ok();
    }

    /// It is as it was before it fell silent.
    #[track_caller]
    pub fn is_heard_again(&self) {
        run(self.node.outside().command("nft").args(["delete", "table", "inet", "silent"])).ok();
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

/// Whether an object's condition of this type holds.
pub fn is_true(object: &Value, condition: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|c| c["type"] == condition && c["status"] == "True"))
}

impl Drop for ControlPlane<'_> {
    fn drop(&mut self) {
        let _ = self.script(&["down"]);
    }
}
