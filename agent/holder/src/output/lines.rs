//! Bytes to lines of the CRI log format: `2006-01-02T15:04:05.000000000Z stdout F text`. No I/O.

use crate::clock;

/// A longer line is cut into pieces of this length, all but its last marked `P`, as containerd does.
const MAX_LINE: usize = 16 * 1024;
/// Of a buffer for [`Splitter::split`], which hands it over when it is full. From this size on an allocation goes back to the
/// kernel with its last byte, and is only touched as far as it is used.
pub const BUFFER: usize = 256 * 1024;

/// `2006-01-02T15:04:05.000000000Z stdout F `: of one length, so that copying it is a few instructions and no call.
type Prefix = [u8; 40];

/// How the lines of one moment begin.
struct Prefixes {
    full: Prefix,
    partial: Prefix,
}

impl Prefixes {
    fn new(stream: StreamName, now: u64) -> Self {
        let [mut full, mut partial] = [[b' '; size_of::<Prefix>()]; 2];
        for (prefix, tag) in [(&mut full, b'F'), (&mut partial, b'P')] {
            prefix[..30].copy_from_slice(&clock::rfc3339(now));
            prefix[31..37].copy_from_slice(stream);
            prefix[38] = tag;
        }
        Self { full, partial }
    }
}

/// `stdout` or `stderr`.
pub type StreamName = &'static [u8; 6];

/// Remembers the start of a line whose end hasn't come.
pub struct Splitter {
    stream: StreamName,
    pending: Vec<u8>,
}

impl Splitter {
    pub fn new(stream: StreamName) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Formats all lines that end in `input`, with one time for all. `sink` gets whole lines, in pieces that fit in `buffer`.
    pub fn split(&mut self, input: &[u8], now: u64, buffer: &mut [u8], sink: impl FnMut(&[u8])) {
        let prefixes = Prefixes::new(self.stream, now);
        let mut batch = Batch { buffer, length: 0, sink };
        let mut start = 0;
        for newline in memchr::memchr_iter(b'\n', input) {
            self.line(&input[start..=newline], &prefixes, &mut batch);
            start = newline + 1;
        }
        self.start_of_line(&input[start..], &prefixes, &mut batch);
        batch.hand_over();
    }

    /// The end: what is left is a partial line.
    pub fn finish(&mut self, now: u64) -> Vec<u8> {
        if self.pending.is_empty() {
            return Vec::new();
        }
        let pending = std::mem::take(&mut self.pending);
        [&Prefixes::new(self.stream, now).partial, pending.as_slice(), b"\n"].concat()
    }

    /// `line`: with the newline at its end.
    fn line(&mut self, line: &[u8], prefixes: &Prefixes, batch: &mut Batch<'_, impl FnMut(&[u8])>) {
        if self.pending.is_empty() && line.len() <= MAX_LINE {
            return batch.entry(&prefixes.full, [line]);
        }
        let (text, newline) = line.split_at(line.len() - 1);
        self.start_of_line(text, prefixes, batch);
        batch.entry(&prefixes.full, [&self.pending, newline]);
        // Nothing is kept when nothing is pending: an idle holder should be small.
        self.pending = Vec::new();
    }

    /// Keeps up to [`MAX_LINE`] bytes; what is over becomes partial entries.
    fn start_of_line(&mut self, mut text: &[u8], prefixes: &Prefixes, batch: &mut Batch<'_, impl FnMut(&[u8])>) {
        while self.pending.len() + text.len() > MAX_LINE {
            let (piece, rest) = text.split_at(MAX_LINE - self.pending.len());
            batch.entry(&prefixes.partial, [&self.pending, piece, b"\n"]);
            self.pending.clear();
            text = rest;
        }
        self.pending.extend_from_slice(text);
    }
}

/// Entries on their way to the log.
struct Batch<'a, S> {
    buffer: &'a mut [u8],
    length: usize,
    sink: S,
}

impl<S: FnMut(&[u8])> Batch<'_, S> {
    fn entry<const N: usize>(&mut self, prefix: &Prefix, parts: [&[u8]; N]) {
        let needed = prefix.len() + parts.iter().map(|part| part.len()).sum::<usize>();
        if self.buffer.len() - self.length < needed {
            self.hand_over();
        }
        let (head, mut rest) = self.buffer[self.length..][..needed].split_at_mut(prefix.len());
        head.copy_from_slice(prefix);
        for part in parts {
            let (to, after) = rest.split_at_mut(part.len());
            copy(to, part);
            rest = after;
        }
        self.length += needed;
    }

    fn hand_over(&mut self) {
        if self.length > 0 {
            (self.sink)(&self.buffer[..self.length]);
            self.length = 0;
        }
    }
}

