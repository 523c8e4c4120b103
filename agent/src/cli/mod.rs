//! The command line: a client of the local API, as kubectl is. Knows the agent only through its socket.

mod adopt;
mod client;
mod debug;
mod delete;
mod describe;
mod describe_workload;
mod diff;
mod exec;
mod forward;
mod get;
mod image;
mod inspect;
mod logs;
mod net;
mod terminal;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use clap_complete::Shell;

pub use client::{CliError, Client};

use crate::durable;
use crate::pod::node::{Check, Verdict};

/// Which agent is meant.
#[derive(Debug, Clone, Default, Args)]
pub struct Target {
    /// The agent's socket [default: /run/nodeagent/agent.sock below --root]
    #[arg(long, global = true, value_name = "PATH", env = "NODEAGENT_SOCKET", help_heading = "Which agent")]
    pub socket: Option<PathBuf>,
}

impl Target {
    /// Where the agent's socket is, `root` being what its own `--root` says.
    pub fn socket(&self, root: Option<&Path>) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| root.unwrap_or(Path::new("/")).join("run/nodeagent/agent.sock"))
    }
}

/// A namespace, as every command on pods takes it.
#[derive(Debug, Clone, Args)]
pub struct Namespace {
    /// The pod's namespace
    #[arg(short = 'n', long, default_value = "default", value_name = "NAME")]
    pub namespace: String,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List pods, events, images, namespaces, or the node
    Get(get::GetArgs),
    /// Show all about a pod, a workload or the node, with its events
    Describe(describe::DescribeArgs),
    /// Print what a pod's containers wrote
    Logs(logs::LogsArgs),
    /// Run a command in a container
    Exec(exec::ExecArgs),
    /// Join the streams of a container's first process
    Attach(exec::AttachArgs),
    /// Start one more container in a running pod, to look around with
    Debug(debug::DebugArgs),
    /// Make a pod's ports reachable on this machine's loopback
    PortForward(forward::ForwardArgs),
    /// End pods; one whose manifest still exists starts anew
    Delete(delete::DeleteArgs),
    /// End a pod and keep it ended until its manifest changes
    Stop(delete::StopArgs),
    /// Let a stopped pod run again
    Start(delete::StartArgs),
    /// Give a file's pod to the API server, or take it back, while it runs
    Adopt(adopt::AdoptArgs),
    /// Show what a pod is on this machine: namespaces, processes, mounts, cgroups
    Inspect(inspect::InspectArgs),
    /// Show each step of a pod's start with its time, and what it waits for
    Explain(inspect::ExplainArgs),
    /// Draw the node's network: bridge, pods, ports, Services, policies; or trace a connection
    Net(net::NetArgs),
    /// Pull, list, load and remove images
    #[command(subcommand, visible_alias = "images")]
    Image(image::ImageCommand),
    /// Write a kubeconfig, so that kubectl works against this agent
    Kubeconfig(KubeconfigArgs),
    /// Check manifests without running them
    Validate(ValidateArgs),
    /// Show what manifests would change of what runs; ends with 1 when they would, with 2 when that can't be told
    Diff(diff::DiffArgs),
    /// Find out whether this machine can run pods, and what to do if not
    Check(CheckArgs),
    /// Print the versions of this program and of the agent that runs
    #[command(after_help = "Examples:\n  nodeagent version")]
    Version,
    /// Print a shell's completion script
    #[command(
        after_help = "Examples:\n  nodeagent completions bash > /etc/bash_completion.d/nodeagent\n  source <(nodeagent completions zsh)"
    )]
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Write the manual's pages
    #[command(after_help = "Examples:\n  nodeagent man --output /usr/local/share/man/man1")]
    Man {
        /// The folder to write into, which must be there
        #[arg(short, long, value_name = "DIR")]
        output: PathBuf,
    },
}

/// Of [`Command`]'s grammar, what scripts run a hundred times a minute: building so little of it takes no time.
#[derive(Debug, Subcommand)]
pub enum Quick {
    /// Run a command in a container
    Exec(exec::ExecArgs),
}

impl From<Quick> for Command {
    fn from(quick: Quick) -> Self {
        match quick {
            Quick::Exec(args) => Self::Exec(args),
        }
    }
}

