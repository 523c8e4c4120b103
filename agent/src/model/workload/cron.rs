//! Schedules of CronJobs: the five fields and the `@` words, as Kubernetes reads them, and the moments that they mean in a time zone.
//! Written here because the crates for cron read it otherwise: the meaning of a star in one of the two day fields, of `?`, of `@every`,
//! and of hours that a clock change leaves out or repeats. Pure.

use jiff::civil::{Date, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, ToSpan};

/// A schedule that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// Moments whose fields are in these sets.
    Fields(Fields),
    /// `@every 90m`: so long after the last.
    Every(SignedDuration),
}

/// One bit a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    weekday: u64,
    /// A star in a day field leaves the other one to decide alone; without stars, either is enough.
    day_is_star: bool,
    weekday_is_star: bool,
}

struct Range {
    name: &'static str,
    first: u32,
    last: u32,
    names: &'static [&'static str],
}

const MINUTE: Range = Range { name: "minute", first: 0, last: 59, names: &[] };
const HOUR: Range = Range { name: "hour", first: 0, last: 23, names: &[] };
const DAY: Range = Range { name: "day of month", first: 1, last: 31, names: &[] };
const MONTH: Range = Range {
    name: "month",
    first: 1,
    last: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAY: Range =
    Range { name: "day of week", first: 0, last: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

/// How far ahead the next moment is looked for: 30 February never comes.
const HORIZON_YEARS: i16 = 5;

/// The time zone of this name, such as `Europe/Berlin`.
pub fn time_zone(name: &str) -> Option<TimeZone> {
    TimeZone::get(name).ok()
}

impl Schedule {
    /// Reads `*/5 * * * *`, `@daily`, `@every 1h30m`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(word) = text.strip_prefix('@') {
            return descriptor(word, text);
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = words[..] else {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", words.len(), words.join(" ")));
        };
        let star = |word: &str| {
            word.split(',').any(|part| part.starts_with(['*', '?']) && !part.contains('/') || is_star_step_one(part))
        };
        Ok(Self::Fields(Fields {
            minute: MINUTE.set(minute)?,
            hour: HOUR.set(hour)?,
            day: DAY.set(day)?,
            month: MONTH.set(month)?,
            weekday: WEEKDAY.set(weekday)?,
            day_is_star: star(day),
            weekday_is_star: star(weekday),
        }))
    }

    /// The first moment after `after`; none if there is none within years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(pause) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(*pause).ok()
            }
            Self::Fields(fields) => fields.next(after, zone),
        }
    }
}

fn is_star_step_one(part: &str) -> bool {
    matches!(part, "*/1" | "?/1")
}

fn descriptor(word: &str, text: &str) -> Result<Schedule, String> {
    let fields = match word {
        "yearly" | "annually" => "0 0 1 1 *",
        "monthly" => "0 0 1 * *",
        "weekly" => "0 0 * * 0",
        "daily" | "midnight" => "0 0 * * *",
        "hourly" => "0 * * * *",
        _ => {
            let Some(duration) = word.strip_prefix("every ") else {
                return Err(format!("unrecognized descriptor: {text}"));
            };
            let parsed: SignedDuration = duration.parse().map_err(|error| format!("failed to parse duration {text}: {error}"))?;
            // Whole seconds, one at least.
            return Ok(Schedule::Every(SignedDuration::from_secs(parsed.as_secs().max(1))));
        }
    };
    Schedule::parse(fields)
}

impl Range {
    /// A list of numbers, ranges and steps, as bits.
    fn set(&self, text: &str) -> Result<u64, String> {
        let mut bits = 0;
        for part in text.split(',').filter(|part| !part.is_empty()) {
            bits |= self.part(part)?;
        }
        if bits == 0 { Err(format!("empty {}: {text:?}", self.name)) } else { Ok(bits) }
    }

