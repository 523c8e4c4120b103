//! Sets of indexes as a Job's status writes them: `0-2,4`. Sorted, without overlap; ranges, so that 100 000 indexes cost little.

use std::fmt;

/// See the module's page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// Reads a status; what isn't readable is left out.
    pub fn read(text: &str) -> Self {
        let mut indexes = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>())
                && first <= last
            {
                indexes.0.push((first, last));
            }
        }
        indexes.tidy();
        indexes
    }

    /// Reads what an author wrote: rising numbers and ranges, all below `end`.
    pub fn parse_below(text: &str, end: i32) -> Result<Self, String> {
        let mut indexes = Self::default();
        let mut before: Option<i32> = None;
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let number = |text: &str| match text.parse::<i32>() {
                Err(_) => Err(format!("cannot convert string to integer for index: {text:?}")),
                Ok(index) if index >= end => Err(format!("too large index: {text:?}")),
                Ok(index) => Ok(index),
            };
            let (first, last) = match part.split_once('-') {
                Some((_, more)) if more.contains('-') => {
                    let rule = "the requirement that an index interval can have at most two parts separated by '-'";
                    return Err(format!("the fragment {part:?} violates {rule}"));
                }
                Some((first, last)) => (number(first)?, Some(number(last)?)),
                None => (number(part)?, None),
            };
            if let Some(last) = last.filter(|last| first >= *last) {
                return Err(format!("non-increasing order, previous: {first}, current: {last}"));
            }
            if let Some(before) = before.filter(|before| *before >= first) {
                return Err(format!("non-increasing order, previous: {before}, current: {first}"));
            }
            indexes.0.push((first, last.unwrap_or(first)));
            before = last.or(Some(first));
        }
        indexes.tidy();
        Ok(indexes)
    }

    /// Adds one.
    pub fn insert(&mut self, index: i32) {
        if !self.contains(index) {
            self.0.push((index, index));
            self.tidy();
        }
    }

    /// Whether it is there.
    pub fn contains(&self, index: i32) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&index))
    }

    /// The first from `index` on that isn't there.
    pub fn next_missing(&self, index: i32) -> i32 {
        self.0.iter().fold(
            index,
            |next, (first, last)| {
                if (*first..=*last).contains(&next) { last.saturating_add(1) } else { next }
            },
        )
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.iter().map(|(first, last)| usize::try_from(last - first + 1).unwrap_or(0)).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many of the other set's are here as well.
    pub fn common(&self, other: &Self) -> usize {
        let both = |a: &(i32, i32), b: &(i32, i32)| usize::try_from(a.1.min(b.1) - a.0.max(b.0) + 1).unwrap_or(0);
        self.0.iter().flat_map(|a| other.0.iter().map(move |b| both(a, b))).sum()
    }

    fn tidy(&mut self) {
        self.0.sort_unstable();
        let mut tidy: Vec<(i32, i32)> = Vec::with_capacity(self.0.len());
        for (first, last) in self.0.drain(..) {
            match tidy.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => tidy.push((first, last)),
            }
        }
        self.0 = tidy;
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            // Two neighbours are two numbers; from three on it is a range.
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(&[], "")]
    #[case(&[3], "3")]
    #[case(&[1, 0], "0,1")]
    #[case(&[4, 2, 0, 1, 1], "0-2,4")]
    #[case(&[0, 1, 2, 3, 7, 8, 9], "0-3,7-9")]
    fn written_and_read(#[case] numbers: &[i32], #[case] text: &str) {
        let mut indexes = Indexes::default();
        for number in numbers {
            indexes.insert(*number);
        }
        assert_eq!(indexes.to_string(), text);
        assert_eq!(Indexes::read(text), indexes);
    }

    #[rstest]
    #[case("0-2,4", 5, Ok(4))]
    #[case("0", 1, Ok(1))]
    #[case("4", 4, Err("too large index: \"4\""))]
    #[case("2,1", 9, Err("non-increasing order, previous: 2, current: 1"))]
    #[case("3-1", 9, Err("non-increasing order, previous: 3, current: 1"))]
    #[case(
        "1-2-3",
        9,
        Err(
            "the fragment \"1-2-3\" violates the requirement that an index interval can have at most two parts separated by '-'"
        )
    )]
    #[case("x", 9, Err("cannot convert string to integer for index: \"x\""))]
    #[case("", 9, Ok(0))]
    #[case("1,", 9, Err("cannot convert string to integer for index: \"\""))]
    fn what_an_author_wrote(#[case] text: &str, #[case] end: i32, #[case] expected: Result<usize, &str>) {
        assert_eq!(Indexes::parse_below(text, end).map(|i| i.len()), expected.map_err(str::to_owned));
    }

    #[test]
    fn common_ones_are_counted() {
        assert_eq!(Indexes::read("0-5,9").common(&Indexes::read("4-9")), 3);
    }
}
