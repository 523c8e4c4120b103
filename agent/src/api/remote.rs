//! exec and attach: a process's descriptors on one side, a client's streams on the other. Which protocol carries the streams is
//! not known here.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::call::{Call, Target};
use super::descriptor::Descriptor;
use super::logs::{container, remark};
use super::query::Query;
use super::{ApiError, Response, channels, streams, websocket};
use crate::model::PodUid;
use crate::pod::node::{AtEnd, AttachRequest, ExecProcess, ExecRequest, Node, NodeError, Stdio, TerminalSize};

/// Bytes moved at a time.
const CHUNK: usize = 32 * 1024;
/// How long the hangup of a terminal may take after its process's end.
const HANGUP: Duration = Duration::from_millis(500);

/// What a process says to its client.
#[derive(Debug)]
pub enum Output {
    /// From its stdout, or its terminal.
    Stdout(Bytes),
    /// From its stderr.
    Stderr(Bytes),
    /// How it ended: a `Status`. The last that is said.
    Status(Value),
}

/// The process's end of a client's streams.
#[derive(Debug)]
pub struct Peer {
    /// What goes to its stdin; no more: end of file.
    pub stdin: mpsc::Receiver<Bytes>,
    /// The client's window.
    pub sizes: mpsc::Receiver<TerminalSize>,
    /// Closed when the client is gone.
    pub output: mpsc::Sender<Output>,
}

/// The client's end.
#[derive(Debug)]
pub struct Transport {
    /// Dropped at the end of the client's stdin.
    pub stdin: Option<mpsc::Sender<Bytes>>,
    /// The client's window.
    pub sizes: mpsc::Sender<TerminalSize>,
    /// Dropped when the client is gone.
    pub output: mpsc::Receiver<Output>,
}

/// Two ends that belong together. Little is buffered: whoever is slow makes the other wait.
pub fn pair(stdin: bool) -> (Peer, Transport) {
    let (stdin_sender, stdin_receiver) = mpsc::channel(4);
    let (size_sender, sizes) = mpsc::channel(4);
    let (output_sender, output) = mpsc::channel(8);
    let transport = Transport { stdin: stdin.then_some(stdin_sender), sizes: size_sender, output };
    (Peer { stdin: stdin_receiver, sizes, output: output_sender }, transport)
}

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The container.
    pub container: String,
    /// Of an exec; an attach has none.
    pub argv: Vec<String>,
    /// The client sends stdin.
    pub stdin: bool,
    /// The client wants stdout.
    pub stdout: bool,
    /// The client wants stderr.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

impl Options {
    fn parse(query: &Query, container: &str) -> Result<Self, ApiError> {
        let tty = query.flag("tty");
        let options = Self {
            container: container.to_owned(),
            argv: query.all("command").map(str::to_owned).collect(),
            stdin: query.flag("stdin"),
            stdout: query.flag("stdout"),
            stderr: query.flag("stderr") && !tty,
            tty,
        };
        if !(options.stdin || options.stdout || options.stderr) {
            return Err(ApiError::bad_request("you must specify at least one of stdin, stdout, stderr"));
        }
        Ok(options)
    }
}

/// Answers `pods/exec`.
pub fn exec(call: Call, target: &Target) -> Result<Response, ApiError> {
    let options = Options::parse(&call.query, container(&target.pod, call.query.get("container"))?)?;
    if options.argv.is_empty() || options.argv.iter().any(|word| word.contains('\0')) {
        return Err(ApiError::bad_request("you must specify at least 1 command for the container"));
    }
    let (node, uid) = (call.node.clone(), target.uid.clone());
    let asked = call.query.get("container").map(str::to_owned);
    let given = options.container.clone();
    let mut response = upgrade(call, options, move |options, peer| async move { run_exec(&node, &uid, options, peer).await })?;
    remark(&mut response, &target.pod, asked.as_deref(), &given);
    Ok(response)
}

/// Answers `pods/attach`.
pub fn attach(call: Call, target: &Target) -> Result<Response, ApiError> {
    let options = Options::parse(&call.query, container(&target.pod, call.query.get("container"))?)?;
    let (node, uid) = (call.node.clone(), target.uid.clone());
    let asked = call.query.get("container").map(str::to_owned);
    let given = options.container.clone();
    let mut response = upgrade(call, options, move |options, peer| async move { run_attach(&node, &uid, options, peer).await })?;
    remark(&mut response, &target.pod, asked.as_deref(), &given);
    Ok(response)
}

