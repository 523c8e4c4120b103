//! The resolver's sockets, and the way of a question: the zone, the cache, the host's resolvers.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, watch},
    time::timeout,
};

use super::{
    cache::Cache,
    message::{self, Behind, Query},
    upstream::{self, Transport, Upstream},
    zone::{Record, Zone},
};
use crate::cidr::Cidr;

const PORT: u16 = 53;
/// Clients that wait to be accepted.
const BACKLOG: i32 = 1024;
/// Questions that wait for others' answers at once, and TCP connections; what is beyond isn't heard.
const AT_ONCE: usize = 1024;
/// A TCP client's time between two questions.
const IDLE: Duration = Duration::from_secs(10);
/// How long the zone is waited for: clients ask again after 5 s.
const UNTOLD: Duration = Duration::from_secs(4);
/// Aliases that lead to aliases.
const ALIASES: usize = 8;

/// A resolver for pods. Only its own subnets and the host itself are answered: anybody else could use it to flood others.
#[derive(Debug, Clone)]
pub struct Resolver {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    domain: String,
    /// None: it wasn't told yet.
    zone: watch::Sender<Option<Arc<Zone>>>,
    cache: Mutex<Cache>,
    upstream: Upstream,
    clients: Vec<Cidr>,
    /// For questions that others answer. Names of ours need none: while the world is silent, they are told.
    room: Semaphore,
    connections: Arc<Semaphore>,
}

impl Resolver {
    /// Listens on port 53 of these addresses, by UDP and TCP, in the calling thread's network namespace and tokio's
    /// runtime. The addresses needn't be there yet. `clients`: who is answered beside
    /// the host. `domain`: whose names are waited for until [`Resolver::set`] tells them. `resolv_conf`: where the host's resolvers
    /// are read from, whenever one is needed.
    pub fn start(addresses: &[IpAddr], clients: Vec<Cidr>, domain: &str, resolv_conf: PathBuf) -> io::Result<Resolver> {
        let shared = Arc::new(Shared {
            domain: domain.to_ascii_lowercase(),
            zone: watch::Sender::new(None),
            cache: Mutex::default(),
            upstream: Upstream { file: resolv_conf, own: addresses.to_vec() },
            clients,
            room: Semaphore::new(AT_ONCE),
            connections: Arc::new(Semaphore::new(AT_ONCE)),
        });
        let mut sockets = Vec::new();
        for ip in addresses {
            let told = |error: io::Error| io::Error::new(error.kind(), format!("listen on {ip} port {PORT}: {error}"));
            sockets.push(bind((*ip, PORT).into()).map_err(told)?);
        }
        for (udp, tcp) in sockets {
            tokio::spawn(serve_udp(shared.clone(), Arc::new(udp)));
            tokio::spawn(serve_tcp(shared.clone(), tcp));
        }
        Ok(Resolver { shared })
    }

    /// Names as they are from now on.
    pub fn set(&self, zone: impl Into<Arc<Zone>>) {
        self.shared.zone.send_replace(Some(zone.into()));
    }
}

/// Both sockets of an address, which needn't be there yet, nor all the time (IP_FREEBIND): the bridge may come later.
fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let made = |kind| -> io::Result<OwnedFd> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
        match address {
            SocketAddr::V4(_) => sockopt::set_ip_freebind(&socket, true)?,
            SocketAddr::V6(_) => sockopt::set_ipv6_freebind(&socket, true)?,
        }
        if kind == SocketType::STREAM {
            sockopt::set_socket_reuseaddr(&socket, true)?;
        }
        net::bind(&socket, &address)?;
        Ok(socket)
    };
    let (udp, tcp) = (made(SocketType::DGRAM)?, made(SocketType::STREAM)?);
    net::listen(&tcp, BACKLOG)?;
    Ok((UdpSocket::from_std(udp.into())?, TcpListener::from_std(tcp.into())?))
}

async fn serve_udp(shared: Arc<Shared>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; 4096];
    loop {
        // A client that has gone before its answer came (ECONNREFUSED) is no reason to stop.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        if !shared.serves(client) {
            continue;
        }
        let (query, shared, socket) = (buffer[..length].to_vec(), shared.clone(), socket.clone());
        tokio::spawn(async move {
            if let Some(answer) = shared.answer(&query, Transport::Udp).await {
                let _ = socket.send_to(&answer, client).await;
            }
        });
    }
}

