//! The agent as a service of systemd: what it says on the socket that systemd gives it, and what its unit asks for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use e2e::{NodeBox, Running, eventually, pod, run, workspace};

/// systemd's end of the conversation.
struct Systemd {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Systemd {
    fn listen(node: &NodeBox) -> Self {
        let socket = UnixDatagram::bind(node.folder().join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self { socket, heard: Vec::new() }
    }

    /// Waits until so many messages had this line.
    fn hears(&mut self, line: &str, times: usize) {
        eventually(&format!("systemd hears {line} {times} times"), || {
            let mut buffer = [0; 4096];
            while let Ok(length) = self.socket.recv(&mut buffer) {
                self.heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
            let count = self.heard.iter().filter(|message| message.lines().any(|l| l == line)).count();
            if count >= times { Ok(()) } else { Err(format!("{:?}", self.heard)) }
        });
    }
}

#[test]
fn systemd_hears_that_it_is_ready_alive_and_stopping() {
    let node = NodeBox::builder().without_agent().start();
    let mut systemd = Systemd::listen(&node);
    node.put(&pod("web").runs("app", "serve"));
    // env is the agent's own word list: the variables go through the shell that execs it.
    let command = node.agent_command();
    let mut started = node.command("sh");
    let words: Vec<String> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let agent = words.iter().position(|word| word.ends_with("/nodeagent")).unwrap();
    let variables = format!("NOTIFY_SOCKET={}/notify WATCHDOG_USEC=200000", node.folder().display());
    let script = format!("export {variables} WATCHDOG_PID=$$; exec \"$@\"");
    started.args(["-c", &script, "sh"]).args(&words[agent..]);
    let mut running = Running::start(&mut started);
    systemd.hears("READY=1", 1);
    systemd.hears("WATCHDOG=1", 3);
    node.pod("web").is_ready();
    let child = run(Command::new("pgrep").args(["--parent", &running.pid().to_string()])).ok();
    run(Command::new("kill").args(["-TERM", child.trim()])).ok();
    systemd.hears("STOPPING=1", 1);
    assert_eq!(running.ends(), 0, "{}", running.output());
    // KillMode=process: what it leaves running is the pod.
    assert!(run(node.command("pgrep").arg("podholder")).code == 0 || node.inside("ps", &["-e"]).ok().contains("demo"));
}

#[test]
fn the_unit_is_one_that_systemd_takes() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["packaging/nodeagent.service", "charts/nodeagent/files/nodeagent.service"] {
        let text = std::fs::read_to_string(workspace().join(file)).unwrap();
        for line in ["Type=notify", "KillMode=process", "WatchdogSec=60", "Delegate=yes", "Restart=always"] {
            assert!(text.lines().any(|l| l == line), "{file} lacks {line}");
        }
        // Those programs aren't where they will be; all else must be right.
        let text = text.replace("@BINARY@", "/bin/true").replace("@ARGUMENTS@", "").replace("/usr/bin/nodeagent", "/bin/true");
        let unit = folder.path().join("nodeagent.service");
        std::fs::write(&unit, text.replace("Documentation=man:nodeagent(1)\n", "")).unwrap();
        let verified = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit));
        assert!(verified.code == 0 && !verified.all().contains("nodeagent.service"), "{verified}");
    }
}
