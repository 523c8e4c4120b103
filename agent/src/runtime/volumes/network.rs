//! Volumes of other machines, by the clients that the node has: mount.nfs, iscsiadm. May wait for a network, so it comes before the
//! other volumes and never blocks a thread.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ISCSIVolumeSource, NFSVolumeSource, Volume};
use tokio::process::Command;

use crate::model::ValidPod;
use crate::runtime::error::{Cause, ConfigError, file};
use crate::runtime::remove::is_mount_point;
use crate::runtime::settings::Settings;

/// A client that answers later than this is given up, as the kubelet does; the start is tried again.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long udev may take to name a disk.
const DISK: Duration = Duration::from_secs(30);

/// Mounts all such volumes of a pod that aren't mounted yet.
pub async fn attach(pod: &ValidPod, settings: &Settings) -> Result<(), Cause> {
    for volume in pod.spec().volumes.iter().flatten() {
        let Some(path) = place(pod, settings, volume) else { continue };
        if is_mount_point(&path) {
            continue;
        }
        let attached = match (&volume.nfs, &volume.iscsi) {
            (Some(source), _) => nfs(source, &path).await,
            (None, Some(source)) => iscsi(source, &path).await,
            (None, None) => Ok(()),
        };
        attached.map_err(|cause| Cause::Volume { volume: volume.name.clone(), cause: Box::new(cause) })?;
    }
    Ok(())
}

/// Where such a volume is mounted; of another kind, nowhere.
pub fn place(pod: &ValidPod, settings: &Settings, volume: &Volume) -> Option<PathBuf> {
    let kind = match (&volume.nfs, &volume.iscsi) {
        (Some(_), _) => "nfs",
        (None, Some(_)) => "iscsi",
        (None, None) => return None,
    };
    Some(settings.volume_dir(pod.uid(), kind, &volume.name))
}

/// Whether such a volume is mounted without the right to write.
pub fn is_read_only(volume: &Volume) -> bool {
    let asked = volume.nfs.as_ref().and_then(|n| n.read_only).or_else(|| volume.iscsi.as_ref()?.read_only);
    asked == Some(true)
}

/// A volume that [`attach`] mounted.
pub fn find(path: PathBuf) -> Result<PathBuf, Cause> {
    if is_mount_point(&path) { Ok(path) } else { Err(ConfigError::new("it is not mounted (yet)").into()) }
}

async fn nfs(source: &NFSVolumeSource, path: &Path) -> Result<(), Cause> {
    fs::create_dir_all(path).map_err(file("make", path))?;
    let server = if source.server.contains(':') { format!("[{}]", source.server) } else { source.server.clone() };
    let remote = format!("{server}:{}", source.path);
    let options = if source.read_only == Some(true) { "ro" } else { "rw" };
    let words: [&OsStr; 4] = [remote.as_ref(), path.as_os_str(), "-o".as_ref(), options.as_ref()];
    client("mount.nfs", "nfs-common", &words).await.map(drop)
}

/// Logs in to the target by all its portals, and mounts the first disk that appears. A session that is there already is used.
async fn iscsi(source: &ISCSIVolumeSource, path: &Path) -> Result<(), Cause> {
    let _turn = SESSIONS.lock().await;
    for portal in portals(source) {
        iscsiadm(source, &portal, &["-o", "new"]).await?;
        iscsiadm(source, &portal, &["--login"]).await?;
    }
    let disk = tokio::time::timeout(DISK, appears(source)).await;
    let disk =
        disk.map_err(|_| file("wait for", &disk_of(source, &portals(source).join(",")))(io::ErrorKind::TimedOut.into()))?;
    fs::create_dir_all(path).map_err(file("make", path))?;
    let kind = source.fs_type.as_deref().filter(|kind| !kind.is_empty()).unwrap_or("ext4");
    let options = if source.read_only == Some(true) { "ro" } else { "rw" };
    let words: [&OsStr; 6] = ["-t".as_ref(), kind.as_ref(), "-o".as_ref(), options.as_ref(), disk.as_os_str(), path.as_os_str()];
    client("mount", "util-linux", &words).await.map(drop)
}

