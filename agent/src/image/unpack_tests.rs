//! Hostile and odd archives, each trick that was ever published against an unpacker; and random ones.
//! They run as root on the real kernel, beside a folder with a file in it that nobody may touch.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rstest::rstest;
use rustix::fs::{Mode, OFlags};

use super::*;

/// An archive written byte by byte, so that it can say what no honest writer would.
#[derive(Default, Clone)]
struct Tar(Vec<u8>);

#[derive(Clone)]
struct Item<'a> {
    kind: u8,
    path: &'a [u8],
    link: &'a [u8],
    data: &'a [u8],
    mode: u32,
    owner: (u64, u64),
    mtime: u64,
    device: (u32, u32),
}

fn item(kind: u8, path: &str) -> Item<'_> {
    let mode = if kind == b'5' { 0o755 } else { 0o644 };
    Item { kind, path: path.as_bytes(), link: b"", data: b"", mode, owner: (0, 0), mtime: 1_700_000_000, device: (0, 0) }
}

fn field(block: &mut [u8], at: usize, bytes: &[u8]) {
    let end = bytes.len().min(block.len() - at);
    block[at..at + end].copy_from_slice(&bytes[..end]);
}

impl Tar {
    fn add(mut self, item: &Item<'_>) -> Self {
        let long = |path: &[u8]| path.len() > 100;
        if long(item.path) {
            let name = [item.path, b"\0"].concat();
            self = self.add(&Item { kind: b'L', path: b"././@LongLink", data: &name, ..item.clone() });
        }
        if long(item.link) {
            let name = [item.link, b"\0"].concat();
            self = self.add(&Item { kind: b'K', path: b"././@LongLink", link: b"", data: &name, ..item.clone() });
        }
        let mut block = [0; 512];
        field(&mut block[..100], 0, item.path);
        field(&mut block[..257], 157, &item.link[..item.link.len().min(100)]);
        field(&mut block, 100, format!("{:07o}\0", item.mode).as_bytes());
        for (at, number) in [(108, item.owner.0), (116, item.owner.1)] {
            if number < 0o10_000_000 {
                field(&mut block, at, format!("{number:07o}\0").as_bytes());
            } else {
                field(&mut block, at, &number.to_be_bytes());
                block[at] |= 0x80;
            }
        }
        field(&mut block, 124, format!("{:011o}\0", item.data.len()).as_bytes());
        field(&mut block, 136, format!("{:011o}\0", item.mtime).as_bytes());
        block[156] = item.kind;
        field(&mut block, 257, b"ustar\x0000");
        field(&mut block, 329, format!("{:07o}\0{:07o}\0", item.device.0, item.device.1).as_bytes());
        self.block(block, item.data)
    }

    fn block(mut self, mut block: [u8; 512], data: &[u8]) -> Self {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        field(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, data: &str) -> Self {
        self.add(&Item { data: data.as_bytes(), ..item(b'0', path) })
    }
    fn dir(self, path: &str) -> Self {
        self.add(&item(b'5', path))
    }
    fn symlink(self, path: &str, target: &str) -> Self {
        self.add(&Item { link: target.as_bytes(), ..item(b'2', path) })
    }
    fn hardlink(self, path: &str, target: &str) -> Self {
        self.add(&Item { link: target.as_bytes(), ..item(b'1', path) })
    }
    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..9).map(|digits| rest + digits).find(|length| rest + length.to_string().len() == *length).unwrap();
            data.extend([length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat());
        }
        self.add(&Item { data: &data, ..item(b'x', "pax") })
    }
    fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// A root inside a folder that must stay as it is.
struct Box_ {
    base: tempfile::TempDir,
    root: OwnedFd,
    trash: OwnedFd,
}

const SECRET: &str = "nobody touches this";

