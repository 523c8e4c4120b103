//! Who takes the direct way at this moment, and the order in which that changes: a pod leaves it before rules come into force that have
//! to see its packets, and before its address may be another's; it takes it when those that had to are gone.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sched::{CloneFlags, unshare};
use rustix::io::Errno;

use super::{Engine, bridge, is_ours};
use crate::{
    conntrack::{self, Connection},
    direct::{Care, NAME, Shortcut, hook},
    error::{Doing, Error, Refused},
    lease::Lease,
    links::{self, Home, Link},
    netlink::{self, Outcome, Request, Wire},
    nft::others::onlooker,
    settings::Isolation,
    tc,
};

/// Links are made ready when no pod has come for so long: nobody who starts shall wait for what can wait. It takes two such steps, for a filter
/// that comes at once after the discipline that it hangs in waits for RCU.
const CALM: Duration = Duration::from_millis(100);
/// But no later than so long after the first wanted it.
const LONGEST: Duration = Duration::from_secs(2);

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Direct {
    /// None: nobody takes it.
    shortcut: Option<Shortcut>,
    /// Why that is so.
    refused: Option<String>,
    /// What of others sees what pods send each other; while it is there nobody takes the direct way.
    onlooker: Option<String>,
    /// The host's ends of pods' links, by UID.
    links: HashMap<String, End>,
    /// Who takes it, by UID.
    admitted: HashMap<String, Admitted>,
    /// When links are made ready.
    due: Option<Instant>,
    /// Since when somebody waits for that.
    wanted: Option<Instant>,
    /// What a process before had translated isn't known yet. The kernel walks through its whole table to tell, which nobody shall wait for.
    unlisted: bool,
}

/// A pod on the direct way.
#[derive(Debug)]
struct Admitted {
    ips: Vec<IpAddr>,
    care: Care,
}

/// The host's end of a pod's link.
#[derive(Debug)]
struct End {
    index: u32,
    stage: Stage,
}

/// How far it is on its way to the program.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Bare,
    /// A filter can be put there.
    Filterable,
    /// The program sees what comes in.
    Watched,
    /// What the kernel said.
    Refused(String),
}

impl Direct {
    /// Why no pod takes it, if that is so.
    pub(super) fn closed(&self) -> Option<&str> {
        match self.shortcut {
            Some(_) => self.onlooker.as_deref(),
            None => Some(self.refused.as_deref().unwrap_or("directPath is off")),
        }
    }

    /// Whether a pod takes it.
    pub(super) fn has(&self, uid: &str) -> bool {
        self.admitted.contains_key(uid)
    }

    /// The addresses that take it, and which of their packets do.
    pub(super) fn cares(&self) -> impl Iterator<Item = (IpAddr, Care)> {
        self.admitted.values().flat_map(|pod| pod.ips.iter().map(|ip| (*ip, pod.care)))
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.cares().map(|(ip, _)| ip)
    }

    /// The host's end of a pod's link.
    pub(super) fn found(&mut self, uid: &str, link: Option<u32>) {
        match link {
            Some(index) if self.links.get(uid).is_some_and(|end| end.index == index) => {}
            Some(index) => drop(self.links.insert(uid.to_owned(), End { index, stage: Stage::Bare })),
            None => drop(self.links.remove(uid)),
        }
    }

    /// Nobody takes it.
    fn refuse(&mut self, reason: String) {
        self.shortcut = None;
        self.refused = Some(reason);
    }

    /// What could be filtered can't be any more.
    pub(super) fn cleared(&mut self, uid: &str) {
        self.reached(uid, Stage::Bare);
    }

    /// When links are made ready, if any are to be.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Somebody may take it whose link isn't ready.
    fn want(&mut self) {
        let now = Instant::now();
        let since = *self.wanted.get_or_insert(now);
        self.due = Some((now + CALM).min(since + LONGEST));
    }

    fn reached(&mut self, uid: &str, stage: Stage) {
        if let Some(end) = self.links.get_mut(uid) {
            end.stage = stage;
        }
    }

