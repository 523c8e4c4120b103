//! The CRI log format: `TIME STREAM TAG CONTENT`, tag `P` for a part of a line and `F` for its end. Pure, but for [`tail`]'s reads.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::BytesMut;
use jiff::Timestamp;

/// Bytes that a scan from the end reads at a time.
const BLOCK: usize = 64 * 1024;
/// Enough of a line's beginning to find its tag.
const HEAD: usize = 96;
/// A line longer than this isn't one of the holder's: it is passed on in pieces, so that memory stays bounded.
const LONGEST: usize = 1024 * 1024;

/// What a container writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Its standard output, or its terminal.
    Stdout,
    /// Its standard error.
    Stderr,
}

/// One line of a log file, without its end.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// RFC 3339 with nanoseconds.
    pub time: &'a str,
    /// Where it was written to.
    pub stream: Stream,
    /// More of the same line of output follows.
    pub partial: bool,
    /// What the container wrote.
    pub content: &'a [u8],
}

/// Takes a line of a log file apart. `None`: it isn't one.
pub fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(fields.next()?).ok().filter(|time| time.as_bytes().first().is_some_and(u8::is_ascii_digit))?;
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let tag = fields.next()?;
    Some(Entry {
        time,
        stream,
        partial: tag.split(|b| *b == b':').any(|t| t == b"P"),
        content: fields.next().unwrap_or_default(),
    })
}

/// What of a log is wanted, and how it is shown.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Each line begins with its time.
    pub timestamps: bool,
    /// Of one stream alone.
    pub stream: Option<Stream>,
    /// Nothing older.
    pub since: Option<Timestamp>,
    /// No more bytes than that.
    pub limit: Option<u64>,
}

/// Turns the bytes of log files into what a client sees.
#[derive(Debug)]
pub struct Renderer {
    wanted: Wanted,
    /// The beginning of a line that isn't whole yet.
    rest: BytesMut,
    /// The last entry was partial: the next goes on with its line.
    inside: bool,
}

impl Renderer {
    /// For one reading of one container's log.
    pub fn new(wanted: Wanted) -> Self {
        Self { wanted, rest: BytesMut::new(), inside: false }
    }

    /// Takes bytes of the files in order, appends what they show. False: the limit is reached.
    pub fn feed(&mut self, mut bytes: &[u8], out: &mut BytesMut) -> bool {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, tail) = (&bytes[..end], &bytes[end + 1..]);
            bytes = tail;
            let more = if self.rest.is_empty() {
                self.line(line, out)
            } else {
                self.rest.extend_from_slice(line);
                let whole = std::mem::take(&mut self.rest);
                self.line(&whole, out)
            };
            if !more {
                return false;
            }
        }
        self.rest.extend_from_slice(bytes);
        if self.rest.len() > LONGEST {
            let piece = std::mem::take(&mut self.rest);
            return self.line(&piece, out);
        }
        true
    }

    fn line(&mut self, line: &[u8], out: &mut BytesMut) -> bool {
        // A line that a crash cut is dropped: nothing can be said of it.
        let Some(entry) = parse(line) else { return true };
        if let Some(since) = self.wanted.since {
            if entry.time.parse::<Timestamp>().is_ok_and(|time| time < since) {
                return true;
            }
            // Times only grow: from here on all is new.
            self.wanted.since = None;
        }
        if self.wanted.stream.is_some_and(|wanted| wanted != entry.stream) {
            return true;
        }
        let begins = !std::mem::replace(&mut self.inside, entry.partial);
        let time = if self.wanted.timestamps && begins { Some(entry.time) } else { None };
        let pieces = [
            time.unwrap_or_default().as_bytes(),
            if time.is_some() { b" " } else { b"" },
            entry.content,
            if entry.partial { b"" } else { b"\n" },
        ];
        pieces.iter().all(|piece| self.push(piece, out))
    }

    fn push(&mut self, piece: &[u8], out: &mut BytesMut) -> bool {
        let Some(limit) = &mut self.wanted.limit else {
            out.extend_from_slice(piece);
            return true;
        };
        let fits = usize::try_from(*limit).unwrap_or(usize::MAX).min(piece.len());
        out.extend_from_slice(&piece[..fits]);
        *limit -= fits as u64;
        *limit > 0
    }
}

