//! Who a container's processes are, what they may do, and what they share: each field of the two security contexts and of the pod's
//! namespaces, asked of the kernel from inside the container.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{Manifest, NodeBox, eventually, pod};

/// One pod, what is asked inside its container, and what the answer has.
struct Row {
    name: &'static str,
    /// Lines of the pod's spec.
    spec: &'static [&'static str],
    /// Lines of the container.
    container: &'static str,
    /// Words of the demo program.
    ask: &'static str,
    /// All of these are in the answer; what begins with `!` is not.
    wants: &'static [&'static str],
}

const STATUS: &str = "read /proc/self/status";

const ROWS: &[Row] = &[
    // --- users and groups ---
    Row { name: "default-user", spec: &[], container: "", ask: STATUS, wants: &["Uid:\t0\t0", "Gid:\t0\t0"] },
    Row {
        name: "pod-user",
        spec: &["securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, supplementalGroups: [4000]}"],
        container: "",
        ask: STATUS,
        wants: &["Uid:\t1000\t1000", "Gid:\t3000\t3000", "Groups:\t2000 3000 4000"],
    },
    Row {
        name: "container-user",
        spec: &["securityContext: {runAsUser: 1000, runAsGroup: 3000}"],
        container: "securityContext: {runAsUser: 2000, runAsGroup: 5000, runAsNonRoot: true}",
        ask: STATUS,
        wants: &["Uid:\t2000\t2000", "Gid:\t5000\t5000"],
    },
    // --- capabilities: the default set is a80425fb ---
    Row {
        name: "default-caps",
        spec: &[],
        container: "",
        ask: STATUS,
        wants: &[
            "CapEff:\t00000000a80425fb",
            "CapBnd:\t00000000a80425fb",
            "CapInh:\t0000000000000000",
            "CapAmb:\t0000000000000000",
        ],
    },
    Row {
        name: "drop-all",
        spec: &[],
        container: "securityContext: {capabilities: {drop: [ALL]}}",
        ask: STATUS,
        wants: &["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"],
    },
    Row {
        name: "drop-all-add-one",
        spec: &[],
        container: "securityContext: {capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}",
        ask: STATUS,
        wants: &["CapEff:\t0000000000000400"],
    },
    Row {
        name: "add-one",
        spec: &[],
        container: "securityContext: {capabilities: {add: [NET_ADMIN]}}",
        ask: STATUS,
        wants: &["CapEff:\t00000000a80435fb"],
    },
    Row {
        name: "drop-one",
        spec: &[],
        container: "securityContext: {capabilities: {drop: [NET_RAW]}}",
        ask: STATUS,
        wants: &["CapEff:\t00000000a80405fb"],
    },
    Row {
        name: "no-root-no-caps",
        spec: &["securityContext: {runAsUser: 1000}"],
        container: "",
        ask: STATUS,
        wants: &["CapEff:\t0000000000000000", "CapBnd:\t00000000a80425fb"],
    },
    // Their execs come into the PID namespace another way.
    Row {
        name: "may-trace",
        spec: &[],
        container: "securityContext: {capabilities: {add: [SYS_PTRACE]}, seccompProfile: {type: RuntimeDefault}}",
        ask: STATUS,
        wants: &["CapEff:\t00000000a80c25fb", "CapBnd:\t00000000a80c25fb", "NoNewPrivs:\t0", "Seccomp:\t2"],
    },
    Row {
        name: "may-trace-not-escalate",
        spec: &["shareProcessNamespace: true"],
        container: "securityContext: {capabilities: {add: [SYS_PTRACE]}, allowPrivilegeEscalation: false, seccompProfile: {type: RuntimeDefault}}",
        ask: STATUS,
        wants: &["CapEff:\t00000000a80c25fb", "NoNewPrivs:\t1", "Seccomp:\t2"],
    },
    Row {
        name: "may-trace-and-share",
        spec: &["shareProcessNamespace: true"],
        container: "securityContext: {capabilities: {add: [SYS_PTRACE]}}",
        ask: "read /proc/1/comm",
        wants: &["podholder"],
    },
    // --- escalation, seccomp ---
    Row { name: "may-escalate", spec: &[], container: "", ask: STATUS, wants: &["NoNewPrivs:\t0"] },
    Row {
        name: "may-not-escalate",
        spec: &[],
        container: "securityContext: {allowPrivilegeEscalation: false}",
        ask: STATUS,
        wants: &["NoNewPrivs:\t1"],
    },
    Row {
        name: "seccomp-runtime-default",
        spec: &["securityContext: {seccompProfile: {type: RuntimeDefault}}"],
        container: "",
        ask: STATUS,
        wants: &["Seccomp:\t2"],
    },
    Row {
        name: "seccomp-unconfined",
        spec: &["securityContext: {seccompProfile: {type: RuntimeDefault}}"],
        container: "securityContext: {seccompProfile: {type: Unconfined}}",
        ask: STATUS,
        wants: &["Seccomp:\t0"],
    },
    Row {
        name: "privileged",
        spec: &[],
        container: "securityContext: {privileged: true}",
        ask: STATUS,
        wants: &["Seccomp:\t0", "NoNewPrivs:\t0"],
    },
    Row {
        name: "privileged-devices",
        spec: &[],
        container: "securityContext: {privileged: true}",
        ask: "list /dev",
        wants: &["kmsg"],
    },
    Row {
        name: "privileged-sys",
        spec: &[],
        container: "securityContext: {privileged: true}",
        ask: "mounts",
        wants: &["!/proc/sys ", "!/proc/interrupts"],
    },
    Row { name: "unprivileged-devices", spec: &[], container: "", ask: "list /dev", wants: &["null", "!kmsg"] },
    // --- the root file system, /proc ---
    Row { name: "proc-masked", spec: &[], container: "", ask: "mounts", wants: &["/proc/interrupts", "/proc/sys "] },
    Row {
        name: "proc-unmasked",
        spec: &["hostUsers: false"],
        container: "securityContext: {procMount: Unmasked}",
        ask: "mounts",
        wants: &["!/proc/interrupts", "!/proc/sys "],
    },
    // --- sysctls ---
    Row {
        name: "sysctls",
        spec: &[
            "securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: '443'}, {name: kernel.shm_rmid_forced, value: '1'}]}",
        ],
        container: "",
        ask: "read /proc/sys/net/ipv4/ip_unprivileged_port_start",
        wants: &["443"],
    },
    Row {
        name: "sysctls-ipc",
        spec: &["securityContext: {sysctls: [{name: kernel/shm_rmid_forced, value: '1'}]}"],
        container: "",
        ask: "read /proc/sys/kernel/shm_rmid_forced",
        wants: &["1"],
    },
    Row {
        name: "sysctls-unsafe-by-configuration",
        spec: &["securityContext: {sysctls: [{name: net.core.somaxconn, value: '1024'}]}"],
        container: "",
        ask: "read /proc/sys/net/core/somaxconn",
        wants: &["1024"],
    },
    Row {
        name: "sysctls-unsafe-by-pattern",
        spec: &["securityContext: {sysctls: [{name: kernel.msgmax, value: '65536'}]}"],
        container: "",
        ask: "read /proc/sys/kernel/msgmax",
        wants: &["65536"],
    },
    // --- names ---
    Row { name: "host-name", spec: &["hostname: shop"], container: "", ask: "hostname", wants: &["shop"] },
    Row {
        name: "sub-domain",
        spec: &["hostname: shop", "subdomain: stores"],
        container: "",
        ask: "read /etc/hosts",
        wants: &["\tshop.stores.default.svc.my.domain\tshop"],
    },
    Row {
        name: "fqdn",
        spec: &["hostname: shop", "subdomain: stores", "setHostnameAsFQDN: true"],
        container: "",
        ask: "hostname",
        wants: &["shop.stores.default.svc.my.domain"],
    },
    Row {
        name: "hostname-override",
        spec: &["hostnameOverride: a.whole.name"],
        container: "",
        ask: "hostname",
        wants: &["a.whole.name"],
    },
    Row {
        name: "hostname-override-hosts",
        spec: &["hostnameOverride: a.whole.name"],
        container: "",
        ask: "read /etc/hosts",
        wants: &["\ta.whole.name"],
    },
    Row {
        name: "host-aliases",
        spec: &["hostAliases: [{ip: 127.0.0.1, hostnames: [foo.local, bar.local]}, {ip: 10.1.2.3, hostnames: [foo.remote]}]"],
        container: "",
        ask: "read /etc/hosts",
        wants: &[
            "# Kubernetes-managed hosts file.",
            "127.0.0.1\tfoo.local\tbar.local",
            "10.1.2.3\tfoo.remote",
            "fe00::1\tip6-allnodes",
        ],
    },
    Row {
        name: "host-network-hosts",
        spec: &["hostNetwork: true"],
        container: "",
        ask: "read /etc/hosts",
        wants: &["# Kubernetes-managed hosts file (host network)."],
    },
    Row { name: "host-network-name", spec: &["hostNetwork: true"], container: "", ask: "hostname", wants: &["node"] },
    // --- resolver ---
    Row {
        name: "dns-default",
        spec: &["dnsPolicy: Default"],
        container: "",
        ask: "read /etc/resolv.conf",
        wants: &["nameserver 9.9.9.9", "search lan"],
    },
    Row {
        name: "dns-cluster-first",
        spec: &[],
        container: "",
        ask: "read /etc/resolv.conf",
        wants: &["nameserver 10.96.0.10", "search default.svc.my.domain svc.my.domain my.domain lan", "options ndots:5"],
    },
    Row {
        name: "dns-cluster-first-on-the-host",
        spec: &["hostNetwork: true"],
        container: "",
        ask: "read /etc/resolv.conf",
        wants: &["nameserver 9.9.9.9", "!my.domain"],
    },
    Row {
        name: "dns-cluster-first-with-host-net",
        spec: &["hostNetwork: true", "dnsPolicy: ClusterFirstWithHostNet"],
        container: "",
        ask: "read /etc/resolv.conf",
        wants: &["nameserver 10.96.0.10"],
    },
    Row {
        name: "dns-none",
        spec: &[
            "dnsPolicy: None",
            "dnsConfig: {nameservers: [192.0.2.1], searches: [my.dns.search.suffix], options: [{name: ndots, value: '2'}, {name: edns0}]}",
        ],
        container: "",
        ask: "read /etc/resolv.conf",
        wants: &["nameserver 192.0.2.1", "search my.dns.search.suffix", "options ndots:2 edns0", "!9.9.9.9"],
    },
    // --- USER namespaces ---
    Row {
        name: "own-users",
        spec: &["hostUsers: false"],
        container: "",
        ask: "read /proc/self/uid_map",
        wants: &["         0 ", "      65536", "!4294967295"],
    },
    Row {
        name: "own-users-root",
        spec: &["hostUsers: false"],
        container: "",
        ask: STATUS,
        wants: &["Uid:\t0\t0", "CapEff:\t00000000a80425fb"],
    },
    Row { name: "own-users-files", spec: &["hostUsers: false"], container: "", ask: "own /demo", wants: &["0:0"] },
    Row { name: "host-users", spec: &["hostUsers: true"], container: "", ask: "read /proc/self/uid_map", wants: &["4294967295"] },
];