/// Writing a kubeconfig.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nodeagent kubeconfig --output ~/.kube/nodeagent\n  KUBECONFIG=~/.kube/nodeagent kubectl get pods -A"
)]
pub struct KubeconfigArgs {
    /// Write here, readable by you alone [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Checking manifests.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nodeagent validate manifests/\n  helm template chart | nodeagent validate -")]
pub struct ValidateArgs {
    /// Files or folders; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Checking the machine.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nodeagent check\n  nodeagent check --json | jq '.checks[] | select(.verdict != \"good\")'")]
pub struct CheckArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What a manifest came to.
#[derive(Debug, Default)]
pub struct Validated {
    /// Pods in it that would run.
    pub pods: usize,
    /// ConfigMaps, Secrets and the like.
    pub objects: usize,
    /// Deployments, Jobs and the like.
    pub workloads: usize,
    /// Lines `FILE:LINE:COLUMN: …` of what is wrong.
    pub errors: Vec<String>,
    /// Lines of what is dubious.
    pub warnings: Vec<String>,
}

/// Parses and validates the text of a manifest.
pub type Validate<'a> = dyn Fn(&Path, &[u8]) -> Validated + 'a;

/// Builds a folder with a kustomization.
pub type Build<'a> = dyn Fn(&Path) -> Result<Vec<u8>, String> + 'a;

/// What the commands need that no agent need run for; `main` gives it.
pub struct Local<'a> {
    /// Parses and validates a manifest.
    pub validate: Box<Validate<'a>>,
    /// Builds a folder with a kustomization.
    pub build: Box<Build<'a>>,
    /// Looks at this machine.
    pub check: Box<dyn Fn() -> Vec<Check> + 'a>,
    /// The whole command line, for completions and the manual.
    pub grammar: Box<dyn Fn() -> clap::Command + 'a>,
}

impl fmt::Debug for Local<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Local")
    }
}

/// Runs a command to its end and gives the process's exit code. Prints errors.
pub fn run(command: Command, socket: &Path, local: &Local<'_>) -> ExitCode {
    match execute(command, socket, local) {
        Ok(code) => code,
        // Whoever read our output has what they wanted: `nodeagent logs web | head`.
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command, socket: &Path, local: &Local<'_>) -> Result<ExitCode, CliError> {
    match command {
        Command::Validate(args) => return validate(&args, local),
        Command::Check(args) => return check(&args, local),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut (local.grammar)(), "nodeagent", &mut script);
            return get::show(&String::from_utf8_lossy(&script)).map(|()| ExitCode::SUCCESS);
        }
        Command::Man { output } => {
            let written = clap_mangen::generate_to((local.grammar)(), &output);
            return written.map(|()| ExitCode::SUCCESS).map_err(|error| CliError::file(&output, error));
        }
        _ => {}
    }
    // One thread: a command's whole life is shorter than starting more would take.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Output)?;
    let client = Client::new(socket);
    runtime.block_on(async {
        match command {
            Command::Get(args) => get::run(&client, args).await,
            Command::Describe(args) => describe::run(&client, args).await,
            Command::Logs(args) => logs::run(&client, args).await,
            Command::Exec(args) => exec::run(&client, args).await,
            Command::Attach(args) => exec::attach(&client, args).await,
            Command::Debug(args) => debug::run(&client, args).await,
            Command::PortForward(args) => forward::run(&client, args).await,
            Command::Delete(args) => delete::run(&client, args).await,
            Command::Stop(args) => delete::stop(&client, args).await,
            Command::Start(args) => delete::start(&client, args).await,
            Command::Adopt(args) => adopt::run(&client, args).await,
            Command::Inspect(args) => inspect::run(&client, args).await,
            Command::Explain(args) => inspect::explain(&client, args).await,
            Command::Net(args) => net::run(&client, args).await,
            Command::Image(command) => image::run(&client, command).await,
            Command::Kubeconfig(args) => kubeconfig(&client, args).await,
            Command::Diff(args) => Ok(diff::run(&client, &args, local).await),
            Command::Version => version(&client).await,
            Command::Validate(_) | Command::Check(_) | Command::Completions { .. } | Command::Man { .. } => Ok(ExitCode::SUCCESS),
        }
    })
}

async fn version(client: &Client) -> Result<ExitCode, CliError> {
    get::show(&format!("Client Version: v{}\n", env!("CARGO_PKG_VERSION")))?;
    match client.get("/version").await {
        Ok(version) => {
            // `v1.37.0+nodeagent.0.1.0`: Kubernetes' version, whose types are served, then the agent's own.
            let text = version["gitVersion"].as_str().unwrap_or_default();
            let (kubernetes, agent) = text.split_once("+nodeagent.").unwrap_or((text, "unknown"));
            get::show(&format!("Agent Version: v{agent} (Kubernetes {kubernetes})\n"))?;
        }
        Err(error @ CliError::NoAgent { .. }) => get::show(&format!("Agent Version: none ({error})\n"))?,
        Err(error) => return Err(error),
    }
    Ok(ExitCode::SUCCESS)
}