/// Where the last `lines` lines of output begin in these files, oldest first, each as long as it was when it was looked at: the index
/// of a file and an offset in it. Reads backwards, so that the size of the log doesn't matter.
pub fn tail(files: &[(&File, u64)], lines: u64) -> io::Result<(usize, u64)> {
    let mut missing = lines;
    // A last line that has no end yet is a line, too.
    let mut at_end = true;
    for (index, (file, length)) in files.iter().enumerate().rev() {
        let mut scan = Backwards::new(file, *length)?;
        while let Some((start, end)) = scan.next_line()? {
            let mut head = [0; HEAD];
            let length = usize::try_from(end - start).unwrap_or(HEAD).min(HEAD);
            file.read_exact_at(&mut head[..length], start)?;
            let Some(entry) = parse(&head[..length]) else { continue };
            if !entry.partial || (at_end && !entry.content.is_empty()) {
                if missing == 0 {
                    return Ok((index, end + 1));
                }
                missing -= 1;
            }
            // An entry without a byte begins no line.
            at_end &= entry.partial && entry.content.is_empty();
        }
    }
    Ok((0, 0))
}

/// The lines of a file, the last one first. What stands after the last line end isn't one.
struct Backwards<'a> {
    file: &'a File,
    block: Vec<u8>,
    /// The file's offset of the block's first byte.
    base: u64,
    /// The end (the position of its `\n`) of the line that comes next.
    end: Option<u64>,
}

impl<'a> Backwards<'a> {
    fn new(file: &'a File, length: u64) -> io::Result<Self> {
        let mut scan = Self { file, block: Vec::new(), base: length, end: None };
        scan.end = scan.line_end_before(scan.base)?;
        Ok(scan)
    }

    /// Start and end of a line.
    fn next_line(&mut self) -> io::Result<Option<(u64, u64)>> {
        let Some(end) = self.end else { return Ok(None) };
        self.end = self.line_end_before(end)?;
        Ok(Some((self.end.map_or(0, |previous| previous + 1), end)))
    }

    /// The position of the last `\n` before that position.
    fn line_end_before(&mut self, position: u64) -> io::Result<Option<u64>> {
        let mut limit = position;
        loop {
            let known = usize::try_from(limit - self.base).unwrap_or(0).min(self.block.len());
            if let Some(found) = self.block[..known].iter().rposition(|byte| *byte == b'\n') {
                return Ok(Some(self.base + found as u64));
            }
            if self.base == 0 {
                return Ok(None);
            }
            let length = self.base.min(BLOCK as u64);
            limit = self.base;
            self.base -= length;
            self.block.resize(usize::try_from(length).unwrap_or(BLOCK), 0);
            self.file.read_exact_at(&mut self.block, self.base)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;
    use std::io::Write;

    fn render(wanted: Wanted, pieces: &[&[u8]]) -> String {
        let mut out = BytesMut::new();
        let mut renderer = Renderer::new(wanted);
        for piece in pieces {
            if !renderer.feed(piece, &mut out) {
                break;
            }
        }
        String::from_utf8(out.to_vec()).unwrap()
    }

    const LOG: &[u8] = b"2026-01-01T00:00:01.000000001Z stdout F one\n\
        2026-01-01T00:00:02.5Z stderr P tw\n2026-01-01T00:00:02.6Z stderr F o\n\
        garbage\n2026-01-01T00:00:03Z stdout F\n2026-01-01T00:00:04Z stdout F a b\n";

    #[rstest]
    #[case::plain(Wanted::default(), "one\ntwo\n\na b\n")]
    #[case::timestamps(
        Wanted { timestamps: true, ..Wanted::default() },
        "2026-01-01T00:00:01.000000001Z one\n2026-01-01T00:00:02.5Z two\n2026-01-01T00:00:03Z \n2026-01-01T00:00:04Z a b\n")]
    #[case::since(Wanted { since: Some("2026-01-01T00:00:03Z".parse().unwrap()), ..Wanted::default() }, "\na b\n")]
    #[case::stdout(Wanted { stream: Some(Stream::Stdout), ..Wanted::default() }, "one\n\na b\n")]
    #[case::stderr(Wanted { stream: Some(Stream::Stderr), ..Wanted::default() }, "two\n")]
    #[case::limit(Wanted { limit: Some(6), ..Wanted::default() }, "one\ntw")]
    fn rendering(#[case] wanted: Wanted, #[case] expected: &str) {
        assert_eq!(render(wanted, &[LOG]), expected);
    }