/// Changes the connection's protocol to the one that the client speaks, and lets `run` use it.
fn upgrade<F>(
    mut call: Call,
    options: Options,
    run: impl FnOnce(Options, Peer) -> F + Send + 'static,
) -> Result<Response, ApiError>
where
    F: Future<Output = ()> + Send + 'static,
{
    let place = call.place.clone();
    if websocket::is_wanted(call.request.headers()) {
        let (response, protocol, socket) = websocket::accept(&mut call.request, channels::REMOTE_COMMAND)?;
        tokio::spawn(async move {
            let _place = place;
            let Ok(socket) = socket.await else { return };
            let (peer, transport) = pair(options.stdin);
            tokio::join!(run(options.clone(), peer), channels::carry(socket, protocol, &options, transport));
        });
        return Ok(response);
    }
    if streams::is_wanted(call.request.headers()) {
        let (response, connection) = streams::accept(&mut call.request, streams::REMOTE_COMMAND)?;
        tokio::spawn(async move {
            let _place = place;
            let Ok(connection) = connection.await else { return };
            let (peer, transport) = pair(options.stdin);
            streams::carry(connection, &options.clone(), transport, run(options, peer)).await;
        });
        return Ok(response);
    }
    Err(upgrade_required())
}

/// For a client that asks for a stream as if it were a page.
pub fn upgrade_required() -> ApiError {
    ApiError::bad_request("Upgrade request required: use WebSocket (v5.channel.k8s.io) or SPDY/3.1")
}

/// Runs one more process in a container until it ends or the client is gone, which ends it, too.
pub async fn run_exec(node: &Arc<dyn Node>, uid: &PodUid, options: Options, peer: Peer) {
    let output = peer.output.clone();
    let status = match start(node, uid, &options).await {
        Ok((process, streams)) => match converse(process, streams, peer).await {
            Ok(code) => exit_status(code),
            Err(error) => ApiError::from(error).status(),
        },
        Err(NodeError::Command { code, message }) => {
            let text = Bytes::from(format!("{message}\n"));
            let said = if options.stderr { Output::Stderr(text) } else { Output::Stdout(text) };
            let _ = output.send(said).await;
            exit_status(code)
        }
        Err(error) => ApiError::from(error).status(),
    };
    let _ = output.send(Output::Status(status)).await;
}

/// Our ends of a process's streams.
#[derive(Default)]
struct Streams {
    stdin: Option<Descriptor>,
    stdout: Option<Descriptor>,
    stderr: Option<Descriptor>,
    /// A terminal is one descriptor both ways.
    terminal: Option<Arc<Descriptor>>,
    /// What is to be done once no more goes to stdin.
    last: Option<AtEnd>,
}

async fn start(node: &Arc<dyn Node>, uid: &PodUid, options: &Options) -> Result<(ExecProcess, Streams), NodeError> {
    let failed = |error: io::Error| NodeError::Internal(format!("make the pipes of an exec: {error}"));
    let mut streams = Streams::default();
    let stdio = if options.tty {
        Stdio::Terminal(None)
    } else {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()));
        let (stdin, stdin_writer) = pipe()?;
        let (stdout_reader, stdout) = pipe()?;
        let (stderr_reader, stderr) = pipe()?;
        streams.stdin = Some(Descriptor::new(stdin_writer).map_err(failed)?);
        streams.stdout = Some(Descriptor::new(stdout_reader).map_err(failed)?);
        streams.stderr = Some(Descriptor::new(stderr_reader).map_err(failed)?);
        Stdio::Pipes { stdin, stdout, stderr }
    };
    let request = ExecRequest { container: options.container.clone(), argv: options.argv.clone(), stdio };
    let mut process = node.exec(uid, request).await?;
    if let Some(master) = process.terminal.take() {
        streams.terminal = Some(Arc::new(Descriptor::new(master).map_err(failed)?));
    }
    Ok((process, streams))
}

/// Moves bytes until the process has ended and all that it wrote is sent.
async fn converse(process: ExecProcess, streams: Streams, peer: Peer) -> Result<i32, NodeError> {
    let Peer { stdin, sizes, output } = peer;
    let (ended, drained) = (CancellationToken::new(), CancellationToken::new());
    let terminal = streams.terminal.is_some();
    let feeding = tokio::spawn(feed(stdin, streams.stdin, streams.terminal.clone()));
    let sizing = tokio::spawn(resize(sizes, streams.terminal.clone()));
    let stdout = streams.stdout.map(Arc::new).or(streams.terminal);
    let pumps = async {
        let stderr = streams.stderr.map(Arc::new);
        tokio::join!(pump(stdout, &output, Output::Stdout, &ended), pump(stderr, &output, Output::Stderr, &ended));
        drained.cancel();
    };
    let exit = async {
        let mut exit = process.exit;
        let code = tokio::select! {
            code = &mut exit => code,
            () = output.closed() => {
                // An exec belongs to its client.
                (process.kill)();
                exit.await
            }
        };
        // A pipe holds by now all that the process wrote; what a background child still has open must not keep the client
        // waiting. A terminal's last words come a moment later, with the hangup at its session's end.
        if terminal {
            let _ = tokio::time::timeout(HANGUP, drained.cancelled()).await;
        }
        ended.cancel();
        code
    };
    let (code, ()) = tokio::join!(exit, pumps);
    feeding.abort();
    sizing.abort();
    code
}

