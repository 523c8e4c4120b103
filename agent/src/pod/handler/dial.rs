//! Connections from inside a pod, or from the node.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::net::AddressFamily;
use tokio::net::{TcpSocket, TcpStream};

use crate::runtime::Sockets;
use crate::runtime::holder::Holder;

/// Where connections begin.
#[derive(Debug, Clone)]
pub enum Dialer {
    /// In a pod's network namespace.
    Pod(Inside),
    /// In the agent's.
    Node,
}

impl Dialer {
    /// `host` is an address, or (from the node) a name.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match (self, bare.parse::<IpAddr>()) {
            (Self::Pod(inside), Ok(ip)) => {
                let to = SocketAddr::new(ip, port);
                inside.connect(to).await.map_err(|error| told(&to.to_string(), error))
            }
            (Self::Pod(_), Err(_)) => Err(io::Error::other(format!("dial tcp: {host} is no address"))),
            (Self::Node, _) => TcpStream::connect((bare, port)).await.map_err(|error| told(&format!("{host}:{port}"), error)),
        }
    }
}

fn told(to: &str, error: io::Error) -> io::Error {
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        _ => error.to_string(),
    };
    io::Error::new(error.kind(), format!("dial tcp {to}: {why}"))
}

/// A pod's network namespace.
#[derive(Debug, Clone)]
pub struct Inside {
    sockets: Arc<Sockets>,
    process: Arc<OwnedFd>,
}

impl Inside {
    /// The one that this holder is in.
    pub fn new(sockets: &Arc<Sockets>, holder: &Holder) -> Self {
        Self { sockets: sockets.clone(), process: holder.process() }
    }

    /// A connection from there.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = self.sockets.tcp(self.process.clone(), family).await?;
        TcpSocket::from_std_stream(std::net::TcpStream::from(socket)).connect(to).await
    }
}