    #[rstest]
    #[case(b"")]
    #[case(b"2026-01-01T00:00:01Z")]
    #[case(b"2026-01-01T00:00:01Z stdout")]
    #[case(b"2026-01-01T00:00:01Z nowhere F x")]
    #[case(b"\xff\xff stdout F x")]
    fn not_entries(#[case] line: &[u8]) {
        assert_eq!(parse(line), None);
    }

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn shown_from(contents: &[&[u8]], lines: u64) -> String {
        let files: Vec<File> = contents.iter().map(|c| file(c)).collect();
        let files: Vec<(&File, u64)> = files.iter().zip(contents).map(|(file, content)| (file, content.len() as u64)).collect();
        let (index, offset) = tail(&files, lines).unwrap();
        let mut pieces = contents[index..].to_vec();
        if let Some(first) = pieces.first_mut() {
            *first = &first[offset as usize..];
        }
        render(Wanted::default(), &pieces)
    }

    #[rstest]
    #[case(0, "")]
    #[case(1, "a b\n")]
    #[case(2, "\na b\n")]
    #[case(3, "two\n\na b\n")]
    #[case(4, "one\ntwo\n\na b\n")]
    #[case(99, "one\ntwo\n\na b\n")]
    fn tails(#[case] lines: u64, #[case] expected: &str) {
        assert_eq!(shown_from(&[LOG], lines), expected);
        let cut = LOG.iter().position(|b| *b == b'\n').unwrap() + 1;
        assert_eq!(shown_from(&[&LOG[..cut], b"", &LOG[cut..]], lines), expected, "over three files");
    }

    #[test]
    fn an_unfinished_line_is_a_line() {
        let log = b"2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stdout P tw\n2026-01-01T00:00:03Z stdout P o";
        assert_eq!(shown_from(&[log], 1), "tw");
        assert_eq!(shown_from(&[b""], 1), "");
        let nothing_more = b"2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stdout P \n";
        assert_eq!(shown_from(&[nothing_more], 1), "one\n");
    }

    proptest! {
        #[test]
        fn any_split_shows_the_same(cut in 0..LOG.len(), timestamps: bool) {
            let wanted = Wanted { timestamps, ..Wanted::default() };
            prop_assert_eq!(render(wanted.clone(), &[&LOG[..cut], &LOG[cut..]]), render(wanted, &[LOG]));
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, lines in 0..5_u64) {
            render_bytes(&bytes);
            tail(&[(&file(&bytes), bytes.len() as u64)], lines).unwrap();
        }

        #[test]
        fn a_tail_has_that_many_lines(parts in proptest::collection::vec((any::<bool>(), 0..3000_usize), 0..80), lines in 0..90_u64) {
            let mut log = Vec::new();
            for (partial, length) in &parts {
                let tag = if *partial { 'P' } else { 'F' };
                log.extend(format!("2026-01-01T00:00:00Z stdout {tag} {}\n", "x".repeat(*length)).bytes());
            }
            let whole = render(Wanted::default(), &[&log]);
            let all: Vec<&str> = whole.split_inclusive('\n').collect();
            let last = all[all.len().saturating_sub(lines as usize)..].concat();
            prop_assert_eq!(shown_from(&[&log], lines), last);
        }
    }

    fn render_bytes(bytes: &[u8]) {
        Renderer::new(Wanted { timestamps: true, ..Wanted::default() }).feed(bytes, &mut BytesMut::new());
    }
}
