//! ADD and DEL as processes, side by side: this plugin, Debian's bridge + host-local + portmap, and podman's netavark, each executed alike.
//!
//!     cargo build --release -p netplug && cargo run --release -p netplug --example cni_speed [PODS] [NETPLUG]
//!
//! Needs root, containernetworking-plugins, netavark and iptables. It works in a network namespace of its own.

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
const NETAVARK: &str = "/usr/lib/podman/netavark";

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
    let podmans = vec![NETAVARK.to_owned()];
    let mut ways = [
        way("netplug", vec![netplug], config("a", 90)),
        way("bridge + host-local + portmap", debian, config("b", 91)),
        way("netavark", podmans, json!({"state": state.path()})),
    ];
    for number in 0..pods {
        for (offset, way) in ways.iter_mut().enumerate() {
            round(way, number, 20_000 + 3 * number + offset)?;
        }
    }
    let ours = p50(&mut ways[0].add.clone());
    for way in &mut ways {
        let (add, del) = (p50(&mut way.add), p50(&mut way.del));
        println!("{:30} ADD {add:7.2} ms ({:5.1} ×)   DEL {del:7.2} ms   (p50 of {pods})", way.name, add / ours);
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
    if way.plugins[0] == NETAVARK {
        let request = netavark_request(number, host_port);
        let start = Instant::now();
        netavark("setup", &path, &way.config, &request)?;
        way.add.push(start.elapsed());
        if number.is_multiple_of(4) {
            let start = Instant::now();
            netavark("teardown", &path, &way.config, &request)?;
            way.del.push(start.elapsed());
        } else {
            std::mem::forget(netns);
        }
        return Ok(());
    }
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

/// The address is chosen by podman itself, before: netavark's part is less than that of the others.
fn netavark_request(number: usize, host_port: usize) -> Value {
    let ip = format!("10.92.{}.{}", (number + 2) / 250, (number + 2) % 250);
    json!({
        "container_id": format!("pod{number}"), "container_name": format!("pod{number}"),
        "port_mappings": [{"host_ip": "", "container_port": 80, "host_port": host_port, "range": 1, "protocol": "tcp"}],
        "networks": {"podman": {"static_ips": [ip], "interface_name": "eth0"}},
        "network_info": {"podman": {"name": "podman", "id": "2f259bab93aa", "driver": "bridge", "network_interface": "bench92",
            "subnets": [{"subnet": "10.92.0.0/16", "gateway": "10.92.0.1"}], "ipv6_enabled": false, "internal": false,
            "dns_enabled": false, "ipam_options": {"driver": "host-local"}}},
    })
}

fn netavark(verb: &str, netns: &str, config: &Value, request: &Value) -> Fallible<()> {
    let mut command = Command::new(NETAVARK);
    command.arg("--config").arg(config["state"].as_str().unwrap_or_default()).args([verb, netns]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().map_err(|error| format!("{NETAVARK}: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(request.to_string().as_bytes())?;
    }
    if child.wait()?.success() { Ok(()) } else { Err(format!("netavark {verb} failed").into()) }
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
