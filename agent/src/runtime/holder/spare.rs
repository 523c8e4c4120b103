//! A holder for the next pod, made while nothing starts: a process and namespaces are a sixth of a start.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use podholder::protocol::{Request, SandboxRecipe};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::spawn::Program;
use super::{CallError, Holder, Parent, SandboxReply, Wires};

/// So long no pod has begun before a spare one is made: starts come first.
const QUIET: Duration = Duration::from_millis(300);
/// Room in the process list for the name of the pod that is to come (`NAMESPACE/NAME`, 63 and 253 bytes at most, is cut).
const TITLE_ROOM: usize = 120;

/// A holder with NET, IPC and UTS namespaces and without a pod. It ends by itself when its agent ends.
#[derive(Debug)]
pub struct Spare {
    holder: Holder,
    wires: Option<Wires>,
}

impl Spare {
    /// Makes one.
    pub async fn make(program: &Program) -> Result<Self, CallError> {
        let (pid, socket) = program.spawn(&format!("{:TITLE_ROOM$}", "podholder (spare)"))?;
        let holder = Holder::over(socket, pid, Parent::Us)?;
        let made = holder.begin(Request::Prepare, true).await;
        let (holder, (_, wires)) = holder.unless_failed(made)?;
        Ok(Self { holder, wires })
    }

    /// The way into its network namespace; to be had once.
    pub fn wires(&mut self) -> Option<Wires> {
        self.wires.take()
    }

    /// Becomes a pod's. On an error it is gone.
    pub async fn become_pods(self, recipe: &SandboxRecipe) -> Result<(Holder, SandboxReply), CallError> {
        let made = self.holder.call(Request::Sandbox(Box::new(recipe.clone())), Vec::new()).await;
        self.holder.unless_failed(made.and_then(|made| made.sandbox(self.wires)))
    }
}

/// Keeps one spare holder.
#[derive(Debug)]
pub struct Spares {
    shared: Arc<Shared>,
    _keeper: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    spare: Mutex<Option<Spare>>,
    taken: Notify,
}

impl Spares {
    /// Begins to. Must be called within a tokio runtime.
    pub fn keep(program: Arc<Program>) -> Self {
        let shared = Arc::new(Shared::default());
        shared.taken.notify_one();
        let keeper = tokio::spawn(keep(shared.clone(), program));
        Self { shared, _keeper: AbortOnDropHandle::new(keeper) }
    }

    /// The spare one, if there is one.
    pub fn take(&self, recipe: &SandboxRecipe) -> Option<Spare> {
        if !recipe.takes_prepared() {
            return None;
        }
        let spare = self.shared.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        spare.filter(|spare| !spare.holder.is_gone())
    }

    /// A pod has its holder: another spare one will be made when things are quiet. To be told of every start, so that it is known when
    /// they aren't, and after it: a task that wakes takes the processor from what the start has set going.
    pub fn replenish(&self) {
        self.shared.taken.notify_one();
    }
}

async fn keep(shared: Arc<Shared>, program: Arc<Program>) {
    loop {
        shared.taken.notified().await;
        while tokio::time::timeout(QUIET, shared.taken.notified()).await.is_ok() {}
        if shared.spare.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|spare| !spare.holder.is_gone()) {
            continue;
        }
        match Spare::make(&program).await {
            Ok(spare) => *shared.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(spare),
            // The next pod's start will say what the matter is, if it still is.
            Err(error) => tracing::debug!(%error, "no spare holder could be made"),
        }
    }
}
