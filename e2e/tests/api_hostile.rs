//! Who may use the API, and what hostile input comes to: a clear no, and an agent that goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use e2e::{NodeBox, Running, eventually};
use rstest::rstest;

const URL: &str = "https://127.0.0.1:16443";

fn socket(node: &NodeBox) -> PathBuf {
    node.root().join("run/nodeagent/agent.sock")
}

/// What the agent says to these bytes, up to its first pause.
fn answer(node: &NodeBox, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket(node)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // The agent may hang up before it has heard all.
    stream.write_all(bytes).ok();
    let mut answer = vec![0; 64 * 1024];
    let mut length = 0;
    while let Ok(more @ 1..) = stream.read(&mut answer[length..]) {
        length += more;
        if answer[..length].windows(4).any(|w| w == b"\r\n\r\n") {
            break;
        }
    }
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

#[test]
fn the_port_wants_a_certificate_of_this_node() {
    let node = NodeBox::builder().argument("--listen").argument("127.0.0.1:16443").start();
    // None: only this much is said.
    for path in ["api/v1/pods", "version", "healthz"] {
        let output = node.inside("curl", &["-sk", "-w", "%{http_code}", &format!("{URL}/{path}")]).ok();
        assert!(output.ends_with("401") && output.contains("nodeagent kubeconfig"), "{output}");
    }
    // One of another node.
    let other = NodeBox::builder().argument("--listen").argument("127.0.0.1:16443").start();
    let stranger = other.folder().join("kubeconfig");
    other.run(&["kubeconfig", "--output", stranger.to_str().unwrap()]).ok();
    let words = ["--kubeconfig", stranger.to_str().unwrap(), "get", "pods"];
    node.inside("kubectl", &words).fails_with(1);
    let words = [&words[..], &["--insecure-skip-tls-verify"]].concat();
    assert!(!node.inside("kubectl", &words).fails_with(1).contains("NAME"));
    other.inside("kubectl", &["--kubeconfig", stranger.to_str().unwrap(), "get", "pods"]).ok();
}

#[test]
fn a_port_that_everyone_reaches_is_refused() {
    let node = NodeBox::builder().without_agent().start();
    let mut agent = Running::start(node.agent_command().args(["--listen", "0.0.0.0:16443"]));
    assert_ne!(agent.ends(), 0);
    assert!(agent.output().contains("must be a loopback address"), "{}", agent.output());
}

#[test]
fn the_kubeconfig_and_the_socket_are_for_root_alone() {
    let node = NodeBox::builder().argument("--listen").argument("127.0.0.1:16443").start();
    let file = node.folder().join("kubeconfig");
    node.run(&["kubeconfig", "--output", file.to_str().unwrap()]).ok();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(socket(&node)).unwrap().permissions().mode() & 0o777, 0o660);
    // Another user hears what to do.
    std::fs::set_permissions(node.folder(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = e2e::binary("nodeagent");
    let output = node.inside(
        "setpriv",
        &[
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            program.to_str().unwrap(),
            "--root",
            node.root().to_str().unwrap(),
            "get",
            "pods",
        ],
    );
    assert!(output.clone().fails().contains("permission denied") || output.stderr.contains("Permission denied"), "{output}");
}

#[rstest]
#[case::traversal("GET /api/v1/namespaces/default/pods/..%2f..%2f..%2fetc%2fpasswd/log HTTP/1.1\r\nHost: x\r\n\r\n", "404")]
#[case::dots("GET /api/v1/namespaces/../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", "404")]
#[case::nul("GET /api/v1/namespaces/default/pods/a%00b HTTP/1.1\r\nHost: x\r\n\r\n", "404")]
#[case::method("TRACE /api/v1/pods HTTP/1.1\r\nHost: x\r\n\r\n", "405")]
#[case::not_http("\x16\x03\x01\x02\x00\x01\x00", "400")]
#[case::upgrade_of_nothing("GET /api/v1/pods HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "200")]
#[case::number("GET /api/v1/pods?limit=-99999999999999999999 HTTP/1.1\r\nHost: x\r\n\r\n", "400")]
#[case::selector("GET /api/v1/pods?labelSelector=%21%21%21 HTTP/1.1\r\nHost: x\r\n\r\n", "400")]
#[case::body("DELETE /api/v1/namespaces/default/pods/x HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{}", "404")]
fn nonsense_gets_a_clear_no(#[case] request: &str, #[case] status: &str) {
    let node = NodeBox::start();
    let said = answer(&node, request.as_bytes());
    assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{said}");
    node.run(&["get", "pods"]).ok();
}

#[test]
fn upgrades_that_are_wrong_are_refused() {
    let node = NodeBox::start();
    node.apply_folder("quickstart");
    node.pod("web").is_ready();
    let pod = "/api/v1/namespaces/default/pods/web";
    for (path, headers, expected) in [
        ("exec?command=x&stdout=1", "", "400"),
        ("exec?stdout=1", "Connection: Upgrade\r\nUpgrade: websocket\r\n", "400"),
        ("exec?command=x&stdout=1", "Connection: Upgrade\r\nUpgrade: websocket\r\n", "400"),
        ("exec?command=x&stdout=1", "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n", "403"),
        ("exec?command=x", "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n", "400"),
        ("portforward", "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v1\r\n", "403"),
    ] {
        let said = answer(&node, format!("GET {pod}/{path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").as_bytes());
        assert!(said.starts_with(&format!("HTTP/1.1 {expected}")), "{path} {headers}: {said}");
    }
    // A handshake that is right, then nonsense instead of frames: the stream ends, the agent goes on.
    let handshake = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n";
    let mut stream = UnixStream::connect(socket(&node)).unwrap();
    write!(stream, "POST {pod}/portforward HTTP/1.1\r\nHost: x\r\n{handshake}\r\n").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(&[0x80, 2, 0, 1, 0, 0, 0, 0, 0xff, 0xff]).ok();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).expect("the agent hangs up");
    assert!(String::from_utf8_lossy(&said).starts_with("HTTP/1.1 101"));
    node.run(&["exec", "web", "--", "/demo", "hostname"]).ok();
}

#[test]
fn headers_without_end_are_cut_off_and_slow_clients_hold_nobody_up() {
    let node = NodeBox::start();
    let endless = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(10_000_000));
    let said = answer(&node, endless.as_bytes());
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 431"), "{said}");
    // A hundred that never finish their request.
    let slow: Vec<UnixStream> = (0..100)
        .map(|_| {
            let mut stream = UnixStream::connect(socket(&node)).unwrap();
            stream.write_all(b"GET /api/v1/pods HTTP/1.1\r\nHos").unwrap();
            stream
        })
        .collect();
    node.run(&["get", "pods"]).ok();
    // And they don't stay for ever.
    let mut one = slow.into_iter().next().unwrap();
    one.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    eventually("the agent hangs up", || {
        let mut rest = [0; 1024];
        match one.read(&mut rest) {
            Ok(0) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}
