//! Time: Unix nanoseconds, RFC 3339 for log lines, and how long the steps of a start took.

use std::time::Instant;

use podholder::protocol::Step;
use rustix::time::ClockId;

/// Unix time in nanoseconds.
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(ClockId::Realtime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Measures steps that follow one another.
pub struct Steps {
    last: Instant,
    steps: Vec<Step>,
}

impl Steps {
    /// The first step begins.
    pub fn start() -> Self {
        Self { last: Instant::now(), steps: Vec::new() }
    }

    /// A step ended, the next begins.
    pub fn done(&mut self, name: &str) {
        let now = Instant::now();
        self.steps.push(Step { name: name.to_owned(), micros: now.duration_since(self.last).as_micros() as u64 });
        self.last = now;
    }

    /// All of them.
    pub fn take(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.steps)
    }
}

/// A moment of the civil calendar, in UTC.
struct Civil {
    year: i64,
    month: u8,
    day: u8,
    second_of_day: u32,
}

/// Days since 1970 to year, month, day, by the 400-year eras of the Gregorian calendar that start on the first of March.
fn civil(unix_seconds: u64) -> Civil {
    let days = (unix_seconds / 86_400) as i64 + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = (of_year - (153 * shifted + 2) / 5 + 1) as u8;
    let month = (if shifted < 10 { shifted + 3 } else { shifted - 9 }) as u8;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    Civil { year, month, day, second_of_day: (unix_seconds % 86_400) as u32 }
}

/// `2006-01-02T15:04:05.000000000Z`. Up to the year 9999.
pub fn rfc3339(nanos: u64) -> [u8; 30] {
    let Civil { year, month, day, second_of_day: s } = civil(nanos / 1_000_000_000);
    let (h, m, s, n) = (s / 3600, s / 60 % 60, s % 60, nanos % 1_000_000_000);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    let parts = [(0..4, year as u64), (5..7, month.into()), (8..10, day.into())];
    let parts = parts.into_iter().chain([(11..13, h.into()), (14..16, m.into()), (17..19, s.into()), (20..29, n)]);
    for (place, mut value) in parts {
        for digit in text[place].iter_mut().rev() {
            *digit = b'0' + (value % 10) as u8;
            value /= 10;
        }
    }
    text
}

/// `20060102-150405`, what the kubelet appends to a rotated log's name.
pub fn rotation_stamp(unix_seconds: u64) -> String {
    let Civil { year, month, day, second_of_day: s } = civil(unix_seconds);
    format!("{year:04}{month:02}{day:02}-{:02}{:02}{:02}", s / 3600, s / 60 % 60, s % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        assert_eq!(&rfc3339(0), b"1970-01-01T00:00:00.000000000Z");
        assert_eq!(&rfc3339(951_782_400_000_000_001), b"2000-02-29T00:00:00.000000001Z");
        assert_eq!(&rfc3339(1_709_251_199_999_999_999), b"2024-02-29T23:59:59.999999999Z");
        assert_eq!(&rfc3339(4_107_542_400_000_000_000), b"2100-03-01T00:00:00.000000000Z");
        assert_eq!(rotation_stamp(1_136_214_245), "20060102-150405");
    }
}