const CONFIGURATION: &str = "apiVersion: nodeagent.dev/v1
kind: NodeAgentConfiguration
allowedUnsafeSysctls: ['net.core.somaxconn', 'kernel.msg*']
clusterDNS: [10.96.0.10]
clusterDomain: my.domain
resolvConf: RESOLV
";

/// The node, and the resolver's file that its configuration names.
fn configured() -> (NodeBox, tempfile::NamedTempFile) {
    let file = tempfile::Builder::new().prefix("resolv").tempfile().unwrap();
    std::fs::write(&file, "nameserver 9.9.9.9\nsearch lan\n").unwrap();
    let configuration = CONFIGURATION.replace("RESOLV", file.path().to_str().unwrap());
    (NodeBox::builder().config(&configuration).start(), file)
}

impl Row {
    fn manifest(&self) -> Manifest {
        let with_lines = self.spec.iter().fold(pod(self.name), |pod, line| pod.spec(line));
        with_lines.runs_with("main", "sleep", self.container)
    }

    /// What is wrong, if anything.
    fn verdict(&self, answer: &str) -> Option<String> {
        let wrong = self.wants.iter().filter(|want| match want.strip_prefix('!') {
            Some(unwanted) => answer.contains(unwanted),
            None => !answer.contains(*want),
        });
        let wrong: Vec<_> = wrong.collect();
        (!wrong.is_empty()).then(|| format!("{}: not so: {wrong:?} in\n{answer}", self.name))
    }
}

