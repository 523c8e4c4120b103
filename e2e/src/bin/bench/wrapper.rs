//! What podman takes for crun: asks for no more than the machine may give, then is crun.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Its name in containers.conf, and the one by which this program is called to be it.
pub const NAME: &str = "crun-without-rlimits";

/// podman asks for rlimits above root's hard ones, which needs CAP_SYS_RESOURCE: not every machine's root has it.
pub fn without_rlimits(words: &[String]) -> ExitCode {
    let bundle = words.iter().position(|word| word == "--bundle" || word == "-b").and_then(|at| words.get(at + 1));
    if let Some(bundle) = bundle {
        drop_rlimits(&Path::new(bundle).join("config.json"));
    }
    let error = Command::new("crun").args(words).exec();
    eprintln!("crun: {error}");
    ExitCode::FAILURE
}

fn drop_rlimits(path: &Path) {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let parsed = serde_json::from_slice(&text);
    let mut configuration: serde_json::Value = parsed.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    if let Some(process) = configuration["process"].as_object_mut() {
        process.remove("rlimits");
    }
    std::fs::write(path, configuration.to_string()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
