//! The pods' network as their workers see it. Who wires them is decided once, at the agent's start: our own bridge
//! ([`netplug::Network`]), in this process and by netlink alone, or CNI plugins that are executed.

pub mod look;
mod plugins;
pub mod target;
pub mod view;

use std::os::fd::AsFd;
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::trace::Trace;
use crate::model::network::{Asks, Wrong};
use crate::model::{Origin, PodUid, ValidPod};
use crate::runtime::files::{self, Resolver};
use crate::runtime::{Sandbox, Settings, Wires};
use crate::service::facts::protocol;

pub use plugins::{NetworkStatus, Plugins, Wired};

/// See the module's page.
#[derive(Debug)]
pub struct PodNetwork {
    primary: Primary,
    /// For the pod's own interface, or for further ones that a pod asks for.
    plugins: Plugins,
    /// Why pods are not wired now, though they could be.
    gate: watch::Sender<Gate>,
}

/// Whether pods are wired.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Gate {
    /// Yes.
    #[default]
    Open,
    /// Those of files alone: for the cluster's, something is missing.
    Files(String),
    /// None.
    Closed(String),
}

impl Gate {
    /// Why a pod has to wait.
    fn bars(&self, pod: &ValidPod) -> Option<&str> {
        match self {
            Self::Files(why) if *pod.origin() == Origin::Api => Some(why),
            Self::Closed(why) => Some(why),
            Self::Open | Self::Files(_) => None,
        }
    }

    fn reason(&self) -> Option<String> {
        match self {
            Self::Open => None,
            Self::Files(why) | Self::Closed(why) => Some(why.clone()),
        }
    }
}

/// Who gives a pod its eth0.
#[derive(Debug)]
enum Primary {
    Bridge {
        network: netplug::Network,
        /// Other people's chains that may drop what pods send and get.
        firewalls: watch::Receiver<Vec<netplug::Obstacle>>,
        /// What of the host is in its way.
        trouble: watch::Receiver<Option<String>>,
    },
    Plugins,
}

impl PodNetwork {
    /// Pods are wired by our own bridge, their further interfaces by plugins.
    pub async fn bridged(network: netplug::Network, plugins: Plugins) -> Result<Self, netplug::Error> {
        let trouble = network.trouble();
        let firewalls = match network.firewalls().await {
            Err(netplug::Error::NotUp(_)) => {
                let (tell, firewalls) = watch::channel(Vec::new());
                tokio::spawn(come_up(network.clone(), plugins.clone(), tell));
                firewalls
            }
            found => found?,
        };
        Ok(Self { primary: Primary::Bridge { network, firewalls, trouble }, plugins, gate: watch::Sender::default() })
    }

    /// Pods are wired by plugins alone.
    pub fn plugged(plugins: Plugins) -> Self {
        plugins.mind();
        Self { primary: Primary::Plugins, plugins, gate: watch::Sender::default() }
    }

    /// Whether pods are wired.
    pub fn gate(&self) -> Gate {
        self.gate.borrow().clone()
    }

    /// Lets pods be wired, or wait. Those that wait are tried again at once.
    pub fn set_gate(&self, gate: Gate) {
        self.gate.send_replace(gate);
        self.plugins.nudge();
    }

    /// Our own bridge, if that is what wires the pods: Services, policies and the like are its.
    pub fn bridge(&self) -> Option<&netplug::Network> {
        match &self.primary {
            Primary::Bridge { network, .. } => Some(network),
            Primary::Plugins => None,
        }
    }

    /// Gives a pod its address on our bridge while the rest of its sandbox is being made. Nothing, where plugins do it, or where there
    /// is no way into its namespace yet.
    pub async fn attach_early(&self, pod: &ValidPod, wires: Option<Wires>, trace: &Trace) -> Option<Result<Wired, String>> {
        match (&self.primary, wires) {
            (Primary::Bridge { .. }, Some(_)) if self.gate.borrow().bars(pod).is_some() => None,
            (Primary::Bridge { network, .. }, Some(wires)) => Some(attach_to_bridge(network, pod, wires, trace).await),
            _ => None,
        }
    }

