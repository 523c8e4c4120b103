//! Services and policies in the table: what is wanted is compared with what stands, and the difference goes to the kernel at once.

use std::{collections::BTreeSet, fs, io, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::Engine;
use crate::{
    cidr::Cidr,
    conntrack,
    error::{Doing, Error},
    nft::{
        fragment::{self, Fragment},
        rule::Family,
        set::{self, Value},
        table::named,
    },
    policy::{self, Policy},
    service::{self, Service, Unit, Units},
    settings::Protocol,
    trace::{self, Flow, Step},
    whole::{self, Outlives},
};

/// All services and network policies of a node, resolved to addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Where services' addresses are from: what no service has is refused.
    pub service_ranges: Vec<Cidr>,
    /// Each port of each Service.
    pub services: Vec<Service>,
    /// The policies.
    pub policies: Vec<Policy>,
}

/// How rules stand in the table.
#[derive(Debug, Clone, Default)]
pub(super) struct Standing {
    rules: Arc<Rules>,
    units: Units,
    policies: Arc<Fragment>,
    /// What services have together.
    common: Arc<Fragment>,
}

impl Standing {
    fn of(before: &Standing, rules: Rules) -> Standing {
        let units = service::units(&before.units, &rules.services);
        let policies = if rules.policies == before.rules.policies {
            before.policies.clone()
        } else {
            Arc::new(policy::fragment(&rules.policies))
        };
        let same = rules.service_ranges == before.rules.service_ranges && units.len() == before.units.len();
        let same = same && units.values().zip(before.units.values()).all(|(a, b)| Arc::ptr_eq(a, b));
        let common = if same { before.common.clone() } else { Arc::new(common(&rules.service_ranges, &units)) };
        Standing { rules: Arc::new(rules), units, policies, common }
    }

    pub(super) fn fragments(&self) -> impl Iterator<Item = &Fragment> {
        [&*self.common, &*self.policies].into_iter().chain(self.units.values().map(|unit| &unit.fragment))
    }

    pub(super) fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }
}

/// The addresses that are services' alone, and the endpoints' own.
fn common(service_ranges: &[Cidr], units: &Units) -> Fragment {
    let mut common = service::selves(units);
    let blocks: Vec<(Cidr, Vec<Cidr>)> = service_ranges.iter().map(|range| (*range, Vec::new())).collect();
    for family in Family::BOTH {
        for (first, last) in policy::ranges(&blocks, family) {
            set::interval(first, last).for_each(|key| common.add(&named("virtual", family), key, Value::None));
        }
    }
    common
}

impl Engine {
    /// Makes these the rules, in place of those before. All or nothing.
    pub(crate) fn enforce(&mut self, rules: Rules) -> Result<(), Error> {
        if self.isolates() != self.isolated {
            self.mend_ports()?;
        }
        let after = Standing::of(&self.standing, rules);
        let nothing = Fragment::default();
        let mut steps: Vec<fragment::Step<'_>> =
            vec![(&self.standing.common, &after.common), (&self.standing.policies, &after.policies)];
        steps.retain(|(old, new)| !std::ptr::eq(*old, *new));
        for (key, unit) in &after.units {
            match self.standing.units.get(key) {
                Some(old) if Arc::ptr_eq(old, unit) => {}
                old => steps.push((old.map_or(&nothing, |old| &old.fragment), &unit.fragment)),
            }
        }
        let gone = self.standing.units.iter().filter(|(key, _)| !after.units.contains_key(*key));
        steps.extend(gone.map(|(_, unit)| (&unit.fragment, &nothing)));
        let changed = self.table.change(&mut self.wire, &self.nft, &steps);
        let forgotten = forsaken(&self.standing.units, &after.units);
        self.unsaved |= *self.standing.rules != *after.rules;
        self.standing = after;
        if changed.is_err() {
            // The kernel doesn't have what we think it has.
            self.render()?;
        }
        if !forgotten.is_empty() {
            conntrack::forget(&mut self.wire, &self.nft, &forgotten).doing(|| "end flows to endpoints that are gone".into())?;
        }
        Ok(())
    }

    /// What would become of a connection.
    pub(crate) fn trace(&self, flow: Flow, host: &[IpAddr]) -> Vec<Vec<Step>> {
        trace::trace(&self.settings, &self.attached(), self.standing.rules(), host, flow)
    }

    /// The rules that stand.
    pub(crate) fn rules(&self) -> Arc<Rules> {
        self.standing.rules().clone()
    }

    /// Reads what a process before had in force: until somebody says otherwise it goes on, also in a table that is made anew.
    pub(super) fn recall(&mut self) -> Result<(), Error> {
        let path = self.settings.state_dir.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).doing(|| format!("read {}", path.display())),
        };
        match serde_json::from_slice(&text) {
            Ok(rules) => self.standing = Standing::of(&Standing::default(), rules),
            // Another version's, or damaged: who holds the rules tells them again.
            Err(error) => tracing::warn!(file = %path.display(), %error, "the rules of the process before can't be read"),
        }
        Ok(())
    }

    /// Keeps the rules for the process after, if they changed. Not on the way of who waits for them.
    pub(crate) fn keep_rules(&mut self) {
        if !std::mem::take(&mut self.unsaved) || self.closed {
            return;
        }
        let path = self.settings.state_dir.join(FILE);
        let text = serde_json::to_vec(&**self.standing.rules()).map_err(io::Error::from);
        if let Err(error) = text.and_then(|text| whole::write(&path, &text, 0o644, Outlives::Process)) {
            tracing::warn!(file = %path.display(), %error, "the rules could not be kept");
        }
    }
}

/// Beside the leases.
pub(crate) const FILE: &str = "services.rules";

/// UDP has no connection that breaks: flows to endpoints that are gone must be ended for the clients to get another.
fn forsaken(before: &Units, after: &Units) -> BTreeSet<(Protocol, IpAddr, u16)> {
    let mut gone = BTreeSet::new();
    for (key, old) in before.iter().filter(|((_, protocol, _), _)| *protocol != Protocol::Tcp) {
        let new = after.get(key);
        if new.is_some_and(|new| Arc::ptr_eq(new, old)) {
            continue;
        }
        let kept: &[_] = new.map_or(&[], |new: &Arc<Unit>| &new.service().endpoints);
        let lost = old.service().endpoints.iter().filter(|endpoint| !kept.contains(endpoint));
        gone.extend(lost.map(|endpoint| (key.1, endpoint.ip(), endpoint.port())));
    }
    gone
}