async fn kubeconfig(client: &Client, args: KubeconfigArgs) -> Result<ExitCode, CliError> {
    let config = client.get(&format!("/apis/{}/v1/kubeconfig", crate::api::GROUP)).await?;
    let text = crate::model::text::write(&config);
    match args.output {
        Some(path) => {
            durable::write(&path, text.as_bytes()).map_err(|error| CliError::file(&path, error))?;
            eprintln!("written to {}: use it with kubectl --kubeconfig {}", path.display(), path.display());
        }
        None => get::show(&text)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn validate(args: &ValidateArgs, local: &Local<'_>) -> Result<ExitCode, CliError> {
    let (mut pods, mut workloads, mut objects, mut wrong) = (0, 0, 0, 0);
    for file in manifests(&args.files)? {
        let bytes = read(&file, local)?;
        let result = (local.validate)(&file, &bytes);
        pods += result.pods;
        workloads += result.workloads;
        objects += result.objects;
        wrong += result.errors.len();
        for line in result.warnings {
            eprintln!("warning: {line}");
        }
        for line in result.errors {
            eprintln!("error: {line}");
        }
    }
    let word = |count: usize, one: &str| if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") };
    let more = [(workloads, "workload"), (objects, "object")].into_iter().filter(|(count, _)| *count > 0);
    let kinds: Vec<String> = std::iter::once((pods, "pod")).chain(more).map(|(count, one)| word(count, one)).collect();
    let valid = format!("{} valid", kinds.join(", "));
    if wrong == 0 {
        get::show(&format!("{valid}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    get::show(&format!("{valid}, {}\n", word(wrong, "error")))?;
    Ok(ExitCode::FAILURE)
}

/// A manifest's text: a file's, standard input's, or what a folder with a kustomization comes to.
fn read(file: &Path, local: &Local<'_>) -> Result<Vec<u8>, CliError> {
    if file == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut bytes).map_err(|error| CliError::file(file, error))?;
        return Ok(bytes);
    }
    if file.is_dir() {
        return (local.build)(file).map_err(|why| CliError::Usage(format!("{}: {why}", file.display())));
    }
    std::fs::read(file).map_err(|error| CliError::file(file, error))
}

/// The files that were named, and those below the folders that were named, as `--manifests` would take them.
fn manifests(paths: &[PathBuf]) -> Result<Vec<PathBuf>, CliError> {
    let mut files = Vec::new();
    for path in paths {
        // A folder with a kustomization is one manifest.
        if !path.is_dir() || crate::source::kustomize::description(path).is_some() {
            files.push(path.clone());
            continue;
        }
        let listed = std::fs::read_dir(path).map_err(|error| CliError::file(path, error))?;
        let mut inside: Vec<PathBuf> = listed.flatten().map(|entry| entry.path()).collect();
        inside.retain(|path| {
            let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            let manifest = path.extension().is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e == *known));
            !hidden && (path.is_dir() && !path.is_symlink() || path.is_file() && manifest)
        });
        inside.sort();
        files.append(&mut manifests(&inside)?);
    }
    Ok(files)
}

fn check(args: &CheckArgs, local: &Local<'_>) -> Result<ExitCode, CliError> {
    let checks = (local.check)();
    let worst = checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Good);
    let code = if worst == Verdict::Bad { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    if args.json {
        get::show(&format!("{}\n", client::pretty(&serde_json::json!({ "checks": checks }))))?;
        return Ok(code);
    }
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    for check in &checks {
        let mark = match check.verdict {
            Verdict::Good => "ok     ",
            Verdict::Limited => "limited",
            Verdict::Bad => "missing",
        };
        get::show(&format!("{mark}  {:width$}  {}\n", check.name, check.found))?;
        if !check.advice.is_empty() {
            get::show(&format!("         {:width$}  → {}\n", "", check.advice))?;
        }
    }
    let verdict = match worst {
        Verdict::Good => "This machine can run pods.",
        Verdict::Limited => "This machine can run pods, with the limits above.",
        Verdict::Bad => "This machine cannot run pods yet: see above what to do.",
    };
    get::show(&format!("{verdict}\n"))?;
    Ok(code)
}