    /// Gives a pod its first interface and addresses, by the way into its namespace that came with the sandbox; without it, the holder is
    /// asked. Again, the bridge mends what is missing and answers the same; plugins are told to begin anew.
    pub async fn attach(
        &self,
        pod: &ValidPod,
        (sandbox, wires): (&Sandbox, Option<Wires>),
        settings: &Settings,
        trace: &Trace,
    ) -> Result<Wired, String> {
        if let Some(why) = self.gate.borrow().bars(pod) {
            return Err(why.to_owned());
        }
        match &self.primary {
            Primary::Bridge { network, .. } => {
                let wires = match wires {
                    Some(wires) => wires,
                    None => sandbox.holder.wires().await.map_err(|e| e.to_string())?,
                };
                attach_to_bridge(network, pod, wires, trace).await
            }
            Primary::Plugins => {
                let (begun, asks) = (Instant::now(), asks_of(pod)?);
                let netns = sandbox.holder.net_namespace().await.map_err(|e| e.to_string())?;
                let wired = self.plugins.attach(pod, &asks, netns, dns(&files::resolver_of(pod, settings))).await?;
                trace.step("net: plugins", None, begun);
                Ok(wired)
            }
        }
    }

    /// Gives a pod the further interfaces that it asks for.
    pub async fn attach_more(&self, pod: &ValidPod, sandbox: &Sandbox, trace: &Trace) -> Result<(), String> {
        let asks = asks_of(pod)?;
        if asks.networks.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let netns = sandbox.holder.net_namespace().await.map_err(|e| e.to_string())?;
        self.plugins.attach_more(pod, &asks.networks, netns).await?;
        trace.step("net: further networks", None, begun);
        Ok(())
    }

    /// All of it, for people.
    pub async fn view(&self) -> Result<view::NetworkView, netplug::Error> {
        let Primary::Bridge { network, .. } = &self.primary else {
            return Ok(view::NetworkView { wiring: "cni".into(), ..view::NetworkView::default() });
        };
        let (picture, rules, obstacles) = (network.picture().await?, network.rules().await?, network.obstacles().await?);
        Ok(view::of_bridge(picture, &rules, obstacles.iter().map(ToString::to_string).collect()))
    }

    /// Other firewalls' chains that may drop what pods on our bridge send and get: as known now, and as they come and go.
    pub fn firewalls(&self) -> Option<&watch::Receiver<Vec<netplug::Obstacle>>> {
        match &self.primary {
            Primary::Bridge { firewalls, .. } => Some(firewalls),
            Primary::Plugins => None,
        }
    }

    /// The same, as sentences. Asks nobody: to be called at each pod's start.
    pub fn obstacles(&self) -> Vec<String> {
        let known =
            |firewalls: &watch::Receiver<Vec<netplug::Obstacle>>| firewalls.borrow().iter().map(ToString::to_string).collect();
        self.firewalls().map(known).unwrap_or_default()
    }

    /// The interfaces of a pod that plugins made: for its status, where it asked for more than one.
    pub fn status(&self, uid: &PodUid) -> Vec<NetworkStatus> {
        self.plugins.status(uid)
    }

    /// Why no pod can be wired now, for the node's condition.
    pub fn problem(&self) -> Option<String> {
        match &self.primary {
            Primary::Bridge { trouble, .. } => trouble.borrow().clone().or_else(|| self.gate.borrow().reason()),
            Primary::Plugins => self.plugins.problem(),
        }
    }

    /// Changes when a pod that could not be wired should be tried again at once. None for a pod that
    /// waits for nobody else.
    pub fn changes(&self, pod: &ValidPod) -> Option<watch::Receiver<u64>> {
        let own = pod.spec().host_network != Some(true);
        let (plugged, waits) = match &self.primary {
            Primary::Bridge { trouble, .. } => {
                let more = Asks::of(&pod.metadata).is_ok_and(|asks| !asks.networks.is_empty());
                let waits = trouble.borrow().is_some() || self.gate.borrow().bars(pod).is_some();
                (more, own && waits)
            }
            Primary::Plugins => (own, false),
        };
        if plugged { Some(self.plugins.changes()) } else { waits.then(|| self.plugins.nudges()) }
    }

    /// Takes back what a pod has. To be called when its last process has ended; a pod that has nothing has nothing to lose.
    pub async fn release(&self, uid: &PodUid) -> Result<(), String> {
        let bridge = match &self.primary {
            // The address is free at once; the links go with the namespace.
            Primary::Bridge { network, .. } => network.release_when_netns_dies(uid.as_str()).await.map_err(|e| e.to_string()),
            Primary::Plugins => Ok(()),
        };
        let plugins = if self.plugins.knows(uid) { self.plugins.release(uid).await } else { Ok(()) };
        match (bridge, plugins) {
            (Err(bridge), Err(plugins)) => Err(format!("{bridge}; {plugins}")),
            (bridge, plugins) => bridge.and(plugins),
        }
    }

