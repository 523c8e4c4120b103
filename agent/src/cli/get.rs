//! `get`: tables as the server makes them, or the objects.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::CliError;
use super::client::{Client, Lines, TABLE, pretty, yaml};
use crate::api::encode;
use crate::api::table::{Look, Printer, Row, Table};

/// Listing.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nodeagent get pods -A -o wide\n  nodeagent get pods -l app=web -w\n  nodeagent get pod web -o yaml\n  nodeagent get events -n shop\n  nodeagent get images"
)]
pub struct GetArgs {
    /// What: pods, events, images, nodes, namespaces
    kind: Kind,
    /// Only these
    names: Vec<String>,
    /// The namespace
    #[arg(short = 'n', long, default_value = "default")]
    namespace: String,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only with these labels, e.g. app=web,tier!=db
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Only with these fields, e.g. status.phase=Running
    #[arg(long)]
    field_selector: Option<String>,
    /// How: wide, json, yaml, name
    #[arg(short = 'o', long)]
    output: Option<Format>,
    /// Then print what changes, until interrupted
    #[arg(short = 'w', long)]
    watch: bool,
    /// Leave the header out
    #[arg(long)]
    no_headers: bool,
    /// Show labels as a last column
    #[arg(long)]
    show_labels: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    #[value(aliases = ["pod", "po", "all"])]
    Pods,
    #[value(aliases = ["event", "ev"])]
    Events,
    #[value(aliases = ["image", "img"])]
    Images,
    #[value(aliases = ["node", "no"])]
    Nodes,
    #[value(aliases = ["namespace", "ns"])]
    Namespaces,
}

impl Kind {
    fn plural(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Events => "events",
            Self::Images => "images",
            Self::Nodes => "nodes",
            Self::Namespaces => "namespaces",
        }
    }
    fn singular(self) -> &'static str {
        &self.plural()[..self.plural().len() - 1]
    }
    fn namespaced(self) -> bool {
        matches!(self, Self::Pods | Self::Events)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Wide,
    Json,
    Yaml,
    Name,
}

/// Lists.
pub async fn run(client: &Client, mut args: GetArgs) -> Result<ExitCode, CliError> {
    // `get pods pod/web` and `get pods web` are the same.
    for name in &mut args.names {
        if let Some((_, bare)) =
            name.split_once('/').filter(|(kind, _)| *kind == args.kind.singular() || *kind == args.kind.plural())
        {
            *name = bare.to_owned();
        }
    }
    match args.output {
        None | Some(Format::Wide) => tables(client, &args).await,
        Some(format) if args.watch => watch_objects(client, &args, format).await,
        Some(format) => objects(client, &args, format).await,
    }
}

impl GetArgs {
    fn path(&self, name: Option<&str>, query: &[(&str, &str)]) -> String {
        let group = if self.kind == Kind::Images { format!("/apis/{}/v1", crate::api::GROUP) } else { "/api/v1".to_owned() };
        let namespace = match self.kind.namespaced() && !self.all_namespaces {
            true => format!("/namespaces/{}", encode(&self.namespace)),
            false => String::new(),
        };
        let name = name.map(|name| format!("/{}", encode(name))).unwrap_or_default();
        let selectors = [("labelSelector", self.selector.as_deref()), ("fieldSelector", self.field_selector.as_deref())];
        let selectors = selectors.iter().filter_map(|(key, value)| value.map(|value| (*key, value)));
        let query: Vec<String> =
            selectors.chain(query.iter().copied()).map(|(key, value)| format!("{key}={}", encode(value))).collect();
        format!("{group}{namespace}/{}{name}?{}", self.kind.plural(), query.join("&"))
    }

    fn look(&self) -> Look {
        Look {
            wide: self.output == Some(Format::Wide),
            namespaces: self.all_namespaces && self.kind.namespaced(),
            headless: self.no_headers,
            labels: self.show_labels,
        }
    }
}

async fn tables(client: &Client, args: &GetArgs) -> Result<ExitCode, CliError> {
    let mut printer = Printer::new(args.look());
    let mut version = String::new();
    // Events are sorted by their times, which only the whole object has.
    let include = if args.kind == Kind::Events { "Object" } else { "Metadata" };
    let names: Vec<Option<&str>> =
        if args.names.is_empty() { vec![None] } else { args.names.iter().map(|n| Some(n.as_str())).collect() };
    let mut all = Table::default();
    let mut missing = None;
    for name in names {
        match client.get_table(&args.path(name, &[("includeObject", include)])).await {
            Ok(mut table) => {
                version = table.metadata["resourceVersion"].as_str().unwrap_or_default().to_owned();
                all.column_definitions = table.column_definitions;
                all.rows.append(&mut table.rows);
            }
            Err(error) if error.is_not_found() && args.names.len() > 1 => {
                eprintln!("{error}");
                missing = Some(ExitCode::FAILURE);
            }
            Err(error) => return Err(error),
        }
    }
    if args.kind == Kind::Events {
        all.rows.sort_by_cached_key(last_seen);
    }
    if all.rows.is_empty() && !args.watch {
        nothing_found(client, args).await;
        return Ok(missing.unwrap_or(ExitCode::SUCCESS));
    }
    if !all.rows.is_empty() {
        show(&printer.print(&all))?;
    }
    if args.watch {
        return watch_tables(client, args, printer, &version).await;
    }
    Ok(missing.unwrap_or(ExitCode::SUCCESS))
}

