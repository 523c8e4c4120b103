//! A client of the page: what a sidecar does.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use crate::signals::{self, Term};
use crate::{facts, shared};

const PATIENCE: Duration = Duration::from_secs(5);

/// Asks again and again; prints a line each time, and counts in the memory that it shares with the server.
pub fn run(url: &str, every: Duration) -> Result<(), String> {
    signals::handle(Term::Ends)?;
    loop {
        let asked = Instant::now();
        match request(url) {
            Ok(body) => {
                let call = shared::make(shared::KEY).map_or(0, |segment| segment[shared::CALLS].fetch_add(1, Relaxed) + 1);
                println!("{}: call {call}: {url} answered {} bytes in {:?}", facts::hostname(), body.len(), asked.elapsed());
            }
            Err(error) => eprintln!("{error}"),
        }
        thread::sleep(every);
    }
}

/// One request.
pub fn get(url: &str) -> Result<(), String> {
    print!("{}", request(url)?);
    Ok(())
}

fn request(url: &str) -> Result<String, String> {
    let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url}: not an http:// URL"))?;
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let failed = |e: std::io::Error| format!("{url}: {e}");
    let mut stream = TcpStream::connect_timeout(&address(authority).map_err(failed)?, PATIENCE).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n").map_err(failed)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(failed)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).unwrap_or("no answer");
    if status == "200" { Ok(body.to_string()) } else { Err(format!("{url}: {status}")) }
}

/// Names other than localhost need a resolver, which a static binary may lack: so literals never ask it.
fn address(authority: &str) -> std::io::Result<SocketAddr> {
    if let Ok(address) = authority.parse() {
        return Ok(address);
    }
    // The colons of [fd00::1] are its own.
    let (host, port) = authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).unwrap_or((authority, "80"));
    let port = port.parse().map_err(std::io::Error::other)?;
    if host == "localhost" {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    match host.trim_matches(['[', ']']).parse() {
        Ok(ip) => Ok(SocketAddr::new(ip, port)),
        Err(_) => (host, port).to_socket_addrs()?.next().ok_or_else(|| std::io::Error::other("no address")),
    }
}