impl Box_ {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root: they make devices and change owners");
        let base = tempfile::tempdir().unwrap();
        std::fs::write(base.path().join("secret"), SECRET).unwrap();
        std::fs::set_permissions(base.path().join("secret"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let open = |name: &str| {
            std::fs::create_dir(base.path().join(name)).unwrap();
            rustix::fs::open(base.path().join(name), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
        };
        let (root, trash) = (open("root"), open("trash"));
        Self { base, root, trash }
    }

    fn unpack(&self, tar: &[u8]) -> Result<Unpacked, Fault> {
        unpack(tar, self.root.as_fd(), self.trash.as_fd(), Bounds { entries: 1000, bytes: 1 << 20, reserve: 0 })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join("root").join(name)
    }

    fn check_outside(&self) {
        let secret = self.base.path().join("secret");
        let metadata = std::fs::symlink_metadata(&secret).unwrap();
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), SECRET);
        assert_eq!((metadata.nlink(), metadata.mode() & 0o7777, metadata.uid()), (1, 0o600, 0));
        let mut names: Vec<_> = std::fs::read_dir(self.base.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["root", "secret", "trash"]);
        assert_eq!(std::fs::read_dir(self.base.path().join("trash")).unwrap().count(), 0, "trash is emptied");
    }
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// Each either fails with these words, or stays inside and leaves the file with `content` at a path.
enum Want {
    Error(&'static str),
    File(&'static str, &'static str),
}
use Want::{Error as Fails, File as Stays};

#[rstest]
#[case::absolute(Tar::default().file("/etc/passwd", "x"), Stays("etc/passwd", "x"))]
#[case::dot_dot(Tar::default().file("../secret", "x"), Fails("`..`"))]
#[case::dot_dot_inside(Tar::default().dir("a").file("a/../../secret", "x"), Fails("`..`"))]
#[case::dot_dot_harmless(Tar::default().dir("a").file("a/../b", "x"), Fails("`..`"))]
#[case::slashes_and_dots(Tar::default().file(".//./a///b/./c", "x"), Stays("a/b/c", "x"))]
#[case::file_through_absolute_symlink(Tar::default().symlink("l", "/").file("l/secret", "x"), Stays("secret", "x"))]
#[case::file_through_relative_symlink(Tar::default().symlink("l", "..").file("l/secret", "x"), Stays("secret", "x"))]
#[case::through_two_symlinks(Tar::default().symlink("a", "..").symlink("b", "a/..").file("b/secret", "x"), Stays("secret", "x"))]
#[case::through_dangling_symlink(Tar::default().symlink("run", "/var/run").file("run/pid", "x"), Stays("var/run/pid", "x"))]
#[case::through_dangling_climbing_symlink(Tar::default().symlink("l", "../../../x/y").file("l/f", "x"), Stays("x/y/f", "x"))]
#[case::file_over_symlink(Tar::default().symlink("f", "../secret").file("f", "x"), Stays("f", "x"))]
#[case::symlink_loop(Tar::default().symlink("a", "b").symlink("b", "a").file("a/f", "x"), Fails("open its directory"))]
#[case::symlink_to_itself(Tar::default().symlink("a", "a").file("a/f", "x"), Fails("open its directory"))]
#[case::hardlink_out(Tar::default().hardlink("h", "../secret"), Fails("`..`"))]
#[case::hardlink_absolute(Tar::default().hardlink("h", "/etc/passwd"), Fails("hard link to"))]
#[case::hardlink_through_symlink(Tar::default().symlink("l", "..").hardlink("h", "l/secret").file("h", "x"), Fails("hard link to"))]
#[case::hardlink_to_symlink_then_write(
    Tar::default().symlink("l", "../secret").hardlink("h", "l").file("h", "x"), Stays("h", "x"))]
#[case::hardlink_to_itself(Tar::default().file("f", "x").hardlink("f", "f"), Stays("f", "x"))]
#[case::hardlink_to_itself_by_another_path(
    Tar::default().dir("d").symlink("l", "d").file("d/f", "x").hardlink("l/f", "d/f"), Stays("d/f", "x"))]
