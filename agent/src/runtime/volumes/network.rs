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

/// Logs in to the target, and mounts the disk that appears. A session that is there already is used.
async fn iscsi(source: &ISCSIVolumeSource, path: &Path) -> Result<(), Cause> {
    if source.chap_auth_discovery == Some(true) || source.chap_auth_session == Some(true) {
        let why = "CHAP logins are not handed on by this agent: put them into /etc/iscsi/iscsid.conf on the node";
        return Err(ConfigError::new(why).into());
    }
    let portal =
        if source.target_portal.contains(':') { source.target_portal.clone() } else { format!("{}:3260", source.target_portal) };
    let target: [&OsStr; 6] =
        ["-m".as_ref(), "node".as_ref(), "-p".as_ref(), portal.as_ref(), "-T".as_ref(), source.iqn.as_ref()];
    let with = |more: &'static [&'static str]| target.iter().copied().chain(more.iter().map(OsStr::new)).collect::<Vec<_>>();
    client("iscsiadm", "open-iscsi", &with(&["-o", "new"])).await?;
    client("iscsiadm", "open-iscsi", &with(&["--login"])).await?;
    let disk = PathBuf::from(format!("/dev/disk/by-path/ip-{portal}-iscsi-{}-lun-{}", source.iqn, source.lun));
    let appears = async {
        while !disk.exists() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    if tokio::time::timeout(DISK, appears).await.is_err() {
        return Err(file("wait for", &disk)(io::ErrorKind::TimedOut.into()));
    }
    fs::create_dir_all(path).map_err(file("make", path))?;
    let kind = source.fs_type.as_deref().filter(|kind| !kind.is_empty()).unwrap_or("ext4");
    let options = if source.read_only == Some(true) { "ro" } else { "rw" };
    let words: [&OsStr; 6] = ["-t".as_ref(), kind.as_ref(), "-o".as_ref(), options.as_ref(), disk.as_os_str(), path.as_os_str()];
    client("mount", "util-linux", &words).await.map(drop)
}

/// iscsiadm's status for a session that is there already.
const ALREADY: i32 = 15;

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
    if output.status.success() || (program == "iscsiadm" && output.status.code() == Some(ALREADY)) {
        return Ok(());
    }
    Err(failed(&format_args!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
}
