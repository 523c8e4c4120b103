//! What the allocator and the program's own pages cost is given back when asked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use podholder::sys;

/// Of this process, in bytes: `RssAnon` or `RssFile`.
fn resident(kind: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(kind)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[cfg(target_env = "gnu")]
#[test]
fn pages_between_what_is_in_use_go_back_to_the_kernel() {
    const MIB: u64 = 1 << 20;
    let mut kept: Vec<Vec<u8>> = (0..64 * 1024).map(|_| vec![1; 1000]).collect();
    let full = resident("RssAnon");
    assert!(full > 50 * MIB, "{full}");
    let mut number = 0;
    kept.retain(|_| {
        number += 1;
        number % 100 == 0
    });
    sys::give_memory_back();
    let after = resident("RssAnon");
    assert!(after < full - 30 * MIB, "{full} bytes before, {after} after");
    assert!(kept.iter().all(|bytes| bytes.iter().all(|byte| *byte == 1)), "what is in use stays as it is");
}

#[cfg(target_env = "gnu")]
#[test]
fn a_program_without_its_pages_runs_on() {
    let text =
        || format!("{:?} {}", std::env::args().next(), 3.25_f64 * f64::from(u8::try_from(std::process::id() % 7).unwrap()));
    let before = text();
    for _ in 0..10 {
        sys::let_go_of_program();
        assert_eq!(text(), before);
    }
    assert!(std::panic::catch_unwind(|| panic!("unwinding reads tables of the program")).is_err());
}
