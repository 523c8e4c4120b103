//! Looks from time to time how the machine stands, and ends a pod when it must: `eviction` decides, here is the I/O. Nothing is asked
//! of pods, and no disk is walked, until something is scarce.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1 as k8s;
use tokio::sync::mpsc::UnboundedSender;

use super::Node;
use super::manager::Order;
use super::recorder::Level;
use super::worker::{Live, LiveRef};
use crate::admission::Pressure;
use crate::eviction::{self, Condition, ContainerUsage, Control, Observation, PodUsage, Settings, Signal, Step, Threshold};
use crate::model::{Origin, PodUid, ValidPod};
use crate::runtime::resources::Totals;
use crate::runtime::volumes::usage;

/// How long one eviction may take before the next is thought of; the kubelet's.
const CLEAN_UP: Duration = Duration::from_secs(30);
/// How long the sources may take to name the pods that run already, before one of those that are known is evicted without them.
const ADOPTION: Duration = Duration::from_secs(30);
/// A pod that has just begun shows itself in a moment: so often, and so far apart, it is looked for.
const LOOKS: u32 = 20;
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// For ever.
pub async fn watch(node: Arc<Node>, settings: Settings, orders: UnboundedSender<Order>) {
    let mut control = Control::new(settings);
    let Some(period) = control.period() else { return };
    let mut every = tokio::time::interval(period);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let begin = tokio::time::Instant::now();
    let mut awaited = node.awaited.subscribe();
    loop {
        every.tick().await;
        let step = look(&node, &mut control).await;
        let Some((threshold, _)) = step.evict else { continue };
        if !awaited.borrow().is_empty() && begin.elapsed() < ADOPTION {
            // Whom an agent before this one left isn't known yet, and could be the one to go.
            let _ = tokio::time::timeout_at(begin + ADOPTION, awaited.wait_for(HashSet::is_empty)).await;
            continue;
        }
        let what = threshold.signal.resource();
        node.recorder.node(Level::Warning, "EvictionThresholdMet", &format!("Attempting to reclaim {what}"));
        let step = if step.can_reclaim() { reclaim(&node, &mut control).await } else { step };
        if let Some((threshold, seen)) = step.evict {
            let grace = control.grace(&threshold);
            evict_one(&node, (&threshold, &seen), grace, &orders).await;
        }
    }
}

/// Observes, and lets all know what the node suffers from.
async fn look(node: &Arc<Node>, control: &mut Control) -> Step {
    let (lib, images): (PathBuf, PathBuf) = (node.runtime.settings().lib.clone(), node.runtime.settings().lib.join("images"));
    let seen = tokio::task::spawn_blocking(move || eviction::observe(&lib, &images)).await.unwrap_or_default();
    let step = control.step(&seen, Instant::now());
    for pressure in node.admission.suffers(&step.conditions) {
        let reason = event(pressure);
        let level = if pressure.holds { Level::Warning } else { Level::Normal };
        node.recorder.node(level, reason, &format!("Node {} status is now: {reason}", node.name));
    }
    step
}

fn event(pressure: Pressure) -> &'static str {
    match (pressure.condition, pressure.holds) {
        (Condition::Memory, true) => "NodeHasInsufficientMemory",
        (Condition::Memory, false) => "NodeHasSufficientMemory",
        (Condition::Disk, true) => "NodeHasDiskPressure",
        (Condition::Disk, false) => "NodeHasNoDiskPressure",
        (Condition::Pid, true) => "NodeHasInsufficientPID",
        (Condition::Pid, false) => "NodeHasSufficientPID",
    }
}

/// What pods that are over left, and unused images, go before any pod does; as the kubelet's containers and images.
async fn reclaim(node: &Arc<Node>, control: &mut Control) -> Step {
    let asked = node.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || remove_what_the_dead_left(&asked)).await {
        tracing::warn!(%error, "disk is scarce, and what pods that are over left could not be removed");
    }
    match node.images.prune_unused().await {
        Ok(freed) => {
            tracing::info!(images = freed.images.join(", "), bytes = freed.bytes, "disk is scarce: unused images were removed");
        }
        Err(error) => tracing::warn!(%error, "disk is scarce, and unused images could not be removed"),
    }
    look(node, control).await
}

