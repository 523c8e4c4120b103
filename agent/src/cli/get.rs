//! `get`: tables as the server makes them, or the objects.

use std::io::Write;
use std::ops::Deref;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::CliError;
use super::client::{Client, Lines, TABLE, pretty};
use crate::api::encode;
use crate::api::table::{Look, Printer, Row, Table};
use crate::model::text;

/// Listing.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nodeagent get pods -A -o wide\n  nodeagent get pods -l app=web -w\n  nodeagent get pod web -o yaml\n  nodeagent get pods,events\n  nodeagent get events -n shop\n  nodeagent get images"
)]
pub struct GetArgs {
    /// What: pods, deployments, replicasets, statefulsets, daemonsets, jobs, cronjobs, configmaps, secrets, services, endpointslices, networkpolicies, persistentvolumeclaims, events, images, nodes, namespaces, or several with commas between them; or KIND/NAME; or all, which is pods and workloads
    #[arg(required = true, value_name = "KIND")]
    what: Vec<String>,
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
pub(super) enum Kind {
    #[value(aliases = ["pod", "po"])]
    Pods,
    #[value(aliases = ["event", "ev"])]
    Events,
    #[value(aliases = ["image", "img"])]
    Images,
    #[value(aliases = ["node", "no"])]
    Nodes,
    #[value(aliases = ["namespace", "ns"])]
    Namespaces,
    #[value(name = "configmaps", aliases = ["configmap", "cm"])]
    ConfigMaps,
    #[value(aliases = ["secret"])]
    Secrets,
    #[value(name = "persistentvolumeclaims", aliases = ["persistentvolumeclaim", "pvc"])]
    Claims,
    #[value(aliases = ["service", "svc"])]
    Services,
    #[value(name = "endpointslices", aliases = ["endpointslice"])]
    EndpointSlices,
    #[value(name = "networkpolicies", aliases = ["networkpolicy", "netpol"])]
    NetworkPolicies,
    #[value(name = "deployments", aliases = ["deployment", "deploy"])]
    Deployments,
    #[value(name = "replicasets", aliases = ["replicaset", "rs"])]
    ReplicaSets,
    #[value(name = "statefulsets", aliases = ["statefulset", "sts"])]
    StatefulSets,
    #[value(name = "daemonsets", aliases = ["daemonset", "ds"])]
    DaemonSets,
    #[value(aliases = ["job"])]
    Jobs,
    #[value(name = "cronjobs", aliases = ["cronjob", "cj"])]
    CronJobs,
}

impl Kind {
    /// What runs, and what makes it run: `all`.
    const RUNNING: [Self; 7] =
        [Self::Pods, Self::DaemonSets, Self::Deployments, Self::ReplicaSets, Self::StatefulSets, Self::Jobs, Self::CronJobs];

    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Events => "events",
            Self::Images => "images",
            Self::Nodes => "nodes",
            Self::Namespaces => "namespaces",
            Self::ConfigMaps => "configmaps",
            Self::Secrets => "secrets",
            Self::Claims => "persistentvolumeclaims",
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::NetworkPolicies => "networkpolicies",
            Self::Deployments => "deployments",
            Self::ReplicaSets => "replicasets",
            Self::StatefulSets => "statefulsets",
            Self::DaemonSets => "daemonsets",
            Self::Jobs => "jobs",
            Self::CronJobs => "cronjobs",
        }
    }
    fn singular(self) -> &'static str {
        if self == Self::NetworkPolicies { "networkpolicy" } else { &self.plural()[..self.plural().len() - 1] }
    }
    /// The API group; none for the core.
    pub(super) fn group(self) -> Option<&'static str> {
        match self {
            Self::Images => Some(crate::api::GROUP),
            Self::Deployments | Self::ReplicaSets | Self::StatefulSets | Self::DaemonSets => Some("apps"),
            Self::Jobs | Self::CronJobs => Some("batch"),
            Self::EndpointSlices => Some("discovery.k8s.io"),
            Self::NetworkPolicies => Some("networking.k8s.io"),
            _ => None,
        }
    }
    pub(super) fn root(self) -> String {
        self.group().map_or_else(|| "/api/v1".to_owned(), |group| format!("/apis/{group}/v1"))
    }
    /// As `-o name` writes it.
    fn prefix(self) -> String {
        self.group().map_or_else(|| self.singular().to_owned(), |group| format!("{}.{group}", self.singular()))
    }
    pub(super) fn named(word: &str) -> Result<Self, CliError> {
        Self::from_str(word, true).map_err(|_| {
            let known: Vec<&str> = Self::value_variants().iter().map(|kind| kind.plural()).collect();
            CliError::Usage(format!("there are no {word} here: {} can be got", known.join(", ")))
        })
    }
    fn namespaced(self) -> bool {
        !matches!(self, Self::Images | Self::Nodes | Self::Namespaces)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Wide,
    Json,
    Yaml,
    Name,
}

/// Objects of one kind: those of these names, or all.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    kind: Kind,
    names: Vec<String>,
}

