//! `/run`: a command in a container, its whole output as one answer.

use std::time::Duration;

use bytes::BytesMut;

use crate::api::call::{Call, Target};
use crate::api::logs::container;
use crate::api::remote::{self, Options, Output, pair};
use crate::api::{ApiError, Response, reply};

/// The most that a command may say; the CRI's limit of an exec.
const LIMIT: usize = 16 << 20;
/// How long it may take: nobody sees what it says until it has ended.
const TIME: Duration = Duration::from_secs(600);

/// Runs the words of the query's `cmd`, split at spaces as the kubelet does.
pub async fn answer(call: &Call, target: &Target, name: &str) -> Result<Response, ApiError> {
    let argv: Vec<String> =
        call.query.get("cmd").unwrap_or_default().split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
    if argv.is_empty() || argv.iter().any(|word| word.contains('\0')) {
        return Err(ApiError::bad_request("cmd: which command?"));
    }
    let container = container(&target.pod, Some(name))?.to_owned();
    let options = Options { container, argv, stdin: false, stdout: true, stderr: true, tty: false };
    let (peer, transport) = pair(false);
    let remote::Transport { mut output, .. } = transport;
    let saying = async {
        let mut said = BytesMut::new();
        while let Some(piece) = output.recv().await {
            match piece {
                Output::Stdout(bytes) | Output::Stderr(bytes) if said.len() + bytes.len() > LIMIT => {
                    return Err(ApiError::internal(format!("the command said more than {LIMIT} bytes; use exec")));
                }
                Output::Stdout(bytes) | Output::Stderr(bytes) => said.extend_from_slice(&bytes),
                Output::Status(status) if status["status"] == "Success" => return Ok(said.freeze()),
                Output::Status(status) => {
                    let message = status["message"].as_str().unwrap_or("the command failed");
                    return Err(ApiError::internal(format!("{message}: {}", String::from_utf8_lossy(&said))));
                }
            }
        }
        Err(ApiError::internal("the command's end was not told"))
    };
    // A task of its own: when nobody listens any more, it ends the command.
    let (node, uid) = (call.node.clone(), target.uid.clone());
    tokio::spawn(async move { remote::run_exec(&node, &uid, options, peer).await });
    let late = |_| ApiError::internal(format!("the command did not end within {} s; use exec", TIME.as_secs()));
    tokio::time::timeout(TIME, saying).await.map_err(late)?.map(|bytes| reply::whole("application/json", bytes))
}
