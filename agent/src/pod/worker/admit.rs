//! A pod asks to be here: admitted, it has a lease of the node; turned away, it has failed as the kubelet's would have, and asks again
//! as soon as something became better, since here no scheduler makes another in its place.

use jiff::Timestamp;
use tokio::sync::watch;

use crate::runtime::recipe::label;

use super::{Failure, Level, Observed, Worker};

impl Worker {
    /// Asks; a pod that has completed needs nothing.
    pub(super) fn admit(&mut self) {
        if super::plan::is_complete(&self.pod, &self.observed) {
            return;
        }
        // Asked for before the answer, so that nothing that becomes better in between is missed.
        let better = self.node.admission.better();
        match self.node.admission.admit(&self.pod, self.node.runtime.settings()) {
            Ok(lease) => {
                self.lease = Some(lease);
                if label::names_selinux(&self.pod) && !label::has_selinux() {
                    self.say(
                        None,
                        Level::Warning,
                        "SELinuxDisabled",
                        "seLinuxOptions: this machine's kernel has no SELinux: they do nothing",
                    );
                }
            }
            Err(rejection) => {
                self.say(None, Level::Warning, &rejection.reason, &rejection.message);
                let message = format!("Pod was rejected: {}", rejection.message);
                let (reason, deadline) = (rejection.reason.into(), Timestamp::now());
                self.observed.failure = Some(Failure { reason, message, deadline, disrupted: false });
                self.turned_away = Some(better);
            }
        }
    }

    /// Something became better. An event is told only when it is of use.
    pub(super) fn ask_again(&mut self) {
        if self.observed.ending.is_some() {
            return;
        }
        let Ok(lease) = self.node.admission.admit(&self.pod, self.node.runtime.settings()) else { return };
        self.lease = Some(lease);
        self.turned_away = None;
        // Whoever watches sees the pod that failed go, and another come.
        self.node.store.remove_pod(self.pod.uid());
        self.observed = Observed::default();
        self.start_time = Timestamp::now();
        self.trace.restart();
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
