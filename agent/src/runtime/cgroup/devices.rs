//! Which device nodes a container may open. Root in a container has CAP_MKNOD by default, so a node for the host's disk is one
//! mknod away: opening it must fail. On v1 two groups are enough for all containers: one with the default rules, and none.

use std::path::{Path, PathBuf};

use super::layout::{Controller, Layout};
use super::{CgroupError, make_dir, remove_tree, write};

/// Which nodes may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceRules {
    /// null, zero, full, random, urandom, tty, ptmx and ptys; any node may be made, but not opened.
    Default,
    /// All: a privileged container, or the holder.
    Unlimited,
}

/// `type major:minor access`, as devices.allow takes it. Making a node harms nobody; images' archives have some.
const ALLOWED: [&str; 10] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// Makes the group with the default rules, if this machine has v1's controller.
pub fn prepare(layout: &Layout, parent: &Path) -> Result<(), CgroupError> {
    let Some(dir) = group(layout, parent, DeviceRules::Default) else { return Ok(()) };
    make_dir(&dir)?;
    write(&dir.join("devices.deny"), "a")?;
    ALLOWED.iter().try_for_each(|rule| write(&dir.join("devices.allow"), rule))
}

/// The group that a container joins.
pub fn group(layout: &Layout, parent: &Path, rules: DeviceRules) -> Option<PathBuf> {
    let hierarchy = layout.of(Controller::Devices).filter(|h| h.controllers == [Controller::Devices])?;
    match rules {
        DeviceRules::Default => Some(hierarchy.mount.join(parent).join("default")),
        DeviceRules::Unlimited => None,
    }
}

/// Removes what [`prepare`] made.
pub fn remove(layout: &Layout, parent: &Path) -> Result<(), CgroupError> {
    let made = group(layout, parent, DeviceRules::Default);
    made.as_deref().and_then(Path::parent).map_or(Ok(()), remove_tree)
}