/// Copies; both are of one length. Most lines are short, and the small C library's memcpy takes longer to start than a short line
/// to copy: that was half of the time that a log took.
#[inline]
fn copy(to: &mut [u8], from: &[u8]) {
    match from.len() {
        1 => ends::<1>(to, from),
        2..4 => ends::<2>(to, from),
        4..8 => ends::<4>(to, from),
        8..16 => ends::<8>(to, from),
        16..32 => ends::<16>(to, from),
        32..64 => ends::<32>(to, from),
        64..128 => ends::<64>(to, from),
        _ => to.copy_from_slice(from),
    }
}

/// The first N bytes and the last N: all, where there are N to 2 N.
#[inline]
fn ends<const N: usize>(to: &mut [u8], from: &[u8]) {
    if let (Some(to), Some(from)) = (to.first_chunk_mut::<N>(), from.first_chunk::<N>()) {
        *to = *from;
    }
    if let (Some(to), Some(from)) = (to.last_chunk_mut::<N>(), from.last_chunk::<N>()) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "1970-01-01T00:00:00.000000000Z stdout ";

    fn run(chunks: &[&[u8]]) -> Vec<(char, Vec<u8>)> {
        let (mut splitter, mut all, mut buffer) = (Splitter::new(b"stdout"), Vec::new(), vec![0; BUFFER]);
        for chunk in chunks {
            splitter.split(chunk, 0, &mut buffer, |text| all.extend_from_slice(text));
        }
        all.extend(splitter.finish(0));
        assert!(all.is_empty() || all.ends_with(b"\n"));
        all.split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .map(|l| {
                assert!(l.starts_with(PREFIX.as_bytes()));
                (char::from(l[PREFIX.len()]), l[PREFIX.len() + 2..].to_vec())
            })
            .collect()
    }

    /// What a reader of the log makes of it: `F` ends a line.
    fn join(entries: &[(char, Vec<u8>)]) -> Vec<u8> {
        let mut text = Vec::new();
        for (tag, line) in entries {
            text.extend_from_slice(line);
            text.extend(if *tag == 'F' { Some(b'\n') } else { None });
        }
        text
    }

    #[test]
    fn lines_and_parts_of_lines() {
        let own = |tag, text: &str| (tag, text.as_bytes().to_vec());
        assert_eq!(run(&[b"a\nb\n"]), [own('F', "a"), own('F', "b")]);
        assert_eq!(run(&[b"a", b"b\n\n", b"c"]), [own('F', "ab"), own('F', ""), own('P', "c")]);
        assert_eq!(run(&[]), []);
    }

    #[test]
    fn a_long_line_is_cut_at_the_limit() {
        let entries = |length: usize, newline: bool| {
            let mut text = vec![b'x'; length];
            text.extend(newline.then_some(b'\n'));
            run(&[&text]).into_iter().map(|(tag, line)| (tag, line.len())).collect::<Vec<_>>()
        };
        assert_eq!(entries(MAX_LINE, true), [('F', MAX_LINE)]);
        assert_eq!(entries(MAX_LINE + 1, true), [('P', MAX_LINE), ('F', 1)]);
        assert_eq!(entries(2 * MAX_LINE, true), [('P', MAX_LINE), ('F', MAX_LINE)]);
        assert_eq!(entries(2 * MAX_LINE + 5, false), [('P', MAX_LINE), ('P', MAX_LINE), ('P', 5)]);
    }

    #[test]
    fn no_byte_is_lost_however_it_is_cut() {
        let mut text = Vec::new();
        for n in 0..400usize {
            text.extend(std::iter::repeat_n(b'a' + (n % 26) as u8, n * n % 40_000));
            text.push(b'\n');
        }
        for size in [1_000, 4_096, 16_384, 16_385, 131_072] {
            let chunks: Vec<&[u8]> = text.chunks(size).collect();
            assert!(join(&run(&chunks)) == text, "chunks of {size}");
        }
    }

    #[test]
    fn a_flood_of_empty_lines_is_handed_over_in_pieces_of_whole_lines() {
        let (mut splitter, mut buffer, mut lines) = (Splitter::new(b"stderr"), vec![0; BUFFER], 0);
        splitter.split(&vec![b'\n'; 128 * 1024], 0, &mut buffer, |text| {
            assert!(text.len() <= BUFFER && text.ends_with(b"\n"));
            lines += text.iter().filter(|b| **b == b'\n').count();
        });
        assert_eq!(lines, 128 * 1024);
    }

    #[test]
    fn lines_of_every_length_are_copied_whole() {
        let lines: Vec<Vec<u8>> = (0..300).map(|length| (0..length).map(|n| b'!' + (n % 90) as u8).collect()).collect();
        let text = lines.join(&b'\n');
        let read: Vec<Vec<u8>> = run(&[&text, b"\n"]).into_iter().map(|(_, line)| line).collect();
        assert!(read == lines);
    }
}
