//! Parses the command line, and runs the agent or a command against one that runs.
#![forbid(unsafe_code)]

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use nodeagent::cli::{self, Local, Target, Validated};
use nodeagent::config::{self, Flags, LogFormat, Root, Settings};
use nodeagent::pod::node::Check;
use nodeagent::{daemon, machine, model, source};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// A Kubernetes-style node agent with the container runtime inside it.
///
/// With --manifests it runs the pods of a folder; with a command it asks the agent that runs.
#[derive(Debug, Parser)]
#[command(name = "nodeagent", version, after_help = EXAMPLES, subcommand_negates_reqs = true)]
struct Cli<C: Subcommand = cli::Command, F: Args = Flags> {
    #[command(subcommand)]
    command: Option<C>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    flags: F,
}

impl Cli {
    /// The grammar of all commands takes longer to build than exec's round trip does. So exec is tried by its own; whatever that
    /// doesn't take, be it another command or a mistake, is the whole grammar's to judge.
    fn read() -> Self {
        let quick = std::env::args_os().any(|word| word == "exec").then(QuickCli::try_parse);
        match quick {
            Some(Ok(quick)) => quick.into(),
            _ => Self::parse(),
        }
    }
}

/// As much of the grammar as exec needs.
type QuickCli = Cli<cli::Quick, Root>;

impl From<QuickCli> for Cli {
    fn from(quick: QuickCli) -> Self {
        let flags = Flags { root: quick.flags, ..Flags::default() };
        Self { command: quick.command.map(cli::Command::from), target: quick.target, flags }
    }
}

const EXAMPLES: &str = "Examples:
  nodeagent --manifests /etc/nodeagent/manifests   run the pods of a folder, and follow its changes
  nodeagent get pods                               what runs
  nodeagent logs web -c client -f                  what a container writes
  nodeagent exec -it web -- sh                     a shell in it
  nodeagent check                                  can this machine run pods?";

/// Threads that carry the agent's tasks; more would only cost memory. What blocks has threads of its own.
const THREADS: usize = 2;

fn main() -> ExitCode {
    let cli = Cli::read();
    match cli.command {
        Some(command) => cli::run(command, &cli.target.socket(cli.flags.root.folder.as_deref()), &local(&cli.flags)),
        None => agent(&cli.flags),
    }
}

fn local(flags: &Flags) -> Local<'_> {
    Local {
        validate: Box::new(validate),
        build: Box::new(source::kustomize::build),
        check: Box::new(|| check(flags)),
        grammar: Box::new(Cli::<cli::Command>::command),
    }
}

fn check(flags: &Flags) -> Vec<Check> {
    let lib = flags.root.folder.as_deref().unwrap_or(Path::new("/")).join("var/lib/nodeagent");
    // A configuration that can't be read is told by the agent that can't start with it.
    let settings = config::load(flags).map(|settings| (daemon::network(&settings), settings.shutdown));
    let (network, shutdown) = settings.unwrap_or_default();
    machine::check::thorough(&lib, &network, &shutdown)
}

fn validate(file: &Path, text: &[u8]) -> Validated {
    let loaded = model::load(file, text, &model::Defaults { node_name: "node".into() });
    Validated {
        pods: loaded.pods.len(),
        objects: loaded.objects.len(),
        workloads: loaded.workloads.len(),
        errors: loaded.errors.iter().map(ToString::to_string).collect(),
        warnings: loaded.warnings.iter().map(ToString::to_string).collect(),
    }
}

fn agent(flags: &Flags) -> ExitCode {
    podholder::sys::keep_little_memory();
    let settings = match config::load(flags) {
        Ok(settings) => settings,
        Err(errors) => {
            for error in errors {
                eprintln!("nodeagent: {error}");
            }
            return ExitCode::FAILURE;
        }
    };
    if settings.manifests.is_empty() && settings.cluster.is_none() {
        eprintln!(
            "nodeagent: no source of pods: say --manifests DIR or --kubeconfig FILE, or `manifests:` or `kubeconfig:` in the configuration; --help shows more"
        );
        return ExitCode::FAILURE;
    }
    log(&settings);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    let ran = match runtime {
        Ok(runtime) => {
            let ran = runtime.block_on(daemon::run(settings));
            // A thread that hangs in a system call (a dead disk) must not keep a stop waiting.
            runtime.shutdown_background();
            ran
        }
        Err(error) => Err(error.into()),
    };
    let error = match ran {
        Ok(daemon::Ending::Stopped) => return ExitCode::SUCCESS,
        Ok(daemon::Ending::Again) => begin_anew().to_string(),
        Err(error) => error.to_string(),
    };
    eprintln!("nodeagent: {error}");
    ExitCode::FAILURE
}

/// As if the agent had been killed and started: that is how every agent comes after another. Returns only if that fails.
fn begin_anew() -> std::io::Error {
    let mut words = std::env::args_os();
    let mut command = std::process::Command::new("/proc/self/exe");
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    command.args(words).exec()
}

fn log(settings: &Settings) {
    // At its most talkative that one shows every byte that goes through exec, attach and port-forward.
    let filter = Targets::new()
        .with_default(LevelFilter::from(settings.log.level))
        .with_target("tungstenite", LevelFilter::from(settings.log.level).min(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let log = tracing_subscriber::registry().with(filter);
    match settings.log.format {
        LogFormat::Text => log.with(lines).init(),
        LogFormat::Json => log.with(lines.json()).init(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn execs_own_grammar_takes_what_the_whole_one_takes_and_as_it_does() {
        let quick = [
            "nodeagent exec web ls",
            "nodeagent exec -it web -c app -- sh -c exec",
            "nodeagent --root /r exec --socket /s -n other pod/web -- get --help",
            "nodeagent exec -n other web --root /r -- ls -l",
        ];
        for line in quick {
            let quick = <Cli>::from(QuickCli::try_parse_from(line.split(' ')).unwrap());
            let whole = <Cli>::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(format!("{quick:?}"), format!("{whole:?}"), "{line}");
        }
        for line in
            ["nodeagent get exec", "nodeagent --root exec get pods", "nodeagent exec --help", "nodeagent exec", "nodeagent exce"]
        {
            assert!(QuickCli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn the_grammar_holds_together() {
        Cli::<cli::Command>::command().debug_assert();
        QuickCli::command().debug_assert();
    }
}
