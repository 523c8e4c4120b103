//! As much of an HTTP/1.1 server as the page needs: one request a connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use crate::signals::{self, Term};
use crate::{facts, page, shared};

/// A client that is slower than this gets nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longer requests are nobody's.
const LONGEST: u64 = 16 * 1024;

/// Serves until a signal comes.
pub fn serve(port: &str) -> Result<(), String> {
    signals::handle(Term::Ends)?;
    let port: u16 = port.parse().map_err(|e| format!("--port {port}: {e}"))?;
    let listener = listen(port).map_err(|e| format!("listen on port {port}: {e}"))?;
    println!("{}: listening on port {port}", facts::hostname());
    for connection in listener.incoming() {
        match connection {
            Ok(stream) => {
                thread::spawn(move || {
                    let peer = stream.peer_addr().map_or_else(|_| "?".into(), |peer| peer.ip().to_canonical().to_string());
                    match answer(stream) {
                        Ok(request) => println!("{peer} {request}"),
                        Err(error) => eprintln!("{peer} {error}"),
                    }
                });
            }
            Err(error) => eprintln!("accept: {error}"),
        }
    }
    Ok(())
}

/// Both families where there is IPv6, else IPv4.
fn listen(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).or_else(|_| TcpListener::bind(("0.0.0.0", port)))
}

fn answer(mut stream: TcpStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (request, wants_html) = read_request(&stream)?;
    let path = request.split(' ').nth(1).unwrap_or("/");
    if let Ok(segment) = shared::make(shared::KEY) {
        segment[shared::PAGES].fetch_add(1, Relaxed);
    }
    let (status, kind, body) = respond(path, wants_html);
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    if !request.starts_with("HEAD ") {
        stream.write_all(body.as_bytes())?;
    }
    Ok(format!("{request} {}", &status[..3]))
}

fn respond(path: &str, wants_html: bool) -> (&'static str, &'static str, String) {
    let hostname = facts::hostname();
    match path.split('?').next().unwrap_or("/") {
        "/" if wants_html => ("200 OK", "text/html", page::html(&hostname, &facts::sections())),
        "/" => ("200 OK", "text/plain", page::text(&hostname, &facts::sections())),
        "/json" => ("200 OK", "application/json", page::json(&hostname, &facts::sections())),
        "/hostname" => ("200 OK", "text/plain", format!("{hostname}\n")),
        "/healthz" => ("200 OK", "text/plain", "ok\n".into()),
        _ => ("404 Not Found", "text/plain", "There are /, /json, /hostname and /healthz.\n".into()),
    }
}

/// `METHOD PATH` and whether the client reads HTML.
fn read_request(stream: &TcpStream) -> std::io::Result<(String, bool)> {
    let mut lines = BufReader::new(stream.take(LONGEST)).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut wants_html = false;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        wants_html |= line.starts_with("accept:") && line.contains("text/html");
    }
    let words: Vec<&str> = first.split(' ').take(2).collect();
    Ok((words.join(" "), wants_html))
}