#[case::hardlink_to_directory(Tar::default().dir("d").hardlink("h", "d"), Fails("is a directory"))]
#[case::hardlink_to_root(Tar::default().hardlink("h", "/"), Fails("root directory"))]
#[case::hardlink_to_nothing(Tar::default().hardlink("h", "gone"), Fails("No such file"))]
#[case::hardlink_to_later_replaced(Tar::default().file("a", "1").hardlink("b", "a").file("a", "2"), Stays("b", "1"))]
#[case::symlink_chain_swap(
    Tar::default().dir("d").file("d/f", "1").symlink("d", "..").file("d/secret", "x"), Stays("secret", "x"))]
#[case::directory_over_symlink(Tar::default().symlink("d", "..").dir("d").file("d/secret", "x"), Stays("d/secret", "x"))]
#[case::directory_over_file(Tar::default().file("d", "1").dir("d").file("d/f", "x"), Stays("d/f", "x"))]
#[case::file_over_full_directory(Tar::default().dir("d").file("d/f", "1").dir("d/e").file("d", "x"), Stays("d", "x"))]
#[case::twice(Tar::default().file("f", "1").file("f", "x"), Stays("f", "x"))]
#[case::below_a_file(Tar::default().file("f", "1").file("f/g", "x"), Fails("directory"))]
#[case::root_as_file(Tar::default().file("./", "x"), Stays("", ""))]
#[case::root_as_symlink(Tar::default().symlink(".", ".."), Fails("replace the root"))]
#[case::root_as_symlink_by_slash(Tar::default().symlink("/", ".."), Fails("replace the root"))]
#[case::no_name(Tar::default().add(&item(b'0', "")), Fails("no name"))]
#[case::pax_path_out(Tar::default().pax(&[("path", b"../secret")]).file("a", "x"), Fails("`..`"))]
#[case::pax_path_nul(Tar::default().pax(&[("path", b"a\0b")]).file("a", "x"), Fails("NUL"))]
#[case::pax_link_out(Tar::default().pax(&[("linkpath", b"../secret")]).hardlink("a", "b"), Fails("`..`"))]
#[case::whiteout_of_dot_dot(Tar::default().dir("d").file("d/.wh...", ""), Fails("names nothing"))]
#[case::whiteout_of_nothing(Tar::default().file(".wh.", ""), Fails("names nothing"))]
#[case::whiteout_of_dot(Tar::default().file(".wh..", ""), Fails("names nothing"))]
#[case::whiteout_through_symlink(Tar::default().symlink("l", "..").file("l/.wh.secret", "").file("f", "x"), Stays("f", "x"))]
#[case::opaque_through_symlink(Tar::default().symlink("l", "..").file("l/.wh..wh..opq", "").file("f", "x"), Stays("f", "x"))]
#[case::proc_magic_link(Tar::default().symlink("l", "/proc/self/root").file("l/secret", "x"), Stays("proc/self/root/secret", "x"))]
#[case::long_name(Tar::default().file(&"n".repeat(256), "x"), Fails("255"))]
#[case::long_path(Tar::default().file(&"n/".repeat(2100), "x"), Fails("4095"))]
#[case::empty_symlink(Tar::default().symlink("l", ""), Fails("make a link"))]
#[case::long_symlink(Tar::default().symlink("l", &"a/".repeat(2500)), Fails("make a link"))]
#[case::owner_minus_one(Tar::default().add(&Item { owner: (0xffff_ffff, 0), ..item(b'0', "f") }), Fails("out of range"))]
#[case::owner_huge(Tar::default().pax(&[("uid", b"99999999999")]).file("f", "x"), Fails("out of range"))]
#[case::unknown_type(Tar::default().add(&item(b'V', "volume")), Fails("no image has"))]
#[case::multi_volume(Tar::default().add(&item(b'M', "f")), Fails("no image has"))]
fn tricks(#[case] tar: Tar, #[case] want: Want) {
    let place = Box_::new();
    let outcome = place.unpack(&tar.end());
    place.check_outside();
    match (want, outcome) {
        (Fails(words), Err(fault)) => assert!(format!("{fault:?}").contains(words), "{fault:?}"),
        (Stays("", _), Ok(_)) => {}
        (Stays(path, content), Ok(_)) => assert_eq!(read(place.path(path)), content),
        (Fails(words), Ok(_)) => panic!("no error about {words}"),
        (Stays(..), Err(fault)) => panic!("{fault:?}"),
    }
}

