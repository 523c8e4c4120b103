//! Connections from inside a pod, or from the node.

use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::libc;
use tokio::net::{TcpSocket, TcpStream};

use crate::runtime::holder::Holder;

/// Where connections begin.
#[derive(Debug, Clone)]
pub enum Dialer {
    /// In the pod's network namespace: the holder, which is in it, opens the socket.
    Pod(Holder),
    /// In the agent's.
    Node,
}

impl Dialer {
    /// `host` is an address, or (from the node) a name.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match (self, bare.parse::<IpAddr>()) {
            (Self::Pod(holder), Ok(ip)) => {
                let to = SocketAddr::new(ip, port);
                connect_in(holder, to).await.map_err(|error| told(&to.to_string(), error))
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

/// A connection from inside the pod's network namespace.
pub async fn connect_in(holder: &Holder, to: SocketAddr) -> io::Result<TcpStream> {
    let domain = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = holder.socket(domain, libc::SOCK_STREAM, 0).await.map_err(io::Error::other)?;
    TcpSocket::from_std_stream(std::net::TcpStream::from(socket)).connect(to).await
}