impl Wanted {
    /// `pods web db`, `pods,events`, `pod/web node/n1`, `pods pod/web`.
    fn parse(what: &[String]) -> Result<Vec<Self>, CliError> {
        let usage = |text: String| CliError::Usage(text);
        let Some((first, rest)) = what.split_first() else { return Ok(Vec::new()) };
        if first.contains('/') {
            return what
                .iter()
                .map(|word| {
                    let (kind, name) = word
                        .split_once('/')
                        .ok_or_else(|| usage(format!("{word}: when one argument is KIND/NAME, all must be")))?;
                    Ok(Self { kind: Kind::named(kind)?, names: vec![name.to_owned()] })
                })
                .collect();
        }
        let kinds: Vec<Kind> = first.split(',').map(Kind::named).collect::<Result<_, _>>()?;
        let [kind] = kinds[..] else {
            if !rest.is_empty() {
                return Err(usage("names go with one kind only".to_owned()));
            }
            return Ok(kinds.into_iter().map(|kind| Self { kind, names: Vec::new() }).collect());
        };
        let bare = |word: &String| match word.split_once('/') {
            Some((its, name)) if Kind::named(its)? == kind => Ok(name.to_owned()),
            Some((its, _)) => Err(usage(format!("{word}: {its} are not {}", kind.plural()))),
            None => Ok(word.clone()),
        };
        Ok(vec![Self { kind, names: rest.iter().map(bare).collect::<Result<_, _>>()? }])
    }
}

/// Lists.
pub async fn run(client: &Client, args: GetArgs) -> Result<ExitCode, CliError> {
    if args.what == ["all"] {
        return everything(client, &args).await;
    }
    let wanted = Wanted::parse(&args.what)?;
    if let [one] = &wanted[..] {
        let get = Get { args: &args, kind: one.kind, names: &one.names, several: false };
        return match args.output {
            None | Some(Format::Wide) => tables(client, &get).await,
            Some(format) if args.watch => watch_objects(client, &get, format).await,
            Some(format) => show(&formatted(&[(one.kind, get.object(client).await?)], format)).map(|()| ExitCode::SUCCESS),
        };
    }
    if args.watch {
        return Err(CliError::Usage("watch one kind at a time".to_owned()));
    }
    several(client, &args, &wanted).await
}

/// Pods and workloads, as far as there are any.
async fn everything(client: &Client, args: &GetArgs) -> Result<ExitCode, CliError> {
    let mut wanted = Vec::new();
    for kind in Kind::RUNNING {
        let get = Get { args, kind, names: &[], several: true };
        if get.object(client).await?["items"].as_array().is_some_and(|items| !items.is_empty()) {
            wanted.push(Wanted { kind, names: Vec::new() });
        }
    }
    if wanted.is_empty() {
        nothing_found(client, &Get { args, kind: Kind::Pods, names: &[], several: true }).await;
    }
    several(client, args, &wanted).await
}

/// One table after the other, or all in one list.
async fn several(client: &Client, args: &GetArgs, wanted: &[Wanted]) -> Result<ExitCode, CliError> {
    let mut code = ExitCode::SUCCESS;
    let mut lists = Vec::new();
    for (index, Wanted { kind, names }) in wanted.iter().enumerate() {
        let get = Get { args, kind: *kind, names, several: true };
        if matches!(args.output, None | Some(Format::Wide)) {
            if index > 0 {
                show("\n")?;
            }
            match tables(client, &get).await {
                Ok(one) if one == ExitCode::SUCCESS => {}
                Ok(one) => code = one,
                Err(error) if error.is_not_found() => {
                    eprintln!("{error}");
                    code = ExitCode::FAILURE;
                }
                Err(error) => return Err(error),
            }
        } else {
            lists.push((*kind, get.object(client).await?));
        }
    }
    if let Some(format) = args.output.filter(|_| !lists.is_empty()) {
        show(&formatted(&lists, format))?;
    }
    Ok(code)
}

/// What is asked of the agent for one kind.
#[derive(Debug, Clone, Copy)]
struct Get<'a> {
    args: &'a GetArgs,
    kind: Kind,
    names: &'a [String],
    /// Others are listed beside it: names say their kind.
    several: bool,
}

impl Deref for Get<'_> {
    type Target = GetArgs;
    fn deref(&self) -> &GetArgs {
        self.args
    }
}

