//! Namespaces to put a node into, so that nothing that it does, or leaves behind, reaches the machine; and an "outside" host that
//! is wired to it. When this process ends, in whatever way, the kernel ends all that is in them.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::{eventually, paths, run};

/// The node's address on the wire to outside. All boxes have the same: they don't see each other.
pub const INSIDE: &str = "192.0.2.1";
/// The outside host's.
pub const OUTSIDE: &str = "192.0.2.2";

/// A process that keeps namespaces alive, and what it takes to run programs in them.
#[derive(Debug)]
pub struct Isolated {
    unshare: Child,
    /// The process that the namespaces are seen by: PID 1, where there is a PID namespace.
    pid: i32,
    enter: &'static [&'static str],
}

impl Isolated {
    /// MNT, NET, PID, UTS and IPC namespaces: all that an agent could change. PID 1 reaps.
    pub fn machine() -> Self {
        let flags = &["--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child=KILL", "--mount-proc"];
        Self::new(flags, &["--mount", "--net", "--pid", "--uts", "--ipc"])
    }

    /// A NET namespace alone.
    pub fn network() -> Self {
        Self::new(&["--net"], &["--net"])
    }

    fn new(flags: &[&str], enter: &'static [&'static str]) -> Self {
        let unshare = Command::new("setpriv")
            // The thread that makes a box is the test's: the kernel ends the box with it.
            .args(["--pdeathsig", "KILL", "unshare"])
            .args(flags)
            .arg("--")
            .arg(paths::binary("demo"))
            .arg("sleep")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("setpriv and unshare of util-linux, as root");
        let forks = flags.contains(&"--fork");
        let first = unshare.id() as i32;
        let pid = eventually("the namespaces are there", || {
            let pid = if forks { child_of(first).ok_or("no child")? } else { first };
            // Until exec of demo, unshare may still be at it.
            let program = std::fs::read_link(format!("/proc/{pid}/exe")).map_err(|e| e.to_string())?;
            if program.ends_with("demo") { Ok(pid) } else { Err(format!("{pid} is {}", program.display())) }
        });
        let isolated = Self { unshare, pid, enter };
        isolated.command("ip").args(["link", "set", "lo", "up"]).status().expect("ip of iproute2");
        isolated
    }

    /// The process that holds the namespaces, in the machine's PID namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// A program, to be run inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.pid.to_string()).args(self.enter).arg("--").arg(program);
        command
    }

    /// The path of one of the namespaces, such as `net`.
    pub fn namespace(&self, kind: &str) -> PathBuf {
        format!("/proc/{}/ns/{kind}", self.pid).into()
    }
}

impl Drop for Isolated {
    fn drop(&mut self) {
        // With --kill-child, and as PID 1 of its namespace, it takes all others along.
        self.unshare.kill().ok();
        self.unshare.wait().ok();
        // The namespaces' end is not waited for by kill: but who comes after may look for leftovers.
        let gone = format!("/proc/{}/ns/net", self.pid);
        eventually(
            "the box's processes are gone",
            || {
                if std::fs::read_link(&gone).is_err() { Ok(()) } else { Err(gone.clone()) }
            },
        );
    }
}

/// The only child of a process with one thread.
pub(crate) fn child_of(pid: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// The address of the nth node that is wired to the same host; the first is [`INSIDE`].
fn address(node: usize) -> (String, String) {
    (format!("192.0.{}.1", 2 + node), format!("192.0.{}.2", 2 + node))
}

/// Another host, on the node's network.
#[derive(Debug)]
pub struct Outside {
    host: std::sync::Arc<Isolated>,
    node: usize,
}

impl Outside {
    /// Makes it and plugs a wire into the node: `eth0` at both ends.
    pub fn of(node: &Isolated) -> Self {
        Self { host: std::sync::Arc::new(Isolated::network()), node: 0 }.wired(node)
    }

    /// The same host, with a wire to one more node: `eth0` there, `eth1` here.
    pub fn shared(&self, node: &Isolated) -> Self {
        Self { host: self.host.clone(), node: self.node + 1 }.wired(node)
    }

    fn wired(self, node: &Isolated) -> Self {
        let there = self.host.pid().to_string();
        let link = format!("eth{}", self.node);
        let (inside, outside) = address(self.node);
        // Only the NET namespace of the node is entered: the other host's PID means nothing in its PID namespace.
        let mut wire = Command::new("nsenter");
        wire.arg(format!("--net={}", node.namespace("net").display()));
        wire.args(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", &link, "netns", &there]);
        run(&mut wire).ok();
        for (end, link, address) in [(node, "eth0", &inside), (&*self.host, link.as_str(), &outside)] {
            run(end.command("ip").args(["address", "add", &format!("{address}/24"), "dev", link])).ok();
            // No IPv6 address comes by itself, some time after: a snapshot would differ from the next.
            run(end.command("ip").args(["link", "set", link, "addrgenmode", "none", "up"])).ok();
        }
        run(node.command("ip").args(["route", "add", "default", "via", &outside])).ok();
        self
    }

    /// The node's address on the wire.
    pub fn node_address(&self) -> String {
        address(self.node).0
    }

    /// The way to this node, from nodes that share the host.
    pub fn address(&self) -> String {
        address(self.node).1
    }

    /// A program, to be run there.
    pub fn command(&self, program: &str) -> Command {
        self.host.command(program)
    }

    /// The path of its NET namespace.
    pub fn namespace(&self) -> PathBuf {
        self.host.namespace("net")
    }

    /// What `curl` gets from there.
    pub fn curl(&self, url: &str) -> crate::Output {
        run(self.command("curl").args(["--silent", "--show-error", "--fail", "--max-time", "10", url]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_sees_only_its_own_processes_and_dies_as_a_whole() {
        let box_ = Isolated::machine();
        let processes = run(box_.command("ps").args(["-e", "-o", "comm="])).ok();
        assert_eq!(processes.lines().next(), Some("demo"), "{processes}");
        let mut sleeper = crate::Running::start(box_.command("sleep").arg("1000"));
        assert!(sleeper.is_alive());
        drop(box_);
        sleeper.ends();
    }

    #[test]
    fn outside_reaches_the_box_by_the_wire() {
        let box_ = Isolated::machine();
        let outside = Outside::of(&box_);
        let demo = paths::binary("demo");
        let _server = crate::Running::start(box_.command(demo.to_str().unwrap()).args(["serve", "--port", "8080"]));
        eventually("the page answers", || outside.curl(&format!("http://{INSIDE}:8080/healthz")).result());
        // What the box listens on is not on the machine.
        assert!(std::net::TcpStream::connect((INSIDE, 8080)).is_err());
    }
}
