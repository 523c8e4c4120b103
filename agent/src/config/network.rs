//! The pods' network: flags over file over defaults.

use std::net::IpAddr;
use std::time::Duration;

use netplug::{Cidr, Range, RangeField, Span};

use super::check::Checker;
use super::file::{Declared, RangeSection};
use super::{Cni, Flags, Network, Paths, Ranges};
use crate::model::Path;

/// Interface and table names are this short in the kernel (IFNAMSIZ less its NUL).
const IFNAME_LIMIT: usize = 15;

fn interface(name: &str) -> Vec<String> {
    let fine = (1..=IFNAME_LIMIT).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':'));
    if fine { Vec::new() } else { vec![format!("must be 1 to {IFNAME_LIMIT} characters without spaces, '/' and ':'")] }
}

fn table(name: &str) -> Vec<String> {
    let fine = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.len() <= 63
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if fine { Vec::new() } else { vec!["must begin with a letter and have letters, digits, '_' and '-'".into()] }
}

pub(super) fn network(c: &mut Checker<'_>, flags: &Flags, declared: &Declared, paths: &Paths) -> Network {
    let mtu = flags.mtu.or(declared.mtu);
    if let Some(mtu) = mtu.filter(|m| !(576..=65535).contains(m)) {
        let message = format!("Invalid value: {mtu}: must be between 576 and 65535");
        if flags.mtu.is_some() { c.flag("--mtu", message) } else { c.file("mtu", message) }
    }
    let pod_ranges = pod_ranges(c, flags, declared);
    let in_cluster = [&flags.kubeconfig, &flags.bootstrap_kubeconfig, &declared.kubeconfig, &declared.bootstrap_kubeconfig];
    // A cluster has its own.
    let services = declared.services.unwrap_or(in_cluster.iter().all(|file| file.is_none()));
    let service_cidrs = if services { service_cidrs(c, declared, &pod_ranges) } else { Vec::new() };
    Network {
        dns: declared.dns.unwrap_or(declared.cluster_dns.is_empty()) && !service_cidrs.is_empty(),
        service_cidrs,
        bridge: c.text("bridge", "--bridge", flags.bridge.as_ref(), declared.bridge.as_ref(), "nodeagent0", interface),
        pod_ranges,
        reuse_after: c.duration("addressReuseAfter", declared.address_reuse_after.as_ref(), Duration::from_secs(60)),
        probe: probe(c, declared),
        masquerade: declared.masquerade != Some(false),
        direct_path: declared.direct_path != Some(false),
        masquerade_except: masquerade_except(c, declared),
        nft_table: c.text("nftTable", "--nft-table", flags.nft_table.as_ref(), declared.nft_table.as_ref(), "nodeagent", table),
        mtu,
        wiring: flags.network.or(declared.network),
        ranges: if [&flags.pod_cidrs, &declared.pod_cidrs].iter().all(|cidrs| cidrs.is_empty()) && declared.pod_ranges.is_empty()
        {
            Ranges::Default
        } else {
            Ranges::Chosen
        },
        cni: cni(c, declared, paths),
    }
}

/// Pods wait for it one after the other.
fn probe(c: &mut Checker<'_>, declared: &Declared) -> Option<Duration> {
    const LONGEST: Duration = Duration::from_secs(3);
    let patience = c.duration("addressProbe", declared.address_probe.as_ref(), Duration::ZERO);
    if patience > LONGEST {
        c.file(
            "addressProbe",
            format!("Invalid value: {patience:?}: must not be longer than {LONGEST:?}: each new pod waits so long"),
        );
    }
    (!patience.is_zero()).then_some(patience)
}

fn cni(c: &mut Checker<'_>, declared: &Declared, paths: &Paths) -> Cni {
    let section = &declared.cni;
    for dir in &section.bin_dirs {
        c.path("cni.binDirs", Some(dir));
    }
    let bin_dirs = if section.bin_dirs.is_empty() { vec!["/opt/cni/bin".into()] } else { section.bin_dirs.clone() };
    let timeout = c.duration("cni.timeout", section.timeout.as_ref(), Duration::from_secs(60));
    if timeout.is_zero() {
        c.file("cni.timeout", "Invalid value: 0: must be longer".into());
    }
    Cni {
        conf_dir: c.path("cni.confDir", section.conf_dir.as_ref()).unwrap_or_else(|| "/etc/cni/net.d".into()),
        bin_dirs,
        cache_dir: c.path("cni.cacheDir", section.cache_dir.as_ref()).unwrap_or_else(|| paths.lib().join("cni")),
        timeout,
    }
}

/// Where pods' addresses are from, the first range of a family before the next.
fn pod_ranges(c: &mut Checker<'_>, flags: &Flags, declared: &Declared) -> Vec<Range> {
    if !flags.pod_cidrs.is_empty() {
        return subnets(&flags.pod_cidrs, &mut |_, message| c.flag("--pod-cidr", message));
    }
    let (all, short) = (Path::ROOT.child("podRanges"), Path::ROOT.child("podCIDRs"));
    if declared.pod_ranges.is_empty() {
        let default = ["10.85.0.0/16".to_owned()];
        let texts = if declared.pod_cidrs.is_empty() { &default[..] } else { &declared.pod_cidrs };
        return subnets(texts, &mut |index, message| c.at(&short.index(index), message));
    }
    if !declared.pod_cidrs.is_empty() {
        c.at(&short, "Forbidden: podRanges says the same, and more: give one of the two".into());
    }
    let texts: Vec<String> = declared.pod_ranges.iter().map(|range| range.subnet.clone()).collect();
    subnets(&texts, &mut |index, message| c.at(&all.index(index).child("subnet"), message));
    let ranges = declared.pod_ranges.iter().enumerate();
    ranges.filter_map(|(index, range)| pod_range(c, &all.index(index), range)).collect()
}

