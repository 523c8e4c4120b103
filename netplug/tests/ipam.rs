//! The allocator against a plain model of it, and at the size of a /16.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use netplug::{
    Range,
    ipam::{Pool, Pools, Refusal},
};
use proptest::prelude::*;

fn range(subnet: &str, exclude: &[&str]) -> Range {
    Range { subnet: subnet.parse().unwrap(), gateway: None, exclude: exclude.iter().map(|span| span.parse().unwrap()).collect() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[derive(Debug, Clone)]
enum Step {
    Allocate,
    Claim(u8),
    Release(u8),
    Wait(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Allocate),
        1 => (0..16u8).prop_map(Step::Claim),
        3 => (0..16u8).prop_map(Step::Release),
        2 => (0..8u8).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..120)
}

const REST: u64 = 5;

proptest! {
    /// 10.0.0.0/28 with the gateway .1 and without .4 to .6: ten addresses.
    #[test]
    fn behaves_as_the_model(steps in steps()) {
        let mut pool = Pool::new(&range("10.0.0.0/28", &["10.0.0.4-10.0.0.6"]), Duration::from_secs(REST));
        prop_assert_eq!(pool.capacity(), 10);
        let barred: HashSet<IpAddr> = [0, 1, 4, 5, 6, 15].map(|last| ip(&format!("10.0.0.{last}"))).into();
        let (mut now, mut leased, mut released) = (0, HashSet::new(), HashMap::<IpAddr, u64>::new());
        let rested = |released: &HashMap<IpAddr, u64>, now: u64, ip: &IpAddr| released.get(ip).is_none_or(|at| now - at >= REST);
        for step in steps {
            let time = Duration::from_secs(now);
            match step {
                Step::Allocate => match pool.allocate(time) {
                    Ok(ip) => {
                        prop_assert!(!barred.contains(&ip) && rested(&released, now, &ip), "{} at {}", ip, now);
                        prop_assert!(leased.insert(ip), "{} twice", ip);
                    }
                    Err(Refusal::Full { capacity, .. }) => prop_assert_eq!(leased.len() as u128, capacity),
                    Err(Refusal::Resting { wait, .. }) => {
                        let all = (0..16).map(|last| ip(&format!("10.0.0.{last}")));
                        let free = all.filter(|ip| !barred.contains(ip) && !leased.contains(ip));
                        let soonest = free.map(|ip| released.get(&ip).map_or(0, |at| (at + REST).saturating_sub(now))).min();
                        prop_assert_eq!(soonest, Some(wait.as_secs()));
                    }
                    Err(other) => prop_assert!(false, "{}", other),
                },
                Step::Claim(last) => {
                    let ip = ip(&format!("10.0.0.{last}"));
                    match pool.claim(ip) {
                        Ok(()) => prop_assert!(!barred.contains(&ip) && leased.insert(ip)),
                        Err(Refusal::Barred(_)) => prop_assert!(barred.contains(&ip)),
                        Err(_) => prop_assert!(leased.contains(&ip)),
                    }
                }
                Step::Release(last) => {
                    let ip = ip(&format!("10.0.0.{last}"));
                    let was = leased.remove(&ip);
                    prop_assert_eq!(pool.release(ip, time), was);
                    if was {
                        released.insert(ip, now);
                    }
                }
                Step::Wait(seconds) => now += u64::from(seconds),
            }
            prop_assert_eq!(pool.leased(), leased.len() as u128);
        }
    }
}

/// Were an operation not O(1), this would take minutes.
#[test]
fn a_whole_16_again_and_again() {
    let mut pool = Pool::new(&range("10.88.0.0/16", &["10.88.128.0/20"]), Duration::from_secs(1));
    let first: Vec<IpAddr> = (0..pool.capacity()).map(|_| pool.allocate(Duration::ZERO).unwrap()).collect();
    assert_eq!(first.len(), 65_536 - 3 - 4096);
    for round in 1..20 {
        let full = pool.allocate(Duration::from_secs(round)).unwrap_err().to_string();
        assert_eq!(full, "range 10.88.0.0/16 is full (61437 of 61437): end pods, or add a range");
        for ip in first.iter().rev() {
            assert!(pool.release(*ip, Duration::from_secs(round)));
            assert!(matches!(pool.allocate(Duration::from_secs(round)), Err(Refusal::Resting { .. })));
            assert_eq!(pool.allocate(Duration::from_secs(round + 1)), Ok(*ip));
        }
    }
}

#[test]
fn a_24_has_253() {
    let mut pools = Pools::new(&[range("10.88.0.0/24", &[])], Duration::ZERO);
    for last in 2..255 {
        assert_eq!(pools.allocate(&[], Duration::ZERO), Ok(vec![ip(&format!("10.88.0.{last}"))]));
    }
    let error = pools.allocate(&[], Duration::ZERO).unwrap_err().to_string();
    assert!(error.starts_with("range 10.88.0.0/24 is full (253 of 253): "), "{error}");
}

#[test]
fn a_full_range_is_followed_by_the_next_of_its_family() {
    let ranges = [range("10.0.0.0/30", &[]), range("fd00::/126", &[]), range("10.0.1.0/30", &[])];
    let mut pools = Pools::new(&ranges, Duration::ZERO);
    assert_eq!(pools.allocate(&[], Duration::ZERO), Ok(vec![ip("10.0.0.2"), ip("fd00::2")]));
    assert_eq!(pools.allocate(&[], Duration::ZERO), Ok(vec![ip("10.0.1.2"), ip("fd00::3")]));
    assert!(matches!(pools.allocate(&[], Duration::ZERO), Err(Refusal::Full { .. })));
}

/// What one family gave is given back when the other has none; it need not rest, for nobody has seen it.
#[test]
fn both_families_or_none() {
    let mut pools = Pools::new(&[range("10.0.0.0/29", &[]), range("fd00::/126", &["fd00::3"])], Duration::from_secs(60));
    // A caller's clock begins late enough for what never was in use to have rested.
    let now = Duration::from_secs(60);
    pools.allocate(&[], now).unwrap();
    for _ in 0..10 {
        assert!(matches!(pools.allocate(&[], now), Err(Refusal::Full { .. })));
    }
    assert_eq!(pools.of(ip("10.0.0.2")).unwrap().leased(), 1);
}