/// When an event happened last, from whichever of its fields is set. Text, as RFC 3339 sorts.
fn last_seen(row: &Row) -> String {
    let object = &row.object;
    let fields = [
        &object["series"]["lastObservedTime"],
        &object["lastTimestamp"],
        &object["eventTime"],
        &object["metadata"]["creationTimestamp"],
    ];
    fields.iter().find_map(|field| field.as_str()).unwrap_or_default().to_owned()
}

async fn nothing_found(client: &Client, args: &GetArgs) {
    if !args.kind.namespaced() || args.all_namespaces {
        eprintln!("No resources found");
        return;
    }
    let elsewhere = client.get(&format!("/api/v1/{}", args.kind.plural())).await;
    let count = elsewhere.ok().and_then(|list| list["items"].as_array().map(Vec::len)).unwrap_or(0);
    let hint = if count > 0 && args.selector.is_none() && args.field_selector.is_none() {
        format!(" {count} in other namespaces: see them with -A")
    } else {
        String::new()
    };
    eprintln!("No resources found in {} namespace.{hint}", args.namespace);
}

fn watched(args: &GetArgs, version: &str) -> Result<String, CliError> {
    let by_name;
    let mut query = vec![("watch", "true"), ("resourceVersion", version)];
    match &args.names[..] {
        [] => {}
        [one] => {
            by_name = format!("metadata.name={one}");
            query.push(("fieldSelector", &by_name));
        }
        _ => return Err(CliError::Usage("watch one object by its name, or all: not several names".to_owned())),
    }
    Ok(args.path(None, &query))
}

async fn watch_tables(client: &Client, args: &GetArgs, mut printer: Printer, version: &str) -> Result<ExitCode, CliError> {
    let mut lines = Lines::new(client.stream(&watched(args, version)?, TABLE).await?);
    while let Some(line) = lines.next().await? {
        let mut event: Value = serde_json::from_slice(&line).unwrap_or_default();
        match event["type"].as_str() {
            Some("ERROR") => return Err(CliError::status(&event["object"])),
            Some("BOOKMARK") => {}
            _ => {
                let table: Table = serde_json::from_value(event["object"].take()).unwrap_or_default();
                show(&printer.print(&table))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn objects(client: &Client, args: &GetArgs, format: Format) -> Result<ExitCode, CliError> {
    let mut items = Vec::new();
    for name in &args.names {
        items.push(client.get(&args.path(Some(name), &[])).await?);
    }
    let object = match (items.len(), args.names.is_empty()) {
        (_, true) => client.get(&args.path(None, &[])).await?,
        (1, false) => items.remove(0),
        _ => json!({ "kind": "List", "apiVersion": "v1", "metadata": {}, "items": items }),
    };
    show(&formatted(args.kind, &object, format)?)?;
    Ok(ExitCode::SUCCESS)
}

async fn watch_objects(client: &Client, args: &GetArgs, format: Format) -> Result<ExitCode, CliError> {
    let mut lines = Lines::new(client.stream(&watched(args, "0")?, "application/json").await?);
    while let Some(line) = lines.next().await? {
        let event: Value = serde_json::from_slice(&line).unwrap_or_default();
        match event["type"].as_str() {
            Some("ERROR") => return Err(CliError::status(&event["object"])),
            Some("BOOKMARK") => {}
            _ => {
                let text = formatted(args.kind, &event["object"], format)?;
                show(&if format == Format::Yaml { format!("---\n{text}") } else { text })?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn formatted(kind: Kind, object: &Value, format: Format) -> Result<String, CliError> {
    Ok(match format {
        Format::Yaml => yaml(object)?,
        Format::Name => {
            let items = object["items"].as_array().cloned().unwrap_or_else(|| vec![object.clone()]);
            let prefix = if kind == Kind::Images { format!("image.{}", crate::api::GROUP) } else { kind.singular().to_owned() };
            items.iter().map(|item| format!("{prefix}/{}\n", item["metadata"]["name"].as_str().unwrap_or_default())).collect()
        }
        Format::Json | Format::Wide => pretty(object) + "\n",
    })
}

/// Prints at once, also into a pipe: whoever watches wants it now.
pub fn show(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}