async fn serve_tcp(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let Ok((stream, client)) = listener.accept().await else {
            // Out of descriptors: others end some time.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(room) = shared.connections.clone().try_acquire_owned() else { continue };
        if shared.serves(client) {
            let shared = shared.clone();
            tokio::spawn(async move {
                let _ = converse(&shared, stream).await;
                drop(room);
            });
        }
    }
}

async fn converse(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    while let Ok(query) = timeout(IDLE, upstream::read(&mut stream)).await {
        match shared.answer(&query?, Transport::Tcp).await {
            Some(answer) => timeout(IDLE, upstream::write(&mut stream, &answer)).await??,
            None => break,
        }
    }
    Ok(())
}

impl Shared {
    fn serves(&self, client: SocketAddr) -> bool {
        let ip = client.ip().to_canonical();
        // Who is on the host reaches the bridge's address from that address.
        ip.is_loopback() || self.upstream.own.contains(&ip) || self.clients.iter().any(|subnet| subnet.contains(ip))
    }

    async fn answer(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let query = match Query::parse(bytes) {
            Ok(query) => query,
            Err(refusal) => return refusal,
        };
        let Some(zone) = self.zone(&query.name).await else { return query.failed() };
        let answered = match zone.answer(&query.name, query.kind) {
            Some(found) => {
                self.behind(&zone, &found.records, query.kind).await.map(|behind| query.answer(&zone.domain, &found, &behind))
            }
            None => self.ask(bytes, transport).await.map(Some),
        };
        let answer = match answered {
            Ok(answer) => answer,
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return None,
            Err(error) => {
                tracing::debug!(name = query.name, %error, "the host's resolvers don't answer");
                None
            }
        };
        let answer = answer.or_else(|| query.failed())?;
        if transport == Transport::Udp && answer.len() > query.room() { message::truncated(answer) } else { Some(answer) }
    }

    /// The zone, for who asks for this name. One of ours is waited for until the zone is told, for the world would say that there is no such
    /// name: who starts again while pods run knows them a moment later than he is asked.
    async fn zone(&self, name: &str) -> Option<Arc<Zone>> {
        let mut told = self.zone.subscribe();
        let known = told.borrow().clone();
        if known.is_some() || !name.strip_suffix(&self.domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')) {
            return known.or_else(|| Some(Arc::default()));
        }
        let _room = self.room.try_acquire().ok()?;
        timeout(UNTOLD, told.wait_for(Option::is_some)).await.ok()?.ok()?.clone()
    }

    /// What an alias leads to: clients don't ask again. An error where that can't be found out, for the alias alone would say that there is
    /// nothing.
    async fn behind(&self, zone: &Zone, records: &[Record], kind: u16) -> io::Result<Behind> {
        let mut behind = Behind::default();
        let mut next = match records {
            [Record::Alias(name)] if kind != super::zone::CNAME => Some(name.to_ascii_lowercase()),
            _ => None,
        };
        for _ in 0..ALIASES {
            let Some(name) = next.take() else { return Ok(behind) };
            if let Some(answer) = zone.answer(name.trim_end_matches('.'), kind) {
                if let [Record::Alias(further)] = answer.records.as_slice() {
                    next = Some(further.to_ascii_lowercase());
                }
                behind.exists = answer.exists;
                behind.records.extend(answer.records.into_iter().map(|record| (name.clone(), record)));
            } else {
                let question = message::question(0, &name, kind).ok_or(io::ErrorKind::InvalidData)?;
                let mut answer = self.ask(&question, Transport::Udp).await?;
                if message::is_truncated(&answer) {
                    answer = self.ask(&question, Transport::Tcp).await?;
                }
                if message::fails(&answer) {
                    return Err(io::Error::other(format!("{name}: a resolver of the host can't tell")));
                }
                behind.exists = message::exists(&answer);
                behind.records.extend(message::addresses(&answer));
            }
        }
        if next.is_none() { Ok(behind) } else { Err(io::Error::other("aliases that lead to aliases, round and round")) }
    }

    async fn ask(&self, query: &[u8], transport: Transport) -> io::Result<Vec<u8>> {
        let Some(key) = message::cache_key(query) else { return Err(io::ErrorKind::InvalidData.into()) };
        let kept = self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(&key, query, Instant::now());
        if let Some(answer) = kept {
            return Ok(answer);
        }
        let _room = self.room.try_acquire().map_err(|_| io::ErrorKind::ResourceBusy)?;
        let answer = self.upstream.ask(query, transport).await?;
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).put(key, &answer, Instant::now());
        Ok(answer)
    }
}
