//! The host's own resolvers, as its resolv.conf names them now.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::message;

/// One resolver's time before the next is asked; all of them are asked twice.
const PATIENCE: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;
const LARGEST: usize = 65_535;

/// By which way a question came, and goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

#[derive(Debug)]
pub(crate) struct Upstream {
    /// resolv.conf(5).
    pub(crate) file: PathBuf,
    /// Addresses of our own: to ask them would go round in circles.
    pub(crate) own: Vec<IpAddr>,
}

impl Upstream {
    /// Asks one after the other, until one knows; who says that it can't tell is asked once. The question goes as it came but for its ID, so
    /// EDNS and all flags reach who can follow them.
    pub(crate) async fn ask(&self, query: &[u8], transport: Transport) -> io::Result<Vec<u8>> {
        let servers = self.servers();
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{} names no resolver", self.file.display()));
        for _ in 0..ROUNDS {
            let mut refusal = None;
            for server in &servers {
                match timeout(PATIENCE, exchange(*server, query, transport)).await {
                    Ok(Ok(answer)) if message::passes_on(&answer) => refusal = refusal.or(Some(answer)),
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(error)) => last = error,
                    Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{server} does not answer")),
                }
            }
            if let Some(refusal) = refusal {
                return Ok(refusal);
            }
        }
        Err(last)
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        let words = text.lines().filter_map(|line| line.split(['#', ';']).next()?.trim().strip_prefix("nameserver"));
        let ips = words.filter_map(|word| word.trim().parse::<IpAddr>().ok());
        ips.filter(|ip| !self.own.contains(ip)).map(|ip| SocketAddr::new(ip, 53)).collect()
    }
}

async fn exchange(server: SocketAddr, query: &[u8], transport: Transport) -> io::Result<Vec<u8>> {
    let mut query = query.to_vec();
    let mut id = [0; 2];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    let asked = query.get(..2).map(<[u8]>::to_vec).unwrap_or_default();
    query.iter_mut().zip(id).for_each(|(to, from)| *to = from);
    let mut answer = match transport {
        Transport::Udp => by_udp(server, &query).await?,
        Transport::Tcp => by_tcp(server, &query).await?,
    };
    answer.iter_mut().zip(asked).for_each(|(to, from)| *to = from);
    Ok(answer)
}

/// From a port of the kernel's choice, and connected: who else sends something isn't heard.
async fn by_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; LARGEST];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if message::answers(&buffer[..length], query) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn by_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write(&mut stream, query).await?;
    let answer = read(&mut stream).await?;
    if message::answers(&answer, query) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// A message by TCP: its length, and itself.
pub(crate) async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let mut whole = (message.len() as u16).to_be_bytes().to_vec();
    whole.extend(message);
    stream.write_all(&whole).await
}

pub(crate) async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}
