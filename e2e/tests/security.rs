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
    Row { name: "default-caps", spec: &[], container: "", ask: STATUS, wants: &["CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000"] },
    Row { name: "drop-all", spec: &[], container: "securityContext: {capabilities: {drop: [ALL]}}", ask: STATUS, wants: &["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"] },
    Row { name: "drop-all-add-one", spec: &[], container: "securityContext: {capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}", ask: STATUS, wants: &["CapEff:\t0000000000000400"] },
    Row { name: "add-one", spec: &[], container: "securityContext: {capabilities: {add: [NET_ADMIN]}}", ask: STATUS, wants: &["CapEff:\t00000000a80435fb"] },
    Row { name: "drop-one", spec: &[], container: "securityContext: {capabilities: {drop: [NET_RAW]}}", ask: STATUS, wants: &["CapEff:\t00000000a80405fb"] },
    Row { name: "no-root-no-caps", spec: &["securityContext: {runAsUser: 1000}"], container: "", ask: STATUS, wants: &["CapEff:\t0000000000000000", "CapBnd:\t00000000a80425fb"] },
    // --- escalation, seccomp ---
    Row { name: "may-escalate", spec: &[], container: "", ask: STATUS, wants: &["NoNewPrivs:\t0"] },
    Row { name: "may-not-escalate", spec: &[], container: "securityContext: {allowPrivilegeEscalation: false}", ask: STATUS, wants: &["NoNewPrivs:\t1"] },
    Row { name: "seccomp-runtime-default", spec: &["securityContext: {seccompProfile: {type: RuntimeDefault}}"], container: "", ask: STATUS, wants: &["Seccomp:\t2"] },
    Row { name: "seccomp-unconfined", spec: &["securityContext: {seccompProfile: {type: RuntimeDefault}}"], container: "securityContext: {seccompProfile: {type: Unconfined}}", ask: STATUS, wants: &["Seccomp:\t0"] },
    Row { name: "privileged", spec: &[], container: "securityContext: {privileged: true}", ask: STATUS, wants: &["Seccomp:\t0", "NoNewPrivs:\t0"] },
    Row { name: "privileged-devices", spec: &[], container: "securityContext: {privileged: true}", ask: "list /dev", wants: &["kmsg"] },
    Row { name: "privileged-sys", spec: &[], container: "securityContext: {privileged: true}", ask: "mounts", wants: &["!/proc/sys ", "!/proc/kcore"] },
    Row { name: "unprivileged-devices", spec: &[], container: "", ask: "list /dev", wants: &["null", "!kmsg"] },
    // --- the root file system, /proc ---
    Row { name: "proc-masked", spec: &[], container: "", ask: "mounts", wants: &["/proc/kcore", "/proc/sys "] },
    Row {
        name: "proc-unmasked",
        spec: &["hostUsers: false"],
        container: "securityContext: {procMount: Unmasked}",
        ask: "mounts",
        wants: &["!/proc/kcore", "!/proc/sys "],
    },
    // --- sysctls ---
    Row {
        name: "sysctls",
        spec: &["securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: '443'}, {name: kernel.shm_rmid_forced, value: '1'}]}"],
        container: "",
        ask: "read /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced",
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
    Row { name: "sub-domain", spec: &["hostname: shop", "subdomain: stores"], container: "", ask: "read /etc/hosts", wants: &["\tshop.stores.default.svc.cluster.local\tshop"] },
    Row { name: "fqdn", spec: &["hostname: shop", "subdomain: stores", "setHostnameAsFQDN: true"], container: "", ask: "hostname", wants: &["shop.stores.default.svc.cluster.local"] },
    Row { name: "hostname-override", spec: &["hostnameOverride: a.whole.name"], container: "", ask: "hostname", wants: &["a.whole.name"] },
    Row { name: "hostname-override-hosts", spec: &["hostnameOverride: a.whole.name"], container: "", ask: "read /etc/hosts", wants: &["\ta.whole.name"] },
    Row {
        name: "host-aliases",
        spec: &["hostAliases: [{ip: 127.0.0.1, hostnames: [foo.local, bar.local]}, {ip: 10.1.2.3, hostnames: [foo.remote]}]"],
        container: "",
        ask: "read /etc/hosts",
        wants: &["# Kubernetes-managed hosts file.", "127.0.0.1\tfoo.local\tbar.local", "10.1.2.3\tfoo.remote", "fe00::1\tip6-allnodes"],
    },
    Row { name: "host-network-hosts", spec: &["hostNetwork: true"], container: "", ask: "read /etc/hosts", wants: &["# Kubernetes-managed hosts file (host network)."] },
    Row { name: "host-network-name", spec: &["hostNetwork: true"], container: "", ask: "hostname", wants: &["node"] },
    // --- resolver ---
    Row { name: "dns-default", spec: &["dnsPolicy: Default"], container: "", ask: "read /etc/resolv.conf", wants: &["nameserver 9.9.9.9", "search lan"] },
    Row {
        name: "dns-cluster-first",
        spec: &[],
        container: "",
        ask: "read /etc/resolv.conf",
        wants: &["nameserver 10.96.0.10", "search default.svc.my.domain svc.my.domain my.domain lan", "options ndots:5"],
    },
    Row { name: "dns-cluster-first-on-the-host", spec: &["hostNetwork: true"], container: "", ask: "read /etc/resolv.conf", wants: &["nameserver 9.9.9.9", "!my.domain"] },
    Row {
        name: "dns-cluster-first-with-host-net",
        spec: &["hostNetwork: true", "dnsPolicy: ClusterFirstWithHostNet"],
        container: "",
        ask: "read /etc/resolv.conf",
        wants: &["nameserver 10.96.0.10"],
    },
    Row {
        name: "dns-none",
        spec: &["dnsPolicy: None", "dnsConfig: {nameservers: [192.0.2.1], searches: [my.dns.search.suffix], options: [{name: ndots, value: '2'}, {name: edns0}]}"],
        container: "",
        ask: "read /etc/resolv.conf",
        wants: &["nameserver 192.0.2.1", "search my.dns.search.suffix", "options ndots:2 edns0", "!9.9.9.9"],
    },
    // --- USER namespaces ---
    Row { name: "own-users", spec: &["hostUsers: false"], container: "", ask: "read /proc/self/uid_map", wants: &["         0 ", "      65536", "!4294967295"] },
    Row { name: "own-users-root", spec: &["hostUsers: false"], container: "", ask: STATUS, wants: &["Uid:\t0\t0", "CapEff:\t00000000a80425fb"] },
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

fn configured() -> NodeBox {
    // Its name is that of no machine's file: it is the test's own.
    let file = tempfile::Builder::new().prefix("resolv").tempfile().unwrap().into_temp_path().keep().unwrap();
    std::fs::write(&file, "nameserver 9.9.9.9\nsearch lan\n").unwrap();
    NodeBox::builder().config(&CONFIGURATION.replace("RESOLV", file.to_str().unwrap())).start()
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
    let node = configured();
    for row in ROWS {
        node.put(&row.manifest());
    }
    let failures: Vec<String> = ROWS
        .iter()
        .filter_map(|row| {
            let words: Vec<&str> = std::iter::once("/demo").chain(row.ask.split_whitespace()).collect();
            let main = node.pod(row.name).container("main");
            let asked = std::panic::catch_unwind(|| {
                eventually(&format!("{} answers", row.name), || main.exec(&words).result())
            });
            match asked {
                Ok(answer) => row.verdict(&answer),
                Err(_) => Some(format!("{}: never answered", row.name)),
            }
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
