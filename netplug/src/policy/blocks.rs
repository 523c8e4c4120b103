//! Address ranges with what is taken out of them. Pure.

use std::net::IpAddr;

use crate::{
    cidr::{self, Cidr},
    nft::rule::Family,
};

/// The addresses of blocks less their exceptions, as runs that neither touch nor overlap.
pub(crate) fn ranges(blocks: &[(Cidr, Vec<Cidr>)], family: Family) -> Vec<(IpAddr, IpAddr)> {
    let like = if family.is_v4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let bounds = |cidr: &Cidr| (cidr::number(cidr.base()), cidr::number(cidr.at(cidr.last_offset())));
    let mut runs: Vec<(u128, u128)> = Vec::new();
    for (block, except) in blocks.iter().filter(|(block, _)| block.is_v4() == family.is_v4()) {
        let mut left = vec![bounds(block)];
        for (first, last) in except.iter().filter(|except| except.is_v4() == family.is_v4()).map(bounds) {
            left = left.into_iter().flat_map(|run| without(run, first, last)).collect();
        }
        runs.extend(left);
    }
    runs.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (first, last) in runs {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged.into_iter().map(|(first, last)| (cidr::from_number(first, like), cidr::from_number(last, like))).collect()
}

/// A run less another.
fn without(run: (u128, u128), first: u128, last: u128) -> impl Iterator<Item = (u128, u128)> {
    let before = (run.0 < first).then(|| (run.0, run.1.min(first.wrapping_sub(1))));
    let after = (run.1 > last).then(|| (run.0.max(last.wrapping_add(1)), run.1));
    before.into_iter().chain(after)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn blocks(text: &str) -> Vec<(Cidr, Vec<Cidr>)> {
        let block = |words: &str| {
            let mut cidrs = words.split(" except ").map(|cidr| cidr.parse().unwrap());
            (cidrs.next().unwrap(), cidrs.collect())
        };
        text.split(", ").map(block).collect()
    }

    #[rstest]
    #[case("10.0.0.0/24", "10.0.0.0-10.0.0.255")]
    #[case("10.0.0.0/24 except 10.0.0.0/25", "10.0.0.128-10.0.0.255")]
    #[case("10.0.0.0/24 except 10.0.0.64/26 except 10.0.0.255/32", "10.0.0.0-10.0.0.63 10.0.0.128-10.0.0.254")]
    #[case("10.0.0.0/25, 10.0.0.128/25", "10.0.0.0-10.0.0.255")]
    #[case("10.0.0.0/24 except 10.0.0.0/24", "")]
    #[case("10.0.0.0/24 except 10.0.0.0/24, 10.0.0.7/32", "10.0.0.7-10.0.0.7")]
    #[case("0.0.0.0/0", "0.0.0.0-255.255.255.255")]
    #[case("0.0.0.0/0 except 0.0.0.0/1", "128.0.0.0-255.255.255.255")]
    fn blocks_less_exceptions(#[case] text: &str, #[case] expected: &str) {
        let runs = ranges(&blocks(text), Family::V4).into_iter().map(|(first, last)| format!("{first}-{last}"));
        assert_eq!(runs.collect::<Vec<_>>().join(" "), expected);
        assert!(ranges(&blocks(text), Family::V6).is_empty());
    }

    proptest! {
        #[test]
        fn an_address_is_in_when_a_block_has_it_and_its_exceptions_do_not(
            raw in prop::collection::vec((any::<u8>(), 24u8..=32, prop::collection::vec((any::<u8>(), 24u8..=32), 0..3)), 0..4),
            probe: u8,
        ) {
            let cidr = |(last, prefix): (u8, u8)| Cidr::around(&format!("10.0.0.{last}/{prefix}")).unwrap();
            let blocks: Vec<_> = raw.into_iter().map(|(last, prefix, except)| (cidr((last, prefix)), except.into_iter().map(cidr).collect::<Vec<_>>())).collect();
            let ip = IpAddr::from([10, 0, 0, probe]);
            let expected = blocks.iter().any(|(block, except)| block.contains(ip) && !except.iter().any(|except| except.contains(ip)));
            let found = ranges(&blocks, Family::V4).iter().any(|(first, last)| *first <= ip && ip <= *last);
            prop_assert_eq!(found, expected);
        }
    }
}
