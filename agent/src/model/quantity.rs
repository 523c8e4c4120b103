//! Kubernetes quantities (`1.5`, `100m`, `64Mi`, `1e3`), exact: whole billionths in 128 bits, never a float.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// Billionths of one.
const NANO: i128 = 1_000_000_000;

/// How a quantity was written, which decides how it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// `k`, `M`, `m`.
    Decimal,
    /// `Ki`, `Mi`.
    Binary,
    /// `e3`.
    Exponent,
}

/// A quantity. Finer than a billionth rounds up, larger than 2^63-1 is capped, both as Kubernetes does.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

/// A text isn't a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct QuantityError;

impl Quantity {
    /// Whole units.
    pub const fn units(units: i64) -> Self {
        Self { nano: units as i128 * NANO, format: Format::Decimal }
    }

    /// The value in whole units, rounded up (away from zero).
    pub fn value(self) -> i64 {
        self.scaled(NANO)
    }

    /// The value in thousandths, rounded up (away from zero): millicores.
    pub fn milli(self) -> i64 {
        self.scaled(NANO / 1000)
    }

    /// The value divided by another, rounded up, as resourceFieldRef's divisor does. A divisor of zero counts as one.
    pub fn divided_by(self, divisor: Quantity) -> i64 {
        self.scaled(if divisor.nano == 0 { NANO } else { divisor.nano })
    }

    /// The value in billionths.
    pub fn nano(self) -> i128 {
        self.nano
    }

    /// Below zero.
    pub fn is_negative(self) -> bool {
        self.nano < 0
    }

    /// Exactly zero.
    pub fn is_zero(self) -> bool {
        self.nano == 0
    }

    /// Whether there is nothing after the point.
    pub fn is_whole(self) -> bool {
        self.nano % NANO == 0
    }

    /// The sum, in this one's format.
    #[must_use]
    pub fn plus(self, other: Quantity) -> Self {
        Self { nano: self.nano.saturating_add(other.nano), ..self }
    }

    fn scaled(self, unit: i128) -> i64 {
        let whole = self.nano / unit;
        let rest = (self.nano % unit).signum() * unit.signum();
        i64::try_from(whole + rest).unwrap_or(if self.nano < 0 { i64::MIN } else { i64::MAX })
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(QuantityError);
        }
        let (scale, format) = scale_of(suffix)?;
        let magnitude = magnitude(whole, fraction, scale);
        Ok(Self { nano: if negative { -magnitude } else { magnitude }, format })
    }
}

/// What a suffix multiplies by.
#[derive(Clone, Copy)]
enum Scale {
    /// Ten to this.
    Ten(i32),
    /// Two to this.
    Two(u32),
}

fn scale_of(suffix: &str) -> Result<(Scale, Format), QuantityError> {
    let scale = match suffix {
        "n" => Scale::Ten(-9),
        "u" => Scale::Ten(-6),
        "m" => Scale::Ten(-3),
        "" => Scale::Ten(0),
        "k" => Scale::Ten(3),
        "M" => Scale::Ten(6),
        "G" => Scale::Ten(9),
        "T" => Scale::Ten(12),
        "P" => Scale::Ten(15),
        "E" => Scale::Ten(18),
        "Ki" => Scale::Two(10),
        "Mi" => Scale::Two(20),
        "Gi" => Scale::Two(30),
        "Ti" => Scale::Two(40),
        "Pi" => Scale::Two(50),
        "Ei" => Scale::Two(60),
        _ => {
            let digits = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError)?;
            return Ok((Scale::Ten(digits.parse().map_err(|_| QuantityError)?), Format::Exponent));
        }
    };
    let format = if matches!(scale, Scale::Two(_)) { Format::Binary } else { Format::Decimal };
    Ok((scale, format))
}

/// The largest value, in billionths: 2^63-1 units.
const LARGEST: i128 = i64::MAX as i128 * NANO;

/// `whole.fraction` times the scale, in billionths, rounded up, capped.
fn magnitude(whole: &str, fraction: &str, scale: Scale) -> i128 {
    // Digits beyond these can only round up or hit the cap.
    const DIGITS: usize = 28;
    let digits: String = whole.chars().chain(fraction.chars()).collect();
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    let kept = &digits[..digits.len().min(DIGITS)];
    let lost = &digits[kept.len()..];
    let mut value: i128 = kept.parse().unwrap_or(i128::MAX);
    let mut rounded = lost.bytes().any(|b| b != b'0');
    let mut exponent = 9 + lost.len() as i64 - fraction.len() as i64;
    match scale {
        Scale::Ten(by) => exponent += i64::from(by),
        Scale::Two(by) => match value.checked_mul(1 << by) {
            Some(product) => value = product,
            // Too long to multiply: the fraction's end gives way.
            None if exponent < 0 => {
                let (shrunk, inexact) = shrink(value, exponent);
                value = shrunk.saturating_mul(1 << by);
                rounded |= inexact;
                exponent = 0;
            }
            None => return LARGEST,
        },
    }
    if exponent >= 0 {
        let factor = u32::try_from(exponent).ok().and_then(|e| 10_i128.checked_pow(e));
        value = factor.and_then(|f| value.checked_mul(f)).unwrap_or(LARGEST);
    } else {
        let (shrunk, inexact) = shrink(value, exponent);
        value = shrunk;
        rounded |= inexact;
    }
    value.saturating_add(i128::from(rounded)).min(LARGEST)
}

/// The value times ten to a negative exponent, and whether something was cut.
fn shrink(value: i128, exponent: i64) -> (i128, bool) {
    match u32::try_from(-exponent).ok().and_then(|e| 10_i128.checked_pow(e)) {
        Some(divisor) => (value / divisor, value % divisor != 0),
        None => (0, value != 0),
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that loses nothing, the family of suffixes that was written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        if self.nano == 0 {
            return f.write_str("0");
        }
        if self.format == Format::Binary && self.is_whole() && (self.nano / NANO).abs() >= 1024 {
            let (number, steps) = reduced(self.nano / NANO, 1024, BINARY.len() - 1);
            return write!(f, "{number}{}", BINARY[steps]);
        }
        let (number, steps) = reduced(self.nano, 1000, DECIMAL.len() - 1);
        match (self.format, steps) {
            (Format::Exponent, 3) => write!(f, "{number}"),
            (Format::Exponent, steps) => write!(f, "{number}e{}", steps as i32 * 3 - 9),
            _ => write!(f, "{number}{}", DECIMAL[steps]),
        }
    }
}

fn reduced(mut number: i128, by: i128, most: usize) -> (i128, usize) {
    let mut steps = 0;
    while steps < most && number % by == 0 {
        number /= by;
        steps += 1;
    }
    (number, steps)
}
