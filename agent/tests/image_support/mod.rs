//! Images made in memory, Debian's docker-registry as a child process, and a registry that misbehaves by script.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nodeagent::image::{Image, Images, Settings};
use serde_json::{Value, json};
use tempfile::TempDir;

pub fn sha256(bytes: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    format!("sha256:{}", hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// A layer's archive from paths and contents; a path that ends with `/` is a directory.
pub fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, data) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
        } else {
            header.set_mode(0o644);
        }
        builder.append_data(&mut header, path, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that don't compress, the same for the same seed.
pub fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

#[derive(Clone, Copy)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// An image as its blobs.
#[derive(Clone)]
pub struct Made {
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    pub layers: Vec<Vec<u8>>,
    pub tars: Vec<Vec<u8>>,
}

impl Made {
    pub fn new(layers: &[(Vec<u8>, Packing)]) -> Self {
        Self::for_platform(layers, json!({"os": "linux", "architecture": host_architecture()}))
    }

    pub fn for_platform(layers: &[(Vec<u8>, Packing)], mut config: Value) -> Self {
        let packed: Vec<Vec<u8>> = layers
            .iter()
            .map(|(tar, packing)| match packing {
                Packing::Plain => tar.clone(),
                Packing::Gzip => gzip(tar),
                Packing::Zstd => zstd::encode_all(tar.as_slice(), 1).unwrap(),
            })
            .collect();
        config["rootfs"] = json!({"type": "layers", "diff_ids": layers.iter().map(|(tar, _)| sha256(tar)).collect::<Vec<_>>()});
        config["config"] = json!({"Cmd": ["/bin/true"], "Env": ["PATH=/bin"]});
        let config = serde_json::to_vec(&config).unwrap();
        let kind = |packing: &Packing| match packing {
            Packing::Plain => "application/vnd.oci.image.layer.v1.tar",
            Packing::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Packing::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        };
        let descriptors: Vec<Value> = packed
            .iter()
            .zip(layers)
            .map(|(blob, (_, packing))| json!({"mediaType": kind(packing), "digest": sha256(blob), "size": blob.len()}))
            .collect();
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256(&config), "size": config.len()},
            "layers": descriptors,
        }))
        .unwrap();
        Self { config, manifest, layers: packed, tars: layers.iter().map(|(tar, _)| tar.clone()).collect() }
    }

    pub fn id(&self) -> String {
        sha256(&self.config)
    }

    pub fn digest(&self) -> String {
        sha256(&self.manifest)
    }

    pub fn blobs(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.layers.iter().chain([&self.config, &self.manifest])
    }

    /// As an OCI folder.
    pub fn write_oci(&self, dir: &Path, name: &str) {
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        for blob in self.blobs() {
            std::fs::write(blobs.join(sha256(blob).trim_start_matches("sha256:")), blob).unwrap();
        }
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": self.digest(), "size": self.manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": name}}]});
        std::fs::write(dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    }
}

pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A small image with a file, a directory and a link.
pub fn small(text: &str) -> Made {
    let tar = tar_of(&[("etc/", b""), ("etc/motd", text.as_bytes()), ("bin/", b""), ("bin/true", b"#!/bin/sh\n")]);
    Made::new(&[(tar, Packing::Gzip)])
}

/// A store in a folder of its own, that reads no settings of this machine.
pub struct Node {
    pub dir: TempDir,
    pub images: Images,
}

impl Node {
    pub fn new() -> Self {
        Self::with(|_, _| ())
    }

    pub fn with(change: impl FnOnce(&mut Settings, &Path)) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root: owners, devices and overlay's attributes");
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path());
        change(&mut settings, dir.path());
        let images = Images::open(settings).unwrap();
        Self { dir, images }
    }

    pub async fn pull(&self, name: &str) -> nodeagent::image::Result<Image> {
        self.images.pull(name, &[], &|_| ()).await
    }
}

pub fn settings(dir: &Path) -> Settings {
    let mut settings = Settings::at(dir.join("images"));
    settings.registries_conf = vec![dir.join("registries.conf")];
    settings.auth_files = vec![dir.join("config.json")];
    settings.certs_dirs = vec![dir.join("certs.d")];
    settings.limits.backoff = Duration::from_millis(1);
    settings
}

pub fn read(image: &Image, path: &str) -> String {
    let found = image.layers.iter().rev().map(|layer| layer.join(path)).find(|path| path.exists());
    std::fs::read_to_string(found.unwrap_or_else(|| panic!("{path} isn't in {:?}", image.layers))).unwrap()
}

/// The file names in a directory, sorted.
pub fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

pub fn need(program: &str, package: &str) {
    let found = std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()));
    assert!(found, "this test needs {program}: apt-get install {package}");
}

pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Debian's docker-registry on a free port of loopback.
pub struct Registry {
    child: Child,
    pub host: String,
    pub dir: TempDir,
    tls: bool,
}

impl Registry {
    pub fn plain() -> Self {
        Self::start(false)
    }

    /// With TLS by a certificate of its own authority (`ca.crt` in its folder), and the user `tester` with password `secret`.
    pub fn with_tls_and_login() -> Self {
        Self::start(true)
    }

