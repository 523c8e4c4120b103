//! Watching: changes as they happen, by Kubernetes' rules for versions, bookmarks, selectors and expiry.

use std::collections::HashSet;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::list::{Changes, Form, Selection, Served};
use super::query::Query;
use super::{ApiError, Response, reply};
use crate::pod::node::Node;
use crate::pod::store::{Change, Verb};

/// How often a client that wants bookmarks gets one.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// How long a watch lives when the client doesn't say.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// Answers a watch. Versions below `oldest` are of an earlier life of the agent.
pub async fn watch<T: Served>(
    node: &Arc<dyn Node>,
    oldest: u64,
    namespace: Option<&str>,
    query: &Query,
    form: Form,
) -> Result<Response, ApiError> {
    let selection = Selection::parse::<T>(namespace, query)?;
    let asked: u64 = query.number("resourceVersion")?.unwrap_or(0);
    let initial = query.flag("sendInitialEvents");
    let bookmarks = query.flag("allowWatchBookmarks");
    let lifetime = query.number("timeoutSeconds")?.filter(|s| *s > 0).map_or(LIFETIME, Duration::from_secs);

    let snapshot = T::snapshot(&**node).await?;
    let (sender, response) = reply::streamed("application/json");
    let mut watcher = Watcher::<T> {
        sender,
        form,
        selection,
        known: HashSet::new(),
        version: snapshot.version,
        headed: false,
        of: PhantomData,
    };
    if initial || asked == 0 {
        tokio::spawn(async move {
            for object in snapshot.objects {
                watcher.change(&Change { version: watcher.version, verb: Verb::Added, object }).await?;
            }
            if initial && bookmarks {
                watcher.bookmark(json!({ "k8s.io/initial-events-end": "true" })).await?;
            }
            watcher.run(snapshot.changes, bookmarks, lifetime).await
        });
        return Ok(response);
    }
    if asked < oldest {
        return Err(ApiError::expired(format!("too old resource version: {asked} ({oldest})")));
    }
    let (missed, changes) = T::since(&**node, asked).map_err(|error| ApiError::expired(error.to_string()))?;
    // What hasn't changed since then was known to the client then, if it was selected.
    let unchanged = |object: &&Arc<T>| version_of(&***object) <= asked && watcher.selection.matches(&***object);
    watcher.known = snapshot.objects.iter().filter(unchanged).map(|object| identity(&**object)).collect();
    // What has changed was there then, unless it is new. Whether it was selected isn't remembered: say DELETED once too often
    // rather than never.
    let mut fresh = HashSet::new();
    for change in &missed {
        let identity = identity(&*change.object);
        if change.verb == Verb::Added {
            fresh.insert(identity);
        } else if !fresh.contains(&identity) && watcher.selection.could_match(&*change.object) {
            watcher.known.insert(identity);
        }
    }
    watcher.version = asked;
    tokio::spawn(async move {
        for change in missed {
            watcher.change(&change).await?;
        }
        watcher.run(changes, bookmarks, lifetime).await
    });
    Ok(response)
}

/// The client went away or the watch has come to its end.
#[derive(Debug)]
struct Over;

struct Watcher<T> {
    sender: mpsc::Sender<Bytes>,
    form: Form,
    selection: Selection,
    /// Objects that the client has seen as selected: what no longer fits is DELETED for it.
    known: HashSet<String>,
    version: u64,
    headed: bool,
    of: PhantomData<fn() -> T>,
}

impl<T: Served> Watcher<T> {
    async fn run(mut self, mut changes: Changes<T>, bookmarks: bool, lifetime: Duration) -> Result<(), Over> {
        let end = Instant::now() + lifetime;
        let mut ticks = interval_at(Instant::now() + BOOKMARKS, BOOKMARKS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let change = tokio::select! {
                change = changes.recv() => change,
                _ = ticks.tick(), if bookmarks => {
                    self.bookmark(json!({})).await?;
                    continue;
                }
                () = sleep_until(end) => return Err(Over),
                () = self.sender.closed() => return Err(Over),
            };
            match change {
                Ok(change) => self.change(&change).await?,
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    let error = ApiError::expired("the watch fell behind: list again");
                    return self.send("ERROR", error.status()).await;
                }
                Err(broadcast::error::RecvError::Closed) => return Err(Over),
            }
        }
    }

    async fn change(&mut self, change: &Change<T>) -> Result<(), Over> {
        self.version = self.version.max(change.version);
        let object = &*change.object;
        let fits = change.verb != Verb::Deleted && self.selection.matches(object);
        let was_known = self.known.contains(&identity(object));
        let kind = match (fits, was_known) {
            (true, false) => "ADDED",
            (true, true) => "MODIFIED",
            (false, true) => "DELETED",
            (false, false) => return Ok(()),
        };
        if fits {
            self.known.insert(identity(object));
        } else {
            self.known.remove(&identity(object));
        }
        let header = !std::mem::replace(&mut self.headed, true);
        self.send(kind, self.form.object(object, header)).await
    }

    async fn bookmark(&mut self, annotations: Value) -> Result<(), Over> {
        let metadata = json!({ "resourceVersion": self.version.to_string(), "annotations": annotations });
        let object = match self.form {
            Form::Objects => json!({ "kind": T::KIND, "apiVersion": T::API_VERSION, "metadata": metadata }),
            Form::Table(_) => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": [],
                "rows": [{ "cells": [], "object": { "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata } }],
            }),
        };
        self.send("BOOKMARK", object).await
    }

    async fn send(&self, kind: &str, object: Value) -> Result<(), Over> {
        let mut line = serde_json::to_vec(&json!({ "type": kind, "object": object })).unwrap_or_default();
        line.push(b'\n');
        self.sender.send(line.into()).await.map_err(|_| Over)
    }
}

fn identity<T: Served>(object: &T) -> String {
    let metadata = object.metadata();
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    format!("{}/{}/{}", text(&metadata.namespace), text(&metadata.name), text(&metadata.uid))
}

fn version_of<T: Served>(object: &T) -> u64 {
    object.metadata().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}
