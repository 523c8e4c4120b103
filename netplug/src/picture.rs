//! What a network is made of at this moment: read from the kernel, so that what somebody took away is seen to be missing.

use std::net::IpAddr;

use crate::lease::Lease;

/// See the module's page.
#[derive(Debug, Clone, Default)]
pub struct Picture {
    /// The links with a default route, the best first.
    pub uplinks: Vec<LinkState>,
    /// The bridge; none: it is gone.
    pub bridge: Option<LinkState>,
    /// The nftables table of family inet.
    pub table: String,
    /// Whether the table is there, made of these settings.
    pub table_stands: bool,
    /// Why no pod takes the direct way to others; none: those do that nothing keeps off it.
    pub no_direct_way: Option<String>,
    /// Why no pod's socket is led to Services' endpoints; none: those that can be are.
    pub no_led_sockets: Option<String>,
    /// What pods hold, by their names.
    pub pods: Vec<PodState>,
    /// Links in the bridge that are no pod's.
    pub strangers: Vec<LinkState>,
}

/// A link as the kernel has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
    /// In bytes.
    pub mtu: u32,
    /// Its addresses, link-local ones left out, each with its prefix.
    pub addresses: Vec<(IpAddr, u8)>,
}

/// A pod, and its link's end on the host.
#[derive(Debug, Clone)]
pub struct PodState {
    /// What it holds.
    pub lease: Lease,
    /// The host's end of its veth; none: it is gone.
    pub link: Option<LinkState>,
    /// Whether that is where it belongs: a port of the bridge, or, of pods that are [`crate::Isolation::Routed`], none.
    pub in_place: bool,
    /// Why it doesn't take the direct way to other pods; none: it does.
    pub not_direct: Option<String>,
}

impl LinkState {
    /// `10.88.0.1/16`, one an address.
    pub fn shown(&self) -> Vec<String> {
        self.addresses.iter().map(|(ip, prefix)| format!("{ip}/{prefix}")).collect()
    }
}