    /// Frees all that belongs to none of these pods.
    pub async fn retain(&self, live: &[&str]) -> Result<(), String> {
        let plugged = matches!(self.primary, Primary::Plugins);
        let uids = live.iter().map(|uid| (*uid).to_owned()).collect();
        let plugins = self.plugins.retain(uids, plugged).await;
        match &self.primary {
            Primary::Bridge { network, .. } => network.retain(live).await.map_err(|e| e.to_string()).and(plugins),
            Primary::Plugins => plugins,
        }
    }

    /// Which of these pods aren't wired any more as they were, as far as the plugins can tell.
    pub async fn check(&self, live: &[&str]) -> Vec<(PodUid, String)> {
        let known = live.iter().filter(|uid| self.plugins.knows(&PodUid::new(uid)));
        let known: Vec<String> = known.map(|uid| (*uid).to_owned()).collect();
        if known.is_empty() { Vec::new() } else { self.plugins.check(known).await }
    }

    /// After the last pod: what the agent made for all of them goes too.
    pub async fn close(&self) -> Result<(), String> {
        match &self.primary {
            Primary::Bridge { network, .. } => network.clone().close(netplug::Remove::All).await.map_err(|e| e.to_string()),
            Primary::Plugins => self.plugins.retain(Vec::new(), true).await,
        }
    }
}

/// When the host isn't in the way of the bridge any more, pods are tried again, and other firewalls told of.
async fn come_up(network: netplug::Network, plugins: Plugins, tell: watch::Sender<Vec<netplug::Obstacle>>) {
    network.up().await;
    plugins.nudge();
    let Ok(mut firewalls) = network.firewalls().await else { return };
    loop {
        tell.send_replace(firewalls.borrow_and_update().clone());
        if firewalls.changed().await.is_err() {
            return;
        }
    }
}

async fn attach_to_bridge(
    network: &netplug::Network,
    pod: &ValidPod,
    Wires { netns, netlink }: Wires,
    trace: &Trace,
) -> Result<Wired, String> {
    let asks = asks_of(pod)?;
    if asks.mac.is_some() {
        return Err(
            "annotation nodeagent.dev/mac: the agent's own bridge gives each address its MAC; CNI plugins can do otherwise"
                .into(),
        );
    }
    let begun = Instant::now();
    let name = pod.to_string();
    let attachment = netplug::Attachment {
        uid: pod.uid().as_str(),
        pod: &name,
        netns: netns.as_fd(),
        netlink,
        ports: host_ports(pod),
        bandwidth: bandwidth(&asks),
        fixed: asks.ips,
    };
    let attached = network.attach(attachment).await.map_err(|e| e.to_string())?;
    trace.steps(None, begun, attached.steps.iter().map(|(n, d)| (format!("net: {n}"), *d)));
    Ok(Wired { ips: attached.ips, unheard: Vec::new() })
}

/// What a pod asks of its network, or what is wrong with its annotations.
fn asks_of(pod: &ValidPod) -> Result<Asks, String> {
    Asks::of(&pod.metadata).map_err(|wrong| list(&wrong))
}

fn list(wrong: &[Wrong]) -> String {
    wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// As CNI's capability `dns` has it.
fn dns(resolver: &Resolver) -> Value {
    json!({"servers": resolver.nameservers, "searches": resolver.searches, "options": resolver.options})
}

/// How fast the pod may be, if it says.
fn bandwidth(asks: &Asks) -> Option<netplug::Bandwidth> {
    let limits =
        netplug::Bandwidth { ingress: asks.ingress.map(netplug::Rate::new), egress: asks.egress.map(netplug::Rate::new) };
    (limits != netplug::Bandwidth::default()).then_some(limits)
}

/// The ports of the node that lead to the pod.
fn host_ports(pod: &ValidPod) -> Vec<netplug::Port> {
    let ports = pod.all_containers().flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            Some(netplug::Port {
                host_ip: p.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
                host_port: u16::try_from(p.host_port?).ok()?,
                container_port: u16::try_from(p.container_port).ok()?,
                protocol: protocol(p.protocol.as_deref()),
            })
        })
        .collect()
}
