//! The end of containers and pods. Goes on past errors, collects them all, and may be repeated until nothing is left.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use super::error::{Cause, Error, Place, file};
use super::holder::Holder;
use super::remove::{LEFTOVER, remove_tree};
use super::run::{Runtime, Sandbox};
use super::volumes;
use crate::model::PodUid;

/// A killed holder is gone in microseconds, unless the kernel hangs (D state): then the caller tries again later.
const DYING: Duration = Duration::from_secs(5);

impl Runtime {
    /// Frees what one run of a container had: its cgroup and its file system. Its log stays. No ID: it never came to run.
    pub async fn remove_container(&self, sandbox: &Sandbox, container: &str, attempt: u32, id: &str) -> Result<(), Error> {
        let mut errors: Vec<Cause> = Vec::new();
        if !id.is_empty() {
            let group = sandbox.group.child(id);
            // What the first process left behind when it ended (a daemon in the pod's shared PID namespace).
            errors.extend(group.kill().err().map(Cause::from));
            errors.extend(group.remove().await.err().map(Cause::from));
        }
        let dir = self.settings.container_dir(sandbox.pod.uid(), container, attempt);
        errors.extend(delete(self.settings.process_json(sandbox.pod.uid(), container, attempt)).await.err());
        errors.extend(delete(dir).await.err());
        finish(Place::container(&sandbox.pod, container), errors)
    }

    /// Ends a pod and removes all of it: processes, cgroups, mounts, folders, logs. Also of a pod whose holder is dead, whose
    /// record is lost, or that was never quite made.
    pub async fn remove_pod(&self, uid: &PodUid, sandbox: Option<&Sandbox>) -> Result<(), Error> {
        let mut errors: Vec<Cause> = Vec::new();
        self.end_processes(uid, sandbox, &mut errors).await;
        for group in self.cgroups.find_pods(uid.as_str()) {
            errors.extend(group.remove().await.err().map(Cause::from));
        }
        let lib = self.settings.pod_lib(uid);
        errors.extend(volumes::unmount_below(&lib));
        self.readers.are_done(uid).await;
        for dir in self.logs_of(uid, sandbox).into_iter().chain([lib]) {
            errors.extend(delete(dir).await.err());
        }
        // Last: as long as it's there, an agent that starts anew knows that there is something to remove.
        if errors.is_empty() {
            errors.extend(delete(self.settings.pod_run(uid)).await.err());
        }
        if errors.is_empty() {
            self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
            errors.extend(self.weigh_burstable().err());
        }
        finish(sandbox.map_or_else(|| Place::pod(uid), |s| Place::pod(&s.pod)), errors)
    }

    /// Ends a pod's processes and frees its namespaces, cgroups and containers' file systems. Volumes and logs stay: the pod has
    /// completed, or gets a new sandbox.
    pub async fn remove_sandbox(&self, uid: &PodUid, sandbox: Option<&Sandbox>) -> Result<(), Error> {
        let mut errors: Vec<Cause> = Vec::new();
        self.end_processes(uid, sandbox, &mut errors).await;
        for group in self.cgroups.find_pods(uid.as_str()) {
            errors.extend(group.remove().await.err().map(Cause::from));
        }
        errors.extend(delete(self.settings.pod_lib(uid).join("containers")).await.err());
        if errors.is_empty() {
            errors.extend(delete(self.settings.pod_run(uid)).await.err());
        }
        finish(sandbox.map_or_else(|| Place::pod(uid), |s| Place::pod(&s.pod)), errors)
    }

    /// Takes back what a pod that has completed needs no more: its range of host IDs, its share of the processors, and what is mounted of
    /// its volumes (what lives in memory, such as Secrets, images, other machines' folders).
    pub fn let_go(&self, uid: &PodUid) -> Result<(), Error> {
        let mut errors = volumes::unmount_below(&self.settings.pod_lib(uid));
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        errors.extend(self.weigh_burstable().err());
        finish(Place::pod(uid), errors)
    }

    /// Whether there is something of an earlier sandbox: after a reboot, or after a crash between two steps.
    pub fn has_leftovers(&self, uid: &PodUid) -> bool {
        self.settings.pod_lib(uid).join("containers").exists() || self.settings.pod_run(uid).exists()
    }

    /// The holder ends its containers itself, so that their last output is in the log; whoever is left then is killed.
    async fn end_processes(&self, uid: &PodUid, sandbox: Option<&Sandbox>, errors: &mut Vec<Cause>) {
        self.prepared.forget(uid);
        let holder = match sandbox {
            Some(sandbox) => Some(sandbox.holder.clone()),
            None => Holder::connect(&self.settings.holder_socket(uid)).await.ok().map(|(holder, _)| holder),
        };
        if let Some(holder) = &holder {
            let asked = tokio::time::timeout(DYING, holder.shutdown()).await;
            if !matches!(asked, Ok(Ok(()))) || tokio::time::timeout(DYING, holder.gone()).await.is_err() {
                holder.kill();
            }
        }
        for group in self.cgroups.find_pods(uid.as_str()) {
            errors.extend(group.kill().err().map(Cause::from));
        }
        if let Some(holder) = &holder {
            // If it doesn't die, its cgroup can't be removed: that error will be told.
            let _ = tokio::time::timeout(DYING, holder.gone()).await;
        }
    }

    fn logs_of(&self, uid: &PodUid, sandbox: Option<&Sandbox>) -> Vec<PathBuf> {
        if let Some(sandbox) = sandbox {
            return vec![self.settings.pod_logs(&sandbox.pod)];
        }
        let suffix = format!("_{uid}");
        let all = std::fs::read_dir(&self.settings.log).into_iter().flatten().flatten();
        all.filter(|entry| entry.file_name().to_string_lossy().ends_with(&suffix)).map(|entry| entry.path()).collect()
    }

    /// UIDs of all pods that left anything on this machine: folders, cgroups or sockets. Those that nobody wants are to be
    /// removed by [`Self::remove_pod`]: after a reboot, or after a crash between two steps.
    pub fn leftovers(&self) -> Vec<PodUid> {
        let names =
            |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok());
        let mut uids: Vec<String> = self.cgroups.pods();
        uids.extend(names(&self.settings.run.join("pods")));
        uids.extend(names(&self.settings.lib.join("pods")));
        uids.sort();
        uids.dedup();
        // Pieces of a tree whose removal was cut short are no pods, and go at once.
        let (pieces, uids): (Vec<_>, Vec<_>) = uids.into_iter().partition(|name| name.starts_with(LEFTOVER));
        for piece in pieces {
            if let Err(error) = remove_tree(&self.settings.lib.join("pods").join(&piece)) {
                tracing::warn!("removing what is left of a pod, {piece}: {error}");
            }
        }
        uids.iter().map(|uid| PodUid::new(uid)).collect()
    }
}

/// Off the agent's own threads: a tree may be large.
async fn delete(dir: PathBuf) -> Result<(), Cause> {
    let path = dir.clone();
    match tokio::task::spawn_blocking(move || remove_tree(&path)).await {
        Ok(result) => result.map_err(file("remove", &dir)),
        Err(error) => Err(file("remove", &dir)(std::io::Error::other(error))),
    }
}

fn finish(place: Place, mut errors: Vec<Cause>) -> Result<(), Error> {
    match errors.len() {
        0 => Ok(()),
        1 => Err(place.error(errors.remove(0))),
        _ => Err(place.error(Cause::Many(errors))),
    }
}
