//! The kubelet API of a node without a cluster: who comes in, and what it says. (With one: cluster_kubelet.rs.)
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

use e2e::{NodeBox, Output, eventually, pod};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rstest::rstest;
use serde_json::Value;

const URL: &str = "https://127.0.0.1:10250";

/// A CA of the test's own.
struct Ca {
    params: CertificateParams,
    key: KeyPair,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "clients");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { params, key: KeyPair::generate().unwrap() }
    }

    fn write(&self, path: &Path) {
        std::fs::write(path, self.params.clone().self_signed(&self.key).unwrap().pem()).unwrap();
    }

    /// Certificate and key of a client in one file.
    fn client(&self, folder: &Path, name: &str) -> PathBuf {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let signed = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap();
        let path = folder.join(format!("{name}.pem"));
        std::fs::write(&path, signed.pem() + &key.serialize_pem()).unwrap();
        path
    }
}

struct Lab {
    node: NodeBox,
    ca: Ca,
    files: tempfile::TempDir,
}

impl Lab {
    /// A node with the port, and a pod `web` that is ready.
    fn start() -> Self {
        let (files, ca) = (tempfile::tempdir().unwrap(), Ca::new());
        ca.write(&files.path().join("ca.crt"));
        ca.client(files.path(), "admin");
        let config = format!(
            "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\nauthentication:\n  x509:\n    clientCAFile: {}\n",
            files.path().join("ca.crt").display()
        );
        let node = NodeBox::builder().config(&config).start();
        node.put(&pod("web").runs("app", "serve")).is_ready();
        Self { node, ca, files }
    }

    /// What curl gets; its last line is the status.
    fn curl(&self, client: Option<&str>, path: &str, words: &[&str]) -> Output {
        let url = format!("{URL}{path}");
        let certificate = client.map(|name| self.files.path().join(format!("{name}.pem")).display().to_string());
        let mut all = vec!["--insecure", "--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}", &url];
        if let Some(certificate) = &certificate {
            all.extend(["--cert", certificate]);
        }
        all.extend(words);
        self.node.inside("curl", &all)
    }

    /// The body of a good answer.
    #[track_caller]
    fn get(&self, path: &str) -> String {
        let output = self.curl(Some("admin"), path, &[]).ok();
        let (body, status) = output.rsplit_once('\n').unwrap();
        assert_eq!(status, "200", "{path}: {body}");
        body.to_owned()
    }

    #[track_caller]
    fn json(&self, path: &str) -> Value {
        let body = self.get(path);
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {e}: {body}"))
    }
}

#[test]
fn whoever_has_no_certificate_of_the_ca_is_nobody() {
    let lab = Lab::start();
    Ca::new().client(lab.files.path(), "stranger");
    for path in ["/pods", "/healthz", "/metrics", "/exec/default/web/app?command=id&output=1", "/run/default/web/app"] {
        for client in [None, Some("stranger")] {
            assert_eq!(lab.curl(client, path, &[]).ok(), "Unauthorized\n\n401", "{client:?} {path}");
        }
        let token = lab.curl(None, path, &["--header", "Authorization: Bearer x"]).ok();
        assert!(token.ends_with("401"), "{token}");
    }
    // There is no port without TLS, not even for those who ask nicely.
    let plain = lab.node.inside("curl", &["--silent", "--max-time", "5", "http://127.0.0.1:10250/healthz"]);
    assert_ne!(plain.code, 0, "{plain}");
    assert_ne!(lab.node.inside("curl", &["--silent", "--max-time", "5", "http://127.0.0.1:10255/pods"]).code, 0);
    assert_eq!(lab.get("/healthz"), "ok");
}

#[test]
fn who_is_nobody_keeps_no_place_and_one_address_not_those_of_others() {
    let lab = Lab::start();
    let heads = |client| lab.curl(client, "/healthz", &["--include"]).ok().to_lowercase();
    assert!(heads(None).contains("connection: close"), "nobody's connection ends with the answer");
    assert!(!heads(Some("admin")).contains("connection: close"));
    // A hundred connections of another address that say nothing: so many as it may have stay, the others are closed.
    let script = "use IO::Socket::INET; $| = 1; my @all = map { IO::Socket::INET->new(LocalAddr => '127.0.0.2', PeerAddr => \
                  '127.0.0.1:10250') or die $! } 1..100; my $closed = 0; for my $one (@all[64..99]) { $closed++ if !sysread($one, my $x, 1) } \
                  print \"$closed closed\\n\"; sleep 1000";
    let silent = e2e::Running::start(lab.node.command("perl").args(["-e", script]));
    silent.says("36 closed");
    assert_eq!(lab.get("/healthz"), "ok");
    let refused = lab.curl(None, "/healthz", &["--interface", "127.0.0.2"]);
    assert_ne!(refused.code, 0, "{refused}");
    drop(silent);
    eventually("its places come back", || {
        let answer = lab.curl(None, "/healthz", &["--interface", "127.0.0.2"]).result()?;
        if answer.ends_with("401") { Ok(()) } else { Err(answer) }
    });
}

