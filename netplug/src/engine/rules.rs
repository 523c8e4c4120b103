//! Services and policies in the table: what is wanted is compared with what stands, and the difference goes to the kernel at once.

use std::{collections::HashSet, hash::Hash, net::IpAddr, sync::Arc};

use rustix::io::Errno;

use super::{Engine, record::Record};
use crate::{
    cidr::Cidr,
    conntrack::{self, Stale},
    direct::{Care, Hindrance, Watched},
    error::{Doing, Error},
    lease::Lease,
    links::{self, Address},
    nft::{
        fragment::Fragment,
        rule::Family,
        set::{self, Value},
        table::named,
    },
    policy::{self, Guard, Policy},
    service::{Balance, Change, Service},
    settings::Settings,
    trace::{self, Flow, Shortcuts, Step},
};

/// All services and network policies of a node, resolved to addresses.
///
/// Who tells them again and again keeps what didn't change: what is the same `Arc` isn't even looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Where services' addresses are from: what no service has is refused.
    pub service_ranges: Vec<Cidr>,
    /// Each port of each Service. Of two that want the same address and port, the first by name has it.
    pub services: Vec<Arc<Service>>,
    /// The policies, each name once.
    pub policies: Vec<Arc<Policy>>,
}

/// How rules stand in the table.
#[derive(Debug)]
pub(super) struct Standing {
    rules: Rules,
    balance: Balance,
    guard: Guard,
    watched: Watched,
    /// The addresses that are services' alone.
    ranges: Arc<Fragment>,
    record: Record,
    /// Whether the kernel doesn't have what we think it has.
    stale: bool,
}

impl Standing {
    pub(super) fn new(settings: &Settings) -> Standing {
        let (balance, guard, record) = (Balance::default(), Guard::default(), Record::new(&settings.state_dir));
        let watched = Watched::among(settings.ranges.iter().map(|range| range.subnet).collect());
        Standing { rules: Rules::default(), balance, guard, watched, ranges: Arc::default(), record, stale: false }
    }

    /// Who must be seen.
    pub(super) fn watched(&mut self) -> &mut Watched {
        &mut self.watched
    }

    /// What keeps a pod off the direct way, of what concerns this pod.
    pub(super) fn hinders(&self, lease: &Lease) -> Option<Hindrance> {
        self.watched.hinders(lease)
    }

    /// Which of a pod's packets may take it.
    pub(super) fn care(&self, lease: &Lease) -> Care {
        self.watched.care(lease)
    }

    pub(super) fn fragments(&self) -> impl Iterator<Item = Arc<Fragment>> {
        self.balance.fragments().chain(self.guard.fragments()).chain([self.ranges.clone()])
    }

    /// Makes these the rules. What that changes in the table.
    fn replace(&mut self, rules: Rules) -> Change {
        let (gone, come) = difference(&self.rules.services, &rules.services);
        let mut change = self.balance.change(&gone, &come);
        self.watched.translate_to(come.iter().map(Arc::as_ref));
        self.record.services(&gone, &come);
        if rules.service_ranges != self.rules.service_ranges {
            let new = Arc::new(virtual_addresses(&rules.service_ranges));
            change.steps.push((std::mem::replace(&mut self.ranges, new.clone()), new));
            self.record.ranges(&rules.service_ranges);
        }
        let (gone, come) = difference(&self.rules.policies, &rules.policies);
        change.steps.extend(self.guard.change(&gone, &come));
        self.watched.select(gone.iter().map(Arc::as_ref), come.iter().map(Arc::as_ref));
        self.record.policies(&gone, &come);
        self.rules = rules;
        change
    }
}

/// What is in the first list alone, and what in the second. Most of it is usually the same, at the same place.
fn difference<T: Eq + Hash>(old: &[Arc<T>], new: &[Arc<T>]) -> (Vec<Arc<T>>, Vec<Arc<T>>) {
    let same = |pair: &(&Arc<T>, &Arc<T>)| pair.0 == pair.1;
    let before = old.iter().zip(new).take_while(same).count();
    let (old, new) = (&old[before..], &new[before..]);
    let after = old.iter().rev().zip(new.iter().rev()).take_while(same).count();
    let (old, new) = (&old[..old.len() - after], &new[..new.len() - after]);
    let without = |list: &[Arc<T>], other: &[Arc<T>]| {
        let other: HashSet<&Arc<T>> = other.iter().collect();
        list.iter().filter(|one| !other.contains(one)).cloned().collect()
    };
    (without(old, new), without(new, old))
}