    fn is_watched(&self, uid: &str) -> bool {
        self.links.get(uid).is_some_and(|end| end.stage == Stage::Watched)
    }
}

impl Engine {
    /// Before anything else is changed: what a process before let go directly goes the ordinary way, whatever it was; only this one knows
    /// what stands from now on. Its program is gone on with, if it is the same.
    pub(super) fn begin_direct(&mut self) -> Result<(), Error> {
        let before = self.shortcuts_before()?;
        let doing = || "take pods off the last process's direct way".into();
        for (shortcut, _) in &before {
            let them = shortcut.dismiss_all().doing(doing)?;
            let connections = shortcut.take_connections(|_| true).doing(doing)?;
            self.hand_back(connections, &them);
        }
        if self.settings.isolation != Isolation::Routed || !self.settings.direct {
            return before.iter().try_for_each(|(_, pods)| self.unhook(pods));
        }
        match Shortcut::load() {
            Ok(new) => self.go_on_with(new, before),
            Err(error) => {
                self.direct.refuse(format!("the kernel allows us no such eBPF program: {error}"));
                return Ok(());
            }
        }
        self.direct.unlisted = self.leases.len() > 0;
        self.look_for_onlookers()
    }

    /// Before the first takes it.
    fn list_translated(&mut self) {
        if !std::mem::take(&mut self.direct.unlisted) {
            return;
        }
        match conntrack::redirected(&mut self.wire, &self.nft) {
            Ok(flows) => flows.into_iter().for_each(|flow| self.standing.watched().saw(flow)),
            Err(error) => self.direct.refuse(format!("translated connections can't be listed: {error}")),
        }
    }

    /// The programs of a process before, and the links on which they are: all that may be pods' are asked, for leases may be lost. One that can't be
    /// told to let go is taken off at once.
    fn shortcuts_before(&mut self) -> Result<Vec<(Shortcut, Vec<u32>)>, Error> {
        let messages = self.wire.dump(&self.route, links::all_links).doing(|| "list links".into())?;
        let mut ends = Vec::new();
        for link in Link::all(&messages).filter(|link| is_ours(&link.name)) {
            if let Some(lease) = self.leases.of_link(&link.name).filter(|lease| lease.host_if == link.name) {
                self.direct.found(&lease.uid, Some(link.index));
            }
            ends.push(link.index);
        }
        let asked = ends.iter().map(|index| hook::get(*index)).collect();
        let outcomes = self.wire.route(&self.route, asked).doing(|| "look for the last process's program".into())?;
        let (mut programs, mut unreadable) = (BTreeMap::<u32, Vec<u32>>::new(), Vec::new());
        for (index, outcome) in ends.into_iter().zip(outcomes) {
            match outcome.ok().map(|answer| hook::program(&answer)) {
                Ok(Some(id)) => programs.entry(id).or_default().push(index),
                Err(refused) if is_none(&refused) => {}
                Ok(None) | Err(_) => unreadable.push(index),
            }
        }
        let mut found = Vec::new();
        for (id, links) in programs {
            match Shortcut::of(id) {
                Ok(Some(shortcut)) => found.push((shortcut, links)),
                _ => unreadable.extend(links),
            }
        }
        self.unhook(&unreadable)?;
        Ok(found)
    }

    /// Takes the program off links. They may be gone, or have none.
    fn unhook(&mut self, links: &[u32]) -> Result<(), Error> {
        let action = || "take the last process's program off pods' links".into();
        let requests = links.iter().map(|index| hook::remove(*index)).collect();
        let mut refusals = self.wire.route(&self.route, requests).doing(action)?.into_iter().filter_map(Outcome::refusal);
        refusals.find(|refused| !is_none(refused)).map_or(Ok(()), Err).doing(action)
    }

