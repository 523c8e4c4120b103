//! An API server that misbehaves on request: a real one answers wrongly only when nobody looks. HTTP without TLS, on the host outside of
//! the node; it knows no more of Kubernetes than a node asks for.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::{NodeBox, OUTSIDE};

/// A request, as far as it matters.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `GET`, `PATCH` and so on.
    pub method: String,
    /// With its query.
    pub path: String,
    /// JSON, or null.
    pub body: Value,
    /// Who asks, such as `Bearer TOKEN`.
    pub authorization: String,
}

impl Asked {
    /// Whether it is of this method and its path begins so.
    pub fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.path.starts_with(path)
    }

    /// Whether it asks to be told of changes.
    pub fn watches(&self) -> bool {
        self.path.contains("watch=true")
    }
}

/// What it may get instead of an answer.
#[derive(Debug, Clone)]
pub enum Trouble {
    /// This status, with the API server's own kind of error.
    Status(u16),
    /// These bytes as the body of a good answer, cut off there.
    Cut(&'static str),
    /// These bytes as the whole body of a good answer.
    Body(&'static str),
    /// The connection ends.
    Nothing,
    /// No answer, as long as the server lives.
    Silence,
    /// The right answer, once the test lets it go.
    Held,
}

/// Decides what trouble a request gets.
type Rule = Box<dyn FnMut(&Asked) -> Option<Trouble> + Send>;

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    asked: Vec<Asked>,
    version: u64,
    /// Lines for those who watch pods.
    changes: Vec<Value>,
    rule: Option<Rule>,
    ended: bool,
    /// The port that it was at before, or 0.
    left: u16,
    /// What was held is answered.
    released: bool,
    /// Seconds that tokens live; 0: an hour.
    token_life: i64,
    /// Tokens so far.
    tokens: u32,
    /// Seconds by which its clock is ahead.
    ahead: i64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// See the module's page. It ends with this value.
pub struct ApiServer {
    shared: Arc<Shared>,
    port: u16,
    folder: PathBuf,
}

impl ApiServer {
    /// Listens on the host outside of the node.
    #[track_caller]
    pub fn beside(node: &NodeBox) -> Self {
        let shared = Arc::<Shared>::default();
        let port = listen(node, &shared);
        Self { shared, port, folder: node.folder().to_owned() }
    }

    /// Goes to another port. Who is connected to the old one hears nothing any more.
    #[track_caller]
    pub fn moves(&mut self, node: &NodeBox) {
        self.shared.lock().left = self.port;
        self.port = listen(node, &self.shared);
    }

    /// A kubeconfig that leads here; `user` is YAML.
    #[track_caller]
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.kubeconfig_to(self.port, user)
    }

    /// The same file, which leads to another port.
    #[track_caller]
    pub fn kubeconfig_to(&self, port: u16, user: &str) -> PathBuf {
        let file = self.folder.join("api-server.kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: \"http://{OUTSIDE}:{port}\"}}}}]\n\
             users: [{{name: u, user: {user}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
        );
        std::fs::write(&file, text).expect("the folder can be written");
        file
    }

    /// From now on.
    pub fn rule(&self, rule: impl FnMut(&Asked) -> Option<Trouble> + Send + 'static) {
        self.shared.lock().rule = Some(Box::new(rule));
    }

    /// All answers are right again.
    pub fn behave(&self) {
        self.shared.lock().rule = None;
    }

    /// What was held is answered, and nothing is held any more.
    pub fn release(&self) {
        self.shared.lock().released = true;
        self.shared.changed.notify_all();
    }

    /// Service accounts' tokens live so many seconds from now on.
    pub fn tokens_live(&self, seconds: i64) {
        self.shared.lock().token_life = seconds;
    }

    /// Its clock is so many seconds ahead from now on; it says the time with each answer.
    pub fn clock_is_ahead(&self, seconds: i64) {
        self.shared.lock().ahead = seconds;
    }

    /// An object is there, as `kubectl apply` makes it; a pod is told to those who watch. One that was only kept by its finalizers goes with
    /// the last of them.
    pub fn put(&self, path: &str, object: Value) {
        let mut state = self.shared.lock();
        let over = object["metadata"]["deletionGracePeriodSeconds"] == 0 && !has_finalizers(&object);
        state.put(path, object);
        if over {
            state.remove(path);
        }
        self.shared.changed.notify_all();
    }

    /// An object is gone, which nobody is told.
    pub fn lose(&self, path: &str) {
        self.shared.lock().objects.remove(path);
    }

    /// An object as it is.
    pub fn get(&self, path: &str) -> Option<Value> {
        self.shared.lock().objects.get(path).cloned()
    }

    /// All that was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.lock().asked.clone()
    }
}

