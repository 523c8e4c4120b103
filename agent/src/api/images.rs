//! The image store's acts: pull (with its progress as a stream of JSON lines), load, remove, prune, inspect.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Method;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::call::Call;
use super::{ApiError, Response, reply};

/// What stands behind `images/`; any other word is an image's name.
pub const ACTS: &[&str] = &["pull", "load", "remove", "prune", "inspect"];

/// Answers an act.
pub async fn answer(call: &mut Call, spool: &Path, act: &str) -> Result<Response, ApiError> {
    let method = call.request.method().clone();
    match (act, method) {
        ("pull", Method::POST) => Ok(pull(call, named(call)?)),
        ("load", Method::POST) => load(call, spool).await,
        ("remove", Method::POST) => Ok(reply::json(&call.node.images().remove(&named(call)?).await?)),
        ("prune", Method::POST) => Ok(reply::json(&call.node.images().prune().await?)),
        ("inspect", Method::GET) => Ok(reply::json(&call.node.images().inspect(&named(call)?).await?)),
        _ => Err(ApiError::method_not_allowed()),
    }
}

fn named(call: &Call) -> Result<String, ApiError> {
    call.query.get("image").map(str::to_owned).ok_or_else(|| ApiError::bad_request("which image? say ?image=NAME"))
}

/// Lines: `{"progress":…}` any number of times, then `{"image":…}` or `{"status":…}` (a failure).
fn pull(call: &Call, image: String) -> Response {
    let (sender, response) = reply::streamed("application/json");
    let node = call.node.clone();
    tokio::spawn(async move {
        let (progress, mut steps) = mpsc::channel(256);
        let pulling = node.images().pull(&image, progress);
        tokio::pin!(pulling);
        let last = loop {
            tokio::select! {
                biased;
                Some(step) = steps.recv() => {
                    if line(&sender, "progress", &step).await.is_err() {
                        return;
                    }
                }
                done = &mut pulling => break done,
                // Nobody waits for it any more: pods that need the image pull it themselves.
                () = sender.closed() => return,
            }
        };
        let _ = match last {
            Ok(summary) => line(&sender, "image", &summary).await,
            Err(error) => line(&sender, "status", &ApiError::from(error).status()).await,
        };
    });
    response
}

async fn line(sender: &mpsc::Sender<Bytes>, name: &str, value: &impl Serialize) -> Result<(), mpsc::error::SendError<Bytes>> {
    sender.send(format!("{}\n", json!({ name: value })).into()).await
}

/// Takes an archive as the request's body. It lies in a file meanwhile, as archives are read by seeking.
async fn load(call: &mut Call, spool: &Path) -> Result<Response, ApiError> {
    let archive = Spooled::new(spool);
    let failed = |error: std::io::Error| ApiError::internal(format!("keep the archive in {}: {error}", archive.0.display()));
    tokio::fs::create_dir_all(spool).await.map_err(failed)?;
    let mut options = tokio::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&archive.0).await.map_err(failed)?;
    while let Some(frame) = call.request.body_mut().frame().await {
        let frame = frame.map_err(|error| ApiError::bad_request(format!("the archive stopped half-way: {error}")))?;
        if let Some(data) = frame.data_ref() {
            file.write_all(data).await.map_err(failed)?;
        }
    }
    file.flush().await.map_err(failed)?;
    let images = call.node.images().load(&archive.0).await?;
    let images: Vec<Value> = images.into_iter().map(|image| json!(image)).collect();
    Ok(reply::json(&json!({ "images": images })))
}

/// A file that goes when nobody needs it any more.
struct Spooled(PathBuf);

impl Spooled {
    fn new(folder: &Path) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(folder.join(format!("load-{}-{number}.tar", std::process::id())))
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