/// Joins a container's streams until it ends or the client goes.
pub async fn run_attach(node: &Arc<dyn Node>, uid: &PodUid, options: Options, peer: Peer) {
    let output = peer.output.clone();
    let status = match join(node, uid, &options).await {
        Ok(streams) => {
            share(streams, peer).await;
            exit_status(0)
        }
        Err(error) => ApiError::from(error).status(),
    };
    let _ = output.send(Output::Status(status)).await;
}

async fn join(node: &Arc<dyn Node>, uid: &PodUid, options: &Options) -> Result<Streams, NodeError> {
    let Options { stdin, stdout, stderr, .. } = *options;
    let attached = node.attach(uid, AttachRequest { container: options.container.clone(), stdin, stdout, stderr }).await?;
    let open = |fd: Option<OwnedFd>| {
        fd.map(Descriptor::new)
            .transpose()
            .map_err(|error| NodeError::Internal(format!("attach to {}: {error}", options.container)))
    };
    let mut streams = Streams { stdout: open(attached.stdout)?, stderr: open(attached.stderr)?, ..Streams::default() };
    streams.last = attached.last;
    match (open(attached.stdin)?, attached.terminal) {
        (Some(master), true) => streams.terminal = Some(Arc::new(master)),
        (pipe, _) => streams.stdin = pipe,
    }
    Ok(streams)
}

async fn share(streams: Streams, peer: Peer) {
    let Peer { stdin, sizes, output } = peer;
    let never = CancellationToken::new();
    let writes_only = streams.stdout.is_none() && streams.stderr.is_none();
    let (pipe, terminal, last) = (streams.stdin, streams.terminal.clone(), streams.last);
    let mut feeding = tokio::spawn(async move {
        feed(stdin, pipe, terminal).await;
        drop(last);
    });
    let sizing = tokio::spawn(resize(sizes, streams.terminal));
    let pumps = futures::future::join(
        pump(streams.stdout.map(Arc::new), &output, Output::Stdout, &never),
        pump(streams.stderr.map(Arc::new), &output, Output::Stderr, &never),
    );
    tokio::select! {
        _ = pumps, if !writes_only => {}
        _ = &mut feeding, if writes_only => {}
        () = output.closed() => {}
    }
    feeding.abort();
    sizing.abort();
}

/// Client → stdin. What a process doesn't want is dropped, so that its client never waits for a reader that isn't there.
async fn feed(mut from: mpsc::Receiver<Bytes>, pipe: Option<Descriptor>, terminal: Option<Arc<Descriptor>>) {
    let mut open = true;
    while let Some(bytes) = from.recv().await {
        let Some(to) = pipe.as_ref().or(terminal.as_deref()).filter(|_| open) else { continue };
        open = to.write_all(&bytes).await.is_ok();
    }
}

async fn resize(mut sizes: mpsc::Receiver<TerminalSize>, terminal: Option<Arc<Descriptor>>) {
    while let Some(TerminalSize { rows, columns }) = sizes.recv().await {
        if let Some(terminal) = &terminal {
            let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            let _ = tcsetwinsize(terminal.get_ref(), size);
        }
    }
}

/// stdout or stderr → client, to the end of file; after `ended` only what is there already.
async fn pump(from: Option<Arc<Descriptor>>, to: &mpsc::Sender<Output>, wrap: fn(Bytes) -> Output, ended: &CancellationToken) {
    let Some(from) = from else { return };
    let mut chunk = BytesMut::zeroed(CHUNK);
    loop {
        let read = tokio::select! {
            biased;
            read = from.read(&mut chunk) => read,
            () = ended.cancelled() => return,
        };
        let Ok(length @ 1..) = read else { return };
        if to.send(wrap(Bytes::copy_from_slice(&chunk[..length]))).await.is_err() {
            return;
        }
    }
}

/// `Status` of a process that ended with this code, as the kubelet writes it.
fn exit_status(code: i32) -> Value {
    if code == 0 {
        return json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" });
    }
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
    })
}
