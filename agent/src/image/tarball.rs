//! A tar archive as a sequence of entries: ustar, GNU and POSIX, with every length bounded before it is believed.
//! The crate `tar` decodes the 512-byte headers; long names, extended headers and sparse maps are read here, because the
//! crate reads them into memory at whatever size they claim.

use std::io::{self, Read};

use tar::Header;

use super::pax::{self, Pax};

const BLOCK: usize = 512;
/// Of one extended header or long name. Real ones have kilobytes; xattrs are at most 64 KiB each.
const EXTENSION_LIMIT: u64 = 1 << 20;
/// Pieces of one sparse file.
const PIECES_LIMIT: usize = 1 << 18;

/// Why an archive can't be read.
#[derive(Debug)]
pub(super) enum TarError {
    /// The bytes didn't come: the source's own error.
    Read(io::Error),
    /// They came, and break the format.
    Format(String),
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

impl From<String> for TarError {
    fn from(why: String) -> Self {
        Self::Format(why)
    }
}

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    Hardlink,
    Char,
    Block,
    Fifo,
}

/// One entry's description. Its data is read from [`Entries::read_data`].
#[derive(Debug)]
pub(super) struct Entry {
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: (i64, u32),
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of data, without holes.
    pub size: u64,
    pub sparse: Option<Sparse>,
}

/// Where the data of a sparse file belongs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sparse {
    /// Offset and length, ascending, as many bytes as there is data.
    pub pieces: Vec<(u64, u64)>,
    /// The file's size.
    pub real_size: u64,
}

/// Reads an archive from its start.
pub(super) struct Entries<R> {
    reader: R,
    /// Data of the present entry that wasn't read yet, and the zeros after it.
    left: u64,
    padding: u64,
}

impl<R: Read> Entries<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, left: 0, padding: 0 }
    }

    /// The next entry, or None at the archive's end.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut pax = None;
        let (mut long_path, mut long_link) = (None, None);
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return if pax.is_none() && long_path.is_none() && long_link.is_none() {
                    Ok(None)
                } else {
                    Err(TarError::Format("the archive ends after an extended header".into()))
                };
            };
            match header.entry_type().as_byte() {
                b'x' => pax = Some(pax::parse(&self.extension(&header)?)?),
                // Global headers carry a comment (git) or defaults that no image relies on: Docker ignores them as well.
                b'g' => drop(self.extension(&header)?),
                b'L' => long_path = Some(name(self.extension(&header)?)),
                b'K' => long_link = Some(name(self.extension(&header)?)),
                _ => return self.entry(&header, pax.unwrap_or_default(), long_path, long_link).map(Some),
            }
        }
    }

    /// Reads from the present entry's data; 0 at its end.
    pub(super) fn read_data(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        match self.reader.read(&mut buffer[..most])? {
            0 => Err(cut()),
            read => {
                self.left -= read as u64;
                Ok(read)
            }
        }
    }

    /// Takes the present entry's data for read: the caller has moved the source past it.
    pub(super) fn skip_without_reading(&mut self) {
        (self.left, self.padding) = (0, 0);
    }

    fn skip(&mut self) -> io::Result<()> {
        let want = self.left.saturating_add(self.padding);
        if want == 0 {
            return Ok(());
        }
        let skipped = io::copy(&mut (&mut self.reader).take(want), &mut io::sink())?;
        (self.left, self.padding) = (0, 0);
        if skipped == want { Ok(()) } else { Err(cut()) }
    }

    /// The next header block; None at the zero block that ends an archive, or where the bytes end between entries.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(cut().into()),
                read => filled += read,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // The sum is over the block with its own eight bytes taken as spaces.
        let sum = |range: std::ops::Range<usize>| block[range].iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let computed = sum(0..148) + 8 * 32 + sum(156..BLOCK);
        match header.cksum() {
            Ok(stored) if stored == computed => Ok(Some(header)),
            _ => Err(TarError::Format("a header's checksum is wrong: not a tar archive, or a damaged one".into())),
        }
    }

    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let size = header.entry_size()?;
        if size > EXTENSION_LIMIT {
            return Err(TarError::Format(format!(
                "an extended header of {size} bytes, more than the limit of {EXTENSION_LIMIT}"
            )));
        }
        self.start_data(size);
        let mut data = vec![0; size as usize];
        self.fill(&mut data)?;
        Ok(data)
    }

    fn start_data(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn fill(&mut self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_data(buffer)? {
                0 => return Err(cut()),
                read => buffer = &mut buffer[read..],
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        header: &Header,
        pax: Pax,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let bad = |what: &str, error: io::Error| TarError::Format(format!("a header's {what}: {error}"));
        let path = pax.sparse.name.clone().or(pax.path).or(long_path).unwrap_or_else(|| header.path_bytes().into_owned());
        let kind = kind(header.entry_type().as_byte(), &path)?;
        let stored = pax
            .size
            .map_or_else(|| unless_empty(&header.as_old().size, || header.entry_size()), Ok)
            .map_err(|error| bad("size", error))?;
        // Only files have data, also those whose slash makes them directories; some writers put the target's size on a hard link.
        let size = if matches!(header.entry_type().as_byte(), b'0' | 0 | b'7' | b'S') { stored } else { 0 };
        let sparse = self.sparse(header, &pax.sparse, size)?;
        let old = header.as_old();
        Ok(Entry {
            link: pax
                .link
                .or(long_link)
                .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
                .unwrap_or_default(),
            mode: unless_empty(&old.mode, || header.mode()).map_err(|error| bad("mode", error))? & 0o7777,
            uid: pax.uid.map_or_else(|| unless_empty(&old.uid, || header.uid()), Ok).map_err(|error| bad("uid", error))?,
            gid: pax.gid.map_or_else(|| unless_empty(&old.gid, || header.gid()), Ok).map_err(|error| bad("gid", error))?,
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => (unless_empty(&old.mtime, || header.mtime()).map_err(|error| bad("mtime", error))? as i64, 0),
            },
            device: match kind {
                Kind::Char | Kind::Block => device(header).map_err(|error| bad("device", error))?,
                _ => (0, 0),
            },
            xattrs: pax.xattrs,
            size: self.left,
            path,
            kind,
            sparse,
        })
    }

    /// Starts the data, and reads the map that stands before or in it.
    fn sparse(&mut self, header: &Header, pax: &pax::PaxSparse, size: u64) -> Result<Option<Sparse>, TarError> {
        let (pieces, real_size) = if header.entry_type().is_gnu_sparse() {
            // The header's own size counts the data alone; extension blocks come before it.
            self.start_data(0);
            let (pieces, real_size) = self.gnu_map(header)?;
            self.start_data(size);
            (pieces, real_size)
        } else {
            self.start_data(size);
            match (&pax.pieces, pax.map_in_data) {
                (_, true) => (self.map_in_data()?, pax.real_size.unwrap_or_default()),
                (Some(pieces), false) => (pieces.clone(), pax.real_size.unwrap_or_default()),
                (None, false) => return Ok(None),
            }
        };
        check_pieces(&pieces, real_size, self.left)?;
        Ok(Some(Sparse { pieces, real_size }))
    }

    fn gnu_map(&mut self, header: &Header) -> Result<(Vec<(u64, u64)>, u64), TarError> {
        let gnu = header.as_gnu().ok_or_else(|| "a sparse entry without GNU's header".to_owned())?;
        let mut pieces = Vec::new();
        let mut add = |part: &tar::GnuSparseHeader| -> Result<(), TarError> {
            if !part.is_empty() {
                let bad = |error: io::Error| TarError::Format(format!("a sparse map: {error}"));
                pieces.push((part.offset().map_err(bad)?, part.length().map_err(bad)?));
            }
            if pieces.len() > PIECES_LIMIT { Err(too_many_pieces()) } else { Ok(()) }
        };
        gnu.sparse.iter().try_for_each(&mut add)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            self.reader.read_exact(block.as_mut_bytes())?;
            block.sparse().iter().try_for_each(&mut add)?;
            more = block.is_extended();
        }
        Ok((pieces, gnu.real_size().map_err(|error| TarError::Format(format!("a sparse file's size: {error}")))?))
    }

    /// Version 1.0: a count, then offsets and lengths, each a decimal number on a line, filled up to a whole block.
    fn map_in_data(&mut self) -> Result<Vec<(u64, u64)>, TarError> {
        let mut block = [0; BLOCK];
        let mut at = BLOCK;
        let mut line = || -> Result<u64, TarError> {
            let mut digits = Vec::new();
            loop {
                if at == BLOCK {
                    self.fill(&mut block)?;
                    at = 0;
                }
                let byte = block[at];
                at += 1;
                match byte {
                    b'\n' => return Ok(pax::number(&digits)?),
                    _ if digits.len() == 20 => {
                        return Err(TarError::Format("a sparse map has a number of over 20 digits".into()));
                    }
                    _ => digits.push(byte),
                }
            }
        };
        let count = line()? as usize;
        if count > PIECES_LIMIT {
            return Err(too_many_pieces());
        }
        let mut pieces = Vec::new();
        for _ in 0..count {
            pieces.push((line()?, line()?));
        }
        Ok(pieces)
    }
}