/// A port outside of the node, served until the server ends.
#[track_caller]
fn listen(node: &NodeBox, shared: &Arc<Shared>) -> u16 {
    let namespace = File::open(node.outside().namespace()).expect("a NET namespace");
    let listening = thread::spawn(move || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).expect("setns, as root");
        TcpListener::bind((OUTSIDE, 0)).expect("a port outside")
    });
    let listener = listening.join().expect("a listener");
    let port = listener.local_addr().expect("its address").port();
    let serving = shared.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(stream), false) = (stream, serving.lock().ended) else { return };
            let shared = serving.clone();
            thread::spawn(move || drop(shared.serve(&stream, port)));
        }
    });
    port
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
    }
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer").field("port", &self.port).finish_non_exhaustive()
    }
}

impl State {
    /// Now, by its clock.
    fn now(&self) -> Timestamp {
        Timestamp::now() + SignedDuration::from_secs(self.ahead)
    }

    /// As a header has it: <https://www.rfc-editor.org/rfc/rfc9110#section-5.6.7>
    fn date(&self) -> String {
        self.now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
    }

    fn token(&mut self) -> Value {
        self.tokens += 1;
        let life = if self.token_life == 0 { 3600 } else { self.token_life };
        let expires = (self.now() + SignedDuration::from_secs(life)).to_string();
        json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {"audiences": [], "expirationSeconds": life},
            "status": {"token": format!("eyJ{}", self.tokens), "expirationTimestamp": expires}})
    }

    fn put(&mut self, path: &str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let verb = if self.objects.contains_key(path) { "MODIFIED" } else { "ADDED" };
        self.objects.insert(path.into(), object.clone());
        if path.contains("/pods/") {
            self.changes.push(json!({"type": verb, "object": object}));
        }
    }

    /// Without grace; what has finalizers stays, and says so.
    fn delete(&mut self, path: &str) {
        match self.objects.get(path).cloned() {
            Some(object) if has_finalizers(&object) => {
                if object["metadata"]["deletionGracePeriodSeconds"] != 0 {
                    let mut object = object;
                    object["metadata"]["deletionGracePeriodSeconds"] = json!(0);
                    self.put(path, object);
                }
            }
            _ => self.remove(path),
        }
    }

    fn remove(&mut self, path: &str) {
        if let Some(object) = self.objects.remove(path)
            && path.contains("/pods/")
        {
            self.version += 1;
            self.changes.push(json!({"type": "DELETED", "object": object}));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn serve(&self, stream: &TcpStream, port: u16) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        while let Some(asked) = read(&mut reader)? {
            let trouble = {
                let mut state = self.lock();
                if state.left == port {
                    return Ok(());
                }
                state.asked.push(asked.clone());
                let mut rule = state.rule.take();
                let trouble = rule.as_mut().and_then(|rule| rule(&asked));
                state.rule = rule;
                self.changed.notify_all();
                trouble
            };
            let date = self.lock().date();
            match trouble {
                Some(Trouble::Held) => {
                    self.wait_for(|state| state.released);
                    let (code, body) = self.answer(&asked);
                    write(stream, code, &date, &body.to_string())?;
                }
                None if asked.watches() => return self.watch(stream, port, &asked),
                None => {
                    let (code, body) = self.answer(&asked);
                    write(stream, code, &date, &body.to_string())?;
                }
                Some(Trouble::Status(code)) => write(stream, code, &date, &status(code).to_string())?,
                Some(Trouble::Body(body)) => return write(stream, 200, &date, body),
                Some(Trouble::Cut(body)) => {
                    let mut stream = stream;
                    return write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n", body.len());
                }
                Some(Trouble::Nothing) => return Ok(()),
                Some(Trouble::Silence) => {
                    self.wait_for(|_| false);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Until then, or until the server ends.
    fn wait_for(&self, then: impl Fn(&State) -> bool) {
        let mut state = self.lock();
        while !state.ended && !then(&state) {
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Tells of pods as they change; of all else there is nothing to tell.
    fn watch(&self, mut stream: &TcpStream, port: u16, asked: &Asked) -> std::io::Result<()> {
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        let pods = asked.path.starts_with("/api/v1/pods?");
        let since: u64 = query(&asked.path, "resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut state = self.lock();
        let of =
            |change: &Value| change["object"]["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or(0);
        let mut told = state.changes.iter().take_while(|change| of(change) <= since).count();
        loop {
            if state.ended {
                return Ok(());
            }
            while pods && state.left != port && told < state.changes.len() {
                let line = format!("{}\n", state.changes[told]);
                write!(stream, "{:x}\r\n{line}\r\n", line.len())?;
                told += 1;
            }
            let (next, _) =
                self.changed.wait_timeout(state, Duration::from_secs(1)).unwrap_or_else(std::sync::PoisonError::into_inner);
            state = next;
        }
    }

    fn answer(&self, asked: &Asked) -> (u16, Value) {
        let mut state = self.lock();
        let path = asked.path.split('?').next().unwrap_or_default();
        let object = path.strip_suffix("/status").unwrap_or(path);
        match asked.method.as_str() {
            "GET" if is_list(path) => (200, state.list(&asked.path, path)),
            "GET" => state.objects.get(object).map_or((404, status(404)), |object| (200, object.clone())),
            "POST" if path.ends_with("/token") => (201, state.token()),
            "POST" => {
                let mut object = asked.body.clone();
                let name = object["metadata"]["name"].as_str().unwrap_or("unnamed").to_owned();
                let path = format!("{path}/{name}");
                if state.objects.contains_key(&path) {
                    return (409, status(409));
                }
                state.version += 1;
                object["metadata"]["uid"] = json!(format!("uid-{}", state.version));
                object["metadata"]["resourceVersion"] = json!(state.version.to_string());
                state.objects.insert(path, object.clone());
                (201, object)
            }
            "PUT" => {
                state.objects.insert(object.into(), asked.body.clone());
                (200, asked.body.clone())
            }
            "PATCH" => match state.objects.get(object).cloned() {
                // As far as these tests look: the new fields of the status over the old ones.
                Some(mut known) => {
                    for (name, value) in asked.body["status"].as_object().into_iter().flatten() {
                        known["status"][name] = without_directives(value);
                    }
                    state.put(object, known);
                    self.changed.notify_all();
                    (200, state.objects.get(object).cloned().unwrap_or_default())
                }
                None => (404, status(404)),
            },
            "DELETE" => {
                state.delete(object);
                self.changed.notify_all();
                (200, status(200))
            }
            _ => (405, status(405)),
        }
    }
}

impl State {
    fn list(&self, whole: &str, path: &str) -> Value {
        let kind = path.rsplit('/').next().unwrap_or_default();
        let named =
            query(whole, "fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name%3D").map(ToOwned::to_owned));
        let of = |(key, _): &(&String, &Value)| {
            let mut parts = key.rsplit('/');
            let name = parts.next().unwrap_or_default();
            parts.next() == Some(kind)
                && key.starts_with(path.trim_end_matches(kind))
                && named.as_deref().is_none_or(|n| n == name)
        };
        let items: Vec<&Value> = self.objects.iter().filter(of).map(|(_, object)| object).collect();
        json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": self.version.to_string()}, "items": items})
    }
}

/// Without what a strategic merge patch says of its own lists.
fn without_directives(value: &Value) -> Value {
    match value.as_array() {
        Some(list) => list.iter().filter(|item| item.get("$patch").is_none()).cloned().collect(),
        None => value.clone(),
    }
}

fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty())
}

fn query(path: &str, name: &str) -> Option<String> {
    let (_, query) = path.split_once('?')?;
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=').map(ToOwned::to_owned))
}

/// A path that names a kind and no object.
fn is_list(path: &str) -> bool {
    matches!(path.rsplit('/').next(), Some("pods" | "services" | "configmaps" | "secrets" | "nodes" | "runtimeclasses"))
}

fn status(code: u16) -> Value {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
        "message": format!("scripted: {reason}")})
}

fn write(mut stream: &TcpStream, code: u16, date: &str, body: &str) -> std::io::Result<()> {
    let wait = if code == 429 { "Retry-After: 1\r\n" } else { "" };
    write!(
        stream,
        "HTTP/1.1 {code} Scripted\r\nDate: {date}\r\nContent-Type: application/json\r\n{wait}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn read(reader: &mut BufReader<&TcpStream>) -> std::io::Result<Option<Asked>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let (mut length, mut authorization) = (0, String::new());
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let header = header.trim();
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap_or(0),
            "authorization" => value.trim().clone_into(&mut authorization),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Asked { method, path, body: serde_json::from_slice(&body).unwrap_or(Value::Null), authorization }))
}