/// One login or logout at a time: another pod may use the same target.
static SESSIONS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Logs out of the targets of a pod whose volumes are unmounted, but for those that another pod has mounted. Goes on past errors.
pub async fn detach(pod: &ValidPod) -> Vec<Cause> {
    let mut errors = Vec::new();
    for source in pod.spec().volumes.iter().flatten().filter_map(|volume| volume.iscsi.as_ref()) {
        let _turn = SESSIONS.lock().await;
        let disks: Vec<_> = portals(source).iter().filter_map(|portal| fs::canonicalize(disk_of(source, portal)).ok()).collect();
        // No disk: there is no session, as after a reboot.
        if disks.is_empty() || disks.iter().any(|disk| is_mounted(disk)) {
            continue;
        }
        for portal in portals(source) {
            errors.extend(iscsiadm(source, &portal, &["--logout"]).await.err());
        }
    }
    errors
}

fn is_mounted(disk: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let sources = mounts.lines().filter_map(|line| line.split_once(" - ")?.1.split(' ').nth(1));
    sources.into_iter().any(|source| fs::canonicalize(source).is_ok_and(|path| path == disk))
}

/// Where the target answers, each with its port.
fn portals(source: &ISCSIVolumeSource) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for portal in [&source.target_portal].into_iter().chain(source.portals.iter().flatten()) {
        // An address of IPv6 has colons, but no port outside of its brackets.
        let has_port = portal.rsplit_once(':').is_some_and(|(host, _)| !host.contains(':') || host.ends_with(']'));
        let portal = if has_port { portal.clone() } else { format!("{portal}:3260") };
        if !all.contains(&portal) {
            all.push(portal);
        }
    }
    all
}

/// The name that udev gives to the disk of a portal.
fn disk_of(source: &ISCSIVolumeSource, portal: &str) -> PathBuf {
    PathBuf::from(format!("/dev/disk/by-path/ip-{portal}-iscsi-{}-lun-{}", source.iqn, source.lun))
}

async fn appears(source: &ISCSIVolumeSource) -> PathBuf {
    let disks: Vec<_> = portals(source).iter().map(|portal| disk_of(source, portal)).collect();
    loop {
        if let Some(disk) = disks.iter().find(|disk| disk.exists()) {
            return disk.clone();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn iscsiadm(source: &ISCSIVolumeSource, portal: &str, what: &[&str]) -> Result<(), Cause> {
    let interface = source.iscsi_interface.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
    let target = ["-m", "node", "-p", portal, "-T", &source.iqn, "-I", interface];
    let words: Vec<&OsStr> = target.iter().chain(what).map(OsStr::new).collect();
    client("iscsiadm", "open-iscsi", &words).await.map(drop)
}

/// iscsiadm's statuses for a session that is there already, and for one that isn't there (any more).
const ALREADY: [i32; 2] = [15, 21];

/// Runs a client of the host to its end.
async fn client(program: &str, package: &str, words: &[&OsStr]) -> Result<(), Cause> {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let spoken = || {
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        format!("{program} {}", words.join(" "))
    };
    let failed = |why: &dyn std::fmt::Display| Cause::from(ConfigError::new(format!("{}: {why}", spoken())));
    let output = match tokio::time::timeout(PATIENCE, command.output()).await {
        Err(_) => return Err(failed(&format_args!("no answer within {} s", PATIENCE.as_secs()))),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            let why = format!("this node has no {program}: install it (Debian: {package})");
            return Err(ConfigError::new(why).into());
        }
        Ok(output) => output.map_err(|error| failed(&error))?,
    };
    let already = program == "iscsiadm" && output.status.code().is_some_and(|code| ALREADY.contains(&code));
    if output.status.success() || already {
        return Ok(());
    }
    Err(failed(&format_args!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portal_has_a_port() {
        let source = |target: &str, more: &[&str]| ISCSIVolumeSource {
            target_portal: target.into(),
            portals: Some(more.iter().map(|p| (*p).to_owned()).collect()),
            iqn: "iqn.2001-04.com.example:disk".into(),
            ..ISCSIVolumeSource::default()
        };
        let all = portals(&source("10.0.0.1", &["10.0.0.1:3260", "10.0.0.2:99", "[fd00::1]", "[fd00::1]:88"]));
        assert_eq!(all, ["10.0.0.1:3260", "10.0.0.2:99", "[fd00::1]:3260", "[fd00::1]:88"]);
        let disk = disk_of(&source("10.0.0.1", &[]), "10.0.0.1:3260");
        assert_eq!(disk, Path::new("/dev/disk/by-path/ip-10.0.0.1:3260-iscsi-iqn.2001-04.com.example:disk-lun-0"));
    }
}
