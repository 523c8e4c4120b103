//! POSIX.1-2001 extended headers: `LENGTH KEY=VALUE\n` records. Values are bytes and may hold newlines, as the binary
//! `security.capability` does; so records are cut by their length alone.

/// What an extended header says about the entry after it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<(i64, u32)>,
    /// Name and value, without the vendor's prefix.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: PaxSparse,
}

/// GNU's three ways of writing a sparse file into a POSIX archive.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct PaxSparse {
    /// 1.0: the map stands before the data.
    pub map_in_data: bool,
    /// 0.0 and 0.1: offset and length of each piece.
    pub pieces: Option<Vec<(u64, u64)>>,
    /// The size with its holes.
    pub real_size: Option<u64>,
    pub name: Option<Vec<u8>>,
    pending_offset: Option<u64>,
}

/// Parses a whole extended header. The error says which record is wrong.
pub(super) fn parse(mut data: &[u8]) -> Result<Pax, String> {
    let mut pax = Pax::default();
    while !data.is_empty() {
        // Some writers fill up with zeros.
        if data.iter().all(|byte| *byte == 0) {
            break;
        }
        let space = data.iter().take(20).position(|byte| *byte == b' ').ok_or("extended header: a record has no length")?;
        let length = number(&data[..space])? as usize;
        let record = data.get(space + 1..length).ok_or("extended header: a record is longer than the header")?;
        let record = record.strip_suffix(b"\n").ok_or("extended header: a record doesn't end with its line")?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or("extended header: a record has no `=`")?;
        pax.set(&record[..equals], &record[equals + 1..])?;
        data = &data[length..];
    }
    Ok(pax)
}

impl Pax {
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        // An empty value takes an earlier record back.
        let text = (!value.is_empty()).then_some(value);
        match key {
            b"path" => self.path = text.map(checked).transpose()?,
            b"linkpath" => self.link = text.map(checked).transpose()?,
            b"size" => self.size = text.map(number).transpose()?,
            b"uid" => self.uid = text.map(number).transpose()?,
            b"gid" => self.gid = text.map(number).transpose()?,
            b"mtime" => self.mtime = text.map(time).transpose()?,
            b"GNU.sparse.major" => self.sparse.map_in_data = value == b"1",
            b"GNU.sparse.name" => self.sparse.name = text.map(checked).transpose()?,
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse.real_size = text.map(number).transpose()?,
            b"GNU.sparse.offset" => self.sparse.pending_offset = Some(number(value)?),
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.pending_offset.take().ok_or("extended header: GNU.sparse.numbytes without an offset")?;
                self.sparse.pieces.get_or_insert_default().push((offset, number(value)?));
            }
            b"GNU.sparse.map" => self.sparse.pieces = Some(map(value)?),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((checked(name)?, value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

fn checked(value: &[u8]) -> Result<Vec<u8>, String> {
    if value.contains(&0) { Err("extended header: a name has a NUL byte".into()) } else { Ok(value.to_vec()) }
}

pub(super) fn number(value: &[u8]) -> Result<u64, String> {
    let bad = || format!("extended header: {:?} is not a number", String::from_utf8_lossy(&value[..value.len().min(40)]));
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or_else(bad)
}

fn map(value: &[u8]) -> Result<Vec<(u64, u64)>, String> {
    let numbers = value.split(|byte| *byte == b',').map(number).collect::<Result<Vec<_>, _>>()?;
    if numbers.len() % 2 != 0 {
        return Err("extended header: GNU.sparse.map has an odd count of numbers".into());
    }
    Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// Seconds with a fraction, before 1970 with a minus sign: seconds rounded down, and nanoseconds.
fn time(value: &[u8]) -> Result<(i64, u32), String> {
    let bad = || format!("extended header: {:?} is not a time", String::from_utf8_lossy(&value[..value.len().min(40)]));
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = digits.splitn(2, |byte| *byte == b'.');
    let whole = number(parts.next().unwrap_or_default()).map_err(|_| bad())?;
    let mut seconds = i64::try_from(whole).map_err(|_| bad())?;
    let mut nanoseconds = 0;
    let fraction = parts.next().unwrap_or_default();
    for place in 0..9 {
        let digit = match fraction.get(place) {
            Some(digit) if digit.is_ascii_digit() => u32::from(digit - b'0'),
            Some(_) => return Err(bad()),
            None => 0,
        };
        nanoseconds = nanoseconds * 10 + digit;
    }
    if negative {
        seconds = -seconds;
        if nanoseconds > 0 {
            seconds -= 1;
            nanoseconds = 1_000_000_000 - nanoseconds;
        }
    }
    Ok((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let length = (1..9).map(|digits| rest + digits).find(|length| rest + length.to_string().len() == *length).unwrap();
        [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
    }

    #[test]
    fn values_may_hold_newlines() {
        let data = [record("SCHILY.xattr.security.capability", b"\x01\n\n=\x00"), record("path", b"a\nb")].concat();
        let pax = parse(&data).unwrap();
        assert_eq!(pax.path.unwrap(), b"a\nb");
        assert_eq!(pax.xattrs, [(b"security.capability".to_vec(), b"\x01\n\n=\x00".to_vec())]);
    }

    #[rstest]
    #[case("1.5", (1, 500_000_000))]
    #[case("-1.25", (-2, 750_000_000))]
    #[case("-3", (-3, 0))]
    #[case("1700000000.123456789123", (1_700_000_000, 123_456_789))]
    fn times(#[case] text: &str, #[case] want: (i64, u32)) {
        assert_eq!(time(text.as_bytes()).unwrap(), want);
    }

    #[test]
    fn sparse_maps() {
        let old = [record("GNU.sparse.offset", b"0"), record("GNU.sparse.numbytes", b"5")].concat();
        assert_eq!(parse(&old).unwrap().sparse.pieces.unwrap(), [(0, 5)]);
        assert_eq!(parse(&record("GNU.sparse.map", b"0,5,9,1")).unwrap().sparse.pieces.unwrap(), [(0, 5), (9, 1)]);
        assert!(parse(&record("GNU.sparse.map", b"0,5,9")).is_err());
    }

    #[rstest]
    #[case(b"zz")]
    #[case(b"5 a=")]
    #[case(b"99 path=a\n")]
    #[case(b"0 path=a\n")]
    #[case(b"9 path=ab")]
    #[case(b"10 path=a\0\n")]
    #[case(b"18446744073709551615 a=b\n")]
    #[case(b"13 uid=1e100\n")]
    fn refuses(#[case] data: &[u8]) {
        assert!(parse(data).is_err());
    }

    proptest::proptest! {
        #[test]
        fn never_panics(data in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = parse(&data);
        }
    }
}
