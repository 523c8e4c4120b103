//! Manual pages, made of the command line's own grammar: what `--help` says, for `man`.

use std::path::PathBuf;

use clap::Args;
use clap_mangen::Man;

use super::{CliError, get};

/// Manual pages.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write nodeagent.1, nodeagent-get.1 and all others into this folder [default: the first to standard output]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Prints one page, or writes all.
pub fn run(args: &ManArgs, grammar: &clap::Command) -> Result<(), CliError> {
    let Some(folder) = &args.output else {
        let mut page = Vec::new();
        Man::new(grammar.clone()).render(&mut page).map_err(CliError::Output)?;
        return get::show(&String::from_utf8_lossy(&page));
    };
    let written = std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(grammar.clone(), folder));
    written.map_err(|error| CliError::Broken { doing: "write the manual pages", message: format!("{}: {error}", folder.display()) })
}
