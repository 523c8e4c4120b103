//! `port-forward`: a listener for each port, a WebSocket for each connection.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use clap::Args;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;

use super::client::{Client, pod_name, pod_path};
use super::get::show;
use super::{CliError, Namespace};
use crate::api::channels::message;
use crate::api::portforward::channels::{DATA, ERROR, PROTOCOLS};

/// Forwarding ports.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nodeagent port-forward web 8080:80\n  nodeagent port-forward web 80 443 --address 127.0.0.2\n  nodeagent port-forward web :80     (any free local port)"
)]
pub struct ForwardArgs {
    /// The pod
    pod: String,
    #[command(flatten)]
    namespace: Namespace,
    /// LOCAL:REMOTE, PORT for both, or :REMOTE for any free local one
    #[arg(required = true, value_name = "PORTS")]
    ports: Vec<String>,
    /// Where to listen
    #[arg(long, default_values = ["127.0.0.1"], value_delimiter = ',')]
    address: Vec<String>,
}

/// Forwards until interrupted.
pub async fn run(client: &Client, args: ForwardArgs) -> Result<ExitCode, CliError> {
    let pod = pod_name(&args.pod)?.to_owned();
    // Says now that there is no such pod, not at the first connection.
    client.get(&pod_path(&args.namespace.namespace, &pod, "")).await?;
    let mut listeners = Vec::new();
    for spec in &args.ports {
        let (local, remote) = ports(spec)?;
        for address in &args.address {
            let listener = listen(address, local).await?;
            let bound = listener.local_addr()?;
            show(&format!("Forwarding from {bound} -> {remote}\n"))?;
            listeners.push((listener, remote, bound.port()));
        }
    }
    let serving = listeners.into_iter().map(|(listener, remote, local)| {
        let path = pod_path(&args.namespace.namespace, &pod, &format!("/portforward?ports={remote}"));
        accept(client.clone(), listener, path, local)
    });
    futures::future::try_join_all(serving).await?;
    Ok(ExitCode::SUCCESS)
}

fn ports(spec: &str) -> Result<(u16, u16), CliError> {
    let wrong = || CliError::Usage(format!("{spec}: write LOCAL:REMOTE, PORT, or :REMOTE, ports being 1 to 65535"));
    let (local, remote) = spec.split_once(':').unwrap_or((spec, spec));
    let remote = remote.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
    let local = if local.is_empty() { 0 } else { local.parse().map_err(|_| wrong())? };
    Ok((local, remote))
}

async fn listen(address: &str, port: u16) -> Result<TcpListener, CliError> {
    let ip: IpAddr = match address {
        "localhost" => IpAddr::from([127, 0, 0, 1]),
        other => other.parse().map_err(|_| CliError::Usage(format!("--address {other}: not an IP address")))?,
    };
    let socket = SocketAddr::new(ip, port);
    TcpListener::bind(socket).await.map_err(|error| CliError::Usage(format!("listen on {socket}: {error}")))
}

async fn accept(client: Client, listener: TcpListener, path: String, local: u16) -> Result<(), CliError> {
    loop {
        let (stream, _) = listener.accept().await?;
        // Nobody reads it any more: the connections matter.
        let _ = show(&format!("Handling connection for {local}\n"));
        let (client, path) = (client.clone(), path.clone());
        tokio::spawn(async move {
            if let Err(error) = carry(&client, &path, stream).await {
                eprintln!("{error}");
            }
        });
    }
}

async fn carry(client: &Client, path: &str, stream: TcpStream) -> Result<(), CliError> {
    let socket = client.websocket(path, PROTOCOLS[0]).await?;
    let broken = |error: tokio_tungstenite::tungstenite::Error| CliError::Broken {
        doing: "forward a connection",
        message: error.to_string(),
    };
    let (mut sink, mut messages) = socket.split();
    let (mut reader, mut writer) = stream.into_split();
    let upload = async {
        let mut chunk = vec![0; 32 * 1024];
        loop {
            match reader.read(&mut chunk).await {
                Ok(length @ 1..) => sink.send(message(DATA, &chunk[..length])).await.map_err(broken)?,
                // The protocol can't say that one direction is at its end: the other goes on.
                _ => return std::future::pending::<Result<(), CliError>>().await,
            }
        }
    };
    let download = async {
        // Each channel begins with a message that repeats the port.
        let mut greetings = 2;
        while let Some(message) = messages.next().await {
            let Message::Binary(bytes) = message.map_err(broken)? else { continue };
            if greetings > 0 {
                greetings -= 1;
                continue;
            }
            match bytes.first() {
                Some(&DATA) => writer.write_all(&bytes[1..]).await?,
                Some(&ERROR) => {
                    return Err(CliError::Broken {
                        doing: "forward a connection",
                        message: String::from_utf8_lossy(&bytes[1..]).into_owned(),
                    });
                }
                _ => {}
            }
        }
        Ok(())
    };
    tokio::select! {
        done = upload => done,
        done = download => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("8080:80", Some((8080, 80)))]
    #[case("80", Some((80, 80)))]
    #[case(":80", Some((0, 80)))]
    #[case("0:80", Some((0, 80)))]
    #[case("80:", None)]
    #[case("x", None)]
    #[case("70000", None)]
    #[case("80:0", None)]
    fn port_specs(#[case] spec: &str, #[case] expected: Option<(u16, u16)>) {
        assert_eq!(ports(spec).ok(), expected);
    }
}
