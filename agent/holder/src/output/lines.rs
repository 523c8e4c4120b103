//! Bytes to lines of the CRI log format: `2006-01-02T15:04:05.000000000Z stdout F text`. No I/O.

use crate::clock;

/// A longer line is cut into pieces of this length, all but its last marked `P`, as containerd does.
const MAX_LINE: usize = 16 * 1024;
/// Formatted text is handed over when it is longer than this, so that a chunk of empty lines doesn't become 40 chunks of memory.
const BATCH: usize = 256 * 1024;

/// Remembers the start of a line whose end hasn't come.
pub struct Splitter {
    stream: &'static str,
    pending: Vec<u8>,
}

impl Splitter {
    pub fn new(stream: &'static str) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Formats all lines that end in `input`, with one time for all. `sink` takes the text and empties the buffer.
    pub fn split(&mut self, input: &[u8], now: u64, out: &mut Vec<u8>, mut sink: impl FnMut(&mut Vec<u8>)) {
        let (full, partial) = self.prefixes(now);
        let mut rest = input;
        out.reserve((rest.len() + rest.len() / 2).min(BATCH + MAX_LINE + full.len()));
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (line, tail) = (&rest[..end], &rest[end + 1..]);
            self.line(line, &full, &partial, out);
            rest = tail;
            if out.len() >= BATCH {
                sink(out);
            }
        }
        self.start_of_line(rest, &partial, out);
        if !out.is_empty() {
            sink(out);
        }
    }

    /// The end: what is left is a partial line.
    pub fn finish(&mut self, now: u64, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            let (_, partial) = self.prefixes(now);
            entry(&partial, &[&self.pending], out);
            self.pending = Vec::new();
        }
    }

    fn prefixes(&self, now: u64) -> (Vec<u8>, Vec<u8>) {
        let time = clock::rfc3339(now);
        (format!("{time} {} F ", self.stream).into_bytes(), format!("{time} {} P ", self.stream).into_bytes())
    }

    fn line(&mut self, line: &[u8], full: &[u8], partial: &[u8], out: &mut Vec<u8>) {
        if self.pending.len() + line.len() <= MAX_LINE {
            entry(full, &[&self.pending, line], out);
            // Nothing is kept when nothing is pending: an idle holder should be small.
            self.pending = Vec::new();
            return;
        }
        self.start_of_line(line, partial, out);
        entry(full, &[&self.pending], out);
        self.pending = Vec::new();
    }

    /// Keeps up to [`MAX_LINE`] bytes; what is over becomes partial entries.
    fn start_of_line(&mut self, mut text: &[u8], partial: &[u8], out: &mut Vec<u8>) {
        while self.pending.len() + text.len() > MAX_LINE {
            let (piece, rest) = text.split_at(MAX_LINE - self.pending.len());
            entry(partial, &[&self.pending, piece], out);
            self.pending.clear();
            text = rest;
        }
        self.pending.extend_from_slice(text);
    }
}

fn entry(prefix: &[u8], parts: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(prefix);
    for part in parts {
        out.extend_from_slice(part);
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "1970-01-01T00:00:00.000000000Z stdout ";

    fn run(chunks: &[&[u8]]) -> Vec<(char, Vec<u8>)> {
        let (mut splitter, mut all, mut buffer) = (Splitter::new("stdout"), Vec::new(), Vec::new());
        for chunk in chunks {
            splitter.split(chunk, 0, &mut buffer, |text| all.append(text));
        }
        splitter.finish(0, &mut buffer);
        all.append(&mut buffer);
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
    fn a_flood_of_empty_lines_is_handed_over_in_batches() {
        let (mut splitter, mut buffer, mut most) = (Splitter::new("stderr"), Vec::new(), 0);
        splitter.split(&vec![b'\n'; 128 * 1024], 0, &mut buffer, |text| {
            most = most.max(text.len());
            text.clear();
        });
        assert!(most < BATCH + 64, "{most}");
    }
}
