//! The CNI plugin; see [`netplug::cni`].
#![forbid(unsafe_code)]

use std::{
    io::{Read, Write},
    process::ExitCode,
};

use netplug::cni::{Request, run};

fn main() -> ExitCode {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let mut request = Request {
        command: variable("CNI_COMMAND"),
        container: variable("CNI_CONTAINERID"),
        netns: variable("CNI_NETNS"),
        ifname: variable("CNI_IFNAME"),
        args: variable("CNI_ARGS"),
        input: Vec::new(),
    };
    // What can't be read is complained of as what isn't a configuration.
    let _ = std::io::stdin().read_to_end(&mut request.input);
    let (document, code) = match run(&request) {
        Ok(document) => (document, ExitCode::SUCCESS),
        Err(complaint) => (Some(complaint), ExitCode::FAILURE),
    };
    // In one piece: a runtime should not read half of it.
    match document.map(|document| std::io::stdout().write_all(format!("{document:#}\n").as_bytes())) {
        Some(Err(_)) => ExitCode::FAILURE,
        _ => code,
    }
}
