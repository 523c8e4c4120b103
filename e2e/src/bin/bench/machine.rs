//! What the numbers were measured on.

use serde_json::{Value, json};

/// Kernel, processor, memory, and who the other side is.
pub fn facts() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "processor": format!("{} × {}", cpuinfo.matches("processor\t").count(), field(&cpuinfo, "model name")),
        "memory": field(&read("/proc/meminfo"), "MemTotal"),
        "other side": format!("{}, {}, netavark, catatonit", version("podman"), version("crun")),
        "load at the start": read("/proc/loadavg").split(' ').next().unwrap_or_default(),
    })
}

fn field(text: &str, name: &str) -> String {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_once(':').map(|(_, value)| value.trim().to_string()).unwrap_or_default()
}

fn version(program: &str) -> String {
    let output = e2e::run(std::process::Command::new(program).arg("--version"));
    output.stdout.lines().next().unwrap_or_default().replace(" version", "")
}
