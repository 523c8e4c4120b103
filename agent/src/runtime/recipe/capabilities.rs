//! capabilities(7) by name, and the sets that a container gets. Pure.

use k8s_openapi::api::core::v1::SecurityContext;
use podholder::protocol::Capabilities;

use crate::runtime::error::ConfigError;

/// In the order of their numbers.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What containers have without asking: the set that containerd and Docker give.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// A capability's bit, by its name with or without `CAP_`, in any case.
pub fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|known| *known == bare).map(|n| 1 << n)
}

/// Whether a set has a capability of this name.
pub fn has(set: u64, name: &str) -> bool {
    bit(name).is_some_and(|bit| set & bit != 0)
}

/// The default set.
pub fn default_set() -> u64 {
    DEFAULT.iter().filter_map(|name| bit(name)).sum()
}

/// What a container gets: the default set, less `drop`, with `add`; all that there is for a privileged one. `available` is what
/// the agent itself may give: asking for more is an error for `add`, and no surprise for `ALL` and `privileged`.
pub fn of(context: Option<&SecurityContext>, available: u64) -> Result<Capabilities, ConfigError> {
    let set = match context {
        Some(context) if context.privileged == Some(true) => available,
        Some(context) => adjusted(context, available)?,
        None => default_set() & available,
    };
    // Nothing is inheritable or ambient: a process of a user other than root has none, whatever the files say (CVE-2022-24769).
    Ok(Capabilities { bounding: set, effective: set, inheritable: 0, ambient: 0 })
}

fn adjusted(context: &SecurityContext, available: u64) -> Result<u64, ConfigError> {
    let Some(wanted) = &context.capabilities else { return Ok(default_set() & available) };
    let (add, drop) = (wanted.add.as_deref().unwrap_or_default(), wanted.drop.as_deref().unwrap_or_default());
    let all = |list: &[String]| list.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    let mut set = match (all(add), all(drop)) {
        (true, _) => available,
        (false, true) => 0,
        (false, false) => default_set() & available,
    };
    let known = |name: &String| bit(name).ok_or_else(|| ConfigError::new(format!("unknown capability \"{name}\"")));
    let named = |list: &[String]| -> Result<Vec<(String, u64)>, ConfigError> {
        let single = list.iter().filter(|name| !name.eq_ignore_ascii_case("ALL"));
        single.map(|name| Ok((name.clone(), known(name)?))).collect()
    };
    for (_, bit) in named(drop)? {
        set &= !bit;
    }
    for (name, bit) in named(add)? {
        if available & bit == 0 {
            return Err(ConfigError::new(format!("capability {name}: the agent itself doesn't have it on this machine")));
        }
        set |= bit;
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const ALL: u64 = (1 << 41) - 1;

    #[test]
    fn the_default_set_is_docker_s() {
        assert_eq!(default_set(), 0xa804_25fb);
    }

    #[rstest]
    #[case("{}", 0xa804_25fb)]
    #[case("{capabilities: {drop: [ALL]}}", 0)]
    #[case("{capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}", 1 << 10)]
    #[case("{capabilities: {add: [CAP_SYS_TIME]}}", 0xa804_25fb | 1 << 25)]
    #[case("{capabilities: {drop: [net_raw]}}", 0xa804_25fb & !(1 << 13))]
    #[case("{capabilities: {add: [ALL], drop: [SYS_ADMIN]}}", ALL & !(1 << 21))]
    #[case("{privileged: true}", ALL)]
    fn sets(#[case] yaml: &str, #[case] expected: u64) {
        let context: SecurityContext = serde_yaml::from_str(yaml).unwrap();
        let caps = of(Some(&context), ALL).unwrap();
        assert_eq!((caps.bounding, caps.effective, caps.ambient), (expected, expected, 0));
    }

    #[rstest]
    #[case("{capabilities: {add: [FLY]}}", "unknown capability \"FLY\"")]
    #[case("{capabilities: {add: [SYS_RESOURCE]}}", "capability SYS_RESOURCE: the agent itself doesn't have it on this machine")]
    fn refusals(#[case] yaml: &str, #[case] expected: &str) {
        let context: SecurityContext = serde_yaml::from_str(yaml).unwrap();
        assert_eq!(of(Some(&context), ALL & !(1 << 24)).unwrap_err().message, expected);
    }
}