    fn part(&self, part: &str) -> Result<u64, String> {
        let (range, step) = match part.split_once('/') {
            Some((_, more)) if more.contains('/') => return Err(format!("too many slashes: {part}")),
            Some((range, step)) => (range, Some(number(step)?)),
            None => (part, None),
        };
        let (first, last) = match range.split_once('-') {
            _ if matches!(range, "*" | "?") => (self.first, self.last),
            Some((_, more)) if more.contains('-') => return Err(format!("too many hyphens: {part}")),
            Some((first, last)) => (self.value(first)?, self.value(last)?),
            // `5/15`: from 5 to the end.
            None => {
                let first = self.value(range)?;
                (first, if step.is_some() { self.last } else { first })
            }
        };
        if first < self.first {
            return Err(format!("beginning of range ({first}) below minimum ({}): {part}", self.first));
        }
        if last > self.last {
            return Err(format!("end of range ({last}) above maximum ({}): {part}", self.last));
        }
        if first > last {
            return Err(format!("beginning of range ({first}) beyond end of range ({last}): {part}"));
        }
        match step {
            Some(0) => Err(format!("step of range should be a positive number: {part}")),
            step => Ok((first..=last).step_by(step.unwrap_or(1) as usize).fold(0, |bits, value| bits | 1 << value)),
        }
    }

    fn value(&self, word: &str) -> Result<u32, String> {
        match self.names.iter().position(|name| name.eq_ignore_ascii_case(word)) {
            Some(at) => Ok(at as u32 + self.first),
            None => number(word),
        }
    }
}

fn number(word: &str) -> Result<u32, String> {
    if word.starts_with('-') {
        return Err(format!("negative number ({word}) not allowed: {word}"));
    }
    word.parse().map_err(|_| format!("failed to parse int from {word}: strconv.Atoi: parsing {word:?}: invalid syntax"))
}