    /// A program that does the same is gone on with: its links are ready.
    fn go_on_with(&mut self, new: Shortcut, before: Vec<(Shortcut, Vec<u32>)>) {
        let same = before.iter().position(|(old, _)| old.is_like(&new).unwrap_or(false));
        let mut chosen = new;
        for (number, (old, links)) in before.into_iter().enumerate() {
            let goes_on = same == Some(number);
            for end in self.direct.links.values_mut().filter(|end| links.contains(&end.index)) {
                end.stage = if goes_on { Stage::Watched } else { Stage::Filterable };
            }
            if goes_on {
                chosen = old;
            }
        }
        self.direct.shortcut = Some(chosen);
    }

    /// Takes off who may not take the direct way any more, and what of the others' packets may not.
    pub(super) fn leave_direct(&mut self) -> Result<(), Error> {
        let may = |uid: &String| self.leases.get(uid).is_some_and(|lease| self.may_go_directly(lease));
        let leaving: Vec<String> = self.direct.admitted.keys().filter(|uid| !may(uid)).cloned().collect();
        if !leaving.is_empty() {
            self.leave(&leaving)?;
        }
        let changed =
            |lease: &&Lease| self.direct.admitted.get(&lease.uid).is_some_and(|pod| pod.care != self.standing.care(lease));
        let changed: Vec<Lease> = self.leases.values().filter(changed).cloned().collect();
        changed.iter().for_each(|lease| self.admit(lease));
        Ok(())
    }

    /// A pod that is wired anew: it stays, and so do its connections.
    pub(super) fn leave_direct_for_now(&mut self, uid: &str) -> Result<(), Error> {
        if self.direct.has(uid) { self.leave(&[uid.to_owned()]) } else { Ok(()) }
    }

    fn leave(&mut self, leaving: &[String]) -> Result<(), Error> {
        let before: HashSet<IpAddr> = self.direct.addresses().collect();
        let pods = leaving.iter().filter_map(|uid| self.direct.admitted.get(uid));
        let ips: HashSet<IpAddr> = pods.flat_map(|pod| pod.ips.iter().copied()).collect();
        leaving.iter().try_for_each(|uid| self.leave_direct_with(uid))?;
        // From here on their packets are seen. The connections that they have are known before rules come that would take them for new.
        let Some(shortcut) = &self.direct.shortcut else { return Ok(()) };
        let connections =
            shortcut.take_connections(|ip| ips.contains(&ip)).doing(|| "list connections that went directly".into())?;
        self.hand_back(connections, &before);
        Ok(())
    }

    /// Tells connection tracking of connections between these that it hasn't seen. Of one with another end the note is old: that end's pod is gone,
    /// and its address may be another's.
    fn hand_back(&mut self, connections: Vec<Connection>, them: &HashSet<IpAddr>) {
        let between = |connection: &Connection| them.contains(&connection.client.ip()) && them.contains(&connection.server.ip());
        let connections: Vec<Connection> = connections.into_iter().filter(between).collect();
        if let Err(error) = conntrack::know(&mut self.wire, &self.nft, &connections) {
            tracing::warn!(%error, "connections that went directly are judged as new ones");
        }
    }

    /// Takes a pod off, without its connections.
    pub(super) fn leave_direct_with(&mut self, uid: &str) -> Result<(), Error> {
        if let (Some(shortcut), Some(pod)) = (&self.direct.shortcut, self.direct.admitted.get(uid)) {
            for ip in &pod.ips {
                shortcut.dismiss(*ip).doing(|| format!("take {ip} off the direct way"))?;
            }
        }
        self.direct.admitted.remove(uid);
        Ok(())
    }

