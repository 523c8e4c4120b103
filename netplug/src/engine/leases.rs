//! The leases that are known: by pod, and by the links that are the pods', so that news of a link costs the same however many pods
//! there are.

use std::collections::HashMap;

use super::links_of;
use crate::lease::Lease;

#[derive(Debug, Default)]
pub(super) struct Leases {
    by_uid: HashMap<String, Lease>,
    /// The names of links, each with its pod's UID.
    by_link: HashMap<String, String>,
}

impl Leases {
    pub(super) fn get(&self, uid: &str) -> Option<&Lease> {
        self.by_uid.get(uid)
    }

    /// Whose a link is.
    pub(super) fn of_link(&self, name: &str) -> Option<&Lease> {
        self.get(self.by_link.get(name)?)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Lease> {
        self.by_uid.values()
    }

    pub(super) fn len(&self) -> usize {
        self.by_uid.len()
    }

    /// In place of the one that the pod had.
    pub(super) fn insert(&mut self, lease: Lease) {
        self.remove(&lease.uid);
        self.by_link.extend(links_of(&lease).into_iter().map(|link| (link, lease.uid.clone())));
        self.by_uid.insert(lease.uid.clone(), lease);
    }

    pub(super) fn remove(&mut self, uid: &str) {
        let Some(lease) = self.by_uid.remove(uid) else { return };
        for link in links_of(&lease) {
            // A name that has gone on to another pod is that one's.
            if self.by_link.get(&link).is_some_and(|owner| owner == uid) {
                self.by_link.remove(&link);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn lease(uid: &str, host_if: &str) -> Lease {
        let ips = vec!["10.88.0.2".parse().unwrap()];
        let (pod, host_if) = (format!("default/{uid}"), host_if.into());
        Lease { uid: uid.into(), pod, ips, host_if, ports: Vec::new(), bandwidth: None, mac: None }
    }

    #[test]
    fn a_link_is_the_pods_that_has_its_name_now() {
        let mut leases = Leases::default();
        let owner = |leases: &Leases, link: &str| leases.of_link(link).map(|lease| lease.uid.clone());
        leases.insert(lease("a", "veth1"));
        leases.insert(lease("a", "veth2"));
        assert_eq!((owner(&leases, "veth1"), owner(&leases, "veth2")), (None, Some("a".into())), "another name");
        leases.insert(lease("b", "veth2"));
        leases.remove("a");
        assert_eq!((owner(&leases, "veth2"), leases.len()), (Some("b".into()), 1));
        let limited = Lease { bandwidth: Some(crate::bandwidth::Bandwidth::default()), ..lease("c", "veth3") };
        leases.insert(limited.clone());
        assert!(links_of(&limited).iter().all(|link| owner(&leases, link) == Some("c".into())), "its ifb too");
        leases.remove("c");
        assert!(links_of(&limited).iter().all(|link| owner(&leases, link).is_none()));
    }
}
