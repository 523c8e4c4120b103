//! As much of HTTP/2 as gRPC's health check takes: whatever is called is answered as `Health/Check`, SERVING for as long as a file is
//! there. <https://httpwg.org/specs/rfc9113.html>, <https://httpwg.org/specs/rfc7541.html>

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread;

use crate::http::listen;
use crate::signals::{self, Term};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// What every connection begins with: `PRI * HTTP/2.0` and so on.
const PREFACE: usize = 24;
/// No frame is longer unless somebody says that it may be.
const LONGEST: usize = 16 * 1024;

/// Serves until a signal comes.
pub fn serve(port: &str, file: &str) -> Result<(), String> {
    signals::handle(Term::Ends)?;
    let port: u16 = port.parse().map_err(|e| format!("--port {port}: {e}"))?;
    let listener = listen(port).map_err(|e| format!("listen on port {port}: {e}"))?;
    for stream in listener.incoming().flatten() {
        let file = file.to_owned();
        // A client that hangs up has its answer.
        thread::spawn(move || converse(stream, Path::new(&file)));
    }
    Ok(())
}

fn converse(mut stream: TcpStream, file: &Path) -> std::io::Result<()> {
    let mut preface = [0; PREFACE];
    stream.read_exact(&mut preface)?;
    write(&mut stream, SETTINGS, 0, 0, &[])?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags) = (head[3], head[4]);
        let number = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if length > LONGEST {
            return Ok(());
        }
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload)?;
        match kind {
            SETTINGS if flags & ACK == 0 => write(&mut stream, SETTINGS, ACK, 0, &[])?,
            PING if flags & ACK == 0 => write(&mut stream, PING, ACK, 0, &payload)?,
            DATA | HEADERS if flags & END_STREAM != 0 => answer(&mut stream, number, file.exists())?,
            _ => {}
        }
    }
}

fn answer(stream: &mut TcpStream, number: u32, serving: bool) -> std::io::Result<()> {
    // `:status: 200` has a number of its own; the others are spelled out.
    let mut head = vec![0x88];
    head.extend(header("content-type", "application/grpc"));
    write(stream, HEADERS, END_HEADERS, number, &head)?;
    write(stream, DATA, 0, number, &[0, 0, 0, 0, 2, 8, if serving { 1 } else { 2 }])?;
    write(stream, HEADERS, END_HEADERS | END_STREAM, number, &header("grpc-status", "0"))
}

fn header(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

fn write(stream: &mut TcpStream, kind: u8, flags: u8, number: u32, payload: &[u8]) -> std::io::Result<()> {
    let length = (payload.len() as u32).to_be_bytes();
    let head = [&length[1..], &[kind, flags], &number.to_be_bytes()].concat();
    stream.write_all(&[&head, payload].concat())
}