/// A subnet that pods can have, with nothing special about it. The error says what would be right.
pub fn plain_range(subnet: &str) -> Result<Range, String> {
    Ok(Range { subnet: parse_cidr(subnet)?, gateway: None, exclude: Vec::new() })
}

/// Ranges without anything special. `tell` gets the number of a wrong one.
fn subnets(texts: &[String], tell: &mut dyn FnMut(usize, String)) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match plain_range(text) {
            Ok(range) => match ranges.iter().find(|other| other.subnet.overlaps(&range.subnet)) {
                Some(other) => tell(index, format!("Invalid value: {text:?}: overlaps {}", other.subnet)),
                None => ranges.push(range),
            },
            Err(wrong) => tell(index, format!("Invalid value: {text:?}: {wrong}")),
        }
    }
    ranges
}

/// One range; None: its subnet is wrong, which is told elsewhere.
fn pod_range(c: &mut Checker<'_>, at: &Path<'_>, declared: &RangeSection) -> Option<Range> {
    let mut range = plain_range(&declared.subnet).ok()?;
    let mut spans = Vec::new();
    if let Some(text) = &declared.gateway {
        match text.parse() {
            Ok(gateway) => range.gateway = Some(gateway),
            Err(_) => c.at(&at.child("gateway"), format!("Invalid value: {text:?}: must be an IP address of the subnet")),
        }
    }
    for (index, text) in declared.exclude.iter().enumerate() {
        match text.parse::<Span>() {
            Ok(span) => {
                range.exclude.push(span);
                spans.push(index);
            }
            Err(wrong) => c.at(&at.child("exclude").index(index), format!("Invalid value: {text:?}: {wrong}")),
        }
    }
    match range.problem() {
        None => {}
        Some((RangeField::Subnet, wrong)) => c.at(&at.child("subnet"), format!("Invalid value: {wrong}")),
        Some((RangeField::Gateway, wrong)) => c.at(&at.child("gateway"), format!("Invalid value: {wrong}")),
        Some((RangeField::Exclude(number), wrong)) => {
            let index = spans.get(number).copied().unwrap_or_default();
            c.at(&at.child("exclude").index(index), format!("Invalid value: {wrong}"));
        }
    }
    Some(range)
}

/// Of the families that pods have. A default gives way to the pods' range.
fn service_cidrs(c: &mut Checker<'_>, declared: &Declared, pods: &[Range]) -> Vec<Cidr> {
    const DEFAULTS: [&str; 4] = ["10.96.0.0/16", "172.30.0.0/16", "fd00:10:96::/112", "fd00:10:97::/112"];
    let overlaps = |a: &Cidr| pods.iter().any(|range| a.overlaps(&range.subnet));
    let mut ranges: Vec<Cidr> = Vec::new();
    let is_new = |cidr: &Cidr, ranges: &[Cidr]| !ranges.iter().any(|have| have.is_v4() == cidr.is_v4());
    for text in &declared.service_cidrs {
        match parse_cidr(text) {
            Ok(cidr) if !is_new(&cidr, &ranges) => {
                c.file("serviceCIDRs", format!("Invalid value: {text:?}: there is a range of this family already"));
            }
            Ok(cidr) if overlaps(&cidr) => {
                c.file("serviceCIDRs", format!("Invalid value: {text:?}: overlaps the pods' range: see podCIDRs"));
            }
            Ok(cidr) => ranges.push(cidr),
            Err(wrong) => c.file("serviceCIDRs", format!("Invalid value: {text:?}: {wrong}")),
        }
    }
    if declared.service_cidrs.is_empty() {
        let families = |cidr: &Cidr| pods.iter().any(|range| range.subnet.is_v4() == cidr.is_v4());
        for cidr in DEFAULTS.iter().filter_map(|text| parse_cidr(text).ok()).filter(families) {
            if is_new(&cidr, &ranges) && !overlaps(&cidr) {
                ranges.push(cidr);
            }
        }
        // In the order of the pods' families: the first is a Service's own.
        ranges.sort_by_key(|cidr| pods.first().is_some_and(|first| first.subnet.is_v4() != cidr.is_v4()));
    }
    ranges
}

fn parse_cidr(text: &str) -> Result<Cidr, String> {
    let syntax = || "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned();
    let (address, prefix) = text.split_once('/').ok_or_else(syntax)?;
    let address: IpAddr = address.parse().map_err(|_| syntax())?;
    let prefix: u8 = prefix.parse().map_err(|_| syntax())?;
    let (bits, value) = match address {
        IpAddr::V4(a) => (32, u128::from(u32::from(a)) << 96),
        IpAddr::V6(a) => (128, u128::from(a)),
    };
    if prefix > bits {
        return Err(syntax());
    }
    if prefix == 0 || bits - prefix < 3 {
        return Err("the range needs room for pods: a prefix from 1 to 29 (IPv4) or 125 (IPv6)".into());
    }
    if value << prefix != 0 {
        return Err(format!("has bits set after the first {prefix}"));
    }
    Cidr::new(address, prefix)
}

/// Destinations beside the pods' own ranges that see pods' addresses.
fn masquerade_except(c: &mut Checker<'_>, declared: &Declared) -> Vec<Cidr> {
    let mut cidrs = Vec::new();
    for (index, text) in declared.masquerade_except.iter().enumerate() {
        match text.parse() {
            Ok(cidr) => cidrs.push(cidr),
            Err(wrong) => {
                c.at(&Path::ROOT.child("masqueradeExcept").index(index), format!("Invalid value: {text:?}: {wrong}"));
            }
        }
    }
    cidrs
}