fn check_pieces(pieces: &[(u64, u64)], real_size: u64, data: u64) -> Result<(), TarError> {
    let mut end = 0;
    let mut total = 0_u64;
    for (offset, length) in pieces {
        let stop = offset.checked_add(*length).filter(|stop| *offset >= end && *stop <= real_size);
        end = stop.ok_or_else(|| "a sparse map is out of order or larger than its file".to_owned())?;
        total = total.saturating_add(*length);
    }
    if total == data { Ok(()) } else { Err(TarError::Format(format!("a sparse map of {total} bytes for data of {data}"))) }
}

fn kind(byte: u8, path: &[u8]) -> Result<Kind, TarError> {
    Ok(match byte {
        // Before POSIX a directory was a file whose name ends with a slash.
        b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Directory,
        b'0' | 0 | b'7' | b'S' => Kind::File,
        b'1' => Kind::Hardlink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Char,
        b'4' => Kind::Block,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => {
            let path = String::from_utf8_lossy(path);
            return Err(TarError::Format(format!("entry {path:?} has the type {:?}, which no image has", char::from(other))));
        }
    })
}

/// A field that was left empty is zero, as GNU's and Go's readers have it.
fn unless_empty<T: Default>(field: &[u8], number: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) { Ok(T::default()) } else { number() }
}

fn device(header: &Header) -> io::Result<(u32, u32)> {
    let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
        (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
        (None, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
        (None, None) => return Ok((0, 0)),
    };
    let number = |number: io::Result<Option<u32>>| number.map(Option::unwrap_or_default);
    Ok((unless_empty(major, || number(header.device_major()))?, unless_empty(minor, || number(header.device_minor()))?))
}

/// A long name ends at its NUL.
fn name(mut data: Vec<u8>) -> Vec<u8> {
    if let Some(end) = data.iter().position(|byte| *byte == 0) {
        data.truncate(end);
    }
    data
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends in the middle of an entry")
}

fn too_many_pieces() -> TarError {
    TarError::Format(format!("a sparse file of more than {PIECES_LIMIT} pieces"))
}