#[test]
fn bounds_hold() {
    let place = Box_::new();
    let many = (0..1001).fold(Tar::default(), |tar, number| tar.file(&format!("f{number}"), ""));
    assert!(format!("{:?}", place.unpack(&many.end()).unwrap_err()).contains("more than 1000 entries"));
    let big = "x".repeat((1 << 20) + 1);
    let fault = place.unpack(&Tar::default().file("big", &big).end()).unwrap_err();
    assert!(format!("{fault:?}").contains("more than 1048576 bytes"), "{fault:?}");
    // A claim alone must not make anybody take the memory for it.
    let mut header = Tar::default().add(&item(b'x', "pax")).0;
    header[124..136].copy_from_slice(b"77777777777\0");
    let mut block: [u8; 512] = header[..512].try_into().unwrap();
    block[148..156].fill(b' ');
    let fault = place.unpack(&Tar::default().block(block, b"").end()).unwrap_err();
    assert!(format!("{fault:?}").contains("more than the limit"), "{fault:?}");
    let full = unpack(
        Tar::default().file("f", &"x".repeat(1000)).end().as_slice(),
        place.root.as_fd(),
        place.trash.as_fd(),
        Bounds { entries: 9, bytes: 1 << 40, reserve: u64::MAX },
    );
    // Little is written before the disk is looked at.
    assert!(full.is_ok());
    let big = vec![b'x'; 33 << 20];
    let tar = Tar::default().add(&Item { data: &big, ..item(b'0', "f") }).end();
    let full =
        unpack(tar.as_slice(), place.root.as_fd(), place.trash.as_fd(), Bounds { entries: 9, bytes: 1 << 40, reserve: u64::MAX });
    assert!(matches!(full, Err(Fault::NoSpace)), "{full:?}");
}

#[test]
fn attributes_are_kept() {
    let place = Box_::new();
    let capability = b"\x01\x00\x00\x02\x00\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let tar = Tar::default()
        .add(&Item { mode: 0o1777, mtime: 1_600_000_000, ..item(b'5', "tmp") })
        .file("tmp/f", "later than its directory's time")
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"a\nb"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"x"),
            ("mtime", b"1500000000.25"),
        ])
        .add(&Item { mode: 0o6755, owner: (1000, 2000), data: b"elf", ..item(b'0', "su") })
        .pax(&[("uid", b"3000000"), ("gid", b"3000001")])
        .add(&Item { mode: 0o777, link: b"su", ..item(b'2', "link") })
        .add(&Item { mode: 0o666, device: (1, 3), ..item(b'3', "null") })
        .add(&Item { mode: 0o660, device: (7, 1), ..item(b'4', "loop") })
        .add(&Item { mode: 0o622, ..item(b'6', "pipe") })
        .hardlink("su2", "su")
        .end();
    let unpacked = place.unpack(&tar).unwrap();
    assert_eq!((unpacked.entries, unpacked.implicit.as_slice()), (8, &[][..]));
    let look = |name: &str| std::fs::symlink_metadata(place.path(name)).unwrap();
    let tmp = look("tmp");
    assert_eq!((tmp.mode() & 0o7777, tmp.mtime()), (0o1777, 1_600_000_000));
    let su = look("su");
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid()), (0o6755, 1000, 2000));
    assert_eq!((su.mtime(), su.mtime_nsec(), su.nlink(), su.ino()), (1_500_000_000, 250_000_000, 2, look("su2").ino()));
    let link = look("link");
    assert_eq!((link.uid(), link.gid(), link.mtime()), (3_000_000, 3_000_001, 1_700_000_000));
    let null = look("null");
    assert!(null.file_type().is_char_device());
    assert_eq!((null.rdev(), null.mode() & 0o7777), (rustix::fs::makedev(1, 3), 0o666));
    assert!(look("loop").file_type().is_block_device() && look("pipe").file_type().is_fifo());
    let mut names = vec![0; 4096];
    let length = rustix::fs::listxattr(place.path("su"), names.as_mut_slice()).unwrap();
    let mut names: Vec<_> = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort();
    assert_eq!(names, [b"security.capability".as_slice(), b"user.note"]);
    let mut value = vec![0; 100];
    let length = rustix::fs::getxattr(place.path("su"), "security.capability", value.as_mut_slice()).unwrap();
    assert_eq!(&value[..length], capability);
}

