//! What can go wrong, as sentences for the user: what was tried, on what, what the kernel said, and what to do about it.

use std::{fmt, io, net::IpAddr, path::PathBuf};

use crate::{
    cidr::Cidr,
    ipam::Refusal,
    settings::{Port, Protocol},
};

/// Why the network could not be made as wanted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that cannot be.
    #[error("network settings: {field}: {problem}")]
    Settings {
        /// As it is written in the settings, e.g. `ranges[0].gateway`.
        field: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A bridge of that name is somebody else's.
    #[error("bridge {bridge}: {difference}; name another bridge in the settings, or remove it with `ip link delete {bridge}`")]
    BridgeTaken {
        /// Its name.
        bridge: String,
        /// In what it differs from the settings.
        difference: String,
    },
    /// The host has a route into a range.
    #[error(
        "network settings: ranges[{range}].subnet: {subnet} overlaps the host's route to {route} by {link}: choose another subnet"
    )]
    Overlap {
        /// Which range.
        range: usize,
        /// Its subnet.
        subnet: Cidr,
        /// The route's destination.
        route: Cidr,
        /// The route's interface.
        link: String,
    },
    /// No address.
    #[error("pod {pod}: {refusal}")]
    Address {
        /// `namespace/name`.
        pod: String,
        /// Which range says no, and why.
        refusal: Refusal,
    },
    /// A host port that somebody has.
    #[error("pod {pod}: host port {port} is taken by {holder}: choose another hostPort or hostIP, or stop that first")]
    PortTaken {
        /// `namespace/name`.
        pod: String,
        /// The port that was asked for.
        port: Port,
        /// A pod, or a process of the host.
        holder: PortHolder,
    },
    /// An attachment that makes no sense.
    #[error("pod {pod}: {problem}")]
    Attachment {
        /// `namespace/name`.
        pod: String,
        /// What is wrong.
        problem: String,
    },
    /// The kernel refused.
    #[error("{action}: {source}{hint}")]
    Kernel {
        /// What was tried, on what.
        action: String,
        /// What the kernel said.
        source: Refused,
        /// What to do, if that is known: `; …`.
        hint: &'static str,
    },
    /// A lease could not be read or written.
    #[error("{action} {path}: {source}", path = path.display())]
    State {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// Several things went wrong while removing; the rest was removed.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
    /// The host is in the way.
    #[error("the pod network is not up yet: {0}")]
    NotUp(String),
    /// The network's thread is gone: [`crate::Network::close`] ended it.
    #[error("the pod network was closed")]
    Closed,
}

impl Error {
    /// All the errors of a teardown as one, or nothing.
    pub(crate) fn all(mut errors: Vec<Error>) -> Result<(), Error> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several(errors)),
        }
    }

    /// Whether something of the host is in the way, which its user may change at any time.
    pub(crate) fn is_of_the_host(&self) -> bool {
        matches!(self, Error::Overlap { .. } | Error::BridgeTaken { .. })
    }

    pub(crate) fn settings(field: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Settings { field: field.into(), problem: problem.into() }
    }
}

/// Who has a host port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortHolder {
    /// Another pod, as `namespace/name`.
    Pod(String),
    /// A process of the host, with its PID where that could be found out.
    Process {
        /// `/proc/PID/comm`.
        name: String,
        /// Its PID.
        pid: u32,
    },
    /// A socket whose process could not be found.
    Socket,
}

impl fmt::Display for PortHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortHolder::Pod(pod) => write!(f, "pod {pod}"),
            PortHolder::Process { name, pid } => write!(f, "process {name} ({pid}) of the host"),
            PortHolder::Socket => write!(f, "a process of the host"),
        }
    }
}

/// A netlink request that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The error number, positive.
    pub errno: i32,
    /// The kernel's own words (`NLMSGERR_ATTR_MSG`), where it had some.
    pub detail: Option<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.errno))?;
        match &self.detail {
            Some(detail) => write!(f, ", kernel: {detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refused {}

impl From<rustix::io::Errno> for Refused {
    fn from(errno: rustix::io::Errno) -> Refused {
        Refused { errno: errno.raw_os_error(), detail: None }
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Refused {
        Refused { errno: error.raw_os_error().unwrap_or(libc_eio()), detail: None }
    }
}

/// EIO, for an error without a number.
fn libc_eio() -> i32 {
    rustix::io::Errno::IO.raw_os_error()
}

/// Adds what was tried to what the kernel said.
pub(crate) trait Doing<T> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<Refused>> Doing<T> for Result<T, E> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|error| {
            let source = error.into();
            Error::Kernel { action: action(), hint: hint(source.errno), source }
        })
    }
}

fn hint(errno: i32) -> &'static str {
    match rustix::io::Errno::from_raw_os_error(errno) {
        rustix::io::Errno::PERM | rustix::io::Errno::ACCESS => "; the agent needs CAP_NET_ADMIN: run it as root",
        rustix::io::Errno::XFULL => {
            "; a bridge has no more than 1023 ports, and each of its pods is one: end pods, or take a second network for more"
        }
        rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PROTONOSUPPORT => {
            "; the kernel lacks it: load the modules bridge, veth, nf_tables, nft_nat, nft_masq, nft_fib_inet"
        }
        _ => "",
    }
}

/// A port as it appears in messages: `tcp 127.0.0.1:8080`.
pub(crate) fn show_port(f: &mut fmt::Formatter<'_>, protocol: Protocol, ip: Option<IpAddr>, port: u16) -> fmt::Result {
    match ip {
        None => write!(f, "{port}/{protocol}"),
        Some(IpAddr::V4(ip)) => write!(f, "{ip}:{port}/{protocol}"),
        Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:{port}/{protocol}"),
    }
}
