//! A pod asks to be here: admitted, it has a lease of the node; turned away, it has failed as the kubelet's would have. A file's asks again
//! as soon as something became better, since no scheduler makes another in its place; one of the API server's has failed for good.

use jiff::Timestamp;
use tokio::sync::watch;

use crate::admission::{Lease, Rejection, unexpected};
use crate::model::Origin;
use crate::plugin::device::ledger;
use crate::pod::manager::controller;
use crate::runtime::recipe::label;

use super::{Failure, Level, Observed, Outcome, Worker};

impl Worker {
    /// Asks; a pod that has completed, or is to end, needs nothing.
    pub(super) fn admit(&mut self) {
        if self.observed.ending.is_some() || super::plan::is_complete(&self.pod, &self.observed) {
            return;
        }
        // Asked for before the answer, so that nothing that becomes better in between is missed.
        let better = self.node.admission.better();
        match self.node.admission.admit(&self.pod, self.node.runtime.settings()) {
            Ok(lease) => {
                self.admitted(lease);
                if label::names_selinux(&self.pod) && !label::has_selinux() {
                    self.say(
                        None,
                        Level::Warning,
                        "SELinuxDisabled",
                        "seLinuxOptions: this machine's kernel has no SELinux: they do nothing",
                    );
                }
            }
            Err(rejection) => self.turn_away(rejection, better),
        }
    }

    /// It may be here; devices that it asks for are made ready before it begins.
    fn admitted(&mut self, lease: Lease) {
        self.lease = Some(lease);
        self.allocating = ledger::asks(self.pod.spec());
        if self.allocating {
            let (node, pod, since) = (self.node.clone(), self.pod.clone(), self.start_time);
            let allocated = async move { Outcome::Allocated { since, result: node.devices.allocate(&pod).await } };
            self.outcomes.push(Box::pin(allocated));
        }
    }

    /// `since`: the start of the pod that they are for; another may have come in its place.
    pub(super) fn allocated(&mut self, since: Timestamp, result: Result<(), String>) {
        if since != self.start_time {
            return;
        }
        self.allocating = false;
        let Err(why) = result else { return };
        if self.lease.take().is_some() {
            // Of what plugins refused, what they tell next is the first that could be better.
            let better = self.node.devices.changed();
            self.turn_away(unexpected(&why), better);
        }
    }

    fn turn_away(&mut self, rejection: Rejection, better: watch::Receiver<u64>) {
        self.say(None, Level::Warning, &rejection.reason, &rejection.message);
        let message = format!("Pod was rejected: {}", rejection.message);
        let (reason, deadline) = (rejection.reason.into(), Timestamp::now());
        self.observed.failure = Some(Failure { reason, message, deadline, disrupted: false });
        self.turned_away = (*self.pod.origin() != Origin::Api).then_some(better);
    }

    /// Something became better. An event is told only when it is of use.
    pub(super) fn ask_again(&mut self) {
        // One that ended with the node has its lease until it has.
        if self.observed.ending.is_some() || self.lease.is_some() {
            return;
        }
        let Ok(lease) = self.node.admission.admit(&self.pod, self.node.runtime.settings()) else { return };
        self.turned_away = None;
        // Whoever watches sees the pod that failed go, and another come; a workload would make one in the place of the one that went.
        if controller(&self.pod).is_none() {
            self.node.store.remove_pod(self.pod.uid());
        }
        self.observed = Observed::default();
        self.start_time = Timestamp::now();
        self.trace.restart();
        self.admitted(lease);
    }
}

/// Something became better; never, for a pod that wasn't turned away.
pub(super) async fn better(turned_away: &mut Option<watch::Receiver<u64>>) {
    if let Some(receiver) = turned_away
        && receiver.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}