impl Fields {
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let local = zone.to_datetime(after);
        let last = local.date().year().checked_add(HORIZON_YEARS)?;
        let mut date = local.date();
        while date.year() <= last {
            if self.month & 1 << date.month() == 0 {
                date = Date::new(date.year(), date.month(), 1).ok()?.checked_add(1.month()).ok()?;
                continue;
            }
            if self.is_day(date)
                && let Some(found) = self.moments(date, zone).find(|moment| *moment > after)
            {
                return Some(found);
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    fn is_day(&self, date: Date) -> bool {
        let day = self.day & 1 << date.day() != 0;
        let weekday = self.weekday & 1 << date.weekday().to_sunday_zero_offset() != 0;
        if self.day_is_star || self.weekday_is_star { day && weekday } else { day || weekday }
    }

    /// A day's moments in their order. What the clock leaves out isn't there; what it repeats is there twice, as every hour's
    /// minutes have to be.
    fn moments(&self, date: Date, zone: &TimeZone) -> impl Iterator<Item = Timestamp> {
        let hours = (0..24).filter(|hour| self.hour & 1 << hour != 0);
        hours.flat_map(move |hour| {
            let mut first = Vec::new();
            let mut again = Vec::new();
            for minute in (0..60).filter(|minute| self.minute & 1 << minute != 0) {
                let Ok(time) = Time::new(hour, minute, 0, 0) else { continue };
                let moment = zone.to_ambiguous_timestamp(date.to_datetime(time));
                match moment.offset() {
                    AmbiguousOffset::Gap { .. } => {}
                    AmbiguousOffset::Unambiguous { .. } => first.extend(moment.earlier()),
                    AmbiguousOffset::Fold { .. } => {
                        first.extend(moment.earlier());
                        again.extend(moment.later());
                    }
                }
            }
            first.into_iter().chain(again)
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn zone(name: &str) -> TimeZone {
        time_zone(name).unwrap()
    }

    #[rstest]
    #[case::every_minute("* * * * *", "UTC", "2026-01-01T00:00:30Z", "2026-01-01T00:01:00Z")]
    #[case::strictly_after("0 * * * *", "UTC", "2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z")]
    #[case::step("*/15 * * * *", "UTC", "2026-01-01T00:50:00Z", "2026-01-01T01:00:00Z")]
    #[case::step_from("5/20 * * * *", "UTC", "2026-01-01T00:26:00Z", "2026-01-01T00:45:00Z")]
    #[case::names("0 9 * jan-mar mon", "UTC", "2026-03-31T00:00:00Z", "2027-01-04T09:00:00Z")]
    #[case::list("0 8,20 * * *", "UTC", "2026-01-01T09:00:00Z", "2026-01-01T20:00:00Z")]
    #[case::either_day("0 0 13 * fri", "UTC", "2026-01-10T00:00:00Z", "2026-01-13T00:00:00Z")]
    #[case::star_day("0 0 * * fri", "UTC", "2026-01-10T00:00:00Z", "2026-01-16T00:00:00Z")]
    #[case::question_mark("0 0 ? * fri", "UTC", "2026-01-10T00:00:00Z", "2026-01-16T00:00:00Z")]
    #[case::leap_day("0 0 29 2 *", "UTC", "2026-01-10T00:00:00Z", "2028-02-29T00:00:00Z")]
    #[case::hourly("@hourly", "UTC", "2026-01-01T00:59:59Z", "2026-01-01T01:00:00Z")]
    #[case::yearly("@yearly", "UTC", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z")]
    #[case::weekly("@weekly", "UTC", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z")]
    #[case::every("@every 1h30m", "UTC", "2026-01-01T00:00:10.5Z", "2026-01-01T01:30:10Z")]
    #[case::zone("0 9 * * *", "Asia/Tokyo", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")]
    #[case::half_hour_zone("0 0 * * *", "Asia/Kolkata", "2026-01-01T00:00:00Z", "2026-01-01T18:30:00Z")]
    #[case::summer("0 9 * * *", "Europe/Berlin", "2026-07-01T00:00:00Z", "2026-07-01T07:00:00Z")]
    // 29 March 2026: the clock jumps from 02:00 to 03:00.
    #[case::left_out("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-30T00:30:00Z")]
    // 25 October 2026: 02:00 to 03:00 comes twice.
    #[case::repeated("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z")]
    #[case::repeated_again("30 2 * * *", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z")]
    #[case::repeated_minutes("*/30 * * * *", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z")]
    #[case::half_an_hour_repeated("*/30 * * * *", "Australia/Lord_Howe", "2026-04-04T14:59:00Z", "2026-04-04T15:00:00Z")]
    #[case::midnight_left_out("0 0 * * *", "Africa/Cairo", "2026-04-23T12:00:00Z", "2026-04-24T21:00:00Z")]
    fn the_next_moment(#[case] schedule: &str, #[case] tz: &str, #[case] after: Timestamp, #[case] expected: Timestamp) {
        assert_eq!(Schedule::parse(schedule).unwrap().next(after, &zone(tz)), Some(expected));
    }

    #[test]
    fn a_day_that_never_comes() {
        let never = Schedule::parse("0 0 30 2 *").unwrap();
        assert_eq!(never.next("2026-01-01T00:00:00Z".parse().unwrap(), &TimeZone::UTC), None);
    }

    #[rstest]
    #[case("* * * *", "expected exactly 5 fields, found 4: [* * * *]")]
    #[case("60 * * * *", "end of range (60) above maximum (59): 60")]
    #[case("* * 0 * *", "beginning of range (0) below minimum (1): 0")]
    #[case("5-2 * * * *", "beginning of range (5) beyond end of range (2): 5-2")]
    #[case("*/0 * * * *", "step of range should be a positive number: */0")]
    #[case("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax")]
    #[case("1-2-3 * * * *", "too many hyphens: 1-2-3")]
    #[case("1/2/3 * * * *", "too many slashes: 1/2/3")]
    #[case(", * * * *", "empty minute: \",\"")]
    #[case("@fortnightly", "unrecognized descriptor: @fortnightly")]
    #[case("* * * * 7", "end of range (7) above maximum (6): 7")]
    fn wrong_schedules(#[case] schedule: &str, #[case] expected: &str) {
        assert_eq!(Schedule::parse(schedule).unwrap_err(), expected);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[-*/?,0-9a-z@ ]{0,24}", seconds in 0i64..4_000_000_000) {
            if let Ok(schedule) = Schedule::parse(&text) {
                let after = Timestamp::from_second(seconds).unwrap();
                let next = schedule.next(after, &zone("America/New_York"));
                proptest::prop_assert!(next.is_none_or(|next| next > after));
            }
        }
    }
}