    /// Lets all on it who may and whose links are ready; those of the others will be.
    pub(super) fn join_direct(&mut self) {
        if self.direct.closed().is_some() {
            return;
        }
        if self.direct.unlisted {
            self.direct.want();
            return;
        }
        let joining: Vec<Lease> = self.waiting_for_direct().cloned().collect();
        let (ready, bare): (Vec<Lease>, Vec<Lease>) = joining.into_iter().partition(|lease| self.direct.is_watched(&lease.uid));
        if bare.iter().any(|lease| self.direct.links.get(&lease.uid).is_some_and(|end| !matches!(end.stage, Stage::Refused(_)))) {
            self.direct.want();
        }
        if ready.is_empty() {
            return;
        }
        // What is noted of these addresses is of pods that had them before.
        let come: HashSet<IpAddr> = ready.iter().flat_map(|lease| lease.ips.iter().copied()).collect();
        let forgotten = self.direct.shortcut.as_ref().map(|shortcut| shortcut.take_connections(|ip| come.contains(&ip)));
        if let Some(Err(error)) = forgotten {
            tracing::debug!(%error, "pods take the ordinary way: old connections can't be forgotten");
            return;
        }
        ready.iter().for_each(|lease| self.admit(lease));
        // Connection tracking won't see their end.
        let all: HashSet<IpAddr> = self.direct.addresses().collect();
        let Some(shortcut) = &self.direct.shortcut else { return };
        let known = conntrack::take_connections(&mut self.wire, &self.nft, |ip| all.contains(&ip));
        let noted = known.map(|known| known.into_iter().try_for_each(|connection| shortcut.note(connection)));
        if !matches!(noted, Ok(Ok(()))) {
            tracing::debug!(?noted, "connections that go directly from now on stay known to connection tracking");
        }
    }

    /// What makes a new pod's link one that can be filtered.
    pub(super) fn begin_direct_with(&self, uid: &str) -> Option<Request> {
        self.direct.shortcut.as_ref()?;
        self.direct.links.get(uid).map(|end| tc::ingress(end.index))
    }

    /// What came of it.
    pub(super) fn begun_direct(&mut self, uid: &str, outcome: Outcome) {
        self.step(uid, Stage::Filterable, outcome);
    }

    /// Of a pod that has come: not now.
    pub(super) fn join_direct_with(&mut self, lease: &Lease) {
        self.standing.watched().publish(lease);
        if self.may_go_directly(lease) {
            self.direct.want();
        }
    }

    /// Makes links ready, one step, if it is time.
    pub(super) fn prepare_direct(&mut self) {
        if self.direct.due.take_if(|due| *due <= Instant::now()).is_none() || self.closed {
            return;
        }
        self.direct.wanted = None;
        // iptables of the old kind come without a word.
        if let Err(error) = self.look_for_onlookers() {
            tracing::error!(%error, "what pods send each other goes past other firewalls");
        }
        self.list_translated();
        let Some(shortcut) = &self.direct.shortcut else { return };
        let (mut steps, mut requests) = (Vec::new(), Vec::new());
        for lease in self.waiting_for_direct() {
            let Some(end) = self.direct.links.get(&lease.uid) else { continue };
            let (next, request) = match end.stage {
                Stage::Bare => (Stage::Filterable, tc::ingress(end.index)),
                Stage::Filterable => (Stage::Watched, hook::put(end.index, NAME, shortcut.program())),
                Stage::Watched | Stage::Refused(_) => continue,
            };
            steps.push((lease.uid.clone(), next));
            requests.push(request);
        }
        match self.wire.route(&self.route, requests) {
            Ok(outcomes) => steps.into_iter().zip(outcomes).for_each(|((uid, next), outcome)| self.step(&uid, next, outcome)),
            Err(error) => tracing::debug!(%error, "no more pods take the direct way"),
        }
        self.join_direct();
    }

    fn step(&mut self, uid: &str, next: Stage, outcome: Outcome) {
        let there = Errno::EXIST.raw_os_error();
        match outcome.ok() {
            // No sch_ingress, no cls_bpf: others needn't try. As long as somebody is on the way the map must be at hand.
            Err(refused) if refused.errno == Errno::NOENT.raw_os_error() && self.direct.admitted.is_empty() => {
                self.direct.refuse(format!("the kernel has no sch_ingress or cls_bpf: {refused}"));
            }
            Err(refused) if !(next == Stage::Filterable && refused.errno == there) => {
                tracing::debug!(pod = uid, error = %refused, "the pod takes the ordinary way");
                self.direct.reached(uid, Stage::Refused(refused.to_string()));
            }
            _ => self.direct.reached(uid, next),
        }
    }

