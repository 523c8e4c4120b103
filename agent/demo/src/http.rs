//! As much of an HTTP/1.1 server as the page needs: one request a connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use crate::signals::{self, Term};
use crate::{facts, page, shared};

/// A client that is slower than this gets nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longer requests are nobody's.
const LONGEST: u64 = 16 * 1024;

/// What a server says on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Talk {
    /// A line a request.
    Requests,
    /// Nothing of them.
    Errors,
}

/// Serves until a signal comes.
pub fn serve(port: &str, talk: Talk) -> Result<(), String> {
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
                        Ok(request) if talk == Talk::Requests => println!("{peer} {request}"),
                        Ok(_) => {}
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
pub fn listen(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).or_else(|_| TcpListener::bind(("0.0.0.0", port)))
}

fn answer(mut stream: TcpStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let Request { line: request, headers } = read_request(&stream)?;
    let wants_html = headers.iter().any(|h| h.starts_with("accept:") && h.contains("text/html"));
    let path = request.split(' ').nth(1).unwrap_or("/");
    if path == "/headers" {
        println!("{}", headers.join(" | "));
    }
    if let Ok(segment) = shared::make(shared::KEY) {
        segment[shared::PAGES].fetch_add(1, Relaxed);
    }
    let (status, kind, body) = respond(path, wants_html);
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n",
        body.len()
    )?;
    if let Some((_, to)) = path.split_once("/redirect?") {
        write!(stream, "Location: {to}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
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
        "/redirect" => ("302 Found", "text/plain", "elsewhere\n".into()),
        "/headers" => ("200 OK", "text/plain", "they are in the log\n".into()),
        path => match path.strip_prefix("/exists") {
            Some(file) if Path::new(file).exists() => ("200 OK", "text/plain", "it does\n".into()),
            Some(_) => ("503 Service Unavailable", "text/plain", "it does not\n".into()),
            None => ("404 Not Found", "text/plain", "See demo help.\n".into()),
        },
    }
}

/// What a client asked for.
struct Request {
    /// `METHOD PATH`.
    line: String,
    /// In lower case.
    headers: Vec<String>,
}

fn read_request(stream: &TcpStream) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream.take(LONGEST)).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut headers = Vec::new();
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        headers.push(line);
    }
    let words: Vec<&str> = first.split(' ').take(2).collect();
    Ok(Request { line: words.join(" "), headers })
}