/// Logs and volumes, without containers that could write to them: their layers went when they ended.
fn remove_what_the_dead_left(node: &Node) {
    let over = |object: &k8s::Pod| {
        let phase = object.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    for object in node.store.pods().objects.iter().filter(|object| over(object)) {
        let pod = ValidPod::trusted(k8s::Pod::clone(object), Origin::Stdin);
        if !node.admission.has(pod.uid()) {
            node.runtime.clear_logs(&pod);
            node.runtime.clear_volumes(&pod);
        }
    }
}

/// Ends the first of the ranking, and waits until it has.
async fn evict_one(
    node: &Arc<Node>,
    (threshold, seen): (&Threshold, &Observation),
    grace: Duration,
    orders: &UnboundedSender<Order>,
) {
    let Some(pods) = shown(node, threshold.signal).await else { return };
    let Some(first) = eviction::rank(pods, threshold.signal).into_iter().next() else {
        tracing::warn!(signal = threshold.signal.name(), "no pod can be evicted that would help");
        return;
    };
    let mut better = node.admission.better();
    let message = eviction::message(threshold, seen, &first);
    let (uid, count) = (first.uid.clone(), grace);
    if orders.send(Order::Evict { uid: first.uid, message, grace: count }).is_err() {
        return;
    }
    let ended = async { while node.admission.has(&uid) && better.changed().await.is_ok() {} };
    if tokio::time::timeout(CLEAN_UP, ended).await.is_err() {
        tracing::warn!(%uid, "an evicted pod has not ended yet");
    }
}

/// What the pods use, as soon as all have shown themselves.
async fn shown(node: &Arc<Node>, signal: Signal) -> Option<Vec<PodUsage>> {
    for _ in 0..LOOKS {
        let asked = node.clone();
        if let Ok(Some(pods)) = tokio::task::spawn_blocking(move || pods(&asked, signal)).await {
            return Some(pods);
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    None
}

/// What the pods use that hold something of the node. None: one of them begins just now, and tells in a moment.
fn pods(node: &Node, signal: Signal) -> Option<Vec<PodUsage>> {
    let all: Vec<(PodUid, LiveRef)> = {
        let all = node.live.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(uid, live)| (uid.clone(), live.clone())).collect()
    };
    let held = all.into_iter().filter(|(uid, _)| node.admission.has(uid));
    held.map(|(uid, live)| {
        // What is in the store has shown what lives of it.
        let object = node.store.pod(&uid)?;
        let live = live.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let pod = ValidPod::trusted(k8s::Pod::clone(&object), Origin::Stdin);
        Some(of_pod(node, &pod, &live, signal))
    })
    .collect()
}

fn of_pod(node: &Node, pod: &ValidPod, live: &Live, signal: Signal) -> PodUsage {
    let settings = node.runtime.settings();
    let disk = signal.condition() == Condition::Disk;
    let totals = Totals::of_pod(pod.spec());
    let volumes = if disk { usage::of_pod(pod, settings) } else { usage::Used::default() };
    PodUsage {
        uid: pod.uid().clone(),
        priority: pod.spec().priority.unwrap_or(0),
        pids: live.sandbox.as_ref().map_or(0, |sandbox| node.runtime.pod_stats(sandbox).pids),
        requests: (totals.memory_request, totals.disk_request),
        volumes: (volumes.bytes, volumes.inodes),
        containers: pod.all_containers().map(|c| of_container(node, pod, c, live, disk)).collect(),
    }
}

fn of_container(node: &Node, pod: &ValidPod, container: &k8s::Container, live: &Live, disk: bool) -> ContainerUsage {
    let running = live.attempts.iter().find(|(name, a)| *name == container.name && a.finish.is_none()).map(|(_, a)| a);
    let stats = live.sandbox.as_ref().zip(running).map(|(sandbox, a)| node.runtime.container_stats(sandbox, &a.id));
    let written = if disk { usage::of_container(pod, &container.name, node.runtime.settings()) } else { usage::Used::default() };
    let asked = Totals::of(container.resources.as_ref());
    ContainerUsage {
        name: container.name.clone(),
        memory: stats.map_or(0, |s| s.working_set_bytes),
        memory_request: asked.memory_request,
        disk: written.bytes,
        disk_request: asked.disk_request,
        inodes: written.inodes,
    }
}
