//! The pods' ranges as a configuration file says them.

use std::path::Path;
use std::time::Duration;

use clap::Parser;
use rstest::rstest;

use super::{Flags, Settings, load_from};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    flags: Flags,
}

pub(super) fn load(words: &[&str], yaml: &str) -> Result<Settings, String> {
    let flags = Line::parse_from([&["nodeagent"], words].concat()).flags;
    let text = format!("apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\n{yaml}\n");
    load_from(&flags, Path::new("c.yaml"), text.as_bytes())
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

#[test]
fn ranges_have_gateways_exclusions_and_rest() {
    let settings = load(
        &[],
        "podRanges:
- {subnet: 10.85.0.0/24, gateway: 10.85.0.254, exclude: [10.85.0.1-10.85.0.9, 10.85.0.20, 10.85.0.128/26]}
- {subnet: 10.86.0.0/24}
- {subnet: 'fd00:85::/64'}
addressReuseAfter: 5m
addressProbe: 200ms
masquerade: true
directPath: false
masqueradeExcept: [192.168.0.0/16]",
    )
    .unwrap();
    let network = settings.network;
    let shown: Vec<String> = network.pod_ranges.iter().map(|range| format!("{} {}", range.subnet, range.gateway())).collect();
    assert_eq!(shown, ["10.85.0.0/24 10.85.0.254", "10.86.0.0/24 10.86.0.1", "fd00:85::/64 fd00:85::1"]);
    assert_eq!(network.pod_ranges[0].exclude.len(), 3);
    assert_eq!(network.reuse_after, Duration::from_secs(300));
    assert!(!network.direct_path);
    assert_eq!(network.probe, Some(Duration::from_millis(200)));
    assert_eq!(network.masquerade_except, ["192.168.0.0/16".parse().unwrap()]);
    let first: Vec<String> = network.first_subnets().map(|subnet| subnet.to_string()).collect();
    assert_eq!(first, ["10.85.0.0/24", "fd00:85::/64"], "a node has one a family");
    let families: Vec<bool> = network.service_cidrs.iter().map(netplug::Cidr::is_v4).collect();
    assert_eq!(families, [true, false]);
}

#[test]
fn several_ranges_of_a_family_are_fine_and_a_flag_overrules_the_file() {
    let subnets = |settings: Settings| settings.network.pod_ranges.iter().map(|r| r.subnet.to_string()).collect::<Vec<_>>();
    let file = "podCIDRs: [10.85.0.0/24, 10.86.0.0/24]";
    assert_eq!(subnets(load(&[], file).unwrap()), ["10.85.0.0/24", "10.86.0.0/24"]);
    assert_eq!(subnets(load(&["--pod-cidr", "10.99.0.0/16"], file).unwrap()), ["10.99.0.0/16"]);
    assert_eq!(subnets(load(&[], "").unwrap()), ["10.85.0.0/16"]);
}

#[rstest]
#[case("podCIDRs: [10.85.0.0/33]", "c.yaml:3:12: podCIDRs[0]: Invalid value: \"10.85.0.0/33\": must be a valid CIDR value")]
#[case("podCIDRs: [10.85.0.1/24]", "c.yaml:3:12: podCIDRs[0]: Invalid value: \"10.85.0.1/24\": has bits set after the first 24")]
#[case(
    "podCIDRs: [10.85.0.0/16, 10.85.1.0/24]",
    "c.yaml:3:26: podCIDRs[1]: Invalid value: \"10.85.1.0/24\": overlaps 10.85.0.0/16"
)]
#[case("podRanges: [{subnet: nonsense}]", "c.yaml:3:14: podRanges[0].subnet: Invalid value: \"nonsense\"")]
#[case("podRanges: [{gateway: 10.85.0.1}]", "podRanges[0].subnet: Invalid value: \"\"")]
#[case(
    "podRanges: [{subnet: 10.85.0.0/24, gateway: 10.86.0.1}]",
    "c.yaml:3:36: podRanges[0].gateway: Invalid value: 10.86.0.1 is not in 10.85.0.0/24"
)]
#[case(
    "podRanges: [{subnet: 10.85.0.0/24, gateway: here}]",
    "podRanges[0].gateway: Invalid value: \"here\": must be an IP address"
)]
#[case("podRanges: [{subnet: 127.0.0.0/24}]", "podRanges[0].subnet: Invalid value: 127.0.0.0/24 is not for hosts")]
#[case(
    "podRanges: [{subnet: 10.85.0.0/24, exclude: [10.85.0.2, 10.85.0.9-10.85.0.5]}]",
    "c.yaml:3:57: podRanges[0].exclude[1]: Invalid value: \"10.85.0.9-10.85.0.5\""
)]
#[case(
    "podRanges: [{subnet: 10.85.0.0/24, exclude: [x, 10.86.0.2]}]",
    "c.yaml:3:49: podRanges[0].exclude[1]: Invalid value: 10.86.0.2 is not in"
)]
#[case(
    "podRanges: [{subnet: 10.85.0.0/24, exclude: [10.85.0.0/24]}]",
    "podRanges[0].exclude[0]: Invalid value: leaves no address of 10.85.0.0/24 for pods"
)]
#[case("podRanges: [{subnet: 10.85.0.0/24, excluded: []}]", "podRanges[0].excluded")]
#[case("podRanges: [{subnet: 10.85.0.0/24}]\npodCIDRs: [10.86.0.0/24]", "podCIDRs: Forbidden: podRanges says the same")]
#[case("addressReuseAfter: soon", "c.yaml:3:1: addressReuseAfter: Invalid value: \"soon\": must be a duration")]
#[case("addressProbe: 10s", "c.yaml:3:1: addressProbe: Invalid value: 10s: must not be longer than 3s")]
#[case("masqueradeExcept: [10.0.0.0]", "c.yaml:3:20: masqueradeExcept[0]: Invalid value: \"10.0.0.0\"")]
#[case("serviceCIDRs: [10.85.0.0/20]", "c.yaml:3:1: serviceCIDRs: Invalid value: \"10.85.0.0/20\": overlaps the pods' range")]
fn what_is_wrong_is_told_with_its_place(#[case] yaml: &str, #[case] complaint: &str) {
    let errors = load(&[], yaml).unwrap_err();
    assert!(errors.contains(complaint), "{errors}");
}

#[test]
fn a_wrong_flag_is_named() {
    let errors = load(&["--pod-cidr", "10.85.0.0/16,10.85.0.0/24"], "").unwrap_err();
    assert_eq!(errors, "--pod-cidr: Invalid value: \"10.85.0.0/24\": overlaps 10.85.0.0/16");
}
