//! `exec` and `attach`: the terminal on this side, Kubernetes' channels to the agent.

use std::convert::Infallible;
use std::io::{self, Write};
use std::pin::pin;
use std::process::ExitCode;

use clap::Args;
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::tungstenite::Message;

use super::client::{Client, pod_name, pod_path};
use super::{CliError, Namespace, terminal};
use crate::api::channels::{NEWEST, channel, message};
use crate::api::encode;
use crate::api::websocket::Socket;

/// Running a command.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nodeagent exec web -- cat /etc/hostname\n  nodeagent exec -it web -c app -- sh\n  tar c src | nodeagent exec -i web -- tar x -C /tmp\n\nThe exit code is the command's own."
)]
pub struct ExecArgs {
    #[command(flatten)]
    streams: Streams,
    #[command(flatten)]
    namespace: Namespace,
    /// The pod
    pod: String,
    /// The command and its arguments, best after `--`
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Joining a process.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nodeagent attach web\n  nodeagent attach -it shell -c sh")]
pub struct AttachArgs {
    #[command(flatten)]
    streams: Streams,
    #[command(flatten)]
    namespace: Namespace,
    /// The pod
    pod: String,
}

#[derive(Debug, Args)]
struct Streams {
    /// Pass standard input on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// The process has a terminal
    #[arg(short = 't', long)]
    tty: bool,
    /// The container [default: the pod's default or first one]
    #[arg(short = 'c', long)]
    container: Option<String>,
}

impl AttachArgs {
    /// Joins a container with its standard input.
    pub fn of(namespace: Namespace, pod: String, container: String, tty: bool) -> Self {
        Self { streams: Streams { stdin: true, tty, container: Some(container) }, namespace, pod }
    }
}

impl Streams {
    fn query(&self) -> String {
        let container = self.container.as_deref().map(|name| format!("&container={}", encode(name))).unwrap_or_default();
        format!("?stdin={}&stdout=true&stderr={}&tty={}{container}", self.stdin, !self.tty, self.tty)
    }
}

/// Runs a command.
pub async fn run(client: &Client, mut args: ExecArgs) -> Result<ExitCode, CliError> {
    if args.streams.tty && !(args.streams.stdin && terminal::is_terminal()) {
        // As kubectl: a pipe has no window and no keys.
        if args.streams.stdin {
            eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
        }
        args.streams.tty = false;
    }
    let mut path = pod_path(&args.namespace.namespace, pod_name(&args.pod)?, "/exec") + &args.streams.query();
    for word in &args.command {
        path.push_str("&command=");
        path.push_str(&encode(word));
    }
    converse(client, &path, &args.streams).await
}

/// Joins a process.
pub async fn attach(client: &Client, args: AttachArgs) -> Result<ExitCode, CliError> {
    let path = pod_path(&args.namespace.namespace, pod_name(&args.pod)?, "/attach") + &args.streams.query();
    if args.streams.tty && args.streams.stdin {
        eprintln!("If you don't see a command prompt, try pressing enter.");
    }
    converse(client, &path, &args.streams).await
}

async fn converse(client: &Client, path: &str, streams: &Streams) -> Result<ExitCode, CliError> {
    let socket = client.websocket(path, NEWEST).await?;
    let raw = (streams.tty && streams.stdin && terminal::is_terminal()).then(terminal::Raw::enter).transpose()?;
    let mut ended = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    let status = tokio::select! {
        status = carry(socket, streams) => status,
        _ = ended.recv() => Ok(None),
        _ = hung_up.recv() => Ok(None),
    };
    // Before anything is printed: lines need their carriage returns back.
    drop(raw);
    let Some(status) = status? else { return Ok(ExitCode::FAILURE) };
    exit_code(&status)
}

fn exit_code(status: &Value) -> Result<ExitCode, CliError> {
    if status["status"] == "Success" {
        return Ok(ExitCode::SUCCESS);
    }
    let causes = status["details"]["causes"].as_array().into_iter().flatten();
    let code =
        causes.filter(|cause| cause["reason"] == "ExitCode").find_map(|cause| cause["message"].as_str()?.parse::<u8>().ok());
    match code {
        Some(code) => {
            eprintln!("command terminated with exit code {code}");
            Ok(ExitCode::from(code))
        }
        None => Err(CliError::status(status)),
    }
}

/// Moves bytes until the agent says how it ended.
async fn carry(socket: Socket, streams: &Streams) -> Result<Option<Value>, CliError> {
    let broken = |error: tokio_tungstenite::tungstenite::Error| CliError::Broken {
        doing: "talk to the process",
        message: error.to_string(),
    };
    let (sink, mut messages) = socket.split();
    // Side by side: a process that waits for us to read its output doesn't read our input.
    let mut speaking = pin!(speak(sink, streams));
    loop {
        let message = tokio::select! {
            message = messages.next() => message,
            failed = &mut speaking => match failed? {},
        };
        match message {
            Some(Ok(Message::Binary(bytes))) => match bytes.first() {
                Some(&channel::STDOUT) => write(&mut io::stdout().lock(), &bytes[1..])?,
                Some(&channel::STDERR) => write(&mut io::stderr().lock(), &bytes[1..])?,
                Some(&channel::ERROR) => return Ok(serde_json::from_slice(&bytes[1..]).ok()),
                _ => {}
            },
            Some(Ok(Message::Close(_))) | None => {
                return Err(CliError::Broken { doing: "talk to the process", message: "the agent ended the stream".to_owned() });
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(broken(error)),
        }
    }
}

/// Sends keys and sizes. Of a process that has ended meanwhile, the agent's word is still to come: a failed send isn't the end.
async fn speak(mut sink: SplitSink<Socket, Message>, streams: &Streams) -> Result<Infallible, CliError> {
    let mut resized = signal(SignalKind::window_change())?;
    if let Some(size) = window(streams) {
        let _ = sink.send(size).await;
    }
    let mut input = streams.stdin.then(terminal::input);
    loop {
        let said = tokio::select! {
            bytes = async { input.as_mut()?.recv().await }, if input.is_some() => if let Some(bytes) = bytes {
                message(channel::STDIN, &bytes)
            } else {
                input = None;
                message(channel::CLOSE, &[channel::STDIN])
            },
            _ = resized.recv() => match window(streams) {
                Some(size) => size,
                None => continue,
            },
        };
        let _ = sink.send(said).await;
    }
}

fn window(streams: &Streams) -> Option<Message> {
    let size = terminal::size().filter(|_| streams.tty)?;
    Some(message(channel::RESIZE, json!({ "Width": size.columns, "Height": size.rows }).to_string().as_bytes()))
}

fn write(to: &mut impl Write, bytes: &[u8]) -> Result<(), CliError> {
    to.write_all(bytes)?;
    to.flush()?;
    Ok(())
}
