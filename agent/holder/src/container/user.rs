//! Whose process: names are looked up in the container's own /etc/passwd and /etc/group, which nobody vouches for.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use podholder::protocol::{Fault, Stage, User};
use rustix::fs::{FileType, OFlags};

use super::paths::{Root, file_type};
use crate::fault::{kernel, refused};

/// Of a file, in bytes: what lies beyond isn't read.
const FILE_LIMIT: u64 = 1 << 20;
/// NGROUPS_MAX
const GROUPS_LIMIT: usize = 65_536;

/// -1: setresuid(2) and its kin leave an ID as it is, which here is root's.
const NOBODY_AT_ALL: u32 = u32::MAX;

/// A user as the kernel knows it, and where it is at home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary, the primary one included, ascending.
    pub groups: Vec<u32>,
    pub home: String,
}

/// Looks `user` up.
pub fn look_up(root: &Root, user: &User) -> Result<Identity, Fault> {
    let passwd = read(root, "/etc/passwd")?;
    let group = read(root, "/etc/group")?;
    resolve(user, &passwd, &group)
}

/// A file's text, without what isn't UTF-8; empty when it isn't there.
fn read(root: &Root, path: &str) -> Result<String, Fault> {
    let fault = |e| kernel(Stage::User, path, e);
    // O_PATH first: opening a FIFO or a device would be a trap.
    let found = match root.open(Path::new(path), OFlags::PATH) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => return Ok(String::new()),
        found => found.map_err(fault)?,
    };
    if file_type(&found).map_err(fault)?.0 != FileType::RegularFile {
        return Ok(String::new());
    }
    let file = root.open(Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY).map_err(fault)?;
    let mut text = Vec::new();
    std::fs::File::from(file).take(FILE_LIMIT).read_to_end(&mut text).map_err(fault)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd_lines(text: &str) -> impl Iterator<Item = PasswdLine<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let home = fields.nth(1).filter(|h| h.starts_with('/')).unwrap_or("/");
        Some(PasswdLine { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    })
}

/// Name, ID and members.
fn group_lines(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some((name, gid.parse().ok()?, fields.next().unwrap_or_default()))
    })
}

/// What looks like a number is one, as with other runtimes: an image that has a user with the name `1000` and the ID 0 must not
/// decide what `runAsUser: 1000` means.
fn number(text: &str) -> Result<Option<u32>, Fault> {
    if text.is_empty() || !text.trim_start_matches(['+', '-']).bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| refused(Stage::User, text, "out of the range of IDs"))
}

