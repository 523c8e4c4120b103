//! Waiting for what will be so: the only way in which these tests know time.

use std::time::{Duration, Instant};

/// How long something may take before a test gives up: long, since nothing is measured by it. Seconds in `E2E_PATIENCE`.
#[derive(Debug, Clone, Copy)]
pub struct Patience(Duration);

impl Default for Patience {
    fn default() -> Self {
        let seconds = std::env::var("E2E_PATIENCE").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
        Self(Duration::from_secs(seconds))
    }
}

/// Tries again until the answer is `Ok`, and returns it. Fails with the last `Err` when patience is at its end.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let Patience(patience) = Patience::default();
    let end = Instant::now() + patience;
    let mut pause = Duration::from_millis(5);
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(last) if Instant::now() >= end => panic!("{what}: not so within {patience:?}; at last: {last}"),
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_the_first_good_answer() {
        let mut tries = 0;
        let answer = eventually("third time", || {
            tries += 1;
            if tries == 3 { Ok(tries) } else { Err("no".into()) }
        });
        assert_eq!(answer, 3);
    }
}