fn virtual_addresses(service_ranges: &[Cidr]) -> Fragment {
    let mut fragment = Fragment::default();
    let blocks: Vec<(Cidr, Vec<Cidr>)> = service_ranges.iter().map(|range| (*range, Vec::new())).collect();
    for family in Family::BOTH {
        for (first, last) in policy::ranges(&blocks, family) {
            set::interval(first, last).for_each(|key| fragment.add(&named("virtual", family), key, Value::None));
        }
    }
    fragment
}

impl Engine {
    /// Makes these the rules, in place of those before. All or nothing; after a failure the next call puts all of it right.
    pub(crate) fn enforce(&mut self, rules: Rules) -> Result<(), Error> {
        let ranges = self.standing.rules.service_ranges.clone();
        let change = self.standing.replace(rules);
        // First, for a process after that doesn't know them yet must not let in whom they refuse.
        self.keep_rules();
        self.lead_sockets(change.led);
        if let Err(error) = self.leave_direct() {
            self.standing.stale = true;
            return Err(error);
        }
        if self.standing.stale || self.table.change(&mut self.wire, &self.nft, &change.steps).is_err() {
            self.render()?;
        }
        if ranges != self.standing.rules.service_ranges {
            self.unroute_services(&ranges);
            self.route_services();
        }
        self.join_direct();
        self.forget_flows(&change.stale)
    }

    /// What the host itself sends to a Service must have a route before its destination is translated. A host without a default route
    /// of that family is given one, as long as it has no other. Where that is refused (no IPv6, say), pods reach Services all the same.
    pub(super) fn route_services(&mut self) {
        for range in self.standing.rules.service_ranges.clone() {
            if self.wire.route_one(&self.route, links::way_to(links::elsewhere(range.is_v4()))).is_ok() {
                self.unroute_services(&[range]);
                continue;
            }
            match self.wire.route_one(&self.route, links::lead(self.bridge.index, range)) {
                // Ours, or somebody's who knows better.
                Err(refused) if refused.errno == Errno::EXIST.raw_os_error() => {}
                Err(error) => tracing::warn!(%range, %error, "the host itself has no way to Services"),
                Ok(_) => {}
            }
        }
    }

    /// Takes such routes away. Most often there are none.
    fn unroute_services(&mut self, ranges: &[Cidr]) {
        let requests = ranges.iter().map(|range| links::lead_no_more(self.bridge.index, *range)).collect();
        if let Err(error) = self.wire.route(&self.route, requests) {
            tracing::warn!(%error, "the host's routes to Services can't be taken away");
        }
    }

    /// The same for all that stand.
    pub(super) fn forget_services(&mut self) {
        let ranges = self.standing.rules.service_ranges.clone();
        self.unroute_services(&ranges);
    }

    /// Ends flows that would go past what stands now.
    pub(super) fn forget_flows(&mut self, stale: &Stale) -> Result<(), Error> {
        conntrack::forget(&mut self.wire, &self.nft, stale).doing(|| "end flows to endpoints that are gone".into())
    }

    /// The whole table from what is known.
    pub(super) fn render(&mut self) -> Result<(), Error> {
        self.complete()?;
        self.standing.stale = true;
        self.table
            .render(&mut self.wire, &self.nft, self.leases.values(), self.standing.fragments())
            .doing(|| format!("set up the nftables table inet {}", self.settings.table))?;
        self.standing.stale = false;
        Ok(())
    }

    /// What would become of a connection. `host`: addresses of the node beside those that its links have now.
    pub(crate) fn trace(&mut self, flow: Flow, mut host: Vec<IpAddr>) -> Result<Vec<Vec<Step>>, Error> {
        let found = self.wire.dump(&self.route, links::all_addresses).doing(|| "list addresses".into())?;
        host.extend(Address::all(&found).map(|address| address.ip));
        let (settings, leases, rules) = (&self.settings, self.attached(), &self.standing.rules);
        let shortcuts = Shortcuts { direct: self.direct.cares().collect(), led: self.led().collect() };
        Ok(trace::trace(settings, &leases, rules, &shortcuts, &host, flow))
    }

    /// The rules that stand.
    pub(crate) fn rules(&self) -> Rules {
        self.standing.rules.clone()
    }

    /// Reads what a process before had in force: until somebody says otherwise it goes on, also in a table that is made anew.
    pub(super) fn recall(&mut self) -> Result<(), Error> {
        let rules = self.standing.record.read().doing(|| "read the rules of the process before".into())?;
        let change = self.standing.replace(rules);
        self.lead_sockets_alone(change.led);
        self.standing.record.stands();
        Ok(())
    }

    /// Keeps the rules for the process after, if they changed.
    fn keep_rules(&mut self) {
        if !self.closed {
            self.standing.record.keep(&self.standing.rules);
        }
    }
}
