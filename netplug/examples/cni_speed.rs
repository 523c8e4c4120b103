//! ADD and DEL as processes, side by side: this plugin, and Debian's bridge + host-local + portmap, each executed alike.
//!
//!     cargo build --release -p netplug && cargo run --release -p netplug --example cni_speed [PODS] [NETPLUG]
//!
//! Needs root, containernetworking-plugins and iptables. It works in a network namespace of its own.

use std::{
    error::Error,
    fs::File,
    io::Write,
    os::fd::AsRawFd,
    process::{Command, Stdio, id},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

const DEBIAN: &str = "/usr/lib/cni";

/// A way to wire pods: plugins, one after the other.
struct Way {
    name: &'static str,
    plugins: Vec<String>,
    config: Value,
    add: Vec<Duration>,
    del: Vec<Duration>,
}

fn main() -> Fallible<()> {
    let pods: usize = std::env::args().nth(1).map_or(Ok(50), |word| word.parse())?;
    let netplug = std::env::args().nth(2).unwrap_or_else(|| "target/release/netplug".into());
    let state = tempfile::tempdir()?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    let config = |name: &str, net: u8| {
        json!({
            "cniVersion": "1.0.0", "name": name, "bridge": format!("bench{net}"), "isGateway": true, "isDefaultGateway": true, "ipMasq": true,
            "hairpinMode": true, "stateDir": state.path().join("run"),
            "ipam": {"type": "host-local", "dataDir": state.path().join("lib"), "ranges": [[{"subnet": format!("10.{net}.0.0/16")}]]},
        })
    };
    let way = |name, plugins, config| Way { name, plugins, config, add: Vec::new(), del: Vec::new() };
    let debian = vec![format!("{DEBIAN}/bridge"), format!("{DEBIAN}/portmap")];
    let mut ways =
        [way("netplug", vec![netplug], config("a", 90)), way("bridge + host-local + portmap", debian, config("b", 91))];
    for number in 0..pods {
        for (offset, way) in ways.iter_mut().enumerate() {
            round(way, number, 20_000 + 2 * number + offset)?;
        }
    }
    for way in &mut ways {
        let (add, del) = (p50(&mut way.add), p50(&mut way.del));
        println!("{:30} ADD {add:7.2} ms   DEL {del:7.2} ms   (p50 of {pods})", way.name);
    }
    Ok(())
}

/// One pod comes. It stays to the end: only every fourth is removed, so that there are some to be beside.
fn round(way: &mut Way, number: usize, host_port: usize) -> Fallible<()> {
    let netns: File = thread::spawn(|| -> Fallible<File> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(File::open("/proc/thread-self/ns/net")?)
    })
    .join()
    .map_err(|_| "the namespace's thread panicked")??;
    let path = format!("/proc/{}/fd/{}", id(), netns.as_raw_fd());
    let mut config = way.config.clone();
    config["runtimeConfig"] = json!({"portMappings": [{"hostPort": host_port, "containerPort": 80, "protocol": "tcp"}]});
    let container = format!("pod{number}");
    let start = Instant::now();
    for plugin in &way.plugins {
        config["prevResult"] = call(plugin, "ADD", &container, &path, &config)?;
    }
    way.add.push(start.elapsed());
    if !number.is_multiple_of(4) {
        std::mem::forget(netns);
        return Ok(());
    }
    let start = Instant::now();
    for plugin in way.plugins.iter().rev() {
        call(plugin, "DEL", &container, &path, &config)?;
    }
    way.del.push(start.elapsed());
    Ok(())
}

fn call(plugin: &str, command: &str, container: &str, netns: &str, config: &Value) -> Fallible<Value> {
    let mut config = config.clone();
    if command == "ADD"
        && config["prevResult"].is_null()
        && let Some(object) = config.as_object_mut()
    {
        object.remove("prevResult");
    }
    config["type"] = plugin.rsplit('/').next().unwrap_or(plugin).into();
    if plugin.ends_with("portmap") {
        config["capabilities"] = json!({"portMappings": true});
    }
    let mut child = Command::new(plugin)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", container), ("CNI_NETNS", netns), ("CNI_IFNAME", "eth0")])
        .env("CNI_PATH", DEBIAN)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{plugin}: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(config.to_string().as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("{plugin} {command}: {}", String::from_utf8_lossy(&output.stdout)).into());
    }
    Ok(if output.stdout.is_empty() { Value::Null } else { serde_json::from_slice(&output.stdout)? })
}

/// In milliseconds.
fn p50(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}
