//! Programs of others that know logins: a question on standard input, the answer on standard output.

use std::io;
use std::process::{Output, Stdio};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// Bytes of an answer.
const LONGEST: u64 = 1 << 20;

/// What it says when it is asked. One that runs on when nobody waits any more is killed.
pub(super) async fn ask(mut command: Command, question: &[u8]) -> io::Result<Output> {
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.kill_on_drop(true).spawn()?;
    let stdin = child.stdin.take();
    let asking = async {
        if let Some(mut stdin) = stdin {
            // One that doesn't read it says the rest by its exit status.
            let _ = stdin.write_all(question).await;
        }
    };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ((), stdout, stderr) = tokio::join!(asking, all_of(stdout), all_of(stderr));
    Ok(Output { status: child.wait().await?, stdout: stdout?, stderr: stderr? })
}

async fn all_of(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(LONGEST).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}