    fn start(tls: bool) -> Self {
        need("docker-registry", "docker-registry");
        need("skopeo", "skopeo");
        let dir = tempfile::tempdir().unwrap();
        if tls {
            make_certificates(dir.path());
            need("htpasswd", "apache2-utils");
            std::fs::write(dir.path().join("htpasswd"), run("htpasswd", &["-Bbn", "-C4", "tester", "secret"])).unwrap();
        }
        // A port that was free may be taken before the registry has it: then another one.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let host = format!("127.0.0.1:{port}");
            let config = dir.path().join("config.yml");
            let at = dir.path().display();
            let mut text = format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {at}/data}}}}\nhttp:\n  addr: {host}\n"
            );
            if tls {
                let _ = write!(
                    text,
                    "  tls: {{certificate: {at}/server.crt, key: {at}/server.key}}\nauth: {{htpasswd: {{realm: test, path: {at}/htpasswd}}}}\n"
                );
            }
            std::fs::write(&config, text).unwrap();
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(&config)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let deadline = Instant::now() + Duration::from_secs(30);
            while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
                if TcpStream::connect(&host).is_ok() {
                    return Self { child, host, dir, tls };
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("docker-registry doesn't start");
    }

    /// Pushes by skopeo, as anybody would.
    pub fn push(&self, image: &Made, name: &str) {
        let dir = tempfile::tempdir().unwrap();
        image.write_oci(dir.path(), "x");
        let from = format!("oci:{}:x", dir.path().display());
        let to = format!("docker://{}/{name}", self.host);
        let mut arguments = vec!["--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false"];
        if self.tls {
            arguments.push("--dest-creds=tester:secret");
        }
        arguments.extend([from.as_str(), to.as_str()]);
        run("skopeo", &arguments);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn make_certificates(dir: &Path) {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
    let authority_cert = authority.self_signed(&authority_key).unwrap();
    std::fs::write(dir.join("ca.crt"), authority_cert.pem()).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let server = rcgen::CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
    std::fs::write(dir.join("server.crt"), server.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    std::fs::write(dir.join("server.key"), key.serialize_pem()).unwrap();
}

/// One request to the scripted registry.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub method: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// What it answers.
#[derive(Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Send so many bytes of the body, then hang up.
    pub cut: Option<usize>,
    /// The Content-Length where it lies.
    pub length: Option<u64>,
}

impl Answer {
    pub fn ok(body: &[u8]) -> Self {
        Self { status: 200, body: body.to_vec(), ..Self::default() }
    }
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// A registry by script, on loopback, speaking plain HTTP.
pub struct Scripted {
    pub host: String,
    pub seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Scripted {
    pub fn new(script: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (seen, stop, script) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)), Arc::new(script));
        let (record, ending) = (seen.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ending.load(Ordering::SeqCst) {
                    break;
                }
                let (record, script) = (record.clone(), script.clone());
                // A peer that hangs up is part of the play.
                std::thread::spawn(move || drop(serve(stream.unwrap(), &record, &*script)));
            }
        });
        Self { host, seen, stop, thread: Some(thread) }
    }

    /// A well-behaved registry of some images by name and tag, but for what `twist` answers first.
    pub fn of(images: Vec<(&'static str, Made)>, twist: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static) -> Self {
        Self::new(move |request| twist(request).unwrap_or_else(|| honest(&images, request)))
    }

    pub fn count(&self, part: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|request| request.path.contains(part)).count()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.host);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub fn honest(images: &[(&'static str, Made)], request: &Request) -> Answer {
    for (name, image) in images {
        let (repository, tag) = name.split_once(':').unwrap();
        let Some(rest) = request.path.strip_prefix(&format!("/v2/{repository}/")) else { continue };
        if rest == format!("manifests/{tag}") || rest == format!("manifests/{}", image.digest()) {
            return Answer::ok(&image.manifest).header("Docker-Content-Digest", &image.digest());
        }
        if let Some(blob) = image.blobs().find(|blob| rest == format!("blobs/{}", sha256(blob))) {
            let start = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
            return match start {
                Some(start) => Answer { status: 206, body: blob[start..].to_vec(), ..Answer::default() }
                    .header("Content-Range", &format!("bytes {start}-{}/{}", blob.len() - 1, blob.len())),
                None => Answer::ok(blob),
            };
        }
    }
    Answer {
        status: 404,
        body: br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#.to_vec(),
        ..Answer::default()
    }
}

fn serve(stream: TcpStream, record: &Mutex<Vec<Request>>, script: &dyn Fn(&Request) -> Answer) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
        if !path.starts_with('/') {
            // A TLS client's hello: hang up, as plain servers do.
            return Ok(());
        }
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match line.trim_end().split_once(": ") {
                Some((key, value)) => headers.push((key.to_owned(), value.to_owned())),
                None => break,
            }
        }
        let mut request = Request { path, headers, body: Vec::new(), method };
        let length: usize = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or_default();
        request.body = vec![0; length];
        reader.read_exact(&mut request.body)?;
        record.lock().unwrap().push(request.clone());
        let answer = script(&request);
        let mut head =
            format!("HTTP/1.1 {} X\r\nContent-Length: {}\r\n", answer.status, answer.length.unwrap_or(answer.body.len() as u64));
        for (key, value) in &answer.headers {
            let _ = write!(head, "{key}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        stream.write_all(&answer.body[..answer.cut.unwrap_or(answer.body.len())])?;
        if answer.cut.is_some() {
            return stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

pub fn path_of(dir: &TempDir, name: &str) -> PathBuf {
    dir.path().join(name)
}