#[test]
fn every_field_does_in_the_container_what_it_says() {
    let (node, _resolver) = configured();
    for row in ROWS {
        node.put(&row.manifest());
    }
    let failures: Vec<String> = ROWS
        .iter()
        .filter_map(|row| {
            let words: Vec<&str> = std::iter::once("/demo").chain(row.ask.split_whitespace()).collect();
            let main = node.pod(row.name).container("main");
            let asked = std::panic::catch_unwind(|| eventually(&format!("{} answers", row.name), || main.exec(&words).result()));
            match asked {
                Ok(answer) => row.verdict(&answer),
                Err(_) => Some(format!("{}: never answered", row.name)),
            }
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// One pod that can't be, and what is said.
struct Refusal {
    name: &'static str,
    spec: &'static str,
    container: &'static str,
    /// The pod's own reason, or that of its waiting container.
    reason: &'static str,
    message: &'static str,
}

const REFUSALS: &[Refusal] = &[
    Refusal {
        name: "root-image",
        spec: "securityContext: {runAsNonRoot: true}",
        container: "",
        reason: "CreateContainerConfigError",
        message: "container has runAsNonRoot and image will run as root (pod: \"root-image_default(",
    },
    Refusal {
        name: "root-by-number",
        spec: "securityContext: {runAsUser: 0}",
        container: "securityContext: {runAsNonRoot: true}",
        reason: "CreateContainerConfigError",
        message: "container's runAsUser breaks non-root policy (pod: \"root-by-number_default(",
    },
    Refusal {
        name: "unknown-capability",
        spec: "",
        container: "securityContext: {capabilities: {add: [FLY]}}",
        reason: "CreateContainerConfigError",
        message: "unknown capability \"FLY\"",
    },
    Refusal {
        name: "no-such-profile",
        spec: "securityContext: {seccompProfile: {type: Localhost, localhostProfile: none.json}}",
        container: "",
        reason: "CreateContainerConfigError",
        message: "cannot load seccomp profile",
    },
    Refusal {
        name: "profile-by-a-link",
        spec: "",
        container: "securityContext: {seccompProfile: {type: Localhost, localhostProfile: link.json}}",
        reason: "CreateContainerConfigError",
        message: "cannot load seccomp profile",
    },
    Refusal {
        name: "apparmor",
        spec: "securityContext: {appArmorProfile: {type: RuntimeDefault}}",
        container: "",
        reason: "AppArmor",
        message: "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host",
    },
    Refusal {
        name: "unsafe-sysctl",
        spec: "securityContext: {sysctls: [{name: net.ipv4.tcp_mtu_probing, value: '1'}]}",
        container: "",
        reason: "SysctlForbidden",
        message: "Pod was rejected: forbidden sysctl: \"net.ipv4.tcp_mtu_probing\" not allowlisted",
    },
    Refusal {
        name: "host-sysctl",
        spec: "securityContext: {sysctls: [{name: vm.swappiness, value: '1'}]}",
        container: "",
        reason: "SysctlForbidden",
        message: "forbidden sysctl: \"vm.swappiness\"",
    },
];

#[test]
fn what_cannot_be_says_why() {
    // The one row that depends on the kernel: elsewhere the profile would be there, or not.
    assert!(!std::path::Path::new("/sys/module/apparmor").exists(), "this test is for a kernel without AppArmor");
    let node = NodeBox::start();
    let profiles = node.root().join("var/lib/nodeagent/seccomp");
    std::fs::create_dir_all(&profiles).unwrap();
    std::fs::write(node.folder().join("outside.json"), r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    std::os::unix::fs::symlink(node.folder().join("outside.json"), profiles.join("link.json")).unwrap();
    for row in REFUSALS {
        let manifest = if row.spec.is_empty() { pod(row.name) } else { pod(row.name).spec(row.spec) };
        node.put(&manifest.runs_with("main", "sleep", row.container));
    }
    let long = pod("long-fqdn").spec("hostname: a-name-that-is-long-enough").spec("subdomain: and-a-domain-that-is-long-too");
    let long = node.put(&long.spec("setHostnameAsFQDN: true").runs("main", "sleep"));
    long.tells(&[
        "FailedCreatePodSandBox",
        "failed to construct FQDN",
        "is too long (64 characters is the max, 82 characters requested)",
    ]);
    for row in REFUSALS {
        node.pod(row.name).until("says why", |pod| {
            let status = &pod["status"];
            let waiting = &status["containerStatuses"][0]["state"]["waiting"];
            let says = |said: &serde_json::Value| {
                said["reason"] == row.reason && said["message"].as_str().unwrap_or_default().contains(row.message)
            };
            if says(status) || says(waiting) { Ok(()) } else { Err(format!("{status:#}")) }
        });
    }
}

/// As with a kubelet: the options do nothing, and the pod runs.
#[test]
fn labels_on_a_kernel_without_selinux_are_a_warning() {
    assert!(!std::path::Path::new("/sys/fs/selinux/enforce").exists(), "this test is for a kernel without SELinux");
    let node = NodeBox::start();
    let of_pod = node.put(&pod("of-pod").spec("securityContext: {seLinuxOptions: {level: 's0:c1,c2'}}").runs("main", "sleep"));
    let of_container = "securityContext: {seLinuxOptions: {type: container_t}}";
    let of_container = node.put(&pod("of-container").runs_with("main", "sleep", of_container));
    for labelled in [of_pod, of_container] {
        labelled.is_ready();
        labelled.tells(&["SELinuxDisabled", "this machine's kernel has no SELinux"]);
    }
}

#[test]
fn a_profile_of_the_node_keeps_system_calls_out() {
    let node = NodeBox::builder().without_agent().start();
    let profiles = node.root().join("var/lib/nodeagent/seccomp/team");
    std::fs::create_dir_all(&profiles).unwrap();
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}"#;
    std::fs::write(profiles.join("names.json"), profile).unwrap();
    node.start_agent();
    let confined = node.put(
        &pod("confined")
            .spec("securityContext: {seccompProfile: {type: Localhost, localhostProfile: team/names.json}}")
            .runs_with("main", "sleep", "securityContext: {capabilities: {add: [SYS_ADMIN]}}"),
    );
    confined.becomes("Running");
    let said = confined.container("main").exec(&["/demo", "hostname", "renamed"]).fails();
    assert!(said.contains("ENOSYS") || said.contains("not implemented"), "{said}");
}

#[test]
fn a_read_only_root_takes_nothing_but_volumes_do() {
    let node = NodeBox::start();
    let fields = format!("securityContext: {{readOnlyRootFilesystem: true}}\n{}", e2e::SHARED);
    let sealed = node.put(&pod("sealed").shares_a_folder().runs_with("main", "sleep", &fields));
    sealed.becomes("Running");
    let main = sealed.container("main");
    assert!(main.exec(&["/demo", "write", "/file", "text"]).fails().contains("ead-only"));
    main.demo("write /shared/file text");
    main.demo("write /dev/termination-log bye");
}

/// The numbers of a container's namespaces.
fn namespaces(container: &e2e::Container<'_>) -> [String; 4] {
    ["net", "pid", "ipc", "uts"].map(|kind| container.demo(&format!("namespace {kind}")))
}

#[test]
fn a_pod_shares_with_the_host_what_it_says_and_no_more() {
    let node = NodeBox::start();
    let hosts: Vec<String> = ["net", "pid", "ipc", "uts"]
        .iter()
        .map(|kind| std::fs::read_link(format!("/proc/{}/ns/{kind}", node.agent_pid())).unwrap().display().to_string())
        .map(|link| link.chars().filter(char::is_ascii_digit).collect())
        .collect();
    let shared = [
        ("hostNetwork", [true, false, false, true]),
        ("hostPID", [false, true, false, false]),
        ("hostIPC", [false, false, true, false]),
    ];
    for (field, _) in shared {
        node.put(&pod(&field.to_lowercase()).spec(&format!("{field}: true")).runs("main", "sleep"));
    }
    for (field, expected) in shared {
        let pod = node.pod(&field.to_lowercase());
        pod.becomes("Running");
        let seen = namespaces(&pod.container("main"));
        let same: Vec<bool> = seen.iter().zip(&hosts).map(|(a, b)| a == b).collect();
        assert_eq!(same, expected, "{field}: {seen:?} of {hosts:?}");
    }
}

#[test]
fn containers_of_a_pod_share_processes_only_when_told() {
    let node = NodeBox::start();
    let two = |name: &str| pod(name).runs("a", "sleep").runs("b", "count --every 60s");
    let (apart, together) = (node.put(&two("apart")), node.put(&two("together").spec("shareProcessNamespace: true")));
    apart.becomes("Running");
    together.becomes("Running");
    assert_ne!(apart.container("a").demo("namespace pid"), apart.container("b").demo("namespace pid"));
    assert_eq!(together.container("a").demo("namespace pid"), together.container("b").demo("namespace pid"));
    assert!(together.container("a").demo("ps").contains("count --every 60s"));
    assert!(!apart.container("a").demo("ps").contains("count --every 60s"));
}

/// The first host ID of a pod with a USER namespace.
fn first_id(pod: &e2e::Pod<'_>) -> u64 {
    let map = eventually("the map is there", || pod.container("main").exec(&["/demo", "read", "/proc/self/uid_map"]).result());
    map.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn ranges_of_ids_are_kept_over_a_crash_of_the_agent_and_given_back() {
    let configuration = "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\nuserNamespaces: {firstHostID: 1048576, idsPerPod: 131072, maxPods: 2}\n";
    let node = NodeBox::builder().config(configuration).start();
    let island = |name: &str| pod(name).spec("hostUsers: false").runs("main", "sleep");
    let (one, two) = (node.put(&island("one")), node.put(&island("two")));
    let mut firsts = [first_id(&one), first_id(&two)];
    firsts.sort_unstable();
    assert_eq!(firsts, [1_048_576, 1_179_648]);
    assert!(one.container("main").demo("read /proc/self/gid_map").contains("131072"));

    // There is no third range, and no agent forgets who has which.
    node.kill_agent();
    node.start_agent();
    let three = node.put(&island("three"));
    three.tells(&["FailedCreatePodSandBox", "all ranges of host IDs are in use"]);
    let given_back = first_id(&one);
    node.remove("one.yaml");
    one.is_gone();
    three.becomes("Running");
    assert_eq!(first_id(&three), given_back);
}

#[test]
fn the_examples_do_what_they_say() {
    let node = NodeBox::start();
    for folder in ["security", "userns"] {
        node.apply_folder(folder);
    }
    for name in ["restricted", "low-port", "names", "island", "unmasked"] {
        node.pod(name).is_ready();
    }
    let restricted = node.pod("restricted").container("web");
    let status = restricted.demo("read /proc/self/status");
    for line in
        ["Uid:\t1000", "Gid:\t3000", "Groups:\t2000 3000 4000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"]
    {
        assert!(status.contains(line), "{line} in {status}");
    }
    restricted.demo("write /data/file text");
    assert!(restricted.demo("own /data/file").starts_with("1000:2000"));
    assert!(node.curl(&format!("http://{}:80/", node.pod("low-port").ip())).ok().contains("low-port"));
    let names = node.pod("names").container("asks");
    assert_eq!(names.demo("hostname"), "busy.stores.default.svc.cluster.local");
    assert!(names.demo("ps").contains("/demo serve"));
    let island = node.pod("island").container("web");
    island.demo("write /data/file text");
    assert!(island.demo("own /data/file").starts_with("0:0"));
}
