//! A worker's part in its containers' probes: begins and ends them, and takes in what they find.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::{Level, Outcome, SandboxState, Worker};
use crate::pod::handler::Subject;
use crate::pod::observed::{Attempt, Container, Unhealthy};
use crate::pod::probe::state::Kind;
use crate::pod::probe::{News, Prober, Report};

/// The probes of a pod's running containers, by name.
#[derive(Debug)]
pub(super) struct Probes {
    running: BTreeMap<String, Prober>,
    sender: mpsc::UnboundedSender<Report>,
    receiver: mpsc::UnboundedReceiver<Report>,
}

impl Default for Probes {
    fn default() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { running: BTreeMap::new(), sender, receiver }
    }
}

impl Probes {
    /// What is found next; never, without probes.
    pub(super) async fn next(&mut self) -> Report {
        match self.receiver.recv().await {
            Some(report) => report,
            None => std::future::pending().await,
        }
    }

    /// A container has ended.
    pub(super) fn stop(&mut self, name: &str) {
        self.running.remove(name);
    }

    /// See [`Prober::pod_ends`].
    pub(super) fn pod_ends(&self) {
        self.running.values().for_each(Prober::pod_ends);
    }
}

impl Worker {
    /// A running container, for its probes and hooks.
    pub(super) fn subject(&self, name: &str) -> Option<Subject> {
        let attempt = self.observed.containers.get(name)?.running()?;
        let ip = match &self.observed.sandbox {
            SandboxState::Ready { ips, .. } => ips.first().copied(),
            _ => None,
        };
        Some(Subject {
            node: self.node.clone(),
            pod: self.pod.clone(),
            sandbox: self.sandbox.clone()?,
            container: self.container(name)?.clone(),
            id: attempt.id.clone(),
            number: attempt.number,
            ip: ip.or_else(|| self.node.host_ips.first().copied().filter(IpAddr::is_ipv4)),
        })
    }

    /// A container runs: its probes begin, once its postStart hook has returned.
    pub(super) fn probe(&mut self, name: &str) {
        let Some(attempt) = self.running(name).filter(|a| a.note.health.hooked) else { return };
        let (since, health) = (attempt.started_at, attempt.note.health);
        let Some(subject) = self.subject(name) else { return };
        if let Some(prober) = Prober::start(subject, since, health, self.probes.sender.clone()) {
            if self.observed.ending.is_some() {
                prober.pod_ends();
            }
            self.probes.running.insert(name.to_owned(), prober);
        }
    }

    /// The agent found its containers running.
    pub(super) fn probe_all(&mut self) {
        let names: Vec<String> = self.observed.containers.keys().cloned().collect();
        for name in names {
            // A hook that an agent before didn't see to its end runs once more: Kubernetes promises it at least once.
            self.post_start(&name);
        }
    }

    /// A probe's word is another now.
    pub(super) fn probed(&mut self, report: Report) {
        let Report { name, id, news } = report;
        let Some(container) = self.observed.containers.get_mut(&name) else { return };
        let Some(attempt) = container.last.as_mut().filter(|a| a.id == id && a.finish.is_none()) else { return };
        match news {
            News::Started => attempt.note.health.started = true,
            News::Ready(ready) => attempt.note.health.ready = ready,
            News::Failed(kind) => {
                container.unhealthy = Some(if kind == Kind::Startup { Unhealthy::Startup } else { Unhealthy::Liveness });
                return;
            }
        }
        attempt.note.told = Some(Timestamp::now());
        self.remember(&name);
    }

    /// Notes what is known of a running container, for an agent that comes after.
    pub(super) fn remember(&mut self, name: &str) {
        let (Some(sandbox), Some(attempt)) = (self.sandbox.clone(), self.running(name)) else { return };
        let (id, note) = (attempt.id.clone(), serde_json::to_value(&attempt.note).unwrap_or_default());
        let name = name.to_owned();
        self.outcomes.push(Box::pin(async move {
            let noted = sandbox.holder.note_container(&id, note).await;
            Outcome::Noted { name, result: noted.map_err(|e| e.to_string()) }
        }));
    }

    /// All containers begin anew, in the same sandbox.
    pub(super) fn reset(&mut self) {
        if let SandboxState::Ready { generation, .. } = &mut self.observed.sandbox {
            *generation = generation.saturating_add(1);
            self.observed.resets = self.observed.resets.saturating_add(1);
        }
        for container in self.observed.containers.values_mut() {
            container.unhealthy = None;
        }
        let message = "All containers of the pod begin anew, init containers first, as a restart rule asks.";
        self.say(None, Level::Normal, "RestartAllContainers", message);
    }

    /// How often that was so already, in an earlier life of the agent.
    pub(super) fn recall_resets(&mut self) {
        let attempts = self.observed.containers.values().filter_map(|c| c.last.as_ref());
        let resets = attempts.map(|attempt| attempt.note.resets).max().unwrap_or(0);
        if let SandboxState::Ready { generation, .. } = &mut self.observed.sandbox {
            *generation = generation.saturating_add(resets);
            self.observed.resets = resets;
        }
    }

    pub(super) fn running(&self, name: &str) -> Option<&Attempt> {
        self.observed.containers.get(name).and_then(Container::running)
    }
}