    fn admit(&mut self, lease: &Lease) {
        let (Some(shortcut), Some(end)) = (&self.direct.shortcut, self.direct.links.get(&lease.uid)) else { return };
        // Known before the first, so that all are taken out whatever happens.
        let care = self.standing.care(lease);
        self.direct.admitted.insert(lease.uid.clone(), Admitted { ips: lease.ips.clone(), care });
        let Home::Group(_, host) = self.home() else { return };
        if let Err(error) = lease.ips.iter().try_for_each(|ip| shortcut.admit(*ip, end.index, lease.mac(), host, care)) {
            tracing::debug!(pod = lease.pod, %error, "the pod takes the ordinary way");
            self.direct.reached(&lease.uid, Stage::Refused(error.to_string()));
            if let Err(error) = self.leave_direct_with(&lease.uid) {
                tracing::error!(pod = lease.pod, %error, "the pod is half on the direct way");
            }
        }
    }

    /// Who may take it and doesn't yet.
    fn waiting_for_direct(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values().filter(|lease| !self.direct.has(&lease.uid) && self.may_go_directly(lease))
    }

    fn may_go_directly(&self, lease: &Lease) -> bool {
        self.direct.closed().is_none() && self.standing.hinders(lease).is_none() && self.is_led(&lease.uid)
    }

    /// Looks who of others sees what pods send each other: the kernel tells when chains come and go.
    pub(super) fn look_for_onlookers(&mut self) -> Result<(), Error> {
        if self.direct.shortcut.is_none() {
            return Ok(());
        }
        let found = onlooker(&mut self.wire, &self.nft, &self.settings.table);
        // What can't be known is taken for being there.
        self.direct.onlooker = found.unwrap_or_else(|refused| Some(format!("other firewalls can't be listed: {refused}")));
        self.leave_direct()
    }

    /// What keeps a pod off the direct way, if something does.
    pub(super) fn why_not_directly(&self, lease: &Lease) -> Option<String> {
        if self.direct.has(&lease.uid) {
            return None;
        }
        let hindrance = self.standing.hinders(lease).map(|hindrance| hindrance.to_string());
        let closed = self.direct.closed().map(str::to_owned);
        // A connection that is translated, and one that isn't, could come from the same port to the same endpoint.
        let unled =
            || (!self.is_led(&lease.uid)).then(|| "it was there before sockets were led: its connections are translated".into());
        closed
            .or(hindrance)
            .or_else(unled)
            .or_else(|| Some(self.direct.links.get(&lease.uid).map_or_else(|| "its link was not found".into(), End::tell)))
    }
}

impl End {
    /// Why a pod that may take the direct way doesn't.
    fn tell(&self) -> String {
        match &self.stage {
            Stage::Refused(reason) => format!("its link takes no program: {reason}"),
            _ => "it has just come".into(),
        }
    }
}

/// Whether that is what the kernel says of a link that has no such filter: no link, no discipline, no filter, no such kind.
fn is_none(refused: &Refused) -> bool {
    [Errno::NODEV, Errno::INVAL, Errno::NOENT, Errno::OPNOTSUPP].iter().any(|errno| errno.raw_os_error() == refused.errno)
}

/// Whether this kernel lets pods reach each other past the host's rules ([`crate::Settings::direct`]): tried in a network namespace that ends
/// with the try.
pub fn can_go_directly() -> Result<(), Error> {
    let tried = thread::spawn(|| -> Result<(), Error> {
        let action = || "put an eBPF program on a link: needs Linux 5.10 and the kernel's sch_ingress and cls_bpf".to_owned();
        unshare(CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from).doing(action)?;
        let route = netlink::socket(NETLINK_ROUTE).doing(action)?;
        let shortcut = Shortcut::load().doing(action)?;
        let loopback = 1;
        let requests = vec![tc::ingress(loopback), hook::put(loopback, NAME, shortcut.program())];
        bridge::all(&mut Wire::new(), &route, requests, action)
    });
    tried.join().unwrap_or(Err(Error::Closed))
}