#[test]
fn a_renewed_ca_counts_without_a_restart() {
    let lab = Lab::start();
    let fresh = Ca::new();
    fresh.client(lab.files.path(), "renewed");
    assert!(lab.curl(Some("renewed"), "/healthz", &[]).ok().ends_with("401"));
    fresh.write(&lab.files.path().join("ca.new"));
    std::fs::rename(lab.files.path().join("ca.new"), lab.files.path().join("ca.crt")).unwrap();
    eventually("the new CA's client comes in", || {
        let answer = lab.curl(Some("renewed"), "/healthz", &[]).result()?;
        if answer == "ok\n200" { Ok(()) } else { Err(answer) }
    });
    assert!(lab.curl(Some("admin"), "/healthz", &[]).ok().ends_with("401"));
    lab.ca.write(&lab.files.path().join("ca.crt"));
    eventually("the old one's again", || lab.curl(Some("admin"), "/healthz", &["--fail"]).result());
}

#[test]
fn pods_and_configuration() {
    let lab = Lab::start();
    let pods = lab.json("/pods");
    assert_eq!((&pods["kind"], &pods["items"][0]["metadata"]["name"]), (&"PodList".into(), &"web".into()));
    assert_eq!(pods["items"][0]["status"]["phase"], "Running");
    let running = lab.json("/runningpods/");
    assert_eq!(running["items"][0]["spec"]["containers"][0]["name"], "app");
    assert!(running["items"][0].get("status").is_none_or(|s| s.as_object().is_none_or(serde_json::Map::is_empty)));
    let config = lab.json("/configz");
    assert_eq!(config["kubeletconfig"]["authentication"]["anonymous"]["enabled"], false);
    assert_eq!(config["kubeletconfig"]["readOnlyPort"], 0);
    assert!(lab.get("/healthz?verbose").contains("[+]syncloop ok"));
    assert_eq!(lab.get("/healthz/ping"), "ok");
}

#[test]
fn logs_of_containers_and_of_the_node() {
    let lab = Lab::start();
    lab.node.put(&pod("talk").spec("restartPolicy: Never").runs("talk", "echo hello from inside"));
    eventually("it has said it", || {
        let said = lab.curl(Some("admin"), "/containerLogs/default/talk/talk", &["--fail"]).result()?;
        if said.contains("hello from inside") { Ok(()) } else { Err(said) }
    });
    let last = lab.get("/containerLogs/default/talk/talk?tail=1&timestamps=true");
    assert!(last.contains('Z') && last.contains("hello from inside"), "{last}");
    let missing = lab.curl(Some("admin"), "/containerLogs/default/talk/none", &[]).ok();
    assert!(missing.ends_with("400") && missing.contains("is not valid for pod talk"), "{missing}");
    let missing = lab.curl(Some("admin"), "/containerLogs/default/none/none", &[]).ok();
    assert!(missing.ends_with("404") && missing.contains("pod default/none does not exist"), "{missing}");
    // The node's files: a folder, a file, and nothing beyond.
    assert!(lab.get("/logs/").contains("<a href=\"pods/\">pods/</a>"));
    let folder = lab.get("/logs/pods/");
    let talk = folder.split('"').find(|name| name.starts_with("default_talk_")).unwrap_or_else(|| panic!("{folder}"));
    assert!(lab.get(&format!("/logs/pods/{talk}talk/0.log")).contains("stdout F hello from inside"));
    std::os::unix::fs::symlink("/etc/hostname", lab.node.root().join("var/log/out")).unwrap();
    for path in ["/logs/out", "/logs/%2e%2e/%2e%2e/etc/hostname", "/logs/..%2F..%2Fetc%2Fhostname"] {
        let refused = lab.curl(Some("admin"), path, &["--path-as-is"]).ok();
        assert!(refused.ends_with("403") || refused.ends_with("400"), "{path}: {refused}");
    }
}

