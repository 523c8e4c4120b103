//! Builds podholder and the demo program, static, so that the agent carries them in its own binary: one file to install, and a
//! fresh clone needs no second command. Both come from this workspace and its lock file: no network beyond what the agent needs.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is built, and where its sources are, relative to this package.
const PROGRAMS: [(&str, &str); 2] = [("podholder", "holder"), ("demo", "demo")];

fn main() -> Result<(), Box<dyn Error>> {
    let package = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    watch(&package);
    let target = static_target(&env::var("CARGO_CFG_TARGET_ARCH")?, &env::var("TARGET")?)?;
    // A target directory of its own: the outer cargo holds the lock of the workspace's.
    let target_dir = out.join("static");
    build(&package, &target, &target_dir)?;
    for (name, _) in PROGRAMS {
        let program = target_dir.join(&target).join("static").join(name);
        println!("cargo::rustc-env=NODEAGENT_{}={}", name.to_uppercase(), program.display());
    }
    link_at_a_fixed_address()
}

/// A position-independent program of this size has 70,000 relocations, which the loader makes in 200 pages of their own: two thirds
/// of what a command such as `nodeagent version` takes. Stack, heap and libraries are still where nobody can guess. Programs that
/// are linked statically say it to the compiler instead (`make deb`).
fn link_at_a_fixed_address() -> Result<(), Box<dyn Error>> {
    let linked_statically = env::var("CARGO_CFG_TARGET_FEATURE")?.split(',').any(|feature| feature == "crt-static");
    if env::var("CARGO_CFG_TARGET_ENV")? == "gnu" && !linked_statically {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
    Ok(())
}

/// Runs again when the programs' sources or the lock file change, and only then.
fn watch(package: &Path) {
    println!("cargo::rerun-if-changed=build.rs");
    for (_, folder) in PROGRAMS {
        println!("cargo::rerun-if-changed={}", package.join(folder).join("src").display());
        println!("cargo::rerun-if-changed={}", package.join(folder).join("Cargo.toml").display());
    }
    for file in ["Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", package.join("..").join(file).display());
    }
}

/// musl where it's installed (smaller), else the agent's own target, whose C library can be linked statically as well.
fn static_target(arch: &str, agent_target: &str) -> Result<String, Box<dyn Error>> {
    let musl = format!("{arch}-unknown-linux-musl");
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let asked = Command::new(rustc).args(["--print", "target-libdir", "--target", &musl]).output()?;
    let libdir = String::from_utf8_lossy(&asked.stdout);
    let installed = asked.status.success() && Path::new(libdir.trim()).is_dir();
    Ok(if installed { musl } else { agent_target.to_owned() })
}

fn build(package: &Path, target: &str, target_dir: &Path) -> Result<(), Box<dyn Error>> {
    let mut cargo = Command::new(env::var("CARGO")?);
    cargo.current_dir(package.join("..")).args(["build", "--quiet", "--locked", "--profile", "static", "--target", target]);
    cargo.arg("--target-dir").arg(target_dir);
    for (name, _) in PROGRAMS {
        cargo.args(["--package", name]);
    }
    // Not position-independent: no relocations at start, 20 % smaller. What is left to randomize in a process that parses
    // nothing but the agent's words is not worth a page of relocations for each pod.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\u{1f}-Crelocation-model=static");
    // What the outer cargo (or clippy, or a coverage tool) set for the agent isn't meant for these.
    for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET", "CLIPPY_ARGS"]
    {
        cargo.env_remove(name);
    }
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("building podholder and demo for {target}: cargo ended with {status}").into());
    }
    Ok(())
}
