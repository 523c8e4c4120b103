//! What manifests cost before anything runs. Numbers to read, no pass or fail: `cargo bench -p nodeagent --bench manifests`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nodeagent::model::{Defaults, ValidPod};
use nodeagent::pod::backoff::Backoff;
use nodeagent::pod::observed::{Container, Image, Observed, Sandbox};
use nodeagent::pod::plan::plan;
use nodeagent::source::Event;
use nodeagent::source::folder::{Content, Folder};
use nodeagent::source::sealed::Keys;

const FILES: usize = 500;
const ROUNDS: usize = 20;

/// A pod as people write them: two containers, probes, limits, a projected volume.
fn text(number: usize, version: usize) -> String {
    let container = |name: &str, port: usize| {
        format!(
            "  - name: {name}
    image: registry.example.org/shop/{name}:1.{version}
    args: [serve, --port, \"{port}\"]
    ports:
    - {{name: {name}, containerPort: {port}}}
    env:
    - {{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
    - {{name: COLOR, valueFrom: {{configMapKeyRef: {{name: settings, key: color}}}}}}
    - {{name: CPUS, valueFrom: {{resourceFieldRef: {{resource: limits.cpu}}}}}}
    resources:
      requests: {{cpu: 50m, memory: 32Mi}}
      limits: {{cpu: 500m, memory: 128Mi}}
    readinessProbe:
      httpGet: {{path: /ready, port: {name}}}
      periodSeconds: 5
    livenessProbe:
      tcpSocket: {{port: {port}}}
    securityContext:
      runAsNonRoot: true
      allowPrivilegeEscalation: false
      capabilities: {{drop: [ALL]}}
    volumeMounts:
    - {{name: all, mountPath: /etc/shop, readOnly: true}}
    - {{name: data, mountPath: /data}}
"
        )
    };
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: shop-{number}
  labels: {{app: shop, tier: front}}
spec:
  terminationGracePeriodSeconds: 5
  securityContext: {{runAsUser: 1000, fsGroup: 2000, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
{}{}  volumes:
  - name: all
    projected:
      sources:
      - configMap: {{name: settings}}
      - secret: {{name: login, items: [{{key: password, path: password}}]}}
      - downwardAPI: {{items: [{{path: labels, fieldRef: {{fieldPath: metadata.labels}}}}]}}
  - name: data
    emptyDir: {{sizeLimit: 64Mi}}
",
        container("web", 8080),
        container("side", 9090)
    )
}

fn file(number: usize) -> PathBuf {
    format!("/manifests/shop-{number}.yaml").into()
}

fn folder() -> Folder {
    Folder::new(Defaults { node_name: "node".into() }, Keys::default())
}

fn all(version: usize, files: usize) -> Vec<(PathBuf, Content)> {
    (0..files).map(|number| (file(number), Content::Bytes(text(number, version).into_bytes()))).collect()
}

fn pods(events: Vec<Event>) -> Vec<ValidPod> {
    events.into_iter().filter_map(|event| if let Event::Apply(pod) = event { Some(pod) } else { None }).collect()
}

/// As it is when all is there to begin with the containers.
fn observed(pod: &ValidPod) -> Observed {
    let container = Container { image: Image::Ready, ..Container::default() };
    Observed {
        sandbox: Sandbox::Ready { generation: 1, ips: Vec::new(), since: Timestamp::UNIX_EPOCH },
        containers: pod.all_containers().map(|c| (c.name.clone(), container.clone())).collect(),
        ..Observed::default()
    }
}

fn planned(pods: &[ValidPod]) -> usize {
    pods.iter().map(|pod| plan(pod, &observed(pod), &Backoff::default(), Timestamp::UNIX_EPOCH).actions.len()).sum()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// A folder that is read for the first time, to the first actions of its pods.
fn whole() -> Duration {
    let times = (0..ROUNDS).map(|_| {
        let changes = all(0, FILES);
        let began = Instant::now();
        let pods = pods(folder().change(changes));
        let actions = planned(&pods);
        let took = began.elapsed();
        assert_eq!((pods.len(), actions), (FILES, 2 * FILES));
        took
    });
    median(times.collect())
}

/// One file's edit among so many.
fn edit(files: usize) -> Duration {
    let mut folder = folder();
    folder.change(all(0, files));
    let times = (1..=ROUNDS * 10).map(|version| {
        let change = vec![(file(files / 2), Content::Bytes(text(files / 2, version).into_bytes()))];
        let began = Instant::now();
        let pods = pods(folder.change(change));
        let actions = planned(&pods);
        let took = began.elapsed();
        assert_eq!((pods.len(), actions), (1, 2));
        took
    });
    median(times.collect())
}

fn main() {
    let bytes: usize = (0..FILES).map(|number| text(number, 0).len()).sum();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    println!("{FILES} pod files ({} kB) parsed, validated, planned: {:.1} ms (budget: 150)", bytes / 1000, milliseconds(whole()));
    let (one, many) = (edit(1), edit(FILES));
    println!(
        "an edit of the only file: {:.3} ms; of one among {FILES}: {:.3} ms: {:.2} × (budget: about 1)",
        milliseconds(one),
        milliseconds(many),
        many.as_secs_f64() / one.as_secs_f64()
    );
}