fn resolve(user: &User, passwd: &str, group: &str) -> Result<Identity, Fault> {
    let (user_part, group_part) = match user.spec.split_once(':') {
        Some((user, group)) => (user, group),
        None => (user.spec.as_str(), ""),
    };
    let user_part = if user_part.is_empty() { "0" } else { user_part };
    let number = number(user_part)?;
    let line = match number {
        Some(uid) => passwd_lines(passwd).find(|l| l.uid == uid),
        None => passwd_lines(passwd).find(|l| l.name == user_part),
    };
    let uid = number.or(line.as_ref().map(|l| l.uid));
    let uid = uid.ok_or_else(|| refused(Stage::User, user_part, "no such user in /etc/passwd"))?;
    let gid = match (user.gid, group_part) {
        (Some(gid), _) => gid,
        (None, "") => line.as_ref().map_or(0, |l| l.gid),
        (None, name) => {
            let by_name = || group_lines(group).find(|(n, ..)| *n == name).map(|(_, gid, _)| gid);
            self::number(name)?.or_else(by_name).ok_or_else(|| refused(Stage::User, name, "no such group in /etc/group"))?
        }
    };
    let mut groups: BTreeSet<u32> = user.groups.iter().copied().chain([gid]).collect();
    if let Some(line) = line.as_ref().filter(|_| !user.strict_groups) {
        let member = |(_, _, members): &(&str, u32, &str)| members.split(',').any(|m| m.trim() == line.name);
        groups.extend(group_lines(group).filter(member).map(|(_, gid, _)| gid));
    }
    if let Some(none) = groups.iter().chain([&uid]).find(|id| **id == NOBODY_AT_ALL) {
        return Err(refused(Stage::User, user_part, format_args!("{none} is no ID: to the kernel it means no change")));
    }
    if groups.len() > GROUPS_LIMIT {
        return Err(refused(Stage::User, user_part, format_args!("{} groups, more than the kernel takes", groups.len())));
    }
    let home = line.map_or_else(|| "/".to_owned(), |l| l.home.to_owned());
    Ok(Identity { uid, gid, groups: groups.into_iter().collect(), home })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/var/www:\n7:x:0:0::/seven:\nnone:x:4294967295:1::/:\nhuge:x:99999999999:1::/:\n";
    const GROUP: &str =
        "root:x:0:\nweb:x:34:\nstaff:x:50:web, other\n77:x:0:\nminus:x:4294967295:\nadm:x:4:web\nbad:x:no:web\nten:x:10:root\n";

    fn check(spec: &str, gid: Option<u32>, groups: &[u32], strict: bool) -> Result<(u32, u32, Vec<u32>, String), String> {
        let user = User { spec: spec.to_owned(), gid, groups: groups.to_vec(), strict_groups: strict };
        resolve(&user, PASSWD, GROUP).map(|i| (i.uid, i.gid, i.groups, i.home)).map_err(|f| f.subject + ": " + &f.detail)
    }

    #[test]
    fn image_users_and_what_the_pod_says() {
        let ok = |uid, gid, groups: &[u32], home: &str| Ok((uid, gid, groups.to_vec(), home.to_owned()));
        assert_eq!(check("", None, &[], false), ok(0, 0, &[0, 10], "/root"));
        assert_eq!(check("web", None, &[], false), ok(33, 34, &[4, 34, 50], "/var/www"));
        assert_eq!(check("33", None, &[2000], false), ok(33, 34, &[4, 34, 50, 2000], "/var/www"));
        assert_eq!(check("web", None, &[], true), ok(33, 34, &[34], "/var/www"));
        assert_eq!(check("web:staff", None, &[], true), ok(33, 50, &[50], "/var/www"));
        assert_eq!(check("web:77", Some(5), &[], true), ok(33, 5, &[5], "/var/www"));
        assert_eq!(check("4000", None, &[], false), ok(4000, 0, &[0], "/"));
        // Not what the image calls 7.
        assert_eq!(check("7:77", None, &[], false), ok(7, 77, &[77], "/"));
        assert_eq!(check("nobody", None, &[], false), Err("nobody: no such user in /etc/passwd".to_owned()));
        assert_eq!(check("web:none", None, &[], false), Err("none: no such group in /etc/group".to_owned()));
        assert_eq!(check("huge", None, &[], false), Err("huge: no such user in /etc/passwd".to_owned()));
        for out in ["-1", "99999999999", "5000000000"] {
            assert_eq!(check(out, None, &[], false), Err(format!("{out}: out of the range of IDs")));
        }
    }

    #[test]
    fn an_id_that_means_no_change_would_leave_root() {
        for (spec, gid, groups) in [
            ("none", None, &[][..]),
            ("4294967295", None, &[]),
            ("web:minus", None, &[]),
            ("web:4294967295", None, &[]),
            ("web", Some(u32::MAX), &[]),
            ("web", None, &[u32::MAX]),
        ] {
            let error = check(spec, gid, groups, false).unwrap_err();
            assert!(error.ends_with("4294967295 is no ID: to the kernel it means no change"), "{spec}: {error}");
        }
    }

    #[test]
    fn an_image_without_passwd_knows_numbers() {
        let user = User { spec: "1000:1000".to_owned(), ..User::default() };
        let identity = resolve(&user, "", "").unwrap();
        assert_eq!((identity.uid, identity.gid, identity.home.as_str()), (1000, 1000, "/"));
    }

    #[test]
    fn files_that_are_traps_are_empty() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("etc/passwd"), FileType::Fifo, 0o644.into(), 0).unwrap();
        let root = Root::new(std::fs::File::open(dir.path()).unwrap().into());
        assert_eq!(read(&root, "/etc/passwd").unwrap(), "");
        assert_eq!(read(&root, "/etc/group").unwrap(), "");
    }
}