#[test]
fn whiteouts_and_opaque_directories() {
    let place = Box_::new();
    let opaque = |name: &str| {
        let mut value = [0; 4];
        rustix::fs::getxattr(place.path(name), "trusted.overlay.opaque", &mut value[..])
            .is_ok_and(|length| &value[..length] == b"y")
    };
    let tar = Tar::default()
        .file(".wh.gone", "")
        .dir("d")
        .file("d/.wh..wh..opq", "")
        .file("d/.wh..wh.plnk", "")
        // Hidden first and made anew after it, and the other way round.
        .file(".wh.again", "")
        .dir("again")
        .dir("before")
        .file("before/f", "x")
        .file(".wh.before", "")
        .file(".wh.file", "")
        .file("file", "new")
        .file("other", "new")
        .file(".wh.other", "")
        .file(".wh.parent", "")
        .file("parent/child", "x")
        .end();
    let unpacked = place.unpack(&tar).unwrap();
    let gone = std::fs::symlink_metadata(place.path("gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert!(opaque("d") && opaque("again") && opaque("before") && opaque("parent") && !opaque(""));
    assert_eq!(
        (read(place.path("file")), read(place.path("other")), read(place.path("before/f"))),
        ("new".into(), "new".into(), "x".into())
    );
    assert_eq!(std::fs::read_dir(place.path("d")).unwrap().count(), 0);
    assert_eq!(unpacked.implicit, ["parent"]);
    place.check_outside();
}

#[test]
fn sparse_files_in_every_form() {
    let place = Box_::new();
    let map = b"2\n4096\n4\n12288\n4\n";
    let mut data = map.to_vec();
    data.resize(512, 0);
    data.extend(b"oneetwoo");
    let new = Tar::default().pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"new"),
        ("GNU.sparse.realsize", b"16384"),
    ]);
    let new = new.add(&Item { data: &data, ..item(b'0', "GNUSparseFile.0/new") });
    let middle = new.pax(&[("GNU.sparse.map", b"4096,4,12288,4"), ("GNU.sparse.size", b"16384")]);
    let middle = middle.add(&Item { data: b"oneetwoo", ..item(b'0', "middle") });
    // GNU's own: the map is in the header.
    let mut block: [u8; 512] = Tar::default().add(&Item { data: b"oneetwoo", ..item(b'S', "old") }).0[..512].try_into().unwrap();
    field(&mut block, 257, b"ustar  \0");
    block[345..].fill(0);
    for (at, text) in
        [(386, "00000010000\0"), (398, "00000000004\0"), (410, "00000030000\0"), (422, "00000000004\0"), (483, "00000040000\0")]
    {
        field(&mut block, at, text.as_bytes());
    }
    let tar = middle.block(block, b"oneetwoo").file("after", "x").end();
    place.unpack(&tar).unwrap();
    for name in ["new", "middle", "old"] {
        let bytes = std::fs::read(place.path(name)).unwrap();
        assert_eq!(bytes.len(), 16384, "{name}");
        assert_eq!((&bytes[4096..4100], &bytes[12288..12292]), (&b"onee"[..], &b"twoo"[..]), "{name}");
        assert!(bytes[..4096].iter().all(|byte| *byte == 0));
        assert!(std::fs::metadata(place.path(name)).unwrap().blocks() * 512 < 16384, "{name} has holes");
    }
    assert_eq!(read(place.path("after")), "x");
}