#[test]
fn figures_of_node_pods_and_containers() {
    let lab = Lab::start();
    let summary = lab.json("/stats/summary");
    assert_eq!(summary["node"]["nodeName"], "node");
    assert!(summary["node"]["memory"]["workingSetBytes"].as_u64().unwrap() > 0);
    assert!(summary["node"]["fs"]["capacityBytes"].as_u64().unwrap() > 0);
    let web = &summary["pods"][0];
    assert_eq!((&web["podRef"]["name"], &web["containers"][0]["name"]), (&"web".into(), &"app".into()));
    for figure in [
        &web["cpu"]["usageCoreNanoSeconds"],
        &web["memory"]["workingSetBytes"],
        &web["containers"][0]["cpu"]["usageCoreNanoSeconds"],
        &web["containers"][0]["memory"]["usageBytes"],
        &web["containers"][0]["logs"]["usedBytes"],
        &web["process_stats"]["process_count"],
    ] {
        assert!(figure.as_u64().is_some_and(|n| n > 0), "{figure} in {web}");
    }
    // Somebody asks the pod: its counters grow.
    let received = |summary: &Value| summary["pods"][0]["network"]["rxBytes"].as_u64().unwrap();
    let before = received(&summary);
    lab.node.curl(&format!("http://{}:8080", lab.node.pod("web").ip())).ok();
    assert!(received(&lab.json("/stats/summary")) > before);
    assert!(lab.json("/stats/summary?only_cpu_and_memory=true")["pods"][0].get("network").is_none());

    let resource = lab.get("/metrics/resource");
    let line = |page: &str, start: &str| page.lines().find(|l| l.starts_with(start)).map(str::to_owned);
    for start in [
        "node_cpu_usage_seconds_total ",
        "node_memory_working_set_bytes ",
        "container_cpu_usage_seconds_total{container=\"app\",pod=\"web\",namespace=\"default\"} ",
        "container_memory_working_set_bytes{container=\"app\",pod=\"web\",namespace=\"default\"} ",
        "pod_memory_working_set_bytes{pod=\"web\",namespace=\"default\"} ",
        "container_start_time_seconds{container=\"app\",pod=\"web\",namespace=\"default\"} ",
        "resource_scrape_error 0",
    ] {
        assert!(line(&resource, start).is_some(), "{start} in\n{resource}");
    }
    assert!(lab.get("/metrics/cadvisor").contains("container_network_receive_bytes_total{"));
    let own = lab.get("/metrics");
    for start in [
        "kubelet_running_pods 1",
        "kubelet_node_name{node=\"node\"} 1",
        "kubelet_http_requests_total{",
        "process_resident_memory_bytes ",
    ] {
        assert!(line(&own, start).is_some(), "{start} in\n{own}");
    }
    let probed =
        lab.node.put(&pod("probed").runs_with("app", "serve", "readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}"));
    probed.is_ready();
    let probes = lab.get("/metrics/probes");
    let count = "prober_probe_total{probe_type=\"Readiness\",container=\"app\",pod=\"probed\",namespace=\"default\",";
    assert!(probes.lines().any(|l| l.starts_with(count) && l.contains("result=\"successful\"")), "{probes}");
    let open = lab.curl(Some("admin"), "/metrics", &["--header", "Accept: application/openmetrics-text"]).ok();
    assert!(open.contains("# EOF\n"), "{open}");
}

