//! gRPC over what is linked already: h2 carries the calls, prost the messages, whose fields are written down by hand (`#[prost]`), so that
//! neither a code generator nor protoc is needed. What plugins of the node speak, and health probes. Knows nobody.
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

mod authority;
pub mod client;
mod frame;
pub mod server;

use std::fmt;

use hyper::HeaderMap;

pub use client::Channel;

/// Messages of plugins are far smaller; lists of devices may be long.
const LONGEST_MESSAGE: usize = 16 << 20;

/// Why a call came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Status {
    /// As gRPC numbers them.
    pub code: Code,
    /// The other side's words, or ours.
    pub message: String,
}

/// As grpc-go shows it, whose words users know from the kubelet.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rpc error: code = {} desc = {}", self.code, self.message)
    }
}

impl Status {
    /// One of these words.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// What headers or trailers tell; nothing, where the call went well or they say nothing.
    fn told(headers: &HeaderMap) -> Result<(), Self> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match text("grpc-status") {
            "" | "0" => Ok(()),
            code => Err(Self::new(Code(code.parse().unwrap_or(Code::UNKNOWN.0)), decoded(text("grpc-message")))),
        }
    }
}

impl From<h2::Error> for Status {
    fn from(error: h2::Error) -> Self {
        Self::new(Code::UNAVAILABLE, error.to_string())
    }
}

/// A number of gRPC's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    /// Whoever asked wants it no more.
    pub const CANCELLED: Self = Self(1);
    /// Whoever answered knows no better.
    pub const UNKNOWN: Self = Self(2);
    /// The request can never succeed.
    pub const INVALID_ARGUMENT: Self = Self(3);
    /// It took too long.
    pub const DEADLINE_EXCEEDED: Self = Self(4);
    /// There is no such thing.
    pub const NOT_FOUND: Self = Self(5);
    /// Something has run out.
    pub const RESOURCE_EXHAUSTED: Self = Self(8);
    /// Not in the present state.
    pub const FAILED_PRECONDITION: Self = Self(9);
    /// Somebody else is at it.
    pub const ABORTED: Self = Self(10);
    /// Beyond what there is.
    pub const OUT_OF_RANGE: Self = Self(11);
    /// There is no such method.
    pub const UNIMPLEMENTED: Self = Self(12);
    /// A rule of gRPC was broken.
    pub const INTERNAL: Self = Self(13);
    /// Nobody answers.
    pub const UNAVAILABLE: Self = Self(14);
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 17] = [
            "OK",
            "Canceled",
            "Unknown",
            "InvalidArgument",
            "DeadlineExceeded",
            "NotFound",
            "AlreadyExists",
            "PermissionDenied",
            "ResourceExhausted",
            "FailedPrecondition",
            "Aborted",
            "OutOfRange",
            "Unimplemented",
            "Internal",
            "Unavailable",
            "DataLoss",
            "Unauthenticated",
        ];
        match NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "Code({})", self.0),
        }
    }
}

/// `grpc-message` is percent-encoded.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = || u8::from_str_radix(std::str::from_utf8(after.get(..2)?).ok()?, 16).ok();
        let escaped = if *first == b'%' { hex() } else { None };
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn encoded(text: &str) -> String {
    let plain = |byte: u8| (0x20..0x7f).contains(&byte) && byte != b'%';
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("plain words", "plain words")]
    #[case("50%25 of %C3%A4", "50% of ä")]
    #[case("cut %2", "cut %2")]
    #[case("%zz", "%zz")]
    fn messages_are_decoded(#[case] given: &str, #[case] expected: &str) {
        assert_eq!(decoded(given), expected);
        assert_eq!(decoded(&encoded(expected)), expected);
    }

    #[test]
    fn a_status_reads_as_grpc_go_writes_it() {
        assert_eq!(Status::new(Code::NOT_FOUND, "x").to_string(), "rpc error: code = NotFound desc = x");
        assert_eq!(Code(99).to_string(), "Code(99)");
    }
}
