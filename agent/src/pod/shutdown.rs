//! Ends pods in the order of their priorities: as the machine goes down, which logind tells, and as the agent takes its pods along. Who ends
//! when is `shutdown`'s to say, here is the I/O.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::Node;
use super::manager::Order;
use super::recorder::Level;
use crate::model::PodUid;
use crate::shutdown::logind::{Lock, Logind, LogindError, News};
use crate::shutdown::{self, Period};

/// Until logind is looked for again, when it was just there; as the kubelet.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest wait where there is none.
const AGAIN_AT_MOST: Duration = Duration::from_secs(60);

/// What ends the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The agent was told to take them along: nothing is left of them.
    Drain,
    /// The machine goes down: what has ended so is shown, and comes back with it.
    Shutdown,
}

/// Ends all pods that there are, group after group.
pub async fn end_all(node: &Node, orders: &UnboundedSender<Order>, periods: &[Period], cause: Cause) {
    let (pods, told) = oneshot::channel();
    let _ = orders.send(Order::Close { cause, pods });
    // No answer: the manager has ended, and no pod is its any more.
    let pods = told.await.unwrap_or_default();
    for group in shutdown::groups(periods, pods) {
        let uids: Vec<PodUid> = group.pods.iter().map(|(uid, _)| uid.clone()).collect();
        for (uid, grace) in group.pods {
            let _ = orders.send(Order::End { uid, grace, cause });
        }
        let ended = until_ended(node, &uids);
        match group.within {
            None => ended.await,
            Some(within) => {
                if tokio::time::timeout(within, ended).await.is_err() {
                    let left = uids.iter().filter(|uid| node.admission.has(uid)).count();
                    tracing::info!(
                        pods = left,
                        "some pods have not ended in their time; those of the next priority have their turn"
                    );
                }
            }
        }
    }
}

/// Until none of them has anything of the node any more: processes, network, or volumes that a driver has mounted.
async fn until_ended(node: &Node, pods: &[PodUid]) {
    let mut better = node.admission.better();
    while pods.iter().any(|uid| node.admission.has(uid)) && better.changed().await.is_ok() {}
}

/// Has logind wait with a shutdown until the pods have ended, for ever.
pub async fn mind(node: Arc<Node>, periods: Vec<Period>, orders: UnboundedSender<Order>) {
    let mut minder = Minder { node, periods, orders, lock: None, ending: None, pause: AGAIN, said: String::new() };
    loop {
        let Err(error) = minder.listen().await;
        minder.say(&error);
        tokio::time::sleep(minder.pause).await;
        minder.pause = (minder.pause * 2).min(AGAIN_AT_MOST);
    }
}

struct Minder {
    node: Arc<Node>,
    periods: Vec<Period>,
    orders: UnboundedSender<Order>,
    /// While the machine is to stay up.
    lock: Option<Lock>,
    /// Ends the pods, with the lock; set until the machine is to stay up again.
    ending: Option<AbortOnDropHandle<()>>,
    /// Until logind is looked for again.
    pause: Duration,
    /// Why it wasn't found.
    said: String,
}

impl Minder {
    /// Until the bus hangs up.
    async fn listen(&mut self) -> Result<Infallible, LogindError> {
        let mut logind = Logind::connect().await?;
        loop {
            self.meet(&logind).await?;
            loop {
                match logind.news().await? {
                    News::GoingDown => self.go_down(),
                    News::StayingUp => self.stay_up(&logind).await?,
                    News::Another => break,
                }
            }
        }
    }

    /// Takes up what logind is at.
    async fn meet(&mut self, logind: &Logind) -> Result<(), LogindError> {
        if logind.is_going_down().await? {
            self.go_down();
            return Ok(());
        }
        self.stay_up(logind).await?;
        let needed = shutdown::needed(&self.periods);
        if let Err(error) = logind.allow(needed).await {
            let message =
                format!("pods will not have all of the {needed:?} that they are to have when the machine shuts down: {error}");
            self.node.recorder.node(Level::Warning, "ShutdownDelayTooShort", &message);
        }
        (self.pause, self.said) = (AGAIN, String::new());
        tracing::info!("logind waits up to {:?} for the pods to end when the machine shuts down", logind.delay().await?);
        Ok(())
    }

    fn go_down(&mut self) {
        if self.ending.is_some() {
            return;
        }
        self.tell("Shutdown manager detected shutdown event");
        self.node.admission.go_down(true);
        let (node, orders, periods) = (self.node.clone(), self.orders.clone(), self.periods.clone());
        let lock = self.lock.take();
        self.ending = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            end_all(&node, &orders, &periods, Cause::Shutdown).await;
            tracing::info!("the pods have ended, or had their time: the machine may go down");
            drop(lock);
        })));
    }

    async fn stay_up(&mut self, logind: &Logind) -> Result<(), LogindError> {
        // Those whose turn had not come run on.
        if self.ending.take().is_some() {
            self.tell("Shutdown manager detected shutdown cancellation");
            self.node.admission.go_down(false);
        }
        // The new one is there before the old one goes.
        self.lock = Some(logind.hold().await?);
        Ok(())
    }

    fn tell(&self, message: &str) {
        tracing::info!("{message}");
        self.node.recorder.node(Level::Normal, shutdown::REFUSED, message);
    }

    /// Once for each reason: it is looked for again and again.
    fn say(&mut self, error: &LogindError) {
        let error = error.to_string();
        if self.said != error {
            let message = format!("when the machine shuts down, its pods have no time to end: {error}; it is tried again");
            self.node.recorder.node(Level::Warning, "ShutdownNotNoticed", &message);
            self.said = error;
        }
    }
}
