//! Equal work in flight is done once: whoever asks for it meanwhile waits for the same outcome and hears the same progress.
//! Whoever gives up leaves the others their work; when the last one gives up, the work stops.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::broadcast::{self, error::TryRecvError};

use super::progress::{Listener, Progress};

/// Where the work reports its progress.
pub(super) type Report = broadcast::Sender<Progress>;
type Work<T> = Shared<BoxFuture<'static, T>>;
/// Ends when nobody waits for it any more.
type Running<K, T> = HashMap<K, (WeakShared<BoxFuture<'static, T>>, Report)>;

/// Work in flight, by what it is for.
#[derive(Debug)]
pub(super) struct Flights<K, T: Clone> {
    running: Mutex<Running<K, T>>,
}

impl<K, T: Clone> Default for Flights<K, T> {
    fn default() -> Self {
        Self { running: Mutex::default() }
    }
}

impl<K: Hash + Eq + Clone, T: Clone + Send + Sync + 'static> Flights<K, T> {
    /// Joins the work for `key`, or starts it.
    pub(super) async fn join<F>(&self, key: K, listener: Listener<'_>, start: impl FnOnce(Report) -> F) -> T
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (work, report) = self.enter(&key, start);
        let mut progress = report.subscribe();
        let mut outcome = work.clone();
        let outcome = loop {
            tokio::select! {
                biased;
                heard = progress.recv() => {
                    // Lagging loses some steps of a bar; the report can't close while `report` is here.
                    if let Ok(step) = heard {
                        listener(step);
                    }
                }
                outcome = &mut outcome => break outcome,
            }
        };
        // The last steps were reported in the poll that ended the work.
        loop {
            match progress.try_recv() {
                Ok(step) => listener(step),
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        drop(work);
        self.leave(&key);
        outcome
    }

    fn enter<F>(&self, key: &K, start: impl FnOnce(Report) -> F) -> (Work<T>, Report)
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut running = self.lock();
        if let Some((work, report)) = running.get(key)
            && let Some(work) = work.upgrade()
            // Work that is done tells of an earlier world.
            && work.peek().is_none()
        {
            return (work, report.clone());
        }
        let report = broadcast::Sender::new(256);
        let work = start(report.clone()).boxed().shared();
        if let Some(weak) = work.downgrade() {
            running.insert(key.clone(), (weak, report.clone()));
        }
        (work, report)
    }

    fn leave(&self, key: &K) {
        let mut running = self.lock();
        if running.get(key).is_some_and(|(work, _)| work.upgrade().is_none_or(|work| work.peek().is_some())) {
            running.remove(key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Running<K, T>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