impl Get<'_> {
    /// The object that is named, or a list.
    async fn object(&self, client: &Client) -> Result<Value, CliError> {
        let mut items = Vec::new();
        for name in self.names {
            items.push(client.get(&self.path(Some(name), &[])).await?);
        }
        match (items.len(), self.names.is_empty()) {
            (_, true) => client.get(&self.path(None, &[])).await,
            (1, false) => Ok(items.remove(0)),
            _ => Ok(json!({ "kind": "List", "apiVersion": "v1", "metadata": {}, "items": items })),
        }
    }

    fn path(&self, name: Option<&str>, query: &[(&str, &str)]) -> String {
        let group = self.kind.root();
        let namespace = if self.kind.namespaced() && !self.all_namespaces {
            format!("/namespaces/{}", encode(&self.namespace))
        } else {
            String::new()
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

async fn tables(client: &Client, args: &Get<'_>) -> Result<ExitCode, CliError> {
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
    if args.several
        && let Some(at) = all.column_definitions.iter().position(|column| column.name == "Name")
    {
        for row in &mut all.rows {
            if let Some(cell) = row.cells.get_mut(at) {
                *cell = json!(format!("{}/{}", args.kind.prefix(), cell.as_str().unwrap_or_default()));
            }
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

/// When an event happened last, from whichever of its fields is set, as text, which RFC 3339 sorts; within a second as they came.
fn last_seen(row: &Row) -> (String, u64) {
    let object = &row.object;
    let fields = [
        &object["series"]["lastObservedTime"],
        &object["lastTimestamp"],
        &object["eventTime"],
        &object["metadata"]["creationTimestamp"],
    ];
    let version = object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok());
    (fields.iter().find_map(|field| field.as_str()).unwrap_or_default().to_owned(), version.unwrap_or_default())
}

async fn nothing_found(client: &Client, args: &Get<'_>) {
    if !args.kind.namespaced() || args.all_namespaces {
        eprintln!("No resources found");
        return;
    }
    let elsewhere = client.get(&format!("{}/{}", args.kind.root(), args.kind.plural())).await;
    let count = elsewhere.ok().and_then(|list| list["items"].as_array().map(Vec::len)).unwrap_or(0);
    let hint = if count > 0 && args.selector.is_none() && args.field_selector.is_none() {
        format!(" {count} in other namespaces: see them with -A")
    } else {
        String::new()
    };
    eprintln!("No resources found in {} namespace.{hint}", args.namespace);
}

fn watched(args: &Get<'_>, version: &str) -> Result<String, CliError> {
    let by_name;
    let mut query = vec![("watch", "true"), ("resourceVersion", version)];
    match args.names {
        [] => {}
        [one] => {
            by_name = format!("metadata.name={one}");
            query.push(("fieldSelector", &by_name));
        }
        _ => return Err(CliError::Usage("watch one object by its name, or all: not several names".to_owned())),
    }
    Ok(args.path(None, &query))
}

async fn watch_tables(client: &Client, args: &Get<'_>, mut printer: Printer, version: &str) -> Result<ExitCode, CliError> {
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

async fn watch_objects(client: &Client, args: &Get<'_>, format: Format) -> Result<ExitCode, CliError> {
    let mut lines = Lines::new(client.stream(&watched(args, "0")?, "application/json").await?);
    while let Some(line) = lines.next().await? {
        let mut event: Value = serde_json::from_slice(&line).unwrap_or_default();
        match event["type"].as_str() {
            Some("ERROR") => return Err(CliError::status(&event["object"])),
            Some("BOOKMARK") => {}
            _ => {
                let text = formatted(&[(args.kind, event["object"].take())], format);
                show(&if format == Format::Yaml { format!("---\n{text}") } else { text })?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Objects or lists of objects, as one.
fn formatted(objects: &[(Kind, Value)], format: Format) -> String {
    let items = |object: &Value| object["items"].as_array().cloned().unwrap_or_else(|| vec![object.clone()]);
    if format == Format::Name {
        let line =
            |kind: Kind, item: &Value| format!("{}/{}\n", kind.prefix(), item["metadata"]["name"].as_str().unwrap_or_default());
        let of = |(kind, object): &(Kind, Value)| items(object).iter().map(|item| line(*kind, item)).collect::<String>();
        return objects.iter().map(of).collect();
    }
    let all;
    let object = match objects {
        [(_, one)] => one,
        several => {
            let items: Vec<Value> = several.iter().flat_map(|(_, object)| items(object)).collect();
            all = json!({ "kind": "List", "apiVersion": "v1", "metadata": {}, "items": items });
            &all
        }
    };
    if format == Format::Yaml { text::write(object) } else { pretty(object) + "\n" }
}

/// Prints at once, also into a pipe: whoever watches wants it now.
pub fn show(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(&["pods"], "pods:")]
    #[case(&["po", "web", "pod/db"], "pods:web,db")]
    #[case(&["pods,events"], "pods: events:")]
    #[case(&["pod/web", "no/n1"], "pods:web nodes:n1")]
    fn what_is_wanted(#[case] words: &[&str], #[case] expected: &str) {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let wanted = Wanted::parse(&words).unwrap();
        let texts: Vec<String> = wanted.iter().map(|w| format!("{}:{}", w.kind.plural(), w.names.join(","))).collect();
        assert_eq!(texts.join(" "), expected);
    }

    #[rstest]
    #[case(&["ingresses"], "there are no ingresses here")]
    #[case(&["pods,events", "web"], "names go with one kind only")]
    #[case(&["pod/web", "db"], "db: when one argument is KIND/NAME")]
    #[case(&["pods", "node/n1"], "node are not pods")]
    fn what_cannot_be_wanted(#[case] words: &[&str], #[case] expected: &str) {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let error = Wanted::parse(&words).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
