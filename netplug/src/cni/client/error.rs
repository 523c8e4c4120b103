//! What can go wrong between a runtime and its plugins, as sentences for who must mend it: which file, which field, which plugin.

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use super::super::answer::Complaint;

/// Why a pod could not be wired by plugins.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A network configuration that cannot be.
    #[error("{file}: {field}: {problem}", file = file.display())]
    Config {
        /// Which.
        file: PathBuf,
        /// As it is written: `plugins[1].type`; of what can't be parsed, line and column.
        field: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// No network at all.
    #[error(
        "no CNI network configuration in {dir}: install the cluster's network add-on, or put a .conflist there",
        dir = dir.display()
    )]
    NoNetwork {
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// No network of that name.
    #[error("no CNI network {name:?} in {dir}: {there}", dir = dir.display())]
    Unknown {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
        /// What there is instead.
        there: String,
    },
    /// A plugin did not do what it was told.
    #[error("{file}: plugins[{index}]: {plugin} {verb}: {failure}", file = file.display(), plugin = plugin.display())]
    Plugin {
        /// The configuration that names it.
        file: PathBuf,
        /// Its place there.
        index: usize,
        /// The program.
        plugin: PathBuf,
        /// ADD, DEL …
        verb: &'static str,
        /// What came of it.
        failure: Box<Failure>,
    },
    /// A file of ours.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Several things went wrong while removing; the rest was removed.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
}

impl Error {
    pub(super) fn config(file: &Path, field: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Config { file: file.to_owned(), field: field.into(), problem: problem.into() }
    }

    pub(super) fn all(mut errors: Vec<Error>) -> Result<(), Error> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several(errors)),
        }
    }

    /// Whether the plugin itself says that it will be better later, by the specification's code for it.
    pub fn is_temporary(&self) -> bool {
        const TRY_AGAIN_LATER: u32 = 11;
        let Error::Plugin { failure, .. } = self else { return false };
        matches!(&**failure, Failure::Refused(complaint) if complaint.code == TRY_AGAIN_LATER)
    }
}

pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

/// What a plugin did instead of what it was told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// It says why it could not.
    #[error("{}", words(.0))]
    Refused(Complaint),
    /// It could not even be started.
    #[error("could not be executed: {0}")]
    NotExecuted(io::Error),
    /// It was killed.
    #[error("did not end within {} s and was killed; what it had written: {said:?}", patience.as_secs())]
    Hung {
        /// How long it was waited for.
        patience: Duration,
        /// The beginning of its standard error, or output.
        said: String,
    },
    /// It ended badly, without the document that the specification wants then.
    #[error("failed ({status}) and says {said:?}")]
    Died {
        /// How.
        status: ExitStatus,
        /// The beginning of its standard error, or output.
        said: String,
    },
    /// It ended well, but what it says is no result.
    #[error("answers with what is no CNI result: {problem}: {said:?}")]
    Garbage {
        /// Where it stops being one.
        problem: String,
        /// Its beginning.
        said: String,
    },
    /// Its result is of another version of the specification.
    #[error("answers in CNI version {found}, though it was asked in {asked}")]
    Version {
        /// What it was asked in.
        asked: &'static str,
        /// What it answered in.
        found: String,
    },
    /// Its answer has no end.
    #[error("writes more than {0} bytes")]
    TooMuch(usize),
}

fn words(complaint: &Complaint) -> String {
    let Complaint { code, msg, details } = complaint;
    match details.as_str() {
        "" => format!("{msg} (code {code})"),
        _ => format!("{msg}: {details} (code {code})"),
    }
}
