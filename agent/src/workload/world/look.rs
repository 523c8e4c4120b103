//! One look at one object: its core is asked, and its answer taken.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};

use super::{Entry, World, make};
use crate::model::Workload;
use crate::model::workload::defaults::made_job;
use crate::workload::{History, Steps, cron_job, daemon_set, deployment, job, replica_set, stateful_set};

impl World {
    /// True: something changed, so that others may want to look again.
    pub(super) fn look(&mut self, uid: &str, now: Timestamp) -> bool {
        let Some(entry) = self.entries.get(uid) else { return false };
        let history = entry.history.clone();
        let changed = match entry.object.clone() {
            Workload::Deployment(deployment) => self.look_at_deployment(uid, &deployment, now),
            Workload::ReplicaSet(set) => {
                let (status, steps) = replica_set::plan(&set, &self.owned(uid), now);
                let new = ReplicaSet { status: Some(status), ..(*set).clone() };
                self.take(uid, Workload::ReplicaSet(Arc::new(new)), history, steps, now)
            }
            Workload::Job(job) => {
                let planned = job::plan(&job, &history, &self.owned(uid), now);
                let mut new = (*job).clone();
                new.status = Some(planned.status);
                self.take(uid, Workload::Job(Arc::new(new)), planned.history, planned.steps, now)
            }
            Workload::CronJob(cron) => self.look_at_cron_job(uid, &cron, now),
            Workload::StatefulSet(set) => {
                let mut planned = stateful_set::plan(&set, &history, &self.owned(uid), now);
                // A pod's claims are there before it is.
                self.claim(&set, &planned.steps.create, &mut planned.history);
                let new = StatefulSet { status: Some(planned.status), ..(*set).clone() };
                self.take(uid, Workload::StatefulSet(Arc::new(new)), planned.history, planned.steps, now)
            }
            Workload::DaemonSet(set) => {
                let planned = daemon_set::plan(&set, &history, &self.owned(uid), now);
                let new = DaemonSet { status: Some(planned.status), ..(*set).clone() };
                self.take(uid, Workload::DaemonSet(Arc::new(new)), planned.history, planned.steps, now)
            }
        };
        // A pod that is gone was looked at for the last time.
        self.pods.retain(|_, record| !(record.gone && record.owner == uid));
        changed
    }

    fn take(&mut self, uid: &str, object: Workload, history: History, steps: Steps, now: Timestamp) -> bool {
        let mut changed = false;
        if let Some(entry) = self.entries.get_mut(uid) {
            changed = entry.object != object || entry.history != history;
            entry.object = object;
            entry.history = history;
        }
        self.take_steps(uid, steps, now) || changed
    }

    fn look_at_deployment(&mut self, uid: &str, deployment: &Arc<Deployment>, now: Timestamp) -> bool {
        let sets = self.children(uid).filter_map(|(_, entry)| match &entry.object {
            Workload::ReplicaSet(set) => Some((**set).clone()),
            _ => None,
        });
        let before: Vec<ReplicaSet> = sets.collect();
        let planned = deployment::plan(deployment, before.clone(), now);
        let mut new = (**deployment).clone();
        let revision =
            planned.sets.iter().filter_map(|s| s.metadata.annotations.as_ref()?.get(deployment::REVISION)?.parse::<i64>().ok());
        if let Some(revision) = revision.max() {
            let annotations = new.metadata.annotations.get_or_insert_default();
            annotations.insert(deployment::REVISION.into(), revision.to_string());
        }
        new.status = Some(planned.status);
        let mut changed = self.take_sets(uid, &before, planned.sets);
        changed |= self.take(uid, Workload::Deployment(Arc::new(new)), History::default(), planned.steps, now);
        changed
    }

    fn take_sets(&mut self, owner: &str, before: &[ReplicaSet], after: Vec<ReplicaSet>) -> bool {
        let Some(parent) = self.entries.get(owner).cloned() else { return false };
        let mut changed = false;
        for old in before.iter().filter(|old| !after.iter().any(|new| new.metadata.uid == old.metadata.uid)) {
            changed = true;
            if let Some(entry) = old.metadata.uid.as_ref().and_then(|uid| self.entries.remove(uid)) {
                self.effects.removed.push(entry.object);
            }
        }
        for mut set in after {
            let old = before.iter().find(|old| old.metadata.uid == set.metadata.uid && set.metadata.uid.is_some());
            if old == Some(&set) {
                continue;
            }
            changed = true;
            if old.is_none() {
                set.metadata.uid = Some(self.random_uid());
                set.metadata.owner_references = Some(vec![make::owner_reference(&parent.object)]);
            }
            if old.is_none_or(|old| old.spec != set.spec) {
                set.metadata.generation = Some(set.metadata.generation.unwrap_or(0) + 1);
            }
            self.adopt(&parent, Workload::ReplicaSet(Arc::new(set)));
        }
        changed
    }

    fn look_at_cron_job(&mut self, uid: &str, cron: &Arc<CronJob>, now: Timestamp) -> bool {
        let jobs = self.children(uid).filter_map(|(_, entry)| match &entry.object {
            // One whose time to live is over is gone.
            Workload::Job(job) if !entry.history.expired => Some((**job).clone()),
            _ => None,
        });
        let jobs: Vec<Job> = jobs.collect();
        let mut planned = cron_job::plan(cron, &jobs, now);
        let Some(parent) = self.entries.get(uid).cloned() else { return false };
        let changed = planned.create.is_some() || !planned.delete.is_empty();
        let expired = self.children(uid).filter(|(child, e)| e.history.expired && self.owned(child).is_empty());
        let expired: Vec<String> = expired.map(|(child, _)| child.clone()).collect();
        for job in planned.delete.iter().chain(&expired) {
            self.drop_branch(job);
        }
        if let Some(mut job) = planned.create {
            let (name, new) = (job.metadata.name.clone().unwrap_or_default(), self.random_uid());
            if let Some(spec) = &mut job.spec {
                made_job(spec, &name, &new);
            }
            job.metadata.uid = Some(new);
            job.metadata.owner_references = Some(vec![make::owner_reference(&parent.object)]);
            planned.status.active.get_or_insert_default().push(cron_job::reference(&job));
            self.adopt(&parent, Workload::Job(Arc::new(job)));
        }
        let new = CronJob { status: Some(planned.status), ..(**cron).clone() };
        self.take(uid, Workload::CronJob(Arc::new(new)), parent.history, planned.steps, now) || changed
    }

    fn adopt(&mut self, parent: &Entry, object: Workload) {
        let uid = object.uid().to_owned();
        let history = self.entries.get(&uid).map(|e| e.history.clone()).unwrap_or_default();
        let owner = Some(parent.object.uid().to_owned());
        let entry = Entry { object, owner, root: parent.root.clone(), origin: parent.origin.clone(), history };
        self.entries.insert(uid, entry);
    }
}
