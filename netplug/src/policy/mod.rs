//! Network policies, already resolved to addresses: from what is allowed to chains and sets. Pure.
//!
//! A policy has a chain of what it allows in a direction ([`rules`]); pods that the same policies select share a chain that goes through
//! those and then drops; a map leads from a pod's address to its chain ([`guard`]). What no policy selects isn't in the map and passes.

mod blocks;
mod guard;
mod rules;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

pub(crate) use self::{blocks::ranges, guard::Guard};
use crate::{
    cidr::Cidr,
    nft::rule::{Family, Is, Rule},
    settings::Protocol,
};

/// What one NetworkPolicy comes to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Policy {
    /// `namespace/name`.
    pub name: String,
    /// The addresses of the pods that it selects.
    pub pods: Vec<IpAddr>,
    /// What may come in; None: the policy doesn't speak of it.
    pub ingress: Option<Vec<Allow>>,
    /// What may go out; None: the policy doesn't speak of it.
    pub egress: Option<Vec<Allow>>,
}

/// One rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Allow {
    /// With whom; None: everybody.
    pub peers: Option<Peers>,
    /// To which ports; None: all.
    pub ports: Option<Vec<Ports>>,
}

/// Who is on the other side.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Peers {
    /// Pods' addresses.
    pub pods: Vec<IpAddr>,
    /// Address ranges, each with what is taken out of it.
    pub blocks: Vec<(Cidr, Vec<Cidr>)>,
}

/// Ports of the side that is called.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ports {
    /// First to last; None: all of the protocol.
    Range(Protocol, Option<(u16, u16)>),
    /// A named port, as each pod has it.
    Named(Protocol, Vec<SocketAddr>),
}

/// The two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub(crate) const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }

    pub(crate) fn rules(self, policy: &Policy) -> Option<&[Allow]> {
        match self {
            Direction::Ingress => policy.ingress.as_deref(),
            Direction::Egress => policy.egress.as_deref(),
        }
    }

    /// Matches the other side.
    fn peer(self, rule: Rule, family: Family, set: &str) -> Rule {
        match self {
            Direction::Ingress => rule.source(family, Is::In, set),
            Direction::Egress => rule.destination(family, Is::In, set),
        }
    }
}
