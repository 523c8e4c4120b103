//! The agent as a service manager runs it: it says when it is ready, that it lives, and that it stops. And what its package is made of.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use e2e::{NodeBox, eventually, pod, workspace};

/// Where the service manager listens, and what it has heard.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self { socket, heard: Vec::new() }
    }

    fn hears(&mut self, word: &str, times: usize) {
        eventually(&format!("the service manager hears {word} {times} times"), || {
            let mut message = [0; 4096];
            while let Ok(length) = self.socket.recv(&mut message) {
                self.heard.extend(String::from_utf8_lossy(&message[..length]).lines().map(str::to_owned));
            }
            let count = self.heard.iter().filter(|line| line.starts_with(word)).count();
            if count >= times { Ok(()) } else { Err(self.heard.join("\n")) }
        });
    }
}

#[test]
fn the_service_manager_is_told_how_the_agent_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let mut manager = Manager::at(&path);
    let node = NodeBox::builder()
        .environment(format!("NOTIFY_SOCKET={}", path.display()))
        .environment("WATCHDOG_USEC=400000".into())
        .argument("--drain")
        .start();
    manager.hears("READY=1", 1);
    manager.hears("STATUS=Running pods of ", 1);
    manager.hears("WATCHDOG=1", 3);
    let web = node.put(&pod("web").runs("main", "sleep"));
    web.becomes("Running");
    // A container is nobody's service: it can't speak for the agent.
    assert!(!web.container("main").demo("env").contains("NOTIFY_SOCKET"));
    assert_eq!(node.stop_agent(), 0);
    manager.hears("STOPPING=1", 1);
    manager.hears("EXTEND_TIMEOUT_USEC=", 1);
}

#[test]
fn the_manual_has_a_page_for_every_command() {
    let node = NodeBox::builder().without_agent().start();
    let pages = node.folder().join("pages");
    std::fs::create_dir(&pages).unwrap();
    node.run(&["man", "--output", pages.to_str().unwrap()]).ok();
    for page in ["nodeagent.1", "nodeagent-get.1", "nodeagent-exec.1", "nodeagent-image-pull.1"] {
        let text = std::fs::read_to_string(pages.join(page)).unwrap_or_else(|e| panic!("{page}: {e}"));
        assert!(text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
    node.run(&["man", "--output", "/nowhere"]).fails();
}

#[test]
fn the_packages_settings_are_right() {
    let node = NodeBox::builder().without_agent().start();
    let config = workspace().join("agent/packaging/config.yaml");
    let text = std::fs::read_to_string(&config).unwrap();
    // One setting more that is wrong: were any other wrong, it would be told as well.
    let path = node.folder().join("config.yaml");
    std::fs::write(&path, format!("{text}\nmtu: 1\n")).unwrap();
    let mut command = node.command(e2e::binary("nodeagent").to_str().unwrap());
    let told = e2e::run(command.arg("--config").arg(&path)).fails();
    assert!(told.lines().count() == 1 && told.contains("mtu"), "{told}");
}
