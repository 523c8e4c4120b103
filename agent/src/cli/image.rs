//! `image pull|ls|load|rm|prune|inspect`.

use std::collections::HashMap;
use std::fmt::Write;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bytes::Bytes;
use clap::{Args, Subcommand};
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::Method;
use hyper::body::Frame;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio_util::io::ReaderStream;

use super::CliError;
use super::client::{Client, Lines, pretty};
use super::get::show;
use crate::api::table::{Look, Printer};
use crate::api::{GROUP, encode, human};
use crate::pod::node::{ImageSummary, PullPhase, PullProgress, Reclaimed};

/// What to do with images.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  nodeagent image pull nginx:1.27\n  nodeagent image ls\n  podman save redis | nodeagent image load -\n  nodeagent image prune"
)]
pub enum ImageCommand {
    /// Fetch images from their registries
    Pull(Named),
    /// List the images
    #[command(alias = "list")]
    Ls {
        /// With digests and pins
        #[arg(long)]
        wide: bool,
    },
    /// Take images from an archive (docker-archive, OCI) or an OCI folder
    Load {
        /// The archive or folder; `-` is standard input
        file: PathBuf,
    },
    /// Remove images
    #[command(alias = "remove")]
    Rm(Named),
    /// Remove every image that no pod uses
    Prune,
    /// Show all about an image, as JSON
    Inspect(Named),
}

/// Images by name.
#[derive(Debug, Args)]
pub struct Named {
    /// Name, digest, or the beginning of a digest
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// Does it.
pub async fn run(client: &Client, command: ImageCommand) -> Result<ExitCode, CliError> {
    match command {
        ImageCommand::Pull(named) => {
            for image in &named.images {
                pull(client, image).await?;
            }
        }
        ImageCommand::Ls { wide } => {
            let table = client.get_table(&format!("/apis/{GROUP}/v1/images")).await?;
            show(&Printer::new(Look { wide, ..Look::default() }).print(&table))?;
        }
        ImageCommand::Load { file } => load(client, &file).await?,
        ImageCommand::Rm(named) => {
            for image in &named.images {
                reclaimed(client.act(Method::POST, &act("remove", Some(image))).await?)?;
            }
        }
        ImageCommand::Prune => reclaimed(client.act(Method::POST, &act("prune", None)).await?)?,
        ImageCommand::Inspect(named) => {
            for image in &named.images {
                show(&(pretty(&client.get(&act("inspect", Some(image))).await?) + "\n"))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn act(name: &str, image: Option<&str>) -> String {
    let image = image.map(|image| format!("?image={}", encode(image))).unwrap_or_default();
    format!("/apis/{GROUP}/v1/images/{name}{image}")
}

fn read<T: serde::de::DeserializeOwned>(object: Value) -> Result<T, CliError> {
    serde_json::from_value(object)
        .map_err(|error| CliError::Broken { doing: "read the agent's answer", message: error.to_string() })
}

fn reclaimed(answer: Value) -> Result<(), CliError> {
    let freed: Reclaimed = read(answer)?;
    let mut text = String::new();
    for name in &freed.removed {
        let _ = writeln!(text, "removed {name}");
    }
    let _ = writeln!(text, "{} freed", human::size(freed.bytes));
    show(&text)
}

async fn pull(client: &Client, image: &str) -> Result<(), CliError> {
    let mut lines = Lines::new(client.post_stream(&act("pull", Some(image))).await?);
    let mut shown = Shown::new(image);
    while let Some(line) = lines.next().await? {
        let mut line: Value = serde_json::from_slice(&line).unwrap_or_default();
        if !line["progress"].is_null() {
            shown.progress(&read(line["progress"].take())?);
        } else if !line["image"].is_null() {
            let done: ImageSummary = read(line["image"].take())?;
            shown.clear();
            show(&format!("{image}: {} ({})\n", done.id, human::size(done.size)))?;
            return Ok(());
        } else {
            shown.clear();
            return Err(CliError::status(&line["status"]));
        }
    }
    Err(CliError::Broken { doing: "pull the image", message: "the agent ended the stream".to_owned() })
}

/// Bars on a terminal; elsewhere a line at each blob's beginning and end.
enum Shown {
    Bars { all: MultiProgress, bars: HashMap<String, ProgressBar>, style: ProgressStyle },
    Lines { image: String, phases: HashMap<String, PullPhase> },
}

impl Shown {
    fn new(image: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines { image: image.to_owned(), phases: HashMap::new() };
        }
        let style = ProgressStyle::with_template("{prefix} {msg:12} [{wide_bar}] {bytes:>10}/{total_bytes:10}");
        Self::Bars {
            all: MultiProgress::new(),
            bars: HashMap::new(),
            style: style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "),
        }
    }

    fn progress(&mut self, step: &PullProgress) {
        let short: String = step.blob.strip_prefix("sha256:").unwrap_or(&step.blob).chars().take(12).collect();
        let word = match step.phase {
            PullPhase::Downloading => "downloading",
            PullPhase::Unpacking => "unpacking",
            PullPhase::Complete => "complete",
            PullPhase::Exists => "exists",
        };
        match self {
            Self::Bars { all, bars, style } => {
                let bar = bars
                    .entry(step.blob.clone())
                    .or_insert_with(|| all.add(ProgressBar::new(step.total).with_style(style.clone()).with_prefix(short)));
                bar.set_length(step.total.max(step.done));
                bar.set_position(if matches!(step.phase, PullPhase::Complete | PullPhase::Exists) {
                    step.total
                } else {
                    step.done
                });
                bar.set_message(word);
            }
            Self::Lines { image, phases } => {
                if phases.insert(step.blob.clone(), step.phase) != Some(step.phase) {
                    eprintln!("{image}: {short} {word} {}", human::size(step.total));
                }
            }
        }
    }

    fn clear(&self) {
        if let Self::Bars { bars, .. } = self {
            for bar in bars.values() {
                bar.abandon();
            }
        }
    }
}

async fn load(client: &Client, file: &Path) -> Result<(), CliError> {
    let failed = |error| CliError::file(file, error);
    let archive: Box<dyn tokio::io::AsyncRead + Send + Unpin> = if file == Path::new("-") {
        let stdin = std::io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
        Box::new(tokio::fs::File::from_std(stdin.into()))
    } else if file.is_dir() {
        Box::new(folder(file).map_err(failed)?)
    } else {
        Box::new(tokio::fs::File::open(file).await.map_err(failed)?)
    };
    let chunks = ReaderStream::with_capacity(archive, 256 * 1024).map(|chunk: std::io::Result<Bytes>| chunk.map(Frame::data));
    let answer = client.send(Method::POST, &act("load", None), StreamBody::new(chunks).boxed_unsync()).await?;
    let images: Vec<ImageSummary> = read(answer["images"].clone())?;
    for image in images {
        show(&format!("loaded {} ({})\n", image.tags.first().unwrap_or(&image.id), human::size(image.size)))?;
    }
    Ok(())
}

/// A folder as the archive that holds it, written by a thread as it is read.
fn folder(path: &Path) -> std::io::Result<tokio::net::unix::pipe::Receiver> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let path = path.to_owned();
    std::thread::spawn(move || {
        let mut archive = tar::Builder::new(std::fs::File::from(writer));
        archive.follow_symlinks(false);
        // A folder that can't be read to its end makes an archive without one: the agent says so.
        if let Err(error) = archive.append_dir_all(".", &path).and_then(|()| archive.finish()) {
            eprintln!("error: {}: {error}", path.display());
        }
    });
    tokio::net::unix::pipe::Receiver::from_owned_fd(reader)
}
