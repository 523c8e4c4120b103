//! A readiness probe whose answer is ours, and a client of the Service that hangs on it: both in the node's network namespace, so that
//! both ends of the time between are known.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

/// What the probe asks.
pub struct Asked {
    ready: Arc<AtomicBool>,
    answers: mpsc::Receiver<(bool, Instant)>,
    netns: PathBuf,
    pub port: u16,
}

impl Asked {
    /// `netns`: the node's.
    pub fn new(netns: PathBuf) -> Self {
        let ready = Arc::new(AtomicBool::new(true));
        let listener = within(netns.clone(), || TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let port = listener.local_addr().expect("it is bound").port();
        let (tell, answers) = mpsc::channel();
        let says = ready.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let ready = says.load(Ordering::Acquire);
                if answer(stream, ready).is_some() && tell.send((ready, Instant::now())).is_err() {
                    return;
                }
            }
        });
        Self { ready, answers, netns, port }
    }

    /// Changes the answer. How long it takes from there until a connection to the Service is what the answer says: accepted or refused.
    pub fn flip(&self, ready: bool, service: SocketAddr) -> Duration {
        self.ready.store(ready, Ordering::Release);
        let answered = loop {
            match self.answers.recv_timeout(Duration::from_secs(30)).expect("the probe asks each second") {
                (said, at) if said == ready => break at,
                _ => {}
            }
        };
        let seen = within(self.netns.clone(), move || {
            while TcpStream::connect_timeout(&service, Duration::from_millis(100)).is_ok() != ready {
                assert!(answered.elapsed() < Duration::from_secs(30), "{service} is never as its endpoint is");
                std::thread::sleep(Duration::from_micros(50));
            }
            Instant::now()
        });
        seen - answered
    }
}

fn within<T: Send + 'static>(netns: PathBuf, job: impl FnOnce() -> T + Send + 'static) -> T {
    let work = move || {
        let netns = File::open(netns).expect("the node's network namespace");
        setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).expect("setns, as root");
        job()
    };
    std::thread::spawn(work).join().expect("it ended well")
}

fn answer(stream: TcpStream, ready: bool) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line).ok()? > 2 {
        line.clear();
    }
    let status = if ready { "200 OK" } else { "503 Service Unavailable" };
    write!(reader.get_mut(), "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok()
}
