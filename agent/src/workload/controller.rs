//! The task between the sources and the pod manager: what the sources say passes through, workloads become pods. All decisions are
//! [`World`]'s; here is the I/O.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{broadcast, mpsc};

use super::clock::Clock;
use super::file;
use super::world::{Effects, World};
use crate::pod::Node;
use crate::pod::recorder::Level;
use crate::source::Event;

/// See the module's page.
#[derive(Debug)]
pub struct Controller {
    node: Arc<Node>,
    world: World,
    folder: PathBuf,
}

impl Controller {
    /// Reads what an agent before this one kept in `folder`.
    pub fn open(node: Arc<Node>, folder: PathBuf) -> Self {
        let mut world = World::new(&node.name, Box::new(chance));
        match file::read_all(&folder) {
            Ok(files) => {
                for (path, bytes) in files {
                    if !world.recall(&bytes) {
                        tracing::warn!(file = %path.display(), "what was kept of a workload can't be read: it begins anew");
                    }
                }
            }
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "what was kept of workloads can't be read: they begin anew");
            }
        }
        Self { node, world, folder }
    }

    /// Until the sources hang up or the manager does.
    pub async fn run(mut self, mut told: mpsc::Receiver<Event>, manager: mpsc::Sender<Event>) {
        let mut pods = self.node.store.pods().changes;
        let clock = Clock::open();
        loop {
            let wake = self.world.next_due();
            let mut passing = None;
            tokio::select! {
                event = told.recv() => match event {
                    Some(event) => passing = Some(event),
                    None => return,
                },
                change = pods.recv() => match change {
                    Ok(change) => self.world.seen(&change),
                    Err(broadcast::error::RecvError::Lagged(_)) => pods = self.look_at_all(),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                () = clock.until(wake) => {}
            }
            if let Some(event) = &passing {
                self.world.told(event, Timestamp::now());
            }
            // What has happened by now is one look's matter.
            loop {
                match pods.try_recv() {
                    Ok(change) => self.world.seen(&change),
                    Err(broadcast::error::TryRecvError::Lagged(_)) => pods = self.look_at_all(),
                    Err(_) => break,
                }
            }
            let effects = self.world.settle(Timestamp::now());
            let late = matches!(passing, Some(Event::InitDone));
            // Objects are there before the pods that need them; the end of the list is told after all that is in it.
            if let Some(event) = passing.filter(|_| !late)
                && manager.send(event).await.is_err()
            {
                return;
            }
            if self.carry_out(effects, &manager).await.is_err() {
                return;
            }
            if late && manager.send(Event::InitDone).await.is_err() {
                return;
            }
        }
    }

    fn look_at_all(&mut self) -> broadcast::Receiver<crate::pod::store::Change<k8s_openapi::api::core::v1::Pod>> {
        let snapshot = self.node.store.pods();
        self.world.seen_all(&snapshot.objects);
        snapshot.changes
    }

    /// Kept first: an agent that dies here decides the same again.
    async fn carry_out(&mut self, effects: Effects, manager: &mpsc::Sender<Event>) -> Result<(), ()> {
        if !effects.saves.is_empty() {
            let (folder, saves) = (self.folder.clone(), effects.saves);
            let written = tokio::task::spawn_blocking(move || {
                saves.iter().try_for_each(|(uid, bytes)| file::write(&folder, uid, bytes.as_deref()))
            });
            if let Ok(Err(error)) = written.await {
                let message = format!("what workloads have come to could not be kept in {}: {error}", self.folder.display());
                self.node.recorder.node(Level::Warning, "WorkloadStateNotKept", &message);
            }
        }
        effects.removed.iter().for_each(|workload| self.node.store.remove_workload(workload));
        effects.changed.iter().for_each(|workload| self.node.store.put_workload(workload));
        for (object, said) in effects.said {
            self.node.recorder.record(object, said.level, said.reason, &said.message);
        }
        for event in effects.events {
            manager.send(event).await.map_err(|_| ())?;
        }
        Ok(())
    }
}

/// The kernel's chance. Where it gives none, names repeat, which is seen and not hidden.
fn chance(bytes: &mut [u8]) {
    if crate::random::fill(bytes).is_err() {
        bytes.fill(0);
    }
}
