//! What a process may do: security label, capabilities, IDs, seccomp filter.

use std::fs::File;
use std::io::Write;

use podholder::protocol::{Fault, Process, Stage};
use podholder::sys;

use super::user::Identity;
use crate::fault::{OrFault, kernel, refused};

/// An AppArmor profile or SELinux label that the next exec takes on.
pub struct Label {
    file: File,
    text: String,
}

impl Label {
    /// Opens the file that takes the label while the host's /proc is there: the container's need not be a real one.
    pub fn open(process: &Process) -> Result<Option<Self>, Fault> {
        let (paths, text): (&[&str], String) = match (&process.apparmor, &process.selinux) {
            (Some(profile), _) => (&["/proc/self/attr/apparmor/exec", "/proc/self/attr/exec"], format!("exec {profile}")),
            (None, Some(label)) => (&["/proc/self/attr/exec"], label.clone()),
            (None, None) => return Ok(None),
        };
        let open = |path: &&str| File::options().write(true).open(path);
        let file = paths.iter().map(open).reduce(Result::or);
        let file = file.ok_or_else(|| refused(Stage::Label, &text, "no place to write it"))?;
        Ok(Some(Self { file: file.or_fault(Stage::Label, &text)?, text }))
    }

    pub fn write(mut self) -> Result<(), Fault> {
        self.file.write_all(self.text.as_bytes()).or_fault(Stage::Label, &self.text)
    }
}

/// A seccomp filter, ready to load.
pub struct Seccomp {
    program: Vec<u8>,
    flags: u32,
}

impl Seccomp {
    pub fn parse(process: &Process) -> Result<Self, Fault> {
        let program = base64(&process.seccomp).ok_or_else(|| refused(Stage::Seccomp, "", "the program is not base64"))?;
        Ok(Self { program, flags: process.seccomp_flags })
    }

    /// Loads it, if there is one.
    pub fn load(&self) -> Result<(), Fault> {
        if self.program.is_empty() { Ok(()) } else { sys::seccomp(&self.program, self.flags).or_fault(Stage::Seccomp, "") }
    }
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').as_bytes();
    if text.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    for chunk in text.chunks(4) {
        let mut bits = 0u32;
        for byte in chunk {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - chunk.len());
        out.extend_from_slice(&bits.to_be_bytes()[1..chunk.len()]);
    }
    Some(out)
}

/// The last capability that any kernel could know.
const HIGHEST: u32 = 63;

/// Takes on the identity and gives up every right that the recipe doesn't name. The order is the only one that works: the
/// bounding set needs CAP_SETPCAP and the IDs CAP_SETUID, so both come before the sets; root's sets would be lost with the user
/// ID but for PR_SET_KEEPCAPS; a capability can become ambient only when it is permitted and inheritable.
pub fn apply(process: &Process, identity: &Identity) -> Result<(), Fault> {
    drop_bounding(process.capabilities.bounding).or_fault(Stage::Credentials, "bounding capabilities")?;
    sys::keep_capabilities(true).or_fault(Stage::Credentials, "keepcaps")?;
    sys::set_ids(identity.uid, identity.gid, &identity.groups).map_err(|e| {
        let ids = format!("uid {} gid {} groups {:?}", identity.uid, identity.gid, identity.groups);
        let mut fault = kernel(Stage::Credentials, ids, e);
        if fault.errno == libc::EINVAL {
            "not in the pod's ID map".clone_into(&mut fault.detail);
        }
        fault
    })?;
    sys::keep_capabilities(false).or_fault(Stage::Credentials, "keepcaps")?;
    set_capabilities(process)?;
    stay_private().or_fault(Stage::Credentials, "dumpable")
}

/// Leaves nothing but `wanted` in the bounding set.
pub fn drop_bounding(wanted: u64) -> std::io::Result<()> {
    for capability in (0..=HIGHEST).filter(|c| wanted & (1 << c) == 0) {
        match sys::drop_bounding(capability) {
            // Past the last one that this kernel knows.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
            result => result?,
        }
    }
    Ok(())
}

/// Other processes of the pod may not look into this one before it is the command. A change of IDs sets what fs.suid_dumpable says.
pub fn stay_private() -> std::io::Result<()> {
    sys::set_not_dumpable()
}

fn set_capabilities(process: &Process) -> Result<(), Fault> {
    let wanted = &process.capabilities;
    let [_, held, _] = sys::capabilities().or_fault(Stage::Credentials, "capabilities")?;
    // What this machine itself lacks can't be given to anyone: a privileged container gets all that there is.
    let permitted = (wanted.effective | wanted.ambient) & held;
    let inheritable = (wanted.inheritable | wanted.ambient) & held;
    sys::set_capabilities(permitted, permitted, inheritable).or_fault(Stage::Credentials, "capabilities")?;
    sys::clear_ambient().or_fault(Stage::Credentials, "ambient capabilities")?;
    for capability in (0..=HIGHEST).filter(|c| wanted.ambient & held & (1 << c) != 0) {
        sys::raise_ambient(capability).or_fault(Stage::Credentials, format_args!("ambient capability {capability}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn decodes_base64() {
        for (text, wanted) in
            [("", Some("")), ("Zg==", Some("f")), ("Zm8=", Some("fo")), ("Zm9vYmFy", Some("foobar")), ("Zm9", Some("fo"))]
        {
            assert_eq!(base64(text).as_deref(), wanted.map(str::as_bytes), "{text}");
        }
        assert_eq!(base64("Z"), None);
        assert_eq!(base64("Zm9v!mFy"), None);
        assert_eq!(base64("+/+/"), Some(vec![0xfb, 0xff, 0xbf]));
    }
}