#[rstest]
#[case::overlap(b"0,4,2,4", b"16", b"oneetwoo", "out of order")]
#[case::outside(b"0,4,100,4", b"16", b"oneetwoo", "larger than its file")]
#[case::overflow(b"18446744073709551615,4,0,4", b"16", b"oneetwoo", "out of order")]
#[case::less_data(b"0,4,8,4", b"16", b"onee", "for data of")]
#[case::exabytes(b"0,4,8,4", b"9223372036854775807", b"oneetwoo", "more than 1048576 bytes")]
fn sparse_lies(#[case] map: &[u8], #[case] size: &[u8], #[case] data: &[u8], #[case] why: &str) {
    let place = Box_::new();
    let tar = Tar::default().pax(&[("GNU.sparse.map", map), ("GNU.sparse.size", size)]);
    let fault = place.unpack(&tar.add(&Item { data, ..item(b'0', "f") }).end()).unwrap_err();
    assert!(format!("{fault:?}").contains(why), "{fault:?}");
}

#[rstest]
#[case::no_tar(vec![b'x'; 700], "checksum")]
#[case::cut_header(Tar::default().file("f", "x").0[..300].to_vec(), "middle")]
#[case::cut_data(Tar::default().file("f", &"x".repeat(2000)).0[..1000].to_vec(), "middle")]
#[case::ends_after_pax(Tar::default().pax(&[("path", b"a")]).end(), "after an extended header")]
fn damaged(#[case] bytes: Vec<u8>, #[case] why: &str) {
    let fault = Box_::new().unpack(&bytes).unwrap_err();
    assert!(format!("{fault:?}").contains(why), "{fault:?}");
}

/// Directories of which each is made through a link, 100 levels deeper than the one before it.
fn deep(links: usize) -> Tar {
    let mut tar = Tar::default().dir("a");
    let mut link = String::from("a");
    for number in 0..links {
        let deep = format!("{link}/{}", vec!["d"; 100].join("/"));
        link = format!("l{number}");
        tar = tar.dir(&deep).symlink(&link, &deep);
    }
    tar
}

#[test]
fn deep_trees_are_made_and_replaced() {
    let place = Box_::new();
    place.unpack(&deep(18).file("a", "x").end()).unwrap();
    assert_eq!(read(place.path("a")), "x");
    place.check_outside();
}

#[test]
fn trees_deeper_than_a_path_may_be_are_refused() {
    let place = Box_::new();
    let fault = place.unpack(&deep(30).end()).unwrap_err();
    assert!(format!("{fault:?}").contains("File name too long"), "{fault:?}");
    place.check_outside();
}

fn any_item() -> impl Strategy<Value = (u8, String, String, Vec<u8>)> {
    let name = || prop::sample::select(vec!["a", "b", "..", ".", "", ".wh.a", ".wh..wh..opq", "l", "secret", "proc", "\u{7f}"]);
    let path = || prop::collection::vec(name(), 1..5).prop_map(|parts| parts.join("/"));
    let target =
        prop_oneof![path(), path().prop_map(|path| format!("/{path}")), Just("../secret".to_owned()), Just("..".to_owned())];
    (prop::sample::select(b"0125346SxgLKV".to_vec()), path(), target, prop::collection::vec(any::<u8>(), 0..600))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_entries_never_escape(items in prop::collection::vec(any_item(), 1..12)) {
        let place = Box_::new();
        // One at a time, so that a refused entry doesn't shield what may follow it.
        for (kind, path, link, data) in &items {
            let one = Item { link: link.as_bytes(), data: if matches!(kind, b'0' | b'x' | b'S') { data } else { b"" }, ..item(*kind, path) };
            let _ = place.unpack(&Tar::default().add(&one).end());
            place.check_outside();
        }
        let all = items.iter().fold(Tar::default(), |tar, (kind, path, link, data)| {
            tar.add(&Item { link: link.as_bytes(), data: if *kind == b'0' { data } else { b"" }, ..item(*kind, path) })
        });
        let _ = place.unpack(&all.end());
        place.check_outside();
    }

    #[test]
    fn random_bytes_never_panic(mut tar in prop::collection::vec(any::<u8>(), 0..4096), fix in any::<bool>()) {
        // With right checksums they come further.
        if fix {
            for block in tar.as_chunks_mut::<512>().0 {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                field(block, 148, format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let place = Box_::new();
        let _ = place.unpack(&tar);
        place.check_outside();
    }
}