#[test]
fn commands_run_in_containers() {
    let lab = Lab::start();
    let ran = lab.curl(Some("admin"), "/run/default/web/app?cmd=/demo%20env", &["--request", "POST"]).ok();
    assert!(ran.ends_with("200") && ran.contains("HOSTNAME=web"), "{ran}");
    let failed = lab.curl(Some("admin"), "/run/default/web/app?cmd=/none", &["--request", "POST"]).ok();
    assert!(failed.ends_with("500") && failed.contains("127"), "{failed}");
    let uid = lab.json("/pods")["items"][0]["metadata"]["uid"].as_str().unwrap().to_owned();
    let by_uid = lab.curl(Some("admin"), &format!("/run/default/web/{uid}/app?cmd=/demo%20env"), &["--request", "POST"]).ok();
    assert!(by_uid.ends_with("200"), "{by_uid}");
    let other = lab.curl(Some("admin"), "/run/default/web/another/app?cmd=/demo%20env", &["--request", "POST"]).ok();
    assert!(other.ends_with("404"), "{other}");
    let words = e2e::websocket(Some("v5.channel.k8s.io"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let said = lab.curl(Some("admin"), "/exec/default/web/app?command=/demo&command=env&output=1&error=1", &words).all();
    assert!(said.contains('\u{1}') && said.contains("HOSTNAME=web") && said.contains("\"status\":\"Success\""), "{said}");
    let plain = lab.curl(Some("admin"), "/exec/default/web/app?command=/demo&output=1", &[]).ok();
    assert!(plain.ends_with("400") && plain.contains("Upgrade request required"), "{plain}");
    let nothing = lab.curl(Some("admin"), "/attach/default/web/app", &words).ok();
    assert!(nothing.ends_with("400") && nothing.contains("at least one of stdin, stdout, stderr"), "{nothing}");
}

/// The API server hands on what clients other than kubectl offer, browsers' for example.
#[test]
fn older_clients_of_streams_are_answered_in_their_own_words() {
    let lab = Lab::start();
    let ask = |protocol: Option<&str>, path: &str| {
        let words = e2e::websocket(protocol);
        let said = lab.curl(Some("admin"), path, &words.iter().map(String::as_str).collect::<Vec<_>>()).all();
        let named = said.lines().find_map(|line| line.strip_prefix("sec-websocket-protocol: "));
        assert_eq!(named.map(str::trim), protocol, "{said}");
        said
    };
    let echo = "/exec/default/web/app?command=/demo&command=echo&command=hi&output=1";
    let fails = "/exec/default/web/app?command=/demo&command=exit&command=3&output=1&error=1";
    for (protocol, hello, success, failure) in [
        (Some("v4.channel.k8s.io"), "\u{1}hi\n", Some("\u{3}{"), "\u{3}{"),
        (Some("v4.base64.channel.k8s.io"), "1aGkK", Some("3ey"), "3ey"),
        (Some("channel.k8s.io"), "\u{1}hi\n", None, "\u{3}command terminated with non-zero exit code"),
        (Some("base64.channel.k8s.io"), "1aGkK", None, "3Y29tbWFuZCB0ZXJtaW5hdGVkIHdpdGggbm9uLXplcm8gZXhpdCBjb2Rl"),
        (None, "\u{1}hi\n", None, "\u{3}command terminated with non-zero exit code"),
    ] {
        let said = ask(protocol, echo);
        assert!(said.contains(hello), "{protocol:?}: {said}");
        match success {
            Some(status) => assert!(said.contains(status), "{protocol:?}: {said}"),
            None => assert!(!said.contains("Success"), "{protocol:?}: {said}"),
        }
        assert!(ask(protocol, fails).contains(failure), "{protocol:?}");
    }
    // Nobody listens there: each port has its two channels, with the port first.
    let ports = "/portForward/default/web?port=1,2";
    let said = ask(Some("v4.base64.channel.k8s.io"), ports);
    for words in ["0AQA=", "1AQA=", "2AgA=", "3AgA="] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(ask(None, ports).to_lowercase().matches("refused").count() >= 2);
}

#[rstest]
#[case("POST", "/checkpoint/default/web/app", "404", "not checkpointed")]
#[case("GET", "/debug/pprof/heap", "405", "not served")]
#[case("POST", "/pods", "405", "does not allow this method")]
#[case("GET", "/nothing", "404", "could not find")]
#[case("GET", "/logs/?query=kubelet", "405", "/logs shows files")]
#[case("GET", "/logs/none", "404", "page not found")]
#[case("GET", "/containerLogs/default/web/app?tailLines=-1", "400", "tailLines")]
fn what_is_not_served_is_refused(#[case] method: &str, #[case] path: &str, #[case] status: &str, #[case] words: &str) {
    let lab = Lab::start();
    let answer = lab.curl(Some("admin"), path, &["--request", method]).ok();
    assert!(answer.ends_with(status) && answer.contains(words), "{answer}");
}

#[test]
fn settings_that_would_open_the_port_wide_are_refused() {
    let node = NodeBox::builder()
        .config(
            "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\nreadOnlyPort: 10255\n\
             authentication:\n  anonymous:\n    enabled: true\nauthorization:\n  mode: AlwaysAllow\ntlsCertFile: /etc/a.crt\n",
        )
        .without_agent()
        .start();
    let mut agent = e2e::Running::start(&mut node.agent_command());
    assert_ne!(agent.ends(), 0);
    let output = agent.output();
    for words in [
        "config.yaml:3:1: readOnlyPort",
        "config.yaml:6:5: authentication.anonymous.enabled",
        "authorization.mode",
        "tlsPrivateKeyFile is missing",
    ] {
        assert!(output.contains(words), "{words} in\n{output}");
    }
}

#[test]
fn without_a_ca_of_clients_there_is_no_port() {
    let node = NodeBox::start();
    let listening = node.inside("ss", &["--no-header", "--listening", "--tcp", "--numeric"]).ok();
    assert!(!listening.contains("10250"), "{listening}");
}
