//! The pods' network as their workers see it. Who wires them is decided once, at the agent's start: our own bridge
//! ([`netplug::Network`]), in this process and by netlink alone, or CNI plugins that are executed.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Instant;

use super::trace::Trace;
use crate::model::{PodUid, ValidPod};
use crate::runtime::{Sandbox, Wires};

/// See the module's page.
#[derive(Debug)]
pub struct PodNetwork {
    primary: Primary,
}

/// Who gives a pod its eth0.
#[derive(Debug)]
enum Primary {
    Bridge(netplug::Network),
}

impl PodNetwork {
    /// Pods are wired by our own bridge.
    pub fn bridged(network: netplug::Network) -> Self {
        Self { primary: Primary::Bridge(network) }
    }

    /// Our own bridge, if that is what wires the pods: Services, policies and the like are its.
    pub fn bridge(&self) -> Option<&netplug::Network> {
        match &self.primary {
            Primary::Bridge(network) => Some(network),
        }
    }

    /// Gives a pod its interface and addresses, by the way into its namespace that came with the sandbox; without it, the holder is
    /// asked. Again, it mends what is missing and answers the same.
    pub async fn attach(
        &self,
        pod: &ValidPod,
        (sandbox, wires): (&Sandbox, Option<Wires>),
        trace: &Trace,
    ) -> Result<Vec<IpAddr>, String> {
        match &self.primary {
            Primary::Bridge(network) => {
                let wires = match wires {
                    Some(wires) => wires,
                    None => sandbox.holder.wires().await.map_err(|e| e.to_string())?,
                };
                attach_to_bridge(network, pod, wires, trace).await
            }
        }
    }

    /// Takes back what a pod has. To be called when its last process has ended; a pod that has nothing has nothing to lose.
    pub async fn release(&self, uid: &PodUid) -> Result<(), String> {
        match &self.primary {
            // The address is free at once; the links go with the namespace.
            Primary::Bridge(network) => network.release_when_netns_dies(uid.as_str()).await.map_err(|e| e.to_string()),
        }
    }

    /// Frees all that belongs to none of these pods.
    pub async fn retain(&self, live: &[&str]) -> Result<(), String> {
        match &self.primary {
            Primary::Bridge(network) => network.retain(live).await.map_err(|e| e.to_string()),
        }
    }

    /// After the last pod: what the agent made for all of them goes too.
    pub async fn close(&self) -> Result<(), String> {
        match &self.primary {
            Primary::Bridge(network) => network.clone().close(netplug::Remove::All).await.map_err(|e| e.to_string()),
        }
    }
}

async fn attach_to_bridge(
    network: &netplug::Network,
    pod: &ValidPod,
    Wires { netns, netlink }: Wires,
    trace: &Trace,
) -> Result<Vec<IpAddr>, String> {
    let begun = Instant::now();
    let name = pod.to_string();
    let attachment = netplug::Attachment {
        uid: pod.uid().as_str(),
        pod: &name,
        netns: netns.as_fd(),
        netlink,
        ports: host_ports(pod),
        fixed: fixed(pod)?,
    };
    let attached = network.attach(attachment).await.map_err(|e| e.to_string())?;
    trace.steps(None, begun, attached.steps.iter().map(|(n, d)| (format!("net: {n}"), *d)));
    Ok(attached.ips)
}

/// The addresses that a pod must have: `nodeagent.dev/pod-ips: 10.85.0.7, fd00::7`, at most one a family.
fn fixed(pod: &ValidPod) -> Result<Vec<IpAddr>, String> {
    const ANNOTATION: &str = "nodeagent.dev/pod-ips";
    let Some(text) = pod.metadata.annotations.as_ref().and_then(|a| a.get(ANNOTATION)) else { return Ok(Vec::new()) };
    let parse = |word: &str| {
        let ip = word.trim().parse::<IpAddr>();
        ip.map_err(|_| format!("annotation {ANNOTATION}: {:?} is not an IP address", word.trim()))
    };
    text.split(',').filter(|word| !word.trim().is_empty()).map(parse).collect()
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
                protocol: match p.protocol.as_deref() {
                    Some("UDP") => netplug::Protocol::Udp,
                    Some("SCTP") => netplug::Protocol::Sctp,
                    _ => netplug::Protocol::Tcp,
                },
            })
        })
        .collect()
}
